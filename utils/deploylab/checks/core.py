"""What all checks share: calling a learner's function safely, and saying in one line how it went."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn


class Wrong(Exception):
    """The answer is wrong; the message is the hint that the learner reads."""


class _NotAttempted(Exception):
    pass


def hint(message: str) -> NoReturn:
    """Stop the check and show ``message``: what was seen, and the likely mistake behind it."""
    raise Wrong(message)


def expect(condition: Any, message: str) -> None:
    """Go on if ``condition`` holds, else stop with :func:`hint`."""
    if not condition:
        hint(message)


def exercise(shows: str) -> Callable[[Callable[[Callable], None]], Callable[[Callable], None]]:
    """Make a check out of a function that calls the learner's function and raises :class:`Wrong` for a wrong answer.

    ``shows`` names what a right answer has shown; it is printed when the check passes. Whatever the learner's function
    does, the check prints one line and returns ``None``: a notebook goes on, and nobody reads a traceback of ours.
    """

    def decorate(check: Callable[[Callable], None]) -> Callable[[Callable], None]:
        @functools.wraps(check)
        def run(attempt: Callable) -> None:
            print(_verdict(check, attempt, shows))

        return run

    return decorate


def _verdict(check: Callable[[Callable], None], attempt: Callable, shows: str) -> str:
    name = check.__name__
    if not callable(attempt):
        return f"{name}: hand over the function itself, check.{name}({name}), not {type(attempt).__name__}"
    try:
        check(_guarded(attempt))
    except _NotAttempted:
        return f"{name}: not attempted yet"
    except Wrong as wrong:
        return f"{name}: not yet. {wrong}"
    except Exception as error:  # an answer of a type the check did not foresee
        return f"{name}: not yet. The answer cannot be used: {type(error).__name__}: {_one_line(error)}"
    return f"{name}: passed. {shows}"


def _guarded(attempt: Callable) -> Callable:
    """``attempt``, with the stub's ``...`` recognised and its own exceptions turned into one line."""

    @functools.wraps(attempt)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            answer = attempt(*args, **kwargs)
        except Exception as error:
            hint(f"Your function raised {type(error).__name__}: {_one_line(error)}")
        if answer is ...:
            raise _NotAttempted
        if answer is None:
            hint("Your function returned None; is a `return` missing?")
        return answer

    return call


def refuses(attempt: Callable, *args: Any, **kwargs: Any) -> Exception | None:
    """The exception with which a learner's guard refuses ``args``, or ``None`` if it let them pass.

    Use it where the exercise *asks* for an exception. ``attempt`` is the function a check receives.
    """
    try:
        answer = attempt.__wrapped__(*args, **kwargs)
    except Exception as error:
        return error
    if answer is ...:
        raise _NotAttempted
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

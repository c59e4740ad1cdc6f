"""Checks of lab 40: which wheels a board takes, which kernels a core runs, and how much time an answer has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from deploylab.checks.core import exercise, expect, hint

_NEEDS = {"scalar": "asimd", "compiler": "asimd", "neon": "asimd", "fp16": "asimdhp", "int8": "asimddp"}


@exercise("Python, C library and architecture, and a wheel may name several of each.")
def installs(attempt: Callable) -> None:
    """``installs(wheel, python, glibc)``: whether 64-bit Arm Linux takes a wheel of this file name.

    ``python`` is a version such as ``"3.11"``, ``glibc`` the 36 of 2.36.
    """
    for wheel, python, glibc, meant in _WHEELS:
        got, wanted = attempt(wheel, python, glibc), _accepted(wheel, python, glibc)
        if not isinstance(got, bool):
            hint(f"Return True or False, not {type(got).__name__}.")
        system = f"Python {python} with glibc 2.{glibc}"
        expect(got == wanted, f"{wheel} on {system}: you say {got}, it is {wanted}. {meant}")


_WHEELS = (
    ("numpy-2.4.6-cp311-cp311-manylinux_2_28_aarch64.whl", "3.11", 36, "Everything fits."),
    ("numpy-2.4.6-cp313-cp313-manylinux_2_28_aarch64.whl", "3.11", 36, "cp313 means CPython 3.13, and only that."),
    ("numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl", "3.11", 36, "x86_64 is not an Arm processor."),
    ("numpy-1.26.4-cp311-cp311-linux_armv7l.whl", "3.11", 36, "armv7l is 32-bit Arm."),
    ("openvino-1.0-1-cp311-cp311-manylinux_2_35_aarch64.whl", "3.11", 31, "It needs glibc 2.35, this one is older."),
    ("openvino-1.0-1-cp311-cp311-manylinux_2_35_aarch64.whl", "3.11", 41, "A newer glibc runs what an older one ran."),
    ("mnn-3.6.1-cp311-cp311-manylinux2014_aarch64.whl", "3.11", 31, "manylinux2014 is the old name of glibc 2.17."),
    ("mnn-3.6.1-cp311-cp311-musllinux_1_2_aarch64.whl", "3.11", 36, "musllinux is for systems with another C library."),
    (
        *("ncnn-1.0-cp311-cp311-manylinux_2_24_aarch64.manylinux_2_28_aarch64.whl", "3.11", 26),
        "Several tags with dots between: one that fits is enough.",
    ),
    ("tqdm-4.70.1-py3-none-any.whl", "3.13", 17, "py3-none-any is pure Python: it runs everywhere."),
    ("flatbuffers-25.12-py2.py3-none-any.whl", "3.11", 36, "py2.py3 names two Pythons, and one of them is yours."),
    ("six-1.0-py2-none-any.whl", "3.11", 36, "py2 is for Python 2."),
    (
        *("protobuf-7.36.2-cp310-abi3-manylinux2014_aarch64.whl", "3.13", 36),
        "abi3 is the stable interface: cp310-abi3 runs on CPython 3.10 and every later 3.x.",
    ),
    ("protobuf-7.36.2-cp313-abi3-manylinux2014_aarch64.whl", "3.11", 36, "abi3 does not run on an older Python."),
    ("some-1.0-cp39-abi3-manylinux2014_aarch64.whl", "3.10", 36, "Compare versions as numbers: 3.9 comes before 3.10."),
    ("some-1.0-cp311-cp311-linux_aarch64.whl", "3.11", 36, "linux_aarch64 is what a board builds for itself."),
)


def _accepted(wheel: str, python: str, glibc: int) -> bool:
    from packaging import tags
    from packaging.utils import parse_wheel_filename

    version = tuple(map(int, python.split(".")))
    old = ["manylinux2014_aarch64"] if glibc >= 17 else []
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(glibc, 16, -1)] + old + ["linux_aarch64"]
    taken = {*tags.cpython_tags(version, platforms=platforms), *tags.compatible_tags(version, platforms=platforms)}
    return not taken.isdisjoint(parse_wheel_filename(wheel)[3])


@exercise("Whole words, of every core: what one core lacks, the program must not use.")
def runnable(attempt: Callable) -> None:
    """``runnable(cpuinfo)``: the names of the kernels that every core in a text of ``/proc/cpuinfo`` can run."""
    from deploylab.boards.profiles import PROFILES

    old, new = (dict(PROFILES[name].files())["proc/cpuinfo"] for name in ("pi4", "pi5"))
    for text, name, meant in (
        (old, "a Raspberry Pi 4", "fp16 needs asimdhp, int8 needs asimddp, and the others asimd."),
        (new, "a Raspberry Pi 5", "It has asimd, asimdhp and asimddp."),
        (_X86, "an x86-64 machine", "It has no line `Features`, and runs no Arm program at all."),
        ("", "an empty file", "Without a core there is nothing to run on."),
        (_cores("fp asimd fphp"), "a core with fphp only", "fphp is about single numbers; the kernel needs asimdhp."),
        (_cores("fp asimdhp"), "a core that lists asimdhp and not asimd", "Compare whole words, not parts of them."),
    ):
        _check_kernels(attempt, text, name, meant)
    mixed = _cores(*["fp asimd"] * 4, *["fp asimd fphp asimdhp asimddp"] * 4)
    for text, which in ((mixed, "last"), ("\n\n".join(reversed(mixed.split("\n\n"))), "first")):
        found = attempt(text)
        if _names(found) > _runs(text):
            hint(
                f"A phone's chip has small and big cores; its {which} four have more features. You say {_listed(found)}"
                " run there. The system moves a program between cores: only what all of them have counts."
            )
        _check_kernels(lambda _, found=found: found, text, "small and big cores", "Take what all cores have in common.")


_X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse sse2 avx2 asimd\n\n"


def _cores(*features: str) -> str:
    return "".join(f"processor\t: {i}\nFeatures\t: {text}\nCPU part\t: 0xd0b\n\n" for i, text in enumerate(features))


def _runs(cpuinfo: str) -> set[str]:
    lines = [line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.startswith("Features")]
    common = set.intersection(*map(set, lines)) if lines else set()
    return {kernel for kernel, feature in _NEEDS.items() if feature in common}


def _check_kernels(attempt: Callable, text: str, name: str, meant: str) -> None:
    got, wanted = _names(attempt(text)), _runs(text)
    unknown = got - set(_NEEDS)
    expect(not unknown, f"There is no kernel {', '.join(sorted(map(str, unknown)))}; there are {_listed(_NEEDS)}.")
    expect(got == wanted, f"On {name}: you say {_listed(got)}, it is {_listed(wanted)}. {meant}")


def _names(answer: Iterable[str]) -> set[str]:
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        hint(f"Return a set of names, not {type(answer).__name__}.")
    return set(answer)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


@exercise("The loop's period is that of the slower one, the camera or the engine.")
def latency_budget(attempt: Callable) -> None:
    """``latency_budget(window_s, rate, agree)``: seconds that an answer may take; 0 if no engine is fast enough."""
    for window_s, rate, agree in ((1.2, 30.0, 4), (0.4, 30.0, 4), (0.15, 30.0, 4), (0.1, 30.0, 4), (3.0, 2.0, 5)):
        got = attempt(window_s, rate, agree)
        if isinstance(got, bool) or not isinstance(got, (int, float)):
            hint(f"Return a number of seconds, not {type(got).__name__}.")
        wanted = budget(window_s, rate, agree)
        if not math.isclose(got, wanted, rel_tol=1e-6, abs_tol=1e-9):
            hint(
                f"For a window of {window_s:g} s, {rate:g} pictures a second and {agree} that agree you say {got:.4g} "
                f"s, it is {wanted:.4g} s. {_likely(got, window_s, rate, agree)}"
            )


def budget(window_s: float, rate: float, agree: int) -> float:
    """The longest latency with ``agree * max(latency, 1 / rate) + latency <= window_s``, not below 0."""
    slow_engine = window_s / (agree + 1)
    return slow_engine if slow_engine >= 1 / rate else max(0.0, window_s - agree / rate)


def _likely(got: float, window_s: float, rate: float, agree: int) -> str:
    def is_close(value: float) -> bool:
        return math.isclose(got, value, rel_tol=1e-6, abs_tol=1e-9)

    if got < 0:
        return "No answer takes a negative time: where the camera alone is too slow, return 0."
    if is_close(window_s / agree):
        return "In the worst case the loop has just begun with an older picture: there is one period more."
    if is_close(window_s / (agree + 1)):
        return (
            "Here the engine would be faster than the camera: then the loop waits for the camera, 1 / rate a picture."
        )
    if is_close(max(0.0, window_s - agree / rate)):
        return "Here the engine may be slower than the camera: then the period is the latency itself."
    if is_close(1000 * budget(window_s, rate, agree)):
        return "That is in milliseconds; return seconds."
    if is_close(1 / rate):
        return "Keeping up with the camera is not asked for: the loop may skip pictures, if enough are left."
    return "The last of the pictures that agree is done after agree periods and one latency."

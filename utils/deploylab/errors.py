"""Errors with a message for a person: what was wrong, with the value, and what to do."""

from __future__ import annotations


class DeployLabError(Exception):
    """Base of every error DeployLab raises on purpose. The CLI prints it without a traceback and exits with 1."""


class InputError(DeployLabError):
    """An array, image or file given by the user has the wrong shape, dtype, format, size or content."""


class ModelError(DeployLabError):
    """A model or checkpoint is missing, corrupt, or cannot be used."""


class ConversionError(DeployLabError):
    """An engine could not convert a model: unsupported operator, missing output file, converter failure."""


class EngineError(DeployLabError):
    """An engine is unknown, not installed, or failed while loading or running."""


class WorkerError(EngineError):
    """A benchmark worker process could not start or do what it was asked."""


class WorkerDied(WorkerError):
    """A benchmark worker process crashed, hung or answered nonsense. It has been ended.

    ``hung`` says that it did not answer in time.
    """

    hung = False


class ServerError(DeployLabError):
    """A server could not be started, did not become ready, or answered what it must not."""


class BoardError(DeployLabError):
    """A board, emulated or real, cannot be made, reached or used."""


class BoardLost(BoardError):
    """The connection to a board broke. What was measured before stays."""


class BoardInterrupted(BoardLost):
    """The user ended the work on a board. What was measured before stays."""


class BundleError(DeployLabError):
    """A bundle for a machine without a network cannot be made, or is not whole."""


class ParityError(DeployLabError):
    """An engine's output departs from the reference by more than the tolerance."""


def without_frames(error: Exception) -> Exception:
    """``error`` and what caused it, without the frames it passed.

    They hold what the functions worked on, often the error too, so that only the garbage collector would free both.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error

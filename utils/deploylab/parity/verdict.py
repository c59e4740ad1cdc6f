"""Compare outputs with a reference. Errors are measured on the scale of the output, never element by element.

An element-wise relative error explodes where the reference happens to be near zero: a right answer may show 66 %.
So the largest difference within a sample is divided by the largest absolute reference value of that sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Arrays: TypeAlias = np.ndarray | Sequence[np.ndarray]

NOISE_FACTOR = 20.0
"""How much larger than the float32 error of the reference an engine's error may be. Other engines sum in other
orders and use Winograd's convolution, whose F(4x4, 3x3) has about ten times the error of direct convolution
(Lavin and Gray 2015, https://arxiv.org/abs/1509.09308, table 3); computing in float16 is about a thousand times off."""

LEAST_NOISE = float(np.finfo(np.float32).eps)
"""One rounding to float32: a lucky reference does not make everybody else wrong."""


@dataclass(frozen=True)
class Tolerance:
    """The largest allowed error, as a part of the largest absolute reference value, and why it is that."""

    value: float
    reason: str


@dataclass(frozen=True)
class Verdict:
    """How an output compares with its reference.

    ``error`` is the worst sample's largest absolute difference divided by its largest absolute reference value,
    ``max_abs`` the largest difference itself, ``rms`` the root mean square difference divided by that of the reference.
    ``top1`` is the share of samples whose largest element is at the same place, None where there is none to speak of.
    ``outputs`` holds one verdict an output where a model has several; the numbers are then the worst of them.
    """

    ok: bool
    text: str
    error: float = float("inf")
    max_abs: float = float("inf")
    rms: float = float("inf")
    cosine: float = 0.0
    top1: float | None = None
    outputs: tuple[Verdict, ...] = ()

    def __bool__(self) -> bool:
        return self.ok


def tolerance_from_noise(noise: float, whose: str = "torch") -> Tolerance:
    """The tolerance for float32, given the float32 error of a trusted implementation on the same inputs."""
    counted = max(noise, LEAST_NOISE)
    value = NOISE_FACTOR * counted
    measured = f"{whose}'s own float32 result is {noise:.1e} away from float64"
    least = f", less than one rounding of {LEAST_NOISE:.1e}" if noise < LEAST_NOISE else ""
    return Tolerance(value, f"{measured}{least}; {NOISE_FACTOR:g} times that for other orders of summation")


def relative_error(reference: np.ndarray, output: np.ndarray) -> float:
    """The worst sample's max |output - reference| / max |reference|; the leading axis counts samples.

    Infinite for a different shape or a NaN, or where the output is infinite and the reference is not.
    """
    return _errors(np.asarray(reference), np.asarray(output))[0]


def compare_outputs(reference: Arrays, output: Arrays, tolerance: Tolerance | float) -> Verdict:
    """Judge one array or one array per model output; the leading axis of each counts samples.

    Floating-point outputs pass within ``tolerance``, integers and booleans only if they are equal. A wrong shape, a
    NaN or an infinity that the reference has not is a failure that says so.
    """
    limit = tolerance.value if isinstance(tolerance, Tolerance) else float(tolerance)
    references, outputs = _as_tuple(reference), _as_tuple(output)
    if len(references) != len(outputs):
        return Verdict(False, f"{len(outputs)} output(s) instead of {len(references)}")
    verdicts = tuple(_judge(r, o, limit) for r, o in zip(references, outputs, strict=True))
    return verdicts[0] if len(verdicts) == 1 else _worst(verdicts)


def _as_tuple(arrays: Arrays) -> tuple[np.ndarray, ...]:
    return (arrays,) if isinstance(arrays, np.ndarray) else tuple(np.asarray(array) for array in arrays)


def _worst(verdicts: tuple[Verdict, ...]) -> Verdict:
    index = max(range(len(verdicts)), key=lambda i: (not verdicts[i].ok, verdicts[i].error))
    known = [verdict.top1 for verdict in verdicts if verdict.top1 is not None]
    return Verdict(
        ok=all(verdict.ok for verdict in verdicts),
        text=f"output {index + 1} of {len(verdicts)}: {verdicts[index].text}",
        error=max(verdict.error for verdict in verdicts),
        max_abs=max(verdict.max_abs for verdict in verdicts),
        rms=max(verdict.rms for verdict in verdicts),
        cosine=min(verdict.cosine for verdict in verdicts),
        top1=min(known) if known else None,
        outputs=verdicts,
    )


def _judge(reference: np.ndarray, output: np.ndarray, limit: float) -> Verdict:
    if reference.shape != output.shape:
        return Verdict(False, f"shape {output.shape} instead of {reference.shape}")
    if reference.dtype.kind not in "fc":
        return _judge_exact(reference, output)
    for what, test in (("NaN", np.isnan), ("infinity", np.isinf)):
        wrong = int((test(output) & ~test(reference)).sum())
        if wrong:
            return Verdict(False, f"the output contains {what} ({wrong} of {output.size} values)")
    error, max_abs = _errors(reference, output)
    a, b = _finite(reference), _finite(output)
    size = float(np.sqrt((a**2).sum()))
    rms = float(np.sqrt(((a - b) ** 2).sum())) / (size or 1.0)
    top1 = _top1(reference, output)
    ok = error <= limit
    text = f"error {error:.1e}, {'within' if ok else 'beyond'} the tolerance of {limit:.1e}"
    if top1 is not None and top1 < 1:
        text += f"; another top-1 for {1 - top1:.0%} of the samples"
    return Verdict(ok, text, error, max_abs, rms, _cosine(a, b), top1)


def _judge_exact(reference: np.ndarray, output: np.ndarray) -> Verdict:
    differing = int((reference != output).sum())
    if differing:
        return Verdict(False, f"{differing} of {reference.size} {reference.dtype} values differ, and must not")
    return Verdict(True, f"{reference.dtype} values equal", 0.0, 0.0, 0.0, 1.0)


def _errors(reference: np.ndarray, output: np.ndarray) -> tuple[float, float]:
    """The worst sample's error on its own scale, and the largest difference."""
    if reference.shape != output.shape or (np.isfinite(output) != np.isfinite(reference)).any():
        return float("inf"), float("inf")
    if not reference.size:
        return 0.0, 0.0
    samples = len(reference) if reference.ndim > 1 else 1
    a, b = (_finite(array).reshape(samples, -1) for array in (reference, output))
    differences, scales = np.abs(a - b).max(1), np.abs(a).max(1)
    scales = np.where(scales > 0, scales, scales.max() or 1.0)
    return float((differences / scales).max()), float(differences.max())


def _finite(array: np.ndarray) -> np.ndarray:
    return np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = float(np.linalg.norm(a.ravel()) * np.linalg.norm(b.ravel()))
    return float(a.ravel() @ b.ravel()) / lengths if lengths else float(np.array_equal(a, b))


def _top1(reference: np.ndarray, output: np.ndarray) -> float | None:
    if reference.ndim < 2 or reference.shape[-1] < 2 or not reference.size:
        return None
    return float((reference.argmax(-1) == output.argmax(-1)).mean())

"""What is compared: a model, the inputs it is tried on, and the truth about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploylab import image, models, parity
from deploylab.engines import Source
from deploylab.errors import InputError, ModelError

if TYPE_CHECKING:
    import onnx
    import torch

REAL_INPUTS = 6
RANDOM_INPUTS = 2
SYMBOLIC_SIZE = 8
"""What an axis of any size becomes in a foreign model, unless it is a batch (1) or the side of a picture (224)."""

Sample = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Labelled:
    """A labelled test set: float32 (N, 1, 3, H, W), class indices (N,), and the accuracy of torch in float32."""

    inputs: np.ndarray
    labels: np.ndarray
    accuracy: float


@dataclass(frozen=True)
class Subject:
    """A model with its inputs (one array per model input and sample, the first is the timed one) and reference.

    ``origin`` tells another process where to get the model, as :mod:`deploylab.bench.worker` takes it; None if only
    this process has it.
    """

    name: str
    source: Source
    kind: str  # "torch" or "onnx"
    samples: tuple[Sample, ...]
    about_samples: str
    reference: parity.Reference
    test: Labelled | None = None
    origin: Mapping[str, str] | None = None

    def calibration(self) -> tuple[Sample, ...]:
        """Inputs to learn the ranges of int8 from: all sample photos for a model of the course, else the samples."""
        if self.name not in models.names() or self.kind != "torch":
            return self.samples
        from deploylab.signs import dataset

        preprocessor = models.info(self.name).preprocessor
        return tuple((preprocessor(sample.path),) for sample in dataset.samples())


def named(name: str, picture: Path | None = None) -> Subject:
    """A model of the course. ``picture`` becomes its first input."""
    info, module = models.info(name), models.load(name)
    samples, about = _pictures(info.preprocessor, picture)
    reference = parity.module_reference(module, samples)
    test = _labelled(name, module, info.preprocessor)
    return Subject(name, module, "torch", samples, about, reference, test, {"model": name})


def from_module(module: torch.nn.Module, example: np.ndarray | Sequence[np.ndarray]) -> Subject:
    """Your own torch module in eval mode, tried on ``example`` (one array per input) and on noise of the same size."""
    if module.training:
        raise ModelError(f"{type(module).__name__} is in training mode; call model.eval() first")
    first = (example,) if isinstance(example, np.ndarray) else tuple(example)
    rng = np.random.default_rng(0)
    noise = [tuple(_like(rng, array) for array in first) for _ in range(RANDOM_INPUTS)]
    samples = (first, *noise)
    about = f"your example and {RANDOM_INPUTS} random inputs"
    return Subject(type(module).__name__, module, "torch", samples, about, parity.module_reference(module, samples))


def from_onnx(path: Path, picture: Path | None = None, shapes: Mapping[str, Sequence[int]] | None = None) -> Subject:
    """Any ONNX file. ``shapes`` fixes the size of inputs with symbolic axes by name.

    Float inputs are tried on noise in [0, 1), integers on zeros and ones, which are valid indices almost everywhere.
    ``picture`` needs a model with one float32 input (N, 3, H, H). Raises :class:`InputError` or :class:`ModelError`.
    """
    inputs = onnx_inputs(path, shapes or {})
    rng = np.random.default_rng(0)
    count = 2 if picture else 2 + RANDOM_INPUTS
    samples = [tuple(_random(rng, shape, dtype) for shape, dtype in inputs.values()) for _ in range(count)]
    about = f"{count} random inputs"
    if picture:
        samples.insert(0, (_as_picture(path, inputs, picture),))
        about = f"{picture.name} and {about}"
    reference = parity.onnx_reference(path, samples)
    return Subject(path.name, path, "onnx", tuple(samples), about, reference, origin={"onnx": str(path.resolve())})


def onnx_inputs(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every input of an ONNX file, with symbolic axes given a size."""
    import onnx

    from deploylab.engines.base import onnx_files

    onnx_files(path)  # complains about a missing or unreadable file and missing external data
    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    values = {value.name: value for value in graph.input if value.name not in constants}
    unknown = sorted(set(shapes) - set(values))
    if unknown:
        raise InputError(f"{path.name} has no input {unknown[0]!r}; its inputs are: {', '.join(values)}")
    return {name: _shape_and_dtype(value, shapes.get(name)) for name, value in values.items()}


def _shape_and_dtype(value: onnx.ValueInfoProto, wanted: Sequence[int] | None) -> tuple[tuple[int, ...], np.dtype]:
    import onnx

    if not value.type.HasField("tensor_type"):
        raise ModelError(f"input {value.name!r} is not a tensor; sequences and maps are not supported")
    kind = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    if dtype.kind not in "fiub":
        raise ModelError(f"input {value.name!r} has dtype {dtype}; only numbers and booleans are supported")
    given = [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]
    if wanted is None:
        return tuple(_size(given, axis) if size is None else size for axis, size in enumerate(given)), dtype
    fits = len(wanted) == len(given) and all(size in (None, want) for size, want in zip(given, wanted, strict=True))
    if not fits or min(wanted, default=1) < 1:
        text = ", ".join("any" if size is None else str(size) for size in given)
        raise InputError(f"input {value.name!r} has shape ({text}), it cannot be {tuple(wanted)}")
    return tuple(wanted), dtype


def _size(given: Sequence[int | None], axis: int) -> int:
    if axis == 0:
        return 1
    is_picture = len(given) == 4 and given[1] in (1, 3, None)
    if is_picture and axis == 1:
        return 3
    return 224 if is_picture else SYMBOLIC_SIZE


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def _like(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """Noise of the same shape, dtype and range; an integer may be an index, so its range is kept too."""
    if array.dtype.kind == "f":
        return rng.uniform(array.min(initial=0), array.max(initial=0) or 1, array.shape).astype(array.dtype)
    return rng.integers(array.min(initial=0), int(array.max(initial=0)) + 1, array.shape).astype(array.dtype)


def _as_picture(path: Path, inputs: Mapping[str, tuple[tuple[int, ...], np.dtype]], picture: Path) -> np.ndarray:
    shape, dtype = next(iter(inputs.values()))
    if len(inputs) != 1 or dtype != np.float32 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        listed = ", ".join(f"{name} {dtype} {shape}" for name, (shape, dtype) in inputs.items())
        raise InputError(
            f"{path.name} takes no picture: an image needs one float32 input (N, 3, H, H), it has {listed}"
        )
    return np.repeat(image.Preprocessor(shape[2])(picture), shape[0], axis=0)


def _pictures(preprocessor: image.Preprocessor, picture: Path | None) -> tuple[tuple[Sample, ...], str]:
    from deploylab.signs import dataset

    shipped = [sample.path for sample in dataset.samples()[:REAL_INPUTS]]
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (preprocessor.size,) * 2 + (3,), np.uint8) for _ in range(RANDOM_INPUTS)]
    given = [picture] if picture else []
    samples = tuple((preprocessor(source),) for source in (*given, *shipped, *noise))
    named_first = f"{picture.name}, " if picture else ""
    return samples, f"{named_first}{len(shipped)} sample photos and {len(noise)} pictures of noise"


def _labelled(name: str, module: torch.nn.Module, preprocessor: image.Preprocessor) -> Labelled | None:
    if name != "signnet":
        return None
    from deploylab.signs import dataset, evaluate

    pixels, labels = dataset.test_split()
    with parity.one_torch_thread():
        accuracy = float((evaluate.predict(module, pixels) == labels).mean())
    return Labelled(preprocessor.normalise(pixels)[:, None], labels, accuracy)

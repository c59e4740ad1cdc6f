"""LiteRT (https://ai.google.dev/edge/litert), formerly TensorFlow Lite: its interpreter on the CPU.

litert-torch converts torch modules. There is no converter from ONNX among the vendor's packages: the way leads over the
module that the ONNX file came from.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploylab.engines import _tool, _torch
from deploylab.engines.base import Artifact, Engine, Session, Source, TensorSpec, hash_source
from deploylab.errors import ConversionError, EngineError, InputError

if TYPE_CHECKING:
    import torch

KERNELS = {
    "xnnpack": "BUILTIN",
    "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}
"""Whose code runs the operators, with LiteRT's name for it (``OpResolverType``): the delegate XNNPACK where it can and
LiteRT's own optimised kernels elsewhere; these alone; or the plain kernels that define what is right."""

_DELEGATE = "DELEGATE"
_PROGRESS = "LITERT_TORCH_SHOW_PROGRESS"
_BATCHES = (2, 3)
_ROUNDING = 1e-4
"""Of the largest output: how far a row may move with the size of its batch. A row that is wrong moves by far more."""


@contextlib.contextmanager
def quiet() -> Iterator[_tool.Heard]:
    """Catch what LiteRT, its converter and its quantizer print and warn of: what they cannot do, they raise.

    What native code said is afterwards in the ``text`` of the object given.
    """
    level = logging.root.manager.disable
    with (
        _tool.listen() as heard,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        progress = os.environ.get(_PROGRESS)
        os.environ[_PROGRESS] = "n"  # in a notebook it is no text but a display, which nothing here would catch
        try:
            yield heard
        finally:
            logging.disable(level)
            if progress is None:
                del os.environ[_PROGRESS]
            else:
                os.environ[_PROGRESS] = progress


class LiteRT(Engine):
    """Options of ``convert``: ``kernels`` (a key of :data:`KERNELS`) are used when the artifact is loaded.

    Precision int8 wants ``calibration``: samples, one array per input each, from which the range of every tensor is
    learnt. With ``integer_io`` the file itself takes and gives int8, as microcontrollers want it. The session takes
    and gives float32 in any case.
    """

    name = "litert"
    title = "LiteRT"
    accepts = frozenset({"torch"})
    precisions = ("fp32", "int8")
    calibrated = ("int8",)
    distributions = ("ai-edge-litert",)
    runtime_packages = ("ai-edge-litert",)
    modules = ("ai_edge_litert",)
    converter_modules = ("litert_torch", "ai_edge_quantizer")
    extra = "mobile"
    core = False

    def _convert(
        self,
        source: Source,
        example: tuple[np.ndarray, ...],
        folder: Path,
        precision: str,
        kernels: str = "xnnpack",
        calibration: Sequence[Any] | None = None,
        integer_io: bool = True,
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        if kernels not in KERNELS:
            raise ConversionError(f"litert has no kernels {kernels!r}; choose from {', '.join(KERNELS)}")
        samples = _samples(calibration, example) if precision == "int8" else []
        inputs, outputs = _torch.specs(source, example)
        dynamic = all(spec.shape[:1] == (None,) for spec in inputs)
        with quiet():
            model = _converted(source, example, folder, dynamic)
            if dynamic and not _takes_any_batch(model, example):
                inputs, outputs = _fixed(inputs, example), _fixed(outputs, _Model(model).run(example))
            if precision == "int8":
                model = _quantized(model, samples, integer_io)
            _Model(model, kernels=kernels).run(example)  # finds an operator it does not have
        (folder / "model.tflite").write_bytes(model)
        return inputs, outputs

    def _load(self, artifact: Artifact, threads: int) -> Session:
        return _LiteRTSession(artifact, threads)


def _converted(module: torch.nn.Module, example: tuple[np.ndarray, ...], folder: Path, dynamic: bool) -> bytes:
    """``module`` in float, as the bytes of a file, which is kept beside the artifact ``folder`` for its next variant.

    The interpreter can resize most files that were made for one batch. If the module takes any (``dynamic``), but a
    shape is written into the graph, the batch is declared dynamic, which the converter can do for some operators only.
    """
    import litert_torch

    shapes = "_".join("x".join(map(str, array.shape)) for array in example)
    path = folder.parent / f"litert-{litert_torch.__version__}-{hash_source(module)[:16]}-{shapes}.tflite"
    if path.is_file():
        return path.read_bytes()
    model = _tflite(module, example)
    if dynamic and not _takes_any_batch(model, example):
        with contextlib.suppress(ConversionError):
            doubled = tuple(np.concatenate([array, array]) for array in example)
            for_any_batch = _tflite(module, doubled, dynamic=True)
            model = for_any_batch if _takes_any_batch(for_any_batch, example) else model
    (folder / path.name).write_bytes(model)
    (folder / path.name).replace(path)
    return model


def _tflite(module: torch.nn.Module, example: tuple[np.ndarray, ...], dynamic: bool = False) -> bytes:
    import litert_torch
    import torch

    tensors = tuple(torch.from_numpy(array.copy()) for array in example)
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in tensors) if dynamic else None
    try:
        return litert_torch.convert(module, tensors, dynamic_shapes=shapes).model_content()
    except Exception as error:
        said = str(error).partition("Original traceback")[0].strip()
        raise ConversionError(f"litert-torch cannot convert {type(module).__name__}: {said}") from error


def _takes_any_batch(model: bytes, example: tuple[np.ndarray, ...]) -> bool:
    """Whether each row of batches never seen gets what it gets alone."""
    rng = np.random.default_rng(0)
    rows = [tuple(_noise(rng, array[:1]) for array in example) for _ in range(max(_BATCHES))]
    runner = _Model(model)
    try:
        alone = [runner.run(row) for row in rows]
        return all(
            _agree(got, np.concatenate(expected))
            for count in _BATCHES
            for got, *expected in zip(runner.run(_joined(rows[:count])), *alone[:count], strict=True)
        )
    except (RuntimeError, ValueError):  # a shape that is written into the graph
        return False


def _noise(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """Noise like ``array``; integers, which may be indices, are only mixed."""
    if array.dtype.kind == "f":
        return rng.uniform(array.min(initial=0), array.max(initial=0) or 1, array.shape).astype(array.dtype)
    return rng.permutation(array.reshape(-1)).reshape(array.shape)


def _joined(rows: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(arrays) for arrays in zip(*rows, strict=True))


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=_ROUNDING * np.abs(b).max(initial=0), equal_nan=True)


def _fixed(specs: Sequence[TensorSpec], arrays: Sequence[np.ndarray]) -> list[TensorSpec]:
    return [TensorSpec(spec.name, array.shape, spec.dtype) for spec, array in zip(specs, arrays, strict=True)]


def _samples(calibration: Sequence[Any] | None, example: tuple[np.ndarray, ...]) -> list[tuple[np.ndarray, ...]]:
    """The calibration samples, each one array per input."""
    if calibration is None or len(calibration) == 0:
        raise ConversionError(
            "litert learns the ranges of int8 from data: give calibration=[...], "
            "a hundred inputs or so like those the model will see"
        )
    samples = [(sample,) if isinstance(sample, np.ndarray) else tuple(sample) for sample in calibration]
    specs = [TensorSpec(f"of the calibration, {i}", (None, *a.shape[1:]), str(a.dtype)) for i, a in enumerate(example)]
    for sample in samples:
        if len(sample) != len(specs):
            raise InputError(f"a calibration sample holds {len(sample)} array(s), the model has {len(specs)} input(s)")
        for spec, array in zip(specs, sample, strict=True):
            spec.check(array)
    return samples


def _quantized(model: bytes, samples: Sequence[tuple[np.ndarray, ...]], integer_io: bool) -> bytes:
    """Weights and activations in int8, weights with a scale for each channel. Operators that cannot stay in float."""
    from ai_edge_quantizer import quantizer, recipe

    work = quantizer.Quantizer(bytearray(model), recipe.static_wi8_ai8())
    if not integer_io:
        for end in ("INPUT", "OUTPUT"):
            work.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
    (signature,) = _Model(model).interpreter.get_signature_list()
    named = [{f"args_{i}": _stored_as_32_bits(array) for i, array in enumerate(sample)} for sample in samples]
    return bytes(work.quantize(work.calibrate({signature: named}, num_threads=1)).quantized_model)


def _stored_as_32_bits(array: np.ndarray) -> np.ndarray:
    return array.astype({"int64": np.int32, "float64": np.float32}.get(str(array.dtype), array.dtype))


@dataclass(frozen=True)
class _Tensor:
    """An input or output of the file: where it is, its dtype, and for int8 what its numbers mean."""

    index: int
    dtype: np.dtype
    scale: float
    zero_point: int

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> _Tensor:
        scale, zero_point = details["quantization"]  # 0, 0 where there is none
        return cls(details["index"], np.dtype(details["dtype"]), scale, zero_point)

    def stored(self, array: np.ndarray) -> np.ndarray:
        """``array`` as the file wants it: real value = scale * (stored - zero point)."""
        if self.scale and array.dtype.kind == "f":
            limits = np.iinfo(self.dtype)
            array = np.clip(np.rint(array / np.float32(self.scale)) + self.zero_point, limits.min, limits.max)
        return array if array.dtype == self.dtype else array.astype(self.dtype)

    def real(self, stored: np.ndarray) -> np.ndarray:
        if not self.scale:
            return stored
        return (stored.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


class _Model:
    """An interpreter that is resized to what it is given."""

    def __init__(self, model: bytes | Path, threads: int = 1, kernels: str = "xnnpack") -> None:
        with _tool.listen():  # it announces its delegate
            from ai_edge_litert import interpreter as litert

            self.interpreter = litert.Interpreter(
                **({"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}),
                num_threads=threads,
                experimental_op_resolver_type=litert.OpResolverType[KERNELS[kernels]],
            )
            self.interpreter.allocate_tensors()
        self.inputs = [_Tensor.of(details) for details in self.interpreter.get_input_details()]
        self.outputs = [_Tensor.of(details) for details in self.interpreter.get_output_details()]
        self._shapes = [tuple(details["shape"]) for details in self.interpreter.get_input_details()]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs for one array per input; they are copies. Raises RuntimeError for a shape that it cannot take."""
        self._fit([array.shape for array in arrays])
        for tensor, array in zip(self.inputs, arrays, strict=True):
            self.interpreter.set_tensor(tensor.index, tensor.stored(array))
        self.interpreter.invoke()
        return [tensor.real(self.interpreter.get_tensor(tensor.index)) for tensor in self.outputs]

    def _fit(self, shapes: list[tuple[int, ...]]) -> None:
        if shapes == self._shapes:
            return
        self._shapes = []  # in case it fails half-way
        for tensor, shape in zip(self.inputs, shapes, strict=True):
            self.interpreter.resize_tensor_input(tensor.index, shape)
        self.interpreter.allocate_tensors()
        self._shapes = shapes


class _LiteRTSession(Session):
    def __init__(self, artifact: Artifact, threads: int) -> None:
        super().__init__(artifact, threads)
        self._kernels = artifact.options.get("kernels", "xnnpack")
        self._model = _Model(artifact.file(".tflite"), threads, self._kernels)
        self._lock = threading.Lock()  # its inputs and outputs are in the interpreter

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        with self._lock:
            try:
                results = self._model.run(arrays)
            except RuntimeError as error:
                raise EngineError(f"litert failed on input of shape {arrays[0].shape}: {error}") from error
        return [
            array if array.dtype == spec.dtype else array.astype(spec.dtype)
            for spec, array in zip(self.outputs, results, strict=True)
        ]

    def _facts(self) -> dict[str, Any]:
        import ai_edge_litert

        inside, total = delegated(self._model.interpreter)
        return {
            "version": ai_edge_litert.__version__,
            "threads_read_back": False,  # LiteRT has no call to ask
            "kernels": self._kernels,
            "delegated": f"{inside} of {total} operators",
            "executed": _executed(self._model.interpreter._get_ops_details()),
            "io": "/".join(dict.fromkeys(str(t.dtype) for t in (*self._model.inputs, *self._model.outputs))),
            "layout": "NHWC",
            "gil": "released",
        }

    def close(self) -> None:
        self._model = None


def _executed(operators: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many operators give results of which dtype."""
    own = (operator for operator in operators if operator["op_name"] != _DELEGATE)
    return dict(Counter(np.dtype(operator["result_types"][0]).name for operator in own if operator["result_types"]))


def delegated(interpreter: Any) -> tuple[int, int]:
    """How many operators run in a delegate, of how many, in an ``ai_edge_litert`` interpreter with allocated tensors.

    The interpreter lists the file's operators and behind them its delegates' nodes. Such a node stands for every
    operator on the way back from its outputs to its inputs.
    """
    operators = interpreter._get_ops_details()
    own = [operator for operator in operators if operator["op_name"] != _DELEGATE]
    maker = {tensor: operator for operator in own for tensor in operator["outputs"]}
    inside: set[int] = set()
    for node in operators:
        if node["op_name"] == _DELEGATE:
            given, open_tensors = set(node["inputs"]), list(node["outputs"])
            while open_tensors:
                tensor = open_tensors.pop()
                if tensor in maker and tensor not in given and maker[tensor]["index"] not in inside:
                    inside.add(maker[tensor]["index"])
                    open_tensors += list(maker[tensor]["inputs"])
    return len(inside), len(own)

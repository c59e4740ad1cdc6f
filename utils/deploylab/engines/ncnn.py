"""ncnn (https://github.com/Tencent/ncnn), converted by pnnx."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from deploylab import machine
from deploylab.engines import _onnx, _tool, _torch
from deploylab.engines.base import Artifact, Engine, Session, Source, TensorSpec
from deploylab.errors import ConversionError, EngineError

_BATCHED = "batched.json"
_PNNX_DTYPES = {
    "float32": "f32",
    "float64": "f64",
    "float16": "f16",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
}


class Ncnn(Engine):
    name = "ncnn"
    title = "ncnn"
    accepts = frozenset({"torch", "onnx"})
    precisions = ("fp32", "fp16", "bf16")
    distributions = ("ncnn",)
    runtime_packages = ("ncnn",)
    modules = ("ncnn",)
    converter_modules = ("pnnx",)

    def _convert(
        self, source: Source, example: tuple[np.ndarray, ...], folder: Path, precision: str, **options: Any
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        work = folder / "work"
        work.mkdir()
        if isinstance(source, Path):
            inputs, outputs = _onnx.specs(source, example)
            model = _onnx.copy(source, work)  # pnnx looks for external data in the current folder
        else:
            inputs, outputs = _torch.specs(source, example)
            model = _traced(source, example, work)
        said = _pnnx(model, example, work, half_weights=precision == "fp16")
        for suffix in ("param", "bin"):
            made = work / f"model.ncnn.{suffix}"
            if not made.is_file() or (suffix == "param" and not made.stat().st_size):  # without weights, bin is empty
                raise ConversionError(f"pnnx ended well but wrote no {made.name}. It said last:\n{_tool.tail(said)}")
            made.rename(folder / made.name)
        _require_known_layers(folder / "model.ncnn.param")
        batched = _batched((work / "model_ncnn.py").read_text(encoding="utf-8"), len(inputs), len(outputs))
        for leftover in work.iterdir():
            leftover.unlink()
        work.rmdir()
        (folder / _BATCHED).write_text(json.dumps(batched) + "\n", encoding="utf-8")
        if not all(batched["inputs"] + batched["outputs"]):
            inputs = [
                TensorSpec(spec.name, array.shape, spec.dtype) for spec, array in zip(inputs, example, strict=True)
            ]
        return inputs, outputs

    def _load(self, artifact: Artifact, threads: int) -> Session:
        return _NcnnSession(artifact, threads)


def _traced(module: Any, example: tuple[np.ndarray, ...], folder: Path) -> Path:
    import torch

    path = folder / "traced.pt"
    with _torch.deprecation_expected(), torch.no_grad():
        traced = torch.jit.trace(module, tuple(torch.from_numpy(array.copy()) for array in example))
        _torch.write(path, lambda stream: torch.jit.save(traced, stream))
    return path


def _pnnx(model: Path, example: tuple[np.ndarray, ...], work: Path, half_weights: bool) -> str:
    shapes = []
    for array in example:
        if str(array.dtype) not in _PNNX_DTYPES:
            raise ConversionError(f"ncnn takes no {array.dtype} input; it takes {', '.join(_PNNX_DTYPES)}")
        shapes.append(f"[{','.join(map(str, array.shape))}]{_PNNX_DTYPES[str(array.dtype)]}")
    files = {"pnnxparam": "model.pnnx.param", "pnnxbin": "model.pnnx.bin", "pnnxpy": "model_pnnx.py"}
    files |= {"pnnxonnx": "model.pnnx.onnx"}
    files |= {"ncnnparam": "model.ncnn.param", "ncnnbin": "model.ncnn.bin", "ncnnpy": "model_ncnn.py"}
    settings = [f"{key}={value}" for key, value in files.items()]
    command = [_pnnx_program(), str(model), f"inputshape={','.join(shapes)}", f"fp16={int(half_weights)}", *settings]
    return _tool.run("pnnx", command, work)


def _pnnx_program() -> str:
    """The converter inside the wheel, found without importing it: that would import torch."""
    spec = util.find_spec("pnnx")
    name = "pnnx.exe" if platform.system() == "Windows" else "pnnx"
    program = Path(spec.origin).parent / name if spec and spec.origin else None
    if program is None or not program.is_file():
        raise ConversionError("the package pnnx holds no converter program; reinstall it: pip install --force pnnx")
    return str(program)


def _require_known_layers(param: Path) -> None:
    """pnnx writes what it cannot translate as layers that ncnn does not have, and reports success."""
    import ncnn

    with _tool.listen() as heard:
        net = ncnn.Net()
        failed = net.load_param(str(param)) != 0
        net.clear()
    if failed:
        raise ConversionError(f"ncnn lacks an operator of this model. It said:\n{_tool.tail(heard.text)}")


def _batched(script: str, inputs: int, outputs: int) -> dict[str, list[bool]]:
    """Which inputs and outputs have a batch axis, read from the example script that pnnx writes."""
    fed = re.findall(r'ex\.input\("in(\d+)", ncnn\.Mat\((.*)\)', script)
    taken = re.findall(r"out\.append\((.*)\)", script)
    if len(fed) != inputs or len(taken) != outputs:
        raise ConversionError(
            f"pnnx made {len(fed)} input(s) and {len(taken)} output(s) of the model's {inputs} and {outputs}"
        )
    return {"inputs": ["batch_index=0" in call for _, call in fed], "outputs": ["batch_index=0" in o for o in taken]}


@dataclass(frozen=True)
class _Taken:
    """How one output is taken out of ncnn."""

    blob: str
    axis: dict[str, int]
    spec: TensorSpec
    dtype: np.dtype

    @property
    def format(self) -> str:
        return "i" if self.dtype.kind in "iub" else ""


class _NcnnSession(Session):
    def __init__(self, artifact: Artifact, threads: int) -> None:
        import ncnn

        super().__init__(artifact, threads)
        batched = json.loads((artifact.path / _BATCHED).read_text(encoding="utf-8"))
        self._ncnn = ncnn
        self._fed = [(f"in{i}", {"batch_index": 0} if axis else {}) for i, axis in enumerate(batched["inputs"])]
        self._taken = [
            _Taken(f"out{i}", {"batch_index": 0} if axis else {}, spec, np.dtype(spec.dtype))
            for i, (axis, spec) in enumerate(zip(batched["outputs"], self.outputs, strict=True))
        ]
        self._net = ncnn.Net()
        _set_options(self._net.opt, artifact.precision, threads)  # never once a model is loaded: answers turn to noise
        with _tool.listen() as heard:
            codes = [
                self._net.load_param(str(artifact.file(".param"))),
                self._net.load_model(str(artifact.file(".bin"))),
            ]
        if any(codes):
            raise EngineError(f"ncnn could not load {artifact.path}. It said:\n{_tool.tail(heard.text)}")

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        # A Mat keeps no reference to the array it is made of: `arrays` must live until the last extract. ncnn has
        # no 64-bit integers. The extractor remembers its results, so each inference takes a new one.
        arrays = [array.astype(np.int32) if array.dtype.kind in "iub" else array for array in arrays]
        with self._net.create_extractor() as extractor:
            for (name, axis), array in zip(self._fed, arrays, strict=True):
                mat = self._ncnn.Mat(array, **axis)
                if not axis:  # it points into the array: a layer that works in place would write there, or crash
                    mat = mat.clone()
                if extractor.input(name, mat) != 0:
                    raise EngineError(f"ncnn refused input {name} of shape {array.shape}")
            return [self._extract(extractor, taken) for taken in self._taken]

    def _extract(self, extractor: Any, taken: _Taken) -> np.ndarray:
        code, mat = extractor.extract(taken.blob)
        if code != 0:
            raise EngineError(f"ncnn failed to compute {taken.spec.name!r} (code {code})")
        if taken.axis and mat.n == 1 and not taken.format:
            values = np.array(mat)[None]  # a tenth of the time of the general way
        else:
            values = np.array(mat.numpy(taken.format, **taken.axis))
        if not taken.spec.fits_shape(values.shape):
            raise EngineError(
                f"ncnn computed {taken.spec.name!r} of shape {values.shape}, the model says {taken.spec.shape_text}: "
                "pnnx misread an axis of this model, so ncnn cannot run it"
            )
        return values if values.dtype == taken.dtype else values.astype(taken.dtype)

    def _facts(self) -> dict[str, Any]:
        opt = self._net.opt
        half = "fp16" if opt.use_fp16_storage else "bf16" if opt.use_bf16_storage else None
        return {
            "version": self._ncnn.__version__,
            "threads": opt.num_threads,
            "precision": _precision(half),
            "storage": half or "fp32",
            "fp16_packed": opt.use_fp16_packed,
            "fp16_arithmetic": opt.use_fp16_arithmetic,
            "winograd": opt.use_winograd_convolution,
            "layout": "packed channels" if opt.use_packing_layout else "NCHW",
            "gil": "released",
        }

    def close(self) -> None:
        self._net.clear()


def _set_options(opt: Any, precision: str, threads: int) -> None:
    opt.num_threads = threads
    opt.use_fp16_packed = opt.use_fp16_storage = opt.use_fp16_arithmetic = precision == "fp16"
    opt.use_bf16_packed = opt.use_bf16_storage = precision == "bf16"


def _precision(storage: str | None) -> str:
    """What is computed in. ncnn does not tell; it has fp16 arithmetic for Arm only and chooses per layer for bf16."""
    if storage == "fp16":
        return "fp16" if "asimdhp" in machine.features() else "fp32, stored as fp16"
    return "bf16 or fp32, stored as bf16" if storage else "fp32"

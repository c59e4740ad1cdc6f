"""The converted model a server loads: made once, by a process of its own, and found again without torch.

A server's workers only load. So neither they nor the process they are forked from carry torch in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

from deploylab import engines, files, models, paths
from deploylab.errors import ConversionError, DeployLabError, EngineError, ModelError
from deploylab.image import Preprocessor

_PACKAGE = Path(models.__file__).parent


def prepare(model: str, engine: str = "onnxruntime", precision: str = "fp32") -> Path:
    """The artifact of ``model`` for ``engine``, converted now if that was not done before.

    ``model`` is a name of the course or the path of an ONNX file that takes one picture, float32 (N, 3, H, H).
    Raises the errors of :mod:`deploylab.models` and of :meth:`Engine.convert`.
    """
    chosen = engines.get(engine)
    chosen.require()
    _require_model(model)
    note = paths.build() / "serving" / f"{_key(model, engine, precision)}.json"
    found = _noted(note)
    if found is None:
        found = _convert_in_child(model, engine, precision)
        files.write(note, json.dumps({"artifact": found.name}))
    return found


def preprocessor(model: str, size: int) -> Preprocessor:
    """How to feed ``model``; an ONNX file, which says nothing about it, gets plain pixels in [0, 1]."""
    return Preprocessor(size) if is_file(model) else models.info(model).preprocessor


def is_file(model: str) -> bool:
    return model.lower().endswith(".onnx")


def name(model: str) -> str:
    """What a served model is called: a name of the course, or an ONNX file's name without its suffix."""
    return Path(model).stem if is_file(model) else model


def convert(model: str, engine: str, precision: str) -> Path:
    """Convert in this process. Imports whatever the source of the model needs."""
    if is_file(model):
        source, shape = Path(model), _picture_shape(Path(model))
    else:
        source, shape = models.load(model), models.info(model).input_shape
    example = np.zeros(shape, np.float32)
    return engines.get(engine).convert(source, example, paths.build() / "artifacts", precision).path


def _picture_shape(path: Path) -> tuple[int, ...]:
    from deploylab.bench import subject

    inputs = subject.onnx_inputs(path, {})
    shape, dtype = next(iter(inputs.values()))
    if len(inputs) != 1 or dtype != np.float32 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        listed = ", ".join(f"{name} {dtype} {shape}" for name, (shape, dtype) in inputs.items())
        raise ModelError(
            f"{path.name} cannot be served: it must take one picture, float32 (N, 3, H, H); it has {listed}"
        )
    return shape


def _require_model(model: str) -> None:
    if not is_file(model):
        if models.info(model).checkpoint is not None:
            models.verify(model)
    elif not Path(model).is_file():
        raise ModelError(f"{model}: no such ONNX file")


def _key(model: str, engine: str, precision: str) -> str:
    """A hash over all that decides what the conversion gives, read without importing anything heavy."""
    versions = [f"{name} {_version(name)}" for name in ("torch", "onnx", "onnxscript")]
    said = [model, engine, engines.get(engine).available().version, precision, *versions]
    digest = hashlib.sha256("\0".join(said).encode())
    checkpoint = None if is_file(model) else models.info(model).checkpoint
    for path in (Path(model) if is_file(model) else checkpoint, *sorted(_PACKAGE.glob("*.py"))):
        if path is not None:
            digest.update(path.read_bytes())
    return f"{'onnx' if is_file(model) else model}-{engine}-{precision}-{digest.hexdigest()[:16]}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _noted(note: Path) -> Path | None:
    """The artifact a note points to, if both are whole."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, EngineError):
        path = paths.build() / "artifacts" / json.loads(note.read_text(encoding="utf-8"))["artifact"]
        return engines.Artifact.read(path).path
    return None


def _convert_in_child(model: str, engine: str, precision: str) -> Path:
    command = [sys.executable, "-m", __name__, model, engine, precision]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8")
    if run.returncode:
        told = run.stderr.strip()
        raise ConversionError(
            told if run.returncode == 1 else f"converting {model} for {engine} failed: {told[-2000:]}"
        )
    return Path(json.loads(run.stdout.splitlines()[-1]))


def main() -> int:
    try:
        print(json.dumps(str(convert(*sys.argv[1:]))))
    except DeployLabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the engines that run inside torch share."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from deploylab.engines.base import Artifact, Session, TensorSpec
from deploylab.errors import ConversionError, EngineError

if TYPE_CHECKING:
    import torch

_RECIPE = "recipe.json"


class TorchSession(Session):
    """Runs a callable that takes and gives torch tensors, on the CPU."""

    def __init__(self, artifact: Artifact, threads: int, call: Callable[..., Any]) -> None:
        import torch

        super().__init__(artifact, threads)
        self._torch = torch
        self._call = call
        torch.set_float32_matmul_precision("highest")  # no bfloat16 inside fp32
        _use_threads(threads)

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        torch = self._torch
        if torch.get_num_threads() != self.threads:  # global in torch: another session may have changed it
            torch.set_num_threads(self.threads)
        # Copied, because a module may work in place on its input, and torch warns about read-only memory.
        tensors = [torch.from_numpy(array.copy()) for array in arrays]
        with torch.inference_mode():
            result = self._call(*tensors)
        return [np.array(tensor.numpy(), order="C") for tensor in flat(result)]

    def _facts(self) -> dict[str, Any]:
        torch = self._torch
        _use_threads(self.threads)
        return {
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "inter_op_threads": torch.get_num_interop_threads(),
            "float32_matmul": torch.get_float32_matmul_precision(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "layout": "NCHW",
            "gil": "released",
        }


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1 and threading.current_thread() is threading.main_thread():
        with contextlib.suppress(RuntimeError):  # only possible before the first parallel work; facts() tells
            torch.set_num_interop_threads(1)


@contextlib.contextmanager
def deprecation_expected() -> Iterator[None]:
    """Silence torch's notice that TorchScript is deprecated.

    The engine torchscript says so itself, ncnn's converter wants it, and TorchInductor uses it inside.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..*deprecated.*")
        yield


@contextlib.contextmanager
def inductor_cache(folder: Path) -> Iterator[None]:
    """Have TorchInductor's cache in ``folder``, unless the user chose one.

    Lowering with ``torch.export`` compiles nothing, but what it imports makes the folder ``/tmp/torchinductor_<user>``.
    """
    chosen = "TORCHINDUCTOR_CACHE_DIR" in os.environ
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    try:
        yield
    finally:
        if not chosen:
            os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)


def save_module(module: torch.nn.Module, example: tuple[np.ndarray, ...], folder: Path) -> None:
    """Save ``module`` so that another process can run it.

    Where every class can be imported again the module itself is pickled. A class of a notebook or of a function body
    exists in this process only: such a module is saved as the graph that ``torch.export`` makes of it.
    """
    import torch

    if all(_importable(type(part)) for part in module.modules()):
        write(folder / "model.pt", lambda stream: torch.save(module, stream))
        recipe = {"runs": "nn.Module", "search_path": _search_path(module)}
    else:
        program = _exported(module, example)
        write(folder / "model.pt2", lambda stream: torch.export.save(program, stream))
        recipe = {"runs": "torch.export graph (its class cannot be imported)", "search_path": []}
    (folder / _RECIPE).write_text(json.dumps(recipe) + "\n", encoding="utf-8")


def write(path: Path, save: Callable[[BinaryIO], None]) -> None:
    """Let ``save`` write into memory, and the memory to ``path``: torch ends the whole process on a full disk."""
    stream = io.BytesIO()
    save(stream)
    path.write_bytes(stream.getbuffer())


def load_module(artifact: Artifact) -> tuple[torch.nn.Module, str]:
    """The module of :func:`save_module` in eval mode, and what it is in words."""
    import torch

    recipe = json.loads((artifact.path / _RECIPE).read_text(encoding="utf-8"))
    if "model.pt2" in artifact.files:
        return torch.export.load(artifact.path / "model.pt2").module(), recipe["runs"]
    for folder in recipe["search_path"]:
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        # The file is this machine's own artifact, and a module needs its classes.
        module = torch.load(artifact.path / "model.pt", map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise EngineError(f"{artifact.path}: the model's class cannot be imported here ({error})") from error
    return module.eval(), recipe["runs"]


def specs(module: torch.nn.Module, example: tuple[np.ndarray, ...]) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Specs found by running ``module`` on the example and, if it can, on a larger batch."""
    import torch

    def run(arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        with torch.inference_mode():
            return flat(module(*(torch.from_numpy(array.copy()) for array in arrays)))

    try:
        outputs = run(example)
    except Exception as error:
        raise ConversionError(f"{type(module).__name__} cannot run the example: {error}") from error
    dynamic = False
    if all(array.ndim and len(array) == len(example[0]) for array in example) and len(example[0]):
        try:
            wider = run([np.concatenate([array] * 3) for array in example])
            dynamic = all(
                big.shape[:1] == (3 * small.shape[0],) and big.shape[1:] == small.shape[1:]
                for big, small in zip(wider, outputs, strict=True)
            )
        except Exception:  # written for one batch size
            dynamic = False
    names_in = ["input"] if len(example) == 1 else [f"input_{i}" for i in range(len(example))]
    names_out = ["output"] if len(outputs) == 1 else [f"output_{i}" for i in range(len(outputs))]
    return (
        [_spec(name, array.shape, str(array.dtype), dynamic) for name, array in zip(names_in, example, strict=True)],
        [_spec(n, tuple(t.shape), str(t.numpy().dtype), dynamic) for n, t in zip(names_out, outputs, strict=True)],
    )


def _spec(name: str, shape: tuple[int, ...], dtype: str, dynamic: bool) -> TensorSpec:
    return TensorSpec(name, (None, *shape[1:]) if dynamic else tuple(shape), dtype)


def flat(result: Any) -> list[torch.Tensor]:
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, (list, tuple)):
        return [tensor for part in result for tensor in flat(part)]
    if not hasattr(result, "numpy"):
        raise EngineError(f"the model returned a {type(result).__name__}, expected tensors")
    return [result]


def _exported(module: torch.nn.Module, example: tuple[np.ndarray, ...]) -> torch.export.ExportedProgram:
    import torch

    # An axis of size 1 would be taken as a constant, so trace with two.
    wide = tuple(
        torch.from_numpy(np.concatenate([array, array]) if len(array) == 1 else array.copy()) for array in example
    )
    try:
        return torch.export.export(module, wide, dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in wide))
    except Exception:  # a module that is written for one batch size
        return torch.export.export(module, tuple(torch.from_numpy(array.copy()) for array in example))


def _importable(kind: type) -> bool:
    """Whether another process finds this class under its name."""
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        return False
    try:
        found: Any = importlib.import_module(kind.__module__)
        for part in kind.__qualname__.split("."):
            found = getattr(found, part)
        return found is kind and importlib.util.find_spec(kind.__module__) is not None
    except Exception:  # a module made by hand has no import spec
        return False


def _search_path(module: torch.nn.Module) -> list[str]:
    """Folders, outside of what is installed, where the model's classes were imported from."""
    installed = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    folders = set()
    for kind in {type(part) for part in module.modules()}:
        top = sys.modules.get(kind.__module__.partition(".")[0])
        file = getattr(top, "__file__", None)
        if top is None or file is None or file.startswith(installed):
            continue
        folder = Path(file).resolve().parent
        folders.add(str(folder.parent if hasattr(top, "__path__") else folder))
    return sorted(folders)

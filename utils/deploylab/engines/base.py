"""The contract every engine keeps: convert a model to an artifact, load the artifact as a session.

One engine is one file beside this one, with one :class:`Engine` subclass; the registry finds it by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import os
import shutil
import tempfile
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata, util
from pathlib import Path
from types import CellType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, Union

import numpy as np

from deploylab.errors import ConversionError, DeployLabError, EngineError, InputError

if TYPE_CHECKING:
    import torch

Source: TypeAlias = Union["torch.nn.Module", Path]
"""What an engine converts from: a torch module in eval mode, or the path of an ONNX file."""

MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"
_ABANDONED_AFTER = 3600.0
_LITTLE_SPACE = 20_000_000


@dataclass(frozen=True)
class Availability:
    """Whether an engine can run here. ``reason`` says why not, ``fix`` names the one command that helps."""

    ok: bool
    reason: str = ""
    version: str = ""
    fix: str = ""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one model input or output. ``None`` in the shape is an axis of any size."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"

    @property
    def shape_text(self) -> str:
        return "(" + ", ".join("any" if size is None else str(size) for size in self.shape) + ")"

    def check(self, array: Any) -> None:
        """Raise :class:`InputError` unless ``array`` is a finite, C-contiguous array of this shape and dtype."""
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {self.name!r}: expected a NumPy array, got {type(array).__name__}")
        if array.dtype != self.dtype:
            raise InputError(
                f"input {self.name!r}: expected dtype {self.dtype}, got {array.dtype}; "
                f"convert it with x.astype(np.{self.dtype})"
            )
        if not self.fits_shape(array.shape):
            raise InputError(f"input {self.name!r}: expected shape {self.shape_text}, got {array.shape}")
        if not array.flags.c_contiguous:
            raise InputError(
                f"input {self.name!r}: the array is not C-contiguous (a transposed or sliced view?); "
                "copy it with np.ascontiguousarray(x)"
            )
        if not _finite(array):
            raise InputError(f"input {self.name!r}: the array contains NaN or infinity")

    def fits(self, array: np.ndarray) -> bool:
        """Whether an array has this shape and dtype."""
        return array.dtype == self.dtype and self.fits_shape(array.shape)

    def fits_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape agrees with this one in rank and in every fixed size."""
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )


def _finite(array: np.ndarray) -> bool:
    """True if no element is NaN or infinite. One product is many times cheaper than ``np.isfinite``."""
    if array.dtype.kind != "f":
        return True
    # The sum of squares may overflow for finite values above 1e19 (silently in vdot), so look closer only then.
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


@dataclass(frozen=True)
class Artifact:
    """A converted model: a folder with the engine's files and ``manifest.json``."""

    path: Path
    engine: str
    engine_version: str
    source_hash: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[str, ...]
    bytes: int
    seconds: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def file(self, suffix: str) -> Path:
        """The one file of this artifact whose name ends with ``suffix``."""
        found = [name for name in self.files if name.endswith(suffix)]
        if len(found) != 1:
            raise EngineError(
                f"{self.path}: expected one file *{suffix}, found {found or 'none'}; "
                "delete the folder and convert again"
            )
        return self.path / found[0]

    @classmethod
    def read(cls, path: Path | str) -> Artifact:
        """Read an artifact folder. Raises :class:`EngineError` if the manifest or a file is missing or damaged."""
        path = Path(path)
        try:
            fields = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            for key in ("inputs", "outputs"):
                fields[key] = tuple(TensorSpec(s["name"], tuple(s["shape"]), s["dtype"]) for s in fields[key])
            artifact = cls(path=path, **{**fields, "files": tuple(fields["files"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{path}: not a readable artifact ({error}); delete the folder and convert again"
            ) from error
        missing = [name for name in artifact.files if not (path / name).is_file()]
        if missing or artifact.bytes != _size(path, artifact.files):
            raise EngineError(
                f"{path}: artifact is incomplete ({', '.join(missing) or 'size differs'}); "
                "delete the folder and convert again"
            )
        return artifact

    def _write_manifest(self) -> None:
        fields = {key: value for key, value in asdict(self).items() if key != "path"}
        (self.path / MANIFEST).write_text(json.dumps(fields, indent=1, default=str) + "\n", encoding="utf-8")


class Session(ABC):
    """A loaded model. ``session(x)`` runs it; what it returns belongs to the caller, what it is given stays unchanged.

    Any thread may call it, one at a time unless it is ``concurrent``; :meth:`facts` says under ``gil`` whether other
    Python threads run meanwhile. Load several sessions to run several inferences at once.
    """

    concurrent: ClassVar[bool] = False
    """Whether several threads may call it at the same time."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self.artifact = artifact
        self.threads = threads
        self.inputs = artifact.inputs
        self.outputs = artifact.outputs
        self.cores_before_load: frozenset[int] | None = None

    def __call__(self, *arrays: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Run the model on one C-contiguous array per input (float32 NCHW for images).

        Returns one array, or a tuple where the model has several outputs. Raises :class:`InputError` naming
        what was expected and what was given.
        """
        if len(arrays) != len(self.inputs):
            names = ", ".join(spec.name for spec in self.inputs)
            raise InputError(f"expected {len(self.inputs)} input(s) ({names}), got {len(arrays)}")
        for spec, array in zip(self.inputs, arrays, strict=True):
            spec.check(array)
        results = self._run(arrays)
        return results[0] if len(results) == 1 else tuple(results)

    @abstractmethod
    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Run the engine on checked arrays; return arrays that no later call overwrites."""

    def facts(self) -> dict[str, Any]:
        """What is really running, read back from the engine where it can tell.

        Always ``engine``, ``version`` (of the package loaded now), ``threads``, ``precision`` (of the arithmetic, not
        of the file), ``batch`` (``"dynamic"`` or a number), ``gil`` (``"released"``, ``"held"`` or ``"unknown"``) and
        ``affinity`` (whether the process may still use the cores it had before loading); then what the engine adds. A
        ``note`` is what a reader of a table must know besides.
        """
        batch = self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else None
        return {
            "engine": self.artifact.engine,
            "version": self.artifact.engine_version,
            "threads": self.threads,
            "precision": self.artifact.precision,
            "batch": "dynamic" if batch is None else batch,
            "gil": "unknown",
            "affinity": self._affinity(),
            **self._facts(),
        }

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """The engine's own facts; they replace the common ones of the same name."""

    def _affinity(self) -> str:
        now = _affinity()
        if now is None or now == self.cores_before_load:
            return "unchanged"
        return f"changed from {sorted(self.cores_before_load or ())} to {sorted(now)}"

    def close(self) -> None:  # noqa: B027 - most engines free everything with the object
        """Free what the engine holds. Safe to call twice."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Engine(ABC):
    """Converts and loads. Subclasses fill in the class attributes, ``_convert`` and ``_load``.

    A subclass's module must import without its engine being installed: import the engine inside the methods.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    accepts: ClassVar[frozenset[str]]  # "torch", "onnx"
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    calibrated: ClassVar[tuple[str, ...]] = ()  # precisions that learn from data, the option ``calibration``
    distributions: ClassVar[tuple[str, ...]]  # names on the package index; the first gives the version
    runtime_packages: ClassVar[tuple[str, ...]] = ()  # names on the package index; what a board needs to load
    modules: ClassVar[tuple[str, ...]]  # what must be importable to load
    converter_modules: ClassVar[tuple[str, ...]] = ()  # what must be importable besides to convert
    extra: ClassVar[str] = ""  # the extra of pyproject.toml that brings it, "" for the core
    core: ClassVar[bool] = True  # whether the course's core is broken without it

    @property
    def install(self) -> str:
        """The one command that installs the engine's packages."""
        target = f"'.[{self.extra}]'" if self.extra else "."
        return f"pip install -c constraints.txt -e {target}"

    def available(self) -> Availability:
        """Look for the engine without importing it. Never raises."""
        try:
            missing = _missing(self.modules)
            if missing:
                return Availability(False, f"Python package missing: {', '.join(missing)}", fix=self.install)
            return Availability(True, version=metadata.version(self.distributions[0]))
        except Exception as error:  # a broken installation must not break `doctor`
            return Availability(False, f"broken installation: {error}", fix=self.install)

    def convert(
        self,
        source: Source,
        example: np.ndarray | Sequence[np.ndarray],
        out_dir: Path | str,
        precision: str = "fp32",
        **options: Any,
    ) -> Artifact:
        """Convert ``source`` into an artifact folder under ``out_dir``, or find the one made before.

        ``example`` holds one array per model input and fixes their dtypes and sizes. The work happens in a temporary
        folder that is renamed at the end, so a killed conversion leaves nothing half-done. ``options`` are the
        engine's own. ``calibration``, for the precisions in ``calibrated``, holds samples like the example, or is the
        path of an .npz file with an array for each input, the samples along a first axis more. Raises
        :class:`ConversionError` for anything the engine cannot do and :class:`EngineError` if it is not installed.
        """
        self._require_converter()
        options = _with_data(options)
        source, source_hash, arrays, target = self._wanted(source, example, out_dir, precision, options)
        return _found(target) or self._convert_into(target, source, source_hash, arrays, precision, options)

    def find(
        self,
        source: Source,
        example: np.ndarray | Sequence[np.ndarray],
        out_dir: Path | str,
        precision: str = "fp32",
        **options: Any,
    ) -> Artifact | None:
        """The artifact that :meth:`convert` made of the same before, None if it is still to be made.

        Raises what :meth:`convert` raises for a source, example or precision that the engine cannot take at all.
        """
        self.require()
        return _found(self._wanted(source, example, out_dir, precision, _with_data(options))[3])

    def _wanted(
        self, source: Source, example: Any, out_dir: Path | str, precision: str, options: Mapping[str, Any]
    ) -> tuple[Source, str, tuple[np.ndarray, ...], Path]:
        """The checked source, its hash, the checked example, and the folder of the artifact made of them."""
        source = self._checked_source(source)
        if precision not in self.precisions:
            raise ConversionError(
                f"{self.name} has no precision {precision!r}; choose from {', '.join(self.precisions)}"
            )
        arrays = _checked_example(example)
        source_hash = hash_source(source)
        return source, source_hash, arrays, Path(out_dir) / self._folder_name(source_hash, arrays, precision, options)

    def load(self, artifact: Artifact | Path | str, threads: int = 1) -> Session:
        """Load an artifact made by this engine, to run with ``threads`` intra-op threads."""
        self.require()
        artifact = artifact if isinstance(artifact, Artifact) else Artifact.read(artifact)
        if artifact.engine != self.name:
            raise EngineError(f"{artifact.path} was made by {artifact.engine}, it cannot be loaded by {self.name}")
        if threads < 1:
            raise EngineError(f"threads must be at least 1, got {threads}")
        cores = _affinity()
        try:
            session = self._load(artifact, threads)
        except DeployLabError:
            raise
        except Exception as error:
            raise EngineError(f"{self.name} could not load {artifact.path}: {error}") from error
        session.cores_before_load = cores
        return session

    def require(self) -> None:
        """Raise :class:`EngineError` with the installing command if the engine is not available."""
        state = self.available()
        if not state.ok:
            raise EngineError(f"{self.name}: {state.reason}. Try: {state.fix}")

    def _require_converter(self) -> None:
        self.require()
        missing = _missing(self.converter_modules)
        if missing:
            raise EngineError(
                f"{self.name} can load models here but not convert them: Python package missing: {', '.join(missing)}. "
                f"Try: {self.install}"
            )

    def _checked_source(self, source: Source | str) -> Source:
        kind = "onnx" if isinstance(source, (str, os.PathLike)) else "torch"
        if kind not in self.accepts:
            raise ConversionError(
                f"{self.name} cannot convert from {kind}; it accepts {', '.join(sorted(self.accepts))}"
            )
        if kind == "onnx":
            return Path(source)
        if not hasattr(source, "state_dict"):
            raise ConversionError(
                f"{self.name}: expected a torch module or the path of an ONNX file, got {type(source).__name__}"
            )
        if source.training:
            raise ConversionError(
                f"{type(source).__name__} is in training mode: dropout and batch norm would act as in training; "
                "call model.eval() first"
            )
        return source

    @abstractmethod
    def _convert(
        self, source: Source, example: tuple[np.ndarray, ...], folder: Path, precision: str, **options: Any
    ) -> tuple[Iterable[TensorSpec], Iterable[TensorSpec]]:
        """Write the engine's files into ``folder``; return the specs of inputs and outputs."""

    @abstractmethod
    def _load(self, artifact: Artifact, threads: int) -> Session: ...

    def _folder_name(
        self, source_hash: str, example: tuple[np.ndarray, ...], precision: str, options: Mapping[str, Any]
    ) -> str:
        shapes = [(array.shape, str(array.dtype)) for array in example]
        key = json.dumps([self.available().version, source_hash, shapes, precision, _plain(options)], sort_keys=True)
        return f"{self.name}-{precision}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def _convert_into(
        self,
        target: Path,
        source: Source,
        source_hash: str,
        example: tuple[np.ndarray, ...],
        precision: str,
        options: Mapping[str, Any],
    ) -> Artifact:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target.parent)
            folder = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{self.name}-", dir=target.parent))
        except OSError as error:
            raise ConversionError(
                f"cannot write to {target.parent}: {error.strerror or error}; choose another output folder"
            ) from error
        try:
            start = time.perf_counter()
            inputs, outputs = self._convert(source, example, folder, precision, **options)
            seconds = time.perf_counter() - start
            files = tuple(sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()))
            if not _size(folder, files):
                raise ConversionError(f"{self.name}: the converter reported success but wrote no usable file")
            Artifact(
                folder,
                self.name,
                self.available().version,
                source_hash,
                precision,
                tuple(inputs),
                tuple(outputs),
                files,
                _size(folder, files),
                round(seconds, 3),
                _plain(options),
            )._write_manifest()
            _rename(folder, target)
            return Artifact.read(target)
        except DeployLabError as error:
            raise type(error)(f"{error}{_shortage(folder)}") from error
        except OSError as error:
            raise ConversionError(
                f"{self.name}: cannot write the artifact: {error}; free some disk space or choose another folder"
            ) from error
        except Exception as error:
            raise ConversionError(f"{self.name} could not convert the model: {error}{_shortage(folder)}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def hash_source(source: Source) -> str:
    """SHA-256 over what determines the converted model.

    For an ONNX file its bytes and its external data; for a torch module its structure, the code of its classes, its
    attributes and hooks, and its parameters and buffers. A function counts with its code, defaults and the variables
    that it closes over; what its code calls by a global name is not followed.
    """
    digest = hashlib.sha256()
    if isinstance(source, Path):
        for part in onnx_files(source):
            digest.update(part.name.encode() + b"\0")
            with part.open("rb") as stream:
                for block in iter(lambda: stream.read(1 << 20), b""):
                    digest.update(block)
        return digest.hexdigest()
    for name, module in source.named_modules():
        digest.update(f"{name} {type(module).__qualname__}".encode())
        for kind in type(module).__mro__[:-1]:
            if not kind.__module__.startswith("torch."):  # fixed by torch's version, which is in the folder's name
                digest.update(repr(sorted((key, _identity(value)) for key, value in vars(kind).items())).encode())
        own = {key: value for key, value in vars(module).items() if key not in ("_parameters", "_buffers", "_modules")}
        digest.update(repr(sorted((key, _identity(value)) for key, value in own.items())).encode())
    for name, tensor in {**dict(source.named_buffers()), **source.state_dict()}.items():
        digest.update(f"{name} {_identity(tensor)}".encode())
    return digest.hexdigest()


def _identity(value: Any, inside: tuple[Any, ...] = ()) -> str:
    """A text that differs where the value does, and is the same in every process.

    ``inside`` are the objects that hold it, for an object may hold itself.
    """
    if any(value is outer for outer in inside):
        return "itself"
    if isinstance(value, (int, float, complex, str, bytes, type(None), np.generic, os.PathLike)):
        return repr(value)
    if inspect.isclass(value) or inspect.isbuiltin(value):
        return f"{value.__module__}.{value.__qualname__}"
    inside = (*inside, value)
    if isinstance(value, Mapping):
        return repr([(_identity(key, inside), _identity(item, inside)) for key, item in value.items()])
    if isinstance(value, (set, frozenset)):
        return repr(sorted(_identity(item, inside) for item in value))
    if isinstance(value, (list, tuple)):
        return repr([_identity(item, inside) for item in value])
    if hasattr(value, "named_modules"):
        return f"{_type_name(value)} {_identity(dict(value.state_dict()), inside)}"
    if hasattr(value, "detach"):
        return f"{value.dtype} {tuple(value.shape)} {_identity(_bytes_of(value))}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value)).hexdigest()}"
    if inspect.iscode(value):
        return f"{value.co_code.hex()} {value.co_names} {[_identity(item, inside) for item in value.co_consts]}"
    if inspect.isfunction(value):
        closure = [_identity(cell, inside) for cell in value.__closure__ or ()]
        return _identity([value.__code__, value.__defaults__, value.__kwdefaults__, closure], inside)
    if isinstance(value, CellType):
        try:
            return _identity(value.cell_contents, inside)
        except ValueError:  # not filled yet
            return "empty"
    if isinstance(value, partial):
        return _identity([value.func, value.args, value.keywords], inside)
    wrapped = getattr(value, "__func__", None) or getattr(value, "fget", None)  # a method or a property
    if wrapped is not None:
        return _identity(wrapped, inside)
    text = repr(value)
    return f"{_type_name(value)} {'' if ' at 0x' in text else text}"


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def onnx_files(path: Path) -> list[Path]:
    """The ONNX file and the external data files it names. Raises :class:`ConversionError` if one is missing."""
    from onnx import external_data_helper, load

    if not path.is_file():
        raise ConversionError(f"{path}: no such ONNX file")
    try:
        model = load(str(path), load_external_data=False)
    except Exception as error:
        raise ConversionError(f"{path}: not a readable ONNX file ({error})") from error
    tensors = external_data_helper._get_all_tensors(model)
    locations = {
        external_data_helper.ExternalDataInfo(tensor).location
        for tensor in tensors
        if external_data_helper.uses_external_data(tensor)
    }
    parts = [path, *(path.parent / location for location in sorted(locations))]
    for part in parts[1:]:
        if not part.is_file():
            raise ConversionError(f"{path}: its external data file {part.name} is missing; put it beside the model")
    return parts


def _checked_example(example: np.ndarray | Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    arrays = (example,) if isinstance(example, np.ndarray) else tuple(example)
    if not arrays:
        raise InputError("the example holds no array; give one per model input")
    for position, array in enumerate(arrays):
        if not isinstance(array, np.ndarray):
            raise InputError(f"example input {position}: expected a NumPy array, got {type(array).__name__}")
        TensorSpec(str(position), array.shape, str(array.dtype)).check(array)
    return arrays


def _with_data(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with a calibration that is a file's path replaced by what is in it."""
    path = options.get("calibration")
    if not isinstance(path, (str, os.PathLike)):
        return dict(options)
    try:
        file = np.load(path)
        arrays = [file[name] for name in file.files]
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:  # AttributeError: not .npz but .npy
        raise ConversionError(f"{path}: not an .npz file with calibration data ({error})") from error
    return {**options, "calibration": list(arrays[0] if len(arrays) == 1 else zip(*arrays, strict=False))}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them: what it cannot, such as arrays, by its hash."""

    def plain(value: Any) -> Any:
        try:
            json.dumps(value)
        except TypeError:
            return f"sha256 {hashlib.sha256(_identity(value).encode()).hexdigest()}"
        return value

    return {key: plain(value) for key, value in options.items()}


def _found(folder: Path) -> Artifact | None:
    """The artifact in this folder; a damaged one is removed, to be converted again."""
    if folder.exists():
        try:
            return Artifact.read(folder)
        except EngineError:
            shutil.rmtree(folder)
    return None


def _missing(modules: Iterable[str]) -> list[str]:
    return [module for module in modules if util.find_spec(module) is None]


def _affinity() -> frozenset[int] | None:
    """The cores this process may use; None where the system cannot tell (macOS, Windows)."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _shortage(folder: Path) -> str:
    """A hint for converters that fail on a full disk without saying so."""
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free
        if free < _LITTLE_SPACE:
            return f"\nThe disk of {folder.parent} has only {free / 1e6:.1f} MB left: free some space there"
    return ""


def _size(folder: Path, files: Iterable[str]) -> int:
    return sum((folder / name).stat().st_size for name in files)


def _sweep(parent: Path) -> None:
    """Remove what conversions that were killed long ago left behind."""
    for folder in parent.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER:
                shutil.rmtree(folder, ignore_errors=True)


def _rename(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        if not (target / MANIFEST).is_file():  # else another process finished the same conversion first
            raise

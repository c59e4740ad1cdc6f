"""ExecuTorch (https://pytorch.org/executorch): ``torch.export``, lowered to a ``.pte`` program, with XNNPACK kernels.

Options of ``convert``: ``delegate="xnnpack"`` hands all that XNNPACK can take to it, ``"none"`` leaves everything to
ExecuTorch's own kernels, written to be portable and to be right; ``max_batch`` is the most rows that memory is planned
for, where the model takes any batch. With the example's own batch for it, the batch is fixed; lowering is quicker then.

Never import ``executorch.backends.qualcomm``: that downloads the vendor's SDK. The Python binding loads libtorch, so
this engine needs torch to load; the C++ runtime that ships on a device does not. ``executorch.runtime`` would import
the whole exporter besides, so the binding below it is used.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploylab.engines import _tool, _torch
from deploylab.engines.base import Artifact, Engine, Session, Source, TensorSpec
from deploylab.errors import ConversionError, EngineError, InputError

if TYPE_CHECKING:
    import torch

MAX_BATCH = 32
_BINDING = "executorch.extension.pybindings._portable_lib"
_LOWERING = "lowering.json"
_DELEGATES = ("xnnpack", "none")


class ExecuTorch(Engine):
    name = "executorch"
    title = "ExecuTorch"
    accepts = frozenset({"torch"})
    distributions = ("executorch",)
    runtime_packages = ("executorch",)
    modules = ("torch", _BINDING)
    extra = "mobile"
    core = False

    def _convert(
        self,
        source: Source,
        example: tuple[np.ndarray, ...],
        folder: Path,
        precision: str,
        *,
        delegate: str = "xnnpack",
        max_batch: int = MAX_BATCH,
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        if delegate not in _DELEGATES:
            raise ConversionError(f"executorch has no delegate {delegate!r} here; choose from {', '.join(_DELEGATES)}")
        if max_batch < len(example[0]):
            raise ConversionError(f"max_batch={max_batch} is smaller than the example's batch of {len(example[0])}")
        inputs, outputs = _torch.specs(source, example)
        with _torch.inductor_cache(folder):
            if inputs[0].shape[:1] == (None,) and max_batch > len(example[0]):
                try:
                    return _write(folder, inputs, outputs, source, example, delegate, max_batch)
                except Exception as error:  # written for one batch size, or beyond what is lowered with a symbolic one
                    logging.getLogger(__name__).debug("no dynamic batch: %s", error)
            inputs, outputs = _fixed(inputs, len(example[0])), _fixed(outputs, len(example[0]))
            return _write(folder, inputs, outputs, source, example, delegate, None)

    def _load(self, artifact: Artifact, threads: int) -> Session:
        return _ExecuTorchSession(artifact, threads)


@dataclass(frozen=True)
class Lowering:
    """How a graph was divided. Operators are those of the Edge dialect: ATen's, in their functional forms.

    ``delegated`` and ``kept`` count operators by name; ``parts`` is the number of delegated subgraphs, each one call;
    ``planned_bytes`` is the memory planned for what lies between the calls, ``max_batch`` None for a fixed batch.
    """

    delegate: str
    parts: int
    delegated: dict[str, int]
    kept: dict[str, int]
    planned_bytes: int
    max_batch: int | None

    @property
    def coverage(self) -> str:
        total = sum(self.delegated.values()) + sum(self.kept.values())
        return f"{sum(self.delegated.values())} of {total} operators, in {self.parts} part(s)"


def lower(
    module: torch.nn.Module, example: Sequence[np.ndarray], delegate: str = "xnnpack", max_batch: int | None = None
) -> tuple[bytes, Lowering]:
    """``module`` as the bytes of a ``.pte`` program, and how it was divided.

    With ``max_batch`` the leading axis of every input may have any size up to it. Raises whatever the exporter raises.
    """
    with _quiet(), _any_convolution():
        edge = _edge(module, example, delegate, max_batch, copies=False)
        if _entangles_inputs(edge):
            edge = _edge(module, example, delegate, max_batch, copies=True)
        delegated, kept, parts = _divided(edge.exported_program().graph_module)
        finished = edge.to_executorch(_memory_config())
    planned = sum(sum(plan.non_const_buffer_sizes) for plan in finished.executorch_program.execution_plan)
    return bytes(finished.buffer), Lowering(delegate, parts, delegated, kept, planned, max_batch)


def _write(
    folder: Path,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    module: torch.nn.Module,
    example: Sequence[np.ndarray],
    delegate: str,
    max_batch: int | None,
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    program, lowering = lower(module, example, delegate, max_batch)
    path = folder / "model.pte"
    path.write_bytes(program)
    if max_batch is not None:
        lowering = replace(lowering, max_batch=_planned_batch(path))
    _try_out(path, example, outputs, lowering.max_batch)
    (folder / _LOWERING).write_text(json.dumps(asdict(lowering), indent=1) + "\n", encoding="utf-8")
    return inputs, outputs


def _planned_batch(path: Path) -> int:
    """The largest batch that a program has memory for: what it was asked to have, or what a layer made of that."""
    with _tool.listen():
        return int(_method(path).method_meta().input_tensor_meta(0).sizes()[0])


def _try_out(path: Path, example: Sequence[np.ndarray], outputs: list[TensorSpec], max_batch: int | None) -> None:
    """Run the program: an operator without a kernel and a size that was frozen show themselves here."""
    import torch

    batches = [tuple(example)]
    if max_batch is not None and 2 * len(example[0]) <= max_batch:
        batches.append(tuple(np.concatenate([array, array]) for array in example))
    failure = None
    with _tool.listen() as heard:
        try:
            method = _method(path)
            found = [[tuple(t.shape) for t in method.call([torch.tensor(a) for a in batch])] for batch in batches]
        except RuntimeError as error:
            failure = error
    if failure is not None:
        raise ConversionError(f"ExecuTorch wrote a program that it cannot run: {failure}\n{_said(heard)}") from failure
    for batch, shapes in zip(batches, found, strict=True):
        fit = [spec.fits_shape(shape) for spec, shape in zip(outputs, shapes, strict=False)]
        if len(shapes) != len(outputs) or not all(fit):
            raise ConversionError(f"for a batch of {len(batch[0])} the program gives outputs of the shapes {shapes}")


def _edge(
    module: torch.nn.Module, example: Sequence[np.ndarray], delegate: str, max_batch: int | None, copies: bool
) -> Any:
    """The module's graph in the Edge dialect, divided. With ``copies`` it works on copies of its inputs."""
    from executorch.exir import to_edge_transform_and_lower

    partitioners = []
    if delegate == "xnnpack":
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        partitioners = [XnnpackPartitioner()]
    return to_edge_transform_and_lower(_export(module, example, max_batch, copies), partitioner=partitioners)


def _export(module: torch.nn.Module, example: Sequence[np.ndarray], max_batch: int | None, copies: bool) -> Any:
    import torch

    class Wrapped(torch.nn.Module):
        """Gives every weight a name that begins with a letter: XNNPACK's batch-norm folding relies on it."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: torch.Tensor) -> Any:
            return self.module(*((x.clone() for x in inputs) if copies else inputs))

    dynamic = None
    if max_batch is not None:
        dynamic = {"inputs": tuple({0: torch.export.Dim("batch", max=max_batch)} for _ in example)}
        # An axis of size 1 would be taken for a constant.
        example = [np.concatenate([array, array]) if len(array) == 1 else array for array in example]
    return torch.export.export(Wrapped().eval(), tuple(map(torch.tensor, example)), dynamic_shapes=dynamic)


def _entangles_inputs(edge: Any) -> bool:
    """Whether the model works in place on an input, as with ``ReLU(inplace=True)`` at its start, or gives one back.

    The runtime puts an output's memory in the place of an input that is given back, and then reads zeros from there.
    """
    from torch.export.graph_signature import OutputKind

    signature = edge.exported_program().graph_signature
    return any(
        spec.kind is OutputKind.USER_INPUT_MUTATION or spec.arg.name in signature.user_inputs
        for spec in signature.output_specs
    )


@contextlib.contextmanager
def _any_convolution() -> Iterator[None]:
    """Keep torch from choosing among its own convolution kernels while a graph is traced again and again.

    The choice depends on the batch, and would become a bound of the program: 15 rows, whatever was asked for.
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration")  # about Intel GPUs
        with torch.backends.nnpack.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False):
            yield


def _memory_config() -> Any:
    """Inputs and outputs are the caller's memory; only what lies between is planned, and allocated at load."""
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass

    return ExecutorchBackendConfig(
        memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
    )


def _divided(graph_module: Any) -> tuple[dict[str, int], dict[str, int], int]:
    """Operators inside and outside of the delegated subgraphs of a lowered graph, and how many such there are."""
    from executorch.exir.backend.utils import get_delegates
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    lowered = get_lowered_submodules(graph_module)
    inside: Counter[str] = Counter()
    for _, part, _ in lowered:
        inside += _operators(part.original_module.graph)
    return dict(inside), dict(_operators(graph_module.graph)), len(get_delegates(graph_module.graph))


def _operators(graph: Any) -> Counter[str]:
    """How often each operator is called; taking one output of several and calling a delegate are no operators."""
    called = [node.target for node in graph.nodes if node.op == "call_function"]
    return Counter(target.name() for target in called if hasattr(target, "_schema"))


def _fixed(specs: Sequence[TensorSpec], batch: int) -> list[TensorSpec]:
    return [TensorSpec(s.name, (batch, *s.shape[1:]) if s.shape[:1] == (None,) else s.shape, s.dtype) for s in specs]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: its warnings are about its own inside, and what it cannot do raises an exception."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), _tool.listen():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _said(heard: _tool.Heard) -> str:
    return f"It said last:\n{_tool.tail(heard.text)}"


@functools.cache
def binding() -> Any:
    """ExecuTorch's Python binding, a compiled module; torch is imported first because it links to libtorch."""
    import torch  # noqa: F401

    with _tool.listen():  # it reports on the CPU when it makes the thread pool
        from executorch.extension.pybindings import _portable_lib

        _portable_lib._threadpool_get_thread_count()
    return _portable_lib


def _method(path: Path) -> Any:
    """The method ``forward`` of a program. The method keeps the program alive."""
    return binding()._load_program(str(path)).load_method("forward")


class _Pool:
    """The one thread pool of a process. It cannot be resized, only replaced, and programs keep the old one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.generation = 0

    def use(self, threads: int) -> None:
        """Have ``threads`` threads from now on. Hold the lock, and load a program of an older generation anew."""
        if binding()._threadpool_get_thread_count() != threads:
            with _tool.listen():  # it reports the change
                binding()._unsafe_reset_threadpool(threads)
            self.generation += 1


_POOL = _Pool()


class _ExecuTorchSession(Session):
    def __init__(self, artifact: Artifact, threads: int) -> None:
        import torch

        super().__init__(artifact, threads)
        self._torch = torch
        fields = json.loads((artifact.path / _LOWERING).read_text(encoding="utf-8"))
        self._lowering = Lowering(**fields)
        self._method: Any = None
        with _POOL.lock:
            self._ready()

    def _ready(self) -> None:
        """Load the program, again if the thread pool it was loaded with is gone."""
        _POOL.use(self.threads)
        if self._method is not None and self._generation == _POOL.generation:
            return
        path = self.artifact.file(".pte")
        with _tool.listen() as heard:
            try:
                self._method = _method(path)
            except RuntimeError as error:
                reason = str(error)
                self._method = None
        if self._method is None:
            raise EngineError(f"executorch could not load {self.artifact.path}: {reason}. {_said(heard)}")
        self._generation = _POOL.generation

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        most = self._lowering.max_batch
        if most is not None and len(arrays[0]) > most:
            raise InputError(
                f"a batch of {len(arrays[0])} is more than the {most} rows that memory was planned for; "
                f"give at most {most} at once, or convert with max_batch={len(arrays[0])}"
            )
        # torch warns about memory that it may not write to
        tensors = [self._torch.from_numpy(array if array.flags.writeable else array.copy()) for array in arrays]
        with _POOL.lock:
            self._ready()
            results = self._method.call(tensors)  # copies its outputs, unless told otherwise
        return [np.ascontiguousarray(tensor.numpy()) for tensor in results]

    def _facts(self) -> dict[str, Any]:
        with _POOL.lock:
            self._ready()
            threads = binding()._threadpool_get_thread_count()
        return {
            "threads": threads,
            "delegate": "XNNPACK" if self._lowering.delegate == "xnnpack" else "none: ExecuTorch's own kernels",
            "delegated": self._lowering.coverage,
            "not_delegated": self._lowering.kept,
            "max_batch": self._lowering.max_batch or self.inputs[0].shape[0],
            "planned_bytes": self._lowering.planned_bytes,
            "needs_to_load": "torch, for the Python binding; the C++ runtime needs none",
            "layout": "NHWC inside XNNPACK" if self._lowering.delegate == "xnnpack" else "NCHW",
            "gil": "held",
        }

    def close(self) -> None:
        self._method = None

"""What the engine tvm is made of: importing TVM, a model as Relax, passes, schedules by rule, the target."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploylab import machine
from deploylab.engines import _torch
from deploylab.engines.base import TensorSpec
from deploylab.errors import ConversionError, EngineError

if TYPE_CHECKING:
    import torch
    import tvm

CHANNELS_AT_ONCE = 8
"""Accumulators a register tile has: a kernel's weight vector meets this many output channels or rows."""
VECTOR_BYTES = {"x86_64": 64, "aarch64": 16}


def imported() -> Any:
    """The package ``tvm``, imported without its side effects on this process.

    TVM pins the thread that first computes, and all that it starts later, to some of the cores, unless
    ``TVM_BIND_THREADS=0`` is set before. Its foundation ``tvm_ffi`` imports torch wherever that is installed, which
    costs seconds and memory that a board without torch does not pay. And it replaces ``sys.excepthook``.
    """
    os.environ["TVM_BIND_THREADS"] = "0"
    hook, without_torch = sys.excepthook, "torch" not in sys.modules and "tvm_ffi" not in sys.modules
    if without_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tvm
    finally:
        sys.excepthook = hook
        if without_torch:
            del sys.modules["torch"]
    return tvm


def compiler() -> Any:
    """:func:`imported`, with the compiler in it. Raises :class:`EngineError` in a process that has only the runtime."""
    found = imported()
    if not hasattr(found, "relax"):
        raise EngineError(
            "this process loaded TVM's runtime without the compiler; unset TVM_USE_RUNTIME_LIB to convert"
        )
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The target


def target() -> tvm.target.Target:
    """LLVM for this very CPU, and the number of cores this process may use.

    LLVM knows a CPU by its model. A virtual machine may hide instructions of that model: they are switched off.
    """
    from tvm.target import Target, codegen

    model = codegen.llvm_get_system_cpu()
    described: dict[str, Any] = {"kind": "llvm", "mcpu": model, "num-cores": machine.usable_cores()}
    if machine.architecture() == "x86_64":
        has = set(codegen.llvm_get_cpu_features(Target(described)))
        here = {name.replace("_", "") for name in machine.features()}
        base = {"avx", "avx2", "fma", "avx512f", "avx512vnni", "avx512bf16", "avx512fp16"}
        absent = (base & has) - here
        if "avx512f" in absent:
            absent |= {name for name in has if name.startswith("avx512")}
        if absent:
            described["mattr"] = [f"-{name}" for name in sorted(absent)]
    return Target(described)


def lanes() -> int:
    """Float32 numbers in one vector of this CPU, by the widest instructions it has."""
    if machine.architecture() == "x86_64":
        return 16 if "avx512f" in machine.features() else 8
    return VECTOR_BYTES.get(machine.architecture(), 16) // 4


# ---------------------------------------------------------------------------------------------------------------------
# A model as Relax


def from_torch(module: torch.nn.Module, example: tuple[np.ndarray, ...], dynamic: bool) -> tvm.IRModule:
    """``module`` through ``torch.export``, for any batch size or for the example's only."""
    import torch
    from tvm.relax.frontend.torch import from_exported_program

    def tensor(array: np.ndarray) -> torch.Tensor:
        # torch.export takes an axis of size 1 as a constant, so a dynamic batch is traced with a larger one.
        return torch.from_numpy(np.concatenate([array, array]) if dynamic and len(array) == 1 else array.copy())

    with quiet(), torch.no_grad():
        arguments = {"tensors": ({0: torch.export.Dim("batch")},) * len(example)} if dynamic else None
        program = torch.export.export(_pure(module), tuple(map(tensor, example)), dynamic_shapes=arguments)
        # With torch's decompositions, its default: without them TVM 0.26 takes a batch norm as one in training.
        return from_exported_program(program, unwrap_unit_return_tuple=True)


def _pure(module: torch.nn.Module) -> torch.nn.Module:
    """``module`` with copies of its inputs, as it may work on them in place, and with its outputs in a flat tuple."""
    import torch

    class Pure(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: torch.Tensor) -> Any:
            return tuple(_torch.flat(self.module(*(tensor.clone() for tensor in tensors))))

    return Pure().eval()


def from_onnx(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> tvm.IRModule:
    """An ONNX file; ``shapes`` fixes axes of its inputs that may have any size."""
    import onnx
    from tvm.relax.frontend.onnx import from_onnx

    with quiet():
        return from_onnx(onnx.load(str(path)), shape_dict=shapes and {name: list(s) for name, s in shapes.items()})


def specs(module: tvm.IRModule, names: Sequence[str] | None = None) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of ``main``; an axis with a symbolic size is ``None``."""
    main = module["main"]
    result = main.ret_ty
    results = list(result.fields) if hasattr(result, "fields") else [result]
    inputs, outputs = [parameter.ty for parameter in main.params], results
    names_in = list(names or _names("input", len(inputs)))
    return (
        [_spec(name, tensor) for name, tensor in zip(names_in, inputs, strict=True)],
        [_spec(name, tensor) for name, tensor in zip(_names("output", len(outputs)), outputs, strict=True)],
    )


def fixed(module: tvm.IRModule, sizes: Sequence[Sequence[int]] | None) -> tvm.IRModule:
    """``module`` for inputs of these sizes only; as it is without ``sizes``."""
    from tvm import relax

    if sizes is None:
        return module
    known = {}
    for parameter, shape in zip(module["main"].params, sizes, strict=True):
        for size, number in zip(parameter.ty.shape.values, shape, strict=True):
            if not is_number(size):
                known[size] = number
    return relax.transform.BindSymbolicVars(known, "main")(module) if known else module


def _names(stem: str, count: int) -> list[str]:
    return [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]


def _spec(name: str, tensor: Any) -> TensorSpec:
    shape = getattr(tensor, "shape", None)
    if shape is None:
        raise ConversionError(f"TVM does not know the rank of {name!r}")
    sizes = tuple(int(size) if is_number(size) else None for size in shape.values)
    return TensorSpec(name, sizes, str(tensor.dtype))


def is_number(size: Any) -> bool:
    return isinstance(size, int) or hasattr(size, "value")


# ---------------------------------------------------------------------------------------------------------------------
# Passes


def lowered(module: tvm.IRModule) -> tvm.IRModule:
    """Relax with one fused tensor program for each group of operators, not scheduled yet. Needs a target in scope."""
    from tvm import relax, transform

    passes = relax.transform
    module = transform.Sequential(
        [
            passes.FoldBatchnormToConv2D(),
            passes.DecomposeOpsForInference(),
            passes.CanonicalizeBindings(),
        ]
    )(module)
    return transform.Sequential(
        [
            relax.backend.DispatchSampling(),
            relax.backend.DispatchSortScan(),
            passes.LegalizeOps(),
            passes.AnnotateTIROpPattern(),
            passes.FoldConstant(),
            passes.FuseOps(),
            passes.FuseTIR(),
        ]
    )(with_constants_folded(module))


def with_constants_folded(module: tvm.IRModule) -> tvm.IRModule:
    """Arithmetic on weights done here, by NumPy. TVM's own pass compiles a function for each such operation."""
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    known: dict[Any, np.ndarray] = {}

    @mutator
    class Folder(PyExprMutator):
        def visit_var_binding_(self, binding: relax.VarBinding) -> None:
            array = _computed(binding.value, known)
            if array is None:
                super().visit_var_binding_(binding)
            else:
                known[binding.var] = array

        def visit_dataflow_var_(self, var: relax.DataflowVar) -> relax.Expr:
            return relax.const(known[var]) if var in known else super().visit_dataflow_var_(var)

        def visit_var_(self, var: relax.Var) -> relax.Expr:
            return relax.const(known[var]) if var in known else super().visit_var_(var)

    folder = Folder(module)
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            folder.builder_.update_func(variable, folder.visit_expr(function))
    return relax.transform.DeadCodeElimination()(folder.builder_.get())


_ARITHMETIC: Mapping[str, Callable[..., np.ndarray]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": np.divide,
    "relax.sqrt": np.sqrt,
    "relax.negative": np.negative,
}
_RESHAPES = ("relax.reshape", "relax.expand_dims", "relax.squeeze")


def _computed(value: Any, known: Mapping[Any, np.ndarray]) -> np.ndarray | None:
    """What a call on constants gives, None if that is not known here."""
    from tvm import relax

    name = getattr(getattr(value, "op", None), "name", "")
    if not isinstance(value, relax.Call) or not (name in _ARITHMETIC or name in (*_RESHAPES, "relax.permute_dims")):
        return None
    arguments = [_constant(argument, known) for argument in value.args]
    if arguments[0] is None or str(arguments[0].dtype) != "float32":
        return None
    if name == "relax.permute_dims":
        axes = value.attrs.axes
        return np.ascontiguousarray(arguments[0].transpose(None if axes is None else [int(axis) for axis in axes]))
    if name in _RESHAPES:
        sizes = value.ty.shape.values
        return arguments[0].reshape([int(size) for size in sizes]) if all(map(is_number, sizes)) else None
    if any(argument is None for argument in arguments):
        return None
    return _ARITHMETIC[name](*arguments).astype(np.float32)


def _constant(expression: Any, known: Mapping[Any, np.ndarray]) -> np.ndarray | None:
    from tvm import relax

    if isinstance(expression, relax.Constant):
        return expression.data.numpy()
    if isinstance(expression, relax.Var):
        return known.get(expression)
    return np.float32(expression.value) if is_number(expression) else None


# ---------------------------------------------------------------------------------------------------------------------
# Schedules by rule


def tensor_programs(module: tvm.IRModule) -> dict[tvm.ir.GlobalVar, tvm.tirx.PrimFunc]:
    """The loop nests of a lowered module, one for each group of operators."""
    from tvm import tirx

    return {key: function for key, function in module.functions_items() if isinstance(function, tirx.PrimFunc)}


def calls(module: tvm.IRModule) -> dict[str, int]:
    """How often ``main`` calls each tensor program, by name."""
    from tvm import relax

    found: Counter[str] = Counter()

    def visit(expression: Any) -> None:
        if isinstance(expression, relax.Call) and getattr(expression.op, "name", "") == "relax.call_tir":
            found[expression.args[0].name_hint] += 1

    relax.analysis.post_order_visit(module["main"], visit)
    return dict(found)


def scheduled(module: tvm.IRModule) -> tvm.IRModule:
    """Every tensor program of ``module`` scheduled by rule; one that the rule cannot handle stays as it is."""
    from tvm import IRModule

    changed = dict(module.functions_items())
    for variable, function in tensor_programs(module).items():
        if not function.attrs.get("tirx.is_scheduled", False):
            with contextlib.suppress(Exception):  # whatever a schedule refuses, the function as it is computes
                better = schedule_by_rule(function).mod["main"]
                changed[variable] = better.with_attr("tirx.is_scheduled", True)
    return IRModule(changed, attrs=module.attrs)


def schedule_by_rule(function: tvm.tirx.PrimFunc) -> tvm.s_tir.Schedule:
    """``function`` with vectorised, blocked and parallel loops, decided without measuring anything.

    Cheap producers are computed where they are used. A reduction (a convolution, a matrix product) computes a tile of
    output channels times one vector in registers; all else is left to LLVM's own vectoriser, in parallel.
    """
    from tvm.s_tir import Schedule

    schedule = Schedule(function)
    root = schedule.get_sblock("root")
    for block in schedule.get_child_blocks(root)[:-1]:
        if not _reduces(schedule, block) and "if_then_else" not in str(schedule.get(block).body):
            with contextlib.suppress(Exception):
                schedule.compute_inline(block)
    for block in reversed(schedule.get_child_blocks(root)):
        with contextlib.suppress(Exception):
            schedule.reverse_compute_inline(block)
    for block in schedule.get_child_blocks(root):
        loops = schedule.get_loops(block)
        kinds = [int(axis.iter_type) for axis in schedule.get(block).iter_vars]
        if len(loops) != len(kinds) or not set(kinds) <= {_SPATIAL, _REDUCING} or _SPATIAL not in kinds:
            continue
        spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == _SPATIAL]
        reducing = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == _REDUCING]
        if reducing:
            _schedule_reduction(schedule, block, spatial, reducing)
        else:
            _schedule_elementwise(schedule, spatial)
    return schedule


_SPATIAL, _REDUCING = 0, 2  # tvm.tirx.IterVar: DataPar, CommReduce


def _reduces(schedule: Any, block: Any) -> bool:
    return any(int(axis.iter_type) == _REDUCING for axis in schedule.get(block).iter_vars)


def _extent(schedule: Any, loop: Any) -> int | None:
    size = schedule.get(loop).extent
    return int(size) if is_number(size) else None


def _schedule_elementwise(schedule: Any, spatial: Sequence[Any]) -> None:
    """Threads share all but the last axis, which LLVM turns into vectors by itself."""
    if len(spatial) > 1:
        schedule.parallel(schedule.fuse(*spatial[:-1]))


def _split_off_vector(schedule: Any, loop: Any) -> Any:
    """Split ``loop`` into whole vectors. A remainder would need a condition in every vector, which makes it scalar."""
    size = _extent(schedule, loop)
    return schedule.split(loop, [None, max(n for n in range(1, lanes() + 1) if size % n == 0)])


def _schedule_reduction(schedule: Any, block: Any, spatial: list[Any], reducing: list[Any]) -> None:
    if any(_extent(schedule, loop) is None for loop in (*spatial[1:], *reducing)):
        return
    sizes = [_extent(schedule, loop) for loop in reducing]
    convolution = len(spatial) == 4 and len(reducing) == 3
    if len(spatial) < 2 or (convolution and sizes[0] == 1):  # depthwise: nothing to keep in registers
        schedule.parallel(schedule.fuse(*spatial[:2]))
        return
    rest, vector = _split_off_vector(schedule, spatial[-1])
    if convolution and sizes[1:] == [1, 1] and _extent(schedule, rest) == 1:  # 1x1: whole rows lie one after another
        height, width = _extent(schedule, spatial[2]), _extent(schedule, vector)
        rows = max(n for n in range(1, height + 1) if height % n == 0 and (n == 1 or n * width <= lanes()))
        spatial[2], row = schedule.split(spatial[2], [None, rows])
        schedule.reorder(spatial[2], rest, row, vector)
        vector = schedule.fuse(row, vector)
    shared = 1 if convolution else len(spatial) - 2  # the axis along which what the vector holds is used again
    outer, tile = [*spatial[:-1], rest], []
    rows = _extent(schedule, spatial[shared])
    if rows is not None and sizes[0] > 1:
        size = max(n for n in range(1, CHANNELS_AT_ONCE + 1) if rows % n == 0)
        outer[shared], row = schedule.split(spatial[shared], [None, size])
        tile = [row]
    schedule.reorder(*outer, *reducing, *tile, vector)
    result = schedule.cache_write(block, 0, "global")
    shared_loop = schedule.fuse(*outer[:2])
    schedule.reverse_compute_at(result, outer[-1] if len(outer) > 2 else shared_loop)
    schedule.parallel(shared_loop)
    schedule.vectorize(vector)
    schedule.vectorize(schedule.get_loops(result)[-1])
    for loop in (*tile, *reducing[1:]):
        schedule.unroll(loop)
    schedule.decompose_reduction(block, reducing[0])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of torch's exporter and TVM's front ends about their own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

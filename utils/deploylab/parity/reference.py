"""The truth to compare with: the model in float64, run by torch or, independently of every engine, by ONNX."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploylab.errors import EngineError, ModelError
from deploylab.parity.verdict import Arrays, Tolerance, relative_error, tolerance_from_noise

if TYPE_CHECKING:
    import onnx
    import torch

WITHOUT_FLOAT64 = Tolerance(1e-4, "no float64 result to measure the float32 error with; 1e-4 is a customary bound")


@dataclass(frozen=True)
class Reference:
    """Reference outputs: one array per model output, the tolerance they allow, and what computed them."""

    outputs: tuple[np.ndarray, ...]
    tolerance: Tolerance
    source: str


def tolerance_for(module: torch.nn.Module, inputs: Arrays) -> Tolerance:
    """The float32 tolerance for ``module`` on ``inputs`` (one array, or one per input of ``forward``)."""
    return module_reference(module, [_tuple(inputs)]).tolerance


def module_reference(module: torch.nn.Module, samples: Sequence[Sequence[np.ndarray]]) -> Reference:
    """Run ``module`` in float64 on every sample (one array per input of ``forward``), and in float32 for the noise.

    Outputs are concatenated along their leading axis. The module is not changed. Raises :class:`ModelError` if it
    cannot run in float64.
    """
    try:
        double = copy.deepcopy(module).double()
        exact = run_module(double, [[_doubled(array) for array in sample] for sample in samples])
        single = run_module(module, samples)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{type(module).__name__} does not run on these inputs: {error}") from error
    return Reference(exact, tolerance_from_noise(_noise(exact, single), "torch"), "torch in float64")


def run_module(module: torch.nn.Module, samples: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Outputs of a torch module for every sample, concatenated along the leading axis."""
    import torch

    with one_torch_thread(), torch.inference_mode():
        results = [module(*(torch.from_numpy(np.array(array)) for array in sample)) for sample in samples]
    rows = [result if isinstance(result, (tuple, list)) else (result,) for result in results]
    return _concatenated([[tensor.numpy() for tensor in row] for row in rows])


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch compute in this thread alone: its pool spins, and takes a hundred times as long on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def onnx_reference(path: Path, samples: Sequence[Sequence[np.ndarray]], max_seconds: float = 60.0) -> Reference:
    """Run an ONNX file in float64 with ``onnx.reference`` on every sample, and in float32 for the noise.

    Where that evaluator lacks an operator or needs more than ``max_seconds``, ONNX Runtime with all graph
    optimisations off stands in, which ``source`` then says. Raises :class:`EngineError` if that cannot run it either.
    """
    single = _unoptimised(path, samples)
    try:
        exact = _evaluated(path, samples, max_seconds)
    except Exception as error:  # an evaluator written for clarity fails in its own ways
        why = "took too long" if isinstance(error, TimeoutError) else f"failed: {_first_line(error)}"
        source = f"onnxruntime without graph optimisation in float32, because the float64 evaluator {why}"
        return Reference(single, WITHOUT_FLOAT64, source)
    tolerance = tolerance_from_noise(_noise(exact, single), "unoptimised onnxruntime")
    return Reference(exact, tolerance, "onnx.reference in float64")


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` that computes in float64 wherever it computed in a smaller floating-point type."""
    import onnx

    model = copy.deepcopy(model)
    _graph_in_double(model.graph, onnx)
    for function in model.functions:
        for node in function.node:
            _node_in_double(node, onnx)
    return model


def evaluate_in_double(
    model: onnx.ModelProto, inputs: Sequence[np.ndarray], max_seconds: float = 60.0
) -> dict[str, np.ndarray]:
    """All values of an ONNX graph by name, computed in float64. Raises :class:`TimeoutError` after ``max_seconds``."""
    evaluator = _bounded_evaluator(in_double(model), max_seconds)
    feed = dict(zip(evaluator.input_names, map(_doubled, inputs), strict=True))
    return evaluator.run(None, feed, intermediate=True)


def _evaluated(path: Path, samples: Sequence[Sequence[np.ndarray]], max_seconds: float) -> tuple[np.ndarray, ...]:
    import onnx

    evaluator = _bounded_evaluator(in_double(onnx.load(str(path))), max_seconds)
    names = evaluator.input_names
    rows = [evaluator.run(None, dict(zip(names, map(_doubled, sample), strict=True))) for sample in samples]
    return _concatenated(rows)


def _bounded_evaluator(model: onnx.ModelProto, max_seconds: float) -> Any:
    from onnx.reference import ReferenceEvaluator

    deadline = time.monotonic() + max_seconds

    class Bounded(ReferenceEvaluator):
        def _log(self, *_: Any) -> None:  # called before every node
            if time.monotonic() > deadline:
                raise TimeoutError(f"more than {max_seconds:g} s")

    evaluator = Bounded(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    evaluator.input_names_ = [name for name in evaluator.input_names_ if name not in constants]
    return evaluator


def _graph_in_double(graph: onnx.GraphProto, onnx: Any) -> None:
    for tensor in graph.initializer:
        _tensor_in_double(tensor, onnx)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _smaller_floats(onnx):
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for node in graph.node:
        _node_in_double(node, onnx)


def _node_in_double(node: onnx.NodeProto, onnx: Any) -> None:
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.zeros(1))))
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            _tensor_in_double(attribute.t, onnx)
        elif attribute.type == onnx.AttributeProto.GRAPH:
            _graph_in_double(attribute.g, onnx)
        elif attribute.name in ("to", "dtype") and attribute.i in _smaller_floats(onnx):
            attribute.i = onnx.TensorProto.DOUBLE
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            value = np.float64(attribute.f if attribute.name == "value_float" else attribute.floats)
            attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.asarray(value))))


def _tensor_in_double(tensor: onnx.TensorProto, onnx: Any) -> None:
    if tensor.data_type in _smaller_floats(onnx):
        values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _smaller_floats(onnx: Any) -> tuple[int, ...]:
    return onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16


def _unoptimised(path: Path, samples: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, ...]:
    try:
        session = unoptimised_session(str(path))
        names = [value.name for value in session.get_inputs()]
        return _concatenated([session.run(None, dict(zip(names, sample, strict=True))) for sample in samples])
    except Exception as error:
        raise EngineError(f"{path.name}: no reference can be computed: {_first_line(error)}") from error


def unoptimised_session(model: str | bytes) -> Any:
    """An ONNX Runtime session (file name or serialised model) on the CPU that runs the graph as it is written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _noise(exact: Sequence[np.ndarray], single: Sequence[np.ndarray]) -> float:
    floats = [(e, s) for e, s in zip(exact, single, strict=True) if s.dtype.kind == "f"]
    errors = [relative_error(e, s) for e, s in floats]
    return max((error for error in errors if np.isfinite(error)), default=0.0)


def _concatenated(rows: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate([np.atleast_1d(a) for a in column]) for column in zip(*rows, strict=True))


def _doubled(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _tuple(inputs: Arrays) -> tuple[np.ndarray, ...]:
    return (inputs,) if isinstance(inputs, np.ndarray) else tuple(inputs)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Find the first layer that departs, in two torch modules or in two ONNX graphs.

Every layer's output of the suspect, in float32, is compared with the reference's in float64. What is allowed grows
with the depth: twenty times the largest float32 error the reference itself has shown up to that layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np

from deploylab.errors import InputError, ModelError
from deploylab.parity.reference import evaluate_in_double, one_torch_thread, unoptimised_session
from deploylab.parity.verdict import LEAST_NOISE, NOISE_FACTOR, Arrays, relative_error

if TYPE_CHECKING:
    import onnx
    import torch

OnnxModel: TypeAlias = Union[str, Path, "onnx.ModelProto"]
RunOnnx: TypeAlias = Callable[["onnx.ModelProto", Sequence[np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Layer:
    """One layer's output: its error on its own scale (infinite for another shape) and the largest allowed."""

    name: str
    kind: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed


@dataclass(frozen=True)
class Bisection:
    """The compared layers in order of execution, and the layers of the reference that the suspect does not have."""

    layers: tuple[Layer, ...]
    missing: tuple[str, ...] = ()

    @property
    def first(self) -> Layer | None:
        """The first layer that departs."""
        return next((layer for layer in self.layers if not layer.ok), None)

    def __str__(self) -> str:
        lacking = f"; the suspect has no {', '.join(self.missing[:3])}" if self.missing else ""
        if self.first is None:
            return f"no layer of {len(self.layers)} departs{lacking}"
        layer, index = self.first, self.layers.index(self.first)
        how = (
            f"error {layer.error:.1e}, allowed {layer.allowed:.1e}"
            if np.isfinite(layer.error)
            else "other shape or NaN"
        )
        before = f" after {self.layers[index - 1].name}" if index else ""
        return f"first departs at {layer.name} ({layer.kind}){before}: {how}{lacking}"


def bisect(
    reference: torch.nn.Module | OnnxModel, suspect: torch.nn.Module | OnnxModel | None, inputs: Arrays
) -> Bisection:
    """:func:`bisect_modules` for two torch modules, :func:`bisect_onnx` for two ONNX files or models."""
    if _is_onnx(reference) and (suspect is None or _is_onnx(suspect)):
        return bisect_onnx(reference, suspect, inputs)
    if _is_onnx(reference) or _is_onnx(suspect) or suspect is None:
        raise InputError("bisect compares two torch modules or two ONNX graphs, not one with the other")
    return bisect_modules(reference, suspect, inputs)


def bisect_modules(reference: torch.nn.Module, suspect: torch.nn.Module, inputs: Arrays) -> Bisection:
    """Compare the leaf modules of two torch modules, matched by their names, in the order they are called.

    ``inputs`` is one array or one per input of ``forward``. A departure may also lie in plain code (``x + y``,
    ``F.relu``) between two leaf modules; the later one is then called "input of ...".
    """
    arrays = _tuple(inputs)
    exact = _module_values(
        copy.deepcopy(reference).double(), [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    )
    single, suspected = _module_values(reference, arrays), _module_values(suspect, arrays)
    return _compared(exact, single, suspected)


def bisect_onnx(
    reference: OnnxModel, suspect: OnnxModel | None, inputs: Arrays, run: RunOnnx | None = None
) -> Bisection:
    """Compare all intermediate values of two ONNX graphs, matched by their names, in topological order.

    ``run(model, inputs)`` runs the suspect, a model with every intermediate value as an output, and returns its values
    by name; by default ONNX Runtime without graph optimisation does. Without ``suspect`` the reference's own graph is
    run, so that ``run`` is what is suspected. The reference is evaluated by ``onnx.reference`` in float64.
    """
    arrays = _tuple(inputs)
    model = _onnx_model(reference)
    exact = evaluate_in_double(model, arrays)
    single = _run_unoptimised(expose(model), arrays)
    suspected = (run or _run_unoptimised)(expose(model if suspect is None else _onnx_model(suspect)), arrays)
    kinds = {name: node.op_type for node in model.graph.node for name in node.output if name}
    ordered = {(name, kind): exact[name] for name, kind in kinds.items() if isinstance(exact[name], np.ndarray)}
    return _compared(ordered, *({(n, k): v[n] for n, k in kinds.items() if n in v} for v in (single, suspected)))


def expose(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` that gives every intermediate value as an output."""
    import onnx

    model = copy.deepcopy(model)
    known = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return model


_Key: TypeAlias = tuple[str, str]
_INPUT_OF = "input of "


def _compared(
    exact: Mapping[_Key, np.ndarray], single: Mapping[_Key, np.ndarray], suspected: Mapping[_Key, np.ndarray]
) -> Bisection:
    noise, layers = LEAST_NOISE, []
    for key, value in exact.items():
        own = relative_error(value, single[key]) if key in single else 0.0
        noise = max(noise, own) if np.isfinite(own) else noise
        if key in suspected:
            error = relative_error(value, suspected[key])
            layers.append(Layer(*key, error, 0.0 if value.dtype.kind in "iub" else NOISE_FACTOR * noise))
    lacking = [key for key in exact if key not in suspected and not key[0].startswith(_INPUT_OF)]
    missing = tuple(f"{name} ({kind})" for name, kind in lacking)
    if not layers:
        raise ModelError("the two models have no layer name in common, so their layers cannot be compared")
    return Bisection(tuple(layers), missing)


def _module_values(module: torch.nn.Module, arrays: Sequence[np.ndarray]) -> dict[_Key, np.ndarray]:
    """Inputs and outputs of every leaf module, keyed by name and kind, in the order of the calls."""
    import torch

    values: dict[_Key, np.ndarray] = {}

    def note(name: str, kind: str, tensors: object) -> None:
        for index, tensor in enumerate(t for t in _flat(tensors) if isinstance(t, torch.Tensor)):
            label, call = (name if not index else f"{name}[{index}]"), 2
            while (label, kind) in values:
                label, call = f"{name} (call {call})", call + 1
            # A later layer may work in place on the very tensor.
            values[label, kind] = tensor.detach().clone().numpy()

    def watch(name: str, leaf: torch.nn.Module) -> Iterable[torch.utils.hooks.RemovableHandle]:
        kind = type(leaf).__name__
        yield leaf.register_forward_pre_hook(lambda _, given: note(_INPUT_OF + name, kind, given))
        yield leaf.register_forward_hook(lambda _m, _g, result: note(name, kind, result))

    leaves = [(name or "model", part) for name, part in module.named_modules() if not any(part.children())]
    handles = [handle for name, leaf in leaves for handle in watch(name, leaf)]
    try:
        with one_torch_thread(), torch.inference_mode():
            module(*(torch.from_numpy(np.array(array)) for array in arrays))
    finally:
        for handle in handles:
            handle.remove()
    return values


def _flat(tensors: object) -> Iterable[object]:
    if isinstance(tensors, (tuple, list)):
        for tensor in tensors:
            yield from _flat(tensor)
    else:
        yield tensors


def _run_unoptimised(model: onnx.ModelProto, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    session = unoptimised_session(model.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    feed = {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)}
    return dict(zip(names, session.run(names, feed), strict=True))


def _onnx_model(model: OnnxModel) -> onnx.ModelProto:
    import onnx

    return onnx.load(str(model)) if isinstance(model, (str, Path)) else model


def _is_onnx(model: object) -> bool:
    return isinstance(model, (str, Path)) or type(model).__name__ == "ModelProto"


def _tuple(inputs: Arrays) -> tuple[np.ndarray, ...]:
    return (inputs,) if isinstance(inputs, np.ndarray) else tuple(inputs)

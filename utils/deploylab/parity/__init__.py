"""Is this output the same as the reference, by how much, and from which layer on?

* :func:`compare_outputs` judges outputs against a float64 reference with a scale-aware :class:`Tolerance`;
* :func:`tolerance_for` derives that tolerance from torch's own measured float32 error;
* :func:`bisect` finds the first layer that departs, in two torch modules or two ONNX graphs.
"""

from deploylab.parity.layers import Bisection, Layer, bisect, bisect_modules, bisect_onnx
from deploylab.parity.reference import Reference, module_reference, one_torch_thread, onnx_reference, tolerance_for
from deploylab.parity.verdict import Tolerance, Verdict, compare_outputs, relative_error, tolerance_from_noise

__all__ = [
    "Bisection",
    "Layer",
    "Reference",
    "Tolerance",
    "Verdict",
    "bisect",
    "bisect_modules",
    "bisect_onnx",
    "compare_outputs",
    "module_reference",
    "one_torch_thread",
    "onnx_reference",
    "relative_error",
    "tolerance_for",
    "tolerance_from_noise",
]

"""Drawings of ONNX graphs, as SVG and PNG, with no program outside of Python.

``graph(model, between=("hardtanh_3", "add"))`` draws the part of a graph between two values; a notebook shows it.
"""

from deploylab.drawing.onnx_graph import Drawing, graph, side_by_side

__all__ = ["Drawing", "graph", "side_by_side"]

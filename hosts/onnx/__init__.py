"""ONNX as a host: tensors, types, names across scopes, and where IR nodes came from."""

from __future__ import annotations

from ...ir import Graph


def is_from_onnx(graph: Graph) -> bool:
    """Whether a graph came from an ONNX model; onnx is not imported to tell."""
    return type(graph.host).__name__ == "OnnxHost"

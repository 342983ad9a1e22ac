"""Nodes of ONNX with rewritten bodies: the graphs of the bodies are emitted and put back into the node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnx import AttributeProto, GraphProto, NodeProto

from ...ir import Graph, Tensor
from .emitter import emit


def with_bodies(
    node: NodeProto, graphs: Mapping[str, tuple[Graph, frozenset[str]]]
) -> tuple[NodeProto, dict[str, Tensor]]:
    """A copy of a node whose bodies are these graphs.

    Large new tensors are not stored in the bodies: they are captured, so that the graph around the node stores them.

    Args:
        node: The node, which is not changed.
        graphs: For each attribute that changes, the graph, and the host names of the values that it captures.

    Returns:
        The node, and the tensors that it captures in addition, by name.

    Raises:
        ModelError: If a node of a body cannot be written in the model's opset.
    """
    made = NodeProto.FromString(node.SerializeToString())
    added: dict[str, Tensor] = {}
    for attribute in made.attribute:
        if attribute.type != AttributeProto.GRAPH or attribute.name not in graphs:
            continue
        graph, captured = graphs[attribute.name]
        # Another body may have added a tensor of the same name.
        graph.host = replace(graph.host, reserved=graph.host.reserved | set(added))
        written = emit(graph)
        body = written.model.graph
        _drop(body, captured | set(written.tensors))
        added.update(written.tensors)
        attribute.g.CopyFrom(body)
    return made, added


def _drop(body: GraphProto, captured: frozenset[str] | set[str]) -> None:
    """Remove the inputs and initializers that represented captured values."""
    inputs = [v for v in body.input if v.name not in captured]
    del body.input[:]
    body.input.extend(inputs)
    initial = [t for t in body.initializer if t.name not in captured]
    del body.initializer[:]
    body.initializer.extend(initial)


__all__ = ["with_bodies"]

"""The bodies of If, Loop, Scan and SequenceMap as graphs of their own.

What a body captures from the scopes around it becomes an input of its graph, or a constant if its numbers are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto

from ...hosts.onnx.operators import DOMAINS
from ...hosts.onnx.origins import OnnxHost, OnnxOrigin
from ...hosts.onnx.scopes import all_names, free_names, has_bodies
from ...hosts.onnx.tensors import code_of
from ...hosts.onnx.types import proto_of_type
from ...ir import Graph, Node, Opaque, Tensor, Value
from .importer import from_body

CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""ONNX's operators with bodies."""


@dataclass(frozen=True)
class Body:
    """A body of a node, read as a graph.

    Attributes:
        name: The attribute that holds it, such as ``"then_branch"``.
        graph: The body. Its first inputs are its own; those behind them, and some of its constants, are captured.
        captured: The host names of the values that it captures.
        resolved: Whether Ifs in it with a known condition were replaced by their branch.
    """

    name: str
    graph: Graph
    captured: frozenset[str]
    resolved: bool


def nodes_with_bodies(graph: Graph) -> Iterator[Node]:
    """The nodes of a graph from ONNX that have bodies with a known meaning."""
    host = graph.host
    if not isinstance(host, OnnxHost):
        return
    functions = {(f.domain, f.name) for f in host.model.functions}
    for node in graph.nodes:
        origin = node.origin
        if not isinstance(node.op, Opaque) or not isinstance(origin, OnnxOrigin):
            continue
        if len(origin.nodes) != 1:
            continue
        proto = host.node(origin.nodes[0])
        known = proto.domain in DOMAINS and (proto.domain, proto.op_type) not in functions
        if known and proto.op_type in CONTROL_FLOW and has_bodies(proto):
            yield node


def scope_names(graph: Graph) -> frozenset[str]:
    """All names of the host model of a graph, those of the scopes around it and of its bodies included."""
    host: OnnxHost = graph.host
    found = all_names(host.model.graph)
    for proto in host.rewritten.values():
        for attribute in proto.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found |= all_names(attribute.g)
    return host.reserved | found


def read_bodies(graph: Graph, node: Node, reserved: frozenset[str]) -> list[Body]:
    """The bodies of a node, in the order of its attributes.

    Args:
        graph: The graph.
        node: One of :func:`nodes_with_bodies`.
        reserved: Names that new values of the bodies must not take: :func:`scope_names` of the graph.
    """
    host: OnnxHost = graph.host
    origin: OnnxOrigin = node.origin
    values = dict(zip(origin.inputs, node.inputs, strict=True))
    return [
        _read(host, attribute.name, attribute.g, values, reserved)
        for attribute in host.node(origin.nodes[0]).attribute
        if attribute.type == AttributeProto.GRAPH
    ]


def _read(
    host: OnnxHost,
    name: str,
    body: GraphProto,
    values: Mapping[str, Value | None],
    reserved: frozenset[str],
) -> Body:
    model = ModelProto(ir_version=max(host.model.ir_version, 4))
    model.opset_import.extend(host.model.opset_import)
    model.functions.extend(host.model.functions)
    model.graph.CopyFrom(body)
    captured = free_names(body)
    tensors: dict[str, Tensor] = {}
    for outer in captured:
        value = values.get(outer)
        if value is not None and value.data is not None:
            data = value.data
            tensors[outer] = data
            model.graph.initializer.append(
                TensorProto(name=outer, data_type=code_of(data.dtype), dims=data.shape)
            )
        else:
            type_ = None if value is None else proto_of_type(value.type)
            model.graph.input.append(ValueInfoProto(name=outer, type=type_))
    graph = from_body(model, host.base_dir, tensors, reserved)
    # Only the inlining of branches notes anything here.
    return Body(name, graph, frozenset(captured), bool(graph.notes))


__all__ = ["CONTROL_FLOW", "Body", "nodes_with_bodies", "read_bodies", "scope_names"]

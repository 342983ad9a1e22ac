"""Formalities that onnx's checker and onnx-graphsurgeon insist on and that onnxruntime lets pass.

Graphs without a name, outputs without a shape or with a wrong one, and empty lists as attributes say nothing about what a
model computes: they are completed here, so that no later step refuses the model for them.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, ValueInfoProto

from ...hosts.onnx.operators import DOMAINS
from ...hosts.onnx.tensors import text_of
from ...hosts.onnx.types import proto_of_type, type_of
from ...ir import Dim, ModelError, TensorType
from .draft import Draft, all_graphs, all_nodes

_LISTS = {
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
}


def complete(draft: Draft) -> None:
    """Name graphs, remove empty optional attributes, give outputs the shapes that can be inferred; in place."""
    for graph in all_graphs(draft.model.graph):
        graph.name = graph.name or "graph"
    for node in all_nodes(draft.model.graph):
        _drop_empty_lists(node, draft.opset)
    _complete_outputs(draft)


def require_shapes(draft: Draft) -> None:
    """Complete outputs whose shapes were unknown until functions were inlined.

    Raises:
        ModelError: If the shape of an output is neither stated nor can it be inferred.
    """
    if not list(_shapeless(draft)):
        return
    _complete_outputs(draft)
    names = [text_of(output.name) for output in _shapeless(draft)]
    if names:
        raise ModelError(
            f"the rank of these outputs is neither stated nor can it be inferred: {', '.join(names)}: "
            "state their shapes in the model"
        )


def _shapeless(draft: Draft) -> Iterator[ValueInfoProto]:
    for output in draft.model.graph.output:
        if _is_tensor(output) and type_of(output.type).shape is None:
            yield output


def _is_tensor(output: ValueInfoProto) -> bool:
    return not output.HasField("type") or output.type.WhichOneof("value") in (None, "tensor_type")


def _drop_empty_lists(node: NodeProto, opset: int) -> None:
    """Optional lists that are empty are the same as none: for ``axes``, both mean all of them."""
    if node.domain not in DOMAINS or not any(map(_is_empty_list, node.attribute)):
        return
    try:
        known = onnx.defs.get_schema(node.op_type, opset).attributes
    except onnx.defs.SchemaError:
        return
    kept = [
        a
        for a in node.attribute
        if not _is_empty_list(a) or a.name not in known or known[a.name].required
    ]
    kept = [AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend(kept)


def _is_empty_list(attribute: AttributeProto) -> bool:
    field = _LISTS.get(attribute.type)
    return field is not None and not getattr(attribute, field)


def _complete_outputs(draft: Draft) -> None:
    """What is inferred of outputs completes what is stated of them, and wins where both disagree."""
    outputs = draft.model.graph.output
    inferred: dict[str, TensorType] | None = None
    for output in outputs:
        if not _is_tensor(output):
            continue
        if inferred is None:
            inferred = _inferred(draft)
        found = inferred.get(output.name, TensorType())
        stated = type_of(output.type)
        merged = TensorType(found.dtype or stated.dtype, _merged(stated, found))
        if merged != stated:
            output.type.CopyFrom(proto_of_type(merged))


def _merged(stated: TensorType, inferred: TensorType) -> tuple[Dim, ...] | None:
    """The stated shape, with what is inferred where sizes are missing or contradict it."""
    if stated.shape is None or inferred.shape is None:
        return stated.shape if inferred.shape is None else inferred.shape
    if len(stated.shape) != len(inferred.shape):
        return inferred.shape
    return tuple(
        i if s is None or isinstance(i, int) else s
        for s, i in zip(stated.shape, inferred.shape, strict=True)
    )


def _inferred(draft: Draft) -> dict[str, TensorType]:
    """Types that follow from inputs, weights and nodes, without what the model states of its results."""
    bare = ModelProto()
    bare.CopyFrom(draft.model)
    graph = bare.graph
    del graph.value_info[:]
    names = [ValueInfoProto(name=output.name) for output in graph.output]
    del graph.output[:]
    graph.output.extend(names)
    return draft.readers.types(bare, draft.tensors, draft.base_dir)

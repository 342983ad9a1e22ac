"""The types that an ONNX model states, and types that onnx infers for operators without an IR op."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from ...ir import UNKNOWN, Dim, TensorType
from .scopes import bodies
from .tensors import code_of, dtype_of, text_of


def type_of(proto: TypeProto) -> TensorType:
    """The IR type of an ONNX type; unknown for sequences, maps, optionals and sparse tensors."""
    if not proto.HasField("tensor_type"):
        return UNKNOWN
    tensor = proto.tensor_type
    dtype = dtype_of(tensor.elem_type)
    if not tensor.HasField("shape"):
        return TensorType(dtype, None)
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value"):
            dims.append(dim.dim_value if dim.dim_value >= 0 else None)
        else:
            # Some exporters write "?" for every unknown size; it is not a symbol.
            dims.append(None if dim.dim_param in ("", "?") else text_of(dim.dim_param))
    return TensorType(dtype, tuple(dims))


def stated_types(model: ModelProto) -> dict[str, TensorType]:
    """The types that a model states for its results."""
    graph = model.graph
    return {v.name: type_of(v.type) for v in (*graph.value_info, *graph.output)}


def proto_of_type(type_: TensorType) -> TypeProto:
    """The ONNX type of an IR type; empty if the element type is unknown."""
    made = TypeProto()
    if type_.dtype is None:
        return made
    made.tensor_type.elem_type = code_of(type_.dtype)
    if type_.shape is None:
        return made
    shape = made.tensor_type.shape
    shape.SetInParent()
    for d in type_.shape:
        dim = shape.dim.add()
        if isinstance(d, int):
            dim.dim_value = d
        elif d is not None:
            dim.dim_param = d
    return made


class NodeTypes:
    """Asks onnx for the result types of single nodes.

    Nodes are given one at a time, with the numbers of their short inputs, so that onnx's data propagation is not needed: it
    allocates memory for every element of every vector that a model computes.

    Args:
        model: The model, for its operator sets and functions.
    """

    def __init__(self, model: ModelProto) -> None:
        self._opsets = list(model.opset_import)
        self._ir_version = max(model.ir_version, 4)
        self._functions = {(f.domain, f.name): f for f in model.functions}

    def of(
        self, node: NodeProto, known: Mapping[str, TypeProto], numbers: Mapping[str, TensorProto]
    ) -> dict[str, TypeProto]:
        """The types of a node's results, by name, if onnx can infer them.

        Args:
            node: The node.
            known: The types of the values that the node and its bodies read.
            numbers: The numbers of inputs, where they are known.
        """
        made = ModelProto(ir_version=self._ir_version)
        made.opset_import.extend(self._opsets)
        made.functions.extend(self._called(node))
        graph = made.graph
        graph.name = "types"
        graph.initializer.extend(numbers.values())
        for name, type_ in known.items():
            if name not in numbers and type_.WhichOneof("value"):
                graph.input.append(ValueInfoProto(name=name, type=type_))
        graph.node.append(node)
        graph.output.extend(ValueInfoProto(name=name) for name in node.output if name)
        try:
            done = onnx.shape_inference.infer_shapes(made)
        except Exception:
            return {}  # The import continues without inferred types.
        own = {d.dim_param for type_ in known.values() for d in type_.tensor_type.shape.dim}
        for value in done.graph.output:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param not in own:
                    dim.Clear()  # A name invented by onnx: elsewhere it may mean another size.
        return {value.name: value.type for value in done.graph.output}

    def _called(self, node: NodeProto) -> list[FunctionProto]:
        """The functions that a node calls directly, in its bodies, or through other functions."""
        found: dict[tuple[str, str], FunctionProto] = {}
        pending = [node] if self._functions else []
        while pending:
            inner = pending.pop()
            pending += [n for body in bodies(inner) for n in body.node]
            key = (inner.domain, inner.op_type)
            if key in self._functions and key not in found:
                found[key] = self._functions[key]
                pending += found[key].node
        return list(found.values())


__all__ = ["NodeTypes", "proto_of_type", "stated_types", "type_of"]

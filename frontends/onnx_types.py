"""The types that an ONNX model states, and those that onnx infers for what the IR does not know."""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper

from ..ir import UNKNOWN, Dim, TensorType
from .onnx_tensors import dtype_of

_LARGE = 4096
"""Constants of this many bytes are left out of what is handed to onnx's inference."""


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
            # Some exporters write "?" for every size that they do not know: it is no symbol.
            dims.append(None if dim.dim_param in ("", "?") else dim.dim_param)
    return TensorType(dtype, tuple(dims))


def stated_types(model: ModelProto) -> dict[str, TensorType]:
    """The types that a model states for its results."""
    graph = model.graph
    return {v.name: type_of(v.type) for v in (*graph.value_info, *graph.output)}


def inferred_types(model: ModelProto) -> dict[str, TensorType] | None:
    """The types that onnx infers, from a copy whose large constants are typed inputs.

    Returns:
        Types by name, or ``None`` when onnx cannot infer anything.
    """
    light, host = ModelProto(ir_version=max(model.ir_version, 4)), model.graph
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = "types"
    light.graph.input.extend(host.input)
    light.graph.output.extend(host.output)
    light.graph.value_info.extend(host.value_info)
    listed = {v.name for v in host.input}
    for proto in host.initializer:
        if not _is_large(proto):
            light.graph.initializer.append(proto)
        elif proto.name not in listed:
            light.graph.input.append(_typed(proto.name, proto))
    for node in host.node:
        large = _large_constant(node)
        if large is None:
            light.graph.node.append(node)
        else:
            light.graph.input.append(_typed(node.output[0], large))
    try:
        done = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except Exception:
        return None  # Whatever onnx has against the model, it only costs us types.
    return {v.name: type_of(v.type) for v in done.value_info}


def _is_large(proto: TensorProto) -> bool:
    return bool(proto.data_location == TensorProto.EXTERNAL) or proto.ByteSize() >= _LARGE


def _large_constant(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or len(node.attribute) != 1 or not node.output:
        return None
    tensor: TensorProto = node.attribute[0].t
    return tensor if node.attribute[0].name == "value" and _is_large(tensor) else None


def _typed(name: str, proto: TensorProto) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, proto.data_type, proto.dims)


__all__ = ["inferred_types", "stated_types", "type_of"]

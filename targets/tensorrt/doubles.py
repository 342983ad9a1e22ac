"""Converts float64 to float32 if asked to: TensorRT does not compute in float64.

NVIDIA's parser would convert it silently and clamp numbers that do not fit. Here float64 is refused by default, and a number
that float32 cannot represent is an error that names the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, TensorProto

from ...hosts.onnx.tensors import proto_of, tensor_of
from ...ir import DType, LazyTensor, ModelError, Tensor, UsageError
from ...ir.errors import listed
from .draft import Draft, all_graphs, all_nodes, attributes

MODES = ("refuse", "cast")


def convert_float64(draft: Draft, mode: str) -> None:
    """Refuse float64, or cast it to float32, in place; inputs and outputs change their type too.

    Raises:
        ModelError: If the model has float64 and it is refused, or a number does not fit into float32.
    """
    if mode not in MODES:
        raise UsageError(f"float64 is one of {', '.join(MODES)}, not {mode!r}")
    names = list(dict.fromkeys(_float64_names(draft)))
    if not names:
        return
    if mode == "refuse":
        raise ModelError(
            f"TensorRT has no float64, the type of {listed(names)}: export the model in float32, "
            "or cast it (--float64 cast)"
        )
    for name, tensor in list(draft.constants().items()):
        if tensor.dtype is DType.F64:
            draft.set_constant(name, to_float32(tensor, name))
    for graph in all_graphs(draft.model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            if kind.elem_type == TensorProto.DOUBLE:
                kind.elem_type = TensorProto.FLOAT
        if graph is not draft.model.graph:
            for proto in graph.initializer:
                _narrow_proto(proto)
    for node in all_nodes(draft.model.graph):
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype", "stash_type"):
                if attribute.type == AttributeProto.INT and attribute.i == TensorProto.DOUBLE:
                    attribute.i = TensorProto.FLOAT
            elif attribute.type == AttributeProto.TENSOR:
                _narrow_proto(attribute.t)
    draft.notes.append(f"float64 became float32, for example {names[0]}: rounding differs")


def to_float32(tensor: Tensor, name: str) -> Tensor:
    """Return a float64 tensor in float32, as a lazy tensor.

    Raises:
        ModelError: When its numbers are computed, if a finite number does not fit.
    """

    def load() -> np.ndarray:  # type: ignore[type-arg]
        wide = tensor.numpy()
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float32)
        if np.any(np.isinf(narrow) & np.isfinite(wide)):
            raise ModelError(f"float32 cannot hold the numbers of {name}: {np.abs(wide).max():.3g}")
        return narrow

    return LazyTensor(tensor.shape, DType.F32, load)


def _narrow_proto(proto: TensorProto) -> None:
    if proto.data_type != TensorProto.DOUBLE:
        return
    tensor = tensor_of(proto)
    assert tensor is not None
    proto.CopyFrom(proto_of(to_float32(tensor, proto.name or "a constant"), proto.name))


def _float64_names(draft: Draft) -> Iterator[str]:
    """Yield the names of float64 inputs, outputs and initializers, and of nodes with a float64 attribute."""
    for graph in all_graphs(draft.model.graph):
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
                yield value.name
        for proto in graph.initializer:
            if proto.data_type == TensorProto.DOUBLE:
                yield proto.name
    for node in all_nodes(draft.model.graph):
        found = attributes(node)
        value = found.get("value")
        if TensorProto.DOUBLE in (found.get("to"), found.get("dtype")) or (
            isinstance(value, TensorProto) and value.data_type == TensorProto.DOUBLE
        ):
            yield node.name


__all__ = ["MODES", "convert_float64", "to_float32"]

"""float64 becomes float32, on request: TensorRT computes nothing in float64.

NVIDIA's parser would narrow it by itself and clamp what does not fit. Here it is refused unless asked for, and a number
that float32 cannot hold is an error that names the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, TensorProto

from ...hosts.onnx.tensors import proto_of, tensor_of
from ...ir import DType, LazyTensor, ModelError, Tensor, UsageError
from ...ir.errors import listed
from .draft import Draft, attributes, graphs, walk

MODES = ("refuse", "cast")


def narrow(draft: Draft, mode: str) -> None:
    """Refuse float64, or cast it to float32, in place; inputs and outputs change their type too.

    Raises:
        ModelError: If there is some and it is refused, or a number does not fit.
    """
    if mode not in MODES:
        raise UsageError(f"float64 is one of {', '.join(MODES)}, not {mode!r}")
    names = list(dict.fromkeys(_doubles(draft)))
    if not names:
        return
    if mode == "refuse":
        raise ModelError(
            f"TensorRT has no float64, which {listed(names)} are in: export the model in float32, "
            "or have it cast (--float64 cast)"
        )
    for name, tensor in list(draft.constants().items()):
        if tensor.dtype is DType.F64:
            draft.put(name, narrowed(tensor, name))
    for graph in graphs(draft.model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            if kind.elem_type == TensorProto.DOUBLE:
                kind.elem_type = TensorProto.FLOAT
        if graph is not draft.model.graph:
            for proto in graph.initializer:
                _narrow_proto(proto)
    for node in walk(draft.model.graph):
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype", "stash_type"):
                if attribute.type == AttributeProto.INT and attribute.i == TensorProto.DOUBLE:
                    attribute.i = TensorProto.FLOAT
            elif attribute.type == AttributeProto.TENSOR:
                _narrow_proto(attribute.t)
    draft.notes.append(f"float64 became float32, {names[0]} among others: rounding differs")


def narrowed(tensor: Tensor, name: str) -> Tensor:
    """A float64 tensor in float32, computed when it is asked for.

    Raises:
        ModelError: When it is asked for, if a finite number does not fit.
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
    proto.CopyFrom(proto_of(narrowed(tensor, proto.name or "a constant"), proto.name))


def _doubles(draft: Draft) -> Iterator[str]:
    """The names of values in float64."""
    for graph in graphs(draft.model.graph):
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
                yield value.name
        for proto in graph.initializer:
            if proto.data_type == TensorProto.DOUBLE:
                yield proto.name
    for node in walk(draft.model.graph):
        found = attributes(node)
        value = found.get("value")
        if TensorProto.DOUBLE in (found.get("to"), found.get("dtype")) or (
            isinstance(value, TensorProto) and value.data_type == TensorProto.DOUBLE
        ):
            yield node.name


__all__ = ["MODES", "narrow", "narrowed"]

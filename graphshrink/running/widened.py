"""bfloat16 models in onnxruntime, whose CPU kernels lack the type for most operators: they run as float32 models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from ..hosts.onnx.tensors import proto_of, tensor_of
from ..ir import DType, LazyTensor
from .inputs import Arrays

_TYPES = ("to", "dtype", "output_dtype", "stash_type")
"""Attributes that name an element type."""


class WidenedSession:
    """A session of a bfloat16 model that was converted to float32; inputs and outputs are bfloat16.

    Outputs are rounded to bfloat16 once, at the end.
    """

    def __init__(self, session: Any, outputs: list[bool]) -> None:
        self._session, self._outputs = session, outputs

    def run(self, names: None, feeds: Arrays) -> list[Any]:
        """The outputs, as of an onnxruntime session."""
        narrow = DType.BF16.numpy
        wide = {n: a.astype(np.float32) if a.dtype == narrow else a for n, a in feeds.items()}
        made = self._session.run(names, wide)
        return [
            a.astype(narrow) if rounded else a
            for a, rounded in zip(made, self._outputs, strict=True)
        ]


def widened(
    model: Path | ModelProto, base_dir: Path | None, open_session: Callable[[ModelProto], Any]
) -> WidenedSession | None:
    """A session of a bfloat16 model as a float32 model; ``None`` if the model has no bfloat16."""
    if isinstance(model, Path):
        proto = onnx.load(model)
    else:
        proto = ModelProto.FromString(model.SerializeToString())
        if base_dir is not None:
            onnx.load_external_data_for_model(proto, str(base_dir))
    outputs = [v.type.tensor_type.elem_type == TensorProto.BFLOAT16 for v in proto.graph.output]
    if not _widen(proto.graph):
        return None
    return WidenedSession(open_session(proto), outputs)


def _widen(root: GraphProto) -> bool:
    """Make every bfloat16 of a graph float32, in place; whether there was one."""
    found = False
    for graph in _graphs(root):
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            if kind.elem_type == TensorProto.BFLOAT16:
                kind.elem_type, found = TensorProto.FLOAT, True
        for proto in graph.initializer:
            found |= _widen_tensor(proto)
        for attribute in (a for node in graph.node for a in node.attribute):
            if attribute.type == AttributeProto.TENSOR:
                found |= _widen_tensor(attribute.t)
            elif attribute.name in _TYPES and attribute.i == TensorProto.BFLOAT16:
                attribute.i, found = TensorProto.FLOAT, True
    return found


def _graphs(root: GraphProto) -> Iterator[GraphProto]:
    pending = [root]
    while pending:
        graph = pending.pop()
        yield graph
        for attribute in (a for node in graph.node for a in node.attribute):
            pending += [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs


def _widen_tensor(proto: TensorProto) -> bool:
    if proto.data_type != TensorProto.BFLOAT16:
        return False
    tensor = tensor_of(proto)
    assert tensor is not None
    wide = LazyTensor(tensor.shape, DType.F32, lambda: tensor.numpy().astype(np.float32))
    proto.CopyFrom(proto_of(wide, proto.name))
    return True


__all__ = ["WidenedSession", "widened"]

"""Constant folding of views, pieces and table rows of a torch module's tensors: numbers move, none is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ... import ir
from ...ir import LazyTensor, Node, Op, Tensor

_Move = Callable[[Any], Any]


def fold_view(node: Node) -> None:
    """Give the result of a view of a constant its data; the node stays, and still computes it."""
    x = node.inputs[0] if node.inputs else None
    if x is None or x.data is None:
        return
    if isinstance(node.op, ir.Split):
        _fold_pieces(node, x.data, node.op)
    if len(node.outputs) != 1 or node.output.data is not None:
        return
    if isinstance(node.op, (ir.Embedding, ir.Gather)):
        _fold_rows(node, node.op)
        return
    result, move, data = node.output.type.static_shape, _move(node.op), x.data
    if result is None or move is None or any(v is not None for v in node.inputs[1:]):
        return

    def load() -> Any:
        return move(data.numpy()).reshape(result)

    node.output.data = LazyTensor(result, data.dtype, load, source=data)


def _fold_pieces(node: Node, data: Tensor, op: ir.Split) -> None:
    """Give pieces of a constant their data: attention splits one matrix into those of queries, keys and values."""
    start = 0
    for value, size in zip(node.outputs, op.sizes, strict=True):
        shape = value.type.static_shape
        if shape is not None:
            value.data = LazyTensor(
                shape, data.dtype, _piece(data, op.axis, start, size), source=data
            )
        start += size


def _piece(data: Tensor, axis: int, start: int, size: int) -> Callable[[], Any]:
    return lambda: data.numpy().take(range(start, start + size), axis)


def _fold_rows(node: Node, op: ir.Embedding | ir.Gather) -> None:
    """Give pieces of a table that constant places pick their data: position embeddings and biases of transformers."""
    first, second = node.inputs
    ids, table = (first, second) if isinstance(op, ir.Embedding) else (second, first)
    axis = 0 if isinstance(op, ir.Embedding) else op.axis
    result = node.output.type.static_shape
    if ids is None or ids.data is None or table is None or table.data is None or result is None:
        return
    places, rows = ids.data, table.data

    def load() -> Any:
        return np.take(rows.numpy(), places.numpy(), axis)

    node.output.data = LazyTensor(result, rows.dtype, load, source=rows)


def _move(op: Op) -> _Move | None:
    match op:
        case ir.Unsqueeze() | ir.Squeeze() | ir.Reshape() | ir.Flatten() | ir.Identity():
            return lambda array: array
        case ir.Select(axis, index):
            return lambda array: np.take(array, index, axis)
        case ir.Transpose(perm):
            return lambda array: np.transpose(array, perm)
    return None

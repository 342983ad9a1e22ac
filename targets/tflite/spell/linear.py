"""Dense layers, matrix products and embeddings."""

from __future__ import annotations

import math

import numpy as np

from ....ir import Embedding, Linear, MatMul, Node, Value
from ..emitter import Emitter, Unsupported, reordered, spells
from ..flat import FlatTensor
from ..layout import InnerOrder, Layout, model_order
from ..operands import broadcast_shape


@spells(Linear)
def linear(e: Emitter, node: Node, op: Linear) -> None:
    """FULLY_CONNECTED over the last stored axis; an inner order of that axis reorders the weight's columns."""
    x, w = node.required(0), node.required(1)
    rank = len(e.shape(x))
    layout = e.layout_of(x)
    inner = layout.inner
    if layout.perm[-1] != rank - 1 or (inner is not None and inner.axis != rank - 1):
        layout, inner = model_order(rank), None
    tensor = e.get(x, layout)
    if w.data is None:
        raise Unsupported(f"its weight {w.name} is computed by the model, not constant")
    weight = e.numbers(w)
    if inner is not None:
        weight = reordered(weight, InnerOrder(1, inner.sizes, inner.order))
    bias = node.input(2)
    if bias is not None and bias.data is None:
        raise Unsupported(f"its bias {bias.name} is computed by the model, not constant")
    fan_out, fan_in = weight.shape
    numbers = np.zeros(fan_out, np.float32) if bias is None else e.numbers(bias)
    if rank == 1:
        tensor = e.reshape(tensor, (1, fan_in))
    act, result = e.fuse_activation(node)
    kernel = e.weight(np.ascontiguousarray(weight), w.name)
    shape = (*tensor.shape[:-1], fan_out)
    made = e.op(
        "FULLY_CONNECTED", [tensor, kernel, e.constant(numbers, name=bias.name if bias else "zeros")],
        shape, "FLOAT32",
        ("FullyConnectedOptions", {"fusedActivationFunction": act, "keepNumDims": len(shape) > 2}),
    )  # fmt: skip
    if rank == 1:
        made = e.reshape(made, (fan_out,))
    e.put(result, made, Layout(layout.perm))


@spells(MatMul)
def matmul(e: Emitter, node: Node, op: MatMul) -> None:
    """BATCH_MATMUL; its flags read matrices that are stored transposed."""
    a, b = node.required(0), node.required(1)
    if e.dtype(a) != "FLOAT32":
        raise Unsupported(f"LiteRT computes it in float32 only, not in {e.dtype(a).lower()}")
    left, flip_left = _matrix(e, a, row=True)
    right, flip_right = _matrix(e, b, row=False)
    if max(left.rank, right.rank) > 5:
        # The kernel takes 5 axes; matrices side by side are one axis for it.
        if left.shape[:-2] != right.shape[:-2]:
            raise Unsupported("it broadcasts more than 3 axes of matrices")
        count = math.prod(left.shape[:-2])
        left = e.reshape(left, (count, *left.shape[-2:]))
        right = e.reshape(right, (count, *right.shape[-2:]))
    rows = left.shape[-1] if flip_left else left.shape[-2]
    columns = right.shape[-2] if flip_right else right.shape[-1]
    lead: tuple[int, ...] = ()
    if left.rank > 2 or right.rank > 2:
        lead = broadcast_shape(_batch_axes(left), _batch_axes(right))
    made = e.op("BATCH_MATMUL", [left, right], (*lead, rows, columns), "FLOAT32",
                ("BatchMatMulOptions", {"adjX": flip_left, "adjY": flip_right}))  # fmt: skip
    rank = len(e.shape(node.output))
    if made.rank != rank:
        made = e.reshape(made, e.stored_shape(node.output, model_order(rank)))
    e.put(node.output, made, model_order(rank))


def _batch_axes(tensor: FlatTensor) -> FlatTensor:
    """Return a tensor with the axes in front of the matrix, to broadcast their sizes."""
    return FlatTensor("", tensor.shape[:-2] or (1,), tensor.dtype)


def _matrix(e: Emitter, value: Value, row: bool) -> tuple[FlatTensor, bool]:
    """Return an operand with its two matrix axes stored last, and whether they are swapped; a vector becomes a row or a column."""
    rank = len(e.shape(value))
    if rank == 1:
        tensor = e.get(value, model_order(1))
        size = tensor.shape[0]
        return e.reshape(tensor, (1, size) if row else (size, 1)), False
    layout = e.layout_of(value)
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    if value.data is None and layout == Layout(swapped):
        return e.get(value, layout), True
    if value.data is None and layout.inner is None and not layout.is_model_order:
        # A TRANSPOSE is needed anyway: choose the order that moves less data.
        target = Layout(swapped) if layout.perm[-1] == rank - 2 else model_order(rank)
        return e.get(value, target), not target.is_model_order
    return e.get(value, model_order(rank)), False


@spells(Embedding)
def embedding(e: Emitter, node: Node, op: Embedding) -> None:
    """GATHER of rows."""
    ids, table = node.required(0), node.required(1)
    if table.data is None:
        raise Unsupported(f"its table {table.name} is computed by the model, not constant")
    layout = model_order(len(e.shape(ids)))
    index = e.get(ids, layout)
    if index.dtype not in ("INT32", "INT64"):
        index = e.op("CAST", [index], index.shape, "INT32", ("CastOptions", {}))
    rows = e.weight(e.numbers(table), table.name)
    made = e.op("GATHER", [rows, index], (*index.shape, rows.shape[1]), rows.dtype,
                ("GatherOptions", {"axis": 0, "batchDims": 0}))  # fmt: skip
    e.put(node.output, made, model_order(len(e.shape(node.output))))

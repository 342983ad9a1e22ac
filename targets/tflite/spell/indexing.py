"""Ops that pick or repeat elements along axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ir import Expand, Gather, Node, Value
from ..emitter import Emitter, Unsupported, spells
from ..flat import DYNAMIC, FlatTensor
from ..layout import Layout, model_order
from .slices import strided_slice


@spells(Gather)
def gather(e: Emitter, node: Node, op: Gather) -> None:
    """GATHER; the axes of the indices replace the axis."""
    data, indices = node.required(0), node.required(1)
    layout = Layout(e.layout_of(data).perm)
    tensor = e.get(data, layout)
    axis = op.axis % layout.rank
    place = layout.place(axis)
    count = len(e.shape(indices))
    if indices.data is not None:
        (size,) = e.known_sizes(data, [axis])
        index = e.constant(e.numbers(indices).astype(np.int64) % size, "INT32", indices.name)
    else:
        index = from_the_end(e, e.get(indices, model_order(count)), tensor.shape[place])
    shape = (*tensor.shape[:place], *index.shape, *tensor.shape[place + 1 :])
    made = e.op("GATHER", [tensor, index], shape, tensor.dtype,
                ("GatherOptions", {"axis": place, "batchDims": 0}))  # fmt: skip
    perm: list[int] = []
    for old in layout.perm:
        if old == axis:
            perm += range(axis, axis + count)
        else:
            perm.append(old if old < axis else old - 1 + count)
    e.put(node.output, made, Layout(tuple(perm)))


def from_the_end(e: Emitter, index: FlatTensor, size: int) -> FlatTensor:
    """Return computed indices with negative ones counted from the end, which TFLite's GATHER does not do."""
    if index.dtype not in ("INT32", "INT64"):
        index = e.op("CAST", [index], index.shape, "INT32", ("CastOptions", {}))
    if size == DYNAMIC:
        return index
    return e.op("FLOOR_MOD", [index, e.constant(size, index.dtype)], index.shape, index.dtype,
                ("FloorModOptions", {}))  # fmt: skip


@spells(Expand)
def expand(e: Emitter, node: Node, op: Expand) -> None:
    """BROADCAST_TO, or a product with ones if a size of the result is only known from the input."""
    x, out = node.required(0), node.output
    rank, own = len(e.shape(out)), Layout(e.layout_of(x).perm)
    layout = own.leading(rank - own.rank)
    tensor = e.reshape(e.get(x, own), (1,) * (rank - own.rank) + e.stored_shape(x, own))
    shape = e.stored_shape(out, layout)
    wanted = (1,) * (rank - len(op.shape)) + op.shape
    sizes = [wanted[axis] for axis in layout.perm]
    if DYNAMIC not in shape:
        if tensor.shape != shape:
            tensor = _broadcast(e, tensor, e.constant(np.array(shape), "INT32"), shape)
    elif op.like:
        sizes = [have if d == 1 else d for d, have in zip(sizes, shape, strict=True)]
        if DYNAMIC in sizes:
            raise Unsupported("a size is not known: fix it with --fix-shape or fixed_shapes")
        axes = [op.like[wanted[:a].count(None)] for a in layout.perm if wanted[a] is None]
        tensor = _broadcast(e, tensor, _sizes(e, node.required(1), sizes, axes), shape)
    elif tensor.shape != shape:
        if tensor.dtype != "FLOAT32":
            raise Unsupported("a size is not known: fix it with --fix-shape or fixed_shapes")
        ones = e.constant(np.ones([1 if d is None else d for d in sizes], np.float32))
        tensor = e.op("MUL", [tensor, ones], shape, tensor.dtype,
                      ("MulOptions", {"fusedActivationFunction": 0}))  # fmt: skip
    e.put(out, tensor, layout)


def _broadcast(
    e: Emitter, tensor: FlatTensor, sizes: FlatTensor, shape: Sequence[int]
) -> FlatTensor:
    return e.op("BROADCAST_TO", [tensor, sizes], shape, tensor.dtype, ("BroadcastToOptions", {}))


def _sizes(
    e: Emitter, second: Value, sizes: Sequence[int | None], axes: Sequence[int]
) -> FlatTensor:
    """Return sizes as a tensor; those that are ``None`` are read, in order, from ``axes`` of the value ``second``."""
    layout, like = Layout(e.layout_of(second).perm), iter(axes)
    asked = e.op("SHAPE", [e.get(second, layout)], (layout.rank,), "INT32",
                 ("ShapeOptions", {"outType": 2}))  # fmt: skip
    parts = []
    for size in sizes:
        if size is not None:
            parts.append(e.constant([size], "INT32"))
        else:
            place = layout.place(next(like))
            parts.append(strided_slice(e, asked, (place,), (place + 1,), (1,)))
    if len(parts) == 1:
        return parts[0]
    return e.op("CONCATENATION", parts, (len(parts),), "INT32",
                ("ConcatenationOptions", {"axis": 0, "fusedActivationFunction": 0}))  # fmt: skip

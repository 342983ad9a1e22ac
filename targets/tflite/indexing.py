"""Ops that find, pick or repeat elements along axes."""

from __future__ import annotations

import numpy as np

from ...ir import ArgReduce, CumSum, Expand, Gather, Node
from .emitter import Emitter, Unsupported, operand, rule
from .flat import DYNAMIC, FlatTensor
from .layout import Layout, plain


@rule(Gather)
def gather(e: Emitter, node: Node) -> None:
    """GATHER; the axes of the indices stand where the axis stood."""
    op, data, indices = node.op, operand(node, 0), operand(node, 1)
    assert isinstance(op, Gather)
    layout = Layout(e.at(data).perm)
    tensor = e.get(data, layout)
    axis = op.axis % layout.rank
    place = layout.place(axis)
    count = len(e.shape(indices))
    if indices.data is not None:
        (size,) = e.sizes(data, [axis])
        index = e.constant(e.numbers(indices).astype(np.int64) % size, "INT32", indices.name)
    else:
        index = from_the_end(e, e.get(indices, plain(count)), tensor.shape[place])
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
    """Computed indices with those below zero counted from the end, which TFLite does not do."""
    if index.dtype not in ("INT32", "INT64"):
        index = e.op("CAST", [index], index.shape, "INT32", ("CastOptions", {}))
    if size == DYNAMIC:
        return index
    return e.op("FLOOR_MOD", [index, e.constant(size, index.dtype)], index.shape, index.dtype,
                ("FloorModOptions", {}))  # fmt: skip


@rule(Expand)
def expand(e: Emitter, node: Node) -> None:
    """BROADCAST_TO, or, where sizes are not known, a product with ones."""
    op, x, out = node.op, operand(node, 0), node.output
    assert isinstance(op, Expand)
    rank = len(e.shape(out))
    layout = Layout(e.at(x).perm).leading(rank - len(e.shape(x)))
    tensor = e.reshape(e.get(x, Layout(e.at(x).perm)), (1,) * (rank - len(e.shape(x))) + e.stored(x, Layout(e.at(x).perm)))  # fmt: skip
    shape = e.stored(out, layout)
    if shape == tensor.shape:
        e.put(out, tensor, layout)
        return
    if DYNAMIC not in shape:
        made = e.op("BROADCAST_TO", [tensor, e.constant(np.array(shape), "INT32")], shape,
                    tensor.dtype, ("BroadcastToOptions", {}))  # fmt: skip
    elif tensor.dtype == "FLOAT32":
        wanted = (1,) * (rank - len(op.shape)) + op.shape
        ones = np.ones([wanted[axis] for axis in layout.perm], np.float32)
        made = e.op("MUL", [tensor, e.constant(ones)], shape, tensor.dtype,
                    ("MulOptions", {"fusedActivationFunction": 0}))  # fmt: skip
    else:
        raise Unsupported("a size is not known")
    e.put(out, made, layout)


@rule(ArgReduce)
def arg_reduce(e: Emitter, node: Node) -> None:
    """ARG_MAX or ARG_MIN."""
    op, x = node.op, operand(node, 0)
    assert isinstance(op, ArgReduce)
    layout = Layout(e.at(x).perm)
    tensor = e.get(x, layout)
    if tensor.dtype not in ("FLOAT32", "INT32"):
        raise Unsupported(f"of {tensor.dtype.lower()}: LiteRT has no such kernel")
    place = layout.place(op.axis)
    axis = e.constant(place, "INT32")
    if op.last:
        tensor = e.op("REVERSE_V2", [tensor, e.constant([place], "INT32")], tensor.shape,
                      tensor.dtype, ("ReverseV2Options", {}))  # fmt: skip
    code, options = (
        ("ARG_MAX", "ArgMaxOptions") if op.kind == "max" else ("ARG_MIN", "ArgMinOptions")
    )
    shape = tuple(d for i, d in enumerate(tensor.shape) if i != place)
    made = e.op(code, [tensor, axis], shape, "INT64", (options, {"outputType": 4}))
    if op.last:
        (size,) = e.sizes(x, [op.axis])
        made = e.op("SUB", [e.constant(size - 1, "INT64"), made], shape, "INT64",
                    ("SubOptions", {"fusedActivationFunction": 0}))  # fmt: skip
    if op.keepdims:
        made = e.reshape(made, (*shape[:place], 1, *shape[place:]))
    e.put(node.output, made, layout if op.keepdims else layout.without([op.axis]))


@rule(CumSum)
def cumulative_sum(e: Emitter, node: Node) -> None:
    """CUMSUM."""
    op, x = node.op, operand(node, 0)
    assert isinstance(op, CumSum)
    layout = Layout(e.at(x).perm)
    tensor = e.get(x, layout)
    if tensor.dtype not in ("FLOAT32", "INT32", "INT64"):
        raise Unsupported(f"of {tensor.dtype.lower()}: LiteRT has no such kernel")
    axis = e.constant(layout.place(op.axis), "INT32")
    made = e.op("CUMSUM", [tensor, axis], tensor.shape, tensor.dtype,
                ("CumsumOptions", {"exclusive": op.exclusive, "reverse": op.reverse}))  # fmt: skip
    e.put(node.output, made, layout)

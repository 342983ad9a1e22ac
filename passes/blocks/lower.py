"""Write a pivoted layer into the graph, in one of several forms.

The forms of a dense layer in k blocks:

- ``split``: Split, k dense layers, Concat; blocks may differ in size;
- ``batched``: one batched MatMul of all blocks, with a Reshape and (for more than one row) a Transpose on both sides;
- ``grouped``: for one row, a 1 x 1 convolution of one pixel with k groups, between two Reshapes, which cancel between
  consecutive layers. Bias and activation are then part of one node, and onnxruntime and LiteRT store its weight in the
  order in which they read it.

The forms of a convolution: ``grouped``, with k groups, or ``split`` if blocks differ in size.

:mod:`.form_cost` chooses the form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...ir import (
    Concat,
    Conv,
    DerivedTensor,
    DType,
    Exactness,
    Gather,
    GraphError,
    LazyTensor,
    Linear,
    MatMul,
    Node,
    Op,
    Reshape,
    Rewriter,
    Scale,
    Shape,
    Split,
    Tensor,
    Transpose,
    Value,
)
from ..merge.algebra.tensors import Array64, Derived, from_float64
from .blocks import Ids
from .order import BlockAccess


@dataclass(frozen=True, eq=False)
class BlockLayer:
    """A layer that is ready to be written in blocks.

    Attributes:
        node: The layer.
        form: The form; see the module.
        rows: How the outputs get from the blocks to their places in the graph.
        columns: How the inputs get from their places in the graph to the blocks.
        row_sizes: The number of rows of each block.
        column_sizes: The number of columns of each block.
        weight: The original weight.
        bias: The original bias.
        refitted: The new weight, and the vector added to the bias, in the original order; ``None`` for exact blocks.
        fixed: Whether known sizes hold for every run; torch knows only those of the example inputs.
    """

    node: Node
    form: str
    rows: BlockAccess
    columns: BlockAccess
    row_sizes: Ids
    column_sizes: Ids
    weight: Tensor
    bias: Tensor | None
    refitted: tuple[Array64, Array64] | None = None
    fixed: bool = True

    @property
    def gathers(self) -> int:
        """The number of Gathers that it needs."""
        return (self.rows.gather is not None) + (self.columns.gather is not None)

    def parts(self) -> list[tuple[Tensor, Tensor | None]]:
        """The weight and the bias of each block."""
        rows = np.split(self.rows.channels, np.cumsum(self.row_sizes)[:-1])
        columns = np.split(self.columns.channels, np.cumsum(self.column_sizes)[:-1])
        return [(self._part(r, c), self._bias(r)) for r, c in zip(rows, columns, strict=True)]

    def _part(self, rows: Ids, columns: Ids) -> Tensor:
        data = self.weight
        shape = (rows.size, columns.size, *data.shape[2:])
        if self.refitted is not None:
            return from_float64(
                self.refitted[0].reshape(data.shape)[np.ix_(rows, columns)], data.dtype, data
            )
        if isinstance(data, DerivedTensor):
            place = np.ix_(rows, columns)
            return Derived(shape, data.dtype, lambda: data.float64()[place], (data,))
        return LazyTensor(
            shape, data.dtype, lambda: data.numpy()[np.ix_(rows, columns)], source=data
        )

    def _bias(self, rows: Ids) -> Tensor | None:
        bias, shift = self.bias, None if self.refitted is None else self.refitted[1]
        if shift is None or not shift.any():
            return None if bias is None else _taken(bias, rows)
        found = shift if bias is None else bias.float64() + shift
        return from_float64(found[rows], self.weight.dtype, self.weight if bias is None else bias)


def _taken(data: Tensor, rows: Ids) -> Tensor:
    """The elements ``rows`` of a vector, as a lazy tensor."""
    if isinstance(data, DerivedTensor):
        return Derived((rows.size,), data.dtype, lambda: data.float64()[rows], (data,))
    return LazyTensor((rows.size,), data.dtype, lambda: data.numpy()[rows], source=data)


def _stacked(parts: list[Tensor], tail: tuple[int, ...] = (), *, turned: bool = False) -> Tensor:
    """The concatenation of blocks along axis 0, with ``tail`` as more axes of size 1.

    If ``turned``, the transposed blocks, stacked: (blocks, columns, rows).
    """
    first = parts[0]
    rows = sum(p.shape[0] for p in parts)
    shape = (len(parts), *first.shape[::-1]) if turned else (rows, *first.shape[1:], *tail)

    def joined(arrays: list[Array64]) -> Array64:
        made = np.stack([a.T for a in arrays]) if turned else np.concatenate(arrays)
        return np.asarray(made.reshape(shape))

    if any(isinstance(p, DerivedTensor) for p in parts):
        return Derived(shape, first.dtype, lambda: joined([p.float64() for p in parts]), parts)
    source = first.source if isinstance(first, LazyTensor) else None
    return LazyTensor(shape, first.dtype, lambda: joined([p.numpy() for p in parts]), source=source)


class ChainWriter:
    """Inserts a chain of nodes before a layer; the last one replaces the layer.

    Attributes:
        value: The result of the last inserted node.
        pending: The next node: its op, inputs and name. It is inserted once it is known not to be the last one.
    """

    def __init__(self, rw: Rewriter, node: Node) -> None:
        self.rw, self.node = rw, node
        self.value: Value = node.required(0)
        self.pending: tuple[Op, list[Value | None], str] | None = None

    def then(self, op: Op, *rest: Value | None, name: str = "") -> None:
        """Append a node that reads the result so far."""
        value = self.flush()
        self.pending = (op, [value, *rest], name or f"{self.node.name}.{op.name.lower()}")

    def join(self, op: Op, values: list[Value | None]) -> None:
        """Append a node that reads other values."""
        self.flush()
        self.pending = (op, values, f"{self.node.name}.{op.name.lower()}")

    def flush(self) -> Value:
        """Insert the pending node; returns the result so far."""
        if self.pending is not None:
            op, inputs, name = self.pending
            self.value = self.rw.insert(op, inputs, before=self.node, name=name).output
            self.pending = None
        return self.value

    def finish(self) -> None:
        """Replace the layer by the pending node."""
        if self.pending is None:
            raise GraphError(f"nothing replaces {self.node.name}")
        op, inputs, _ = self.pending
        self.rw.replace(self.node, op, inputs)

    def constant(self, data: Tensor | None, name: str) -> Value | None:
        """A new constant, named after the layer."""
        return None if data is None else self.rw.constant(data, f"{self.node.name}.{name}")


def write_blocks(rw: Rewriter, pivot: BlockLayer, what: str, exactness: Exactness) -> None:
    """Replace a layer by its blocks.

    Args:
        rw: The rewriter.
        pivot: The layer.
        what: The description of the rewrite.
        exactness: Its exactness class.
    """
    node, before = pivot.node, pivot.node.inputs[1:]
    x = node.required(0)
    with rw.rewrite(what, node, exactness=exactness):
        writer = ChainWriter(rw, node)
        is_conv = isinstance(node.op, Conv)
        shape, result = (certain_sizes(v.type.shape or (), pivot.fixed) for v in (x, node.output))
        axis = 1 if is_conv else len(shape) - 1
        bring_channels(writer, pivot.columns, axis, shape, back=False)
        if is_conv:
            _write_conv(writer, pivot)
        elif pivot.form == "split":
            _write_split_dense(writer, pivot, shape)
        elif pivot.form == "grouped":
            _write_one_pixel_conv(writer, pivot, len(shape))
        else:
            _write_batched(writer, pivot, shape)
        bring_channels(writer, pivot.rows, axis, result, back=True)
        writer.finish()
        for value in before:
            if value is not None and value.producer is None and not value.use_count:
                rw.erase_constant(value)


def certain_sizes(shape: Shape, fixed: bool) -> Shape:
    """The sizes of a value, ``None`` for those that may differ between runs."""
    return shape if fixed else (None,) * len(shape)


def bring_channels(
    writer: ChainWriter, access: BlockAccess, axis: int, shape: Shape, *, back: bool
) -> None:
    """Move channels from their places in the graph to the blocks, or ``back``."""
    if access.gather is not None:
        places = np.argsort(access.gather, kind="stable") if back else access.gather
        data = LazyTensor((places.size,), DType.I64, lambda: places)
        writer.then(Gather(axis), writer.constant(data, "out_places" if back else "places"))
        return
    if not access.shape:
        return
    parts, front = access.shape, access.front
    # The permutation that moves axis ``front`` of the parts to the beginning; ``back`` inverts it.
    to_front = (front, *(i for i in range(len(parts)) if i != front))
    if back:
        cut = tuple(parts[i] for i in to_front)
        turn = tuple(int(i) for i in np.argsort(to_front))
    else:
        cut, turn = parts, to_front
    tail: tuple[int, ...] = tuple(d for d in shape[axis + 1 :] if isinstance(d, int))
    if len(tail) < len(shape) - axis - 1:
        _shuffle_by_split(writer, cut, turn, axis)
        return
    lead: tuple[None, ...] = (None,) * axis
    perm = (*range(axis), *(axis + i for i in turn))
    perm += tuple(range(axis + len(parts), axis + len(parts) + len(tail)))
    writer.then(Reshape((*lead, *cut, *tail)))
    writer.then(Transpose(perm))
    writer.then(Reshape((*lead, math.prod(parts), *tail)))


def _shuffle_by_split(
    writer: ChainWriter, cut: tuple[int, ...], turn: tuple[int, ...], axis: int
) -> None:
    """The shuffle as Split and Concat, which do not need the sizes of other axes."""
    pieces = math.prod(cut[:-1])
    sizes = (cut[-1],) * pieces
    x, node = writer.flush(), writer.node
    made = writer.rw.insert(Split(sizes, axis), [x], before=node, name=f"{node.name}.deal")
    order = np.arange(pieces).reshape(cut[:-1]).transpose(turn[:-1]).reshape(-1)
    writer.join(Concat(axis), [made.outputs[int(i)] for i in order])


def _write_conv(writer: ChainWriter, pivot: BlockLayer) -> None:
    op = pivot.node.op
    assert isinstance(op, Conv)
    if pivot.form == "grouped":
        _write_grouped_conv(writer, pivot, op, ())
    else:
        _write_split_layers(writer, pivot, op, 1, pivot.parts())


def _write_grouped_conv(
    writer: ChainWriter, pivot: BlockLayer, op: Conv, kernel: tuple[int, ...]
) -> None:
    """Append a convolution with a group for each block; ``kernel`` is the kernel size that the weight lacks."""
    parts = pivot.parts()
    weight = writer.constant(_stacked([w for w, _ in parts], kernel), "weight")
    biases = [b for _, b in parts if b is not None]
    bias = [writer.constant(_stacked(biases), "bias")] if biases else []
    grouped = Conv(op.strides, op.pads, op.dilations, len(parts))
    writer.then(grouped, weight, *bias, name=pivot.node.name)


def _write_one_pixel_conv(writer: ChainWriter, pivot: BlockLayer, rank: int) -> None:
    """Append a dense layer of one row as a convolution of one pixel."""
    columns, rows = int(pivot.column_sizes.sum()), int(pivot.row_sizes.sum())
    # An input of rank 2 is written so that it is right for more rows too.
    lead = (None,) if rank == 2 else (1,) * (rank - 1)
    writer.then(Reshape((lead[0], columns, 1, 1)))
    _write_grouped_conv(writer, pivot, Conv((1, 1), (0, 0, 0, 0), (1, 1)), (1, 1))
    writer.then(Reshape((*lead, rows)))


def _write_split_layers(
    writer: ChainWriter,
    pivot: BlockLayer,
    op: Op,
    axis: int,
    parts: list[tuple[Tensor, Tensor | None]],
) -> None:
    """Append Split, a layer for each block, and Concat.

    Args:
        writer: The chain.
        pivot: The layer.
        op: The op of each block.
        axis: The channel axis.
        parts: The weight and the bias of each block.
    """
    name, x = pivot.node.name, writer.flush()
    sizes = tuple(int(s) for s in pivot.column_sizes)
    cut = writer.rw.insert(Split(sizes, axis), [x], before=pivot.node, name=f"{name}.split")
    made: list[Value | None] = []
    for number, (piece, (weight, bias)) in enumerate(zip(cut.outputs, parts, strict=True)):
        own = f"block{number}"
        inputs = [piece, writer.constant(weight, f"{own}.weight")]
        if bias is not None:
            inputs.append(writer.constant(bias, f"{own}.bias"))
        layer = writer.rw.insert(op, inputs, before=pivot.node, name=f"{name}.{own}")
        made.append(layer.output)
    writer.join(Concat(axis), made)


def _write_split_dense(writer: ChainWriter, pivot: BlockLayer, shape: Shape) -> None:
    lead = tuple(d if isinstance(d, int) else -1 for d in shape[:-1])
    # onnxruntime has no Gemm for more than two axes: it would reshape around each one.
    is_flat = len(lead) > 1 and lead.count(-1) <= 1
    if is_flat:
        writer.then(Reshape((-1, int(pivot.column_sizes.sum()))))
    _write_split_layers(writer, pivot, Linear(), 1 if is_flat else len(lead), pivot.parts())
    if is_flat:
        writer.then(Reshape((*lead, int(pivot.row_sizes.sum()))))


def _write_batched(writer: ChainWriter, pivot: BlockLayer, shape: Shape) -> None:
    parts, rank = pivot.parts(), len(shape)
    count, (rows, columns) = len(parts), parts[0][0].shape
    # One row needs no Transpose: (1, columns) becomes (count, 1, columns / count).
    single = shape[-2] == 1
    lead: tuple[None, ...] = (None,) * (rank - 2 if single else rank - 1)
    row: tuple[int, ...] = (1,) if single else ()
    perm = (*range(rank - 2), rank - 1, rank - 2, rank)
    writer.then(Reshape((*lead, count, *row, columns)))
    if not single:
        writer.then(Transpose(perm))
    weight = writer.constant(_stacked([w for w, _ in parts], turned=True), "weight")
    writer.then(MatMul(), weight)
    if not single:
        writer.then(Transpose(perm))
    writer.then(Reshape((*lead, *row, count * rows)))
    biases = [b for _, b in parts if b is not None]
    if biases:
        writer.then(Scale(rank - 1), None, writer.constant(_stacked(biases), "bias"))


__all__ = ["BlockLayer", "ChainWriter", "bring_channels", "certain_sizes", "write_blocks"]

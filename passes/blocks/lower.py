"""Write a pivoted layer in the form that its blocks take.

Forms of a dense layer in k blocks:

- ``split``: Split, k dense layers, Concat; blocks may differ in size;
- ``batched``: the blocks as one batched MatMul, between a Reshape and, for more than one row, a Transpose on both sides;
- ``grouped``: for one row, a 1 x 1 convolution of one pixel with k groups, between two Reshapes, which cancel between
  layers in a row. Bias and activation are then part of one node, and onnxruntime and LiteRT keep its weight in the
  order in which they read it;

and of a convolution: ``grouped``, with k groups, or ``split`` where blocks differ in size.

:mod:`.forms` chooses.
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
from ..merge.algebra.tensors import Array64, Derived, exact
from .blocks import Ids
from .order import Access


@dataclass(frozen=True, eq=False)
class BlockLayer:
    """A layer, ready to be written in blocks.

    Attributes:
        node: The layer.
        form: See the module.
        rows: How its outputs get to their places.
        columns: How its inputs get to the blocks.
        row_sizes: The rows of each block.
        column_sizes: The columns of each block.
        weight: The original weight.
        bias: The original bias.
        refitted: What replaces the weight and what is added to the bias, in the original order.
        fixed: Whether all sizes that are known are those of every run; in torch they are those of an example.
    """

    node: Node
    form: str
    rows: Access
    columns: Access
    row_sizes: Ids
    column_sizes: Ids
    weight: Tensor
    bias: Tensor | None
    refitted: tuple[Array64, Array64] | None = None
    fixed: bool = True

    @property
    def gathers(self) -> int:
        """How many Gathers it takes."""
        return (self.rows.gather is not None) + (self.columns.gather is not None)

    def parts(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of each block."""
        rows = np.split(self.rows.channels, np.cumsum(self.row_sizes)[:-1])
        columns = np.split(self.columns.channels, np.cumsum(self.column_sizes)[:-1])
        return [(self._part(r, c), self._bias(r)) for r, c in zip(rows, columns, strict=True)]

    def _part(self, rows: Ids, columns: Ids) -> Tensor:
        data = self.weight
        shape = (rows.size, columns.size, *data.shape[2:])
        if self.refitted is not None:
            return exact(
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
        return exact(found[rows], self.weight.dtype, self.weight if bias is None else bias)


def _taken(data: Tensor, rows: Ids) -> Tensor:
    if isinstance(data, DerivedTensor):
        return Derived((rows.size,), data.dtype, lambda: data.float64()[rows], (data,))
    return LazyTensor((rows.size,), data.dtype, lambda: data.numpy()[rows], source=data)


def _stacked(parts: list[Tensor], tail: tuple[int, ...] = (), *, turned: bool = False) -> Tensor:
    """Blocks one behind the other along axis 0, with more axes of size 1; turned, as (blocks, columns, rows)."""
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


class _Writer:
    """A chain of nodes, the last of which takes the place of the layer."""

    def __init__(self, rw: Rewriter, node: Node) -> None:
        self.rw, self.node = rw, node
        value = node.inputs[0]
        assert value is not None
        self.value: Value = value
        self.pending: tuple[Op, list[Value | None], str] | None = None

    def then(self, op: Op, *rest: Value | None, name: str = "") -> None:
        """The next node, which reads the one before."""
        value = self.settle()
        self.pending = (op, [value, *rest], name or f"{self.node.name}.{op.name.lower()}")

    def join(self, op: Op, values: list[Value | None]) -> None:
        """The next node, which reads other values."""
        self.settle()
        self.pending = (op, values, f"{self.node.name}.{op.name.lower()}")

    def settle(self) -> Value:
        """The value so far."""
        if self.pending is not None:
            op, inputs, name = self.pending
            self.value = self.rw.insert(op, inputs, before=self.node, name=name).output
            self.pending = None
        return self.value

    def finish(self) -> None:
        """Put the last node in the layer's place."""
        assert self.pending is not None
        op, inputs, _ = self.pending
        self.rw.replace(self.node, op, inputs)

    def constant(self, data: Tensor | None, name: str) -> Value | None:
        """A constant under the layer's name."""
        return None if data is None else self.rw.constant(data, f"{self.node.name}.{name}")


def write(rw: Rewriter, pivot: BlockLayer, what: str, exactness: Exactness) -> None:
    """Replace a layer by its blocks."""
    node, before = pivot.node, pivot.node.inputs[1:]
    x = node.inputs[0]
    assert x is not None
    with rw.rewrite(what, node, exactness=exactness):
        writer = _Writer(rw, node)
        is_conv = isinstance(node.op, Conv)
        shape, result = (_certain(v.type.shape or (), pivot.fixed) for v in (x, node.output))
        axis = 1 if is_conv else len(shape) - 1
        _moved(writer, pivot.columns, axis, shape, back=False)
        if is_conv:
            _conv(writer, pivot)
        elif pivot.form == "split":
            _split(writer, pivot, shape)
        elif pivot.form == "grouped":
            _pixel(writer, pivot, len(shape))
        else:
            _batched(writer, pivot, shape)
        _moved(writer, pivot.rows, axis, result, back=True)
        writer.finish()
        for value in before:
            if value is not None and value.producer is None and not value.use_count:
                rw.erase_constant(value)


def _certain(shape: Shape, fixed: bool) -> Shape:
    """The sizes of a value that hold for every run."""
    return shape if fixed else (None,) * len(shape)


def _moved(writer: _Writer, access: Access, axis: int, shape: Shape, *, back: bool) -> None:
    """Bring channels to the blocks, or back from them."""
    if access.gather is not None:
        places = np.argsort(access.gather, kind="stable") if back else access.gather
        data = LazyTensor((places.size,), DType.I64, lambda: places)
        writer.then(Gather(axis), writer.constant(data, "out_places" if back else "places"))
        return
    if not access.shape:
        return
    parts, front = access.shape, access.front
    # Where axis number ``front`` of the parts goes: to their beginning, or back from there.
    to_front = (front, *(i for i in range(len(parts)) if i != front))
    if back:
        cut = tuple(parts[i] for i in to_front)
        turn = tuple(int(i) for i in np.argsort(to_front))
    else:
        cut, turn = parts, to_front
    tail: tuple[int, ...] = tuple(d for d in shape[axis + 1 :] if isinstance(d, int))
    if len(tail) < len(shape) - axis - 1:
        _dealt(writer, cut, turn, axis)
        return
    lead: tuple[None, ...] = (None,) * axis
    perm = (*range(axis), *(axis + i for i in turn))
    perm += tuple(range(axis + len(parts), axis + len(parts) + len(tail)))
    writer.then(Reshape((*lead, *cut, *tail)))
    writer.then(Transpose(perm))
    writer.then(Reshape((*lead, math.prod(parts), *tail)))


def _dealt(writer: _Writer, cut: tuple[int, ...], turn: tuple[int, ...], axis: int) -> None:
    """The same shuffle by Split and Concat, which need no sizes of other axes."""
    pieces = math.prod(cut[:-1])
    sizes = (cut[-1],) * pieces
    x, node = writer.settle(), writer.node
    made = writer.rw.insert(Split(sizes, axis), [x], before=node, name=f"{node.name}.deal")
    order = np.arange(pieces).reshape(cut[:-1]).transpose(turn[:-1]).reshape(-1)
    writer.join(Concat(axis), [made.outputs[int(i)] for i in order])


def _conv(writer: _Writer, pivot: BlockLayer) -> None:
    op = pivot.node.op
    assert isinstance(op, Conv)
    if pivot.form == "grouped":
        _groups(writer, pivot, op, ())
    else:
        _pieces(writer, pivot, op, 1, pivot.parts())


def _groups(writer: _Writer, pivot: BlockLayer, op: Conv, kernel: tuple[int, ...]) -> None:
    """A convolution with a group for each block; ``kernel`` is what its weight lacks."""
    parts = pivot.parts()
    weight = writer.constant(_stacked([w for w, _ in parts], kernel), "weight")
    biases = [b for _, b in parts if b is not None]
    bias = [writer.constant(_stacked(biases), "bias")] if biases else []
    grouped = Conv(op.strides, op.pads, op.dilations, len(parts))
    writer.then(grouped, weight, *bias, name=pivot.node.name)


def _pixel(writer: _Writer, pivot: BlockLayer, rank: int) -> None:
    """A dense layer of one row as a convolution of one pixel."""
    columns, rows = int(pivot.column_sizes.sum()), int(pivot.row_sizes.sum())
    # What works for one row only is written so that it is right for more.
    lead = (None,) if rank == 2 else (1,) * (rank - 1)
    writer.then(Reshape((lead[0], columns, 1, 1)))
    _groups(writer, pivot, Conv((1, 1), (0, 0, 0, 0), (1, 1)), (1, 1))
    writer.then(Reshape((*lead, rows)))


def _pieces(
    writer: _Writer,
    pivot: BlockLayer,
    op: Op,
    axis: int,
    parts: list[tuple[Tensor, Tensor | None]],
) -> None:
    """Split, a layer for each block, Concat."""
    name, x = pivot.node.name, writer.settle()
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


def _split(writer: _Writer, pivot: BlockLayer, shape: Shape) -> None:
    lead = tuple(d if isinstance(d, int) else -1 for d in shape[:-1])
    # Onnxruntime has no Gemm of more than two axes: it would reshape around each.
    is_flat = len(lead) > 1 and lead.count(-1) <= 1
    if is_flat:
        writer.then(Reshape((-1, int(pivot.column_sizes.sum()))))
    _pieces(writer, pivot, Linear(), 1 if is_flat else len(lead), pivot.parts())
    if is_flat:
        writer.then(Reshape((*lead, int(pivot.row_sizes.sum()))))


def _batched(writer: _Writer, pivot: BlockLayer, shape: Shape) -> None:
    parts, rank = pivot.parts(), len(shape)
    count, (rows, columns) = len(parts), parts[0][0].shape
    # One row needs no turning: (1, columns) is (count, 1, columns / count).
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


__all__ = ["BlockLayer", "write"]

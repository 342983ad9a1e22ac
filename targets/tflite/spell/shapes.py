"""Reshapes and transposes; both move data only where the stored order does not allow otherwise."""

from __future__ import annotations

from ....ir import (
    Activation,
    Dequantize,
    Flatten,
    Identity,
    Linear,
    Node,
    Quantize,
    Reshape,
    Squeeze,
    Transpose,
    Unsqueeze,
    Value,
)
from ....ir.types import Shape
from ..emitter import Emitter, spells
from ..flat import FlatTensor
from ..layout import (
    InnerOrder,
    Layout,
    ReshapePart,
    is_contiguous,
    is_in_order,
    joined_in_place,
    order_after_reshape,
    place_size_one_axes,
    reshape_parts,
)


@spells(Transpose)
def transpose(e: Emitter, node: Node, op: Transpose) -> None:
    """No operation: the layout of the result maps the same stored axes to other logical axes."""
    x = node.required(0)
    e.put(node.output, e.as_stored(x), e.layout_of(x).transposed(op.perm))


@spells(Reshape, Flatten, Squeeze, Unsqueeze)
def reshape(e: Emitter, node: Node, op: Reshape | Flatten | Squeeze | Unsqueeze) -> None:
    """RESHAPE, after a TRANSPOSE only where axes that are joined are stored apart or in another order."""
    x, out = node.required(0), node.output
    before, after = e.shape(x), e.shape(out)
    parts = reshape_parts(before, after)
    layout = e.layout_of(x)
    if layout.inner is not None:
        opened = _opened(e, node, layout, parts)
        if opened is not None:
            e.put(out, *opened)
            return
        layout = Layout(layout.perm)
    folded = _folded(layout, parts, before, out)
    if folded is not None:
        group, inner = folded
        kept = [a for a in layout.perm if before[a] != 1]
        order: list[int] = []
        for axis in kept:
            place = inner.axis if axis in group[0] else _axis_after(parts, axis)
            if place not in order:
                order.append(place)
        target = Layout(place_size_one_axes(order, after, ()), inner)
        e.put(out, e.reshape(e.get(x, layout), e.stored_shape(out, target)), target)
        return
    bad = [
        part for part, _ in parts
        if part and not (is_contiguous(layout.perm, part, before) and is_in_order(_without_ones(layout, before), part))
    ]  # fmt: skip
    wish = e.preferred.get(out)
    if bad:
        back = [(outs, ins) for ins, outs in parts]
        wished = wish and order_after_reshape(wish, back, before, [layout.perm])
        layout = Layout(wished or joined_in_place(layout.perm, bad))
    perm = order_after_reshape(
        _without_ones(layout, before), parts, after, [wish] if wish is not None else []
    )
    if perm is None:
        layout, perm = Layout(tuple(range(len(before)))), tuple(range(len(after)))
    target = Layout(perm)
    e.put(out, e.reshape(e.get(x, layout), e.stored_shape(out, target)), target)


def _without_ones(layout: Layout, shape: Shape) -> tuple[int, ...]:
    """Return the stored order of the axes whose size is not 1."""
    return tuple(axis for axis in layout.perm if shape[axis] != 1)


def _axis_after(parts: list[ReshapePart], axis: int) -> int:
    """Return the first axis after the reshape in the part of an axis before it."""
    return next(outs[0] for ins, outs in parts if axis in ins)


def _folded(
    layout: Layout, parts: list[ReshapePart], before: Shape, out: Value
) -> tuple[ReshapePart, InnerOrder] | None:
    """Return the one part that joins axes stored in another order, with its inner order, if only dense layers read the result."""
    odd = [
        (ins, outs) for ins, outs in parts
        if len(ins) > 1 and not is_in_order(layout.perm, ins)
    ]  # fmt: skip
    if len(odd) != 1 or any(
        len(ins) != 1 or len(outs) != 1 for ins, outs in parts if (ins, outs) not in odd
    ):
        return None
    ins, outs = odd[0]
    sizes = [before[axis] for axis in ins]
    if (
        len(outs) != 1
        or not is_contiguous(layout.perm, ins, before)
        or not all(isinstance(d, int) for d in sizes)
    ):
        return None
    if not _feeds_dense(out, outs[0]):
        return None
    stored = [axis for axis in layout.perm if axis in ins]
    numbers = tuple(d for d in sizes if isinstance(d, int))
    return odd[0], InnerOrder(outs[0], numbers, tuple(ins.index(axis) for axis in stored))


def _feeds_dense(value: Value, axis: int) -> bool:
    """Whether all readers are dense layers over this axis; activations and quantization may be in between."""
    seen = [value]
    while seen:
        at = seen.pop()
        if at.is_output or not at.uses:
            return False
        for node, index in at.uses:
            if isinstance(node.op, Activation | Identity | Quantize | Dequantize):
                seen.append(node.output)
            elif not (
                isinstance(node.op, Linear)
                and index == 0
                and at.type.rank == axis + 1
                and node.inputs[1] is not None
                and node.inputs[1].data is not None
            ):
                return False
    return True


def _opened(
    e: Emitter, node: Node, layout: Layout, parts: list[ReshapePart]
) -> tuple[FlatTensor, Layout] | None:
    """Return the result if the reshape splits an axis with an inner order into the axes it was joined from."""
    inner = layout.inner
    assert inner is not None
    x, after = node.required(0), e.shape(node.output)
    outs = next((outs for ins, outs in parts if ins == (inner.axis,)), None)
    if outs is None or tuple(after[a] for a in outs) != inner.sizes:
        return None
    if any(len(i) != 1 or len(o) != 1 for i, o in parts if i != (inner.axis,)):
        return None
    order: list[int] = []
    for axis in layout.perm:
        if axis == inner.axis:
            order += [outs[i] for i in inner.order]
        elif e.shape(x)[axis] != 1:
            order.append(_axis_after(parts, axis))
    target = Layout(place_size_one_axes(order, after, ()))
    return e.reshape(e.as_stored(x), e.stored_shape(node.output, target)), target

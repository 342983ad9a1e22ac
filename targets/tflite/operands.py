"""Operands of different layouts and ranks, brought together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...ir import Value
from .emitter import Emitter, arranged
from .flat import DYNAMIC, FlatTensor
from .layout import Layout, plain


def common_layout(e: Emitter, out: Value, values: Sequence[Value]) -> Layout:
    """The layout that operands of one rank meet in: the wish of the result's readers, or what moves least."""
    return operand_layout(e, out, [v for v in values if len(e.shape(v)) == len(e.shape(out))])


def operand_layout(e: Emitter, out: Value, values: Sequence[Value]) -> Layout:
    """The layout of a result of the rank of ``out``: that of its largest operands, by the elements they hold."""
    rank = len(e.shape(out))
    weights: dict[Layout, int] = {}
    for value in values:
        if value.data is not None or len(e.shape(value)) != rank:
            continue
        layout = e.at(value)
        weights[layout] = weights.get(layout, 0) + _elements(e, value)
    if not weights:
        wish = e.wishes.get(out)
        return Layout(wish) if wish is not None and len(wish) == rank else plain(rank)
    if len(weights) > 1:
        wish = e.wishes.get(out)
        if wish is not None and Layout(wish) in weights:
            return Layout(wish)
        weights = {k: v for k, v in weights.items() if k.inner is None} or weights
    best = max(weights, key=lambda layout: weights[layout])
    return best if len(weights) == 1 else Layout(best.perm)


def broadcast_operands(
    e: Emitter, out: Value, values: Sequence[Value]
) -> tuple[list[FlatTensor], Layout]:
    """The operands of a broadcast as they are stored, and the layout of its result ``out``.

    The runtime gives a result as many axes as its largest operand has, so one operand always has all axes of ``out``:
    axes of size 1 in front of a constant are left out only beside a computed operand of that rank.
    """
    layout = operand_layout(e, out, values)
    short = any(v.data is None and len(e.shape(v)) == layout.rank for v in values)
    return [aligned(e, v, layout, short=short) for v in values], layout


def _elements(e: Emitter, value: Value) -> int:
    return math.prod(d for d in e.shape(value) if isinstance(d, int))


def aligned(e: Emitter, value: Value, layout: Layout, *, short: bool = True) -> FlatTensor:
    """An operand as NumPy's broadcasting needs it beside others that are stored in ``layout``.

    Args:
        e: The emitter.
        value: The operand.
        layout: How the result is stored.
        short: Leave out axes of size 1 in front of a constant; another operand must then have all axes.
    """
    shape = e.shape(value)
    missing = layout.rank - len(shape)
    if value.data is not None:
        array = e.numbers(value)
        array = array.reshape((1,) * missing + array.shape)
        array = arranged(array, layout)
        while short and array.ndim > 1 and array.shape[0] == 1:
            array = array[0]
        return e.constant(array, e.dtype(value), value.name)
    if not missing:
        return e.get(value, layout)
    tensor, own = e.placed[value]
    own = own.leading(missing)
    # Axes of size 1 in front may be left out.
    if own.perm[missing:] == layout.perm[missing:] and own.inner == layout.inner:
        return tensor
    wide = (1,) * missing + shape
    placed = e.convert(e.reshape(tensor, (1,) * missing + tensor.shape), wide, own, layout)
    reshaped = placed.maker is not None and placed.maker.code == "RESHAPE"
    if reshaped and placed.shape == (1,) * missing + tensor.shape:
        return tensor
    return placed


def broadcast(*tensors: FlatTensor) -> tuple[int, ...]:
    """The stored sizes of a result."""
    rank = max(t.rank for t in tensors)
    shapes = [(1,) * (rank - t.rank) + t.shape for t in tensors]
    return tuple(_broadcast(sizes) for sizes in zip(*shapes, strict=True))


def _broadcast(sizes: tuple[int, ...]) -> int:
    large = [d for d in sizes if d not in (1, DYNAMIC)]
    return large[0] if large else DYNAMIC if DYNAMIC in sizes else 1

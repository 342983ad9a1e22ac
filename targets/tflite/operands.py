"""Operands of different layouts and ranks are brought into one layout."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...ir import Value
from .emitter import Emitter, arranged
from .flat import DYNAMIC, FlatTensor
from .layout import Layout, model_order


def common_layout(e: Emitter, out: Value, values: Sequence[Value]) -> Layout:
    """Return the layout for a result and its operands.

    It is the layout of most elements among the computed operands of the result's rank. Where these differ, the order that readers of
    the result prefer comes first, if an operand has it.
    """
    rank = len(e.shape(out))
    weights: dict[Layout, int] = {}
    for value in values:
        if value.data is not None or len(e.shape(value)) != rank:
            continue
        layout = e.layout_of(value)
        weights[layout] = weights.get(layout, 0) + _elements(e, value)
    if not weights:
        preferred = e.preferred.get(out)
        return (
            Layout(preferred)
            if preferred is not None and len(preferred) == rank
            else model_order(rank)
        )
    if len(weights) > 1:
        preferred = e.preferred.get(out)
        if preferred is not None and Layout(preferred) in weights:
            return Layout(preferred)
        weights = {k: v for k, v in weights.items() if k.inner is None} or weights
    best = max(weights, key=lambda layout: weights[layout])
    return best if len(weights) == 1 else Layout(best.perm)


def broadcast_operands(
    e: Emitter, out: Value, values: Sequence[Value]
) -> tuple[list[FlatTensor], Layout]:
    """Return the stored operands of a broadcast, and the layout of its result ``out``.

    The runtime gives a result the highest rank of its operands, so one operand must have all axes of ``out``:
    leading axes of size 1 of a constant are dropped only if a computed operand has that rank.
    """
    layout = common_layout(e, out, values)
    drop_leading = any(v.data is None and len(e.shape(v)) == layout.rank for v in values)
    return [aligned(e, v, layout, drop_leading=drop_leading) for v in values], layout


def _elements(e: Emitter, value: Value) -> int:
    return math.prod(d for d in e.shape(value) if isinstance(d, int))


def aligned(e: Emitter, value: Value, layout: Layout, *, drop_leading: bool = True) -> FlatTensor:
    """Return an operand as NumPy's broadcasting rules need it for a result that is stored in ``layout``.

    Args:
        e: The emitter.
        value: The operand.
        layout: How the result is stored.
        drop_leading: Drop leading axes of size 1 of a constant; another operand must then have all axes.
    """
    shape = e.shape(value)
    missing = layout.rank - len(shape)
    if value.data is not None:
        array = e.numbers(value)
        array = array.reshape((1,) * missing + array.shape)
        array = arranged(array, layout)
        while drop_leading and array.ndim > 1 and array.shape[0] == 1:
            array = array[0]
        return e.constant(array, e.dtype(value), value.name)
    if not missing:
        return e.get(value, layout)
    tensor, own = e.placed[value]
    own = own.leading(missing)
    # The axes of this operand are the last ones of the result: leading axes of size 1 are not needed.
    if own.perm[missing:] == layout.perm[missing:] and own.inner == layout.inner:
        return tensor
    wide = (1,) * missing + shape
    placed = e.convert(e.reshape(tensor, (1,) * missing + tensor.shape), wide, own, layout)
    reshaped = placed.producer is not None and placed.producer.code == "RESHAPE"
    if reshaped and placed.shape == (1,) * missing + tensor.shape:
        return tensor
    return placed


def broadcast_shape(*tensors: FlatTensor) -> tuple[int, ...]:
    """Return the stored shape of the result of a broadcast."""
    rank = max(t.rank for t in tensors)
    shapes = [(1,) * (rank - t.rank) + t.shape for t in tensors]
    return tuple(_broadcast_size(sizes) for sizes in zip(*shapes, strict=True))


def _broadcast_size(sizes: tuple[int, ...]) -> int:
    large = [d for d in sizes if d not in (1, DYNAMIC)]
    return large[0] if large else DYNAMIC if DYNAMIC in sizes else 1

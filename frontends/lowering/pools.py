"""Pools, and reductions that compute the same."""

from __future__ import annotations

from collections.abc import Sequence

from ... import ir
from ...ir import Value
from .base import Lowered


def average_pool(
    x: Value,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    *,
    ceil_mode: bool = False,
    counts_padding: bool = False,
) -> Lowered:
    """An average pool in canonical form: without padding, ``counts_padding`` is false."""
    counted = counts_padding and any(pads)
    window = tuple(strides), tuple(pads), tuple(dilations), tuple(kernel)
    return ir.AveragePool(*window, ceil_mode, counted), [x]


def reduce(kind: str, x: Value, axes: Sequence[int], keepdims: bool) -> Lowered:
    """A reduction over nonnegative axes; a mean over all spatial axes is a GlobalAveragePool."""
    rank, dtype = x.type.rank, x.type.dtype
    axes = tuple(sorted(axes))
    spatial = rank in ir.GlobalAveragePool.RANKS and axes == tuple(range(2, rank))
    if kind == "mean" and keepdims and spatial and dtype is not None and dtype.is_wide_float:
        return ir.GlobalAveragePool(), [x]
    return ir.Reduce(kind, axes, keepdims), [x]


def global_max(x: Value) -> Lowered | None:
    """The maximum over all spatial axes, which stay as axes of size 1."""
    rank = x.type.rank
    return (ir.Reduce("max", tuple(range(2, rank)), True), [x]) if rank and rank > 2 else None

"""Gather, Select and Embedding in canonical form."""

from __future__ import annotations

from ... import ir
from ...ir import Value
from ...ir.ops.base import axis_of
from .base import Lowered


def gather(x: Value, index: Value, axis: int) -> Lowered | None:
    """Slices of ``x`` by integers: rows of a constant table are an Embedding, one constant index is a Select."""
    rows, places, rank = x.data, index.data, x.type.rank
    is_table = rows is not None and len(rows.shape) == 2 and rows.dtype.is_wide_float
    if places is None and is_table and axis in (0, -2):
        return ir.Embedding(), [index, x]
    if not rank or index.type.dtype is None or not index.type.dtype.is_int:
        return None
    if places is not None and places.shape == ():
        return ir.Select(axis_of(axis, rank), int(places.numpy())), [x]
    return ir.Gather(axis_of(axis, rank)), [x, index]

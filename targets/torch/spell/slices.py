"""How ops that cut and join along axes are written in torch."""

from __future__ import annotations

import operator

import torch
from torch import fx

from .... import ir
from ..speller import Results, Speller, spells

_END = 2**31 - 1
"""From here on, an end is behind every axis."""


@spells(ir.Slice)
def slice_(s: Speller, op: ir.Slice) -> fx.Node:
    """``x[:, start:end:step]``."""
    axes = [s.axis(a) for a in op.axes]
    if s.rank is not None:
        axes = [a % s.rank for a in axes]
    parts = [slice(None)] * (max(axes) + 1)
    for axis, start, end, step in zip(axes, op.starts, op.ends, op.steps, strict=True):
        parts[axis] = slice(
            start or None, None if end >= _END else end, None if step == 1 else step
        )
    return s.call(operator.getitem, s.value(), tuple(parts))


@spells(ir.DynamicSlice)
def dynamic_slice(s: Speller, op: ir.DynamicSlice) -> fx.Node:
    """``x[:, start:end:step]`` with bounds that are sizes, or from tensors."""
    x, starts, ends = s.values()
    known = [s.sizes(1), s.sizes(2)]
    axes = [s.axis(a) for a in op.axes]
    parts = [slice(None)] * (max(axes, default=-1) + 1)
    for place, (axis, step) in enumerate(zip(axes, op.steps, strict=True)):
        start, end = (
            s.call(torch.select, bounds, 0, place) if sizes is None else sizes[place]
            for bounds, sizes in zip((starts, ends), known, strict=True)
        )
        parts[axis] = slice(start, end, None if step == 1 else step)
    return s.call(operator.getitem, x, tuple(parts))


@spells(ir.Select)
def select(s: Speller, op: ir.Select) -> fx.Node:
    """``torch.select``."""
    return s.call(torch.select, s.value(), op.axis, op.index)


@spells(ir.Split)
def split(s: Speller, op: ir.Split) -> Results:
    """``torch.split``."""
    made = s.call(torch.split, s.value(), list(op.sizes), op.axis)
    return s.call(operator.getitem, made, 0) if len(op.sizes) == 1 else made


@spells(ir.Concat)
def concat(s: Speller, op: ir.Concat) -> fx.Node:
    """``torch.cat``."""
    return s.call(torch.cat, s.values(), op.axis)

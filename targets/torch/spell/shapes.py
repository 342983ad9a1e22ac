"""How ops that change shapes and orders of axes are written in torch."""

from __future__ import annotations

import torch
from torch import fx

from .... import ir
from ..speller import Speller, spells


@spells(ir.Reshape)
def reshape(s: Speller, op: ir.Reshape) -> fx.Node:
    """``torch.reshape``, which is given the sizes of axes that are copied."""
    made = s.value()
    sizes = [s.call("size", made, i) if d is None else d for i, d in enumerate(op.shape)]
    return s.call(torch.reshape, made, tuple(sizes))


@spells(ir.Flatten)
def flatten(s: Speller, op: ir.Flatten) -> fx.Node:
    """``torch.flatten`` of the axes from one on, and of those in front of it where they are several."""
    x, axis = s.value(), op.axis
    if axis == 1 and s.rank != 1:
        return s.call(torch.flatten, x, 1)
    if s.rank is None:
        raise s.refuse("of unknown rank")
    axis = axis % s.rank if axis < 0 else axis
    if axis == 0:
        return s.call(torch.reshape, x, (1, -1))
    if axis == s.rank:
        return s.call(torch.reshape, x, (-1, 1))
    return s.call(torch.flatten, s.call(torch.flatten, x, axis), 0, axis - 1)


@spells(ir.Transpose)
def transpose(s: Speller, op: ir.Transpose) -> fx.Node:
    """``torch.permute``."""
    return s.call(torch.permute, s.value(), op.perm)


@spells(ir.Squeeze)
def squeeze(s: Speller, op: ir.Squeeze) -> fx.Node:
    """``torch.squeeze``."""
    return s.call(torch.squeeze, s.value(), op.axes)


@spells(ir.Unsqueeze)
def unsqueeze(s: Speller, op: ir.Unsqueeze) -> fx.Node:
    """``torch.unsqueeze``, one axis after another."""
    made, rank = s.value(), s.rank
    if rank is None and min(op.axes) < 0:
        raise s.refuse("counted from the last axis needs the rank and")
    for axis in sorted(a % (rank + len(op.axes)) if rank is not None else a for a in op.axes):
        made = s.call(torch.unsqueeze, made, axis)
    return made

"""How ops that pick or repeat elements along axes are written in torch."""

from __future__ import annotations

import operator

import torch
from torch import fx

from .... import ir
from ....ir import DType
from ..speller import Speller, spells


@spells(ir.Gather)
def gather(s: Speller, op: ir.Gather) -> fx.Node:
    """``x[:, indices]``."""
    data, indices = s.values()
    if s.node.required(1).type.dtype not in (None, DType.I32, DType.I64):
        # torch takes bytes for a mask.
        indices = s.call("to", indices, torch.int64)
    whole = (slice(None),) * s.axis(op.axis)
    return s.call(operator.getitem, data, (*whole, indices) if whole else indices)


@spells(ir.Expand)
def expand(s: Speller, op: ir.Expand) -> fx.Node:
    """``Tensor.expand``, which is given the open sizes of the second input."""
    rank = s.rank
    if rank is None:
        raise s.refuse("of unknown rank")
    new = max(len(op.shape) - rank, 0)
    wide = (1,) * (rank + new - len(op.shape)) + op.shape
    first, *second = s.values()
    like = iter([s.call("size", second[0], axis) for axis in op.like])
    # The sizes of new axes in front must be given even if they are 1.
    sizes = [
        next(like) if d is None else d if a < new or d != 1 else -1 for a, d in enumerate(wide)
    ]
    return s.call("expand", first, *sizes)

"""How ops that find, pick or repeat elements along axes are written in torch."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
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


@spells(ir.ArgReduce, kinds=("max", "min"))
def arg_reduce(s: Speller, op: ir.ArgReduce) -> fx.Node:
    """``torch.argmax`` or ``torch.argmin``; for the last of several places, counted from the end."""
    function = torch.argmax if op.kind == "max" else torch.argmin
    x = s.value()
    if not op.last:
        return s.call(function, x, op.axis, op.keepdims)
    place = s.call(function, s.call(torch.flip, x, (op.axis,)), op.axis, op.keepdims)
    return s.call(operator.sub, s.call(operator.sub, s.call("size", x, op.axis), 1), place)


@spells(ir.CumSum)
def cumulative_sum(s: Speller, op: ir.CumSum) -> fx.Node:
    """``torch.cumsum`` between flips for sums from the end, of elements moved by one place for exclusive sums."""
    x, rest = s.value(), dict[str, Any]()
    if s.dtype is not None and s.dtype.is_int:
        rest["dtype"] = s.dtype_of(s.dtype)  # torch would compute in int64.
    if op.reverse:
        x = s.call(torch.flip, x, (op.axis,))
    if op.exclusive:
        if s.rank is None:
            raise s.refuse("without the element itself, of unknown rank,")
        behind = s.rank - 1 - op.axis % s.rank
        x = s.call(F.pad, x, [0, 0] * behind + [1, -1])
    made = s.call(torch.cumsum, x, op.axis, **rest)
    return s.call(torch.flip, made, (op.axis,)) if op.reverse else made

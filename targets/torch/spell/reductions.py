"""How reductions over axes, places of extrema and running sums are written in torch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .... import ir
from ..speller import Speller, spells

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin,
    "l1": torch.linalg.vector_norm, "l2": torch.linalg.vector_norm, "prod": torch.prod,
}  # fmt: skip


@spells(ir.Reduce, kinds=_FUNCTIONS, note="of integers only sum, prod, max and min")
def reduce(s: Speller, op: ir.Reduce) -> fx.Node:
    """The function of the reduction; ``torch.prod`` one axis after another."""
    function, x, rest = _FUNCTIONS[op.kind], s.value(), {}
    if op.kind in ("max", "min") and any(s.node.required(0).type.dim(a) == 0 for a in op.axes):
        raise s.refuse(f"{op.kind} of no numbers")
    if s.dtype is not None and not s.dtype.is_float:
        if op.kind not in ("sum", "prod", "max", "min"):
            raise s.refuse(f"{op.kind} of {s.dtype.value}")
        if op.kind in ("sum", "prod"):
            rest["dtype"] = s.dtype_of(s.dtype)  # torch would compute in int64.
    if op.kind in ("l1", "l2"):
        return s.call(function, x, int(op.kind[1]), op.axes, op.keepdims)
    if op.kind != "prod":
        return s.call(function, x, op.axes, op.keepdims, **rest)
    for axis in sorted((s.axis(a) for a in op.axes), reverse=True):
        x = s.call(function, x, axis, op.keepdims, **rest)
    return x


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

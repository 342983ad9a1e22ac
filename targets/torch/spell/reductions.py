"""How reductions over axes are written in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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

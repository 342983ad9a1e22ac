"""How comparisons, logic and choices are written in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .... import ir
from ..speller import Speller, spells

_COMPARISONS: dict[str, Callable[..., Any]] = {
    "equal": torch.eq, "not_equal": torch.ne, "less": torch.lt, "less_equal": torch.le,
    "greater": torch.gt, "greater_equal": torch.ge,
}  # fmt: skip


@spells(ir.Compare, kinds=_COMPARISONS)
def compare(s: Speller, op: ir.Compare) -> fx.Node:
    """The function of the comparison."""
    return s.call(_COMPARISONS[op.kind], *s.values())


_LOGIC: dict[str, Callable[..., Any]] = {
    "and": torch.logical_and, "or": torch.logical_or, "xor": torch.logical_xor,
}  # fmt: skip


@spells(ir.Logical, kinds=_LOGIC)
def logical(s: Speller, op: ir.Logical) -> fx.Node:
    """The function of the operation."""
    return s.call(_LOGIC[op.kind], *s.values())


@spells(ir.Where)
def where(s: Speller, op: ir.Where) -> fx.Node:
    """``torch.where``."""
    return s.call(torch.where, *s.values())

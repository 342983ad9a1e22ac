"""How padding is written in torch."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx

from .... import ir
from ..speller import Speller, spells
from .convolutions import amounts

_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
"""The modes by torch's names."""


@spells(ir.Pad, note="modes other than constant: axes of known rank")
def pad(s: Speller, op: ir.Pad) -> fx.Node:
    """``F.pad``; of axes that it does not take in other modes than constant, one after another as the last one."""
    rank = len(op.pads) // 2
    begins, ends = op.pads[:rank], op.pads[rank:]
    if op.mode == "constant":
        return s.call(F.pad, s.value(), amounts(begins, ends), "constant", op.value)
    if op.mode not in _MODES:
        raise s.refuse(f"in mode {op.mode}")
    outer = _outer(begins, ends, op.mode)
    if outer is not None and min(op.pads) >= 0:
        given = amounts(begins[outer:], ends[outer:])
        return s.call(F.pad, s.value(), given, _MODES[op.mode])
    return _axis_by_axis(s, begins, ends, _MODES[op.mode])


def _axis_by_axis(s: Speller, begins: tuple[int, ...], ends: tuple[int, ...], mode: str) -> fx.Node:
    """Each axis padded as the only one of rows, and cropped where its amounts are below zero."""
    made, rank = s.value(), len(begins)
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin > 0 or end > 0:
            rows = s.call(torch.transpose, made, axis, rank - 1)
            sizes = [s.call("size", rows, i) for i in range(rank - 1)]
            flat = s.call(torch.reshape, rows, (1, -1, s.call("size", rows, rank - 1)))
            flat = s.call(F.pad, flat, [max(begin, 0), max(end, 0)], mode)
            rows = s.call(torch.reshape, flat, (*sizes, -1))
            made = s.call(torch.transpose, rows, axis, rank - 1)
        if begin < 0 or end < 0:
            part = slice(-begin if begin < 0 else None, end if end < 0 else None)
            made = s.call(operator.getitem, made, (*[slice(None)] * axis, part))
    return made


def _outer(begins: tuple[int, ...], ends: tuple[int, ...], mode: str) -> int | None:
    """How many axes in front torch leaves out: two, or one, of those that are not padded; ``None`` if it takes neither."""
    rank = len(begins)
    for outer in (2,) if mode == "wrap" else (2, 1):
        if 1 <= rank - outer <= 3 and not any((*begins[:outer], *ends[:outer])):
            return outer
    return None

"""How padding is written in torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx

from .... import ir
from ..speller import Speller, spells
from .convolutions import amounts

_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
"""The modes by torch's names."""


@spells(ir.Pad, note="modes other than constant: the last axes of an image, nothing cropped")
def pad(s: Speller, op: ir.Pad) -> fx.Node:
    """``F.pad``."""
    rank = len(op.pads) // 2
    begins, ends = op.pads[:rank], op.pads[rank:]
    if op.mode == "constant":
        return s.call(F.pad, s.value(), amounts(begins, ends), "constant", op.value)
    outer = _outer(begins, ends, op.mode)
    if op.mode not in _MODES or outer is None or min(op.pads) < 0:
        raise s.refuse(f"of these axes in mode {op.mode}")
    given = amounts(begins[outer:], ends[outer:])
    return s.call(F.pad, s.value(), given, _MODES[op.mode])


def _outer(begins: tuple[int, ...], ends: tuple[int, ...], mode: str) -> int | None:
    """How many axes in front torch leaves out: two, or one, of those that are not padded; ``None`` if it takes neither."""
    rank = len(begins)
    for outer in (2,) if mode == "wrap" else (2, 1):
        if 1 <= rank - outer <= 3 and not any((*begins[:outer], *ends[:outer])):
            return outer
    return None

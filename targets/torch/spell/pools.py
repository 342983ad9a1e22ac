"""How pools are written in torch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .... import ir
from ..speller import Speller, spells
from .convolutions import amounts

_MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE: dict[int, Any] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


@spells(ir.MaxPool, note="1 to 3 spatial axes; uneven pads without ceil_mode")
def max_pool(s: Speller, op: ir.MaxPool) -> fx.Node:
    """``F.max_pool2d`` and its kin; behind a padding with minus infinity where torch does not take the pads."""
    x, n, pads = s.value(), _spatial(s, op), op.pads
    if not _takes_pads(op):
        if op.ceil_mode or s.dtype is None or not s.dtype.is_float:
            raise s.refuse("with uneven or large pads and ceil_mode, or of integers,")
        x = s.call(F.pad, x, amounts(pads[:n], pads[n:]), "constant", -math.inf)
        pads = (0,) * (2 * n)
    return s.call(_MAX[n], x, op.kernel, op.strides, pads[:n], op.dilations, op.ceil_mode)


@spells(
    ir.AveragePool,
    note="1 to 3 spatial axes, no dilations; uneven pads where they are counted and without ceil_mode",
)
def average_pool(s: Speller, op: ir.AveragePool) -> fx.Node:
    """``F.avg_pool2d`` and its kin; behind a padding with zeros where torch does not take the pads."""
    x, n, pads = s.value(), _spatial(s, op), op.pads
    if any(d != 1 for d in op.dilations):
        raise s.refuse("with dilations")
    if not _takes_pads(op):
        if op.ceil_mode or not op.count_include_pad:
            raise s.refuse("with uneven or large pads that are not counted, or ceil_mode,")
        x = s.call(F.pad, x, amounts(pads[:n], pads[n:]))
        pads = (0,) * (2 * n)
    rest = (op.ceil_mode, op.count_include_pad)
    return s.call(_AVERAGE[n], x, op.kernel, op.strides, pads[:n], *rest)


@spells(ir.GlobalAveragePool)
def global_average_pool(s: Speller, op: ir.GlobalAveragePool) -> fx.Node:
    """``torch.mean`` over the spatial axes; an adaptive pool where the rank is not known but their number is."""
    if s.rank is not None:
        return s.call(torch.mean, s.value(), tuple(range(2, s.rank)), True)
    if op.spatial not in _ADAPTIVE:
        raise ir.ModelError(
            f"{s.node.name}: how many axes a global pool averages is not known: give example_inputs"
        )
    return s.call(_ADAPTIVE[op.spatial], s.value(), 1)


def _spatial(s: Speller, op: ir.MaxPool | ir.AveragePool) -> int:
    if op.spatial_rank not in _MAX:
        raise s.refuse(f"over {op.spatial_rank} axes")
    return op.spatial_rank


def _takes_pads(op: ir.MaxPool | ir.AveragePool) -> bool:
    """Whether torch takes the pads: equal on both sides, and at most half of the window."""
    n = op.spatial_rank
    windows = [(k - 1) * d + 1 for k, d in zip(op.kernel, op.dilations, strict=True)]
    half = all(p <= w // 2 for p, w in zip(op.pads[:n], windows, strict=True))
    return op.pads[:n] == op.pads[n:] and half

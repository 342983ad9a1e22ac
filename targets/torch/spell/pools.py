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

# Those of torch itself: the functions of torch.nn.functional choose between two others, and cannot be pickled.
_MAX: dict[int, Any] = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}
_CONVS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
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


@spells(ir.AveragePool, note="1 to 3 spatial axes; uneven pads and dilations without ceil_mode")
def average_pool(s: Speller, op: ir.AveragePool) -> fx.Node:
    """``F.avg_pool2d`` and its kin; behind a padding with zeros where torch does not take the pads, as a convolution if it is dilated."""
    n, pads = _spatial(s, op), op.pads
    dilated = any(d != 1 for d in op.dilations)
    if _takes_pads(op) and not dilated:
        rest = (op.ceil_mode, op.count_include_pad)
        return s.call(_AVERAGE[n], s.value(), op.kernel, op.strides, pads[:n], *rest)
    if op.ceil_mode:
        raise s.refuse("with uneven or large pads, or dilations, and ceil_mode")
    pool = _dilated if dilated else _plain
    given, x = amounts(pads[:n], pads[n:]), s.value()
    made = pool(s, op, s.call(F.pad, x, given) if any(pads) else x)
    if op.count_include_pad or not any(pads):
        return made
    # The share of each window that is no padding: the pool of ones.
    ones = s.call(F.pad, s.call(torch.ones_like, x), given)
    return s.call(torch.div, made, pool(s, op, ones))


def _plain(s: Speller, op: ir.AveragePool, x: fx.Node) -> fx.Node:
    return s.call(_AVERAGE[op.spatial_rank], x, op.kernel, op.strides)


def _dilated(s: Speller, op: ir.AveragePool, x: fx.Node) -> fx.Node:
    """A convolution of each channel by itself with equal numbers."""
    sizes = tuple(s.call("size", x, axis) for axis in range(2))
    rows = s.call(torch.unsqueeze, s.call(torch.flatten, x, 0, 1), 1)
    kernel = s.call("new_full", rows, (1, 1, *op.kernel), 1 / math.prod(op.kernel))
    made = s.call(_CONVS[op.spatial_rank], rows, kernel, None, op.strides, 0, op.dilations)
    return s.call("unflatten", s.call(torch.squeeze, made, 1), 0, sizes)


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

"""How convolutions are written in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from .... import ir
from ..speller import Speller, spells

_CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_CALLS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_TRANSPOSED_CALLS: dict[int, Any] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


@spells(ir.Conv, note="1 to 3 spatial axes")
def conv(s: Speller, op: ir.Conv) -> fx.Node:
    """``nn.Conv2d`` and its kin, or the function of a computed weight; behind ``F.pad`` where pads are uneven."""
    x, n, pads, given = s.value(), _spatial(s, op), op.pads, s.weights()
    if pads[:n] != pads[n:]:
        x = s.call(F.pad, x, amounts(pads[:n], pads[n:]))
        pads = (0,) * (2 * n)
    if given is None:
        rest = (op.strides, pads[:n], op.dilations, op.groups)
        return s.call(CONV_CALLS[n], x, s.value(1), s.optional(2), *rest)
    weight, bias = given
    made = _CONVS[n](
        weight.shape[1] * op.groups,
        weight.shape[0],
        weight.shape[2:],
        op.strides,
        pads[:n],
        op.dilations,
        op.groups,
        bias is not None,
        **s.meta(weight.dtype),
    )
    return s.module(s.filled(made, weight, bias), x)


@spells(ir.ConvTranspose, note="1 to 3 spatial axes")
def conv_transpose(s: Speller, op: ir.ConvTranspose) -> fx.Node:
    """``nn.ConvTranspose2d`` and its kin, or the function of a computed weight; uneven pads are cropped behind it."""
    x, n, given = s.value(), _spatial(s, op), s.weights()
    begins, ends = op.pads[:n], op.pads[n:]
    pads = tuple(map(min, begins, ends))
    extra = op.output_padding or (0,) * n
    if given is None:
        rest = (op.strides, pads, extra, op.groups, op.dilations)
        y = s.call(_TRANSPOSED_CALLS[n], x, s.value(1), s.optional(2), *rest)
    else:
        weight, bias = given
        made = _TRANSPOSED[n](
            weight.shape[0],
            weight.shape[1] * op.groups,
            weight.shape[2:],
            op.strides,
            pads,
            extra,
            op.groups,
            bias is not None,
            op.dilations,
            **s.meta(weight.dtype),
        )
        y = s.module(s.filled(made, weight, bias), x)
    if begins == ends:
        return y
    crops = [[p - q for p, q in zip(pads, side, strict=True)] for side in (begins, ends)]
    return s.call(F.pad, y, amounts(*crops))


def amounts(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The argument of ``F.pad`` for amounts at the begin and the end of the last axes: torch counts from the last one."""
    return [p for pair in reversed(list(zip(begins, ends, strict=True))) for p in pair]


def _spatial(s: Speller, op: ir.Conv | ir.ConvTranspose) -> int:
    if op.spatial_rank not in _CONVS:
        raise s.refuse(f"over {op.spatial_rank} axes")
    return op.spatial_rank

"""Reshapes, slices and expands in canonical form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ... import ir
from ...ir import Op, TensorType, Value
from ...ir.analysis.sizes import Place, SizeRoots
from .base import Lowered


def reshaping(x: TensorType, target: tuple[int | None, ...]) -> Op:
    """A Reshape; or a Flatten if it keeps the first axis and joins all others.

    If the size of the first axis does not change, it is copied instead of stated, so that the batch size stays free.
    """
    rest = [d for d in (x.shape or ())[1:] if isinstance(d, int)]
    known = x.rank is not None and x.rank > 1 and len(rest) == x.rank - 1 and 0 not in rest
    # If all other sizes are unchanged, -1 is the size of the first axis.
    stays = target[:1] == (-1,) and known and None not in target
    if stays and math.prod(d or 0 for d in target[1:]) == math.prod(rest):
        target = (None, *target[1:])
    if known and len(rest) > 1 and len(target) == 2 and x.dim(0) != 0:
        batch, joined = target
        if batch in (x.dim(0), None) and joined in (math.prod(rest), -1):
            return ir.Flatten(1)
    if target and target[0] is not None and target[0] > 0 and target[0] == x.dim(0):
        target = (None, *target[1:])
    return ir.Reshape(target)


def slicing(
    x: TensorType,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int],
) -> Op:
    """A Slice of only the axes that it shortens; an Identity if it keeps everything.

    Up to torch 2.8, torch.export puts a slice that keeps everything in front of ``x[:, 1]``.
    """
    parts = [
        (start, end, axis, step)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True)
        if not (start == 0 and step == 1 and end >= _size(x, axis))
    ]
    if not parts:
        return ir.Identity()
    begin, end, cut, step = zip(*parts, strict=True)
    return ir.Slice(begin, end, cut, step)


def _size(x: TensorType, axis: int) -> int:
    """The size of an axis; if it is unknown, the smallest end that is certainly not inside it."""
    size = x.dim(axis)
    return size if isinstance(size, int) else 2**31 - 1


def expanding(
    x: Value | None, sizes: Sequence[int | Place | None], roots: SizeRoots
) -> Lowered | None:
    """An Expand that states only the axes that grow; an Identity if none does.

    Args:
        x: The value to expand.
        sizes: The new sizes: numbers, or the first axes that are known to have these sizes.
        roots: The analysis that knows which sizes are equal.

    Returns:
        The op and its inputs; ``None`` if a size is unknown, or if sizes come from several values.
    """
    if x is None:
        return None
    first = len(sizes) - x.type.rank if x.type.rank is not None else len(sizes)
    shape: list[int | None] = []
    like: list[int] = []
    second: Value | None = None
    for axis, size in enumerate(sizes):
        own = axis - first
        if isinstance(size, tuple) and own >= 0 and roots.root(x, own) == size:
            size = 1
        elif isinstance(size, tuple):
            value, place = size
            if value.data is not None:
                size = value.data.shape[place]
            elif second not in (None, value):
                return None
            else:
                second, size = value, None
                like.append(place)
        elif size is None:
            return None
        shape.append(1 if own >= 0 and size == x.type.dim(own) and size is not None else size)
    if first <= 0 and all(d == 1 for d in shape):
        return ir.Identity(), [x]
    return ir.Expand(tuple(shape), tuple(like)), [x] if second is None else [x, second]


MOST_COPIES = 16
"""The largest number of copies of a tensor that is written as a Concat."""


def repeated(x: Any, axis: int, times: int) -> tuple[Op, list[Any]]:
    """A Concat of copies of a value, or of a step's result, along an axis."""
    return ir.Concat(axis), [x] * times

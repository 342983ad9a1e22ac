"""What both hosts share: arithmetic with constants, reshapes, slices, expands and resizes in their one canonical form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ir
from ..ir import DerivedTensor, Op, SplatTensor, Tensor, TensorType, Value
from ..ir.analysis.sizes import Place, SizeRoots
from ..ir.tensor import reshaped

Operand = Value | Tensor | None
"""What an op reads: a value, a tensor that a rule derived, or nothing."""

Lowered = tuple[ir.Op, Sequence[Operand]]
"""An op and its operands: what a rule makes of a host's node."""


def scaled(kind: str, a: Any, b: Any) -> Lowered | None:
    """``a kind b`` as a Scale, where one of them is a constant that scales the other; ``None`` where none is.

    Args:
        kind: ``"Add"``, ``"Sub"``, ``"Mul"`` or ``"Div"``.
        a: A value, or a constant that is none of the graph's yet; anything else is no operand of a Scale.
        b: Likewise.
    """
    for x, c, swapped in ((a, b, False), (b, a, True)):
        data = c.data if isinstance(c, Value) else c
        if not isinstance(x, Value) or x.data is not None or not isinstance(data, Tensor):
            continue
        place = scale_place(x.type, data)
        if place is None or (kind == "Div" and (swapped or not _invertible(data))):
            continue
        axis, size = place
        return ir.Scale(axis), [x, *_scale_operands(kind, swapped, data, size)]
    return None


def scale_place(x: TensorType, constant: Tensor) -> tuple[int, int] | None:
    """Where a constant operand scales ``x``: (axis, 1 or the size of that axis); ``None`` if it does not."""
    if not x.rank or not constant.dtype.is_wide_float or x.dtype is not constant.dtype:
        return None
    if len(constant.shape) > x.rank:
        return None
    wide = [i for i, d in enumerate(constant.shape) if d != 1]
    if not wide:
        # A scalar has no axis of its own: the channel axis, by convention.
        return (1 if x.rank > 1 else 0), 1
    if len(wide) > 1:
        return None
    axis = x.rank - len(constant.shape) + wide[0]
    size = constant.shape[wide[0]]
    return (axis, size) if x.dim(axis) == size else None


def _invertible(data: Tensor) -> bool:
    """Whether c and 1/c keep their digits in the storage type: neither overflows nor goes subnormal."""
    if data.size > 1 << 16:
        return False
    size, low, high = np.abs(data.float64()), data.dtype.smallest_normal, data.dtype.largest
    return bool(np.all((size >= low) & (size > 1.0 / high) & (size <= high) & (size < 1.0 / low)))


def _scale_operands(kind: str, swapped: bool, data: Tensor, size: int) -> list[Operand]:
    """The (scale, shift) of ``x kind data``, or of ``data kind x`` when swapped."""
    shape, dtype = (size,), data.dtype
    flat = reshaped(data, shape)
    if kind == "Mul":
        return [flat]
    if kind == "Add":
        return [None, flat]
    if kind == "Div":
        return [DerivedTensor(shape, dtype, lambda: 1.0 / flat.float64(), sources=(flat,))]
    if swapped:
        return [SplatTensor(shape, dtype, -1.0), flat]
    return [None, DerivedTensor(shape, dtype, lambda: -flat.float64(), sources=(flat,))]


def reshaping(x: TensorType, target: tuple[int | None, ...]) -> Op:
    """A reshape, which is a Flatten where it keeps the first axis and joins the rest.

    A first axis that stays as it is is copied, so that it says nothing about the size of batches.
    """
    rest = [d for d in (x.shape or ())[1:] if isinstance(d, int)]
    known = x.rank is not None and x.rank > 1 and len(rest) == x.rank - 1 and 0 not in rest
    # With all others as they are, what is left is the first axis.
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
    """A Slice that names only the axes that it cuts; an Identity where it takes everything.

    torch.export writes ``x[:, 1]`` with a slice of everything in front of it, up to version 2.8.
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
    """The size of an axis; where it is not known, the smallest end that is certainly behind it."""
    size = x.dim(axis)
    return size if isinstance(size, int) else 2**31 - 1


def expanding(
    x: Value | None, sizes: Sequence[int | Place | None], roots: SizeRoots
) -> Lowered | None:
    """An Expand that names only the axes that grow; an Identity where none does.

    Args:
        x: What is expanded.
        sizes: The sizes: numbers, or the earliest axes that have them.
        roots: What is known of the sizes of values.

    Returns:
        The op and its inputs; ``None`` where a size is not known, or where sizes come from several values.
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


OF_ANY_NUMBER = ("abs", "neg", "sign")
"""The functions that the IR knows of integers too."""


def resizing(
    x: TensorType,
    mode: str,
    coordinates: str,
    scales: Sequence[float],
    sizes: Sequence[int | None],
    **more: Any,
) -> ir.Resize:
    """A Resize in the form that all hosts get.

    Whole factors are said as scales, other sizes that are known as sizes, unless a scale does not lead to a
    whole number of positions: then it decides the coordinates.

    Args:
        x: The type of the input.
        mode: The mode.
        coordinates: How places are found.
        scales: One for each axis, or empty.
        sizes: One for each axis, or empty.
        more: Further fields.
    """
    dims = [x.dim(a) for a in range(x.rank or 0)]
    if dims and len(dims) == len(scales or sizes):
        scales, sizes = _form(dims, scales, sizes)
    op = ir.Resize(mode, coordinates, tuple(scales), tuple(sizes), **more)
    if coordinates == "pytorch_half_pixel":
        kept, out = op.kept([x]), op.infer([x])[0]
        # The two differ in results of one position alone.
        if all(out.dim(a) not in (None, 1) for a in range(out.rank or 0) if a not in kept):
            return ir.Resize(mode, "half_pixel", tuple(scales), tuple(sizes), **more)
    return op


def _form(
    dims: Sequence[int | None], scales: Sequence[float], sizes: Sequence[int | None]
) -> tuple[Sequence[float], Sequence[int | None]]:
    if scales:
        if all(float(s).is_integer() for s in scales):
            return scales, ()
        goal: list[int | None] = []
        for d, scale in zip(dims, scales, strict=True):
            if scale != 1.0 and (d is None or not float(d * scale).is_integer()):
                return scales, ()
            goal.append(None if scale == 1.0 or d is None else int(d * scale))
        return (), goal
    factors: list[float] = []
    for d, size in zip(dims, sizes, strict=True):
        if size is not None and (d is None or size % d or not size):
            break
        factors.append(1.0 if size is None or d is None else size / d)
    else:
        return factors, ()
    return (), [None if s == d else s for d, s in zip(dims, sizes, strict=True)]

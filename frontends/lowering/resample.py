"""Resizes in canonical form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import ir
from ...ir import TensorType


def resizing(
    x: TensorType,
    mode: str,
    coordinates: str,
    scales: Sequence[float],
    sizes: Sequence[int | None],
    **more: Any,
) -> ir.Resize:
    """A Resize in canonical form.

    Integer factors are stored as scales, other known sizes as sizes. Scales that do not give an integer size are kept,
    because they determine the coordinates.

    Args:
        x: The type of the input.
        mode: The mode.
        coordinates: The coordinate mode.
        scales: One for each axis, or empty.
        sizes: One for each axis, or empty.
        more: Further fields of the op.
    """
    dims = [x.dim(a) for a in range(x.rank or 0)]
    if dims and len(dims) == len(scales or sizes):
        scales, sizes = _form(dims, scales, sizes)
    op = ir.Resize(mode, coordinates, tuple(scales), tuple(sizes), **more)
    if coordinates == "pytorch_half_pixel":
        kept, out = op.kept([x]), op.infer([x])[0]
        # Both modes are equal unless an output axis has size 1.
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

"""Arithmetic with constants, read as Scale; and elementwise functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import ir
from ...ir import DerivedTensor, DType, SplatTensor, Tensor, TensorType, Value
from ...ir.tensor import reshaped
from .base import Lowered, Operand

_OF_INTEGERS = ("abs", "neg", "sign")
"""The kinds of ``Unary`` that also accept integers."""


def function(kind: str, x: Value) -> Lowered | None:
    """An elementwise function; ``None`` for element types that the IR's function does not accept."""
    dtype = x.type.dtype
    if dtype is None or (kind == "not") != (dtype is DType.BOOL):
        return None
    plain = kind == "not" or dtype.is_wide_float or (dtype.is_int and kind in _OF_INTEGERS)
    return (ir.Unary(kind), [x]) if plain else None


def scaled(kind: str, a: Any, b: Any) -> Lowered | None:
    """``a kind b`` as a Scale, if one of them is a constant scalar or vector along one axis; otherwise ``None``.

    Args:
        kind: ``"Add"``, ``"Sub"``, ``"Mul"`` or ``"Div"``.
        a: A value, or a constant that is not in the graph yet; anything else cannot be an operand of a Scale.
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
    """The axis along which a constant scales ``x``, and the constant's size (1 or that of the axis); ``None`` if it is no scale."""
    if not x.rank or not constant.dtype.is_wide_float or x.dtype is not constant.dtype:
        return None
    if len(constant.shape) > x.rank:
        return None
    wide = [i for i, d in enumerate(constant.shape) if d != 1]
    if not wide:
        # A scalar scales along any axis: the channel axis is the convention.
        return (1 if x.rank > 1 else 0), 1
    if len(wide) > 1:
        return None
    axis = x.rank - len(constant.shape) + wide[0]
    size = constant.shape[wide[0]]
    return (axis, size) if x.dim(axis) == size else None


def _invertible(data: Tensor) -> bool:
    """Whether c and 1/c are normal numbers of the storage type: no overflow, no subnormal."""
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

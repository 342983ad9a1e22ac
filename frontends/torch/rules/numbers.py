"""Python numbers beside tensors, as torch computes with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import ArrayTensor, DerivedTensor, DType, SplatTensor, Tensor, Value
from ...lowering import Operand


def number(found: Any, dtype: DType | None) -> Tensor | None:
    """A Python number as a constant of an element type; ``None`` where that would change it."""
    if dtype is None or not isinstance(found, (bool, int, float)):
        return None
    kind = "bool" if isinstance(found, bool) else "int" if isinstance(found, int) else "float"
    fits = dtype is DType.BOOL if kind == "bool" else dtype.is_wide_float or dtype.is_int
    if not fits or (kind == "float" and dtype.is_int):
        return None
    if dtype.is_float and not _representable(float(found), dtype):
        return None
    made = np.array(found).astype(dtype.numpy)
    return ArrayTensor(made) if kind != "int" or int(made) == found else None


def factor(found: int | float, dtype: DType) -> Tensor | None:
    """A Python number as torch computes with it, which is in float32 where the tensor has 16 bits.

    Returns:
        A constant without axes; ``None`` where the element type cannot hold the number.
    """
    if not dtype.is_wide_float or not _representable(float(found), dtype):
        return None
    if dtype in (DType.F32, DType.F64):
        return SplatTensor((), dtype, float(found))
    return DerivedTensor((), dtype, lambda: np.array(np.float32(found), np.float64), sources=())


def _representable(found: float, dtype: DType) -> bool:
    """Whether a number neither overflows nor has so few digits that torch may make zero of it."""
    if found == 0 or not math.isfinite(found):
        return True
    return dtype.smallest_normal <= abs(found) <= dtype.largest


def operands(found: Sequence[Any]) -> list[Operand] | None:
    """Tensors of one element type, and numbers beside them; ``None`` where torch would promote types."""
    types = {v.type.dtype for v in found if isinstance(v, Value)}
    if len(types) != 1 or None in types:
        return None
    (dtype,) = types
    made = [v if isinstance(v, Value) else number(v, dtype) for v in found]
    return None if None in made else list(made)

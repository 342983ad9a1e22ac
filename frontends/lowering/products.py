"""Matrix products: with a constant matrix on the right they are dense layers."""

from __future__ import annotations

from ... import ir
from ...ir import Value
from ...ir.tensor import transposed
from .base import Lowered


def matmul(a: Value, b: Value) -> Lowered | None:
    """``a @ b`` by NumPy's rule."""
    weight = b.data
    if weight is not None and len(weight.shape) == 2 and weight.dtype.is_wide_float:
        if a.type.rank == 0:
            return None
        if a.type.rank is not None:
            return ir.Linear(), [a, transposed(weight)]
    return ir.MatMul(), [a, b]

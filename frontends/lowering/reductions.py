"""Reductions that are several ops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ... import ir
from ...ir import Value
from .base import Builder, Steps


def log_sum_exp(x: Value, axes: Sequence[int], keepdims: bool) -> Steps | None:
    """``log(sum(exp(x)))`` of floats, with the largest number taken out of the sum, so that no power overflows.

    What is taken out is finite: an infinite number would turn the others, or itself, into NaN.
    """
    dtype = x.type.dtype
    if dtype is None or dtype.value not in _LARGEST:
        return None
    made, axes, most = Builder(), tuple(sorted(axes)), _LARGEST[dtype.value]
    largest = made.add(ir.Reduce("max", axes, True), x)
    largest = made.add(ir.Activation("clip", (-most, most)), largest)
    powers = made.add(ir.Unary("exp"), made.add(ir.Sub(), x, largest))
    total = made.add(
        ir.Add(), made.add(ir.Unary("log"), made.add(ir.Reduce("sum", axes, True), powers)), largest
    )
    if not keepdims:
        made.add(ir.Squeeze(axes), total)
    return made.steps()


_LARGEST = {
    "f16": float(np.finfo(np.float16).max),
    "bf16": math.ldexp(255.0, 120),
    "f32": float(np.finfo(np.float32).max),
    "f64": float(np.finfo(np.float64).max),
}
"""The largest number of each type."""


__all__ = ["log_sum_exp"]

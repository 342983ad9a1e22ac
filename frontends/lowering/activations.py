"""Activations in canonical form: kind and parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ... import ir
from ...ir import SplatTensor, Tensor, Value
from .base import Builder, Lowered, Step, Steps

HARD_SIGMOID = (1 / 6, 0.5)
"""The parameters of torch's hard sigmoid; HardSwish contains the same function."""


def activation(kind: str, x: Value, params: Sequence[float] = ()) -> Lowered | None:
    """An activation of floats; hard sigmoid parameters that equal torch's in float32 are replaced by torch's exact ones."""
    if x.type.dtype is not None and not x.type.dtype.is_float:
        return None
    if kind == "hard_sigmoid" and _near(params, HARD_SIGMOID):
        params = HARD_SIGMOID
    return ir.Activation(kind, tuple(params)), [x]


def clip(x: Value, low: Any, high: Any) -> Lowered | None:
    """A clip between two numbers; ``None`` means no limit. A clip between 0 and 6 is a ReLU6."""
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    if not all(isinstance(e, (int, float)) and not math.isnan(e) for e in ends):
        return None
    if x.type.dtype is not None and not x.type.dtype.is_wide_float:
        return None
    if ends == (0, 6):
        return ir.Activation("relu6"), [x]
    return ir.Activation("clip", (float(ends[0]), float(ends[1]))), [x]


def gelu(x: Value, approximate: Any) -> Lowered | None:
    """GELU, or its approximation by tanh if ``approximate`` is ``"tanh"``."""
    return activation("gelu_tanh" if approximate == "tanh" else "gelu", x)


def softmax(kind: type[ir.Softmax] | type[ir.LogSoftmax], x: Value, axis: int) -> Lowered:
    """A softmax, or its logarithm; the axis becomes nonnegative if the rank is known."""
    rank = x.type.rank
    return kind(axis + rank if rank and axis < 0 else axis), [x]


def below(x: Value, threshold: float, value: float) -> Steps | None:
    """The input where it is above a threshold, and another number elsewhere."""
    if threshold is None or x.type.dtype is None or not x.type.dtype.is_wide_float:
        return None
    made, dtype = Builder(), x.type.dtype
    small = made.add(ir.Compare("less_equal"), x, number(threshold, dtype))
    made.add(ir.Where(), small, number(value, dtype), x)
    return made.steps()


def shrink(x: Value, ends: float, bias: float, nan_is_zero: bool = False) -> Steps | None:
    """ONNX's Shrink: zero between ``-ends`` and ``ends``; elsewhere, the input comes ``bias`` closer to zero.

    With a bias of zero it is a hard shrink, with one of ``ends`` a soft one.

    Args:
        x: The input.
        ends: Where the zeros end, at least 0.
        bias: What is taken away outside.
        nan_is_zero: Whether NaN becomes zero, as in ONNX, or stays, as in torch.
    """
    dtype = x.type.dtype
    if dtype is None or not dtype.is_wide_float or not 0 <= ends < math.inf:
        return None
    made = Builder()
    if bias == ends and not nan_is_zero:
        made.add(ir.Sub(), x, made.add(ir.Activation("clip", (-ends, ends)), x))
        return made.steps()
    kind = "greater" if nan_is_zero else "less_equal"
    found = made.add(ir.Compare(kind), made.add(ir.Unary("abs"), x), number(ends, dtype))
    rest: Value | Step = x
    if bias:
        own = made.add(ir.Mul(), made.add(ir.Unary("sign"), x), number(bias, dtype))
        rest = made.add(ir.Sub(), x, own)
    if nan_is_zero:
        made.add(ir.Where(), found, rest, number(0.0, dtype))
    else:
        made.add(ir.Where(), found, number(0.0, dtype), rest)
    return made.steps()


def number(value: float, dtype: ir.DType) -> Tensor:
    """A number as a constant without axes."""
    return SplatTensor((), dtype, value)


SHRINKS: list[tuple[type[ir.Op], str] | type[ir.Op]] = [
    (ir.Compare, "greater"), (ir.Unary, "abs"), (ir.Unary, "sign"), ir.Where, ir.Sub, ir.Mul,
]  # fmt: skip
"""The ops that :func:`shrink` makes of ONNX's."""


def _near(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(found, wanted, strict=True))

"""Functions of numbers, element by element: of one, two or more operands, with NumPy broadcasting."""

from __future__ import annotations

from dataclasses import dataclass

from ..types import DType, TensorType
from .base import InferenceError, InputTypes, Op, Tie, required, same_dtype, same_shape_ties
from .elementwise import _Binary, _Broadcast

UNARY = (
    "abs", "neg", "sign", "exp", "log", "sqrt", "reciprocal", "rsqrt", "erf", "floor", "ceil", "round",
    "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "not", "isnan",
    "isinf",
)  # fmt: skip
"""The kinds of ``Unary``.

``rsqrt`` is ``1 / sqrt(x)``; ``round`` goes to the nearest integer, halves to the even one; ``not`` is of
booleans.
"""

PREDICATES = ("not", "isnan", "isinf")
"""The kinds of ``Unary`` whose results are booleans."""


@dataclass(frozen=True)
class Unary(Op):
    """A function of one number, element by element (``kind`` is one of :data:`UNARY`)."""

    kind: str
    kinds = UNARY

    def __post_init__(self) -> None:
        if self.kind not in UNARY:
            raise ValueError(f"unknown function {self.kind!r}; known are {', '.join(UNARY)}")

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if (self.kind == "not") != (x.dtype is DType.BOOL) and x.dtype is not None:
            raise InferenceError(f"{self.kind} of {x}")
        return (TensorType(DType.BOOL, x.shape) if self.kind in PREDICATES else x,)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return same_shape_ties(required(inputs, 0).rank, (0, -1))


@dataclass(frozen=True)
class Pow(_Broadcast):
    """``base ** exponent``; the result has the element type of the base."""

    arity = (2, 2)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        return (TensorType(required(inputs, 0).dtype, self.shape(inputs)),)


@dataclass(frozen=True)
class _Extremum(_Broadcast):
    arity = (1, None)


@dataclass(frozen=True)
class Max(_Extremum):
    """The largest of one or more operands."""


@dataclass(frozen=True)
class Min(_Extremum):
    """The smallest of one or more operands."""


COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
"""The kinds of ``Compare``."""


@dataclass(frozen=True)
class Compare(_Broadcast):
    """A comparison, whose result is boolean (``kind`` is one of :data:`COMPARISONS`)."""

    kind: str
    arity = (2, 2)
    kinds = COMPARISONS

    def __post_init__(self) -> None:
        if self.kind not in COMPARISONS:
            raise ValueError(
                f"unknown comparison {self.kind!r}; known are {', '.join(COMPARISONS)}"
            )

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        same_dtype(self, *inputs)
        return (TensorType(DType.BOOL, self.shape(inputs)),)


REMAINDERS = ("floor", "trunc")
"""The kinds of ``Mod``: how the quotient is rounded.

``floor``, Python's ``%``, gives a remainder with the sign of the divisor; ``trunc``, C's ``fmod``, one with the sign of the dividend.
"""


@dataclass(frozen=True)
class Mod(_Binary):
    """The remainder of a division, ``(dividend, divisor)`` (``kind`` is one of :data:`REMAINDERS`)."""

    kind: str
    kinds = REMAINDERS

    def __post_init__(self) -> None:
        if self.kind not in REMAINDERS:
            raise ValueError(f"unknown remainder {self.kind!r}; known are {', '.join(REMAINDERS)}")


LOGIC = ("and", "or", "xor")
"""The kinds of ``Logical``."""


@dataclass(frozen=True)
class Logical(_Broadcast):
    """``and``, ``or`` and ``xor`` of booleans (``kind`` is one of :data:`LOGIC`)."""

    kind: str
    arity = (2, 2)
    kinds = LOGIC

    def __post_init__(self) -> None:
        if self.kind not in LOGIC:
            raise ValueError(f"unknown operation {self.kind!r}; known are {', '.join(LOGIC)}")

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        if same_dtype(self, *inputs) not in (None, DType.BOOL):
            raise InferenceError(f"{self.kind} of {required(inputs, 0)}, which is not boolean")
        return (TensorType(DType.BOOL, self.shape(inputs)),)


@dataclass(frozen=True)
class Where(_Broadcast):
    """``(condition, x, y)``: x where the condition holds, y elsewhere."""

    arity = (3, 3)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        condition, x, y = (required(inputs, i) for i in range(3))
        if condition.dtype not in (None, DType.BOOL):
            raise InferenceError(f"Where with a condition {condition}")
        return (TensorType(same_dtype(self, x, y), self.shape(inputs)),)


__all__ = [
    "COMPARISONS",
    "LOGIC",
    "PREDICATES",
    "REMAINDERS",
    "UNARY",
    "Compare",
    "Logical",
    "Max",
    "Min",
    "Mod",
    "Pow",
    "Unary",
    "Where",
]

"""torch's arithmetic, functions of one number, comparisons and choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .... import ir
from ....ir import DType, Op, Value
from ...lowering import Lowered
from ...lowering.arithmetic import function, scaled
from ..call import Call
from ..registry import reads
from .numbers import factor, operands


def _arithmetic(op: type[Op], *names: str) -> Callable[[Call], Lowered | None]:
    """Register ``x + y`` or its kin; constants per channel, and numbers, make a Scale."""
    kind = op.__name__

    @reads(*names, makes=[op, ir.Scale], note="operands of one type, alpha of 1")
    def rule(call: Call) -> Lowered | None:
        a, b = call.get(0, "input"), call.get(1, "other")
        alpha = call.get(2, "alpha", 1)
        if len(call.args) > 3 or alpha != 1 or call.kwargs.get("rounding_mode") is not None:
            return None
        dtype = next((v.type.dtype for v in (a, b) if isinstance(v, Value)), None)
        if dtype is None:
            return None
        a, b = (_number_or_value(v, dtype) for v in (a, b))
        if a is None or b is None:
            return None
        found = scaled(kind, a, b)
        if found is not None:
            return found
        if kind == "Div" and not dtype.is_wide_float:
            return None  # torch's true division makes floats of integers.
        if kind == "Div" and not isinstance(a, Value):
            # What is divided is a number: no scale.
            return function("reciprocal", b) if a.float64() == 1 else (ir.Div(), [a, b])
        if not isinstance(a, Value) or (kind != "Div" and not isinstance(b, Value)):
            return None
        return (op(), [a, b]) if a.type.dtype is b.type.dtype else None

    return rule


def _number_or_value(found: Any, dtype: DType) -> Any:
    if isinstance(found, Value):
        return found
    plain = isinstance(found, (int, float)) and not isinstance(found, bool)
    return factor(found, dtype) if plain else None


_arithmetic(ir.Add, "add")
_arithmetic(ir.Mul, "mul", "multiply")
_arithmetic(ir.Div, "div", "divide", "truediv", "true_divide")
_sub = _arithmetic(ir.Sub, "sub", "subtract")


@reads("rsub", makes=[ir.Sub, ir.Scale], note="operands of one type, alpha of 1")
def _rsub(call: Call) -> Lowered | None:
    return _sub(call.again(call.get(1, "other"), call.get(0, "input"), call.get(2, "alpha", 1)))


def _function(kind: str, *names: str) -> None:
    @reads(*names, makes=(ir.Unary, kind))
    def rule(call: Call) -> Lowered | None:
        plain = len(call.args) + len(call.kwargs) == 1
        return function(kind, call.value(0)) if plain else None


_OTHER_NAMES = {
    "abs": ("abs", "absolute"),
    "neg": ("neg", "negative"),
    "not": ("logical_not", "bitwise_not", "invert"),
}
for _kind in ir.UNARY:
    _function(_kind, *_OTHER_NAMES.get(_kind, (_kind,)))


@reads("pow", makes=ir.Pow, note="a base of floats")
def _power(call: Call) -> Lowered | None:
    """``(base, exponent)``, one of them may be a number."""
    base, exponent = call.get(0, "input"), call.get(1, "exponent")
    made = operands([base, exponent])
    first = next(v for v in (base, exponent) if isinstance(v, Value))
    if made is None or first.type.dtype is None or not first.type.dtype.is_wide_float:
        return None
    return ir.Pow(), made


@reads("square", makes=ir.Pow)
def _square(call: Call) -> Lowered | None:
    return _power(call.again(call.value(0), 2))


def _joined(op: Op, call: Call) -> Lowered | None:
    """``(a, b)``: tensors of one type, or a tensor and a number."""
    second = call.get(1, "other")
    if second is None or len(call.args) + len(call.kwargs) != 2:
        return None
    made = operands([call.get(0, "input"), second])
    return None if made is None else (op, made)


def _comparison(kind: str, name: str) -> None:
    @reads(name, makes=(ir.Compare, kind), note="operands of one type")
    def rule(call: Call) -> Lowered | None:
        return _joined(ir.Compare(kind), call)


for _kind, _name in (
    ("equal", "eq"),
    ("not_equal", "ne"),
    ("less", "lt"),
    ("less_equal", "le"),
    ("greater", "gt"),
    ("greater_equal", "ge"),
):
    _comparison(_kind, _name)


def _logical(kind: str) -> None:
    """Register ``a & b`` or its kin, of booleans."""

    @reads(f"logical_{kind}", f"bitwise_{kind}", kind, f"__{kind}", makes=(ir.Logical, kind))
    def rule(call: Call) -> Lowered | None:
        a, b = call.value(0), call.value(1, "other")
        return (ir.Logical(kind), [a, b]) if a.type.dtype is b.type.dtype is DType.BOOL else None


for _kind in ir.LOGIC:
    _logical(_kind)


@reads("maximum", makes=ir.Max, note="operands of one type")
def _maximum(call: Call) -> Lowered | None:
    return _joined(ir.Max(), call)


@reads("minimum", makes=ir.Min, note="operands of one type")
def _minimum(call: Call) -> Lowered | None:
    return _joined(ir.Min(), call)


@reads("remainder", "mod", makes=(ir.Mod, "floor"), note="operands of one type")
def _remainder(call: Call) -> Lowered | None:
    return _joined(ir.Mod("floor"), call)


@reads("fmod", makes=(ir.Mod, "trunc"), note="operands of one type")
def _fmod(call: Call) -> Lowered | None:
    return _joined(ir.Mod("trunc"), call)


def _extremum(name: str, op: Op) -> None:
    """Register ``torch.max(a, b)`` of two tensors, or ``torch.max(x)`` over everything."""

    @reads(name, makes=[type(op), (ir.Reduce, name)], note="of two tensors, or over all axes")
    def rule(call: Call) -> Lowered | None:
        x, other = call.value(0), call.get(1, "other")
        if isinstance(other, Value):
            return _joined(op, call)
        if x.type.rank is None or len(call.args) + len(call.kwargs) != 1:
            return None  # Along one axis torch gives the places as well.
        return ir.Reduce(name, tuple(range(x.type.rank)), False), [x]


_extremum("max", ir.Max())
_extremum("min", ir.Min())


@reads("where", makes=ir.Where, note="operands of one type")
def _where(call: Call) -> Lowered | None:
    """``(condition, x, y)``."""
    condition = call.value(0, "condition")
    made = operands([call.get(1, "input"), call.get(2, "other")])
    if made is None or condition.type.dtype is not DType.BOOL:
        return None
    return ir.Where(), [condition, *made]


@reads("masked_fill", makes=ir.Where, note="operands of one type")
def _masked_fill(call: Call) -> Lowered | None:
    """``(x, mask, value)``."""
    x, mask, value = call.value(0), call.value(1, "mask"), call.get(2, "value")
    made = operands([value, x])
    if made is None or mask.type.dtype is not DType.BOOL:
        return None
    return ir.Where(), [mask, *made]

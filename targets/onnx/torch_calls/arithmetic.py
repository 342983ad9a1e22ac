"""Arithmetic, comparisons and choices in the element type that torch promotes operands to."""

from __future__ import annotations

from typing import Any

from ....hosts.torch.dtypes import DTYPES
from ....ir import DType, TensorType, Value
from .call import Call, NotWritten, Number, Writer, writes
from .numbers import is_number, result_type
from .shapes import cast

_SMALL = frozenset({DType.I8, DType.U8, DType.I16, DType.U16})
"""Whole numbers that onnxruntime has no arithmetic for: int32 has it, and is cut off to the same bits."""

_HALVES = frozenset({DType.F16, DType.BF16})


def operand(out: Writer, found: Any, dtype: DType) -> Value:
    """A tensor or a number in an element type."""
    if isinstance(found, Value):
        return cast(out, found, dtype)
    if is_number(found):
        return out.scalar(found, dtype)
    raise NotWritten(f"{type(found).__name__} is no operand")


def computed_in(call: Call, a: Any, b: Any) -> DType:
    """The element type in which torch computes with two operands.

    Beside a tensor of 16 bits, a number of Python is one of float32, and so is the arithmetic.
    """
    dtype = DTYPES[result_type(a, b)]
    numbers = any(is_number(n) and not isinstance(n, bool) for n in (a, b))
    return DType.F32 if dtype in _HALVES and numbers else dtype


def _binary(call: Call, kind: str, a: Any, b: Any) -> Value:
    dtype, result = computed_in(call, a, b), call.dtype
    if result.is_float and not dtype.is_float:
        dtype = result  # A true division.
    if dtype is DType.BOOL:
        logic = {"Add": "Or", "Mul": "And"}.get(kind)
        if logic is None:
            raise NotWritten(f"{kind} of booleans")
        return call.op(logic, operand(call.out, a, dtype), operand(call.out, b, dtype))
    wide = DType.I32 if dtype in _SMALL else dtype
    made = call.out.op(
        kind,
        operand(call.out, a, wide),
        operand(call.out, b, wide),
        type=TensorType(wide, call.type.shape),
    )
    return call.out.cast(call.out.cast(made, dtype), result)


def _arithmetic(kind: str, *names: str) -> None:
    @writes(*names)
    def rule(call: Call) -> Any:
        """``(a, b)``, or ``(a, b, alpha)``."""
        a, b = call.get(0, "input"), call.get(1, "other")
        call.only("other", "input", "alpha")
        alpha = call.kwargs.get("alpha", call.args[2] if len(call.args) > 2 else 1)
        if isinstance(a, (list, tuple)) and kind == "Add":
            return (*a, *b)
        if alpha != 1:
            raise NotWritten(f"its second operand is multiplied by {alpha!r}")
        if is_number(a) and is_number(b):
            return call.out.arithmetic(kind, a, b)
        return _binary(call, kind, a, b)


_arithmetic("Add", "add")
_arithmetic("Sub", "sub", "subtract")
_arithmetic("Mul", "mul", "multiply")


@writes("div", "divide", "truediv", "true_divide")
def divide(call: Call) -> Any:
    """``(a, b)``; rounded, of whole numbers alone."""
    a, b = call.get(0, "input"), call.get(1, "other")
    rounding = call.kwargs.get("rounding_mode")
    if is_number(a) and is_number(b):
        if not isinstance(a, Number) and not isinstance(b, Number):
            return a / b
        parts = [call.out.scalar(n, DType.F64) for n in (a, b)]
        return Number(call.out.op("Div", *parts, type=TensorType(DType.F64, ())))
    if rounding is None:
        return _binary(call, "Div", a, b)
    if rounding == "floor":
        return _floor(call, a, b)
    if call.dtype.is_float:
        raise NotWritten("ONNX rounds no quotient of floats towards zero")
    return _binary(call, "Div", a, b)


@writes("floor_divide", "floordiv")
def floor_divide(call: Call) -> Any:
    """The quotient rounded down."""
    return _floor(call, call.get(0, "input"), call.get(1, "other"))


def _floor(call: Call, a: Any, b: Any) -> Any:
    if is_number(a) and is_number(b):
        return call.out.floor_divide(a, b)
    if call.dtype.is_float or call.dtype is DType.BOOL:
        raise NotWritten("torch rounds the quotient of floats in its own way")
    dtype = DType.I32 if call.dtype in _SMALL else call.dtype
    kind = TensorType(dtype, call.type.shape)
    x, y = operand(call.out, a, dtype), operand(call.out, b, dtype)
    rest = call.out.op("Mod", x, y, type=TensorType(dtype))
    made = call.out.op("Div", call.out.op("Sub", x, rest, type=kind), y, type=kind)
    return call.out.cast(made, call.dtype)


@writes("remainder", "mod", "fmod")
def remainder(call: Call) -> Any:
    """The remainder with the sign of the divisor, or (``fmod``) of what is divided."""
    a, b = call.get(0, "input"), call.get(1, "other")
    if is_number(a) and is_number(b):
        return call.out.modulo(a, b)
    dtype, c = call.dtype, call.name == "fmod"
    if dtype.is_float and not c:
        raise NotWritten("ONNX has no such remainder of floats")
    x, y = operand(call.out, a, dtype), operand(call.out, b, dtype)
    return call.op("Mod", x, y, fmod=1 if c else None)


@writes("neg", "negative")
def negative(call: Call) -> Any:
    """``-x``."""
    x = call.get(0, "input")
    return call.out.arithmetic("Sub", 0, x) if is_number(x) else call.op("Neg", x)


def _comparison(kind: str, name: str, opposite: bool = False) -> None:
    @writes(name)
    def rule(call: Call) -> Any:
        a, b = call.get(0, "input"), call.get(1, "other")
        if is_number(a) and is_number(b):
            if not isinstance(a, Number) and not isinstance(b, Number):
                return _KNOWN[name](a, b)
            dtype = DType.F64
            x, y = (call.out.scalar(n, dtype) for n in (a, b))
        elif not isinstance(a, (Value, Number, int, float)) or b is None:
            return None  # Of types and devices: for an assertion.
        else:
            dtype = DTYPES[result_type(a, b)]
            wide = (
                DType.I32 if dtype in _SMALL or (dtype is DType.BOOL and kind != "Equal") else dtype
            )
            x, y = operand(call.out, a, wide), operand(call.out, b, wide)
        made = call.out.op(kind, x, y, type=TensorType(DType.BOOL, call.type.shape))
        return call.out.op("Not", made, type=made.type) if opposite else made


_KNOWN = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip

_comparison("Equal", "eq")
_comparison("Equal", "ne", opposite=True)
_comparison("Less", "lt")
_comparison("LessOrEqual", "le")
_comparison("Greater", "gt")
_comparison("GreaterOrEqual", "ge")


def _bits(name: str, kind: str, logic: str) -> None:
    @writes(
        name,
        *([f"__{name.removeprefix('bitwise_')}", name.removeprefix("bitwise_")] if logic else []),
    )
    def rule(call: Call) -> Value:
        a, b = call.get(0, "input"), call.get(1, "other")
        x, y = operand(call.out, a, call.dtype), operand(call.out, b, call.dtype)
        return call.op(logic if call.dtype is DType.BOOL else kind, x, y)


for _name in ("And", "Or", "Xor"):
    _bits(f"bitwise_{_name.lower()}", f"Bitwise{_name}", _name)


@writes("bitwise_not", "invert", "logical_not")
def invert(call: Call) -> Value:
    """``~x``."""
    x = call.tensor(0)
    if call.name == "logical_not":
        return call.op("Not", cast(call.out, x, DType.BOOL))
    return call.op("Not" if call.dtype is DType.BOOL else "BitwiseNot", x)


@writes("bitwise_left_shift", "lshift", "bitwise_right_shift", "rshift")
def shift(call: Call) -> Value:
    """A shift of bytes: ONNX shifts no signed numbers."""
    if call.dtype is not DType.U8:
        raise NotWritten("ONNX shifts no signed numbers")
    a, b = (operand(call.out, v, DType.U8) for v in (call.get(0, "input"), call.get(1, "other")))
    right = call.name in ("bitwise_right_shift", "rshift")
    return call.op("BitShift", a, b, direction="RIGHT" if right else "LEFT")


@writes("isinf", "isposinf", "isneginf")
def is_infinite(call: Call) -> Value:
    """Which numbers are infinite."""
    x = call.tensor(0)
    if x.type.dtype is None or not x.type.dtype.is_float:
        raise NotWritten("its numbers are no floats")
    return call.op(
        "IsInf",
        x,
        detect_positive=int(call.name != "isneginf"),
        detect_negative=int(call.name != "isposinf"),
    )


@writes("where")
def where(call: Call) -> Value:
    """``(condition, a, b)``."""
    condition, a, b = call.tensor(0, "condition"), call.get(1, "input"), call.get(2, "other")
    if a is None or b is None:
        raise NotWritten("it gives the places of a condition as a tuple")
    dtype = call.dtype
    return call.op("Where", condition, operand(call.out, a, dtype), operand(call.out, b, dtype))


@writes("masked_fill")
def masked_fill(call: Call) -> Value:
    """``(x, mask, number)``."""
    x, mask, number = call.tensor(0), call.tensor(1, "mask"), call.get(2, "value")
    return call.op(
        "Where", mask, operand(call.out, number, call.dtype), operand(call.out, x, call.dtype)
    )


@writes("clamp", "clip", "clamp_min", "clamp_max")
def clamp(call: Call) -> Any:
    """``(x, low, high)``, of tensors or numbers; the upper bound wins."""
    x = call.tensor(0)
    if call.name == "clamp_max":
        low, high = None, call.get(1, "max")
    else:
        low, high = call.get(1, "min"), None if call.name == "clamp_min" else call.get(2, "max")
    dtype = call.dtype
    wide = DType.I32 if dtype in _SMALL else dtype
    made = operand(call.out, x, wide)
    for bound, kind in ((low, "Max"), (high, "Min")):
        if bound is not None:
            made = call.out.op(kind, made, operand(call.out, bound, wide), type=TensorType(wide))
    return call.out.cast(made, dtype)


@writes("maximum", "fmax", "minimum", "fmin")
def extremum(call: Call) -> Value:
    """The larger, or the smaller, of two tensors."""
    if call.name.startswith("f"):
        raise NotWritten("it leaves NaN out")
    return _binary(
        call, "Max" if call.name == "maximum" else "Min", call.get(0, "input"), call.get(1, "other")
    )


@writes("pow", "power")
def power(call: Call) -> Any:
    """``(base, exponent)``."""
    a, b = call.get(0, "input"), call.get(1, "exponent")
    if is_number(a) and is_number(b):
        raise NotWritten("a power of numbers")
    return _binary(call, "Pow", a, b)


_FUNCTIONS = {
    "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "sigmoid": "Sigmoid", "tanh": "Tanh", "sin": "Sin", "cos": "Cos", "tan": "Tan",
    "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh",
    "erf": "Erf", "reciprocal": "Reciprocal", "softsign": "Softsign",
}  # fmt: skip
"""Functions whose results are floats."""

_KEEPING = {
    "abs": "Abs",
    "absolute": "Abs",
    "ceil": "Ceil",
    "floor": "Floor",
    "round": "Round",
    "sign": "Sign",
}
"""Functions whose results have the element type of their argument."""


def _function(name: str, kind: str, keeping: bool) -> None:
    @writes(name)
    def rule(call: Call) -> Value:
        x = call.tensor(0)
        call.only("input")
        if len(call.args) > 1:
            raise NotWritten("it has arguments without a rule")
        if keeping and kind in ("Ceil", "Floor", "Round") and not call.dtype.is_float:
            return call.op("Identity", x)
        return call.op(kind, operand(call.out, x, call.dtype))


for _name, _kind in _FUNCTIONS.items():
    _function(_name, _kind, False)
for _name, _kind in _KEEPING.items():
    _function(_name, _kind, True)


@writes("relu", "relu6")
def relu(call: Call) -> Value:
    """Zeros below zero, of whole numbers too."""
    dtype = call.dtype
    wide = DType.I32 if dtype in _SMALL else dtype
    made = call.out.op("Max", operand(call.out, call.tensor(0), wide), call.out.constant(0, wide))
    if call.name == "relu6":
        made = call.out.op("Min", made, call.out.constant(6, wide))
    return call.out.cast(made, dtype)


__all__ = ["computed_in", "operand"]

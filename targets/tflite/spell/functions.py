"""Element-wise functions, comparisons and logic.

TFLite has no erf: it is computed by formula 7.1.26 of Abramowitz and Stegun (1964), whose error is below 1.5e-7. Trigonometric and
hyperbolic functions that TFLite lacks are written with those that it has.
"""

from __future__ import annotations

import numpy as np

from ....ir import REMAINDERS, Compare, Logical, Max, Min, Mod, Node, Pow, Unary, Value, Where
from ..emitter import Emitter, Unsupported, spells
from ..flat import FlatTensor
from ..layout import Layout
from ..operands import broadcast_shape
from .activations import Elementwise
from .arithmetic import broadcast_inputs, check_rank

_DIRECT = {
    "abs": ("ABS", "AbsOptions"), "neg": ("NEG", "NegOptions"), "sign": ("SIGN", "SignOptions"),
    "exp": ("EXP", "ExpOptions"), "log": ("LOG", ""), "sqrt": ("SQRT", ""), "rsqrt": ("RSQRT", ""),
    "floor": ("FLOOR", ""), "ceil": ("CEIL", ""), "round": ("ROUND", ""), "sin": ("SIN", ""),
    "cos": ("COS", "CosOptions"), "not": ("LOGICAL_NOT", "LogicalNotOptions"),
}  # fmt: skip
_TYPES = {"abs": ("INT32",), "neg": ("INT32", "INT64"), "sign": ("INT32",), "not": ("BOOL",)}
"""The element types of functions in addition to float32."""


_COMPOSED = (
    "reciprocal", "isnan", "isinf", "tan", "atan", "asin", "acos", "sinh", "cosh", "asinh", "acosh", "atanh", "erf",
)  # fmt: skip
"""The functions that are written by several operations."""


@spells(Unary, kinds=(*_DIRECT, *_COMPOSED))
def unary(e: Emitter, node: Node, op: Unary) -> None:
    """A function of one operand."""
    x = node.required(0)
    layout = e.layout_of(x)
    tensor = e.get(x, layout)
    if tensor.dtype != "FLOAT32" and tensor.dtype not in _TYPES.get(op.kind, ()):
        raise Unsupported(f"LiteRT has no kernel for {op.kind} of {tensor.dtype.lower()}")
    e.put(node.output, _function(e, op.kind, tensor), layout)


def _function(e: Emitter, kind: str, x: FlatTensor) -> FlatTensor:
    m = Elementwise(e)
    if kind in _DIRECT:
        return m.unary(_DIRECT[kind][0], x, _DIRECT[kind][1])

    def call(name: str, of: FlatTensor) -> FlatTensor:
        return _function(e, name, of)

    def root(sign: float) -> FlatTensor:
        """Write sqrt(x^2 + sign), or sqrt(1 - x^2) for a sign of 0."""
        square = m.binary("MUL", x, x)
        inside = (
            m.binary("ADD", square, sign) if sign else m.binary("ADD", call("neg", square), 1.0)
        )
        return call("sqrt", inside)

    match kind:
        case "reciprocal":
            return _divided(e, 1.0, x)
        case "isnan":
            return e.op("NOT_EQUAL", [x, x], x.shape, "BOOL", ("NotEqualOptions", {}))
        case "isinf":
            infinity = e.constant(np.inf)
            return e.op("EQUAL", [call("abs", x), infinity], x.shape, "BOOL", ("EqualOptions", {}))
        case "tan":
            return m.binary("DIV", call("sin", x), call("cos", x))
        case "atan":
            return _atan2(e, x, _ones(e, x))
        case "asin":
            return _atan2(e, x, root(0))
        case "acos":
            return _atan2(e, root(0), x)
        case "sinh" | "cosh":
            grown, small = call("exp", x), call("exp", call("neg", x))
            return m.binary("MUL", m.binary("SUB" if kind == "sinh" else "ADD", grown, small), 0.5)
        case "asinh":
            size = call("abs", x)
            return m.binary("MUL", call("sign", x), call("log", m.binary("ADD", size, root(1))))
        case "acosh":
            return call("log", m.binary("ADD", x, root(-1)))
        case "atanh":
            above, below = m.binary("ADD", x, 1.0), m.binary("ADD", call("neg", x), 1.0)
            return m.binary("MUL", call("log", m.binary("DIV", above, below)), 0.5)
        case "erf":
            return _erf(e, x)
    raise Unsupported(f"TFLite has no function {kind}")


def _divided(e: Emitter, number: float, x: FlatTensor) -> FlatTensor:
    fields = {"fusedActivationFunction": 0}
    return e.op("DIV", [e.constant(number), x], x.shape, x.dtype, ("DivOptions", fields))


def _ones(e: Emitter, x: FlatTensor) -> FlatTensor:
    """Return a tensor of ones in the shape of x (ATAN2 does not broadcast)."""
    if x.is_static:
        return e.constant(np.ones(x.shape, np.float32))
    m = Elementwise(e)
    return m.binary("ADD", m.binary("MUL", x, 0.0), 1.0)


def _atan2(e: Emitter, y: FlatTensor, x: FlatTensor) -> FlatTensor:
    return e.op("ATAN2", [y, x], y.shape, y.dtype)


def _erf(e: Emitter, x: FlatTensor) -> FlatTensor:
    m = Elementwise(e)
    size = m.unary("ABS", x, "AbsOptions")
    t = _divided(e, 1.0, m.binary("ADD", m.binary("MUL", size, 0.3275911), 1.0))
    series = m.binary("ADD", m.binary("MUL", t, 1.061405429), -1.453152027)
    for term in (1.421413741, -0.284496736, 0.254829592):
        series = m.binary("ADD", m.binary("MUL", series, t), term)
    power = m.unary("EXP", m.unary("NEG", m.binary("MUL", x, x), "NegOptions"), "ExpOptions")
    rest = m.binary("MUL", m.binary("MUL", series, t), power)
    above = m.binary("ADD", m.unary("NEG", rest, "NegOptions"), 1.0)
    return m.binary("MUL", m.unary("SIGN", x, "SignOptions"), above)


@spells(Pow)
def power(e: Emitter, node: Node, op: Pow) -> None:
    """POW; a faster operation for an exponent of 1, 2, 0.5, -0.5 or -1."""
    base, exponent = node.required(0), node.required(1)
    if e.dtype(base) != "FLOAT32":
        raise Unsupported(f"LiteRT computes it in float32 only, not in {e.dtype(base).lower()}")
    m, number = Elementwise(e), _scalar(e, exponent)
    if number in (1.0, 2.0, 0.5, -0.5, -1.0) and e.shape(base) == e.shape(node.output):
        layout = e.layout_of(base)
        x = e.get(base, layout)
        made = {
            1.0: lambda: x,
            2.0: lambda: m.binary("MUL", x, x),
            0.5: lambda: m.unary("SQRT", x),
            -0.5: lambda: m.unary("RSQRT", x),
            -1.0: lambda: _divided(e, 1.0, x),
        }[number]()
        e.put(node.output, made, layout)
        return
    (x, y), layout = broadcast_inputs(e, node)
    if y.dtype != "FLOAT32":
        y = (
            e.constant(y.data, name=y.name) if y.data is not None
            else e.op("CAST", [y], y.shape, "FLOAT32", ("CastOptions", {}))
        )  # fmt: skip
    check_rank(4, [x, y])
    shape = broadcast_shape(x, y)
    e.put(node.output, e.op("POW", [x, y], shape, "FLOAT32", ("PowOptions", {})), layout)


def _scalar(e: Emitter, value: Value) -> float | None:
    if value.data is None or value.data.size != 1:
        return None
    return float(e.numbers(value).reshape(()))


@spells(Max, Min)
def extremum(e: Emitter, node: Node, op: Max | Min) -> None:
    """MAXIMUM or MINIMUM, one for each operand after the first."""
    code = "MAXIMUM" if isinstance(op, Max) else "MINIMUM"
    operands, layout = broadcast_inputs(e, node)
    if operands[0].dtype not in ("FLOAT32", "INT32", "INT64", "INT16", "INT8", "UINT8"):
        raise Unsupported(f"LiteRT has no kernel for {operands[0].dtype.lower()}")
    made = operands[0]
    for other in operands[1:]:
        check_rank(5, [made, other])
        made = e.op(code, [made, other], broadcast_shape(made, other), made.dtype,
                    ("MaximumMinimumOptions", {}))  # fmt: skip
    e.put(node.output, made, layout)


@spells(Mod, kinds=REMAINDERS)
def remainder(e: Emitter, node: Node, op: Mod) -> None:
    """FLOOR_MOD; that of absolute values, with the sign of the dividend, where the quotient is rounded towards zero."""
    operands, layout = broadcast_inputs(e, node)
    truncated = op == Mod("trunc")
    dtype = operands[0].dtype
    if dtype not in ("FLOAT32", "INT32", *(() if truncated else ("INT64",))):
        raise Unsupported(f"LiteRT has no kernel for {dtype.lower()}")
    check_rank(4, operands)
    m, (x, y) = Elementwise(e), operands
    shape = broadcast_shape(x, y)
    if truncated:
        x, y = (m.unary("ABS", t, "AbsOptions") for t in operands)
    made = e.op("FLOOR_MOD", [x, y], shape, dtype, ("FloorModOptions", {}))
    if truncated:
        made = m.binary("MUL", made, m.unary("SIGN", operands[0], "SignOptions"))
    e.put(node.output, made, layout)


_COMPARISONS = {
    "equal": ("EQUAL", "EqualOptions"), "not_equal": ("NOT_EQUAL", "NotEqualOptions"),
    "less": ("LESS", "LessOptions"), "less_equal": ("LESS_EQUAL", "LessEqualOptions"),
    "greater": ("GREATER", "GreaterOptions"), "greater_equal": ("GREATER_EQUAL", "GreaterEqualOptions"),
}  # fmt: skip


@spells(Compare, kinds=_COMPARISONS)
def compare(e: Emitter, node: Node, op: Compare) -> None:
    """EQUAL, LESS and the other comparisons."""
    operands, layout = broadcast_inputs(e, node)
    allowed = {"FLOAT32", "INT32", "INT64"}
    if op.kind in ("equal", "not_equal"):
        allowed |= {"BOOL"}
    if operands[0].dtype not in allowed:
        raise Unsupported(f"LiteRT has no kernel for {operands[0].dtype.lower()}")
    _boolean(e, node, *_COMPARISONS[op.kind], operands, layout)


_LOGIC = {
    "and": ("LOGICAL_AND", "LogicalAndOptions"), "or": ("LOGICAL_OR", "LogicalOrOptions"),
    "xor": ("NOT_EQUAL", "NotEqualOptions"),
}  # fmt: skip


@spells(Logical, kinds=_LOGIC)
def logical(e: Emitter, node: Node, op: Logical) -> None:
    """LOGICAL_AND, LOGICAL_OR; xor is NOT_EQUAL."""
    operands, layout = broadcast_inputs(e, node)
    _boolean(e, node, *_LOGIC[op.kind], operands, layout)


def _boolean(
    e: Emitter, node: Node, code: str, options: str, operands: list[FlatTensor], layout: Layout
) -> None:
    check_rank(4, operands)
    shape = broadcast_shape(*operands)
    e.put(node.output, e.op(code, operands, shape, "BOOL", (options, {})), layout)


@spells(Where)
def where(e: Emitter, node: Node, op: Where) -> None:
    """SELECT_V2."""
    operands, layout = broadcast_inputs(e, node)
    dtype = operands[1].dtype
    if dtype not in ("FLOAT32", "INT32", "INT64", "BOOL", "INT16", "INT8", "UINT8", "UINT32"):
        raise Unsupported(f"LiteRT has no kernel for {dtype.lower()}")
    check_rank(5, operands)
    shape = broadcast_shape(*operands)
    e.put(node.output, e.op("SELECT_V2", operands, shape, dtype, ("SelectV2Options", {})), layout)

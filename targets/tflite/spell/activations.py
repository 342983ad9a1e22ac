"""Activations: those that TFLite has, and the others as arithmetic.

ELU with any alpha is ``alpha * ELU(x) + (1 - alpha) * relu(x)``; SELU and CELU follow. Softplus is written
``relu(x) + log(1 + exp(-|x|))``, which does not overflow.
"""

from __future__ import annotations

import math

from ....ir import Activation, Gate, Node, PRelu, Value
from ..emitter import FUSED, Emitter, Unsupported, spells
from ..flat import FlatTensor
from ..layout import Layout
from .arithmetic import along

_PLAIN = {"sigmoid": "LOGISTIC", "tanh": "TANH"}


class Maker:
    """Short words for operations on tensors of one shape."""

    def __init__(self, e: Emitter) -> None:
        self.e = e

    def one(self, code: str, x: FlatTensor, options: str = "", **fields: object) -> FlatTensor:
        """An operation of one operand."""
        return self.e.op(code, [x], x.shape, x.dtype, (options, fields) if options else None)

    def two(self, code: str, x: FlatTensor, y: FlatTensor | float, fused: int = 0) -> FlatTensor:
        """An operation of two operands, the second a tensor of the same shape or a number."""
        if not isinstance(y, FlatTensor):
            y = self.e.constant(y, x.dtype)
        name = "MaximumMinimum" if code in ("MAXIMUM", "MINIMUM") else code.title()
        fields = {} if name == "MaximumMinimum" else {"fusedActivationFunction": fused}
        return self.e.op(code, [x, y], x.shape, x.dtype, (f"{name}Options", fields))

    def relu(self, x: FlatTensor) -> FlatTensor:
        """max(x, 0)."""
        return self.one("RELU", x)

    def elu(self, x: FlatTensor, alpha: float) -> FlatTensor:
        """X above 0, alpha * (exp(x) - 1) below."""
        made = self.one("ELU", x)
        if alpha == 1:
            return made
        return self.two(
            "ADD", self.two("MUL", made, alpha), self.two("MUL", self.relu(x), 1 - alpha)
        )

    def softplus(self, x: FlatTensor) -> FlatTensor:
        """log(1 + exp(x))."""
        size = self.one("ABS", x, "AbsOptions")
        small = self.one("EXP", self.one("NEG", size, "NegOptions"), "ExpOptions")
        return self.two("ADD", self.relu(x), self.one("LOG", self.two("ADD", small, 1.0)))

    def clip(self, x: FlatTensor, low: float, high: float) -> FlatTensor:
        """Between two numbers."""
        if (low, high) == (0.0, 1.0):
            return self.one("RELU_0_TO_1", x)
        if low != -math.inf:
            x = self.two("MAXIMUM", x, low)
        return self.two("MINIMUM", x, high) if high != math.inf else x


def activate(e: Emitter, op: Activation, x: FlatTensor) -> FlatTensor:
    """The operations of an activation."""
    m = Maker(e)
    if op in FUSED:
        return m.one(FUSED[op], x)
    p = op.params
    match op.kind:
        case "sigmoid" | "tanh":
            return m.one(_PLAIN[op.kind], x)
        case "clip":
            return m.clip(x, *p)
        case "leaky_relu":
            return m.one("LEAKY_RELU", x, "LeakyReluOptions", alpha=p[0])
        case "elu":
            return m.elu(x, p[0])
        case "celu":
            if p[0] <= 0:
                raise Unsupported("celu with an alpha that is not above 0")
            return m.two("MUL", m.one("ELU", m.two("MUL", x, 1 / p[0])), p[0])
        case "selu":
            return m.two("MUL", m.elu(x, p[0]), p[1])
        case "hard_sigmoid":
            # clip(a * x + b, 0, 1) is relu6(6 * a * x + 6 * b) / 6.
            wide = x if 6 * p[0] == 1 else m.two("MUL", x, 6 * p[0])
            return m.two("MUL", m.two("ADD", wide, 6 * p[1], 3), 1 / 6)
        case "hard_swish":
            return m.one("HARD_SWISH", x, "HardSwishOptions")
        case "silu":
            return m.two("MUL", x, m.one("LOGISTIC", x))
        case "gelu" | "gelu_tanh":
            return m.one("GELU", x, "GeluOptions", approximate=op.kind == "gelu_tanh")
        case "softplus":
            return m.softplus(x)
        case "softsign":
            return m.two("DIV", x, m.two("ADD", m.one("ABS", x, "AbsOptions"), 1.0))
        case "mish":
            return m.two("MUL", x, m.one("TANH", m.softplus(x)))
        case "thresholded_relu":
            above = e.op("GREATER", [x, e.constant(p[0])], x.shape, "BOOL", ("GreaterOptions", {}))
            return e.op("SELECT_V2", [above, x, e.constant(0.0)], x.shape, x.dtype,
                        ("SelectV2Options", {}))  # fmt: skip
    raise Unsupported(f"the activation {op.kind}")


_COMPOSED = (
    "clip", "leaky_relu", "elu", "celu", "selu", "hard_sigmoid", "hard_swish", "silu", "gelu", "gelu_tanh",
    "softplus", "softsign", "mish", "thresholded_relu", "relu", "relu6",
)  # fmt: skip
"""The activations that :func:`activate` writes beside the plain ones."""


@spells(Activation, kinds=(*_PLAIN, *_COMPOSED), note="of float32")
def activation(e: Emitter, node: Node) -> None:
    """An activation that nothing in front could take in."""
    x = node.required(0)
    assert isinstance(node.op, Activation)
    tensor, layout = _floats(e, x)
    e.put(node.output, activate(e, node.op, tensor), layout)


@spells(PRelu)
def prelu(e: Emitter, node: Node) -> None:
    """PRELU."""
    x, slope = node.required(0), node.required(1)
    assert isinstance(node.op, PRelu)
    tensor, layout = _floats(e, x)
    alpha = along(e, slope, layout, node.op.axis)
    e.put(node.output, e.op("PRELU", [tensor, alpha], tensor.shape, tensor.dtype), layout)


@spells(Gate)
def gate(e: Emitter, node: Node) -> None:
    """``g * act(x) + (1 - g) * x``."""
    op, x, g = node.op, node.required(0), node.required(1)
    assert isinstance(op, Gate)
    if g.data is None:
        raise Unsupported("a gate that is computed by the model")
    tensor, layout = _floats(e, x)
    m, share = Maker(e), float(e.numbers(g).reshape(()))
    if isinstance(op.activation, PRelu):
        alpha = along(e, node.inputs[2], layout, op.axis)
        made = e.op("PRELU", [tensor, alpha], tensor.shape, tensor.dtype)
    else:
        made = activate(e, op.activation, tensor)
    if share != 1:
        made = m.two("ADD", m.two("MUL", made, share), m.two("MUL", tensor, 1 - share))
    e.put(node.output, made, layout)


def _floats(e: Emitter, value: Value) -> tuple[FlatTensor, Layout]:
    layout = e.at(value)
    tensor = e.get(value, layout)
    if tensor.dtype != "FLOAT32":
        raise Unsupported(f"of {tensor.dtype.lower()}: LiteRT's is for float32")
    return tensor, layout

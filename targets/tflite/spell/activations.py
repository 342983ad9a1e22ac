"""Activations: one operation where TFLite has it, else arithmetic.

ELU with an alpha other than 1 is ``alpha * ELU(x) + (1 - alpha) * relu(x)``; SELU and CELU use it too. Softplus is written
``relu(x) + log(1 + exp(-|x|))``, which does not overflow.
"""

from __future__ import annotations

import math

import numpy as np

from ....ir import Activation, Gate, Node, PRelu, Value
from ..emitter import FUSED, Emitter, Unsupported, spells
from ..flat import FlatTensor
from ..layout import Layout
from .arithmetic import vector_along

_PLAIN = {"sigmoid": "LOGISTIC", "tanh": "TANH"}


_LARGEST = float(np.finfo(np.float32).max)
"""Bounds of doubles may be larger."""


class Elementwise:
    """Writes element-wise operations whose result has the shape and element type of the first operand."""

    def __init__(self, e: Emitter) -> None:
        self.e = e

    def unary(self, code: str, x: FlatTensor, options: str = "", **fields: object) -> FlatTensor:
        """Write an operation of one operand; return its result."""
        return self.e.op(code, [x], x.shape, x.dtype, (options, fields) if options else None)

    def binary(self, code: str, x: FlatTensor, y: FlatTensor | float, fused: int = 0) -> FlatTensor:
        """Write an operation of two operands, the second a number or a tensor that broadcasts to the first; return its result."""
        if not isinstance(y, FlatTensor):
            y = self.e.constant(y, x.dtype)
        name = "MaximumMinimum" if code in ("MAXIMUM", "MINIMUM") else code.title()
        fields = {} if name == "MaximumMinimum" else {"fusedActivationFunction": fused}
        return self.e.op(code, [x, y], x.shape, x.dtype, (f"{name}Options", fields))

    def relu(self, x: FlatTensor) -> FlatTensor:
        """Write max(x, 0)."""
        return self.unary("RELU", x)

    def elu(self, x: FlatTensor, alpha: float) -> FlatTensor:
        """Write x where it is above 0, alpha * (exp(x) - 1) elsewhere."""
        made = self.unary("ELU", x)
        if alpha == 1:
            return made
        return self.binary(
            "ADD", self.binary("MUL", made, alpha), self.binary("MUL", self.relu(x), 1 - alpha)
        )

    def softplus(self, x: FlatTensor) -> FlatTensor:
        """Write log(1 + exp(x))."""
        size = self.unary("ABS", x, "AbsOptions")
        small = self.unary("EXP", self.unary("NEG", size, "NegOptions"), "ExpOptions")
        return self.binary("ADD", self.relu(x), self.unary("LOG", self.binary("ADD", small, 1.0)))

    def clip(self, x: FlatTensor, low: float, high: float) -> FlatTensor:
        """Write min(max(x, low), high); bounds may be infinite."""
        if (low, high) == (0.0, 1.0):
            return self.unary("RELU_0_TO_1", x)
        if low != -math.inf:
            x = self.binary("MAXIMUM", x, max(low, -_LARGEST))
        return self.binary("MINIMUM", x, min(high, _LARGEST)) if high != math.inf else x


def activate(e: Emitter, op: Activation, x: FlatTensor) -> FlatTensor:
    """Write an activation; return its result."""
    m = Elementwise(e)
    if op in FUSED:
        return m.unary(FUSED[op], x)
    p = op.params
    match op.kind:
        case "sigmoid" | "tanh":
            return m.unary(_PLAIN[op.kind], x)
        case "clip":
            return m.clip(x, *p)
        case "leaky_relu":
            return m.unary("LEAKY_RELU", x, "LeakyReluOptions", alpha=p[0])
        case "elu":
            return m.elu(x, p[0])
        case "celu":
            if p[0] <= 0:
                raise Unsupported("celu needs an alpha above 0")
            return m.binary("MUL", m.unary("ELU", m.binary("MUL", x, 1 / p[0])), p[0])
        case "selu":
            return m.binary("MUL", m.elu(x, p[0]), p[1])
        case "hard_sigmoid":
            # clip(a * x + b, 0, 1) is relu6(6 * a * x + 6 * b) / 6.
            wide = x if 6 * p[0] == 1 else m.binary("MUL", x, 6 * p[0])
            return m.binary("MUL", m.binary("ADD", wide, 6 * p[1], 3), 1 / 6)
        case "hard_swish":
            return m.unary("HARD_SWISH", x, "HardSwishOptions")
        case "silu":
            return m.binary("MUL", x, m.unary("LOGISTIC", x))
        case "gelu" | "gelu_tanh":
            return m.unary("GELU", x, "GeluOptions", approximate=op.kind == "gelu_tanh")
        case "softplus":
            return m.softplus(x)
        case "softsign":
            return m.binary("DIV", x, m.binary("ADD", m.unary("ABS", x, "AbsOptions"), 1.0))
        case "mish":
            return m.binary("MUL", x, m.unary("TANH", m.softplus(x)))
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
def activation(e: Emitter, node: Node, op: Activation) -> None:
    """An activation that no operation before it could fuse."""
    x = node.required(0)
    tensor, layout = _float32(e, x)
    e.put(node.output, activate(e, op, tensor), layout)


@spells(PRelu)
def prelu(e: Emitter, node: Node, op: PRelu) -> None:
    """PRELU."""
    x, slope = node.required(0), node.required(1)
    tensor, layout = _float32(e, x)
    alpha = vector_along(e, slope, layout, op.axis)
    e.put(node.output, e.op("PRELU", [tensor, alpha], tensor.shape, tensor.dtype), layout)


@spells(Gate)
def gate(e: Emitter, node: Node, op: Gate) -> None:
    """``g * act(x) + (1 - g) * x``, or with a line in the place of the last x."""
    x, g = node.required(0), node.required(1)
    if g.data is None:
        raise Unsupported("its gate value is computed by the model, not constant")
    tensor, layout = _float32(e, x)
    m, share = Elementwise(e), float(e.numbers(g).reshape(()))
    if isinstance(op.activation, PRelu):
        alpha = vector_along(e, node.required(2), layout, op.axis)
        made = e.op("PRELU", [tensor, alpha], tensor.shape, tensor.dtype)
    else:
        made = activate(e, op.activation, tensor)
    if share != 1:
        rest = tensor
        for code, vector in (("MUL", node.input(3)), ("ADD", node.input(4))):
            if vector is not None:
                rest = m.binary(code, rest, vector_along(e, vector, layout, op.axis))
        made = m.binary("ADD", m.binary("MUL", made, share), m.binary("MUL", rest, 1 - share))
    e.put(node.output, made, layout)


def _float32(e: Emitter, value: Value) -> tuple[FlatTensor, Layout]:
    """Return the tensor and the layout of a float32 value; refuse other element types."""
    layout = e.layout_of(value)
    tensor = e.get(value, layout)
    if tensor.dtype != "FLOAT32":
        raise Unsupported(f"LiteRT computes it in float32 only, not in {tensor.dtype.lower()}")
    return tensor, layout

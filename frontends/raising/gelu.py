"""GELU spelled with erf, or with tanh (GPT-2, some versions of torch.onnx).

Source: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415, section 2.
"""

from __future__ import annotations

import math

from ...ir import Activation, Add, Mul, Node, Pow, Unary, Value
from .matching import Found, is_number, producer, scales_by

_Gate = tuple[str, Value, list[Node]]
"""The activation, x, and the nodes of ``1 + erf(...)`` or ``1 + tanh(...)``, producers first."""


def gelu(node: Node) -> Found | None:
    """``x * gate / 2`` with the half on either factor."""
    for plain, gated in (node.inputs, node.inputs[::-1]):
        gate, half = _gate(gated), producer(plain)
        if gate and half and scales_by(half, 0.5) and half.inputs[0] is gate[1]:
            return Activation(gate[0]), [gate[1]], [half, *gate[2]]
        scaled = producer(gated)
        if scaled is not None and scales_by(scaled, 0.5):
            gate = _gate(scaled.inputs[0])
            if gate is not None and gate[1] is plain:
                return Activation(gate[0]), [plain], [*gate[2], scaled]
    return None


def gelu_halved(node: Node) -> Found | None:
    """``(x * gate) * 0.5``."""
    product = producer(node.inputs[0])
    if not scales_by(node, 0.5) or product is None or not isinstance(product.op, Mul):
        return None
    for plain, gated in (product.inputs, product.inputs[::-1]):
        gate = _gate(gated)
        if gate is not None and gate[1] is plain:
            return Activation(gate[0]), [plain], [*gate[2], product]
    return None


def _gate(value: Value | None) -> _Gate | None:
    """``1 + erf(x / sqrt(2))`` or ``1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))``."""
    add = producer(value)
    if add is None or not scales_by(add, None, 1.0):
        return None
    bent = producer(add.inputs[0])
    inner = producer(bent.inputs[0]) if bent is not None else None
    if bent is None or inner is None:
        return None
    if bent.op == Unary("erf") and scales_by(inner, math.sqrt(0.5)):
        x = inner.inputs[0]
        return None if x is None else ("gelu", x, [inner, bent, add])
    if bent.op == Activation("tanh") and scales_by(inner, math.sqrt(2 / math.pi)):
        polynomial = _polynomial(inner.inputs[0])
        if polynomial is not None:
            x, nodes = polynomial
            return "gelu_tanh", x, [*nodes, inner, bent, add]
    return None


def _polynomial(value: Value | None) -> tuple[Value, list[Node]] | None:
    """``x + 0.044715 * x**3``: x and the nodes."""
    total = producer(value)
    if total is None or total.op != Add() or len(total.inputs) != 2:
        return None
    for x, term in (total.inputs, total.inputs[::-1]):
        scaled = producer(term)
        if x is None or scaled is None or not scales_by(scaled, 0.044715):
            continue
        cube = _cube(scaled.inputs[0], x)
        if cube is not None:
            return x, [*cube, scaled, total]
    return None


def _cube(value: Value | None, x: Value) -> list[Node] | None:
    """The nodes of ``x**3``, ``x * x**2`` or ``x * (x * x)``."""
    cube = producer(value)
    if cube is None:
        return None
    if _is_power(cube, x, 3.0):
        return [cube]
    if cube.op != Mul():
        return None
    for other, rest in (cube.inputs, cube.inputs[::-1]):
        square = producer(rest)
        if other is x and square is not None and is_square(square, x):
            return [square, cube]
    return None


def is_square(node: Node, value: Value) -> bool:
    """Whether a node is ``value * value`` or ``value**2``."""
    if node.op == Mul():
        return node.inputs[0] is value and node.inputs[1] is value
    return _is_power(node, value, 2.0)


def _is_power(node: Node, x: Value, exponent: float) -> bool:
    return node.op == Pow() and node.inputs[0] is x and is_number(node.inputs[1], exponent)

"""How activations, gates and softmax are written in ONNX."""

from __future__ import annotations

import math
from typing import Any

from .... import ir
from ....ir import DerivedTensor, ModelError, Tensor
from ....ir.tensor import reshaped
from ..speller import Speller, spells
from .arithmetic import clip, line

_OPERATORS = {
    "relu": ("Relu", 1, ()), "sigmoid": ("Sigmoid", 1, ()), "tanh": ("Tanh", 1, ()),
    "softplus": ("Softplus", 1, ()), "softsign": ("Softsign", 1, ()),
    "leaky_relu": ("LeakyRelu", 1, ("alpha",)), "elu": ("Elu", 1, ("alpha",)),
    "selu": ("Selu", 1, ("alpha", "gamma")), "hard_sigmoid": ("HardSigmoid", 1, ("alpha", "beta")),
    "celu": ("Celu", 12, ("alpha",)), "hard_swish": ("HardSwish", 14, ()), "mish": ("Mish", 18, ()),
    "thresholded_relu": ("ThresholdedRelu", 10, ("alpha",)),
}  # fmt: skip
"""Activations that are one operator: its name, the first opset that has it, and the attributes that hold the parameters."""

_COMPOSED = {
    "relu6": "Clip", "clip": "Clip", "silu": "Sigmoid Mul", "gelu": "Gelu", "gelu_tanh": "Gelu",
}  # fmt: skip
"""The others."""


@spells(ir.Activation, writes={kind: row[0] for kind, row in _OPERATORS.items()} | _COMPOSED)
def activation(s: Speller, op: ir.Activation) -> None:
    """One operator, or several where the opset lacks it."""
    _activate(s, op, s.outputs[0])


def _activate(s: Speller, op: ir.Activation, out: str) -> None:
    x = s.inputs[0]
    row = _OPERATORS.get(op.kind)
    if row is not None and s.opset >= row[1]:
        s.emit(row[0], [x], out, **dict(zip(row[2], op.params, strict=True)))
        return
    match op.kind:
        case "relu6":
            clip(s, 0.0, 6.0, x, out)
        case "clip":
            clip(s, op.params[0], op.params[1], x, out)
        case "silu":
            s.emit("Mul", [x, s.emit("Sigmoid", [x])], out)
        case "hard_swish":
            gate = s.emit("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
            s.emit("Mul", [x, gate], out)
        case "mish":
            s.emit("Mul", [x, s.emit("Tanh", [s.emit("Softplus", [x])])], out)
        case "gelu" | "gelu_tanh":
            _gelu(s, op.kind == "gelu_tanh", x, out)
        case "celu":
            _celu(s, op.params[0], x, out)
        case _:
            raise s.refuse(f"of kind {op.kind} does not exist")


def _gelu(s: Speller, tanh: bool, x: str, out: str) -> None:
    if s.opset >= 20:
        s.emit("Gelu", [x], out, approximate="tanh" if tanh else "none")
        return
    half = s.emit("Mul", [x, s.scalar(0.5, "half")])
    if tanh:
        cube = s.emit("Mul", [s.emit("Mul", [x, x]), x])
        inner = s.emit("Add", [x, s.emit("Mul", [cube, s.scalar(0.044715, "c")])])
        curve = s.emit("Tanh", [s.emit("Mul", [inner, s.scalar(math.sqrt(2 / math.pi), "c")])])
    else:
        curve = s.emit("Erf", [s.emit("Mul", [x, s.scalar(math.sqrt(0.5), "c")])])
    s.emit("Mul", [half, s.emit("Add", [curve, s.scalar(1.0, "one")])], out)


def _celu(s: Speller, alpha: float, x: str, out: str) -> None:
    """``relu(x) + alpha * min(elu(x / alpha), 0)``, before ONNX had Celu."""
    inner = s.emit("Elu", [s.emit("Div", [x, s.scalar(alpha, "alpha")])])
    positive = s.emit("Relu", [x])
    negative = s.emit("Sub", [inner, s.emit("Relu", [inner])])
    low = s.emit("Mul", [negative, s.scalar(alpha, "alpha")])
    s.emit("Add", [positive, low], out)


@spells(ir.PRelu, writes="PRelu", note="a constant slope")
def prelu(s: Speller, op: ir.PRelu) -> None:
    """PRelu, whose slope lies along the last axes."""
    slope = s.node.required(1)
    if slope.data is None:
        raise ModelError(f"{s.node.name}: PRelu with a computed slope")
    _sloped(s, op.axis, slope.data, s.inputs[1])


def _sloped(s: Speller, axis: int, slope: Tensor, name: str, output: str | None = None) -> None:
    rank = s.rank
    if rank is None and slope.size > 1:
        raise ModelError(f"{s.node.name}: PRelu of unknown rank")
    trailing = rank - axis % rank - 1 if rank else 0
    shape = (slope.size, *[1] * trailing) if slope.size > 1 else (1,)
    operand = s.new_constant(reshaped(slope, shape), name)
    s.emit("PRelu", [s.inputs[0], operand], output or s.outputs[0])


@spells(
    ir.Gate, writes="PRelu LeakyRelu Mul Add Identity", note="a frozen gate: its number is constant"
)
def gate(s: Speller, op: ir.Gate) -> None:
    """A frozen gate of number g; without a line a gated ReLU is a leaky one, ``max(x, 0) + (1 - g) * min(x, 0)``."""
    number, slope, x = s.node.required(1), s.node.input(2), s.inputs[0]
    if number.data is None or (slope is not None and slope.data is None):
        raise ModelError(f"{s.node.name}: a gate of a computed number has no ONNX spelling")
    g = float(number.data.float64()[0])
    sloped = s.given(3)
    if g == 0.0:
        line(s, op.axis, 3, s.outputs[0])
    elif slope is not None and slope.data is not None and not (sloped and g < 1.0):
        given = slope.data

        def mixed() -> Any:
            return g * given.float64() + (1 - g)

        _sloped(s, op.axis, DerivedTensor(given.shape, given.dtype, mixed), s.inputs[2])
    elif g == 1.0:
        activation(s, ir.Activation(op.kind, op.params))
    elif op.kind in ("relu", "leaky_relu") and not sloped:
        alpha = op.params[0] if op.params else 0.0
        s.emit("LeakyRelu", [x], s.outputs[0], alpha=g * alpha + (1 - g))
    else:
        act = s.new_name(f"{s.outputs[0]}_act")
        if slope is not None and slope.data is not None:
            _sloped(s, op.axis, slope.data, s.inputs[2], act)
        else:
            _activate(s, ir.Activation(op.kind, op.params), act)
        act = s.emit("Mul", [act, s.scalar(g, "gate")])
        rest = s.emit("Mul", [line(s, op.axis, 3) if sloped else x, s.scalar(1 - g, "gate_rest")])
        s.emit("Add", [act, rest], s.outputs[0])


@spells(ir.Softmax, writes="Softmax")
@spells(ir.LogSoftmax, writes="LogSoftmax")
def softmax(s: Speller, op: ir.Softmax | ir.LogSoftmax) -> None:
    """Softmax or LogSoftmax; before opset 13 between transposes where the axis is not the last."""
    rank = s.rank
    if s.opset >= 13 or (rank is not None and op.axis % rank == rank - 1):
        # Before opset 13 all axes from ``axis`` on are one: only the last axis means the same.
        axis = op.axis if s.opset >= 13 or rank is None else rank - 1
        s.emit(op.name, [s.inputs[0]], s.outputs[0], axis=axis)
        return
    if rank is None:
        raise s.refuse("of unknown rank does not exist")
    perm = list(range(rank))
    own = op.axis % rank
    perm[own], perm[-1] = perm[-1], perm[own]
    turned = s.emit("Transpose", [s.inputs[0]], perm=perm)
    soft = s.emit(op.name, [turned], axis=rank - 1)
    s.emit("Transpose", [soft], s.outputs[0], perm=perm)

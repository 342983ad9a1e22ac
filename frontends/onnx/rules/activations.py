"""ONNX's activations and softmaxes."""

from __future__ import annotations

import math
from typing import Any

from .... import ir
from ....ir import Shape, SplatTensor
from ....ir.ops.base import axis_of
from ....ir.tensor import reshaped
from ...lowering import Lowered, Steps
from ...lowering.activations import SHRINKS, activation, clip, gelu, shrink, softmax
from ...lowering.arithmetic import scale_place
from ...lowering.base import Builder
from ...support import LeftAlone
from ..node import OnnxNode
from ..registry import reads


def _plain(operator: str, kind: str, *parameters: tuple[str, float]) -> None:
    """Register an operator whose attributes are the parameters of an activation; ``parameters`` has their defaults."""

    @reads(operator, makes=(ir.Activation, kind))
    def rule(node: OnnxNode) -> Lowered | None:
        params = [node.number(name, default) for name, default in parameters]
        return activation(kind, node.required(0), params)


_plain("Celu", "celu", ("alpha", 1.0))
_plain("Elu", "elu", ("alpha", 1.0))
_plain("HardSigmoid", "hard_sigmoid", ("alpha", 0.2), ("beta", 0.5))
_plain("HardSwish", "hard_swish")
_plain("LeakyRelu", "leaky_relu", ("alpha", 0.01))
_plain("Mish", "mish")
_plain("Relu", "relu")
_plain("Sigmoid", "sigmoid")
_plain("Softplus", "softplus")
_plain("Softsign", "softsign")
_plain("Tanh", "tanh")
_plain("ThresholdedRelu", "thresholded_relu", ("alpha", 1.0))


@reads("Selu", makes=(ir.Activation, "selu"), since=6)
def _selu(node: OnnxNode) -> Lowered | None:
    # Below opset 6 the defaults had fewer digits.
    params = node.number("alpha", 1.6732632), node.number("gamma", 1.050701)
    return activation("selu", node.required(0), params)


@reads(
    "Clip",
    makes=[(ir.Activation, "clip"), (ir.Activation, "relu6"), ir.Max, ir.Min],
    note="integers, and between computed numbers, as a Max and a Min",
    several=True,
)
def _clip(node: OnnxNode) -> Lowered | Steps | None:
    bounds = [i for i in (1, 2) if node.input(i) is not None]
    dtype = node.type().dtype
    whole = dtype is not None and dtype.is_int
    if any(whole or node.scalar(i) is None for i in bounds):
        return _between_values(node)
    low, high = node.number("min", -math.inf), node.number("max", math.inf)
    for index in (1, 2):
        if node.input(index) is None:
            continue
        number = node.scalar(index)
        assert number is not None
        low, high = (number, high) if index == 1 else (low, number)
    if node.opset < 11:
        # Old exporters write the largest float32 number if there is no limit.
        low = -math.inf if low <= -3.4e38 else low
        high = math.inf if high >= 3.4e38 else high
    return clip(node.required(0), low, high) if node.type().dtype is not None else None


def _between_values(node: OnnxNode) -> Steps | None:
    if node.type().dtype is None:
        return None
    made, x = Builder(), node.required(0)
    last: Any = x
    for op, bound in ((ir.Max(), node.input(1)), (ir.Min(), node.input(2))):
        if bound is not None:
            last = made.add(op, last, bound)
    return made.steps()


@reads("Shrink", makes=SHRINKS, note="floats", several=True)
def _shrink(node: OnnxNode) -> Steps | None:
    return shrink(node.required(0), node.number("lambd", 0.5), node.number("bias", 0.0), True)


@reads("Gelu", makes=[(ir.Activation, "gelu"), (ir.Activation, "gelu_tanh")])
def _gelu(node: OnnxNode) -> Lowered | None:
    return gelu(node.required(0), node.text("approximate", "none"))


@reads("Swish", makes=(ir.Activation, "silu"), note="alpha of 1")
def _swish(node: OnnxNode) -> Lowered | None:
    plain = node.number("alpha", 1.0) == 1.0
    return activation("silu", node.required(0)) if plain else None


@reads(
    "PRelu",
    makes=[ir.PRelu, (ir.Compare, "less"), ir.Mul, ir.Where],
    note="constant slopes along one axis; others in steps",
    since=7,
    several=True,
)
def _prelu(node: OnnxNode) -> Lowered | Steps | None:
    # Below opset 7, slopes were along axis 1, without broadcasting.
    slope = node.data(1)
    place = scale_place(node.type(), slope) if slope is not None else None
    if slope is None or place is None:
        return _by_element(node)
    return ir.PRelu(place[0]), [node.input(0), reshaped(slope, (place[1],))]


def _by_element(node: OnnxNode) -> Steps | None:
    """A PRelu with computed slopes, or with slopes along several axes, which broadcast to its input."""
    x, slope = node.type(), node.type(1)
    if x.dtype is None or not x.dtype.is_wide_float or x.rank is None or slope.rank is None:
        return None
    made = Builder()
    below = made.add(ir.Compare("less"), node.input(0), SplatTensor((), x.dtype, 0.0))
    made.add(ir.Where(), below, made.add(ir.Mul(), node.input(0), node.input(1)), node.input(0))
    return made.steps()


_OLD_SOFTMAX = "below opset 13, over several axes: one size may be unknown"


@reads("Softmax", makes=ir.Softmax, note=_OLD_SOFTMAX, several=True)
def _softmax(node: OnnxNode) -> Lowered | Steps | None:
    return _along_axis(ir.Softmax, node)


@reads("LogSoftmax", makes=ir.LogSoftmax, note=_OLD_SOFTMAX, several=True)
def _log_softmax(node: OnnxNode) -> Lowered | Steps | None:
    return _along_axis(ir.LogSoftmax, node)


def _along_axis(
    kind: type[ir.Softmax] | type[ir.LogSoftmax], node: OnnxNode
) -> Lowered | Steps | None:
    axis, shape = node.attribute("axis", -1 if node.opset >= 13 else 1), node.type().shape
    if node.opset >= 13 or (shape and axis in (-1, len(shape) - 1)):
        return softmax(kind, node.required(0), axis)
    if not shape:
        return None
    # Below opset 13, the axes from ``axis`` on are joined into one, and those before it into another.
    axis = axis_of(axis, len(shape))
    if all(size == 1 for size in shape[axis + 1 :]):
        return softmax(kind, node.required(0), axis)
    return _over_joined_axes(kind, node, axis, shape)


def _over_joined_axes(
    kind: type[ir.Softmax] | type[ir.LogSoftmax], node: OnnxNode, axis: int, shape: Shape
) -> Steps:
    target: list[int | None] = [size if isinstance(size, int) else -1 for size in shape]
    if axis == 1 and target[0] == -1:
        target[0] = None  # The first axis keeps its size.
    if target.count(-1) > 1 or (-1 in target and 0 in target):
        raise LeftAlone(
            f"in this version of ONNX it joins axes, and the sizes of {node.type()} are not known (--fix-shape)"
        )
    made = Builder()
    joined = made.add(ir.Flatten(axis), node.required(0))
    made.add(ir.Reshape(tuple(target)), made.add(kind(1), joined))
    return made.steps()

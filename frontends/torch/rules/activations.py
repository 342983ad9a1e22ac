"""torch's activations and softmaxes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from .... import ir
from ....ir import Tensor, Value
from ....ir.ops.base import axis_of
from ....ir.tensor import reshaped
from ...lowering import Lowered, Step, Steps
from ...lowering.activations import (
    HARD_SIGMOID,
    activation,
    below,
    clip,
    gelu,
    number,
    shrink,
    softmax,
)
from ...lowering.base import Builder
from ...support import LeftAlone
from ..call import Call
from ..registry import reads, reads_module


def _plain(
    name: str, kind: str, *parameters: tuple[str, float], inplace: int | None = None
) -> None:
    """Register a call whose arguments, with their defaults, are the parameters of an activation."""

    @reads(name, makes=(ir.Activation, kind), inplace=inplace)
    def rule(call: Call) -> Lowered | None:
        params = [call.get(1 + i, key, default) for i, (key, default) in enumerate(parameters)]
        return activation(kind, call.value(0), [float(p) for p in params])


_plain("relu", "relu", inplace=1)
_plain("relu6", "relu6", inplace=1)
_plain("silu", "silu", inplace=1)
_plain("sigmoid", "sigmoid")
_plain("tanh", "tanh")
_plain("hardswish", "hard_swish", inplace=1)
_plain("mish", "mish", inplace=1)
_plain("softsign", "softsign")
_plain("leaky_relu", "leaky_relu", ("negative_slope", 0.01), inplace=2)
_plain("celu", "celu", ("alpha", 1.0), inplace=2)

reads_module(nn.ReLU, call="relu")
reads_module(nn.ReLU6, call="relu6")
reads_module(nn.SiLU, call="silu")
reads_module(nn.Sigmoid, call="sigmoid")
reads_module(nn.Tanh, call="tanh")
reads_module(nn.Hardswish, call="hardswish")
reads_module(nn.Mish, call="mish")
reads_module(nn.Softsign, call="softsign")
reads_module(nn.LeakyReLU, call="leaky_relu", fields="negative_slope")
reads_module(nn.CELU, call="celu", fields="alpha")


@reads("hardsigmoid", makes=(ir.Activation, "hard_sigmoid"), inplace=1)
def _hardsigmoid(call: Call) -> Lowered | None:
    return activation("hard_sigmoid", call.value(0), HARD_SIGMOID)


reads_module(nn.Hardsigmoid, call="hardsigmoid")


_SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)
"""The numbers that torch's SELU computes with (Klambauer et al., arXiv:1706.02515)."""


@reads("selu", makes=(ir.Activation, "selu"), inplace=1)
def _selu(call: Call) -> Lowered | None:
    return _scaled_exponential(call.value(0))


reads_module(nn.SELU, call="selu")


def _scaled_exponential(x: ir.Value) -> Lowered | None:
    """SELU, its numbers rounded to float32 unless the tensor is of float64: as torch computes, and as ONNX stores them."""
    if x.type.dtype is ir.DType.F64:
        return activation("selu", x, _SELU)
    return activation("selu", x, [float(str(np.float32(v))) for v in _SELU])


@reads("elu", makes=[(ir.Activation, "elu"), (ir.Activation, "selu")], inplace=2)
def _elu(call: Call) -> Lowered | None:
    """``(x, alpha)``; ATen's ``(x, alpha, scale, input_scale)`` is SELU with SELU's numbers."""
    alpha = float(call.get(1, "alpha", 1.0))
    if call.aten:
        scale, inner = call.get(2, "scale", 1), call.get(3, "input_scale", 1)
        if inner == 1 and all(map(math.isclose, (alpha, scale), _SELU)):
            return _scaled_exponential(call.value(0))
        if (scale, inner) != (1, 1):
            raise LeftAlone("the IR's ELU has no scales")
    return activation("elu", call.value(0), [alpha])


reads_module(nn.ELU, call="elu", fields="alpha")


@reads("gelu", makes=[(ir.Activation, "gelu"), (ir.Activation, "gelu_tanh")])
def _gelu(call: Call) -> Lowered | None:
    return gelu(call.value(0), call.get(1, "approximate", "none"))


reads_module(nn.GELU, call="gelu", fields="approximate")


@reads("hardtanh", makes=[(ir.Activation, "clip"), (ir.Activation, "relu6")], inplace=3)
def _hardtanh(call: Call) -> Lowered | None:
    return clip(call.value(0), call.get(1, "min_val", -1.0), call.get(2, "max_val", 1.0))


reads_module(nn.Hardtanh, call="hardtanh", fields="min_val max_val")


@reads(
    "clamp",
    "clip",
    makes=[(ir.Activation, "clip"), (ir.Activation, "relu6"), (ir.Activation, "relu")],
    note="floats, between numbers",
)
def _clamp(call: Call) -> Lowered | None:
    return _between(call.value(0), call.get(1, "min"), call.get(2, "max"))


@reads(
    "clamp_min", makes=[(ir.Activation, "clip"), (ir.Activation, "relu")], note="floats, a number"
)
def _clamp_min(call: Call) -> Lowered | None:
    return _between(call.value(0), call.get(1, "min"), None)


def _between(x: ir.Value, low: object, high: object) -> Lowered | None:
    """A clip between two numbers; from 0 on, a ReLU."""
    floats = x.type.dtype is not None and x.type.dtype.is_wide_float
    if floats and high is None and type(low) in (int, float) and low == 0:
        return activation("relu", x)
    return clip(x, low, high)


@reads("clamp_max", makes=(ir.Activation, "clip"), note="floats, a number")
def _clamp_max(call: Call) -> Lowered | None:
    return clip(call.value(0), None, call.get(1, "max"))


@reads(
    "threshold",
    "_threshold",  # What F.threshold calls itself.
    makes=[(ir.Activation, "thresholded_relu"), (ir.Compare, "less_equal"), ir.Where],
    note="in steps where it is not 0 below",
    inplace=3,
    several=True,
)
def _threshold(call: Call) -> Lowered | Steps | None:
    """``(x, threshold, value)``."""
    threshold, value = float(call.get(1, "threshold")), float(call.get(2, "value"))
    if value != 0:
        return below(call.value(0), threshold, value)
    return activation("thresholded_relu", call.value(0), [threshold])


reads_module(nn.Threshold, call="threshold", fields="threshold value")


@reads(
    "softplus",
    makes=[(ir.Activation, "softplus"), ir.Scale, (ir.Compare, "greater"), ir.Where],
    note="in steps with a low threshold, or a beta",
    several=True,
)
def _softplus(call: Call) -> Lowered | Steps | None:
    """``(x, beta, threshold)``: ``log(1 + exp(beta * x)) / beta``, and x itself where ``beta * x > threshold``."""
    x, beta = call.value(0), float(call.get(1, "beta", 1))
    dtype, threshold = x.type.dtype, float(call.get(2, "threshold", 20))
    # What the threshold cuts off is below exp(-threshold), beside a number of at least its size.
    cuts = threshold < (36.0 if dtype is ir.DType.F64 else 16.0)
    if beta == 1 and not cuts:
        return activation("softplus", x)
    if dtype is None or not dtype.is_wide_float or not beta > 0:
        raise LeftAlone(f"a beta of {beta:g} needs a known type of floats, and to be above 0")
    made, axis = Builder(), 1 if (x.type.rank or 0) > 1 else 0
    scaled: Value | Step = x if beta == 1 else made.add(ir.Scale(axis), x, _number(beta, dtype))
    bent = made.add(ir.Activation("softplus"), scaled)
    if beta != 1:
        bent = made.add(ir.Scale(axis), bent, _number(1 / beta, dtype))
    if cuts:
        large = made.add(ir.Compare("greater"), scaled, number(threshold, dtype))
        made.add(ir.Where(), large, x, bent)
    return made.steps()


@reads("hardshrink", makes=[(ir.Compare, "less_equal"), (ir.Unary, "abs"), ir.Where], several=True)
def _hardshrink(call: Call) -> Steps | None:
    """``(x, lambd)``."""
    return shrink(call.value(0), float(call.get(1, "lambd", 0.5)), 0.0)


reads_module(nn.Hardshrink, call="hardshrink", fields="lambd")


@reads("softshrink", makes=[(ir.Activation, "clip"), ir.Sub], several=True)
def _softshrink(call: Call) -> Steps | None:
    """``(x, lambd)``."""
    ends = float(call.get(1, "lambd", 0.5))
    return shrink(call.value(0), ends, ends)


reads_module(nn.Softshrink, call="softshrink", fields="lambd")


@reads("tanhshrink", makes=[(ir.Activation, "tanh"), ir.Sub], several=True)
def _tanhshrink(call: Call) -> Steps | None:
    x = call.value(0)
    if x.type.dtype is None or not x.type.dtype.is_wide_float:
        return None
    made = Builder()
    made.add(ir.Sub(), x, made.add(ir.Activation("tanh"), x))
    return made.steps()


reads_module(nn.Tanhshrink, call="tanhshrink")


@reads("rrelu", makes=(ir.Activation, "leaky_relu"), note="in evaluation mode", inplace=4)
def _rrelu(call: Call) -> Lowered | None:
    """``(x, lower, upper, training)``: outside of training, the slope is between both."""
    if call.get(3, "training", False):
        raise LeftAlone("it draws random slopes in training mode")
    ends = (call.get(1, "lower", 1 / 8), call.get(2, "upper", 1 / 3))
    return activation("leaky_relu", call.value(0), [sum(map(float, ends)) / 2])


reads_module(nn.RReLU, call="rrelu", fields="lower upper training")


def _number(value: float, dtype: ir.DType) -> Tensor:
    return reshaped(number(value, dtype), (1,))


reads_module(nn.Softplus, call="softplus", fields="beta threshold")


@reads(
    "log_sigmoid",
    makes=[(ir.Activation, "softplus"), (ir.Unary, "neg")],
    several=True,
)
def _log_sigmoid(call: Call) -> Steps | None:
    """``log(sigmoid(x))`` is ``-softplus(-x)``, which does not lose small numbers."""
    x = call.value(0)
    if x.type.dtype is None or not x.type.dtype.is_wide_float:
        return None
    made = Builder()
    bent = made.add(ir.Activation("softplus"), made.add(ir.Unary("neg"), x))
    made.add(ir.Unary("neg"), bent)
    return made.steps()


reads_module(nn.LogSigmoid, call="log_sigmoid")


@reads("glu", makes=[ir.Split, (ir.Activation, "sigmoid"), ir.Mul], several=True)
def _glu(call: Call) -> Steps | None:
    """``(x, dim)``: one half times the sigmoid of the other."""
    x, dim = call.value(0), call.get(1, "dim", -1)
    if not x.type.rank or x.type.dtype is None or not x.type.dtype.is_wide_float:
        return None
    axis = axis_of(dim, x.type.rank)
    size = call.certain(x).dim(axis)
    if not isinstance(size, int) or size % 2:
        raise LeftAlone(f"the size of axis {axis} is not known")
    made = Builder()
    halves = made.add(ir.Split((size // 2, size // 2), axis), x)
    gate = made.add(ir.Activation("sigmoid"), halves.of(1))
    made.add(ir.Mul(), halves, gate)
    return made.steps()


reads_module(nn.GLU, call="glu", fields="dim")


@reads("prelu", makes=ir.PRelu, note="constant slopes")
def _prelu(call: Call) -> Lowered | None:
    """``(x, weight)``: one slope, or one for each channel."""
    x, slope = call.value(0), call.value(1, "weight")
    if slope.data is None or len(slope.data.shape) != 1:
        return None
    return (ir.PRelu(1), [x, slope]) if x.type.rank not in (0, 1) or slope.data.size == 1 else None


reads_module(nn.PReLU, call="prelu", fields="weight")


@reads("softmax", makes=ir.Softmax, note="without another type to compute in")
def _softmax(call: Call) -> Lowered | None:
    return _along_axis(ir.Softmax, call)


@reads("log_softmax", makes=ir.LogSoftmax, note="without another type to compute in")
def _log_softmax(call: Call) -> Lowered | None:
    return _along_axis(ir.LogSoftmax, call)


def _along_axis(kind: type[ir.Softmax] | type[ir.LogSoftmax], call: Call) -> Lowered | None:
    """``(x, dim)``."""
    x, dim = call.value(0), call.get(1, "dim")
    # The type to compute in is the third argument of torch.softmax, the fourth of F.softmax.
    stated = any(isinstance(a, torch.dtype) for a in (*call.args, *call.kwargs.values()))
    return None if dim is None or stated else softmax(kind, x, dim)


reads_module(nn.Softmax, call="softmax", fields="dim")
reads_module(nn.LogSoftmax, call="log_softmax", fields="dim")

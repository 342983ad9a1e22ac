"""What each ONNX operator is in the IR: one rule an operator.

Affine operators are in :mod:`.linear`, shapes in :mod:`.shape`, functions of numbers in
:mod:`.functions`, resolutions in :mod:`.resample`, the rest here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .... import ir
from ....hosts.onnx.tensors import dtype_of
from ....ir import DType
from ....ir.tensor import reshaped
from ...lowering import Lowered, scale_place
from ..node import Rule, Site
from .functions import MATH_RULES
from .linear import LINEAR_RULES
from .resample import RESIZE_RULES
from .shape import SHAPE_RULES

HARD_SIGMOID = (1 / 6, 0.5)
"""The parameters that make ``x * hard_sigmoid(x)`` a HardSwish."""


def _near(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(found, wanted, strict=True))


def _clip(s: Site) -> Lowered | None:
    low, high = s.number("min", -math.inf), s.number("max", math.inf)
    for index in (1, 2):
        if s.input(index) is None:
            continue
        number = s.scalar(index)
        if number is None:
            return None
        low, high = (number, high) if index == 1 else (low, number)
    dtype = s.type().dtype
    if dtype is None or not dtype.is_wide_float or math.isnan(low) or math.isnan(high):
        return None
    if s.opset < 11:
        # Old exporters write the float32 limits for an open end.
        low = -math.inf if low <= -3.4e38 else low
        high = math.inf if high >= 3.4e38 else high
    if (low, high) == (0.0, 6.0):
        return ir.Activation("relu6"), s.inputs[:1]
    return ir.Activation("clip", (low, high)), s.inputs[:1]


def _activation(kind: str, *parameters: tuple[str, float]) -> Rule:
    def rule(s: Site) -> Lowered | None:
        dtype = s.type().dtype
        if dtype is not None and not dtype.is_float:
            return None
        params = tuple(s.number(name, default) for name, default in parameters)
        if kind == "hard_sigmoid" and _near(params, HARD_SIGMOID):
            params = HARD_SIGMOID
        return ir.Activation(kind, params), s.inputs

    return rule


def _gelu(s: Site) -> Lowered | None:
    kind = "gelu_tanh" if s.text("approximate", "none") == "tanh" else "gelu"
    return ir.Activation(kind), s.inputs


def _swish(s: Site) -> Lowered | None:
    return (ir.Activation("silu"), s.inputs) if s.number("alpha", 1.0) == 1.0 else None


def _prelu(s: Site) -> Lowered | None:
    slope, x = s.data(1), s.type()
    if slope is None:
        return None
    place = scale_place(x, slope)
    if place is None:
        return None
    return ir.PRelu(place[0]), [s.input(0), reshaped(slope, (place[1],))]


def _softmax(kind: type[ir.Softmax] | type[ir.LogSoftmax]) -> Rule:
    def rule(s: Site) -> Lowered | None:
        axis, rank = s.attribute("axis", -1 if s.opset >= 13 else 1), s.type().rank
        if s.opset >= 13:
            return kind(axis if rank is None or axis >= 0 else axis + rank), s.inputs
        # All axes from ``axis`` on are one: only the last axis means the same.
        return (kind(rank - 1), s.inputs) if rank and axis in (-1, rank - 1) else None

    return rule


def _layer_norm(s: Site) -> Lowered | None:
    axis, rank = s.attribute("axis", -1), s.type().rank
    if s.outputs != 1 or rank is None or s.attribute("stash_type", 1) != 1:
        return None
    (axis,) = s.axes([axis], rank)
    for index in (1, 2):
        if s.input(index) is not None and s.type(index).rank != rank - axis:
            return None
    return ir.LayerNorm(axis, s.number("epsilon", 1e-5)), s.inputs


def _lstm(s: Site) -> Lowered | None:
    # Other activations, clipping, coupled gates and peepholes are left alone.
    if (
        s.attribute("layout", 0)
        or s.flag("input_forget")
        or len(s.inputs) < 3
        or s.input(7) is not None
    ):
        return None
    hidden, w = s.attribute("hidden_size"), s.type(1)
    direction = s.text("direction", "forward")
    if hidden is None or not 1 <= s.outputs <= 3 or s.type().rank != 3 or w.rank != 3:
        return None
    return ir.Lstm(hidden, direction, s.outputs), s.inputs[:7]


def _instance_norm(s: Site) -> Lowered | None:
    if s.type().rank is None or s.type().rank in (0, 1):
        return None
    return ir.GroupNorm(0, s.number("epsilon", 1e-5)), s.inputs


def _group_norm(s: Site) -> Lowered | None:
    # Before opset 21 the vectors had one number a group.
    if s.opset < 21 or s.type().rank in (None, 0, 1) or s.attribute("stash_type", 1) != 1:
        return None
    return ir.GroupNorm(s.attribute("num_groups"), s.number("epsilon", 1e-5)), s.inputs


def _cast(s: Site) -> Lowered | None:
    to = dtype_of(s.attribute("to", 0))
    plain = to is not None and (to.bits >= 16 or to in (DType.I8, DType.U8, DType.BOOL))
    return (ir.Cast(to.value), s.inputs) if to is not None and plain else None


def _identity(s: Site) -> Lowered | None:
    return (ir.Identity(), s.inputs) if s.type().dtype is not None else None


def _dropout(s: Site) -> Lowered | None:
    if s.outputs != 1:
        return None
    if s.input(2) is not None:
        training = s.data(2)
        if training is None or bool(training.numpy().reshape(-1)[0]):
            return None
    return ir.Identity(), s.inputs[:1]


RULES: dict[str, Rule] = {
    **LINEAR_RULES,
    **MATH_RULES,
    **RESIZE_RULES,
    **SHAPE_RULES,
    "Cast": _cast,
    "Celu": _activation("celu", ("alpha", 1.0)),
    "Clip": _clip,
    "Dropout": _dropout,
    "Elu": _activation("elu", ("alpha", 1.0)),
    "Gelu": _gelu,
    "GroupNormalization": _group_norm,
    "HardSigmoid": _activation("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    "HardSwish": _activation("hard_swish"),
    "Identity": _identity,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LSTM": _lstm,
    "LogSoftmax": _softmax(ir.LogSoftmax),
    "LeakyRelu": _activation("leaky_relu", ("alpha", 0.01)),
    "Mish": _activation("mish"),
    "PRelu": _prelu,
    "Relu": _activation("relu"),
    "Selu": _activation("selu", ("alpha", 1.6732632), ("gamma", 1.050701)),
    "Sigmoid": _activation("sigmoid"),
    "Softmax": _softmax(ir.Softmax),
    "Softplus": _activation("softplus"),
    "Softsign": _activation("softsign"),
    "Swish": _swish,
    "Tanh": _activation("tanh"),
    "ThresholdedRelu": _activation("thresholded_relu", ("alpha", 1.0)),
}

CHANGED = {"BatchNormalization": 7, "Concat": 4, "Dropout": 7, "Gemm": 7, "PRelu": 7, "Selu": 6}
"""Below these opsets operators meant something else by the same attributes (training by default, other defaults, channels
by axis 1 in place of broadcasting): they stay opaque."""

TRAILING = frozenset({"Dropout", "LayerNormalization", "MaxPool"})
"""Operators whose further results change nothing about the first, so that unused ones do not matter."""

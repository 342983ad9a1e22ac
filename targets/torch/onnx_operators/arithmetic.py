"""How ONNX's functions of single numbers are written in torch, where the IR has no op for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ....ir import DType
from ..speller import Results
from .operator import Operator, writes

_BITWISE: dict[str, Callable[..., Any]] = {
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
    "BitwiseNot": torch.bitwise_not,
}  # fmt: skip


@writes(*_BITWISE)
def bitwise(o: Operator) -> fx.Node:
    """The function of the bits."""
    kind = o.node.op.attributes()["kind"].removeprefix("onnx:")
    return o.call(_BITWISE[kind], *o.values())


@writes("BitShift")
def bit_shift(o: Operator) -> fx.Node:
    """A shift of bytes; of signed numbers ONNX has none."""
    if o.dtype is not DType.U8:
        raise o.refuse_operator("torch shifts no unsigned integers of more than 8 bits")
    right = o.text("direction", "LEFT") == "RIGHT"
    function = torch.bitwise_right_shift if right else torch.bitwise_left_shift
    return o.call(function, *o.values())


@writes("IsInf")
def is_infinite(o: Operator) -> fx.Node:
    """``torch.isposinf``, ``torch.isneginf`` or ``torch.isinf``."""
    positive, negative = (o.attributes.get(f"detect_{n}", 1) for n in ("positive", "negative"))
    if positive and negative:
        return o.call(torch.isinf, o.value())
    if not positive and not negative:
        return o.call(torch.zeros_like, o.value(), dtype=torch.bool)
    return o.call(torch.isposinf if positive else torch.isneginf, o.value())


@writes("Shrink")
def shrink(o: Operator) -> fx.Node:
    """``x`` moved towards zero by ``bias`` beyond ``lambd``, and 0 between."""
    x, bias = o.value(), o.attributes.get("bias", 0.0)
    limit = o.attributes.get("lambd", 0.5)
    low = o.call(torch.where, o.call(torch.lt, x, -limit), o.call(torch.add, x, bias), 0)
    made = o.call(torch.where, o.call(torch.gt, x, limit), o.call(torch.sub, x, bias), low)
    return o.call("to", made, o.dtype_of(o.dtype)) if o.dtype is not None else made


@writes("Pow")
def power(o: Operator) -> fx.Node:
    """``torch.pow`` in the element type of the base."""
    made = o.call(torch.pow, *o.values())
    if o.dtype is None:
        raise o.refuse_operator("the element type of its base is not known")
    return o.call("to", made, o.dtype_of(o.dtype))


@writes("Clip")
def clip(o: Operator) -> fx.Node:
    """``torch.maximum`` and ``torch.minimum``; the upper bound wins."""
    made = o.value()
    for index, function, name in ((1, torch.maximum, "min"), (2, torch.minimum, "max")):
        if o.is_given(index):
            made = o.call(function, made, o.value(index))
        elif name in o.attributes:
            made = o.call(torch.clamp, made, **{name: o.attributes[name]})
    return made


@writes("Dropout")
def dropout(o: Operator) -> Results:
    """What dropout is in evaluation mode, and a mask that keeps everything."""
    training = o.data(2)
    if o.is_given(2) and (training is None or bool(training.numpy().reshape(-1)[0])):
        raise o.refuse_operator(
            "it drops numbers at random whatever the mode (training_mode): export the model in evaluation mode, or with TrainingMode.PRESERVE"
        )
    x = o.value()
    mask = o.call(torch.ones_like, x, dtype=torch.bool)
    return [x, mask][: len(o.node.outputs)]


@writes("BatchNormalization")
def batch_norm(o: Operator) -> fx.Node:
    """The arithmetic of a batch norm with computed statistics, in evaluation mode."""
    if o.attributes.get("training_mode", 0) or len(o.node.outputs) != 1 or o.opset < 9:
        raise o.refuse_operator("it normalises by the statistics of each batch (training_mode)")
    x, gamma, beta, mean, var = (o.value(i) for i in range(5))
    epsilon = o.attributes.get("epsilon", 1e-5)
    return o.call(F.batch_norm, x, mean, var, gamma, beta, False, 0.0, epsilon)


@writes("Hardmax")
def hardmax(o: Operator) -> fx.Node:
    """1 at the first place of the maximum, 0 elsewhere."""
    axis = o.attributes.get("axis", -1)
    if o.opset < 13 or o.dtype is None:
        raise o.refuse_operator("it meant something else before opset 13")
    x = o.value()
    places = o.call(torch.argmax, x, axis, True)
    return o.call(torch.scatter, o.call(torch.zeros_like, x), axis, places, 1.0)


@writes("Swish")
def swish(o: Operator) -> fx.Node:
    """``x * sigmoid(alpha * x)``."""
    x = o.value()
    inner = o.call(torch.mul, x, o.attributes.get("alpha", 1.0))
    return o.call(torch.mul, x, o.call(torch.sigmoid, inner))


@writes("LpNormalization")
def lp_normalization(o: Operator) -> fx.Node:
    """``F.normalize``, which leaves zeros where the norm is 0."""
    p, axis = o.attributes.get("p", 2), o.attributes.get("axis", -1)
    return o.call(F.normalize, o.value(), p, axis, math.ulp(0.0))

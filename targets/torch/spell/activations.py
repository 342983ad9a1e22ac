"""How activations, gates and softmax are written in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import fx, nn

from .... import ir
from ....hosts.torch.modules.gates import Gate
from ....hosts.torch.modules.scale import Scale
from ....ir import Value
from ..speller import Speller, spells
from .arithmetic import scale_module

_MODULES: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "clip": nn.Hardtanh, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU,
    "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "hard_swish": nn.Hardswish, "tanh": nn.Tanh, "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"), "softsign": nn.Softsign, "mish": nn.Mish,
}  # fmt: skip

_SELU = (1.6732632423543772, 1.0507009873554805)
"""The constants of ``F.selu``, as float32 has them too."""


def activation_module(kind: str, params: Sequence[float]) -> nn.Module | None:
    """The module of an activation; ``None`` where torch has none that the frontend reads back."""
    if kind == "hard_sigmoid" and math.isclose(params[0], 1 / 6, abs_tol=1e-9) and params[1] == 0.5:
        return nn.Hardsigmoid()
    made = _MODULES.get(kind)
    if made is None or (kind == "clip" and not params[0] < params[1]):
        return None
    return made(*params)


def _clip(s: Speller, x: fx.Node, low: float, high: float) -> fx.Node:
    ends = (None if math.isinf(end) else end for end in (low, high))
    return s.call(torch.clamp, x, *ends)


def _hard_sigmoid(s: Speller, x: fx.Node, alpha: float, beta: float) -> fx.Node:
    line = s.call(torch.add, s.call(torch.mul, x, alpha), beta)
    return s.call(torch.clamp, line, 0.0, 1.0)


def _selu(s: Speller, x: fx.Node, alpha: float, gamma: float) -> fx.Node:
    if all(math.isclose(a, b, rel_tol=1e-7) for a, b in zip((alpha, gamma), _SELU, strict=True)):
        return s.call(F.selu, x)
    return s.call(torch.mul, s.call(F.elu, x, alpha), gamma)


_CALLS: dict[str, Callable[..., fx.Node]] = {
    "clip": _clip,
    "hard_sigmoid": _hard_sigmoid,
    "selu": _selu,
    "softplus": lambda s, x: s.call(F.softplus, x),
    "celu": lambda s, x, alpha: s.call(F.celu, x, alpha),
    "thresholded_relu": lambda s, x, alpha: s.call(F.threshold, x, alpha, 0.0),
}
"""Activations that are calls, where no module is read back."""


@spells(ir.Activation, kinds=sorted({*_MODULES, *_CALLS}))
def activation(s: Speller, op: ir.Activation) -> fx.Node:
    """A module, or calls where torch has none."""
    made = activation_module(op.kind, op.params)
    if made is not None:
        return s.module(made, s.value())
    return _CALLS[op.kind](s, s.value(), *op.params)


@spells(ir.PRelu)
def prelu(s: Speller, op: ir.PRelu) -> fx.Node:
    """``nn.PReLU`` along the second axis; along others, or with a computed slope, its arithmetic."""
    made = _prelu_module(s, op.axis, s.node.input(1))
    if made is not None:
        return s.module(made, s.value())
    x, slope = s.value(), s.along(1, op.axis)
    return s.call(torch.where, s.call(torch.gt, x, 0), x, s.call(torch.mul, x, slope))


def _prelu_module(s: Speller, axis: int, slope: Value | None) -> nn.Module | None:
    """The module; ``None`` where there is none."""
    data, rank = slope.data if slope is not None else None, s.rank
    if data is None or (data.size != 1 and axis != 1 and (rank is None or axis % rank != 1)):
        return None
    return s.filled(nn.PReLU(data.size, **s.meta(data.dtype)), data)


@spells(ir.Gate, note="kinds that are modules in torch; the number is a parameter, not computed")
def gate(s: Speller, op: ir.Gate) -> fx.Node:
    """``graphshrink.nn.Gate``, with a switch that gates of the same number share."""
    if op.kind == "prelu":
        inner = _prelu_module(s, op.axis, s.node.input(2))
        if inner is None:
            raise s.refuse("of a PRelu with a computed slope, or along another axis than 1,")
    else:
        inner = activation_module(op.kind, op.params)
        if inner is None:
            raise s.refuse(f"of {op.kind}")
    number = s.node.required(1)
    if number.data is None:
        raise s.refuse("of a computed number")
    inner.train(s.out.training)
    switch = s.out.switch(number, op.mode)
    return s.module(Gate(inner, switch, line=_line(s, op.axis)), s.value())


def _line(s: Speller, axis: int) -> Scale | None:
    """The line of a gate; ``None`` for the identity."""
    given, rank = s.node.inputs[3:5], s.rank
    if not any(given):
        return None
    if rank is None or any(v is None or v.data is None for v in given):
        raise s.refuse("with a computed line, or of unknown rank,")
    return scale_module(s, given, rank - 1 - axis % rank)


@spells(ir.Softmax)
def softmax(s: Speller, op: ir.Softmax) -> fx.Node:
    """``torch.softmax``."""
    return s.call(torch.softmax, s.value(), op.axis)


@spells(ir.LogSoftmax)
def log_softmax(s: Speller, op: ir.LogSoftmax) -> fx.Node:
    """``torch.log_softmax``."""
    return s.call(torch.log_softmax, s.value(), op.axis)

"""ONNX's arithmetic, functions of one number, comparisons and choices."""

from __future__ import annotations

import numpy as np

from .... import ir
from ....hosts.onnx.operators import FUNCTIONS
from ....ir import ArrayTensor, DType, Op, SplatTensor, Tensor, TensorType
from ...lowering import Lowered, Operand, Step, Steps
from ...lowering.arithmetic import function, scaled
from ...lowering.base import Builder
from ..node import OnnxNode
from ..registry import reads


def _arithmetic(op: type[Op]) -> None:
    """Register ``Add``, ``Sub``, ``Mul`` or ``Div``; with a constant per channel, or a constant scalar, it is read as a Scale."""

    @reads(op.__name__, makes=[op, ir.Scale])
    def rule(node: OnnxNode) -> Lowered | None:
        return scaled(node.kind, node.input(0), node.input(1)) or (op(), node.inputs)


def _function(operator: str, kind: str) -> None:
    @reads(operator, makes=(ir.Unary, kind))
    def rule(node: OnnxNode) -> Lowered | None:
        one_sign = kind == "isinf" and not (
            node.flag("detect_negative", 1) and node.flag("detect_positive", 1)
        )
        return None if one_sign else function(kind, node.required(0))


def _comparison(operator: str, kind: str) -> None:
    @reads(operator, makes=(ir.Compare, kind))
    def rule(node: OnnxNode) -> Lowered | None:
        return _of_numbers(ir.Compare(kind), node)


def _logical(operator: str, kind: str) -> None:
    @reads(operator, makes=(ir.Logical, kind))
    def rule(node: OnnxNode) -> Lowered | None:
        return ir.Logical(kind), node.inputs


for _op in (ir.Add, ir.Sub, ir.Mul, ir.Div):
    _arithmetic(_op)
for _name, _kind in FUNCTIONS.items():
    _function(_name, _kind)
for _name, _kind in (
    ("Equal", "equal"),
    ("Greater", "greater"),
    ("GreaterOrEqual", "greater_equal"),
    ("Less", "less"),
    ("LessOrEqual", "less_equal"),
):
    _comparison(_name, _kind)
for _name in ("And", "Or", "Xor"):
    _logical(_name, _name.lower())


@reads("Sum", makes=[ir.Add, ir.Scale, ir.Identity], several=True)
def _sum(node: OnnxNode) -> Lowered | Steps | None:
    if any(v is None for v in node.inputs) or node.type().dtype is None:
        return None
    if len(node.inputs) == 1:
        return ir.Identity(), node.inputs
    if len(node.inputs) == 2:
        return scaled("Add", *node.inputs) or (ir.Add(), node.inputs)
    made = Builder()
    _added(made, node)
    return made.steps()


@reads("Mean", makes=[ir.Add, ir.Scale, ir.Identity], note="of floats", several=True)
def _mean(node: OnnxNode) -> Lowered | Steps | None:
    dtype = node.type().dtype
    if any(v is None for v in node.inputs) or dtype is None or not dtype.is_wide_float:
        return None
    if len(node.inputs) == 1:
        return ir.Identity(), node.inputs
    ranks = [node.type(i).rank for i in range(len(node.inputs))]
    if None in ranks or not any(ranks):
        return None
    made = Builder()
    share = SplatTensor((1,), dtype, 1 / len(node.inputs))
    axis = 1 if max(r or 0 for r in ranks) > 1 else 0
    made.add(ir.Scale(axis), _added(made, node), share)
    return made.steps()


def _added(made: Builder, node: OnnxNode) -> Step:
    first, second, *others = node.inputs
    last = made.add(ir.Add(), first, second)
    for value in others:
        last = made.add(ir.Add(), last, value)
    return last


@reads("Max", makes=ir.Max)
def _max(node: OnnxNode) -> Lowered | None:
    return _of_numbers(ir.Max(), node)


@reads("Min", makes=ir.Min)
def _min(node: OnnxNode) -> Lowered | None:
    return _of_numbers(ir.Min(), node)


def _of_numbers(op: Op, node: OnnxNode) -> Lowered | None:
    """An op on all inputs; ``None`` if the first one is text or its type is unknown."""
    dtype = node.type().dtype
    return (op, node.inputs) if dtype is not None and dtype is not DType.STRING else None


@reads("Mod", makes=[(ir.Mod, kind) for kind in ir.REMAINDERS])
def _mod(node: OnnxNode) -> Lowered | None:
    return _of_numbers(ir.Mod("trunc" if node.flag("fmod") else "floor"), node)


@reads("Where", makes=ir.Where)
def _where(node: OnnxNode) -> Lowered | None:
    return ir.Where(), node.inputs


@reads("Pow", makes=ir.Pow, note="a base of floats")
def _pow(node: OnnxNode) -> Lowered | None:
    base, exponent = node.type(), node.input(1)
    data = node.data(1)
    if exponent is None or base.dtype is None or not base.dtype.is_wide_float:
        return None
    operand: Operand = exponent if data is None else scalar_exponent(base, data) or exponent
    return ir.Pow(), [node.input(0), operand]


def scalar_exponent(base: TensorType, data: Tensor) -> Tensor | None:
    """A constant exponent of one number, converted to a scalar of the base's element type if that does not change it."""
    if data.size != 1 or base.dtype is None or base.rank is None or len(data.shape) > base.rank:
        return None
    if data.shape == () and data.dtype is base.dtype:
        return None
    number = data.numpy().reshape(())
    made = number.astype(base.dtype.numpy)
    return ArrayTensor(np.asarray(made)) if float(made) == float(number) else None

"""ONNX's arithmetic, functions of one number, comparisons and choices."""

from __future__ import annotations

import numpy as np

from .... import ir
from ....hosts.onnx.operators import FUNCTIONS
from ....ir import ArrayTensor, DType, Op, Tensor, TensorType
from ...lowering import Lowered, Operand
from ...lowering.arithmetic import function, scaled
from ..node import OnnxNode
from ..registry import reads


def _arithmetic(op: type[Op]) -> None:
    """Register ``Add`` or one of its kin; a constant for each channel, or one number, makes a Scale."""

    @reads(op.__name__, makes=[op, ir.Scale])
    def rule(node: OnnxNode) -> Lowered | None:
        return scaled(node.kind, node.input(0), node.input(1)) or (op(), node.inputs)


def _function(operator: str, kind: str) -> None:
    @reads(operator, makes=(ir.Unary, kind))
    def rule(node: OnnxNode) -> Lowered | None:
        return function(kind, node.required(0))


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


@reads("Sum", makes=[ir.Add, ir.Scale], note="of two")
def _sum(node: OnnxNode) -> Lowered | None:
    if len(node.inputs) != 2:
        return None
    return scaled("Add", node.input(0), node.input(1)) or (ir.Add(), node.inputs)


@reads("Max", makes=ir.Max)
def _max(node: OnnxNode) -> Lowered | None:
    return _of_numbers(ir.Max(), node)


@reads("Min", makes=ir.Min)
def _min(node: OnnxNode) -> Lowered | None:
    return _of_numbers(ir.Min(), node)


def _of_numbers(op: Op, node: OnnxNode) -> Lowered | None:
    """An op whose operands must be numbers of a known type."""
    dtype = node.type().dtype
    return (op, node.inputs) if dtype is not None and dtype is not DType.STRING else None


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
    """A constant exponent of one number as a scalar of the base's element type, if that means the same."""
    if data.size != 1 or base.dtype is None or base.rank is None or len(data.shape) > base.rank:
        return None
    if data.shape == () and data.dtype is base.dtype:
        return None
    number = data.numpy().reshape(())
    made = number.astype(base.dtype.numpy)
    return ArrayTensor(np.asarray(made)) if float(made) == float(number) else None

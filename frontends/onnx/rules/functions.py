"""ONNX operators that compute element by element, in the IR: functions, comparisons, choices, quantisation."""

from __future__ import annotations

import numpy as np

from .... import ir
from ....hosts.onnx.operators import FUNCTIONS
from ....hosts.onnx.tensors import dtype_of
from ....ir import ArrayTensor, DType, Tensor, TensorType
from ....ir.ops.quantize import QUANTIZED
from ...lowering import OF_ANY_NUMBER, Lowered, Operand
from ..node import Rule, Site


def _function(kind: str) -> Rule:
    def rule(s: Site) -> Lowered | None:
        dtype = s.type().dtype
        if dtype is None or (kind == "not") != (dtype is DType.BOOL):
            return None
        plain = kind == "not" or dtype.is_float or (dtype.is_int and kind in OF_ANY_NUMBER)
        return (ir.Unary(kind), s.inputs) if plain else None

    return rule


def _pow(s: Site) -> Lowered | None:
    base, exponent = s.type(), s.input(1)
    data = s.data(1)
    if exponent is None or base.dtype is None or not base.dtype.is_wide_float:
        return None
    operand: Operand = exponent if data is None else scalar_exponent(base, data) or exponent
    return ir.Pow(), [s.input(0), operand]


def scalar_exponent(base: TensorType, data: Tensor) -> Tensor | None:
    """A constant exponent of one number as a scalar of the base's element type, if that says the same."""
    if data.size != 1 or base.dtype is None or base.rank is None or len(data.shape) > base.rank:
        return None
    if data.shape == () and data.dtype is base.dtype:
        return None
    number = data.numpy().reshape(())
    made = number.astype(base.dtype.numpy)
    return ArrayTensor(np.asarray(made)) if float(made) == float(number) else None


def _plain(op: ir.Op) -> Rule:
    return lambda s: (op, s.inputs)


def _numbers(op: ir.Op) -> Rule:
    """Rules of operators whose operands must be numbers of a known type."""

    def rule(s: Site) -> Lowered | None:
        dtype = s.type().dtype
        return (op, s.inputs) if dtype is not None and dtype is not DType.STRING else None

    return rule


def _quantize(s: Site) -> Lowered | None:
    stated = dtype_of(s.attribute("output_dtype", 0))
    if not _plainly(s):
        return None
    found: DType | None = s.type(2).dtype if s.input(2) is not None else stated or DType.U8
    x = s.type().dtype
    if found is None or found.value not in QUANTIZED or x is None or not x.is_wide_float:
        return None
    axis = _scales_axis(s)
    return (ir.Quantize(found.value, axis), s.inputs) if axis is not None else None


def _dequantize(s: Site) -> Lowered | None:
    stated = dtype_of(s.attribute("output_dtype", 0))
    if not _plainly(s) or s.type().dtype is None or s.type(1).dtype is None:
        return None
    axis = _scales_axis(s)
    if axis is None or stated not in (None, s.type(1).dtype):
        return None
    return ir.Dequantize(axis), s.inputs


def _plainly(s: Site) -> bool:
    """Neither in blocks nor computed in a precision of its own."""
    return not s.attribute("block_size", 0) and not s.attribute("precision", 0)


def _scales_axis(s: Site) -> int | None:
    axis, rank, scale = s.attribute("axis", 1), s.type().rank, s.type(1)
    if scale.static_shape in ((), (1,)):
        return 1
    if rank is None or scale.rank != 1:
        return None
    return s.axes([axis], rank)[0]


MATH_RULES: dict[str, Rule] = {
    **{name: _function(kind) for name, kind in FUNCTIONS.items()},
    "And": _plain(ir.Logical("and")),
    "DequantizeLinear": _dequantize,
    "Equal": _numbers(ir.Compare("equal")),
    "Greater": _numbers(ir.Compare("greater")),
    "GreaterOrEqual": _numbers(ir.Compare("greater_equal")),
    "Less": _numbers(ir.Compare("less")),
    "LessOrEqual": _numbers(ir.Compare("less_equal")),
    "Max": _numbers(ir.Max()),
    "Min": _numbers(ir.Min()),
    "Or": _plain(ir.Logical("or")),
    "Pow": _pow,
    "QuantizeLinear": _quantize,
    "Where": _plain(ir.Where()),
    "Xor": _plain(ir.Logical("xor")),
}

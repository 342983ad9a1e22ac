"""ONNX's quantisation, and its convolutions and products of integers."""

from __future__ import annotations

from .... import ir
from ....hosts.onnx.tensors import dtype_of
from ....ir import DType
from ....ir.ops.quantize import QUANTIZED
from ...lowering import Lowered
from ...support import LeftAlone
from ..node import OnnxNode
from ..registry import reads
from .windows import window

_PLAIN = "integers of 8 and 16 bits, one scale for all or along an axis"


@reads("QuantizeLinear", makes=ir.Quantize, note=_PLAIN)
def _quantize(node: OnnxNode) -> Lowered | None:
    stated = dtype_of(node.attribute("output_dtype", 0))
    _check_plain(node)
    zero_point = node.type(2).dtype if node.input(2) is not None else stated or DType.U8
    if zero_point is not None and zero_point.value not in QUANTIZED:
        raise LeftAlone(_element_type("to", zero_point))
    dtype = node.type().dtype
    axis = _scales_axis(node)
    if zero_point is None or axis is None or dtype is None:
        return None
    if not dtype.is_wide_float:
        raise LeftAlone(f"of {dtype.value}: only floats are quantised")
    return ir.Quantize(zero_point.value, axis), node.inputs


@reads("DequantizeLinear", makes=ir.Dequantize, note=_PLAIN)
def _dequantize(node: OnnxNode) -> Lowered | None:
    stated = dtype_of(node.attribute("output_dtype", 0))
    _check_plain(node)
    dtype, real = node.type().dtype, node.type(1).dtype
    if dtype is not None and dtype.value not in (*QUANTIZED, "i32"):
        raise LeftAlone(_element_type("of", dtype))
    axis = _scales_axis(node)
    if axis is None or dtype is None or real is None:
        return None
    if stated not in (None, real):
        raise LeftAlone(f"from scales of {real.value} to {stated.value if stated else '?'}")
    return ir.Dequantize(axis), node.inputs


def _element_type(to_or_of: str, dtype: DType) -> str:
    """The reason to leave a node alone whose quantised numbers have another element type."""
    return f"{to_or_of} {dtype.value}: its quantised numbers must be one of {', '.join(QUANTIZED)}"


def _check_plain(node: OnnxNode) -> None:
    """Refuse a node that quantizes in blocks or states a precision of its own."""
    if node.attribute("block_size", 0):
        raise LeftAlone("in blocks: only one scale for all, or scales along an axis, can be read")
    if node.attribute("precision", 0):
        raise LeftAlone("it states a precision of its own")


def _scales_axis(node: OnnxNode) -> int | None:
    axis, rank, scale = node.attribute("axis", 1), node.type().rank, node.type(1)
    if scale.static_shape in ((), (1,)):
        return 1
    if rank is None or scale.rank != 1:
        return None
    return node.axes([axis], rank)[0]


_ONE_SCALE = "one scale of its input and of its result"


@reads("QLinearConv", makes=ir.QuantizedConv, note=f"1 to 3 spatial axes, {_ONE_SCALE}")
def _quantized_conv(node: OnnxNode) -> Lowered | None:
    w = node.type(3).static_shape
    if w is None or not 1 <= len(w) - 2 <= 3 or node.ints("kernel_shape") not in (None, w[2:]):
        return None
    sizes = window(node, w[2:])
    if sizes is None or node.type(7).dtype is None:
        return None
    return ir.QuantizedConv(**sizes, groups=node.attribute("group", 1)), node.inputs


@reads("QLinearMatMul", makes=ir.QuantizedMatMul, note=_ONE_SCALE)
def _quantized_product(node: OnnxNode) -> Lowered | None:
    known = node.type().rank is not None and node.type(3).rank is not None
    return (ir.QuantizedMatMul(), node.inputs) if known and node.type(7).dtype is not None else None


@reads("MatMulInteger", makes=ir.IntegerMatMul, note="one zero point of the left operand")
def _integer_product(node: OnnxNode) -> Lowered | None:
    known = node.type().rank is not None and node.type(1).rank is not None
    return (ir.IntegerMatMul(), node.inputs) if known else None


@reads("DynamicQuantizeLinear", makes=ir.DynamicQuantize)
def _dynamic_quantize(node: OnnxNode) -> Lowered | None:
    return ir.DynamicQuantize(), node.inputs

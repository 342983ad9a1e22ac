"""How quantisation is written in ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np

from .... import ir
from ....hosts.onnx.tensors import code_of
from ....ir import ArrayTensor, DType
from ..speller import Speller, spells
from .convolutions import window_attributes


@spells(ir.Quantize, writes="QuantizeLinear")
def quantize(s: Speller, op: ir.Quantize) -> None:
    """QuantizeLinear; before opset 21 the zero point alone gives the type of the result."""
    inputs = list(s.inputs)
    if not s.given(2) and op.dtype != "u8" and s.opset < 21:
        shape = s.node.required(1).type.static_shape
        if shape is None:
            raise s.refuse("of unknown scales cannot say its type")
        zero = ArrayTensor(np.zeros(shape, DType(op.dtype).numpy))
        inputs = [*inputs[:2], s.new_constant(zero, "zero")]
    attrs = _axis(s, op.axis)
    if len(inputs) < 3 and op.dtype != "u8":
        attrs["output_dtype"] = code_of(DType(op.dtype))
    s.emit("QuantizeLinear", inputs, s.outputs[0], **attrs)


@spells(ir.Dequantize, writes="DequantizeLinear")
def dequantize(s: Speller, op: ir.Dequantize) -> None:
    """DequantizeLinear."""
    if op.block and s.opset < 21:
        raise s.refuse("in blocks does not exist")
    blocks = {"axis": op.axis, "block_size": op.block}
    s.plain("DequantizeLinear", **(blocks if op.block else _axis(s, op.axis)))


@spells(ir.QuantizedConv, writes="QLinearConv")
def quantized_conv(s: Speller, op: ir.QuantizedConv) -> None:
    """QLinearConv."""
    s.plain("QLinearConv", **window_attributes(op))


@spells(ir.QuantizedMatMul, writes="QLinearMatMul")
def quantized_product(s: Speller, _: ir.QuantizedMatMul) -> None:
    """QLinearMatMul."""
    s.plain("QLinearMatMul")


@spells(ir.IntegerMatMul, writes="MatMulInteger")
def integer_product(s: Speller, _: ir.IntegerMatMul) -> None:
    """MatMulInteger."""
    s.plain("MatMulInteger")


@spells(ir.DynamicQuantize, writes="DynamicQuantizeLinear")
def dynamic_quantize(s: Speller, _: ir.DynamicQuantize) -> None:
    """DynamicQuantizeLinear."""
    s.many("DynamicQuantizeLinear", s.inputs, s.outputs)


def _axis(s: Speller, axis: int) -> dict[str, Any]:
    """The axis of a vector of scales as an attribute, from opset 13 on; nothing for one scale."""
    shape = s.node.required(1).type.static_shape
    if s.opset < 10:
        raise s.refuse("does not exist")
    if shape in ((), (1,)):
        return {}
    if s.opset < 13:
        raise s.refuse("along an axis does not exist")
    return {"axis": axis}

"""How quantisation is written in torch: as the arithmetic that it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx

from .... import ir
from ....ir import DType
from ..speller import Results, Speller, spells
from .convolutions import CONV_CALLS, amounts

_RANGES = {"i8": (-128, 127), "u8": (0, 255), "i16": (-(2**15), 2**15 - 1)}


@spells(ir.Quantize, note="not to uint16; of float32 and float64")
def quantize(s: Speller, op: ir.Quantize) -> fx.Node:
    """``clamp(round(x / scale) + zero)`` as integers."""
    if op.dtype not in _RANGES or s.dtype not in (DType.F32, DType.F64):
        raise s.refuse(f"of {s.dtype.value if s.dtype else 'unknown numbers'} to {op.dtype}")
    made = s.call(torch.round, s.call(torch.div, s.value(), s.along(1, op.axis)))
    if s.node.input(2) is not None:
        made = s.call(torch.add, made, s.along(2, op.axis))
    return s.call("to", s.call(torch.clamp, made, *_RANGES[op.dtype]), s.dtype_of(DType(op.dtype)))


@spells(ir.Dequantize, note="not of uint16, not in blocks")
def dequantize(s: Speller, op: ir.Dequantize) -> fx.Node:
    """``(x - zero) * scale`` in the element type of the scale."""
    dtype = s.node.required(1).type.dtype
    if op.block:
        raise s.refuse("in blocks")
    if s.dtype is DType.U16 or dtype is None:
        raise s.refuse(f"of {s.dtype.value if s.dtype else 'unknown numbers'}")
    made = s.value()
    if s.node.input(2) is not None:
        # Differences of bytes leave their range.
        zero = s.call("to", s.along(2, op.axis), torch.int32)
        made = s.call(torch.sub, s.call("to", made, torch.int32), zero)
    return s.call(torch.mul, s.call("to", made, s.dtype_of(dtype)), s.along(1, op.axis))


@spells(ir.IntegerMatMul)
def integer_matmul(s: Speller, op: ir.IntegerMatMul) -> fx.Node:
    """The product of float64, which holds sums of such integers exactly."""
    a, b = _centred(s, 0, 2), _centred(s, 1, 3)
    return s.call("to", s.call(torch.matmul, a, b), torch.int32)


@spells(ir.QuantizedMatMul)
def quantized_matmul(s: Speller, op: ir.QuantizedMatMul) -> fx.Node:
    """The product of float64 times the scales, rounded."""
    made = s.call(torch.matmul, _centred(s, 0, 2), _centred(s, 3, 5))
    return _requantized(s, made, s.value(4))


@spells(ir.QuantizedConv, note="1 to 3 spatial axes")
def quantized_conv(s: Speller, op: ir.QuantizedConv) -> fx.Node:
    """The convolution of float64 times the scales, rounded; its padding is of zero points, which are zeros here."""
    n, pads = op.spatial_rank, op.pads
    if n not in CONV_CALLS:
        raise s.refuse(f"over {n} axes")
    x, trailing = _centred(s, 0, 2), (-1, *[1] * n)
    if pads[:n] != pads[n:]:
        x = s.call(F.pad, x, amounts(pads[:n], pads[n:]))
        pads = (0,) * (2 * n)
    weight = s.call("to", s.value(3), torch.float64)
    if s.node.input(5) is not None:
        zero = s.call("to", s.value(5), torch.float64)
        weight = s.call(torch.sub, weight, s.call(torch.reshape, zero, (-1, *[1] * (n + 1))))
    bias = s.optional(8)
    if bias is not None:
        bias = s.call("to", bias, torch.float64)
    rest = (op.strides, pads[:n], op.dilations, op.groups)
    made = s.call(CONV_CALLS[n], x, weight, bias, *rest)
    return _requantized(s, made, s.call(torch.reshape, s.value(4), trailing))


@spells(ir.DynamicQuantize)
def dynamic_quantize(s: Speller, op: ir.DynamicQuantize) -> Results:
    """The range of the numbers, with 0 in it, in 255 steps."""
    x = s.value()
    low, high = (
        s.call(torch.clamp, s.call(f, x), **end)
        for f, end in ((torch.amin, {"max": 0}), (torch.amax, {"min": 0}))
    )
    scale = s.call(torch.div, s.call(torch.sub, high, low), 255)
    # Numbers that are all 0 have any scale.
    scale = s.call(torch.where, s.call(torch.eq, scale, 0), s.call(torch.ones_like, scale), scale)
    zero = s.call(torch.neg, s.call(torch.round, s.call(torch.div, low, scale)))
    steps = s.call(torch.add, s.call(torch.round, s.call(torch.div, x, scale)), zero)
    made = s.call("to", s.call(torch.clamp, steps, 0, 255), torch.uint8)
    return [made, scale, s.call("to", zero, torch.uint8)]


def _centred(s: Speller, index: int, zero: int) -> fx.Node:
    """Integers minus their zero point, as float64."""
    made = s.call("to", s.value(index), torch.float64)
    if s.node.input(zero) is None:
        return made
    return s.call(torch.sub, made, s.call("to", s.value(zero), torch.float64))


def _requantized(s: Speller, made: fx.Node, scale: fx.Node) -> fx.Node:
    """A product of integers, by the scales of its operands and of the result (inputs 1, 6 and 7), as integers."""
    dtype = s.node.required(7).type.dtype
    if dtype is None or dtype.value not in _RANGES:
        raise s.refuse("to unknown integers")
    factor = s.call(torch.div, s.call(torch.mul, s.value(1), scale), s.value(6))
    made = s.call(torch.round, s.call(torch.mul, made, factor))
    made = s.call(torch.add, made, s.value(7))
    return s.call("to", s.call(torch.clamp, made, *_RANGES[dtype.value]), s.dtype_of(dtype))

"""How quantisation is written in torch: as the arithmetic that it is."""

from __future__ import annotations

import torch
from torch import fx

from .... import ir
from ....ir import DType
from ..speller import Speller, spells

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


@spells(ir.Dequantize, note="not of uint16")
def dequantize(s: Speller, op: ir.Dequantize) -> fx.Node:
    """``(x - zero) * scale`` in the element type of the scale."""
    dtype = s.node.required(1).type.dtype
    if s.dtype is DType.U16 or dtype is None:
        raise s.refuse(f"of {s.dtype.value if s.dtype else 'unknown numbers'}")
    made = s.value()
    if s.node.input(2) is not None:
        # Differences of bytes leave their range.
        zero = s.call("to", s.along(2, op.axis), torch.int32)
        made = s.call(torch.sub, s.call("to", made, torch.int32), zero)
    return s.call(torch.mul, s.call("to", made, s.dtype_of(dtype)), s.along(1, op.axis))


for _op in (ir.QuantizedConv, ir.QuantizedMatMul, ir.IntegerMatMul, ir.DynamicQuantize):
    spells.cannot(_op, "torch computes with quantised numbers in modules of its own")

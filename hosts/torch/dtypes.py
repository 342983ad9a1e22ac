"""Element types of torch and of the IR."""

from __future__ import annotations

import torch

from ... import ir

DTYPES: dict[torch.dtype, ir.DType] = {
    torch.float16: ir.DType.F16, torch.bfloat16: ir.DType.BF16, torch.float32: ir.DType.F32,
    torch.float64: ir.DType.F64, torch.int8: ir.DType.I8, torch.uint8: ir.DType.U8,
    torch.int16: ir.DType.I16, torch.int32: ir.DType.I32, torch.int64: ir.DType.I64,
    torch.bool: ir.DType.BOOL, torch.complex64: ir.DType.C64, torch.complex128: ir.DType.C128,
}  # fmt: skip
"""Element types of torch that the IR knows."""

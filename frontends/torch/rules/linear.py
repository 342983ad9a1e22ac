"""torch's convolutions and matrix products."""

from __future__ import annotations

from typing import Any

from torch import nn

from .... import ir
from ....ir import SplatTensor, Tensor, TensorType, Value
from ....ir.tensor import reshaped
from ...lowering import Lowered, Step, Steps
from ...lowering.base import Builder
from ...lowering.einsum import EINSUM, NOT_READ, einstein_sum
from ...lowering.products import matmul
from ...support import LeftAlone
from ..call import Call, ints
from ..registry import reads, reads_module, reads_ranks
from .shapes import PAD_MODES


@reads_ranks("conv{}d", makes=ir.Conv)
def conv(call: Call, n: int) -> Lowered | Steps | None:
    """``(x, weight, bias, stride, padding, dilation, groups)``."""
    x, w = call.value(0), call.value(1, "weight")
    stride, dilation = call.ints(3, "stride", 1, n), call.ints(5, "dilation", 1, n)
    shape = w.type.static_shape
    if shape is None or len(shape) != n + 2 or x.type.rank not in (None, n + 2):
        return None
    padding = call.get(4, "padding", 0)
    if padding == "valid":
        pads: tuple[int, ...] = (0,) * (2 * n)
    elif padding == "same":
        total = [dilation[i] * (shape[2 + i] - 1) for i in range(n)]
        pads = (*(t // 2 for t in total), *(t - t // 2 for t in total))
    else:
        pads = ints(padding, n) * 2
    groups, bias = call.get(6, "groups", 1), call.get(2, "bias")
    weights = [w] if bias is None else [w, bias]
    mode = PAD_MODES[call.kwargs.get("padding_mode", "zeros")]
    if mode == "constant" or not any(pads):
        return ir.Conv(stride, pads, dilation, groups), [x, *weights]
    made = Builder()
    padded = made.add(ir.Pad((0, 0, *pads[:n], 0, 0, *pads[n:]), mode), x)
    made.add(ir.Conv(stride, (0,) * (2 * n), dilation, groups), padded, *weights)
    return made.steps()


reads_module(
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    call="conv{}d",
    fields="weight bias stride padding dilation groups padding_mode",
)  # fmt: skip


@reads_ranks("conv_transpose{}d", makes=ir.ConvTranspose)
def conv_transpose(call: Call, n: int) -> Lowered | None:
    """``(x, weight, bias, stride, padding, output_padding, groups, dilation)``."""
    x, w = call.value(0), call.value(1, "weight")
    if x.type.rank not in (None, n + 2):
        return None
    extra = call.ints(5, "output_padding", 0, n)
    op = ir.ConvTranspose(
        call.ints(3, "stride", 1, n),
        call.ints(4, "padding", 0, n) * 2,
        call.ints(7, "dilation", 1, n),
        call.get(6, "groups", 1),
        extra if any(extra) else (),
    )
    bias = call.get(2, "bias")
    return op, [x, w] if bias is None else [x, w, bias]


reads_module(
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    call="conv_transpose{}d",
    fields="weight bias stride padding output_padding groups dilation",
)  # fmt: skip


@reads("convolution", makes=[ir.Conv, ir.ConvTranspose])
def _convolution(call: Call) -> Lowered | Steps | None:
    """ATen's general form: ``(x, w, b, stride, padding, dilation, transposed, output_padding, groups)``."""
    x, w, b, stride, padding, dilation, transposed, extra, groups = call.args
    n = len(stride)
    if transposed:
        return conv_transpose(call.again(x, w, b, stride, padding, extra, groups, dilation), n)
    return conv(call.again(x, w, b, stride, padding, dilation, groups), n)


@reads("linear", makes=ir.Linear, note="a constant matrix")
def _linear(call: Call) -> Lowered | None:
    """``(x, weight, bias)``."""
    w, bias = call.value(1, "weight"), call.get(2, "bias")
    if w.type.rank != 2 or w.data is None:
        return None
    return ir.Linear(), [call.value(0), w] if bias is None else [call.value(0), w, bias]


reads_module(nn.Linear, call="linear", fields="weight bias")


@reads("matmul", makes=[ir.MatMul, ir.Linear])
def _matmul(call: Call) -> Lowered | None:
    """``(a, b)``."""
    return _product(call.value(0), call.value(1, "other"))


@reads("mm", "bmm", makes=[ir.MatMul, ir.Linear])
def _bmm(call: Call) -> Lowered | None:
    """``(a, b)`` of 2 or 3 axes each."""
    return _product(call.value(0), call.value(1, "mat2"))


def _product(a: Value, b: Value) -> Lowered | None:
    if a.type.dtype is None or a.type.dtype is not b.type.dtype:
        return None
    return matmul(a, b)


@reads(
    "addmm",
    "baddbmm",
    makes=[ir.Linear, ir.MatMul, ir.Add],
    note="operands of one type",
    several=True,
)
def _addmm(call: Call) -> Lowered | Steps | None:
    """``(x, a, b, beta, alpha)``: ``beta * x + alpha * (a @ b)``."""
    shift, a = call.value(0), call.value(1, "batch1" if "batch1" in call.kwargs else "mat1")
    b = call.value(2, "batch2" if "batch2" in call.kwargs else "mat2")
    beta, alpha = call.get(3, "beta", 1), call.get(4, "alpha", 1)
    product = _product(a, b)
    if product is None or shift.type.dtype is not a.type.dtype:
        return None
    op, operands = product
    columns = b.type.dim(-1)
    vector = shift.data is not None and shift.type.static_shape == (columns,)
    if isinstance(op, ir.Linear) and vector and beta == alpha == 1:
        return op, [*operands, shift]
    made = Builder()
    scaled = _times(made, made.chain(product), alpha, a.type)
    made.add(ir.Add(), scaled, _times(made, shift, beta, shift.type))
    return made.steps()


def _times(made: Builder, x: Value | Step, factor: Any, type_: TensorType) -> Value | Step:
    """A value of a type, or a step's result, times a Python number."""
    if factor == 1:
        return x
    axis = 1 if type_.rank is not None and type_.rank > 1 else 0
    return made.add(ir.Scale(axis), x, _number(factor, type_.dtype))


def _number(factor: Any, dtype: ir.DType | None) -> Tensor:
    known = dtype is not None and dtype.is_wide_float
    if type(factor) not in (int, float) or dtype is None or not known or not factor:
        raise LeftAlone(f"it is scaled by {factor}")
    return reshaped(SplatTensor((), dtype, float(factor)), (1,))


@reads("einsum", makes=EINSUM, note="no letter twice in an operand", several=True)
def _einsum(call: Call) -> Lowered | Steps | None:
    """``(equation, a, b, ...)``, or the operands as one list."""
    equation, operands = call.get(0, "equation"), call.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or not all(isinstance(o, Value) for o in operands):
        return None
    found = einstein_sum(equation, operands)
    if found is None:
        raise LeftAlone(NOT_READ)
    return found

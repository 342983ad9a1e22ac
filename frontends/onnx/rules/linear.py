"""ONNX's convolutions and matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from .... import ir
from ....ir import DerivedTensor, SplatTensor
from ....ir.tensor import reshaped, transposed
from ...lowering import Lowered, Operand, Step, Steps
from ...lowering.base import Builder
from ...lowering.einsum import EINSUM, NOT_READ, einstein_sum
from ...lowering.products import matmul
from ...support import LeftAlone
from ..node import OnnxNode
from ..registry import reads
from .windows import transposed_window, window


@reads("Conv", makes=ir.Conv, note="1 to 3 spatial axes")
def _conv(node: OnnxNode) -> Lowered | None:
    w = node.type(1).static_shape
    kernel = node.ints("kernel_shape") or (w[2:] if w else None)
    if kernel is None or not 1 <= len(kernel) <= 3 or (w is not None and w[2:] != kernel):
        return None
    sizes = window(node, kernel)
    if sizes is None:
        return None
    return ir.Conv(**sizes, groups=node.attribute("group", 1)), node.inputs


@reads("ConvTranspose", makes=ir.ConvTranspose, note="1 to 3 spatial axes")
def _conv_transpose(node: OnnxNode) -> Lowered | None:
    w = node.type(1).static_shape
    if w is None or not 1 <= len(w) - 2 <= 3 or node.ints("kernel_shape") not in (None, w[2:]):
        return None
    extra = node.ints("output_padding") or ()
    sizes = transposed_window(node, w[2:], extra)
    if sizes is None:
        return None
    extra = extra if any(extra) else ()
    op = ir.ConvTranspose(**sizes, groups=node.attribute("group", 1), output_padding=extra)
    return op, node.inputs


@reads("Gemm", makes=[ir.Linear, ir.MatMul, ir.Transpose, ir.Scale, ir.Add], since=7, several=True)
def _gemm(node: OnnxNode) -> Lowered | Steps | None:
    w, c = node.data(1), node.input(2)
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    turned = node.flag("transB")
    if w is None or len(w.shape) != 2 or not w.dtype.is_wide_float:
        return _product(node, None, turned, alpha, beta)
    weight: Operand = node.input(1) if turned else transposed(w)
    shape = w.shape if turned else w.shape[::-1]
    if alpha != 1.0:
        weight = DerivedTensor(
            shape, w.dtype, lambda: alpha * (w.float64() if turned else w.float64().T)
        )
    if node.flag("transA"):
        return _product(node, weight, turned, alpha, beta)
    if c is None or beta == 0.0:
        return ir.Linear(), [node.input(0), weight]
    bias, out = c.data, (shape[0],)
    if bias is None or bias.shape not in (out, (1, *out), (1,), (1, 1), ()):
        return _product(node, weight, turned, alpha, beta)
    if beta == 1.0 and bias.size == out[0]:
        return ir.Linear(), [node.input(0), weight, c if bias.shape == out else reshaped(bias, out)]

    def wide() -> Any:
        return np.broadcast_to(beta * bias.float64().reshape(-1), out)

    return ir.Linear(), [node.input(0), weight, DerivedTensor(out, bias.dtype, wide)]


def _product(
    node: OnnxNode, weight: Operand, turned: bool, alpha: float, beta: float
) -> Steps | None:
    """Read a Gemm as several steps: transposes, the product, the sum.

    Args:
        node: The Gemm.
        weight: The constant matrix ``(out, in)``, multiplied by alpha; ``None`` if the matrix is not constant.
        turned: Whether the second operand of the Gemm has the layout ``(out, in)``.
        alpha: The factor of the product.
        beta: The factor of the third operand.
    """
    dtype = node.type().dtype
    if dtype is None or not dtype.is_wide_float or node.type().rank != 2:
        return None
    made = Builder()
    a: Operand | Step = node.input(0)
    if node.flag("transA"):
        a = made.add(ir.Transpose((1, 0)), a)
    if weight is not None:
        last = made.add(ir.Linear(), a, weight)
    else:
        b: Operand | Step = node.required(1)
        last = made.add(ir.MatMul(), a, made.add(ir.Transpose((1, 0)), b) if turned else b)
        if alpha != 1.0:
            last = made.add(ir.Scale(1), last, SplatTensor((1,), dtype, alpha))
    c: Operand | Step = node.input(2)
    if c is not None and beta != 0.0:
        if beta != 1.0:
            c = made.add(ir.Mul(), c, SplatTensor((), dtype, beta))
        made.add(ir.Add(), last, c)
    return made.steps()


@reads("Einsum", makes=EINSUM, note="no letter twice in an operand", several=True)
def _einsum(node: OnnxNode) -> Lowered | Steps | None:
    equation = node.text("equation", "")
    operands = [node.required(i) for i in range(len(node.inputs))]
    found = einstein_sum(equation, operands)
    if found is None:
        raise LeftAlone(NOT_READ)
    return found


@reads("MatMul", makes=[ir.MatMul, ir.Linear])
def _matmul(node: OnnxNode) -> Lowered | None:
    return matmul(node.required(0), node.required(1))

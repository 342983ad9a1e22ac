"""ONNX's convolutions and matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from .... import ir
from ....ir import DerivedTensor
from ....ir.tensor import reshaped, transposed
from ...lowering import Lowered, Operand
from ...lowering.products import matmul
from ..node import OnnxNode
from ..registry import reads
from .windows import window


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


@reads("ConvTranspose", makes=ir.ConvTranspose, note="explicit pads, 1 to 3 spatial axes")
def _conv_transpose(node: OnnxNode) -> Lowered | None:
    w = node.type(1).static_shape
    if w is None or not 1 <= len(w) - 2 <= 3 or node.ints("output_shape") is not None:
        return None
    if node.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    if node.ints("kernel_shape") not in (None, w[2:]):
        return None
    sizes = window(node, w[2:])
    if sizes is None:
        return None
    extra = node.ints("output_padding") or ()
    extra = extra if any(extra) else ()
    op = ir.ConvTranspose(**sizes, groups=node.attribute("group", 1), output_padding=extra)
    return op, node.inputs


@reads("Gemm", makes=ir.Linear, note="a constant matrix, a bias of one vector", since=7)
def _gemm(node: OnnxNode) -> Lowered | None:
    w, c = node.data(1), node.input(2)
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    turned = node.flag("transB")
    if w is None or len(w.shape) != 2 or node.flag("transA") or not w.dtype.is_wide_float:
        return None
    weight: Operand = node.input(1) if turned else transposed(w)
    shape = w.shape if turned else w.shape[::-1]
    if alpha != 1.0:
        weight = DerivedTensor(
            shape, w.dtype, lambda: alpha * (w.float64() if turned else w.float64().T)
        )
    if c is None or beta == 0.0:
        return ir.Linear(), [node.input(0), weight]
    bias, out = c.data, (shape[0],)
    if bias is None or bias.shape not in (out, (1, *out), (1,), (1, 1), ()):
        return None
    if beta == 1.0 and bias.size == out[0]:
        return ir.Linear(), [node.input(0), weight, c if bias.shape == out else reshaped(bias, out)]

    def wide() -> Any:
        return np.broadcast_to(beta * bias.float64().reshape(-1), out)

    return ir.Linear(), [node.input(0), weight, DerivedTensor(out, bias.dtype, wide)]


@reads("MatMul", makes=[ir.MatMul, ir.Linear])
def _matmul(node: OnnxNode) -> Lowered | None:
    return matmul(node.required(0), node.required(1))

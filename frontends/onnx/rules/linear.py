"""ONNX operators that are affine in the IR: convolutions, dense layers, norms, pools, pads, arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .... import ir
from ....ir import DerivedTensor
from ....ir.tensor import reshaped, transposed
from ...lowering import Lowered, Operand, scaled
from ...norms import batch_norm_scale
from ..node import Rule, Site


def _window(s: Site, kernel: Sequence[int], ceil_mode: bool = False) -> dict[str, Any] | None:
    """Strides, pads and dilations with ``auto_pad`` resolved; ``None`` when sizes are needed for it."""
    n = len(kernel)
    strides = s.ints("strides") or (1,) * n
    dilations = s.ints("dilations") or (1,) * n
    auto = s.text("auto_pad", "NOTSET")
    pads = s.ints("pads") or (0,) * (2 * n)
    if auto not in ("NOTSET", "") and ceil_mode:
        return None  # Which of the two decides the size differs between versions.
    if auto == "VALID":
        pads = (0,) * (2 * n)
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        begins, ends = [], []
        for i in range(n):
            size = s.type().dim(2 + i)
            span = dilations[i] * (kernel[i] - 1) + 1
            if strides[i] == 1:
                total = span - 1
            elif size is None:
                return None
            else:
                total = max((-(-size // strides[i]) - 1) * strides[i] + span - size, 0)
            small, large = total // 2, total - total // 2
            begins.append(small if auto == "SAME_UPPER" else large)
            ends.append(large if auto == "SAME_UPPER" else small)
        pads = (*begins, *ends)
    elif auto not in ("NOTSET", ""):
        return None
    if any(p < 0 for p in pads) or len(pads) != 2 * n or len(strides) != n or len(dilations) != n:
        return None
    return {"strides": strides, "pads": pads, "dilations": dilations}


def _conv(s: Site) -> Lowered | None:
    w = s.type(1).static_shape
    kernel = s.ints("kernel_shape") or (w[2:] if w else None)
    if kernel is None or not 1 <= len(kernel) <= 3 or (w is not None and w[2:] != kernel):
        return None
    window = _window(s, kernel)
    if window is None:
        return None
    return ir.Conv(**window, groups=s.attribute("group", 1)), s.inputs


def _conv_transpose(s: Site) -> Lowered | None:
    w = s.type(1).static_shape
    if w is None or not 1 <= len(w) - 2 <= 3 or s.ints("output_shape") is not None:
        return None
    if s.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    if s.ints("kernel_shape") not in (None, w[2:]):
        return None
    window = _window(s, w[2:])
    if window is None:
        return None
    extra = s.ints("output_padding") or ()
    extra = extra if any(extra) else ()
    op = ir.ConvTranspose(**window, groups=s.attribute("group", 1), output_padding=extra)
    return op, s.inputs


def _gemm(s: Site) -> Lowered | None:
    w, c = s.data(1), s.input(2)
    alpha, beta = s.attribute("alpha", 1.0), s.attribute("beta", 1.0)
    turned = s.flag("transB")
    if w is None or len(w.shape) != 2 or s.flag("transA") or not w.dtype.is_wide_float:
        return None
    weight: Operand = s.input(1) if turned else transposed(w)
    shape = w.shape if turned else w.shape[::-1]
    if alpha != 1.0:
        weight = DerivedTensor(
            shape, w.dtype, lambda: alpha * (w.float64() if turned else w.float64().T)
        )
    if c is None or beta == 0.0:
        return ir.Linear(), [s.input(0), weight]
    bias, out = c.data, (shape[0],)
    if bias is None or bias.shape not in (out, (1, *out), (1,), (1, 1), ()):
        return None
    if beta == 1.0 and bias.size == out[0]:
        return ir.Linear(), [s.input(0), weight, c if bias.shape == out else reshaped(bias, out)]

    def wide() -> Any:
        return np.broadcast_to(beta * bias.float64().reshape(-1), out)

    return ir.Linear(), [s.input(0), weight, DerivedTensor(out, bias.dtype, wide)]


def _matmul(s: Site) -> Lowered | None:
    w, rank = s.data(1), s.type().rank
    if w is not None and len(w.shape) == 2 and w.dtype.is_wide_float and rank is not None:
        return (ir.Linear(), [s.input(0), transposed(w)]) if rank >= 1 else None
    return ir.MatMul(), s.inputs


def _batch_norm(s: Site) -> Lowered | None:
    tensors = [s.data(i) for i in range(1, 5)]
    x = s.type()
    if any(t is None or len(t.shape) != 1 for t in tensors) or s.outputs != 1:
        return None
    if s.flag("training_mode") or not s.flag("spatial", 1) or x.rank in (0, 1):
        return None
    gamma, beta, mean, var = (t for t in tensors if t is not None)
    # onnx writes eps as float32; the shortest decimal is what its author meant.
    eps = s.number("epsilon", 1e-5)
    dtype = x.dtype or gamma.dtype
    return ir.Scale(1), [s.input(0), *batch_norm_scale(gamma, beta, mean, var, eps, dtype)]


def _arithmetic(s: Site) -> Lowered | None:
    plain = {"Add": ir.Add, "Sub": ir.Sub, "Mul": ir.Mul, "Div": ir.Div}[s.kind]()
    return scaled(s.kind, s.input(0), s.input(1)) or (plain, s.inputs)


def _pool(s: Site) -> Lowered | None:
    kernel, ceil_mode = s.ints("kernel_shape"), s.flag("ceil_mode")
    window = _window(s, kernel, ceil_mode) if kernel else None
    if kernel is None or window is None or s.outputs != 1:
        return None
    if s.kind == "MaxPool":
        # The order of storage shows in the indices alone, which nobody reads here.
        s.flag("storage_order")
        return ir.MaxPool(**window, kernel=kernel, ceil_mode=ceil_mode), s.inputs
    # Where there is nothing padded, both spellings mean the same.
    include = s.flag("count_include_pad") and any(window["pads"])
    op = ir.AveragePool(**window, kernel=kernel, ceil_mode=ceil_mode, count_include_pad=include)
    return op, s.inputs


def _pad(s: Site) -> Lowered | None:
    pads, rank = s.ints("pads", 1), s.type().rank
    mode, dtype = s.text("mode", "constant"), s.type().dtype
    if pads is None or mode not in ("constant", "reflect", "edge"):
        return None
    if s.input(3) is not None:
        axes = s.ints("axes", 3)
        if axes is None or rank is None:
            return None
        whole = [0] * (2 * rank)
        for i, axis in enumerate(s.axes(axes, rank)):
            whole[axis] = pads[i]
            whole[rank + axis] = pads[len(axes) + i]
        pads = tuple(whole)
    value: float | None = s.number("value", 0.0)
    if s.input(2) is not None:
        value = s.scalar(2)
    if dtype is None or not dtype.is_wide_float or value is None or np.isnan(value):
        return None
    return ir.Pad(pads, mode, value if mode == "constant" else 0.0), s.inputs[:1]


def _global_max(s: Site) -> Lowered | None:
    x = s.inputs[0]
    if x is None or x.type.rank is None or x.type.rank < 3:
        return None
    return ir.Reduce("max", tuple(range(2, x.type.rank))), s.inputs


LINEAR_RULES: dict[str, Rule] = {
    "Add": _arithmetic,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _arithmetic,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda s: (ir.GlobalAveragePool(), s.inputs),
    "GlobalMaxPool": _global_max,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "Mul": _arithmetic,
    "Pad": _pad,
    "Sub": _arithmetic,
}

"""What each ONNX operator is in the IR: one rule an operator.

A rule returns the op and its operands (values, or tensors that it derived), or ``None`` to leave the node
opaque: an input that must be known is not, or the attributes ask for something the op cannot say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from .. import ir
from ..ir import DerivedTensor, LazyTensor, Op, SplatTensor, Tensor, TensorType, Value

Operand = Value | Tensor | None
Lowered = tuple[Op, Sequence[Operand]]
Rule = Callable[["Site"], Lowered | None]


@dataclass
class Site:
    """One host node, as its rule sees it."""

    node: NodeProto
    inputs: list[Value | None]
    attributes: dict[str, Any]
    opset: int

    def input(self, index: int) -> Value | None:
        """An input, ``None`` when it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def data(self, index: int) -> Tensor | None:
        """An input's tensor, when it is known."""
        value = self.input(index)
        return value.data if value is not None else None

    def type(self, index: int = 0) -> TensorType:
        """An input's type."""
        value = self.input(index)
        return value.type if value is not None else TensorType()

    def ints(self, name: str, index: int | None = None) -> tuple[int, ...] | None:
        """Integers from an attribute, or from a known input; ``None`` when absent or unknown."""
        if name in self.attributes:
            found = self.attributes[name]
            return tuple(found) if isinstance(found, (list, tuple)) else (found,)
        data = self.data(index) if index is not None else None
        if data is None or data.size > 64 or not data.dtype.is_int:
            return None
        return tuple(int(v) for v in data.numpy().reshape(-1))

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        found = self.attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)

    def number(self, name: str, default: float) -> float:
        """A float attribute as the shortest decimal that is the same float32."""
        return shortest(self.attributes[name]) if name in self.attributes else default

    def flag(self, name: str, default: int = 0) -> bool:
        """An integer attribute that means yes or no."""
        return bool(self.attributes.get(name, default))


def shortest(value: float) -> float:
    """The shortest decimal that rounds to the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _window(s: Site, kernel: Sequence[int]) -> dict[str, Any] | None:
    """Strides, pads and dilations with ``auto_pad`` resolved; ``None`` when sizes are needed for it."""
    n = len(kernel)
    strides = s.ints("strides") or (1,) * n
    dilations = s.ints("dilations") or (1,) * n
    auto = s.text("auto_pad", "NOTSET")
    pads = s.ints("pads") or (0,) * (2 * n)
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
    return ir.Conv(**window, groups=s.attributes.get("group", 1)), s.inputs


def _conv_transpose(s: Site) -> Lowered | None:
    w = s.type(1).static_shape
    if w is None or not 1 <= len(w) - 2 <= 3 or "output_shape" in s.attributes:
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
    op = ir.ConvTranspose(**window, groups=s.attributes.get("group", 1), output_padding=extra)
    return op, s.inputs


def _gemm(s: Site) -> Lowered | None:
    w, c = s.data(1), s.input(2)
    alpha, beta = s.number("alpha", 1.0), s.number("beta", 1.0)
    if w is None or len(w.shape) != 2 or s.flag("transA") or not w.dtype.is_wide_float:
        return None
    out = w.shape[0] if s.flag("transB") else w.shape[1]
    weight: Operand = s.input(1) if s.flag("transB") else _transposed(w)
    if alpha != 1.0:
        return None
    if c is None:
        return ir.Linear(), [s.input(0), weight]
    if beta != 1.0 or c.data is None or c.data.shape not in ((out,), (1, out)):
        return None
    bias: Operand = c if c.data.shape == (out,) else _reshaped(c.data, (out,))
    return ir.Linear(), [s.input(0), weight, bias]


def _transposed(w: Tensor) -> Tensor:
    return LazyTensor(w.shape[::-1], w.dtype, lambda: w.numpy().T)


def _reshaped(data: Tensor, shape: tuple[int, ...]) -> Tensor:
    return LazyTensor(shape, data.dtype, lambda: data.numpy().reshape(shape))


def _matmul(s: Site) -> Lowered | None:
    w, rank = s.data(1), s.type().rank
    dense = w is not None and len(w.shape) == 2 and w.dtype.is_wide_float
    if w is not None and dense and rank is not None and rank >= 2:
        return ir.Linear(), [s.input(0), _transposed(w)]
    return ir.MatMul(), s.inputs


def _batch_norm(s: Site) -> Lowered | None:
    tensors = [s.data(i) for i in range(1, 5)]
    x = s.type()
    if any(t is None or len(t.shape) != 1 for t in tensors) or len(s.node.output) != 1:
        return None
    if s.flag("training_mode") or not s.attributes.get("spatial", 1) or x.rank in (0, 1):
        return None
    gamma, beta, mean, var = (t for t in tensors if t is not None)
    # onnx writes eps as float32; the shortest decimal is what its author meant.
    eps = s.number("epsilon", 1e-5)
    dtype = x.dtype or gamma.dtype

    def scale() -> Any:
        return gamma.float64() / np.sqrt(var.float64() + eps)

    def shift() -> Any:
        return beta.float64() - mean.float64() * scale()

    shape = gamma.shape
    return ir.Scale(1), [
        s.input(0), DerivedTensor(shape, dtype, scale), DerivedTensor(shape, dtype, shift),
    ]  # fmt: skip


def _arithmetic(s: Site) -> Lowered | None:
    kind = s.node.op_type
    if s.opset < 7:
        return None
    plain = {"Add": ir.Add, "Sub": ir.Sub, "Mul": ir.Mul, "Div": ir.Div}[kind]()
    for x, c in ((0, 1), (1, 0)):
        data, value = s.data(c), s.input(x)
        if data is None or value is None or value.data is not None or (x == 1 and kind == "Div"):
            continue
        place = scale_place(value.type, data)
        if place is None:
            continue
        axis, size = place
        return ir.Scale(axis), [value, *scale_operands(kind, x == 1, data, size)]
    return plain, s.inputs


def scale_place(x: TensorType, constant: Tensor) -> tuple[int, int] | None:
    """Where a constant operand scales ``x``: (axis, 1 or the size of that axis); ``None`` if it does not."""
    if x.rank is None or not constant.dtype.is_wide_float or x.dtype is not constant.dtype:
        return None
    if len(constant.shape) > x.rank:
        return None
    wide = [i for i, d in enumerate(constant.shape) if d != 1]
    if not wide:
        # A scalar has no axis of its own: the channel axis, by convention.
        return (1 if x.rank > 1 else 0), 1
    if len(wide) > 1 or x.rank == 0:
        return None
    axis = x.rank - len(constant.shape) + wide[0]
    size = constant.shape[wide[0]]
    return (axis, size) if x.dim(axis) == size else None


def scale_operands(kind: str, swapped: bool, data: Tensor, size: int) -> list[Operand]:
    """The (scale, shift) of ``x kind data``, or of ``data kind x`` when swapped."""
    shape, dtype = (size,), data.dtype
    flat = _reshaped(data, shape)
    if kind == "Mul":
        return [flat]
    if kind == "Add":
        return [None, flat]
    if kind == "Div":
        return [DerivedTensor(shape, dtype, lambda: 1.0 / flat.float64())]
    if swapped:
        return [SplatTensor(shape, dtype, -1.0), flat]
    return [None, DerivedTensor(shape, dtype, lambda: -flat.float64())]


def _average_pool(s: Site) -> Lowered | None:
    kernel = s.ints("kernel_shape")
    window = _window(s, kernel) if kernel else None
    if kernel is None or window is None:
        return None
    return ir.AveragePool(
        **window,
        kernel=kernel,
        ceil_mode=s.flag("ceil_mode"),
        count_include_pad=s.flag("count_include_pad") and any(window["pads"]),
    ), s.inputs


def _max_pool(s: Site) -> Lowered | None:
    kernel = s.ints("kernel_shape")
    window = _window(s, kernel) if kernel else None
    if kernel is None or window is None or len(s.node.output) != 1 or s.flag("storage_order"):
        return None
    return ir.MaxPool(**window, kernel=kernel, ceil_mode=s.flag("ceil_mode")), s.inputs


def _pad(s: Site) -> Lowered | None:
    pads, rank = s.ints("pads", 1), s.type().rank
    mode = s.text("mode", "constant")
    if pads is None or mode == "wrap":
        return None
    if s.input(3) is not None:
        axes = s.ints("axes", 3)
        if axes is None or rank is None:
            return None
        whole = [0] * (2 * rank)
        for i, axis in enumerate(axes):
            whole[axis % rank] = pads[i]
            whole[rank + axis % rank] = pads[len(axes) + i]
        pads = tuple(whole)
    value = s.number("value", 0.0)
    if s.input(2) is not None:
        data = s.data(2)
        if data is None or data.size != 1:
            return None
        value = float(data.numpy().reshape(-1)[0])
    if s.type().dtype is None or not s.type().dtype.is_wide_float:  # type: ignore[union-attr]
        return None
    return ir.Pad(pads, mode, value), s.inputs[:1]


def _clip(s: Site) -> Lowered | None:
    low, high = s.number("min", -math.inf), s.number("max", math.inf)
    for index in (1, 2):
        if s.input(index) is None:
            continue
        data = s.data(index)
        if data is None or data.size != 1:
            return None
        number = float(data.numpy().reshape(-1)[0])
        low, high = (number, high) if index == 1 else (low, number)
    dtype = s.type().dtype
    if dtype is None or not dtype.is_wide_float or math.isnan(low) or math.isnan(high):
        return None
    if s.opset < 11:
        # Old exporters write the float32 limits for an open end.
        low = -math.inf if low <= -3.4e38 else low
        high = math.inf if high >= 3.4e38 else high
    if (low, high) == (0.0, 6.0):
        return ir.Activation("relu6"), s.inputs[:1]
    return ir.Activation("clip", (low, high)), s.inputs[:1]


def _activation(kind: str, *parameters: tuple[str, float]) -> Rule:
    def rule(s: Site) -> Lowered | None:
        dtype = s.type().dtype
        if dtype is not None and not dtype.is_float:
            return None
        params = tuple(s.number(name, default) for name, default in parameters)
        return ir.Activation(kind, params), s.inputs

    return rule


def _gelu(s: Site) -> Lowered | None:
    kind = "gelu_tanh" if s.text("approximate", "none") == "tanh" else "gelu"
    return ir.Activation(kind), s.inputs


def _prelu(s: Site) -> Lowered | None:
    slope, x = s.data(1), s.type()
    if slope is None:
        return None
    place = scale_place(x, slope)
    if place is None:
        return None
    return ir.PRelu(place[0]), [s.input(0), _reshaped(slope, (place[1],))]


def _softmax(s: Site) -> Lowered | None:
    axis, rank = s.attributes.get("axis", -1 if s.opset >= 13 else 1), s.type().rank
    if s.opset >= 13:
        return ir.Softmax(axis if rank is None or axis >= 0 else axis + rank), s.inputs
    # All axes from ``axis`` on are one: only the last axis means the same.
    return (ir.Softmax(rank - 1), s.inputs) if rank and axis % rank == rank - 1 else None


def _layer_norm(s: Site) -> Lowered | None:
    axis, rank = s.attributes.get("axis", -1), s.type().rank
    if len(s.node.output) != 1 or rank is None or s.attributes.get("stash_type", 1) != 1:
        return None
    tail = rank - axis % rank
    for index in (1, 2):
        if s.input(index) is not None and s.type(index).rank != tail:
            return None
    return ir.LayerNorm(axis % rank, s.number("epsilon", 1e-5)), s.inputs


def _reduce(kind: str) -> Rule:
    def rule(s: Site) -> Lowered | None:
        axes, rank = s.ints("axes", 1), s.type().rank
        if rank is None or (axes is None and s.input(1) is not None):
            return None
        if not axes:
            if s.flag("noop_with_empty_axes"):
                return None
            axes = tuple(range(rank))
        axes = tuple(sorted(a % rank for a in axes))
        keep = s.flag("keepdims", 1)
        if kind == "mean" and keep and rank >= 3 and axes == tuple(range(2, rank)):
            return ir.GlobalAveragePool(), s.inputs[:1]
        return ir.Reduce(kind, axes, keep), s.inputs[:1]

    return rule


def _reshape(s: Site) -> Lowered | None:
    shape = s.ints("shape", 1)
    if shape is None:
        return None
    if shape == (0, -1) and not s.flag("allowzero") and (s.type().rank or 0) >= 2:
        return ir.Flatten(1), s.inputs[:1]
    target = tuple(None if d == 0 and not s.flag("allowzero") else d for d in shape)
    return reshaping(s.type(), target), s.inputs[:1]


def reshaping(x: TensorType, target: tuple[int | None, ...]) -> Op:
    """A reshape, which is a Flatten where it keeps the first axis and joins the rest."""
    rest = [d for d in (x.shape or ())[1:] if isinstance(d, int)]
    known = x.rank is not None and x.rank > 2 and len(rest) == x.rank - 1
    if known and len(target) == 2 and x.dim(0) not in (None, 0) and 0 not in rest:
        batch, joined = target
        if batch in (x.dim(0), None) and joined in (math.prod(rest), -1):
            return ir.Flatten(1)
    return ir.Reshape(target)


def _flatten(s: Site) -> Lowered | None:
    axis, rank = s.attributes.get("axis", 1), s.type().rank
    if axis < 0:
        if rank is None:
            return None
        axis += rank
    return ir.Flatten(axis), s.inputs


def _transpose(s: Site) -> Lowered | None:
    perm, rank = s.ints("perm"), s.type().rank
    if perm is None:
        if rank is None:
            return None
        perm = tuple(reversed(range(rank)))
    return ir.Transpose(perm), s.inputs


def _squeeze(s: Site) -> Lowered | None:
    axes, shape = s.ints("axes", 1), s.type().static_shape
    if axes is None:
        if s.input(1) is not None or shape is None:
            return None
        axes = tuple(i for i, d in enumerate(shape) if d == 1)
    if s.type().rank is None:
        return None
    return ir.Squeeze(tuple(sorted(a % (s.type().rank or 1) for a in axes))), s.inputs[:1]


def _unsqueeze(s: Site) -> Lowered | None:
    axes, rank = s.ints("axes", 1), s.type().rank
    if axes is None or rank is None:
        return None
    return ir.Unsqueeze(tuple(sorted(a % (rank + len(axes)) for a in axes))), s.inputs[:1]


def _concat(s: Site) -> Lowered | None:
    axis, rank = s.attributes.get("axis", 1), s.type().rank
    if axis < 0:
        if rank is None:
            return None
        axis += rank
    return ir.Concat(axis), s.inputs


def _split(s: Site) -> Lowered | None:
    axis, rank = s.attributes.get("axis", 0), s.type().rank
    if rank is None or any(not o for o in s.node.output):
        return None
    axis %= rank
    sizes, count, total = s.ints("split", 1), len(s.node.output), s.type().dim(axis)
    if sizes is None:
        if s.input(1) is not None or total is None:
            return None
        chunk = -(-total // count)
        if s.opset < 18 and total % count:
            return None
        sizes = (*[chunk] * (count - 1), total - chunk * (count - 1))
    if len(sizes) != count or min(sizes) < 0:
        return None
    return ir.Split(sizes, axis), s.inputs[:1]


def _slice(s: Site) -> Lowered | None:
    starts, ends = s.ints("starts", 1), s.ints("ends", 2)
    if starts is None or ends is None or s.type().rank is None:
        return None
    axes, steps = s.ints("axes", 3), s.ints("steps", 4)
    for index, found in ((3, axes), (4, steps)):
        if s.input(index) is not None and found is None:
            return None
    axes = axes if axes is not None else tuple(range(len(starts)))
    steps = steps if steps is not None else (1,) * len(starts)
    rank = s.type().rank or 1
    if any(step <= 0 for step in steps):
        return None
    return ir.Slice(starts, ends, tuple(a % rank for a in axes), steps), s.inputs[:1]


def _gather(s: Site) -> Lowered | None:
    index, rank = s.data(1), s.type().rank
    if index is None or index.shape != () or not rank or not index.dtype.is_int:
        return None
    return ir.Select(s.attributes.get("axis", 0) % rank, int(index.numpy())), s.inputs[:1]


def _cast(s: Site) -> Lowered | None:
    from .onnx_tensors import dtype_of

    to = dtype_of(s.attributes.get("to", 0))
    plain = to is not None and (to.bits >= 16 or to in (ir.DType.I8, ir.DType.U8, ir.DType.BOOL))
    return (ir.Cast(to.value), s.inputs) if to is not None and plain else None


def _identity(s: Site) -> Lowered | None:
    return (ir.Identity(), s.inputs) if s.type().dtype is not None else None


def _dropout(s: Site) -> Lowered | None:
    if len(s.node.output) != 1 or s.opset < 7:
        return None
    if s.input(2) is not None:
        training = s.data(2)
        if training is None or bool(training.numpy().reshape(-1)[0]):
            return None
    return ir.Identity(), s.inputs[:1]


RULES: dict[str, Rule] = {
    "Add": _arithmetic, "AveragePool": _average_pool, "BatchNormalization": _batch_norm,
    "Cast": _cast, "Celu": _activation("celu", ("alpha", 1.0)), "Clip": _clip, "Concat": _concat,
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Div": _arithmetic, "Dropout": _dropout,
    "Elu": _activation("elu", ("alpha", 1.0)), "Flatten": _flatten, "Gather": _gather,
    "Gelu": _gelu, "Gemm": _gemm,
    "GlobalAveragePool": lambda s: (ir.GlobalAveragePool(), s.inputs),
    "HardSigmoid": _activation("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    "HardSwish": _activation("hard_swish"), "Identity": _identity, "LayerNormalization": _layer_norm,
    "LeakyRelu": _activation("leaky_relu", ("alpha", 0.01)), "MatMul": _matmul, "MaxPool": _max_pool,
    "Mish": _activation("mish"), "Mul": _arithmetic, "PRelu": _prelu, "Pad": _pad,
    "ReduceL1": _reduce("l1"), "ReduceL2": _reduce("l2"), "ReduceMax": _reduce("max"),
    "ReduceMean": _reduce("mean"), "ReduceMin": _reduce("min"), "ReduceProd": _reduce("prod"),
    "ReduceSum": _reduce("sum"), "Relu": _activation("relu"), "Reshape": _reshape,
    "Selu": _activation("selu", ("alpha", 1.6732632), ("gamma", 1.050701)),
    "Sigmoid": _activation("sigmoid"), "Slice": _slice, "Softmax": _softmax,
    "Softplus": _activation("softplus"), "Softsign": _activation("softsign"), "Split": _split,
    "Squeeze": _squeeze, "Sub": _arithmetic, "Tanh": _activation("tanh"),
    "ThresholdedRelu": _activation("thresholded_relu", ("alpha", 1.0)), "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}  # fmt: skip

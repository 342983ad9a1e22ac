"""Quantised models: an op between Dequantize and Quantize ops is computed in int8 if TFLite has an int8 kernel for it.

A model in Q/DQ form computes ``quantise(f(dequantise(a), dequantise(w)))``. The float32 operations of ``f`` are always written. If
``f`` has an int8 kernel and its operands are available as int8, the rule of the Quantize op writes that kernel too; the float32
operations are then not read, and are dropped. Other ops stay in float32 between a DEQUANTIZE and a QUANTIZE, and a note lists them.

The int8 kernels need weights with zero point 0 and one scale or one for each output channel, and int32 biases whose scale is the
product of the scales of input and weight. Activations of uint8 and their zero points are shifted by 128 to int8, which keeps their values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....ir import (
    Activation,
    Add,
    AveragePool,
    Concat,
    Conv,
    Dequantize,
    Flatten,
    GlobalAveragePool,
    Identity,
    Linear,
    MaxPool,
    Mul,
    Node,
    Op,
    Quantize,
    Reduce,
    Reshape,
    Resize,
    Select,
    Slice,
    Softmax,
    Squeeze,
    Sub,
    Transpose,
    Unsqueeze,
    Value,
)
from ..emitter import FUSED, FUSED_CODES, Emitter, Unsupported, reordered, spells
from ..flat import Array, FlatTensor, Quantization
from ..layout import InnerOrder, Layout, channels_last
from ..operands import broadcast_operands, broadcast_shape
from .convolutions import Window, as_image, from_image

_SHIFT = {"INT8": 0, "UINT8": 128}
_KEEPING_SCALE: tuple[type[Op], ...] = (
    Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Slice, Select, Identity, MaxPool, Concat, Resize,
)  # fmt: skip
"""Ops that keep the scale of their operand."""


@spells(Quantize)
def quantize(e: Emitter, node: Node, op: Quantize) -> None:
    """The int8 kernel of the op before it, or QUANTIZE."""
    x = node.required(0)
    quantization = _quantization(node, op.dtype)
    if x.data is None:
        made = _int8_result(e, x, quantization)
        if made is not None:
            e.put(node.output, *made)
            return
        producer = x.producer
        if producer is not None and not isinstance(producer.op, Dequantize):
            name = producer.op.name
            e.notes[
                f"{name} is computed in float32: TFLite has no int8 kernel for it in this form"
            ] = None
    layout = e.layout_of(x)
    e.put(node.output, requantised(e, e.get(x, layout), quantization), layout)


@spells(Dequantize)
def dequantize(e: Emitter, node: Node, op: Dequantize) -> None:
    """DEQUANTIZE, which is dropped if only int8 kernels read the value."""
    x = node.required(0)
    if x.data is not None:
        raise Unsupported("it dequantizes a constant that is not the weight of a layer")
    tensor, layout = e.as_stored(x), e.layout_of(x)
    if tensor.dtype not in _SHIFT:
        raise Unsupported(f"activations can only be int8 or uint8, not {tensor.dtype.lower()}")
    quantization = _quantization(node, tensor.dtype.lower().replace("int", "i").replace("ui", "u"))
    if tensor.quantization is None:
        # An input of the graph.
        tensor.quantization = Quantization(
            quantization.scales, (quantization.zero_points[0] + _SHIFT[tensor.dtype],)
        )
    if tensor.dtype == "UINT8":
        tensor = requantised(e, tensor, quantization)
    elif x.type.dtype is not None and tensor.quantization != _quantization(
        node, x.type.dtype.value
    ):
        raise Unsupported("its scale or zero point is not that of the integers that it reads")
    e.int8[node.output] = (tensor, layout)
    made = e.op("DEQUANTIZE", [tensor], tensor.shape, "FLOAT32", ("DequantizeOptions", {}))
    e.put(node.output, made, layout)


def _quantization(node: Node, dtype: str) -> Quantization:
    """Return the scale and the zero point of an activation, the latter shifted to int8."""
    scale, zero = node.required(1), node.input(2)
    if dtype not in ("i8", "u8"):
        raise Unsupported(f"activations can only be int8 or uint8, not {dtype}")
    points = None if zero is None else zero.data
    if scale.data is None or (zero is not None and points is None):
        raise Unsupported("the model computes its scale or zero point")
    if scale.data.size != 1:
        raise Unsupported("the activation has a scale for each channel")
    shift = 128 if dtype == "u8" else 0
    point = 0 if points is None else int(points.numpy().reshape(()))
    return Quantization((float(scale.data.float64().reshape(())),), (point - shift,))


def requantised(e: Emitter, tensor: FlatTensor, quantization: Quantization) -> FlatTensor:
    """Return a float32 or quantised tensor in int8 with the given scale and zero point, by a QUANTIZE if it differs."""
    if tensor.dtype == "INT8" and tensor.quantization == quantization:
        return tensor
    made = e.op("QUANTIZE", [tensor], tensor.shape, "INT8", ("QuantizeOptions", {}))
    made.quantization = quantization
    return made


Placed = tuple[FlatTensor, Layout]
"""A tensor and its layout."""


def _int8_result(e: Emitter, x: Value, quantization: Quantization) -> Placed | None:
    """Write a value in int8, with the kernel of the op that computes it; ``None`` if there is no kernel for it."""
    act, node = 0, x.producer
    if node is not None and isinstance(node.op, Activation) and node.op in FUSED:
        act = FUSED_CODES[FUSED[node.op]]
        inner = node.required(0)
        if inner in e.int8:
            return _relu(e, inner, node.op, quantization)
        node = inner.producer
    if node is None:
        return None
    kernel = next((k for ops, k in _KERNELS if isinstance(node.op, ops)), None)
    if kernel is None or (act and kernel not in _FUSING):
        return None
    return kernel(e, _QuantizedNode(node, quantization, act))


@dataclass(frozen=True)
class _QuantizedNode:
    """A node whose result is quantised.

    Attributes:
        node: The node.
        out: The scale and zero point of its result.
        act: The schema's number of the fused activation.
    """

    node: Node
    out: Quantization
    act: int


def _int8_in(e: Emitter, value: Value, layout: Layout) -> FlatTensor:
    """Return the int8 tensor of a value in a layout."""
    tensor, have = e.int8[value]
    return e.convert(tensor, e.shape(value), have, layout)


def _int8_op(
    e: Emitter, code: str, inputs: list[FlatTensor], shape: tuple[int, ...], out: Quantization,
    options: tuple[str, dict[str, Any]],
) -> FlatTensor:  # fmt: skip
    made = e.op(code, inputs, shape, "INT8", options)
    made.quantization = out
    return made


@dataclass(frozen=True)
class _Weight:
    """The int8 numbers of a weight in the model's order, and one scale or one for each output channel."""

    numbers: Array
    scales: Array


def _weight(e: Emitter, value: Value | None) -> _Weight | None:
    """Return the int8 numbers that a weight is dequantised from; ``None`` if TFLite's kernels cannot use them.

    Its output channels are axis 0.
    """
    if value is None or value.data is None:
        return None
    base = value
    if base.producer is None and len(value.bases) == 1:
        base = value.bases[0]
    node = base.producer
    if node is None or not isinstance(node.op, Dequantize) or node.op.block:
        return None
    q, scale, zero = node.inputs[0], node.inputs[1], node.input(2)
    if q is None or q.data is None or scale is None or scale.data is None:
        return None
    if zero is not None and zero.data is None:
        return None
    numbers = q.data.numpy()
    points = 0 if zero is None or zero.data is None else zero.data.numpy().astype(np.int32)
    shift = 128 if numbers.dtype == np.uint8 else 0
    if numbers.dtype not in (np.int8, np.uint8) or np.any(points != shift):
        return None
    scales = scale.data.float64().reshape(-1)
    axis = node.op.axis % numbers.ndim
    numbers = (numbers.astype(np.int32) - shift).astype(np.int8)
    if base is not value:
        # The weight of a dense layer, transposed by the frontend.
        if value.type.shape != tuple(reversed(numbers.shape)) or numbers.ndim != 2:
            return None
        numbers, axis = numbers.T, 1 - axis
    if scales.size > 1 and axis != 0:
        return None
    return _Weight(numbers, scales)


def _bias(e: Emitter, value: Value | None, scale: Array, size: int) -> FlatTensor | None:
    """Return a bias as int32 with the given scales; ``None`` if it is not constant or does not fit."""
    if value is not None and value.data is None:
        return None
    values = np.zeros(size) if value is None or value.data is None else value.data.float64()
    scales = np.broadcast_to(scale, size)
    numbers = np.rint(values / scales)
    if np.abs(numbers).max(initial=0) > 2**31 - 1:
        return None
    made = e.tensor("bias", (size,), "INT32", numbers.astype(np.int32))
    made.quantization = Quantization(tuple(map(float, scale)), (0,) * scale.size)
    return made


def _kernel(e: Emitter, numbers: Array, scales: Array, axis: int, name: str) -> FlatTensor:
    made = e.tensor(name, numbers.shape, "INT8", np.ascontiguousarray(numbers))
    made.quantization = Quantization(
        tuple(map(float, scales)), (0,) * scales.size, axis if scales.size > 1 else 0
    )
    return made


def _conv(e: Emitter, s: _QuantizedNode) -> Placed | None:
    op, x, w = s.node.op, s.node.required(0), s.node.required(1)
    assert isinstance(op, Conv)
    weight, found = _weight(e, w), e.int8.get(x)
    if weight is None or found is None or found[0].quantization is None:
        return None
    n = op.spatial_rank
    sizes = e.known_sizes(x, range(2, 2 + n), "spatial size")
    out = e.known_sizes(s.node.output, range(2, 2 + n), "spatial size")
    numbers = weight.numbers if n == 2 else weight.numbers[:, :, None, :]
    fan_out = numbers.shape[0]
    bias = _bias(e, s.node.input(2), weight.scales * found[0].quantization.scales[0], fan_out)
    if bias is None:
        return None
    layout = channels_last(n + 2)
    image = as_image(e, _int8_in(e, x, layout))
    kernel = weight.numbers.shape[2:]
    window = Window.of(n, kernel, op.strides, op.dilations, op.pads[:n], op.pads[n:], sizes, out)
    image, padding = window.padded(e, image)
    fields: dict[str, Any] = {
        "padding": padding, "fusedActivationFunction": s.act,
        "strideH": window.strides[0], "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0], "dilationWFactor": window.dilations[1],
    }  # fmt: skip
    channels = image.shape[3]
    if op.groups == channels and op.groups > 1:
        tensor = _kernel(e, numbers.transpose(1, 2, 3, 0), weight.scales, 3, w.name)
        fields["depthMultiplier"] = fan_out // channels
        code, kind = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
    else:
        tensor = _kernel(e, numbers.transpose(0, 2, 3, 1), weight.scales, 0, w.name)
        code, kind = "CONV_2D", "Conv2DOptions"
    shape = (image.shape[0], *window.out, fan_out)
    made = _int8_op(e, code, [image, tensor, bias], shape, s.out, (kind, fields))
    return from_image(e, made, n), layout


def _linear(e: Emitter, s: _QuantizedNode) -> Placed | None:
    x, w = s.node.required(0), s.node.required(1)
    weight, found = _weight(e, w), e.int8.get(x)
    rank = len(e.shape(x))
    if weight is None or found is None or found[0].quantization is None or rank < 2:
        return None
    tensor, layout = found
    numbers, inner = weight.numbers, layout.inner
    if layout.perm[-1] != rank - 1 or (inner is not None and inner.axis != rank - 1):
        layout, inner = Layout(tuple(range(rank))), None
        tensor = _int8_in(e, x, layout)
    if inner is not None:
        numbers = reordered(numbers, InnerOrder(1, inner.sizes, inner.order))
    fan_out = numbers.shape[0]
    bias = _bias(e, s.node.input(2), weight.scales * found[0].quantization.scales[0], fan_out)
    if bias is None:
        return None
    kernel = _kernel(e, numbers, weight.scales, 0, w.name)
    fields = {"fusedActivationFunction": s.act, "keepNumDims": rank > 2}
    made = _int8_op(e, "FULLY_CONNECTED", [tensor, kernel, bias], (*tensor.shape[:-1], fan_out), s.out,
                 ("FullyConnectedOptions", fields))  # fmt: skip
    return made, Layout(layout.perm)


def _arithmetic(e: Emitter, s: _QuantizedNode) -> Placed | None:
    values = [v for v in s.node.inputs if v is not None]
    if any(v not in e.int8 for v in values):
        return None
    code = s.node.op.name.upper()
    with e.reading_int8(values):
        (a, b), layout = broadcast_operands(e, s.node.output, values)
    shape = broadcast_shape(a, b)
    if max(a.rank, b.rank) > 4 and a.shape != b.shape:
        return None
    fields = {"fusedActivationFunction": s.act}
    return _int8_op(e, code, [a, b], shape, s.out, (f"{code.title()}Options", fields)), layout


def _keeping_scale(e: Emitter, s: _QuantizedNode) -> Placed | None:
    """Write an op that keeps the scale, by its rule for float32 but on int8 tensors, and requantise the result."""
    values = [v for v in s.node.inputs if v is not None]
    if len(values) == 1 and values[0] not in e.int8 and not isinstance(s.node.op, Resize):
        # The op moves numbers without changing them, so its input can be quantised instead.
        inner = _int8_result(e, values[0], s.out)
        if inner is not None:
            e.int8[values[0]] = inner
    if any(v not in e.int8 for v in values):
        return None
    same = [e.int8[v][0].quantization for v in values]
    if len(set(same)) > 1 and not isinstance(s.node.op, Concat):
        return None
    if isinstance(s.node.op, Resize) and s.node.op.mode == "cubic":
        return None
    with e.reading_int8(values, s.out if isinstance(s.node.op, Concat) else None):
        try:
            e.spell(s.node)
        except Unsupported:
            return None
        made, layout = e.placed[s.node.output]
    if made.quantization is None:
        made.quantization = same[0]
    return requantised(e, made, s.out), layout


def _average(e: Emitter, s: _QuantizedNode) -> Placed | None:
    """Write an average pool or a mean, by its rule for float32 but on int8 tensors."""
    x = s.node.inputs[0]
    if x is None or x not in e.int8:
        return None
    with e.reading_int8([x]):
        before = len(e.model.operations)
        try:
            e.spell(s.node)
        except Unsupported:
            return None  # float32 can do what int8 cannot; what was written is not read.
        made, layout = e.placed[s.node.output]
        written = e.model.operations[before:]
    if {o.code for o in written} - {"MEAN", "AVERAGE_POOL_2D", "RESHAPE", "TRANSPOSE"}:
        return None
    source = e.int8[x][0].quantization
    for operation in written:
        for tensor in operation.outputs:
            tensor.dtype = "INT8"
            tensor.quantization = tensor.quantization or source
    if made.producer is not None and made.producer.code == "MEAN":
        made.quantization = s.out  # MEAN supports any scale of its result.
    return requantised(e, made, s.out), layout


_FIXED = {"SOFTMAX": Quantization((1 / 256,), (-128,)), "LOGISTIC": Quantization((1 / 256,), (-128,)),
          "TANH": Quantization((1 / 128,), (0,))}  # fmt: skip
"""The kernels whose result must have a fixed scale and zero point."""


def _fixed_scale(e: Emitter, s: _QuantizedNode) -> Placed | None:
    x, op = s.node.inputs[0], s.node.op
    if x is None or x not in e.int8:
        return None
    tensor, layout = e.int8[x]
    if isinstance(op, Softmax):
        if layout.inner is not None or layout.place(op.axis) != layout.rank - 1:
            return None
        code, options = "SOFTMAX", ("SoftmaxOptions", {"beta": 1.0})
    else:
        assert isinstance(op, Activation)
        if op.kind not in ("sigmoid", "tanh"):
            return None
        code, options = {"sigmoid": "LOGISTIC", "tanh": "TANH"}[op.kind], ("", {})
    made = e.op(code, [tensor], tensor.shape, "INT8", options if options[0] else None)
    made.quantization = _FIXED[code]
    return requantised(e, made, s.out), layout


def _relu(e: Emitter, x: Value, op: Activation, quantization: Quantization) -> Placed:
    tensor, layout = e.int8[x]
    made = e.op(FUSED[op], [tensor], tensor.shape, "INT8")
    made.quantization = quantization
    return made, layout


Kernel = Callable[[Emitter, _QuantizedNode], Placed | None]
_FUSING: tuple[Kernel, ...] = (_conv, _linear, _arithmetic)
_KERNELS: list[tuple[tuple[type[Op], ...], Kernel]] = [
    ((Conv,), _conv),
    ((Linear,), _linear),
    ((Add, Sub, Mul), _arithmetic),
    ((AveragePool, GlobalAveragePool, Reduce), _average),
    ((Softmax, Activation), _fixed_scale),
    (_KEEPING_SCALE, _keeping_scale),
]

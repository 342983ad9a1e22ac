"""Reductions, places of extrema, running sums, softmax and normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ....ir import (
    ArgReduce,
    CumSum,
    GroupNorm,
    LayerNorm,
    LocalResponseNorm,
    LogSoftmax,
    Node,
    Reduce,
    Softmax,
)
from ..emitter import Emitter, Unsupported, spells
from ..flat import DYNAMIC, FlatTensor
from ..layout import Layout, channels_last, model_order
from ..operands import aligned
from .activations import Elementwise
from .arithmetic import vector_along

_CODES = {
    "mean": "MEAN",
    "sum": "SUM",
    "max": "REDUCE_MAX",
    "min": "REDUCE_MIN",
    "prod": "REDUCE_PROD",
}


def reduced(
    e: Emitter, code: str, tensor: FlatTensor, places: Sequence[int], keep: bool = True
) -> FlatTensor:
    """Return the reduction of a tensor over stored axes; ``keep`` keeps them with size 1."""
    shape = [1 if i in places else d for i, d in enumerate(tensor.shape)]
    if not keep:
        shape = [d for i, d in enumerate(tensor.shape) if i not in places]
    axes = e.constant(np.array(sorted(places)), "INT32")
    return e.op(code, [tensor, axes], shape, tensor.dtype, ("ReducerOptions", {"keepDims": keep}))


@spells(Reduce, kinds=(*_CODES, "l1", "l2"))
def reduce(e: Emitter, node: Node, op: Reduce) -> None:
    """MEAN, SUM, REDUCE_MAX and so on, over the stored axes."""
    x = node.required(0)
    layout = Layout(e.layout_of(x).perm)
    tensor = e.get(x, layout)
    m = Elementwise(e)
    places = [layout.place(axis) for axis in op.axes]
    kind = op.kind
    quantised = tensor.dtype == "INT8" and tensor.quantization is not None and kind == "mean"
    if tensor.dtype not in ("FLOAT32", "INT32", "INT64") and not quantised:
        raise Unsupported(f"LiteRT has no kernel for {tensor.dtype.lower()}")
    if kind in ("l1", "l2", "mean") and tensor.dtype != "FLOAT32" and not quantised:
        raise Unsupported(
            f"{kind} of {tensor.dtype.lower()}: whole numbers round otherwise in TFLite"
        )
    if kind == "l1":
        tensor, kind = m.unary("ABS", tensor, "AbsOptions"), "sum"
    if kind == "l2":
        tensor = m.binary("MUL", tensor, tensor)
        made = m.unary("SQRT", reduced(e, "SUM", tensor, places, op.keepdims))
    elif places:
        made = reduced(e, _CODES[kind], tensor, places, op.keepdims)
    else:
        made = tensor
    e.put(node.output, made, layout if op.keepdims else layout.without(op.axes))


@spells(Softmax, LogSoftmax)
def softmax(e: Emitter, node: Node, op: Softmax | LogSoftmax) -> None:
    """SOFTMAX or LOG_SOFTMAX over the last stored axis; along another axis as arithmetic, which needs no TRANSPOSE."""
    x = node.required(0)
    layout = Layout(e.layout_of(x).perm)
    tensor = e.get(x, layout)
    place = layout.place(op.axis)
    last, logarithm = place == layout.rank - 1, isinstance(op, LogSoftmax)
    if last and logarithm:
        made = e.op("LOG_SOFTMAX", [tensor], tensor.shape, "FLOAT32", ("LogSoftmaxOptions", {}))
    elif last:
        made = e.op("SOFTMAX", [tensor], tensor.shape, "FLOAT32", ("SoftmaxOptions", {"beta": 1.0}))
    else:
        m = Elementwise(e)
        below = m.binary("SUB", tensor, reduced(e, "REDUCE_MAX", tensor, [place]))
        power = m.unary("EXP", below, "ExpOptions")
        total = reduced(e, "SUM", power, [place])
        made = (
            m.binary("SUB", below, m.unary("LOG", total))
            if logarithm
            else m.binary("DIV", power, total)
        )
    e.put(node.output, made, layout)


def normalised(e: Emitter, tensor: FlatTensor, places: Sequence[int], epsilon: float) -> FlatTensor:
    """Return ``(x - mean) / sqrt(variance + epsilon)``, with mean and variance over stored axes."""
    m = Elementwise(e)
    centred = m.binary("SUB", tensor, reduced(e, "MEAN", tensor, places))
    variance = reduced(e, "MEAN", m.binary("MUL", centred, centred), places)
    return m.binary("MUL", centred, m.unary("RSQRT", m.binary("ADD", variance, epsilon)))


@spells(LayerNorm)
def layer_norm(e: Emitter, node: Node, op: LayerNorm) -> None:
    """Layer normalisation as arithmetic."""
    x = node.required(0)
    layout = Layout(e.layout_of(x).perm)
    tensor = e.get(x, layout)
    rank = layout.rank
    first = op.axis % rank
    made = normalised(e, tensor, [layout.place(a) for a in range(first, rank)], op.epsilon)
    for code, value in (("MUL", node.input(1)), ("ADD", node.input(2))):
        if value is not None:
            made = Elementwise(e).binary(code, made, aligned(e, value, layout))
    e.put(node.output, made, layout)


@spells(GroupNorm)
def group_norm(e: Emitter, node: Node, op: GroupNorm) -> None:
    """Group and instance normalisation as arithmetic, channels last."""
    x = node.required(0)
    layout = channels_last(len(e.shape(x))) if len(e.shape(x)) > 2 else model_order(2)
    tensor = e.get(x, layout)
    spatial = list(range(1, tensor.rank - 1))
    channels = tensor.shape[-1]
    if channels == DYNAMIC:
        raise Unsupported("the number of channels is not known")
    if op.groups in (0, channels):
        if not spatial:
            raise Unsupported("each channel has one element, so that its variance is 0")
        made = normalised(e, tensor, spatial, op.epsilon)
    else:
        parted = e.reshape(tensor, (*tensor.shape[:-1], op.groups, channels // op.groups))
        made = e.reshape(
            normalised(e, parted, [*spatial, parted.rank - 1], op.epsilon), tensor.shape
        )
    for code, value in (("MUL", node.input(1)), ("ADD", node.input(2))):
        if value is not None:
            made = Elementwise(e).binary(code, made, vector_along(e, value, layout, 1))
    e.put(node.output, made, layout)


@spells(LocalResponseNorm)
def local_response_norm(e: Emitter, node: Node, op: LocalResponseNorm) -> None:
    """LOCAL_RESPONSE_NORMALIZATION of four axes, channels last."""
    x = node.required(0)
    rank = len(e.shape(x))
    layout = channels_last(rank) if rank > 2 else model_order(rank)
    tensor = e.get(x, layout)
    if tensor.dtype != "FLOAT32":
        raise Unsupported(f"LiteRT computes it in float32 only, not in {tensor.dtype.lower()}")
    flat = (
        tensor
        if rank == 4
        else e.reshape(tensor, (1, 1, _joined(tensor.shape[:-1]), tensor.shape[-1]))
    )
    fields = {"radius": op.size // 2, "bias": op.bias, "alpha": op.alpha / op.size, "beta": op.beta}
    made = e.op("LOCAL_RESPONSE_NORMALIZATION", [flat], flat.shape, "FLOAT32",
                ("LocalResponseNormalizationOptions", fields))  # fmt: skip
    e.put(node.output, e.reshape(made, tensor.shape), layout)


def _joined(sizes: Sequence[int]) -> int:
    return DYNAMIC if DYNAMIC in sizes else math.prod(sizes)


@spells(ArgReduce, kinds=("max", "min"))
def arg_reduce(e: Emitter, node: Node, op: ArgReduce) -> None:
    """ARG_MAX or ARG_MIN."""
    x = node.required(0)
    layout = Layout(e.layout_of(x).perm)
    tensor = e.get(x, layout)
    if tensor.dtype not in ("FLOAT32", "INT32"):
        raise Unsupported(f"LiteRT has no kernel for {tensor.dtype.lower()}")
    place = layout.place(op.axis)
    axis = e.constant(place, "INT32")
    if op.last:
        tensor = e.op("REVERSE_V2", [tensor, e.constant([place], "INT32")], tensor.shape,
                      tensor.dtype, ("ReverseV2Options", {}))  # fmt: skip
    code, options = (
        ("ARG_MAX", "ArgMaxOptions") if op.kind == "max" else ("ARG_MIN", "ArgMinOptions")
    )
    shape = tuple(d for i, d in enumerate(tensor.shape) if i != place)
    made = e.op(code, [tensor, axis], shape, "INT64", (options, {"outputType": 4}))
    if op.last:
        (size,) = e.known_sizes(x, [op.axis])
        made = e.op("SUB", [e.constant(size - 1, "INT64"), made], shape, "INT64",
                    ("SubOptions", {"fusedActivationFunction": 0}))  # fmt: skip
    if op.keepdims:
        made = e.reshape(made, (*shape[:place], 1, *shape[place:]))
    e.put(node.output, made, layout if op.keepdims else layout.without([op.axis]))


@spells(CumSum)
def cumulative_sum(e: Emitter, node: Node, op: CumSum) -> None:
    """CUMSUM."""
    x = node.required(0)
    layout = Layout(e.layout_of(x).perm)
    tensor = e.get(x, layout)
    if tensor.dtype not in ("FLOAT32", "INT32", "INT64"):
        raise Unsupported(f"LiteRT has no kernel for {tensor.dtype.lower()}")
    axis = e.constant(layout.place(op.axis), "INT32")
    made = e.op("CUMSUM", [tensor, axis], tensor.shape, tensor.dtype,
                ("CumsumOptions", {"exclusive": op.exclusive, "reverse": op.reverse}))  # fmt: skip
    e.put(node.output, made, layout)

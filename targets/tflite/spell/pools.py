"""Pools.

TFLite's pools have no padding but SAME, whose average does not count the padding. Other padding is written as a PAD first. A maximum
pads with the smallest number (after a ReLU with zeros, which XNNPACK supports). An average pads with zeros and multiplies each window by
its size over the number of elements that count.
"""

from __future__ import annotations

import numpy as np

from ....ir import Activation, AveragePool, GlobalAveragePool, MaxPool, Node, Value
from ..emitter import Emitter, Unsupported, spells
from ..flat import NUMPY_TYPES, Array, FlatTensor
from ..layout import channels_last
from .convolutions import VALID, Window, as_image, from_image

_NOT_NEGATIVE = {"relu", "relu6", "sigmoid", "hard_sigmoid"}


def _window(e: Emitter, node: Node, op: AveragePool | MaxPool, x: Value) -> tuple[Window, int]:
    n = op.spatial_rank
    if n not in (1, 2):
        raise Unsupported(f"{n}-D: LiteRT supports 1-D and 2-D only")
    if set(op.dilations) != {1}:
        raise Unsupported("LiteRT has no dilated windows")
    sizes = e.known_sizes(x, range(2, 2 + n), "spatial size")
    out = e.known_sizes(node.output, range(2, 2 + n), "spatial size")
    begins, ends = op.pads[:n], op.pads[n:]
    return Window.of(n, op.kernel, op.strides, op.dilations, begins, ends, sizes, out), n


def _pool(
    e: Emitter, code: str, image: FlatTensor, window: Window, padding: int, act: int
) -> FlatTensor:
    options = {
        "padding": padding, "fusedActivationFunction": act,
        "strideH": window.strides[0], "strideW": window.strides[1],
        "filterHeight": window.kernel[0], "filterWidth": window.kernel[1],
    }  # fmt: skip
    shape = (image.shape[0], *window.out, image.shape[3])
    made = e.op(code, [image], shape, image.dtype, ("Pool2DOptions", options))
    made.quantization = image.quantization
    return made


@spells(MaxPool)
def max_pool(e: Emitter, node: Node, op: MaxPool) -> None:
    """MAX_POOL_2D."""
    x = node.required(0)
    window, n = _window(e, node, op, x)
    layout = channels_last(n + 2)
    image = as_image(e, e.get(x, layout))
    lowest = None if _not_negative(x) else float(np.finfo(np.float32).min)
    if image.quantization is not None:
        lowest = float(np.iinfo(NUMPY_TYPES[image.dtype]).min)
    elif image.dtype != "FLOAT32":
        raise Unsupported(f"LiteRT computes it in float32 only, not in {image.dtype.lower()}")
    if window.is_same:
        padding = VALID if window.is_valid else 0
    else:
        image, padding = window.padded(e, image, lowest) if not window.is_valid else (image, VALID)
    act, result = e.fuse_activation(node)
    made = _pool(e, "MAX_POOL_2D", image, window, padding, act)
    e.put(result, from_image(e, made, n), layout)


def _not_negative(value: Value) -> bool:
    """Whether all values are zero or more, so that padding with zeros does not change a maximum."""
    node = value.producer
    while node is not None and isinstance(node.op, MaxPool):
        node = node.inputs[0].producer if node.inputs[0] is not None else None
    return node is not None and isinstance(node.op, Activation) and node.op.kind in _NOT_NEGATIVE


@spells(AveragePool)
def average_pool(e: Emitter, node: Node, op: AveragePool) -> None:
    """AVERAGE_POOL_2D."""
    x = node.required(0)
    window, n = _window(e, node, op, x)
    layout = channels_last(n + 2)
    image = as_image(e, e.get(x, layout))
    act, result = e.fuse_activation(node)
    if window.is_valid:
        made = _pool(e, "AVERAGE_POOL_2D", image, window, VALID, act)
    elif window.is_same and not op.count_include_pad:
        made = _pool(e, "AVERAGE_POOL_2D", image, window, 0, act)
    else:
        ratio = _ratio(op, window, n)
        plain = bool(np.all(ratio == 1))
        image = window.with_pad(e, image)
        made = _pool(e, "AVERAGE_POOL_2D", image, window, VALID, act if plain else 0)
        if not plain and image.dtype == "INT8":
            raise Unsupported("an average of int8 whose windows have different numbers of elements")
        if not plain:
            made = e.op("MUL", [made, e.constant(ratio)], made.shape, made.dtype,
                        ("MulOptions", {"fusedActivationFunction": act}))  # fmt: skip
    e.put(result, from_image(e, made, n), layout)


def _ratio(op: AveragePool, window: Window, rank: int) -> Array:
    """Return the size of the window over the number of its elements that count, (height, width, 1)."""
    lines = []
    own = len(window.kernel) - rank
    for i in range(2):
        size, begin, kernel = window.sizes[i], window.begins[i], window.kernel[i]
        end = op.pads[rank + i - own] if i >= own else 0
        # The elements that count: those of the image, or of the image and the model's padding.
        low, high = (-begin, size + end) if op.count_include_pad else (0, size)
        starts = np.arange(window.out[i]) * window.strides[i] - begin
        counted = np.minimum(starts + kernel, high) - np.maximum(starts, low)
        lines.append(kernel / counted.astype(np.float64))
    ratio: Array = np.outer(*lines).astype(np.float32)[:, :, None]
    return ratio


@spells(GlobalAveragePool)
def global_average_pool(e: Emitter, node: Node, op: GlobalAveragePool) -> None:
    """MEAN over the spatial axes."""
    x = node.required(0)
    rank = len(e.shape(x))
    layout = channels_last(rank)
    tensor = e.get(x, layout)
    axes = list(range(1, rank - 1))
    shape = [1 if i in axes else d for i, d in enumerate(tensor.shape)]
    made = e.op("MEAN", [tensor, e.constant(np.array(axes), "INT32")], shape, tensor.dtype,
                ("ReducerOptions", {"keepDims": True}))  # fmt: skip
    e.put(node.output, made, layout)

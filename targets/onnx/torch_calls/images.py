"""Calls on images, and losses."""

from __future__ import annotations

import math
from typing import Any

from ....ir import DType, TensorType, Value
from .call import Call, NotWritten, writes


@writes("grid_sample")
def grid_sample(call: Call) -> Value:
    """``(x, grid, mode, padding, corners)``."""
    mode, corners = call.get(2, "mode", "bilinear"), bool(call.get(4, "align_corners") or False)
    name = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}.get(mode)
    if call.out.opset < 20:
        name = mode
    if name is None:
        raise NotWritten(f"ONNX samples no grid in mode {mode!r}")
    padding = call.get(3, "padding_mode", "zeros")
    attrs = {"mode": name, "padding_mode": padding, "align_corners": int(corners)}
    return call.op("GridSample", call.tensor(0), call.tensor(1, "grid"), **attrs)


@writes("affine_grid")
def affine_grid(call: Call) -> Value:
    """``(theta, sizes, corners)``."""
    corners = int(bool(call.get(2, "align_corners") or False))
    return call.op(
        "AffineGrid",
        call.tensor(0, "theta"),
        call.out.vector(call.sizes(1, "size")),
        align_corners=corners,
    )


@writes("max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices")
def max_pool(call: Call) -> list[Value]:
    """``(x, kernel, stride, padding, dilation, ceil)``: ONNX counts places through the whole tensor, torch through each channel."""
    x = call.tensor(0)
    n = int(call.name[8])
    if call.out.rank(x) != n + 2:
        raise NotWritten("its input is no batch")
    kernel = _each(call.get(1, "kernel_size"), n)
    strides = _each(call.get(2, "stride") or kernel, n)
    pads, dilations = _each(call.get(3, "padding", 0), n), _each(call.get(4, "dilation", 1), n)
    ceil = call.flag(5, "ceil_mode")
    types = [TensorType(x.type.dtype), TensorType(DType.I64)]
    y, places = call.out.node(
        "MaxPool", [x], types, kernel_shape=kernel, strides=strides, pads=[*pads, *pads], dilations=dilations, ceil_mode=int(ceil)
    )  # fmt: skip
    area: Any = 1
    for size in call.out.sizes(x)[2:]:
        area = call.out.arithmetic("Mul", area, size)
    return [y, call.out.op("Mod", places, call.out.scalar(area, DType.I64))]


def _each(found: Any, n: int) -> list[int]:
    made = list(found) if isinstance(found, (list, tuple)) else [found]
    made = made * n if len(made) == 1 else made
    if len(made) != n or not all(type(i) is int for i in made):
        raise NotWritten(f"{found!r} is not {n} whole numbers")
    return made


@writes("avg_pool1d", "avg_pool2d", "avg_pool3d")
def average_pool(call: Call) -> Value:
    """``(x, kernel, stride, padding, ceil, count_include_pad, divisor)``."""
    x, n = call.tensor(0), int(call.name[8])
    kernel = _each(call.get(1, "kernel_size"), n)
    strides, pads = _each(call.get(2, "stride") or kernel, n), _each(call.get(3, "padding", 0), n)
    divisor = call.get(6, "divisor_override")
    if call.flag(4, "ceil_mode") or call.out.rank(x) != n + 2:
        raise NotWritten("it rounds sizes up, or takes no batch")
    if divisor is not None and type(divisor) is not int:
        raise NotWritten(f"it divides by {divisor!r}")
    padding_counts = divisor is not None or call.flag(5, "count_include_pad", True)
    mean = call.op(
        "AveragePool",
        x,
        kernel_shape=kernel,
        strides=strides,
        pads=[*pads, *pads],
        count_include_pad=int(padding_counts),
    )
    if divisor is None:
        return mean
    return call.op("Mul", mean, call.out.scalar(math.prod(kernel) / divisor, call.dtype))


@writes("fold")
def fold(call: Call) -> Value:
    """``(x, image, block, dilation, padding, stride)``."""
    image = call.get(1, "output_size")
    block, dilation = _each(call.get(2, "kernel_size"), 2), _each(call.get(3, "dilation", 1), 2)
    pads, strides = _each(call.get(4, "padding", 0), 2), _each(call.get(5, "stride", 1), 2)
    x = call.tensor(0)
    if call.out.rank(x) != 3:
        raise NotWritten("its input is no batch")
    image = image if isinstance(image, (list, tuple)) else (image, image)
    attrs = {"dilations": dilation, "pads": [*pads, *pads], "strides": strides}
    return call.op("Col2Im", x, call.out.vector(image), call.out.ints(*block), **attrs)


@writes("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Value:
    """``(x, factor)``: reshaped, so that channels come in torch's order."""
    x, r = call.tensor(0), call.known(1, "downscale_factor")
    rank = call.out.rank(x)
    if rank != 4:
        raise NotWritten("its input is no batch")
    n, c, h, w = call.out.sizes(x)
    out = call.out
    sizes = [n, c, out.floor_divide(h, r), r, out.floor_divide(w, r), r]
    split = out.op("Reshape", x, out.vector(sizes))
    turned = out.op("Transpose", split, perm=[0, 1, 3, 5, 2, 4])
    return call.op(
        "Reshape", turned, out.vector([n, out.arithmetic("Mul", c, r * r), sizes[2], sizes[4]])
    )


@writes("nll_loss")
def nll_loss(call: Call) -> Value:
    """``(logs, targets, weight, size_average, ignore_index, reduce, reduction)``."""
    if call.get(3, "size_average") is not None or call.get(5, "reduce") is not None:
        raise NotWritten("it has the arguments of ATen, or old ones")
    ignored, reduction = call.get(4, "ignore_index", -100), call.get(6, "reduction", "mean")
    attrs = {"ignore_index": ignored, "reduction": reduction}
    return call.op(
        "NegativeLogLikelihoodLoss",
        call.tensor(0),
        call.tensor(1, "target"),
        call.get(2, "weight"),
        **attrs,
    )


@writes("normalize")
def normalize(call: Call) -> Value:
    """``(x, p, dim, epsilon)``."""
    p, dims, epsilon = call.get(1, "p", 2), call.get(2, "dim", 1), call.get(3, "eps", 1e-12)
    if p not in (1, 2):
        raise NotWritten(f"ONNX has no norm of order {p}")
    x, dtype = call.tensor(0), call.dtype
    kind = "ReduceL1" if p == 1 else "ReduceL2"
    axes = list(dims) if isinstance(dims, (list, tuple)) else [dims]
    if not axes or any(type(axis) is not int for axis in axes):
        raise NotWritten(f"its axes {dims!r} are no known whole numbers")
    if call.out.opset >= 18:
        norm = call.out.op(kind, x, call.out.ints(*axes), keepdims=1)
    else:
        norm = call.out.op(kind, x, axes=axes, keepdims=1)
    return call.op("Div", x, call.out.op("Max", norm, call.out.scalar(epsilon, dtype)))


@writes("interpolate")
def interpolate(call: Call) -> Value:
    """``(x, size)`` of computed sizes; factors that are known have an op in the IR."""
    x, sizes = call.tensor(0), call.get(1, "size")
    mode, corners = call.get(3, "mode", "nearest"), bool(call.get(4, "align_corners") or False)
    found = _RESIZES.get(mode)
    if sizes is None or found is None or call.get(6, "antialias", False) or not call.dtype.is_float:
        raise NotWritten("it resizes by factors, in another mode, or no floats")
    spatial = call.sizes(1, "size")
    own = call.out.sizes(x)
    spatial = spatial * (len(own) - 2) if len(spatial) == 1 else spatial
    attrs = dict(found)
    if corners:
        attrs["coordinate_transformation_mode"] = "align_corners"
    target = call.out.vector([*own[:2], *spatial])
    return call.op("Resize", x, None, None, target, **attrs)


_RESIZES: dict[str, dict[str, Any]] = {
    "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "nearest-exact": {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"},
    **{key: {"mode": "linear", "coordinate_transformation_mode": "half_pixel"} for key in ("linear", "bilinear", "trilinear")},
    "bicubic": {"mode": "cubic", "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75},
}  # fmt: skip
"""torch's modes of resizing, in ONNX."""

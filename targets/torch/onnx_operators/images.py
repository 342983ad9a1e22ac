"""How ONNX's operators on images are written in torch, where the IR has no op for them."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ..speller import Results, Size
from .operator import Operator, writes

_MODES = {
    "bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic",
}  # fmt: skip


@writes("GridSample")
def grid_sample(o: Operator) -> fx.Node:
    """``F.grid_sample``."""
    mode, rank = _MODES[o.text("mode", "bilinear")], len(o.shape())
    if rank not in (4, 5) or (rank == 5 and mode == "bicubic"):
        raise o.refuse_operator(f"torch samples no grid of {rank - 2} axes in mode {mode}")
    padding = o.text("padding_mode", "zeros")
    corners = bool(o.attributes.get("align_corners", 0))
    return o.call(F.grid_sample, o.value(), o.value(1), mode, padding, corners)


@writes("AffineGrid")
def affine_grid(o: Operator) -> fx.Node:
    """``F.affine_grid``."""
    corners = bool(o.attributes.get("align_corners", 0))
    return o.call(F.affine_grid, o.value(), o.numbers(1), corners)


@writes("Resize", "Upsample")
def resize(o: Operator) -> fx.Node:
    """``F.interpolate`` to computed sizes; nearest neighbours of other forms by their indices."""
    old = o.node.op.attributes()["kind"].endswith("Upsample") or o.opset < 11
    mode = o.text("mode", "nearest")
    coordinates = "asymmetric" if old else o.text("coordinate_transformation_mode", "half_pixel")
    if o.attributes.get("axes") or o.attributes.get("exclude_outside", 0):
        raise o.refuse_operator("torch resizes no such axes, nor without the pixels outside")
    if o.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise o.refuse_operator("torch keeps no aspect ratio")
    rank = len(o.shape())
    if 0 in (o.node.output.type.shape or ()):
        raise o.refuse_operator("torch resizes to no empty images")
    sizes = o.numbers(3)[2:] if not old and o.is_given(3) else None
    scales = None if sizes is not None else _scales(o, 1 if old else 2)
    given: dict[str, Any] = (
        {"size": tuple(sizes)} if sizes is not None else {"scale_factor": tuple(scales or ())}
    )
    if mode == "nearest":
        rounding = "floor" if old else o.text("nearest_mode", "round_prefer_floor")
        known = {
            ("asymmetric", "floor"): "nearest",
            ("half_pixel", "round_prefer_ceil"): "nearest-exact",
        }
        name = known.get((coordinates, rounding))
        if name is None:
            raise o.refuse_operator(
                f"torch has no nearest neighbours by {coordinates} and {rounding}"
            )
        return o.call(F.interpolate, o.value(), mode=name, **given)
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}.get(rank)
    cubic = rank == 4 and o.attributes.get("cubic_coeff_a", -0.75) == -0.75
    name = linear if mode == "linear" else "bicubic" if cubic else None
    if name is None or coordinates not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise o.refuse_operator(f"torch has no interpolation {mode} by {coordinates}")
    if coordinates == "pytorch_half_pixel" and 1 in _result_sizes(o, sizes):
        raise o.refuse_operator("torch resizes to one pixel otherwise than pytorch_half_pixel")
    if o.attributes.get("antialias", 0):
        raise o.refuse_operator("torch has no such antialiasing")
    corners = coordinates == "align_corners"
    return o.call(F.interpolate, o.value(), mode=name, align_corners=corners, **given)


def _result_sizes(o: Operator, sizes: list[Size] | None) -> list[Any]:
    """The spatial sizes of the result, as far as known."""
    return [*(sizes or ()), *(o.node.output.type.shape or ())[2:]]


def _scales(o: Operator, index: int) -> list[float]:
    data = o.data(index) if o.is_given(index) else None
    found = o.attributes.get("scales") if data is None else data.float64().reshape(-1).tolist()
    if not found or any(f != 1 for f in found[:2]):
        raise o.refuse_operator("its scales are computed, or resize channels")
    return [float(f) for f in found[2:]]


@writes("MaxPool")
def max_pool(o: Operator) -> Results:
    """``F.max_pool2d`` with indices, which count from the start of the whole tensor in ONNX."""
    kernel = o.ints("kernel_shape") or []
    n = len(kernel)
    pads = o.ints("pads") or [0] * (2 * n)
    if o.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or pads[:n] != pads[n:]:
        raise o.refuse_operator("torch takes no uneven pads beside indices")
    if o.attributes.get("storage_order", 0) or n not in (1, 2, 3):
        raise o.refuse_operator("torch counts rows first, over 1 to 3 axes")
    function = {
        1: F.max_pool1d_with_indices,
        2: F.max_pool2d_with_indices,
        3: F.max_pool3d_with_indices,
    }[n]
    dilations, ceil = o.ints("dilations") or [1] * n, bool(o.attributes.get("ceil_mode", 0))
    strides = o.ints("strides") or [1] * n
    made = o.call(function, o.value(), kernel, strides, pads[:n], dilations, ceil)
    y, places = (o.call(operator.getitem, made, i) for i in range(2))
    return [y, o.call(torch.add, places, _starts(o))]


def _starts(o: Operator) -> fx.Node:
    """Where each channel of each image starts, counted through the whole tensor."""
    batch, channels, *spatial = o.shape()
    size: Size = 1
    for d in spatial:
        size = o.known.mul(size, d)
    count = o.known.mul(batch, channels)
    starts = o.call(torch.mul, o.call(torch.arange, count, **o.device(0)), size)
    return o.call(torch.reshape, starts, (batch, channels, *[1] * len(spatial)))


@writes("MaxUnpool")
def max_unpool(o: Operator) -> fx.Node:
    """A scatter into zeros: indices count through the whole result."""
    if not o.is_given(2):
        kernel, strides = o.ints("kernel_shape") or [], o.ints("strides")
        n = len(kernel)
        strides, pads = strides or [1] * n, o.ints("pads") or [0] * (2 * n)
        batch, channels, *spatial = o.shape()
        wide = [
            o.known.add(o.known.mul(o.known.sub(d, 1), s), k - p - q)
            for d, s, k, p, q in zip(spatial, strides, kernel, pads[:n], pads[n:], strict=True)
        ]
        sizes: list[Size] = [batch, channels, *wide]
    else:
        sizes = o.numbers(2)
    x = o.value()
    total: Size = 1
    for d in sizes:
        total = o.known.mul(total, d)
    flat = o.call("new_zeros", x, (total,))
    places = o.call(torch.reshape, o.value(1), (-1,))
    made = o.call(torch.scatter, flat, 0, places, o.call(torch.reshape, x, (-1,)))
    return o.call(torch.reshape, made, tuple(sizes))


@writes("LpPool")
def lp_pool(o: Operator) -> fx.Node:
    """The root of a sum of powers over windows: an average pool of them times the size of the window."""
    kernel = o.ints("kernel_shape") or []
    n, p = len(kernel), o.attributes.get("p", 2)
    pads, strides = o.ints("pads") or [0] * (2 * n), o.ints("strides") or [1] * n
    dilated = any(d != 1 for d in o.ints("dilations") or ())
    if n not in (1, 2, 3) or dilated or o.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise o.refuse_operator("torch has no such pool: 1 to 3 axes, no dilations, explicit pads")
    if o.attributes.get("ceil_mode", 0):
        raise o.refuse_operator("torch has no such pool with ceil_mode")
    x = o.call(torch.pow, o.call(torch.abs, o.value()), p)
    if any(pads):
        pairs = [q for pair in reversed(list(zip(pads[:n], pads[n:], strict=True))) for q in pair]
        x = o.call(F.pad, x, pairs)
    function = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[n]
    area = 1
    for k in kernel:
        area *= k
    summed = o.call(torch.mul, o.call(function, x, kernel, strides), area)
    return o.call(torch.pow, summed, 1 / p)


@writes("Col2Im")
def col2im(o: Operator) -> fx.Node:
    """``F.fold``."""
    image, block = o.numbers(1), o.constants(2)
    pads = o.ints("pads") or [0, 0, 0, 0]
    if len(block) != 2 or pads[:2] != pads[2:]:
        raise o.refuse_operator("torch folds blocks of 2 axes with even pads")
    dilations, strides = o.ints("dilations") or [1, 1], o.ints("strides") or [1, 1]
    return o.call(
        F.fold,
        o.value(),
        tuple(image),
        tuple(block),
        tuple(dilations),
        tuple(pads[:2]),
        tuple(strides),
    )

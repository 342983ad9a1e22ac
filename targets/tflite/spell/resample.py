"""Ops that change the resolution of images.

TFLite's RESIZE operators compute the sampling positions by their own rule; they are used where it gives the model's positions.
Any other interpolation is written as a sum over its taps, axis by axis: each tap gathers one position for each output and multiplies by weights.
"""

from __future__ import annotations

import numpy as np

from ....ir import DepthToSpace, Node, Resize, SpaceToDepth, Value
from ...resize_taps import Ints, positions, rounded, taps
from ..emitter import Emitter, Unsupported, spells
from ..flat import FlatTensor
from ..layout import channels_last
from .activations import Elementwise
from .convolutions import as_image, from_image


@spells(Resize)
def resize(e: Emitter, node: Node, op: Resize) -> None:
    """RESIZE_BILINEAR, RESIZE_NEAREST_NEIGHBOR, or GATHER and sums."""
    x = node.required(0)
    rank = len(e.shape(x))
    if rank not in (3, 4):
        raise Unsupported(f"{rank - 2}-D: LiteRT supports 1-D and 2-D only")
    before, after = e.shape(x), e.shape(node.output)
    if before[:2] != after[:2] and not {0, 1} <= set(op.kept(node.input_types)):
        raise Unsupported("it resizes more than the spatial axes")
    if e.dtype(x) != "FLOAT32":  # Dequantised values are float32 here.
        raise Unsupported(f"LiteRT computes it in float32 only, not in {e.dtype(x).lower()}")
    if op.antialias:
        raise Unsupported("LiteRT has no antialiasing")
    sizes, out = (e.known_sizes(v, range(2, rank), "spatial size") for v in (x, node.output))
    if 0 in (*sizes, *out):
        raise Unsupported("it has no elements")
    layout = channels_last(rank)
    image = as_image(e, e.get(x, layout))
    lead = 4 - rank
    scales = [
        op.scales[axis] if op.scales else o / s
        for axis, s, o in zip(range(2, rank), sizes, out, strict=True)
    ]
    axes = [
        (1 + lead + i, s, o, scale)
        for i, (s, o, scale) in enumerate(zip(sizes, out, scales, strict=True))
    ]
    made = None
    if op.mode != "cubic":
        made = _by_operator(e, op, image, axes)
    if made is None:
        if image.dtype != "FLOAT32":
            raise Unsupported(
                "no RESIZE operator samples the model's positions, and int8 cannot be interpolated otherwise"
            )
        made = image
        for place, size, count, scale in axes:
            made = _by_taps(e, op, made, place, size, count, scale)
    e.put(node.output, from_image(e, made, rank - 2), layout)


Axes = list[tuple[int, int, int, float]]
"""For each axis that is resized: its stored axis, the size before, the size after, the scale."""


def _by_operator(e: Emitter, op: Resize, image: FlatTensor, axes: Axes) -> FlatTensor | None:
    """Return the result of a RESIZE operator, or ``None`` if none samples the model's positions."""
    for corners, centers in ((False, False), (False, True), (True, False), (True, True)):
        if op.mode == "linear" and corners and centers:
            continue
        if all(_agrees(op, corners, centers, *axis[1:]) for axis in axes):
            break
    else:
        return None
    shape = list(image.shape)
    for place, _, count, _ in axes:
        shape[place] = count
    code, options = {
        "linear": ("RESIZE_BILINEAR", "ResizeBilinearOptions"),
        "nearest": ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"),
    }[op.mode]
    size = e.constant(np.array(shape[1:3]), "INT32")
    made = e.op(code, [image, size], shape, image.dtype,
                (options, {"alignCorners": corners, "halfPixelCenters": centers}))  # fmt: skip
    made.quantization = image.quantization
    return made


def _agrees(op: Resize, corners: bool, centers: bool, size: int, count: int, scale: float) -> bool:
    """Whether a RESIZE operator with these flags samples the model's positions along an axis."""
    step = (size - 1) / (count - 1) if corners and count > 1 else size / count
    places = np.arange(count, dtype=np.float64)
    wanted = positions(op, size, count, scale)
    if op.mode == "nearest":
        offset = 0.5 if centers else 0.0
        # In float32, as the kernel computes it.
        raw = (places.astype(np.float32) + np.float32(offset)) * np.float32(step)
        found = np.floor(raw + np.float32(0.5)) if corners else np.floor(raw)
        chosen = rounded(op, wanted, size)
        return bool(np.array_equal(np.clip(found.astype(np.int64), 0, size - 1), chosen))
    at = (places + 0.5) * step - 0.5 if centers else places * step
    gap = np.clip(at, 0, size - 1) - np.clip(wanted, 0, size - 1)
    return bool(np.abs(gap).max() <= 1e-6)


def _by_taps(
    e: Emitter, op: Resize, image: FlatTensor, place: int, size: int, count: int, scale: float
) -> FlatTensor:
    places, weights = taps(op, size, count, scale)
    shape = tuple(count if i == place else d for i, d in enumerate(image.shape))
    total: FlatTensor | None = None
    m = Elementwise(e)
    for index, weight in zip(places, weights, strict=True):
        made = e.op("GATHER", [image, e.constant(index, "INT32")], shape, image.dtype,
                    ("GatherOptions", {"axis": place, "batchDims": 0}))  # fmt: skip
        if not np.all(weight == 1):
            column = weight.astype(np.float32).reshape(count, *(1,) * (3 - place))
            made = m.binary("MUL", made, e.constant(column))
        total = made if total is None else m.binary("ADD", total, made)
    assert total is not None
    return total


@spells(DepthToSpace)
def depth_to_space(e: Emitter, node: Node, op: DepthToSpace) -> None:
    """DEPTH_TO_SPACE, which takes the block offset as the major part of a channel; torch's order (CRD) reorders the channels first."""
    x = node.required(0)
    layout = channels_last(4)
    image = _image(e, x)
    if op.block == 1:
        e.put(node.output, image, layout)
        return
    if op.mode == "CRD":
        image = _reorder_channels(
            e, x, image, np.arange(image.shape[3]).reshape(-1, op.block**2).T.ravel()
        )
    made = e.op("DEPTH_TO_SPACE", [image], e.stored_shape(node.output, layout), image.dtype,
                ("DepthToSpaceOptions", {"blockSize": op.block}))  # fmt: skip
    e.put(node.output, made, layout)


@spells(SpaceToDepth)
def space_to_depth(e: Emitter, node: Node, op: SpaceToDepth) -> None:
    """SPACE_TO_DEPTH; torch's order (CRD) reorders the channels of the result."""
    x = node.required(0)
    layout = channels_last(4)
    image = _image(e, x)
    if op.block == 1:
        e.put(node.output, image, layout)
        return
    made = e.op("SPACE_TO_DEPTH", [image], e.stored_shape(node.output, layout), image.dtype,
                ("SpaceToDepthOptions", {"blockSize": op.block}))  # fmt: skip
    if op.mode == "CRD":
        order = np.arange(made.shape[3]).reshape(op.block**2, -1).T.ravel()
        made = _gather_channels(e, made, order)
    e.put(node.output, made, layout)


def _image(e: Emitter, x: Value) -> FlatTensor:
    """Return an image channels last; refuse unknown sizes other than the batch."""
    image = e.get(x, channels_last(4))
    e.known_sizes(x, [1, 2, 3], "size")
    return image


def _reorder_channels(e: Emitter, x: Value, image: FlatTensor, order: Ints) -> FlatTensor:
    """Return an image with reordered channels: by reordering the weight of the convolution before it, or by GATHER."""
    conv = image.producer
    if conv is not None and conv.code == "CONV_2D" and x.has_one_use and not e.is_read(image):
        weight, bias = conv.required(1), conv.required(2)
        if weight.data is not None and bias.data is not None:
            conv.inputs = (
                conv.inputs[0],
                e.constant(weight.data[order], weight.dtype, weight.name),
                e.constant(bias.data[order], bias.dtype, bias.name),
            )
            return image
    return _gather_channels(e, image, order)


def _gather_channels(e: Emitter, image: FlatTensor, order: Ints) -> FlatTensor:
    return e.op("GATHER", [image, e.constant(order, "INT32")], image.shape, image.dtype,
                ("GatherOptions", {"axis": 3, "batchDims": 0}))  # fmt: skip

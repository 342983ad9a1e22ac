"""How interpolation and moves between channels and positions are written in ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .... import ir
from ....ir import ArrayTensor
from ..speller import Speller, spells


@spells(ir.Resize, writes="Resize", note="older opsets lack some modes")
def resize(s: Speller, op: ir.Resize) -> None:
    """Resize; before opset 11 the operators that it replaced."""
    if s.opset < 11:
        _resize_older(s, op)
        return
    attrs: dict[str, Any] = {"mode": op.mode, "coordinate_transformation_mode": op.coordinates}
    if op.coordinates == "half_pixel_symmetric" and s.opset < 19:
        raise s.refuse("with half_pixel_symmetric does not exist")
    if op.mode == "nearest":
        attrs["nearest_mode"] = op.rounding
    if op.mode == "cubic":
        attrs["cubic_coeff_a"] = op.cubic
    if op.exclude_outside:
        attrs["exclude_outside"] = 1
    if op.antialias:
        if s.opset < 18:
            raise s.refuse("with antialias does not exist")
        attrs["antialias"] = 1
    # Opset 11 asks for a region even where it means nothing.
    region = "" if s.opset >= 13 else s.new_constant(ArrayTensor(np.zeros(0, np.float32)), "roi")
    if op.scales:
        s.emit("Resize", [s.inputs[0], region, _scales(s, op.scales)], s.outputs[0], **attrs)
        return
    x = s.node.required(0).type
    sizes = [x.dim(a) if size is None else size for a, size in enumerate(op.sizes)]
    axes = [a for a, size in enumerate(sizes) if size is not None]
    if len(axes) < len(sizes):
        if s.opset < 18:
            raise s.refuse("of an axis of unknown size does not exist")
        attrs["axes"] = axes
    empty = "" if s.opset >= 13 else s.new_constant(ArrayTensor(np.zeros(0, np.float32)), "scales")
    known = s.ints([d for d in sizes if d is not None], "sizes")
    s.emit("Resize", [s.inputs[0], region, empty, known], s.outputs[0], **attrs)


def _scales(s: Speller, scales: Sequence[float]) -> str:
    return s.new_constant(ArrayTensor(np.array(scales, np.float32)), "scales")


def _resize_older(s: Speller, op: ir.Resize) -> None:
    """Upsample, or Resize of opset 10: factors alone, and asymmetric coordinates."""
    scales = op.scales or _scales_of_sizes(s, op)
    smaller = any(scale < 1.0 for scale in scales)
    rounding = "ceil" if smaller else "floor"
    mixed = smaller and any(scale > 1.0 for scale in scales)
    nearest = op.mode == "nearest" and op.rounding == rounding and not mixed
    if not scales or op.coordinates != "asymmetric" or not (op.mode == "linear" or nearest):
        raise s.refuse("of this kind does not exist")
    kind = "Resize" if s.opset == 10 else "Upsample"
    if kind == "Upsample" and smaller:
        raise s.refuse("to a smaller size does not exist")
    if s.opset < 9:
        s.emit(kind, s.inputs, s.outputs[0], mode=op.mode, scales=list(scales))
    else:
        s.emit(kind, [s.inputs[0], _scales(s, scales)], s.outputs[0], mode=op.mode)


def _scales_of_sizes(s: Speller, op: ir.Resize) -> tuple[float, ...]:
    """The scales that lead to the sizes of a Resize; empty where a size is not known or a scale leads to another size."""
    x = s.node.required(0).type
    found = []
    for axis, size in enumerate(op.sizes):
        own = x.dim(axis) if size is not None else 1
        goal = 1 if size is None else size
        if not own or int(np.float32(goal / own) * np.float32(own)) != goal:
            return ()
        found.append(goal / own)
    return tuple(found)


@spells(ir.DepthToSpace, writes="DepthToSpace")
def depth_to_space(s: Speller, op: ir.DepthToSpace) -> None:
    """DepthToSpace."""
    attrs = {} if op.mode == "DCR" else {"mode": op.mode}
    if attrs and s.opset < 11:
        raise s.refuse("in mode CRD does not exist")
    s.emit("DepthToSpace", s.inputs, s.outputs[0], blocksize=op.block, **attrs)


@spells(ir.SpaceToDepth, writes="SpaceToDepth Reshape Transpose", note="mode CRD needs known sizes")
def space_to_depth(s: Speller, op: ir.SpaceToDepth) -> None:
    """SpaceToDepth, which has mode DCR alone; CRD as reshapes and a transpose."""
    if op.mode == "DCR":
        s.emit("SpaceToDepth", s.inputs, s.outputs[0], blocksize=op.block)
        return
    shape = s.node.required(0).type.shape
    c, h, w = (d if isinstance(d, int) else None for d in (shape or (None,) * 4)[1:])
    if c is None or h is None or w is None:
        raise s.refuse("in mode CRD of unknown sizes does not exist")
    b = op.block
    parts = s.ints((-1, c, h // b, b, w // b, b), "blocks")
    cut = s.emit("Reshape", [s.inputs[0], parts])
    turned = s.emit("Transpose", [cut], perm=[0, 1, 3, 5, 2, 4])
    shape_out = s.ints((-1, c * b * b, h // b, w // b), "shape")
    s.emit("Reshape", [turned, shape_out], s.outputs[0])

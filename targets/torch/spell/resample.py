"""How interpolation and moves between channels and positions are written in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from .... import ir
from ...resize_taps import taps
from ..speller import Speller, spells

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
"""The linear modes by rank."""


@spells(
    ir.Resize,
    note="in other modes than those of F.interpolate: axes of known size, without antialiasing",
)
def resize(s: Speller, op: ir.Resize) -> fx.Node:
    """``F.interpolate``; else, axis by axis, chosen elements or a product with the weights of all elements."""
    result = op.infer([s.node.required(0).type])[0]
    if 0 in (result.shape or ()):
        raise s.refuse("to no elements")
    mode = _mode(op, s.rank)
    kept = {0, 1} <= set(op.kept([s.node.required(0).type]))
    if mode is None or not kept or op.exclude_outside != op.antialias:
        return _by_taps(s, op)
    rest: dict[str, Any] = {"mode": mode}
    if op.mode != "nearest":
        corners = op.coordinates == "align_corners"
        rest |= {"align_corners": corners, "antialias": op.antialias}
    x = s.value()
    if op.scales:
        return s.call(F.interpolate, x, scale_factor=tuple(op.scales[2:]), **rest)
    sizes = [d if d is not None else s.call("size", x, 2 + i) for i, d in enumerate(op.sizes[2:])]
    return s.call(F.interpolate, x, size=tuple(sizes), **rest)


def _by_taps(s: Speller, op: ir.Resize) -> fx.Node:
    """Each axis that is resized by the positions and weights of its elements."""
    x = s.node.required(0).type
    if (
        x.shape is None
        or op.antialias
        or (op.mode != "nearest" and not (x.dtype and x.dtype.is_float))
    ):
        raise s.refuse(f"in mode {op.mode}, {op.coordinates} of these axes")
    after = op.infer([x])[0].shape or ()
    made, last = s.value(), len(x.shape) - 1
    for axis in sorted(set(range(len(x.shape))) - set(op.kept([x]))):
        size, count = x.shape[axis], after[axis]
        if not isinstance(size, int) or not isinstance(count, int):
            raise s.refuse(f"in mode {op.mode}, {op.coordinates} of unknown size")
        places, weights = taps(op, size, count, op.scales[axis] if op.scales else count / size)
        name = f"{s.node.name}.axis{axis}"
        if op.mode == "nearest":
            chosen = s.out.buffer(name, torch.from_numpy(places[0]))
            made = s.call(torch.index_select, made, axis, chosen)
            continue
        matrix = np.zeros((size, count))
        for row, share in zip(places, weights, strict=True):
            np.add.at(matrix, (row, np.arange(count)), share)
        assert x.dtype is not None
        factor = s.out.buffer(name, torch.from_numpy(matrix).to(s.dtype_of(x.dtype)))
        rows = s.call(torch.matmul, s.call(torch.transpose, made, axis, last), factor)
        made = s.call(torch.transpose, rows, axis, last)
    return made


def _mode(op: ir.Resize, rank: int | None) -> str | None:
    """The mode of ``F.interpolate``; ``None`` if it has none for this."""
    if op.mode == "nearest":
        modes = {("asymmetric", "floor"): "nearest", ("half_pixel", "round_prefer_ceil"): "nearest-exact"}  # fmt: skip
        return modes.get((op.coordinates, op.rounding)) if rank is not None else None
    if op.coordinates not in ("half_pixel", *([] if op.antialias else ["align_corners"])):
        return None
    if op.mode == "cubic":
        return "bicubic" if rank == 4 and op.cubic == (-0.5 if op.antialias else -0.75) else None
    if op.antialias and rank != 4:
        return None
    return _LINEAR.get(rank or 0)


@spells(ir.DepthToSpace)
def depth_to_space(s: Speller, op: ir.DepthToSpace) -> fx.Node:
    """``torch.pixel_shuffle``, which takes blocks last; for mode DCR the channels are reordered in front."""
    x = s.value()
    if op.mode == "DCR" and op.block != 1:
        x = _turned(s, x, (op.block**2, -1))
    return s.call(torch.pixel_shuffle, x, op.block)


@spells(ir.SpaceToDepth)
def space_to_depth(s: Speller, op: ir.SpaceToDepth) -> fx.Node:
    """``torch.pixel_unshuffle``, which gives blocks last; for mode DCR the channels are reordered behind it."""
    made = s.call(torch.pixel_unshuffle, s.value(), op.block)
    return _turned(s, made, (-1, op.block**2)) if op.mode == "DCR" and op.block != 1 else made


def _turned(s: Speller, x: fx.Node, parts: tuple[int, int]) -> fx.Node:
    """Channels of two parts, with the parts in the other order."""
    split = s.call("unflatten", x, 1, parts)
    return s.call(torch.flatten, s.call(torch.transpose, split, 1, 2), 1, 2)

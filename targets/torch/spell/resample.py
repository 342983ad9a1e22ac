"""How interpolation and moves between channels and positions are written in torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .... import ir
from ..speller import Speller, spells

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
"""The linear modes by rank."""


@spells(ir.Resize, note="the modes of F.interpolate, over the spatial axes")
def resize(s: Speller, op: ir.Resize) -> fx.Node:
    """``F.interpolate``."""
    mode = _mode(op, s.rank)
    kept = {0, 1} <= set(op.kept([s.node.required(0).type]))
    if mode is None or not kept or op.exclude_outside != op.antialias:
        raise s.refuse(f"in mode {op.mode}, {op.coordinates} of these axes")
    rest: dict[str, Any] = {"mode": mode}
    if op.mode != "nearest":
        corners = op.coordinates == "align_corners"
        rest |= {"align_corners": corners, "antialias": op.antialias}
    x = s.value()
    if op.scales:
        return s.call(F.interpolate, x, scale_factor=tuple(op.scales[2:]), **rest)
    sizes = [d if d is not None else s.call("size", x, 2 + i) for i, d in enumerate(op.sizes[2:])]
    return s.call(F.interpolate, x, size=tuple(sizes), **rest)


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

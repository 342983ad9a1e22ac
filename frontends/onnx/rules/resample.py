"""ONNX operators that change the resolution of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .... import ir
from ...lowering import Lowered
from ...lowering.resample import resizing
from ..node import OnnxNode, shortest
from ..registry import reads


@reads("Resize", "Upsample", makes=ir.Resize, note="constant scales or known sizes")
def _resize(node: OnnxNode) -> Lowered | None:
    mode = {"bilinear": "linear"}.get(node.text("mode", "nearest"), node.text("mode", "nearest"))
    rank = node.type().rank
    scales, sizes = _numbers(node, 1 if node.opset < 11 else 2), node.sizes(3)
    if rank is None or mode not in ir.RESIZE_MODES or bool(scales) == bool(sizes):
        return None
    if node.opset < 11:
        return _older(node, mode, scales)
    coordinates = node.text("coordinate_transformation_mode", "half_pixel")
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    node.number(
        "extrapolation_value", 0.0
    )  # Unused: it belongs to a coordinate mode that stays opaque.
    axes = node.ints("axes")
    if coordinates not in ir.COORDINATES or (sizes and policy != "stretch"):
        return None
    if axes is not None:
        places = {a: i for i, a in enumerate(node.axes(axes, rank))}
        scales = [scales[places[a]] if a in places else 1.0 for a in range(rank)] if scales else []
        whole = [sizes[places[a]] if a in places else None for a in range(rank)] if sizes else []
    else:
        whole = list(sizes or ())
    # A size that is computed from the same axis leaves the axis unchanged.
    goal = [None if node.is_own(a, d) else d for a, d in enumerate(whole)]
    if any(isinstance(d, tuple) for d in goal) or None in (sizes or ()):
        return None
    more: dict[str, Any] = {"antialias": node.flag("antialias")}
    rounding, cubic = (
        node.text("nearest_mode", ir.ROUNDINGS[0]),
        node.number("cubic_coeff_a", -0.75),
    )
    outside = node.flag("exclude_outside")
    if mode == "nearest":
        more |= {"rounding": rounding, "antialias": False}
    else:
        more |= {"exclude_outside": outside}
    if mode == "cubic":
        more |= {"cubic": cubic}
    known = [d if isinstance(d, int) else None for d in goal]
    return resizing(node.type(), mode, coordinates, scales, known, **more), node.inputs[:1]


def _older(node: OnnxNode, mode: str, scales: Sequence[float]) -> Lowered | None:
    """Read a resize below opset 11, where mode nearest rounds down when it enlarges, and up otherwise."""
    if len(scales) != node.type().rank or mode == "cubic":
        return None
    smaller = [scale < 1.0 for scale in scales if scale != 1.0]
    if mode == "nearest" and any(smaller) and not all(smaller):
        return None
    rounding = {"rounding": "ceil" if any(smaller) else "floor"} if mode == "nearest" else {}
    return resizing(node.type(), mode, "asymmetric", scales, (), **rounding), node.inputs[:1]


def _numbers(node: OnnxNode, index: int) -> list[float]:
    """Scales from an attribute or an input; empty if there are none, or if they are unknown."""
    found = node.attribute("scales")
    if found is None:
        data = node.data(index)
        if data is None or data.size > 64 or data.dtype is not ir.DType.F32:
            return []
        found = data.numpy().reshape(-1)
    return [shortest(v) for v in found]


@reads("DepthToSpace", makes=ir.DepthToSpace)
def _depth_to_space(node: OnnxNode) -> Lowered | None:
    return ir.DepthToSpace(node.attribute("blocksize"), node.text("mode", "DCR")), node.inputs


@reads("SpaceToDepth", makes=ir.SpaceToDepth)
def _space_to_depth(node: OnnxNode) -> Lowered | None:
    return ir.SpaceToDepth(node.attribute("blocksize"), node.text("mode", "DCR")), node.inputs

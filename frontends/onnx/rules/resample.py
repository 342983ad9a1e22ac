"""ONNX operators that change the resolution of images, in the IR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .... import ir
from ...lowering import Lowered, resizing
from ..node import Rule, Site, shortest


def _resize(s: Site) -> Lowered | None:
    mode = {"bilinear": "linear"}.get(s.text("mode", "nearest"), s.text("mode", "nearest"))
    rank = s.type().rank
    scales, sizes = _numbers(s, 1 if s.opset < 11 else 2), s.sizes(3)
    if rank is None or mode not in ir.RESIZE_MODES or bool(scales) == bool(sizes):
        return None
    if s.opset < 11:
        return _older(s, mode, scales)
    coordinates = s.text("coordinate_transformation_mode", "half_pixel")
    policy = s.text("keep_aspect_ratio_policy", "stretch")
    s.number("extrapolation_value", 0.0)  # Of a mode of coordinates that stays opaque.
    axes = s.ints("axes")
    if coordinates not in ir.COORDINATES or (sizes and policy != "stretch"):
        return None
    if axes is not None:
        places = {a: i for i, a in enumerate(s.axes(axes, rank))}
        scales = [scales[places[a]] if a in places else 1.0 for a in range(rank)] if scales else []
        whole = [sizes[places[a]] if a in places else None for a in range(rank)] if sizes else []
    else:
        whole = list(sizes or ())
    # What is the size of the same axis already stays.
    goal = [None if s.is_own(a, d) else d for a, d in enumerate(whole)]
    if any(isinstance(d, tuple) for d in goal) or None in (sizes or ()):
        return None
    more: dict[str, Any] = {"antialias": s.flag("antialias")}
    rounding, cubic = s.text("nearest_mode", ir.ROUNDINGS[0]), s.number("cubic_coeff_a", -0.75)
    outside = s.flag("exclude_outside")
    if mode == "nearest":
        more |= {"rounding": rounding, "antialias": False}
    else:
        more |= {"exclude_outside": outside}
    if mode == "cubic":
        more |= {"cubic": cubic}
    known = [d if isinstance(d, int) else None for d in goal]
    return resizing(s.type(), mode, coordinates, scales, known, **more), s.inputs[:1]


def _older(s: Site, mode: str, scales: Sequence[float]) -> Lowered | None:
    """Before opset 11 mode nearest took the lower neighbour when it made larger, the upper one otherwise."""
    if len(scales) != s.type().rank or mode == "cubic":
        return None
    smaller = [scale < 1.0 for scale in scales if scale != 1.0]
    if mode == "nearest" and any(smaller) and not all(smaller):
        return None
    rounding = {"rounding": "ceil" if any(smaller) else "floor"} if mode == "nearest" else {}
    return resizing(s.type(), mode, "asymmetric", scales, (), **rounding), s.inputs[:1]


def _numbers(s: Site, index: int) -> list[float]:
    """Scales from an attribute or an input; empty when there are none, or they are not known."""
    found = s.attribute("scales")
    if found is None:
        data = s.data(index)
        if data is None or data.size > 64 or data.dtype is not ir.DType.F32:
            return []
        found = data.numpy().reshape(-1)
    return [shortest(v) for v in found]


def _depth_to_space(s: Site) -> Lowered | None:
    return ir.DepthToSpace(s.attribute("blocksize"), s.text("mode", "DCR")), s.inputs


def _space_to_depth(s: Site) -> Lowered | None:
    return ir.SpaceToDepth(s.attribute("blocksize"), s.text("mode", "DCR")), s.inputs


RESIZE_RULES: dict[str, Rule] = {
    "DepthToSpace": _depth_to_space,
    "Resize": _resize,
    "SpaceToDepth": _space_to_depth,
    "Upsample": _resize,
}

"""torch's interpolation and shuffles of pixels."""

from __future__ import annotations

from typing import Any

from torch import nn

from .... import ir
from ....ir import Value
from ...lowering import Lowered
from ...lowering.resample import resizing
from ..call import Call, ints
from ..registry import Memory, reads, reads_module


@reads("interpolate", makes=ir.Resize, note="floats, sizes or factors that are known")
def _interpolate(call: Call) -> Lowered | None:
    """``(x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)``."""
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    size, factor, mode, corners, again, antialias = (
        call.get(i + 1, n, "nearest" if n == "mode" else None) for i, n in enumerate(names)
    )
    if again and factor is not None:
        return None
    size = call.shaping(size)
    return _resized(call.value(0), size, factor, str(mode), bool(corners), bool(antialias))


_OF_UPSAMPLE = "size scale_factor mode align_corners"
reads_module(nn.Upsample, call="interpolate", fields=f"{_OF_UPSAMPLE} recompute_scale_factor")
reads_module(nn.UpsamplingNearest2d, call="interpolate", fields=_OF_UPSAMPLE)
reads_module(nn.UpsamplingBilinear2d, call="interpolate", fields=_OF_UPSAMPLE)

_MODES = {"nearest": "nearest", "nearest-exact": "nearest", "linear": "linear", "bilinear": "linear",
          "trilinear": "linear", "bicubic": "cubic"}  # fmt: skip


def _resized(
    x: Value, size: Any, factor: Any, mode: str, corners: bool = False, antialias: bool = False
) -> Lowered | None:
    """What ``interpolate`` computes, in torch's own terms."""
    rank, dtype = x.type.rank, x.type.dtype
    if rank is None or rank < 3 or mode not in _MODES or dtype is None or not dtype.is_wide_float:
        return None
    n = rank - 2
    scales: tuple[float, ...] = ()
    sizes: tuple[int | None, ...] = ()
    if factor is not None:
        found = factor if isinstance(factor, (list, tuple)) else (factor,) * n
        if len(found) != n or not all(type(f) in (int, float) for f in found):
            return None
        scales = (1.0, 1.0, *map(float, found))
    else:
        sizes = (None, None, *ints(size, n))
    kind = _MODES[mode]
    coordinates = "align_corners" if corners else "half_pixel"
    more: dict[str, Any] = {}
    if kind == "nearest":
        coordinates = "half_pixel" if mode == "nearest-exact" else "asymmetric"
        more["rounding"] = "round_prefer_ceil" if mode == "nearest-exact" else "floor"
    elif antialias:
        if corners:
            return None
        # torch spreads the weights of positions outside over the others, and has another cubic then.
        more |= {"antialias": True, "exclude_outside": True}
        more |= {"cubic": -0.5} if kind == "cubic" else {}
    if corners and scales:
        # Corners are aligned by the sizes, whatever the factor was.
        out = ir.Resize(kind, coordinates, scales).infer([x.type])[0]
        wanted = [out.dim(a) for a in range(2, rank)]
        if None in wanted:
            return None
        scales, sizes = (), (None, None, *wanted)
    return resizing(x.type, kind, coordinates, scales, sizes, **more), [x]


def _upsample(name: str, mode: str) -> None:
    """Register ATen's ``(x, output_size, align_corners?, scale_factors)``, or with one scale an axis at the end."""

    @reads(name, makes=ir.Resize, note="floats, sizes or factors that are known")
    def rule(call: Call) -> Lowered | None:
        x, size, *rest = call.args
        size = call.shaping(size)
        corners = bool(rest.pop(0)) if rest and not mode.startswith("nearest") else False
        factors = [f for f in rest if f is not None]
        if not isinstance(x, Value) or (factors and not isinstance(factors[0], (list, tuple))):
            return None
        return _resized(x, size, factors[0] if factors else None, mode, corners)


for _name, _mode in (
    ("upsample_nearest1d", "nearest"),
    ("upsample_nearest2d", "nearest"),
    ("upsample_nearest3d", "nearest"),
    ("upsample_linear1d", "linear"),
    ("upsample_bilinear2d", "bilinear"),
    ("upsample_trilinear3d", "trilinear"),
    ("upsample_bicubic2d", "bicubic"),
    ("_upsample_nearest_exact2d", "nearest-exact"),
):
    _upsample(_name, _mode)


@reads("pixel_shuffle", makes=ir.DepthToSpace, note="of images", memory=Memory.SHARED)
def _pixel_shuffle(call: Call) -> Lowered | None:
    """``(x, factor)``."""
    x, block = call.value(0), call.get(1, "upscale_factor")
    return (ir.DepthToSpace(block, "CRD"), [x]) if x.type.rank == 4 else None


@reads("pixel_unshuffle", makes=ir.SpaceToDepth, note="of images", memory=Memory.SHARED)
def _pixel_unshuffle(call: Call) -> Lowered | None:
    """``(x, factor)``."""
    x, block = call.value(0), call.get(1, "downscale_factor")
    return (ir.SpaceToDepth(block, "CRD"), [x]) if x.type.rank == 4 else None


reads_module(nn.PixelShuffle, call="pixel_shuffle", fields="upscale_factor")
reads_module(nn.PixelUnshuffle, call="pixel_unshuffle", fields="downscale_factor")

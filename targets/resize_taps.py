"""The positions and weights with which a resize samples each axis, by ONNX's rules, for targets that write an interpolation as sums."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..ir import Resize

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def positions(op: Resize, size: int, count: int, scale: float) -> Floats:
    """Return the position in the input of each output along an axis, by ONNX's rules."""
    places = np.arange(count, dtype=np.float64)
    match op.coordinates:
        case "half_pixel":
            return (places + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (places + 0.5) / scale - 0.5 if count > 1 else np.zeros(count)
        case "half_pixel_symmetric":
            # The centre of the image is kept if the scaled size was rounded.
            offset = size / 2 * (1 - count / (scale * size))
            return offset + (places + 0.5) / scale - 0.5
        case "align_corners":
            return places * ((size - 1) / (count - 1)) if count > 1 else np.zeros(count)
    return places / scale


def rounded(op: Resize, at: Floats, size: int) -> Ints:
    """Return the pixels nearest to positions, rounded as the op says."""
    match op.rounding:
        case "round_prefer_floor":
            found = np.ceil(at - 0.5)
        case "round_prefer_ceil":
            found = np.floor(at + 0.5)
        case "floor":
            found = np.floor(at)
        case _:
            found = np.ceil(at)
    return np.clip(found, 0, size - 1).astype(np.int64)


def taps(op: Resize, size: int, count: int, scale: float) -> tuple[Ints, Floats]:
    """Return the positions and the weights of the taps, each (taps, count)."""
    at = positions(op, size, count, scale)
    if op.mode == "nearest":
        return rounded(op, at, size)[None], np.ones((1, count))
    low = np.floor(at)
    part = at - low
    if op.mode == "linear":
        offsets, weights = np.arange(2), np.stack([1 - part, part])
    else:
        offsets = np.arange(-1, 3)
        weights = np.stack([_cubic(np.abs(part - o), op.cubic) for o in offsets])
    places = low[None] + offsets[:, None]
    if op.exclude_outside:
        weights = np.where((places < 0) | (places > size - 1), 0.0, weights)
        weights = weights / weights.sum(0)
    return np.clip(places, 0, size - 1).astype(np.int64), weights


def _cubic(distance: Floats, a: float) -> Floats:
    """Return the weight of the cubic convolution kernel of Keys (1981) at a distance."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    found: Floats = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    return found


__all__ = ["Floats", "Ints", "positions", "rounded", "taps"]

"""Ops that change the resolution of images: interpolation, and moves between channels and positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..types import Dim, TensorType
from .base import InferenceError, InputTypes, Op, Tie, required, ties

RESIZE_MODES = ("nearest", "linear", "cubic")
"""How ``Resize`` interpolates between positions."""

COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")  # fmt: skip
"""How ``Resize`` maps a position in the output to one in the input (ONNX's names)."""

ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
"""How mode nearest rounds a position."""


@dataclass(frozen=True)
class Resize(Op):
    """Interpolate to another size; one entry an axis in ``scales``, or, when that is empty, in ``sizes``.

    With ``scales`` the result has ``floor(size * scale)`` positions, and coordinates are computed from the given scale,
    not from the quotient of the sizes.

    Attributes:
        mode: One of :data:`RESIZE_MODES`.
        coordinates: One of :data:`COORDINATES`.
        scales: The factor of each axis, or empty.
        sizes: The size of each axis, ``None`` where it stays as it is, or empty.
        rounding: Of mode nearest, one of :data:`ROUNDINGS`.
        cubic: The coefficient a of mode cubic.
        exclude_outside: Whether weights of positions outside count as zero (mode cubic, and linear with antialias).
        antialias: Whether downsampling stretches the filter (modes linear and cubic).
    """

    mode: str
    coordinates: str
    scales: tuple[float, ...] = ()
    sizes: tuple[int | None, ...] = ()
    rounding: str = "round_prefer_floor"
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False

    def __post_init__(self) -> None:
        for value, known in (
            (self.mode, RESIZE_MODES),
            (self.coordinates, COORDINATES),
            (self.rounding, ROUNDINGS),
        ):
            if value not in known:
                raise ValueError(f"Resize: {value!r} is not one of {', '.join(known)}")
        if bool(self.scales) == bool(self.sizes) or min(self.scales, default=1.0) <= 0:
            raise ValueError("Resize takes scales above zero, or sizes")

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        given = self.scales or self.sizes
        if x.shape is None:
            return (x.with_shape((None,) * len(given)),)
        if len(given) != len(x.shape):
            raise InferenceError(f"Resize of {len(given)} axes on {x}")
        return (x.with_shape(tuple(self._size(a, d) for a, d in enumerate(x.shape))),)

    def _size(self, axis: int, size: Dim) -> Dim:
        if not self.scales:
            wanted = self.sizes[axis]
            return size if wanted is None else wanted
        scale = self.scales[axis]
        if scale == 1.0:
            return size
        return math.floor(size * scale) if isinstance(size, int) else None

    def kept(self, inputs: InputTypes) -> list[int]:
        """The axes that are not resized."""
        if self.scales:
            return [a for a, scale in enumerate(self.scales) if scale == 1.0]
        x = required(inputs, 0)
        return [a for a, size in enumerate(self.sizes) if size is None or size == x.dim(a)]

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return ties(*([(0, a), (-1, a)] for a in self.kept(inputs)))


@dataclass(frozen=True)
class DepthToSpace(Op):
    """Blocks of channels become positions: ``(N, C, H, W)`` to ``(N, C / b^2, H * b, W * b)``.

    Attributes:
        block: The side b of a block.
        mode: ``DCR``: channels are (b, b, C / b^2); ``CRD``: they are (C / b^2, b, b), as in torch's
            ``pixel_shuffle``.
    """

    block: int
    mode: str = "DCR"

    def __post_init__(self) -> None:
        _check_block(self)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        n, c, h, w = _image(self, x)
        area = self.block**2
        if isinstance(c, int) and c % area:
            raise InferenceError(f"DepthToSpace by {self.block} of {x}")
        out = c // area if isinstance(c, int) else None
        return (x.with_shape((n, out, _times(h, self.block), _times(w, self.block))),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return ties([(0, 0), (-1, 0)])


@dataclass(frozen=True)
class SpaceToDepth(Op):
    """Positions of a block become channels: the inverse of :class:`DepthToSpace` of the same mode."""

    block: int
    mode: str = "DCR"

    def __post_init__(self) -> None:
        _check_block(self)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        n, c, h, w = _image(self, x)
        for size in (h, w):
            if isinstance(size, int) and size % self.block:
                raise InferenceError(f"SpaceToDepth by {self.block} of {x}")
        h, w = (d // self.block if isinstance(d, int) else None for d in (h, w))
        return (x.with_shape((n, _times(c, self.block**2), h, w)),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return ties([(0, 0), (-1, 0)])


def _check_block(op: DepthToSpace | SpaceToDepth) -> None:
    if op.block < 1 or op.mode not in ("DCR", "CRD"):
        raise ValueError(f"{op.name} with blocks of {op.block} in mode {op.mode!r}")


def _image(op: Op, x: TensorType) -> tuple[Dim, Dim, Dim, Dim]:
    if x.shape is None:
        return None, None, None, None
    if len(x.shape) != 4:
        raise InferenceError(f"{op.name} on {x}")
    return x.shape[0], x.shape[1], x.shape[2], x.shape[3]


def _times(size: Dim, factor: int) -> Dim:
    return size * factor if isinstance(size, int) else None


__all__ = [
    "COORDINATES",
    "RESIZE_MODES",
    "ROUNDINGS",
    "DepthToSpace",
    "Resize",
    "SpaceToDepth",
]

"""Affine ops: convolutions, dense layers, per-channel scales, average pools, pads.

Layouts are ONNX's: activations ``(N, C, *spatial)``, convolution weights ``(O, I/groups, *kernel)``,
transposed-convolution weights ``(I, O/groups, *kernel)``. A dense weight is ``(out, in)``, as in torch.
``pads`` are all begins, then all ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..types import Dim, TensorType
from .base import (
    InferenceError,
    InputTypes,
    Op,
    Tie,
    axis_of,
    optional,
    required,
    same_dtype,
    ties,
)


def window_size(
    size: Dim, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool, pad_end: int = 0
) -> Dim:
    """Output size of a sliding window; ``pad`` is the sum of both ends. The result of an unknown size is unknown."""
    if not isinstance(size, int):
        # A window that keeps every size keeps a symbolic one too.
        return size if stride == 1 and pad == dilation * (kernel - 1) else None
    span = size + pad - dilation * (kernel - 1) - 1
    if span < 0:
        raise InferenceError(f"a window of {dilation * (kernel - 1) + 1} on {size}+{pad}")
    if not ceil_mode:
        return span // stride + 1
    steps = -(-span // stride) + 1
    # A window may not start in the end padding (ONNX and torch agree).
    if (steps - 1) * stride >= size + pad - pad_end:
        steps -= 1
    return steps


@dataclass(frozen=True)
class _Windowed(Op):
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def spatial_rank(self) -> int:
        """The number of spatial axes."""
        return len(self.strides)

    def _check_window(self, kernel: Sequence[int]) -> None:
        n = len(kernel)
        if len(self.strides) != n or len(self.dilations) != n or len(self.pads) != 2 * n:
            raise InferenceError(
                f"{self.name} has a kernel of rank {n} with strides {self.strides}, "
                f"dilations {self.dilations}, pads {self.pads}"
            )
        if min((*kernel, *self.strides, *self.dilations), default=1) < 1:
            raise InferenceError(
                f"{self.name} with kernel {tuple(kernel)}, strides {self.strides}, "
                f"dilations {self.dilations}: sizes start at 1"
            )

    def _window(self, x: TensorType, kernel: Sequence[int], ceil_mode: bool = False) -> list[Dim]:
        self._check_window(kernel)
        n = len(kernel)
        if x.shape is None:
            return [None] * n
        if len(x.shape) != n + 2:
            raise InferenceError(f"{self.name} of {n} spatial axes on {x}")
        return [
            window_size(
                x.shape[2 + i],
                kernel[i],
                self.strides[i],
                self.pads[i] + self.pads[n + i],
                self.dilations[i],
                ceil_mode,
                self.pads[n + i],
            )
            for i in range(n)
        ]


@dataclass(frozen=True)
class Conv(_Windowed):
    """Convolution of rank 1 to 3: ``(x, w, b?)``, zero padding."""

    groups: int = 1
    arity = (2, 3)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x, w, b = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
        dtype = same_dtype(self, x, w, b)
        _check_groups(self.name, self.groups)
        if w.shape is None:
            rank = self.spatial_rank
            batch: Dim = x.shape[0] if x.shape else None
            return (TensorType(dtype, (batch, *[None] * (rank + 1))),)
        _check_weight(self.name, w, self.spatial_rank)
        kernel = w.static_shape
        channels = x.dim(1)
        fan_in, fan_out = w.dim(1), w.dim(0)
        if channels is not None and fan_in is not None and channels != fan_in * self.groups:
            raise InferenceError(
                f"Conv with groups {self.groups} and weight {w} takes {fan_in * self.groups} "
                f"channels, its input has {channels}"
            )
        if fan_out is not None and fan_out % self.groups:
            raise InferenceError(f"Conv weight {w} does not divide into {self.groups} groups")
        _check_bias(self.name, b, fan_out, w)
        spatial = self._window(x, kernel[2:]) if kernel is not None else [None] * self.spatial_rank
        return (TensorType(dtype, (x.shape[0] if x.shape else None, w.shape[0], *spatial)),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return _conv_ties(inputs, self.groups, out_axis=0, in_axis=1)

    def macs(self, inputs: InputTypes, outputs: Sequence[TensorType]) -> int | None:
        size, w = outputs[0].size, required(inputs, 1).static_shape
        return None if size is None or w is None else size * math.prod(w[1:])


def _check_groups(name: str, groups: int) -> None:
    if groups < 1:
        raise InferenceError(f"{name} with {groups} groups")


def _check_weight(name: str, w: TensorType, spatial_rank: int) -> None:
    if w.shape is not None and len(w.shape) != spatial_rank + 2:
        raise InferenceError(f"{name} of {spatial_rank} spatial axes with a weight {w}")


def _check_bias(name: str, bias: TensorType | None, fan_out: int | None, w: TensorType) -> None:
    if bias is None or bias.shape is None:
        return
    size = bias.dim(0)
    if len(bias.shape) != 1 or (None not in (size, fan_out) and size != fan_out):
        raise InferenceError(f"{name} bias {bias} beside weight {w}")


def _conv_ties(
    inputs: InputTypes, groups: int, out_axis: int, in_axis: int
) -> tuple[Tie, ...] | None:
    w = required(inputs, 1)
    bias = [(2, 0)] if optional(inputs, 2) is not None else []
    if groups == 1:
        return ties([(0, 1), (1, in_axis)], [(1, out_axis), *bias, (-1, 1)])
    if w.dim(0) == groups and w.dim(1) == 1:
        # One filter per channel: input and output channel are the same.
        return ties([(0, 1), (1, 0), *bias, (-1, 1)])
    return None


@dataclass(frozen=True)
class ConvTranspose(_Windowed):
    """Transposed convolution of rank 1 to 3: ``(x, w, b?)``."""

    groups: int = 1
    output_padding: tuple[int, ...] = ()
    arity = (2, 3)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x, w, b = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
        dtype = same_dtype(self, x, w, b)
        channels, fan_in, fan_out = x.dim(1), w.dim(0), w.dim(1)
        if channels is not None and fan_in is not None and channels != fan_in:
            raise InferenceError(
                f"ConvTranspose weight {w} takes {fan_in} channels, not {channels}"
            )
        _check_groups(self.name, self.groups)
        if fan_in is not None and fan_in % self.groups:
            raise InferenceError(
                f"ConvTranspose weight {w} does not divide into {self.groups} groups"
            )
        kernel, n = w.static_shape, self.spatial_rank
        _check_weight(self.name, w, n)
        batch: Dim = x.shape[0] if x.shape else None
        out = None if fan_out is None else fan_out * self.groups
        _check_bias(self.name, b, out, w)
        if kernel is None or x.shape is None:
            return (TensorType(dtype, (batch, out, *[None] * n)),)
        self._check_window(kernel[2:])
        if len(x.shape) != n + 2:
            raise InferenceError(f"ConvTranspose of {n} spatial axes on {x}")
        extra = self.output_padding or (0,) * n
        spatial: list[Dim] = []
        for i in range(n):
            size = x.shape[2 + i]
            spatial.append(
                (size - 1) * self.strides[i]
                + self.dilations[i] * (kernel[2 + i] - 1)
                + 1
                + extra[i]
                - self.pads[i]
                - self.pads[n + i]
                if isinstance(size, int)
                else None
            )
        if any(isinstance(d, int) and d < 0 for d in spatial):
            raise InferenceError(f"ConvTranspose of {x} crops more than it makes: {spatial}")
        return (TensorType(dtype, (batch, out, *spatial)),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return _conv_ties(inputs, self.groups, out_axis=1, in_axis=0)

    def macs(self, inputs: InputTypes, outputs: Sequence[TensorType]) -> int | None:
        size, w = required(inputs, 0).size, required(inputs, 1).static_shape
        return None if size is None or w is None else size * math.prod(w[1:])


@dataclass(frozen=True)
class Linear(Op):
    """Dense layer over the last axis: ``x @ w.T + b`` with ``w`` of shape ``(out, in)``."""

    arity = (2, 3)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x, w, b = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
        dtype = same_dtype(self, x, w, b)
        if w.rank not in (None, 2):
            raise InferenceError(f"Linear weight {w} is not (out, in)")
        last, fan_in = x.dim(-1), w.dim(1)
        if last is not None and fan_in is not None and last != fan_in:
            raise InferenceError(f"Linear weight {w} takes {fan_in} features, its input has {last}")
        _check_bias(self.name, b, w.dim(0), w)
        if x.rank == 0:
            raise InferenceError(f"Linear on {x}")
        if x.shape is None:
            return (TensorType(dtype),)
        return (TensorType(dtype, (*x.shape[:-1], w.dim(0))),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        bias = [(2, 0)] if optional(inputs, 2) is not None else []
        leading = [[(0, axis), (-1, axis)] for axis in range(rank - 1)]
        return ties(*leading, [(0, rank - 1), (1, 1)], [(1, 0), *bias, (-1, rank - 1)])

    def macs(self, inputs: InputTypes, outputs: Sequence[TensorType]) -> int | None:
        size, fan_in = outputs[0].size, required(inputs, 1).dim(1)
        return None if size is None or fan_in is None else size * fan_in


@dataclass(frozen=True)
class Embedding(Op):
    """Rows of a table ``(rows, features)`` by integers: ``(ids, table)`` gives ``(*ids.shape, features)``."""

    arity = (2, 2)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        ids, table = required(inputs, 0), required(inputs, 1)
        if table.rank not in (None, 2):
            raise InferenceError(f"Embedding table {table} is not (rows, features)")
        if ids.dtype is not None and not ids.dtype.is_int:
            raise InferenceError(f"Embedding of {ids}, which are not integers")
        if ids.shape is None:
            return (TensorType(table.dtype),)
        features: Dim = table.shape[1] if table.shape is not None else None
        return (TensorType(table.dtype, (*ids.shape, features)),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        # The ids name rows, which keep their order; features are copied.
        return ties(*([(0, a), (-1, a)] for a in range(rank)), [(1, 1), (-1, rank)])


@dataclass(frozen=True)
class Scale(Op):
    """``x * scale + shift`` along one axis: an evaluated batch norm, or a constant Mul and Add.

    Inputs are ``(x, scale?, shift?)``; both vectors have the size of the axis, or size 1.
    """

    axis: int = 1
    arity = (2, 3)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if x.shape is not None:
            size = x.dim(axis_of(self.axis, len(x.shape)))
            for vector in (optional(inputs, 1), optional(inputs, 2)):
                if vector is None or vector.shape is None:
                    continue
                if len(vector.shape) != 1:
                    raise InferenceError(f"Scale takes vectors, not {vector}")
                n = vector.dim(0)
                if n is not None and n != 1 and size is not None and n != size:
                    raise InferenceError(f"Scale of {n} channels on {x} along axis {self.axis}")
        return (x,)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        own = axis_of(self.axis, rank)
        vectors: list[tuple[int, int]] = []
        for index in (1, 2):
            vector = optional(inputs, index)
            if vector is None or vector.dim(0) == 1:
                continue
            if vector.dim(0) is None:
                return None
            vectors.append((index, 0))
        return ties(*([(0, a), *(vectors if a == own else []), (-1, a)] for a in range(rank)))


@dataclass(frozen=True)
class AveragePool(_Windowed):
    """Average over a sliding window."""

    kernel: tuple[int, ...] = ()
    ceil_mode: bool = False
    count_include_pad: bool = False

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        spatial = self._window(x, self.kernel, self.ceil_mode)
        head = x.shape[:2] if x.shape else (None, None)
        return (TensorType(x.dtype, (*head, *spatial)),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return ties([(0, 0), (-1, 0)], [(0, 1), (-1, 1)])


@dataclass(frozen=True)
class MaxPool(_Windowed):
    """Maximum over a sliding window (not affine; it is here because it shares the window)."""

    kernel: tuple[int, ...] = ()
    ceil_mode: bool = False

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        spatial = self._window(x, self.kernel, self.ceil_mode)
        head = x.shape[:2] if x.shape else (None, None)
        return (TensorType(x.dtype, (*head, *spatial)),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return ties([(0, 0), (-1, 0)], [(0, 1), (-1, 1)])


@dataclass(frozen=True)
class GlobalAveragePool(Op):
    """Mean over all spatial axes, kept as axes of size 1.

    Attributes:
        spatial: The number of spatial axes; given only if the rank of the input is not known.
    """

    RANKS: ClassVar[tuple[int, ...]] = (3, 4, 5)
    """Ranks of which all hosts have a global pool; a mean over more axes is a ``Reduce``."""

    spatial: int | None = None

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if x.shape is None:
            return (x,)
        if len(x.shape) < 3:
            raise InferenceError(f"GlobalAveragePool on {x}")
        return (x.with_shape((*x.shape[:2], *[1] * (len(x.shape) - 2))),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        # A mean does not depend on the order of its elements.
        spatial = [[(0, axis)] for axis in range(2, rank)]
        return ties([(0, 0), (-1, 0)], [(0, 1), (-1, 1)], *spatial)


PAD_MODES = ("constant", "reflect", "edge", "wrap")
"""How ``Pad`` computes the elements that it adds."""


@dataclass(frozen=True)
class Pad(Op):
    """Pad every axis: ``pads`` are begins then ends, negative ones crop; ``value`` for mode constant."""

    pads: tuple[int, ...]
    mode: str = "constant"
    value: float = 0.0

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        rank = len(self.pads) // 2
        if len(self.pads) % 2 or self.mode not in PAD_MODES:
            raise InferenceError(f"Pad by {self.pads} with mode {self.mode!r}")
        if x.shape is None:
            return (TensorType(x.dtype, (None,) * rank),)
        if len(x.shape) != rank:
            raise InferenceError(f"Pad of rank {rank} on {x}")
        shape: list[Dim] = []
        for d, lo, hi in zip(x.shape, self.pads[:rank], self.pads[rank:], strict=True):
            shape.append(d + lo + hi if isinstance(d, int) else (d if lo == hi == 0 else None))
        if any(isinstance(d, int) and d < 0 for d in shape):
            raise InferenceError(f"Pad by {self.pads} crops more elements than {x} has")
        return (x.with_shape(tuple(shape)),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = len(self.pads) // 2
        free = [a for a in range(rank) if self.pads[a] == self.pads[rank + a] == 0]
        return ties(*([(0, a), (-1, a)] for a in free))


__all__ = [
    "AveragePool",
    "Conv",
    "ConvTranspose",
    "Embedding",
    "GlobalAveragePool",
    "Linear",
    "MaxPool",
    "Pad",
    "Scale",
]

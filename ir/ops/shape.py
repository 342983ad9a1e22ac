"""Ops that move elements without changing them, and reductions over axes.

What ONNX passes as a constant input (a target shape, axes, starts and ends) is an attribute here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Dim, DType, Shape, TensorType
from .base import (
    Axis,
    InferenceError,
    InputTypes,
    Op,
    Tie,
    axis_of,
    required,
    same_dtype,
    ties,
)

REDUCTIONS = ("mean", "sum", "max", "min", "prod", "l1", "l2")
"""The kinds of ``Reduce``."""


@dataclass(frozen=True)
class Reshape(Op):
    """Reshape to ``shape``: one entry may be -1, which is inferred; 0 is a size of zero.

    ``"batch"``-like symbols are not allowed; ``None`` copies the input's size at the same index
    (ONNX spells this 0).
    """

    shape: tuple[int | None, ...]

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if self.shape.count(-1) > 1 or any(d is not None and d < -1 for d in self.shape):
            raise InferenceError(f"{self.shape} is no shape")
        out: list[Dim] = []
        for i, d in enumerate(self.shape):
            if d is None:
                if x.shape is not None and i >= len(x.shape):
                    raise InferenceError(f"Reshape {self.shape} copies axis {i} of {x}")
                out.append(x.shape[i] if x.shape is not None else None)
            else:
                out.append(d)
        size = x.size
        if -1 in self.shape:
            hole = self.shape.index(-1)
            out[hole] = self._hole(x, out, hole)
        elif size is not None and None not in out:
            total = math.prod(d for d in out if isinstance(d, int))
            if all(isinstance(d, int) for d in out) and total != size:
                raise InferenceError(f"Reshape of {x} to {self.shape}")
        return (x.with_shape(tuple(out)),)

    def _hole(self, x: TensorType, out: list[Dim], hole: int) -> Dim:
        if x.shape is None:
            return None
        # Symbols on both sides cancel: (batch, 8, 2, 2) -> (batch, -1) leaves 32.
        # So does an unknown size with the axis that it copies.
        have = list(x.shape)
        rest = 1
        for i, d in enumerate(out):
            if i == hole:
                continue
            if self.shape[i] is None:
                # With no elements at all, the hole could be anything.
                rest *= int(d != 0)
                have[i] = 1
            elif isinstance(d, int):
                rest *= d
        symbols = [d for d in have if not isinstance(d, int)]
        total = math.prod(d for d in have if isinstance(d, int))
        if not symbols:
            if rest == 0 or total % rest:
                raise InferenceError(f"Reshape of {x} to {self.shape}")
            return total // rest
        return symbols[0] if len(symbols) == 1 and total == rest else None


@dataclass(frozen=True)
class Flatten(Op):
    """Reshape to a matrix: the axes before ``axis`` are joined to the first axis, the rest to the second."""

    axis: int = 1

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if x.shape is None:
            return (x.with_shape((None, None)),)
        # The axis may be the rank itself: everything goes to the rows.
        axis = self.axis if self.axis == len(x.shape) else axis_of(self.axis, len(x.shape) or 1)
        return (x.with_shape((_product(x.shape[:axis]), _product(x.shape[axis:]))),)


def _product(shape: Shape) -> Dim:
    symbols = [d for d in shape if not isinstance(d, int)]
    total = math.prod(d for d in shape if isinstance(d, int))
    if not symbols:
        return total
    return symbols[0] if len(symbols) == 1 and total == 1 else None


@dataclass(frozen=True)
class Transpose(Op):
    """Permute the axes: axis ``i`` of the result is axis ``perm[i]`` of the input."""

    perm: tuple[int, ...]

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if sorted(self.perm) != list(range(len(self.perm))):
            raise InferenceError(f"{self.perm} is not a permutation")
        if x.shape is None:
            return (x.with_shape((None,) * len(self.perm)),)
        if len(x.shape) != len(self.perm):
            raise InferenceError(f"Transpose {self.perm} of {x}")
        return (x.with_shape(tuple(x.shape[p] for p in self.perm)),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return ties(*([(0, p), (-1, i)] for i, p in enumerate(self.perm)))


@dataclass(frozen=True)
class Squeeze(Op):
    """Drop axes of size 1."""

    axes: tuple[int, ...]

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if x.shape is None:
            return (x,)
        gone = {axis_of(a, len(x.shape)) for a in self.axes}
        for a in gone:
            if x.dim(a) not in (None, 1):
                raise InferenceError(f"Squeeze of axis {a} of {x}")
        return (x.with_shape(tuple(d for i, d in enumerate(x.shape) if i not in gone)),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        gone = {axis_of(a, rank) for a in self.axes}
        kept = [a for a in range(rank) if a not in gone]
        return ties(*([(0, a), (-1, i)] for i, a in enumerate(kept)))


@dataclass(frozen=True)
class Unsqueeze(Op):
    """Insert axes of size 1; ``axes`` are counted in the result."""

    axes: tuple[int, ...]

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if x.shape is None:
            return (x,)
        rank = len(x.shape) + len(self.axes)
        new = {axis_of(a, rank) for a in self.axes}
        rest = iter(x.shape)
        return (x.with_shape(tuple(1 if i in new else next(rest) for i in range(rank))),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        inner = required(inputs, 0).rank
        if inner is None:
            return None
        rank = inner + len(self.axes)
        new = {axis_of(a, rank) for a in self.axes}
        kept = [i for i in range(rank) if i not in new]
        return ties(*([(0, a), (-1, i)] for a, i in enumerate(kept)))


@dataclass(frozen=True)
class Concat(Op):
    """Join along one axis."""

    axis: int = 1
    arity = (1, None)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        types = [required(inputs, i) for i in range(len(inputs))]
        dtype = same_dtype(self, *types)
        shapes = [t.shape for t in types if t.shape is not None]
        if not shapes:
            return (TensorType(dtype),)
        rank = len(shapes[0])
        axis = axis_of(self.axis, rank)
        if any(len(s) != rank for s in shapes):
            raise InferenceError(f"Concat of {', '.join(map(str, types))}")
        out = TensorType(dtype, (None,) * rank)
        for type_ in types:
            if type_.shape is None:
                continue
            other = type_.with_shape(
                tuple(None if i == axis else d for i, d in enumerate(type_.shape))
            )
            if not out.accepts(other):
                raise InferenceError(f"Concat of {', '.join(map(str, types))}")
            out = out.refined(other)
        assert out.shape is not None
        sizes = [t.dim(axis) for t in types]
        total: Dim = None
        if None not in sizes:
            total = sum(s for s in sizes if s is not None)
        return (out.with_shape(tuple(total if i == axis else d for i, d in enumerate(out.shape))),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = next((t.rank for t in inputs if t is not None and t.rank is not None), None)
        if rank is None:
            return None
        own = axis_of(self.axis, rank)
        operands = (*range(len(inputs)), -1)
        return ties(*([(o, a) for o in operands] for a in range(rank) if a != own))


@dataclass(frozen=True)
class Split(Op):
    """Cut along one axis into pieces of the given sizes."""

    sizes: tuple[int, ...]
    axis: int = 0

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if x.shape is None:
            return (x,) * len(self.sizes)
        axis = axis_of(self.axis, len(x.shape))
        size = x.dim(axis)
        if size is not None and size != sum(self.sizes):
            raise InferenceError(f"Split of {x} into {self.sizes} along axis {axis}")
        return tuple(
            x.with_shape(tuple(s if i == axis else d for i, d in enumerate(x.shape)))
            for s in self.sizes
        )

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        own = axis_of(self.axis, rank)
        operands = (0, *(-1 - i for i in range(len(self.sizes))))
        return ties(*([(o, a) for o in operands] for a in range(rank) if a != own))


@dataclass(frozen=True)
class Slice(Op):
    """``x[..., start:end:step, ...]`` along some axes, ONNX's clamping rules, steps above zero."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    axes: tuple[int, ...]
    steps: tuple[int, ...]

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        parts = (self.starts, self.ends, self.axes, self.steps)
        if len({len(part) for part in parts}) > 1:
            raise InferenceError(f"Slice with lists of different lengths, {parts}")
        if any(step < 1 for step in self.steps):
            raise InferenceError(f"Slice with steps {self.steps}")
        if x.shape is None:
            return (x,)
        shape = list(x.shape)
        for start, end, axis, step in zip(*parts, strict=True):
            axis = axis_of(axis, len(shape))
            d = shape[axis]
            if isinstance(d, int):
                shape[axis] = len(range(d)[start:end:step])
            elif (start, step) != (0, 1) or end < 2**31 - 1:
                shape[axis] = None
        return (x.with_shape(tuple(shape)),)

    def index(self, rank: int) -> tuple[slice, ...]:
        """The index that takes the same part of a NumPy array of this rank."""
        made = [slice(None)] * rank
        for start, end, axis, step in zip(
            self.starts, self.ends, self.axes, self.steps, strict=True
        ):
            made[axis] = slice(start, end, step)
        return tuple(made)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return _uncut_ties(inputs, self.axes)


def _uncut_ties(inputs: InputTypes, axes: Sequence[int]) -> tuple[Tie, ...] | None:
    """The axes of a slice that it does not cut."""
    rank = required(inputs, 0).rank
    if rank is None:
        return None
    cut = {axis_of(a, rank) for a in axes}
    return ties(*([(0, a), (-1, a)] for a in range(rank) if a not in cut))


@dataclass(frozen=True)
class DynamicSlice(Op):
    """A Slice whose bounds are computed: ``(x, starts, ends)``; the vectors have a whole number for each axis that is cut.

    Attributes:
        axes: The axes, in the order of the bounds.
        steps: A step above zero for each axis.
    """

    axes: tuple[int, ...]
    steps: tuple[int, ...]
    arity = (3, 3)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        count = len(self.axes)
        if len(self.steps) != count or any(step < 1 for step in self.steps):
            raise InferenceError(f"DynamicSlice along {self.axes} with steps {self.steps}")
        for bounds in (required(inputs, 1), required(inputs, 2)):
            whole = bounds.dtype in (None, DType.I32, DType.I64)
            if not whole or not bounds.accepts(TensorType(bounds.dtype, (count,))):
                raise InferenceError(f"DynamicSlice along {self.axes} with bounds {bounds}")
        same_dtype(self, *inputs[1:])
        if x.shape is None:
            return (x,)
        cut = {axis_of(axis, len(x.shape)) for axis in self.axes}
        return (x.with_shape(tuple(None if a in cut else d for a, d in enumerate(x.shape))),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return _uncut_ties(inputs, self.axes)


@dataclass(frozen=True)
class Select(Op):
    """One index along one axis, which is removed: ``x[:, index]``."""

    axis: int
    index: int

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if x.shape is None:
            return (x,)
        axis = axis_of(self.axis, len(x.shape))
        size = x.dim(axis)
        if size is not None and not -size <= self.index < size:
            raise InferenceError(f"index {self.index} along axis {axis} of {x}")
        return (x.with_shape(x.shape[:axis] + x.shape[axis + 1 :]),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        own = axis_of(self.axis, rank)
        kept = [a for a in range(rank) if a != own]
        return ties(*([(0, a), (-1, i)] for i, a in enumerate(kept)))


@dataclass(frozen=True)
class Reduce(Op):
    """Reduce over axes (``kind`` is one of ``REDUCTIONS``)."""

    kind: str
    axes: tuple[int, ...]
    keepdims: bool = True
    kinds = REDUCTIONS

    def __post_init__(self) -> None:
        if self.kind not in REDUCTIONS:
            raise ValueError(f"unknown reduction {self.kind!r}; known are {REDUCTIONS}")

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if x.shape is None:
            return (x,)
        gone = {axis_of(a, len(x.shape)) for a in self.axes}
        if self.keepdims:
            return (x.with_shape(tuple(1 if i in gone else d for i, d in enumerate(x.shape))),)
        return (x.with_shape(tuple(d for i, d in enumerate(x.shape) if i not in gone)),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        gone = {axis_of(a, rank) for a in self.axes}
        found: list[Tie] = []
        place = 0
        for axis in range(rank):
            if axis in gone:
                found.append(frozenset({Axis(0, axis)}))
            else:
                found.append(frozenset({Axis(0, axis), Axis(-1, axis if self.keepdims else place)}))
            place += axis not in gone
        return tuple(found)


__all__ = [
    "REDUCTIONS",
    "Concat",
    "DynamicSlice",
    "Flatten",
    "Reduce",
    "Reshape",
    "Select",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
]

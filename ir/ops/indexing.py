"""Ops that find, pick or repeat elements along axes."""

from __future__ import annotations

from dataclasses import dataclass

from ..types import Dim, DType, TensorType
from .base import (
    Axis,
    InferenceError,
    InputTypes,
    Op,
    Tie,
    axis_of,
    required,
    same_dtype,
    same_shape_ties,
    ties,
)
from .elementwise import broadcast


@dataclass(frozen=True)
class Gather(Op):
    """Slices by integers along one axis: ``(data, indices)``; the axes of the indices replace that axis.

    Indices below zero count from the end. A constant single index is a ``Select``, the rows of a constant
    table are an ``Embedding``.
    """

    axis: int = 0
    arity = (2, 2)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        data, indices = required(inputs, 0), _integers(self, required(inputs, 1))
        if data.shape is None or indices.shape is None:
            return (TensorType(data.dtype),)
        axis = axis_of(self.axis, len(data.shape))
        return (data.with_shape((*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        data, indices = required(inputs, 0).rank, required(inputs, 1).rank
        if data is None or indices is None:
            return None
        own = axis_of(self.axis, data)
        before = [[(0, a), (-1, a)] for a in range(own)]
        picked = [[(1, a), (-1, own + a)] for a in range(indices)]
        after = [[(0, a), (-1, a - 1 + indices)] for a in range(own + 1, data)]
        # The indices name positions along the axis: it keeps its order.
        return ties(*before, *picked, *after)


@dataclass(frozen=True)
class Expand(Op):
    """Repeat along axes: broadcast with ``shape``, where 1 keeps what the input has.

    A size that is known only when the network runs, such as that of batches, is ``None``: it is copied from an axis of
    the second input, of which only sizes are read.

    Attributes:
        shape: The sizes.
        like: The axes of the second input, one for each ``None``, in order.
    """

    shape: tuple[int | None, ...]
    like: tuple[int, ...] = ()
    arity = (1, 2)

    def __post_init__(self) -> None:
        if any(axis < 0 for axis in self.like):
            raise ValueError(f"the axes {self.like} are not counted from the front")

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if any(d is not None and d < 0 for d in self.shape):
            raise InferenceError(f"{self.shape} is no shape")
        return (x.with_shape(broadcast(x.shape, self._wanted(inputs))),)

    def _wanted(self, inputs: InputTypes) -> tuple[Dim, ...]:
        """The sizes, with ``None`` replaced by sizes of the second input."""
        if self.shape.count(None) != len(self.like) or bool(self.like) != (len(inputs) == 2):
            raise InferenceError(f"Expand to {self.shape} like axes {self.like} of a second input")
        if not self.like:
            return self.shape
        second = required(inputs, 1).shape
        if second is None:
            return tuple(self.shape)
        sizes = iter([second[axis_of(axis, len(second))] for axis in self.like])
        return tuple(next(sizes) if d is None else d for d in self.shape)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        shape = required(inputs, 0).shape
        if shape is None:
            return None
        sizes = self._wanted(inputs)
        rank = max(len(shape), len(sizes))
        # Of the second input only sizes are read.
        second = required(inputs, 1).rank if self.like else 0
        found: list[Tie] = [frozenset({Axis(1, axis)}) for axis in range(second or 0)]
        for axis in range(rank):
            own = axis - rank + len(shape)
            new = axis - rank + len(sizes)
            kept = new < 0 or self.shape[new] == 1
            have = shape[own] if own >= 0 else 1
            if own >= 0 and (kept or have == sizes[new] not in (None, 1)):
                found.append(frozenset({Axis(0, own), Axis(-1, axis)}))
            elif have == 1:
                # All copies are equal, so they may be permuted.
                found.append(frozenset({Axis(-1, axis)}))
        return tuple(found)


@dataclass(frozen=True)
class ArgReduce(Op):
    """The index of the largest (``kind="max"``) or smallest element along one axis, as int64.

    Attributes:
        kind: ``max`` or ``min``.
        axis: The axis.
        keepdims: Whether the axis is kept, with size 1.
        last: If several elements are equal, take the last index, not the first.
    """

    kind: str
    axis: int = 0
    keepdims: bool = True
    last: bool = False
    kinds = ("max", "min")

    def __post_init__(self) -> None:
        if self.kind not in self.kinds:
            raise ValueError(f"the place of the {self.kind!r}: it is max or min")

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        shape = required(inputs, 0).shape
        if shape is None:
            return (TensorType(DType.I64),)
        axis = axis_of(self.axis, len(shape))
        middle: tuple[Dim, ...] = (1,) if self.keepdims else ()
        return (TensorType(DType.I64, (*shape[:axis], *middle, *shape[axis + 1 :])),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        own = axis_of(self.axis, rank)
        gone = 0 if self.keepdims else 1
        return ties(*([(0, a), (-1, a - gone * (a > own))] for a in range(rank) if a != own))


@dataclass(frozen=True)
class CumSum(Op):
    """Running sums along one axis.

    Attributes:
        axis: The axis.
        exclusive: Whether a sum leaves out the element at its own position.
        reverse: Whether sums start at the end of the axis.
    """

    axis: int
    exclusive: bool = False
    reverse: bool = False

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if x.rank is not None:
            axis_of(self.axis, x.rank)
        return (x,)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        own = axis_of(self.axis, rank)
        found = same_shape_ties(rank, (0, -1))
        assert found is not None
        return tuple(tie for axis, tie in enumerate(found) if axis != own)


@dataclass(frozen=True)
class GatherElements(Op):
    """Single elements by their place along one axis: ``(data, indices)``; the result has the shape of the indices.

    ``result[i, j] = data[indices[i, j], j]`` along axis 0 of matrices. Indices below zero count from the end. Along the
    other axes the indices may be shorter than the data.
    """

    axis: int = 0
    arity = (2, 2)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        data, indices = required(inputs, 0), _integers(self, required(inputs, 1))
        ranks = {data.rank, indices.rank} - {None}
        if len(ranks) > 1 or 0 in ranks:
            raise InferenceError(f"GatherElements of {data} by {indices}")
        for rank in ranks:
            axis_of(self.axis, rank or 0)
        return (TensorType(data.dtype, indices.shape),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        data, indices = required(inputs, 0), required(inputs, 1)
        if data.rank is None or indices.rank is None:
            return None
        own = axis_of(self.axis, data.rank)
        # Indices that are shorter than the data, or may be, read the first elements.
        others = (
            a for a in range(data.rank) if a != own and data.dim(a) == indices.dim(a) is not None
        )
        return ties([(1, own), (-1, own)], *([(0, a), (1, a), (-1, a)] for a in others))


@dataclass(frozen=True)
class GatherNd(Op):
    """Slices by vectors of integers: ``(data, indices)``; the last axis of the indices holds places along axes of the data.

    These are the axes behind ``batch_axes``, which data and indices have in common. Indices below zero count from the end.

    Attributes:
        batch_axes: The number of leading axes that are not indexed.
    """

    batch_axes: int = 0
    arity = (2, 2)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        data, indices = required(inputs, 0), _integers(self, required(inputs, 1))
        if data.shape is None or indices.shape is None:
            return (TensorType(data.dtype),)
        count, batch = indices.dim(-1) if indices.shape else None, self.batch_axes
        if not 0 <= batch < min(len(data.shape), len(indices.shape)):
            raise InferenceError(f"GatherNd of {data} by {indices}, with {batch} batch axes")
        if count is None:
            return (TensorType(data.dtype),)
        if batch + count > len(data.shape):
            raise InferenceError(f"GatherNd of {data} by {indices}")
        return (TensorType(data.dtype, (*indices.shape[:-1], *data.shape[batch + count :])),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        data, indices = required(inputs, 0), required(inputs, 1)
        count = indices.dim(-1) if indices.rank else None
        if data.rank is None or indices.rank is None or count is None:
            return None
        batch, places = self.batch_axes, indices.rank - 1
        shared = [[(0, a), (1, a), (-1, a)] for a in range(batch)]
        picked = [[(1, a), (-1, a)] for a in range(batch, places)]
        rest = range(batch + count, data.rank)
        return ties(*shared, *picked, *([(0, a), (-1, places + i)] for i, a in enumerate(rest)))


def _integers(op: Op, indices: TensorType) -> TensorType:
    if indices.dtype is not None and not indices.dtype.is_int:
        raise InferenceError(f"{op.name} by {indices}, which are not integers")
    return indices


@dataclass(frozen=True)
class TopK(Op):
    """The largest or smallest numbers along one axis, in order: ``(x)`` gives ``(numbers, their indices)``, the latter as int64.

    Of equal numbers, the one with the lower index comes first.

    Attributes:
        k: How many.
        axis: The axis.
        largest: Whether they are the largest ones, in descending order; else the smallest, in ascending order.
    """

    k: int
    axis: int = -1
    largest: bool = True

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if self.k < 0:
            raise InferenceError(f"the first {self.k} numbers")
        if x.shape is None:
            return (TensorType(x.dtype), TensorType(DType.I64))
        axis = axis_of(self.axis, len(x.shape))
        size = x.shape[axis]
        if isinstance(size, int) and self.k > size:
            raise InferenceError(f"the first {self.k} of {size} numbers")
        shape = (*x.shape[:axis], self.k, *x.shape[axis + 1 :])
        return (TensorType(x.dtype, shape), TensorType(DType.I64, shape))

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        own = axis_of(self.axis, rank)
        return ties(*([(0, a), (-1, a), (-2, a)] for a in range(rank) if a != own))


@dataclass(frozen=True)
class Range(Op):
    """Numbers at equal distances: scalars ``(start, limit, delta)`` give ``start, start + delta, ...`` before the limit."""

    arity = (3, 3)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        given = [required(inputs, i) for i in range(3)]
        dtype = same_dtype(self, *given)
        if any(type_.rank not in (None, 0) for type_ in given):
            raise InferenceError(f"Range of {', '.join(map(str, given))}, which are not scalars")
        return (TensorType(dtype, (None,)),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        # There are no axes but that of the result, whose order is its meaning.
        return ()


__all__ = ["ArgReduce", "CumSum", "Expand", "Gather", "GatherElements", "GatherNd", "Range", "TopK"]

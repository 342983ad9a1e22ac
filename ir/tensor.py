"""Lazy tensor handles: what a constant is, without its numbers until somebody asks.

A handle knows its shape and element type. ``numpy()`` gives the stored numbers; ``float64()`` gives the
numbers before they were rounded to the storage type, so that a chain of derived tensors (a folded
batch norm inside a merged convolution) is rounded once, at the end.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ModelError
from .types import DType, TensorType

Array = npt.NDArray[Any]
Array64 = npt.NDArray[np.float64]

_KEEP_BYTES = 1 << 20
"""A derived tensor up to this size is kept once computed; a larger one is computed again."""


class Tensor(ABC):
    """A constant: shape, element type, and numbers on demand.

    Attributes:
        shape: The sizes.
        dtype: The element type that the numbers are stored in.
        host: The host's own object (a ``TensorProto``, a ``Parameter``, ...) when this handle stands
            for exactly that object; ``None`` for a tensor made here.
    """

    __slots__ = ("dtype", "host", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: DType, host: object | None = None) -> None:
        self.shape = tuple(int(d) for d in shape)
        self.dtype = dtype
        self.host = host

    @abstractmethod
    def numpy(self) -> Array:
        """The numbers in the storage type, shaped; treat the array as read-only."""

    def float64(self) -> Array64:
        """The numbers in float64, before any rounding to the storage type; read-only."""
        return self.numpy().astype(np.float64)

    @property
    def hosts(self) -> tuple[object, ...] | None:
        """The host's own objects that the numbers come from; ``None`` where nobody has said."""
        return () if self.host is None else (self.host,)

    @property
    def type(self) -> TensorType:
        """The tensor's type."""
        return TensorType(self.dtype, self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes that the stored numbers take (4-bit types are packed)."""
        return (self.size * self.dtype.bits + 7) // 8

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.type})"


class ArrayTensor(Tensor):
    """A tensor whose numbers are an array in memory."""

    __slots__ = ("_array",)

    def __init__(self, array: npt.ArrayLike, host: object | None = None) -> None:
        self._array = np.asarray(array)
        super().__init__(self._array.shape, DType.of(self._array.dtype), host)

    def numpy(self) -> Array:
        return self._array


class LazyTensor(Tensor):
    """A tensor that a function loads in its storage type: a mapped file, a host's own weight.

    The function is called each time, nothing is kept: memory follows the tensor at hand, not the model.
    ``source`` is the tensor whose numbers it only moves, when it was made from one: a weight that is
    reordered is still a weight.
    """

    __slots__ = ("_load", "source")

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        load: Callable[[], Array],
        host: object | None = None,
        source: Tensor | None = None,
    ) -> None:
        super().__init__(shape, dtype, host)
        self._load = load
        self.source = source

    @property
    def hosts(self) -> tuple[object, ...] | None:
        return super().hosts if self.source is None else self.source.hosts

    def numpy(self) -> Array:
        array = self._load()
        if tuple(array.shape) != self.shape:
            raise ValueError(f"tensor loaded with shape {array.shape}, expected {self.shape}")
        return array


class DerivedTensor(Tensor):
    """A tensor that is computed in float64 from others and rounded once, on the way out.

    Args:
        shape: The shape of the result.
        dtype: The storage type that ``numpy()`` rounds to.
        compute: Gives the numbers in float64; called on demand.
        write: An optional shortcut to the stored form for large tensors, that avoids the float64 copy:
            it receives an empty array of the storage type and fills it.
        sources: The tensors that it is computed from, if that is known; empty for plain numbers.
    """

    __slots__ = ("_compute", "_hosts", "_kept", "_write", "label")

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        compute: Callable[[], Array64],
        write: Callable[[Array], None] | None = None,
        sources: Iterable[Tensor | None] | None = None,
    ) -> None:
        super().__init__(shape, dtype)
        # The host's objects alone: the tensors in between need not stay.
        self._hosts = (
            None if sources is None else _united(s.hosts for s in sources if s is not None)
        )
        self._compute = compute
        self._write = write
        self._kept: Array64 | None = None
        self.label = ""
        """The name of the constant that it became first, for messages."""

    @property
    def hosts(self) -> tuple[object, ...] | None:
        return self._hosts

    def float64(self) -> Array64:
        if self._kept is not None:
            return self._kept
        array = np.asarray(self._compute(), np.float64)
        if array.shape != self.shape:
            raise ValueError(f"tensor computed with shape {array.shape}, expected {self.shape}")
        if array.nbytes <= _KEEP_BYTES:
            self._kept = array
        return array

    def numpy(self) -> Array:
        """The numbers in the storage type.

        Raises:
            ModelError: If finite numbers are beyond the range of that type.
        """
        try:
            with np.errstate(over="raise", invalid="ignore"):
                if self._write is not None and self._kept is None and self.size * 8 > _KEEP_BYTES:
                    out = np.empty(self.shape, self.dtype.numpy)
                    self._write(out)
                    return out
                return self.float64().astype(self.dtype.numpy)
        except FloatingPointError as error:
            raise ModelError(
                f"{self.label or 'a constant'}: its computed numbers leave the range of "
                f"{self.dtype.value}: leave out the pass that computes them, or scale the weights"
            ) from error


class MovedTensor(DerivedTensor):
    """The numbers of a computed tensor in another order.

    Args:
        source: The tensor.
        move: Reorders the elements of an array of its shape, whatever their type.
    """

    __slots__ = ("move", "source")

    def __init__(self, source: Tensor, move: Callable[[Array], Array]) -> None:
        self.source, self.move = source, move
        super().__init__(
            source.shape, source.dtype, lambda: move(source.float64()), sources=(source,)
        )


def _united(parts: Iterable[tuple[object, ...] | None]) -> tuple[object, ...] | None:
    found: dict[int, object] = {}
    for part in parts:
        if part is None:
            return None
        found.update((id(host), host) for host in part)
    return tuple(found.values())


class SplatTensor(Tensor):
    """One number everywhere."""

    __slots__ = ("value",)

    def __init__(self, shape: tuple[int, ...], dtype: DType, value: float) -> None:
        super().__init__(shape, dtype)
        self.value = value

    def numpy(self) -> Array:
        return np.broadcast_to(np.array(self.value, self.dtype.numpy), self.shape)


class ElidedTensor(Tensor):
    """A tensor whose numbers were left out of a text; asking for them is an error."""

    __slots__ = ()

    def numpy(self) -> Array:
        raise ValueError(
            f"the numbers of this {self.type} constant were left out of the text; "
            "print the graph with graph.text(full=True) to keep them"
        )


def reshaped(data: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same numbers in another shape."""
    if isinstance(data, DerivedTensor):
        return DerivedTensor(
            shape, data.dtype, lambda: data.float64().reshape(shape), sources=(data,)
        )
    return LazyTensor(shape, data.dtype, lambda: data.numpy().reshape(shape), source=data)


def transposed(data: Tensor) -> Tensor:
    """A matrix with rows and columns exchanged."""
    return LazyTensor(data.shape[::-1], data.dtype, lambda: data.numpy().T, source=data)

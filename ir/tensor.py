"""Lazy tensors: handles of constants whose numbers are loaded or computed on demand.

A handle knows its shape and element type. ``numpy()`` returns the numbers in the storage type; ``float64()`` returns them
before they are rounded to that type, so that a chain of derived tensors (a folded batch norm inside a merged convolution)
is rounded once, at the end.
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
"""Derived tensors of up to this many bytes are cached once computed; larger ones are computed each time."""


class Tensor(ABC):
    """A constant: shape, element type, and numbers on demand.

    Attributes:
        shape: The sizes.
        dtype: The storage type: the element type of the stored numbers.
        host: The host's object (a ``TensorProto``, a ``Parameter``, ...) that holds exactly this tensor; ``None``
            for a tensor that the host does not have.
    """

    __slots__ = ("dtype", "host", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: DType, host: object | None = None) -> None:
        self.shape = tuple(int(d) for d in shape)
        self.dtype = dtype
        self.host = host

    @abstractmethod
    def numpy(self) -> Array:
        """The numbers in the storage type, in the tensor's shape; treat the array as read-only."""

    def float64(self) -> Array64:
        """The numbers in float64, before any rounding to the storage type; read-only."""
        return self.numpy().astype(np.float64)

    @property
    def hosts(self) -> tuple[object, ...] | None:
        """The host's objects that the numbers come from; ``None`` where this is not known."""
        return () if self.host is None else (self.host,)

    @property
    def type(self) -> TensorType:
        """Element type and shape."""
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

    The function is called each time and nothing is cached, so that memory holds one tensor and not the model.

    Args:
        shape: The sizes.
        dtype: The storage type.
        load: Returns the numbers in the storage type.
        host: The host's object that holds exactly this tensor.
        source: The tensor whose numbers this one only rearranges, if it was made from one.
        move: Makes the numbers of this tensor of those of the source, or of any array of its shape, if that is known.
    """

    __slots__ = ("_load", "move", "source")

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        load: Callable[[], Array],
        host: object | None = None,
        source: Tensor | None = None,
        move: Callable[[Array], Array] | None = None,
    ) -> None:
        super().__init__(shape, dtype, host)
        self._load = load
        self.source = source
        self.move = move

    @property
    def hosts(self) -> tuple[object, ...] | None:
        return super().hosts if self.source is None else self.source.hosts

    def numpy(self) -> Array:
        array = self._load()
        if tuple(array.shape) != self.shape:
            raise ValueError(f"tensor loaded with shape {array.shape}, expected {self.shape}")
        return array


class DerivedTensor(Tensor):
    """A tensor that is computed in float64, mostly from other tensors, and rounded once, by ``numpy()``.

    Args:
        shape: The shape of the result.
        dtype: The storage type that ``numpy()`` rounds to.
        compute: Returns the numbers in float64; called on demand.
        write: Fills an empty array of the storage type directly. It is optional, and saves the float64 copy of
            large tensors.
        sources: The tensors that it is computed from; empty for plain numbers, ``None`` if not known.
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
        # Only the host's objects are kept, so that the tensors in between can be freed.
        self._hosts = None if sources is None else _union(s.hosts for s in sources if s is not None)
        self._compute = compute
        self._write = write
        self._kept: Array64 | None = None
        self.label = ""
        """The name of the first constant that holds this tensor, for messages."""

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
            ModelError: If a finite number is beyond the range of that type.
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
                f"{self.label or 'a constant'}: its computed numbers exceed the range of "
                f"{self.dtype.value}: leave out the pass that computes them, or scale the weights"
            ) from error


class MovedTensor(DerivedTensor):
    """The numbers of another tensor in another order, or some of them, for tensors that are computed.

    Args:
        source: The other tensor.
        move: Reorders or selects the elements of an array of the source's shape and of any element type.
        shape: The shape of the result; that of the source if not given.
    """

    __slots__ = ("move", "source")

    def __init__(
        self,
        source: Tensor,
        move: Callable[[Array], Array],
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.source, self.move = source, move
        super().__init__(
            source.shape if shape is None else shape,
            source.dtype,
            lambda: move(source.float64()),
            sources=(source,),
        )


def _union(parts: Iterable[tuple[object, ...] | None]) -> tuple[object, ...] | None:
    """All objects by identity, each once; ``None`` if a part is not known."""
    found: dict[int, object] = {}
    for part in parts:
        if part is None:
            return None
        found.update((id(host), host) for host in part)
    return tuple(found.values())


class SplatTensor(Tensor):
    """A tensor with the same number everywhere; it takes no memory."""

    __slots__ = ("value",)

    def __init__(self, shape: tuple[int, ...], dtype: DType, value: float) -> None:
        super().__init__(shape, dtype)
        self.value = value

    def numpy(self) -> Array:
        return np.broadcast_to(np.array(self.value, self.dtype.numpy), self.shape)


class ElidedTensor(Tensor):
    """A tensor whose numbers the text form left out; reading them is an error."""

    __slots__ = ()

    def numpy(self) -> Array:
        raise ValueError(
            f"the numbers of this {self.type} constant were left out of the text; "
            "print the graph with graph.text(full=True) to keep them"
        )


def reshaped(data: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor's numbers in another shape."""
    if isinstance(data, DerivedTensor):
        return DerivedTensor(
            shape, data.dtype, lambda: data.float64().reshape(shape), sources=(data,)
        )
    return _moved(data, lambda array: array.reshape(shape), shape)


def transposed(data: Tensor) -> Tensor:
    """The transpose of a matrix."""
    return _moved(data, lambda array: array.T, data.shape[::-1])


def _moved(data: Tensor, move: Callable[[Array], Array], shape: tuple[int, ...]) -> Tensor:
    return LazyTensor(shape, data.dtype, lambda: move(data.numpy()), source=data, move=move)

"""Tensors of the algebra: weights are lazy, small vectors are read at once.

Weights stay lazy, so that a graph is rewritten from shapes alone and only the weights that are being computed take
memory. Vectors (biases, scales) are small and are read at once if possible; otherwise many consecutive scales would
become a long chain of closures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ....ir import DerivedTensor, DType, MaskedTensor, MovedTensor, SplatTensor, Tensor, remasked

Array64 = npt.NDArray[np.float64]

EAGER_BYTES = 1 << 20
"""Vectors of up to this many bytes in float64 are read at once."""

MAX_DEPTH = 16
"""A tensor with a longer chain of derived tensors behind it is computed instead of deferred."""

_CHUNK = 1 << 20


class Derived(DerivedTensor):
    """A derived tensor that records the length of its chain of sources.

    Args:
        shape: The shape.
        dtype: The storage type.
        compute: Returns the numbers in float64.
        sources: The tensors that ``compute`` reads; ``None`` if they are not known.
        write: See :class:`graphshrink.ir.DerivedTensor`.
    """

    __slots__ = ("depth",)

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        compute: Callable[[], Array64],
        sources: Sequence[Tensor | None] | None = (),
        write: Callable[[npt.NDArray[np.generic]], None] | None = None,
    ) -> None:
        super().__init__(shape, dtype, compute, write, sources)
        self.depth = 1 + max((depth_of(s) for s in sources or ()), default=0)


def depth_of(tensor: Tensor | None) -> int:
    """The number of nested derived tensors that must be computed to read ``tensor``."""
    if isinstance(tensor, MaskedTensor):
        return 1 + depth_of(tensor.weight)
    if isinstance(tensor, MovedTensor):
        return 1 + depth_of(tensor.source)
    return tensor.depth if isinstance(tensor, Derived) else 0


def from_float64(array: Array64, dtype: DType, source: Tensor | None = None) -> Derived:
    """A tensor that holds float64 numbers, rounded to ``dtype`` when stored; ``source`` is the tensor they come from."""
    made = Derived(array.shape, dtype, lambda: array, None if source is None else (source,))
    made.depth = 1
    return made


def materialized_if_small(tensor: Tensor) -> Tensor:
    """The same tensor, computed now if it is small or if its chain of sources is long.

    A tensor without numbers (left out of the text of a graph) is returned as it is.
    """
    if tensor.size * 8 > EAGER_BYTES and depth_of(tensor) < MAX_DEPTH:
        return tensor
    try:
        # ``Merge.problem`` checks the range before a merge is made.
        with np.errstate(over="ignore", invalid="ignore"):
            return remasked(tensor, from_float64(tensor.float64(), tensor.dtype, tensor))
    except ValueError:
        return tensor


def materialized_if_deep(tensor: Tensor) -> Tensor:
    """The same tensor, computed now if its chain of sources is long."""
    return materialized_if_small(tensor) if depth_of(tensor) >= MAX_DEPTH else tensor


def read_vector(tensor: Tensor) -> Array64 | None:
    """The numbers of a small vector; ``None`` if it is large or has no numbers."""
    if tensor.size * 8 > EAGER_BYTES:
        return None
    try:
        return tensor.float64()
    except ValueError:
        return None


def out_of_range(tensor: Tensor) -> bool:
    """Whether some numbers are not finite, or become so when they are stored."""
    with np.errstate(over="ignore", invalid="ignore"):
        stored = tensor.float64().astype(tensor.dtype.numpy).astype(np.float64)
    return not np.isfinite(stored).all()


def is_ones(tensor: Tensor) -> bool:
    """Whether all numbers are known to be 1, as in the weight of an identity."""
    return isinstance(tensor, SplatTensor) and tensor.value == 1.0


def scale_kernel(
    kernel: Tensor,
    groups: int,
    dtype: DType,
    *,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """A kernel ``(O, I/groups, *taps)`` with scaled output and input channels.

    Args:
        kernel: The kernel.
        groups: The number of groups.
        dtype: The storage type of the result.
        rows: A factor for each of the ``O`` output channels.
        columns: A factor for each of the ``I`` input channels.
    """
    outputs, fan_in = kernel.shape[:2]
    tail = (1,) * (len(kernel.shape) - 2)

    def factors(lo: int, hi: int) -> Array64:
        found = np.ones((1, 1, *tail))
        if rows is not None:
            found = rows.float64().reshape(outputs, 1, *tail)[lo:hi]
        if columns is not None:
            group = np.arange(lo, hi) // (outputs // groups)
            found = found * columns.float64().reshape(groups, fan_in, *tail)[group]
        return found

    def compute() -> Array64:
        return kernel.float64() * factors(0, outputs)

    def write(out: npt.NDArray[np.generic]) -> None:
        # Row by row block, so that no float64 copy of the whole kernel is made.
        source = kernel.float64() if isinstance(kernel, DerivedTensor) else kernel.numpy()
        step = max(1, _CHUNK // max(1, math.prod(kernel.shape[1:])))
        for lo in range(0, outputs, step):
            hi = min(lo + step, outputs)
            out[lo:hi] = source[lo:hi].astype(np.float64) * factors(lo, hi)

    return remasked(kernel, Derived(kernel.shape, dtype, compute, (kernel, rows, columns), write))

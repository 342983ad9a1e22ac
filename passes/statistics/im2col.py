"""What a linear layer reads, as columns: every output is a row of the weight times one column.

For a convolution, column ``j`` holds the padded input under the kernel at output position ``j``, group by group, in the
order of ``weight.reshape(out, -1)``: channel first, then taps. For a transposed convolution it is the input with zeros
stuffed between its pixels, as its outputs read it: the order is (channel of the group, taps) there too. So for each
group ``outputs = W @ columns`` with ``W`` of shape ``(outputs / groups, K)``; see :func:`weight_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ir import Conv, ConvTranspose, Linear, MatMul, Node, UsageError
from ..merge.algebra.tensors import Array64

Array = npt.NDArray[Any]

CHUNK_BYTES = 1 << 26
"""About how many bytes of columns are made at a time."""


def columns_problem(node: Node) -> str:
    """Why a node's input cannot be read as columns; empty when it can."""
    weight = node.input(1)
    if isinstance(node.op, MatMul):
        if weight is None or weight.data is None or weight.type.rank != 2:
            return "MatMul is a dense layer only where its second operand is a constant matrix"
    elif not isinstance(node.op, Conv | ConvTranspose | Linear):
        return f"{node.op.name} is no convolution or dense layer"
    if weight is None or weight.type.static_shape is None:
        return "the shape of its weight is not known"
    return ""


def columns_size(node: Node) -> tuple[int, int]:
    """``(groups, K)`` of a convolution or dense layer, ``K`` being the size of a column in each group.

    Raises:
        ValueError: If the node's input cannot be read as columns.
    """
    shape = _weight_shape(node)
    match node.op:
        case Conv(groups=groups):
            return groups, math.prod(shape[1:])
        case ConvTranspose(groups=groups):
            return groups, shape[0] // groups * math.prod(shape[2:])
        case MatMul():
            return 1, shape[0]
    return 1, shape[1]


def weight_rows(node: Node, weight: Array) -> Array:
    """The weight as ``(groups, outputs / groups, K)``, the factor of the columns."""
    match node.op:
        case ConvTranspose(groups=groups):
            split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            return split.swapaxes(1, 2).reshape(groups, weight.shape[1], -1)
        case Conv(groups=groups):
            return weight.reshape(groups, weight.shape[0] // groups, -1)
        case MatMul():
            return weight.T[None]
    return weight[None]


def restored(node: Node, rows: Array) -> Array:
    """The weight of these rows: the inverse of :func:`weight_rows`."""
    shape = _weight_shape(node)
    if isinstance(node.op, ConvTranspose):
        split = rows.reshape(node.op.groups, shape[1], shape[0] // node.op.groups, -1)
        return split.swapaxes(1, 2).reshape(shape)
    return rows[0].T if isinstance(node.op, MatMul) else rows.reshape(shape)


def tap_major(node: Node) -> npt.NDArray[np.intp]:
    """The places of a column's entries when they are ordered by tap first, then by channel.

    ``column[tap_major(node)]`` has the channels at one tap side by side, as N:M patterns want them.
    """
    taps = math.prod(_weight_shape(node)[2:])
    return np.arange(columns_size(node)[1]).reshape(-1, taps).T.reshape(-1)


def columns(node: Node, array: Array, limit: int = CHUNK_BYTES) -> Iterator[Array64]:
    """The columns of a batch, some at a time.

    Args:
        node: A convolution, transposed convolution or dense layer with a weight of known shape, or the product with a
            constant matrix.
        array: Its input for one batch.
        limit: About how many bytes to make at a time.

    Yields:
        Arrays ``(groups, K, n)`` in float64.

    Raises:
        ValueError: If the node's input cannot be read as columns.
        UsageError: If the batch is none that the node takes.
    """
    op, shape = node.op, _weight_shape(node)
    kernel = shape[2:]
    _check_input(node, shape, array)
    if isinstance(op, Linear | MatMul):
        rows = array.reshape(-1, array.shape[-1])
        step = max(1, limit // (8 * rows.shape[1]))
        for lo in range(0, len(rows), step):
            yield rows[lo : lo + step].T[None].astype(np.float64)
        return
    assert isinstance(op, Conv | ConvTranspose)
    if isinstance(op, Conv):
        windows = _windows(_padded(array, op.pads), kernel, op.strides, op.dilations)
    else:
        extra = op.output_padding or (0,) * op.spatial_rank
        reach = [d * (k - 1) for d, k in zip(op.dilations, kernel, strict=True)]
        n = op.spatial_rank
        pads = (
            *(r - p for r, p in zip(reach, op.pads[:n], strict=True)),
            *(r - p + e for r, p, e in zip(reach, op.pads[n:], extra, strict=True)),
        )
        stuffed = _padded(_stuffed(array, op.strides), pads)
        windows = _windows(stuffed, kernel, (1,) * n, op.dilations)
        # The first tap meets the last pixel.
        windows = np.flip(windows, tuple(range(-n, 0)))
    yield from _cut(windows, op.groups, op.spatial_rank, limit)


def _weight_shape(node: Node) -> tuple[int, ...]:
    problem = columns_problem(node)
    weight = node.input(1)
    if problem or weight is None or weight.type.static_shape is None:
        raise ValueError(f"{node.name}: {problem}")
    return weight.type.static_shape


def _check_input(node: Node, shape: Sequence[int], array: Array) -> None:
    if isinstance(node.op, Linear | MatMul):
        axis, size, fits = -1, columns_size(node)[1], array.ndim > 0
    else:
        wide = shape[1] * node.op.groups if isinstance(node.op, Conv) else shape[0]
        axis, size, fits = 1, wide, array.ndim == len(shape)
    if not fits or array.shape[axis] != size:
        sizes = "x".join(map(str, array.shape)) or "a scalar"
        raise UsageError(
            f"{node.name} takes {size} channels, on the calibration data its input is {sizes}"
        )


def _padded(array: Array, pads: Sequence[int]) -> Array:
    """Spatial axes padded with zeros; negative pads crop."""
    n = len(pads) // 2
    grow = [(0, 0), (0, 0), *((max(0, pads[i]), max(0, pads[n + i])) for i in range(n))]
    padded = np.pad(array, grow) if any(map(any, grow)) else array
    crop = [slice(max(0, -pads[i]), padded.shape[2 + i] - max(0, -pads[n + i])) for i in range(n)]
    return padded[(slice(None), slice(None), *crop)]


def _stuffed(array: Array, strides: Sequence[int]) -> Array:
    """Zeros between the pixels: ``strides - 1`` of them."""
    sizes = [(d - 1) * s + 1 for d, s in zip(array.shape[2:], strides, strict=True)]
    made = np.zeros((*array.shape[:2], *sizes), array.dtype)
    made[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = array
    return made


def _windows(
    array: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Array:
    """A view ``(N, C, *outputs, *kernel)``."""
    n = len(kernel)
    span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(array, span, tuple(range(2, 2 + n)))
    steps = [slice(None, None, s) for s in (*strides, *dilations)]
    return view[(slice(None), slice(None), *steps)]


def _cut(windows: Array, groups: int, n: int, limit: int) -> Iterator[Array64]:
    """Windows as columns, cut along the batch and, where one sample is too much, the first output axis."""
    split = windows.reshape(len(windows), groups, windows.shape[1] // groups, *windows.shape[2:])
    outputs, kernel = range(3, 3 + n), range(3 + n, 3 + 2 * n)
    view = split.transpose(1, 2, *kernel, 0, *outputs)
    size = math.prod(view.shape[: 2 + n])
    batch, rows = view.shape[2 + n : 4 + n]
    each = 8 * math.prod(view.shape) // max(1, batch)
    step = max(1, limit // max(1, each))
    tall = max(1, limit * rows // max(1, each)) if step == 1 else rows
    for lo in range(0, batch, step):
        for top in range(0, rows, tall):
            inside: tuple[Any, ...] = (slice(lo, lo + step), slice(top, top + tall))
            part = view[(..., *inside, *[slice(None)] * (n - 1))]
            yield part.astype(np.float64, order="C").reshape(groups, size // groups, -1)

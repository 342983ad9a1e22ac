"""The input of a linear layer as columns (im2col): every output is a row of the weight times one column.

For a convolution, column ``j`` holds the padded input under the kernel at output position ``j``, group by group, in the
order of ``weight.reshape(out, -1)``: channel first, then taps. For a transposed convolution, zeros are inserted between
the pixels of the input; the order is (channel of the group, taps) too. So for each
group ``outputs = W @ columns`` with ``W`` of shape ``(outputs / groups, K)``; see :func:`weight_rows`.

A recurrent layer has two weights, which are told apart by their index among its inputs (:mod:`.recurrent_columns`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ir import Conv, ConvTranspose, Linear, MatMul, Node, UsageError
from ...ir.ops.recurrent import _Recurrent
from ..merge.algebra.tensors import Array64
from .recurrent_columns import (
    recurrent_columns,
    recurrent_groups,
    recurrent_problem,
    recurrent_size,
)

Array = npt.NDArray[Any]

CHUNK_BYTES = 1 << 26
"""The approximate number of bytes of columns that are made at a time."""


def columns_problem(node: Node, index: int = 1) -> str:
    """The reason why the input of a node cannot be read as columns; empty if it can.

    Args:
        node: The node.
        index: Which input the weight is.
    """
    weight = node.input(index)
    if isinstance(node.op, _Recurrent):
        return recurrent_problem(node, index)
    if isinstance(node.op, MatMul):
        if weight is None or weight.data is None or weight.type.rank != 2:
            return "MatMul is a dense layer only if its second operand is a constant matrix"
    elif not isinstance(node.op, Conv | ConvTranspose | Linear):
        return f"{node.op.name} is neither a convolution nor a dense layer"
    if weight is None or weight.type.static_shape is None:
        return "the shape of its weight is not known"
    return ""


def columns_size(node: Node, index: int = 1) -> tuple[int, int]:
    """The number of groups of a linear layer, and the size ``K`` of a column in each group.

    Args:
        node: The layer.
        index: Which input the weight is.

    Raises:
        ValueError: If the node's input cannot be read as columns.
    """
    shape = _weight_shape(node, index)
    match node.op:
        case _Recurrent():
            return recurrent_groups(node, index), recurrent_size(node, index)
        case Conv(groups=groups):
            return groups, math.prod(shape[1:])
        case ConvTranspose(groups=groups):
            return groups, shape[0] // groups * math.prod(shape[2:])
        case MatMul():
            return 1, shape[0]
    return 1, shape[1]


def weight_rows(node: Node, weight: Array, index: int = 1) -> Array:
    """The weight as ``(groups, outputs / groups, K)``, so that ``outputs = weight_rows @ columns``."""
    match node.op:
        case _Recurrent():
            return weight.reshape(recurrent_groups(node, index), -1, weight.shape[2])
        case ConvTranspose(groups=groups):
            split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            return split.swapaxes(1, 2).reshape(groups, weight.shape[1], -1)
        case Conv(groups=groups):
            return weight.reshape(groups, weight.shape[0] // groups, -1)
        case MatMul():
            return weight.T[None]
    return weight[None]


def weight_from_rows(node: Node, rows: Array, index: int = 1) -> Array:
    """The weight in its own shape, from its rows; the inverse of :func:`weight_rows`."""
    shape = _weight_shape(node, index)
    if isinstance(node.op, ConvTranspose):
        split = rows.reshape(node.op.groups, shape[1], shape[0] // node.op.groups, -1)
        return split.swapaxes(1, 2).reshape(shape)
    return rows[0].T if isinstance(node.op, MatMul) else rows.reshape(shape)


def tap_major(node: Node, index: int = 1) -> npt.NDArray[np.intp]:
    """The permutation ``(K,)`` that orders the entries of a column by tap first, then by channel.

    ``column[tap_major(node)]`` has the channels at one tap next to each other, as N:M patterns need them.
    """
    recurrent = isinstance(node.op, _Recurrent)
    taps = 1 if recurrent else math.prod(_weight_shape(node, index)[2:])
    return np.arange(columns_size(node, index)[1]).reshape(-1, taps).T.reshape(-1)


def columns(
    node: Node,
    array: Array,
    limit: int = CHUNK_BYTES,
    *,
    index: int = 1,
    others: Sequence[Array] = (),
) -> Iterator[Array64]:
    """The columns of a batch, in chunks.

    Args:
        node: A convolution, transposed convolution or dense layer with a weight of known shape, a MatMul with a
            constant matrix, or a recurrent layer.
        array: The input of the node for one batch; for a recurrent matrix, the result of its layer.
        limit: The approximate number of bytes of a chunk.
        index: Which input the weight is.
        others: For a recurrent matrix, the other values that :func:`.recurrent_columns.column_values` lists.

    Yields:
        Arrays ``(groups, K, n)`` in float64.

    Raises:
        ValueError: If the node's input cannot be read as columns.
        UsageError: If the shape of the batch does not fit the node.
    """
    op, shape = node.op, _weight_shape(node, index)
    if isinstance(op, _Recurrent):
        yield from recurrent_columns(node, index, (array, *others), limit)
        return
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
        windows = windows_of(pad_spatial(array, op.pads), kernel, op.strides, op.dilations)
    else:
        extra = op.output_padding or (0,) * op.spatial_rank
        reach = [d * (k - 1) for d, k in zip(op.dilations, kernel, strict=True)]
        n = op.spatial_rank
        pads = (
            *(r - p for r, p in zip(reach, op.pads[:n], strict=True)),
            *(r - p + e for r, p, e in zip(reach, op.pads[n:], extra, strict=True)),
        )
        stuffed = pad_spatial(_insert_zeros(array, op.strides), pads)
        windows = windows_of(stuffed, kernel, (1,) * n, op.dilations)
        # A transposed convolution applies the taps in reverse order.
        windows = np.flip(windows, tuple(range(-n, 0)))
    yield from _columns_of_windows(windows, op.groups, op.spatial_rank, limit)


def _weight_shape(node: Node, index: int = 1) -> tuple[int, ...]:
    problem = columns_problem(node, index)
    weight = node.input(index or 1)
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


def pad_spatial(array: Array, pads: Sequence[int]) -> Array:
    """The array with its spatial axes padded with zeros, or cropped by negative pads."""
    n = len(pads) // 2
    grow = [(0, 0), (0, 0), *((max(0, pads[i]), max(0, pads[n + i])) for i in range(n))]
    padded = np.pad(array, grow) if any(map(any, grow)) else array
    crop = [slice(max(0, -pads[i]), padded.shape[2 + i] - max(0, -pads[n + i])) for i in range(n)]
    return padded[(slice(None), slice(None), *crop)]


def _insert_zeros(array: Array, strides: Sequence[int]) -> Array:
    """The array with ``stride - 1`` zeros between two pixels along each spatial axis."""
    sizes = [(d - 1) * s + 1 for d, s in zip(array.shape[2:], strides, strict=True)]
    made = np.zeros((*array.shape[:2], *sizes), array.dtype)
    made[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = array
    return made


def windows_of(
    array: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Array:
    """All windows of a padded input, as a view ``(N, C, *outputs, *kernel)``."""
    n = len(kernel)
    span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(array, span, tuple(range(2, 2 + n)))
    steps = [slice(None, None, s) for s in (*strides, *dilations)]
    return view[(slice(None), slice(None), *steps)]


def _columns_of_windows(windows: Array, groups: int, n: int, limit: int) -> Iterator[Array64]:
    """The windows as columns, cut along the batch and, if one sample is too large, along the first output axis."""
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

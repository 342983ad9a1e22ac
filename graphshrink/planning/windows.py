"""The window of a convolution that could take the place of a region: stride and centre from the layers inside; layers as matrices of columns."""

from __future__ import annotations

import numpy as np

from ..ir import (
    Activation,
    Add,
    AveragePool,
    Conv,
    Gate,
    GlobalAveragePool,
    Identity,
    LayerNorm,
    Linear,
    MatMul,
    MaxPool,
    Mul,
    Node,
    PRelu,
    Scale,
    Sub,
    Value,
)
from ..passes.merge.algebra.tensors import Array64
from .column_sums import Window
from .sites import Site

_POINTWISE = (Activation, Add, Gate, Identity, Mul, PRelu, Scale, Sub)


def window_of(site: Site, size: int) -> Window | str:
    """The window of a layer that reads the entry of a region and computes its exit.

    Args:
        site: The region.
        size: The kernel along each spatial axis, an odd number; smaller where the region reads less.

    Returns:
        The window, or the reason why no layer fits.
    """
    entry, exit = site.entry.type.shape, site.exit.type.shape
    assert entry is not None
    assert exit is not None
    dense = any(isinstance(n.op, Linear | MatMul | LayerNorm) for n in site.nodes)
    spatial = any(isinstance(n.op, Conv | AveragePool | MaxPool) for n in site.nodes)
    if dense and spatial:
        return "it mixes convolutions and dense layers"
    if dense:
        if entry[:-1] != exit[:-1]:
            return "its result has other axes than what it reads"
        return Window()
    found = _reach(site)
    if isinstance(found, str):
        return found
    strides, first, last = found
    n = len(strides)
    if len(entry) != n + 2 or len(exit) != n + 2:
        return "its result has other axes than what it reads"
    kernel = tuple(min(size, b - a + 1) for a, b in zip(first, last, strict=True))
    begins, ends = [], []
    for i in range(n):
        # The window stands in the middle of what the region reads.
        begin = -((first[i] + last[i] - kernel[i] + 1) // 2)
        begin = max(0, min(begin, kernel[i] - 1))
        d_in, d_out = entry[2 + i], exit[2 + i]
        assert isinstance(d_in, int)
        assert isinstance(d_out, int)
        end = max(0, (d_out - 1) * strides[i] + kernel[i] - d_in - begin)
        if end >= kernel[i] or (d_in + begin + end - kernel[i]) // strides[i] + 1 != d_out:
            return "its result has another size than a layer in its place would compute"
        begins.append(begin)
        ends.append(end)
    return Window(1, kernel, strides, (*begins, *ends), (1,) * n)


def layer_window(node: Node) -> Window:
    """The window of a dense layer or of a convolution."""
    if isinstance(node.op, Linear):
        return Window()
    assert isinstance(node.op, Conv)
    shape = node.required(1).type.static_shape
    assert shape is not None
    return Window(1, shape[2:], node.op.strides, node.op.pads, node.op.dilations)


def layer_matrix(node: Node) -> Array64:
    """The weight and the bias of a layer that mixes channels, ``(O, K + 1)``, for the columns of its window."""
    data, bias = node.required(1).data, node.input(2)
    assert data is not None
    matrix = data.float64().reshape(data.shape[0], -1)
    given = None if bias is None or bias.data is None else bias.data.float64()
    column = np.zeros(len(matrix)) if given is None else given
    return np.concatenate([matrix, column.reshape(-1, 1)], 1)


_Reach = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _reach(site: Site) -> _Reach | str:
    """Strides of a region, and the first and last input that output 0 reads along each spatial axis."""
    shape = site.entry.type.shape
    n = len(shape or ()) - 2
    start: _Reach = ((1,) * n, (0,) * n, (0,) * n)
    reached: dict[Value, _Reach | None] = {site.entry: start}
    for node in site.nodes:
        reads = [reached[v] for v in node.inputs if v is not None and v in reached]
        known = [r for r in reads if r is not None]
        if not reads:
            continue
        step = _step(node, n)
        if isinstance(step, str):
            return step
        if step is None or not known:
            # The mean over all positions, as in squeeze-and-excitation, has no place of its own.
            reached[node.output] = None
            continue
        if any(r[0] != known[0][0] for r in known):
            return "its branches have different strides"
        strides = known[0][0]
        first = tuple(min(r[1][i] for r in known) + strides[i] * step[1][i] for i in range(n))
        last = tuple(max(r[2][i] for r in known) + strides[i] * step[2][i] for i in range(n))
        made = tuple(a * b for a, b in zip(strides, step[0], strict=True))
        reached[node.output] = (made, first, last)
    found = reached.get(site.exit)
    return found if found is not None else "its result has no places"


def _step(node: Node, n: int) -> _Reach | str | None:
    op = node.op
    if isinstance(op, Conv | AveragePool | MaxPool):
        kernel = op.kernel if not isinstance(op, Conv) else node.required(1).type.static_shape
        if kernel is None or len(op.strides) != n:
            return f"the kernel of {node.name} is not known"
        kernel = tuple(kernel)[-n:]
        first = tuple(-p for p in op.pads[:n])
        last = tuple(
            d * (k - 1) - p for k, d, p in zip(kernel, op.dilations, op.pads[:n], strict=True)
        )
        return op.strides, first, last
    if isinstance(op, GlobalAveragePool):
        return None
    if isinstance(op, _POINTWISE):
        return (1,) * n, (0,) * n, (0,) * n
    return f"{op.name} is in it, which has no place in a convolution"

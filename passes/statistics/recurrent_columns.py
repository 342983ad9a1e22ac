"""The inputs of the two matrices of a recurrent layer as columns; see :mod:`.im2col`.

The input matrix (index 1) is multiplied with the sequence ``x``. The recurrent matrix (index 2) is multiplied with the hidden
state of the step before: the layer's result ``y``, shifted by one step in the direction of reading, with the initial state in
front. Each direction is a group of its own, because its states are. If a GRU resets the state before the product
(``reset_after=False``), the rows of its third gate read the state times the reset gate, which is computed here; each gate is then
a group. Index 0 is both side by side: the inputs, then the states, of which the two matrices side by side make the sums that the
gates read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ir import Gru, Node, UsageError, Value
from ...ir.ops.recurrent import _Recurrent
from ..merge.algebra.tensors import Array64

Array = npt.NDArray[Any]

_RESET = 1
"""The number of a GRU's reset gate."""


def recurrent_problem(node: Node, index: int) -> str:
    """The reason why the inputs of a matrix of a recurrent layer cannot be read as columns; empty if they can."""
    weight = node.input(index or 1)
    if weight is None or weight.type.static_shape is None:
        return "the shape of its weight is not known"
    if node.input(4) is not None:
        return "its sequences have different lengths, and steps behind an end would be counted"
    if not index and _resets_first(node):
        return "its reset gate scales the state before the product"
    if index == 2 and _resets_first(node):
        constants = [node.input(i) for i in (1, 2, 3)]
        if any(v is not None and v.data is None for v in constants):
            return "its reset gate is computed from weights that are not constants"
    return ""


def recurrent_size(node: Node, index: int) -> int:
    """The number of entries of a column."""
    features = node.required(1).type.dim(2)
    assert isinstance(features, int)
    return (features, features, 0)[index] + (_op(node).hidden if index != 1 else 0)


def recurrent_groups(node: Node, index: int) -> int:
    """The number of groups of rows that read the same columns."""
    op = node.op
    assert isinstance(op, _Recurrent)
    if index == 1:
        return 1
    return op.directions * (op.gates if _resets_first(node) else 1)


def column_values(node: Node, index: int) -> tuple[Value, ...]:
    """The values that the columns of a layer are made of: its input, or for a recurrent matrix y, the state, and x.

    x is needed for a reset gate only; a state that is a constant or left out is not among them.
    """
    x = node.required(0)
    if index == 1 or not isinstance(node.op, _Recurrent):
        return (x,)
    start = node.input(5)
    computed = (start,) if start is not None and start.data is None else ()
    return (node.outputs[0], *computed, *((x,) if _resets_first(node) or not index else ()))


def recurrent_columns(
    node: Node, index: int, arrays: Sequence[Array], limit: int
) -> Iterator[Array64]:
    """The columns of a batch, in chunks.

    Args:
        node: The recurrent layer.
        index: Which input the weight is.
        arrays: The arrays of :func:`column_values`.
        limit: The approximate number of bytes of a chunk.

    Yields:
        Arrays ``(groups, K, n)`` in float64.
    """
    if index == 1:
        yield from _cut(arrays[0].reshape(1, -1, arrays[0].shape[-1]), limit)
        return
    states = [_states_before(node, d, arrays) for d in range(_op(node).directions)]
    if not index:
        x = arrays[-1].reshape(-1, arrays[-1].shape[-1])
        both = [np.concatenate([x, h.reshape(len(x), -1)], 1) for h in states]
        yield from _cut(np.stack(both), limit)
        return
    if not _resets_first(node):
        yield from _cut(np.stack([h.reshape(-1, h.shape[-1]) for h in states]), limit)
        return
    groups = []
    for d, h in enumerate(states):
        flat = h.reshape(-1, h.shape[-1]).astype(np.float64)
        x = arrays[-1].reshape(-1, arrays[-1].shape[-1]).astype(np.float64)
        groups += [flat, flat, flat * _reset_gate(node, d, x, flat)]
    yield from _cut(np.stack(groups), limit)


def _op(node: Node) -> _Recurrent:
    assert isinstance(node.op, _Recurrent)
    return node.op


def _resets_first(node: Node) -> bool:
    return isinstance(node.op, Gru) and not node.op.reset_after


def _cut(rows: Array, limit: int) -> Iterator[Array64]:
    """Rows ``(groups, n, K)`` as columns, in chunks."""
    step = max(1, limit // (8 * max(1, rows.shape[0] * rows.shape[2])))
    for lo in range(0, rows.shape[1], step):
        yield rows[:, lo : lo + step].swapaxes(1, 2).astype(np.float64)


def _states_before(node: Node, direction: int, arrays: Sequence[Array]) -> Array:
    """The hidden state before each step, ``(time, batch, hidden)``."""
    y = arrays[0]
    if y.ndim != 4 or y.shape[1] != _op(node).directions:
        raise UsageError(f"the result of {node.name} is {y.shape} on the calibration data")
    own, start = y[:, direction], node.input(5)
    if start is None:
        first = np.zeros_like(own[:1])
    else:
        whole = arrays[1] if start.data is None else start.data.numpy()
        first = np.broadcast_to(whole[direction], own.shape[1:])[None].astype(y.dtype)
    if _op(node).direction == "reverse" or direction == 1:
        return np.concatenate([own[1:], first])[: len(own)]
    return np.concatenate([first, own[:-1]])[: len(own)]


def _reset_gate(node: Node, direction: int, x: Array64, h: Array64) -> Array64:
    """The reset gate of a GRU at each step, ``(steps, hidden)``."""
    n = _op(node).hidden
    rows = slice(_RESET * n, (_RESET + 1) * n)
    w, r = (_numbers(node, i)[direction, rows] for i in (1, 2))
    total = x @ w.T + h @ r.T
    if node.input(3) is not None:
        total += _numbers(node, 3)[direction].reshape(2, -1)[:, rows].sum(0)
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-total)))


def _numbers(node: Node, index: int) -> Array64:
    data = node.required(index).data
    if data is None:
        raise UsageError(f"a weight of {node.name} is not a constant")
    return data.float64()


__all__ = [
    "column_values",
    "recurrent_columns",
    "recurrent_groups",
    "recurrent_problem",
    "recurrent_size",
]

"""torch's slices, pieces, picks and tables.

Calls that give several tensors (``split``, ``chunk``, ``unbind``) are read together with the ``getitem`` calls
that take them apart: FX has a node for each, the IR has one node, or one for each result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .... import ir
from ....ir import Value
from ....ir.ops.base import axis_of
from ...lowering import Lowered, Path, Steps
from ...lowering.base import Builder
from ...lowering.indexing import gather
from ...lowering.shapes import slicing
from ...support import LeftAlone
from ..call import Call, ints, ranked
from ..registry import Memory, reads, reads_module, reads_pieces

_END = 2**63 - 1
"""An end that is open, as ONNX and ATen write it."""


@reads("select", makes=ir.Select, memory=Memory.VIEW)
def _select(call: Call) -> Lowered | None:
    """``(x, dim, index)``."""
    x, rank = ranked(call)
    axis, index = ints([call.get(1, "dim"), call.get(2, "index")], 2)
    return ir.Select(axis_of(axis, rank), index), [x]


@reads("narrow", makes=ir.Slice, note="a known start", memory=Memory.VIEW)
def _narrow(call: Call) -> Lowered | None:
    """``(x, dim, start, length)``."""
    x, rank = ranked(call)
    axis, start, length = ints(
        [call.get(i, n) for i, n in ((1, "dim"), (2, "start"), (3, "length"))], 3
    )
    if start < 0:
        return None
    return slicing(call.bounded(x), (start,), (start + length,), (axis_of(axis, rank),), (1,)), [x]


@reads("slice", makes=[ir.Slice, ir.Identity], note="known bounds", memory=Memory.VIEW)
def _slice(call: Call) -> Lowered | None:
    """ATen's ``(x, dim, start, end, step)``."""
    x, rank = ranked(call)
    axis = axis_of(call.get(1, "dim", 0), rank)
    bounds = slice(call.get(2, "start"), call.get(3, "end"), call.get(4, "step", 1))
    return _sliced(call, x, {axis: bounds})


@reads(
    "getitem",
    makes=[ir.Slice, ir.Select, ir.Unsqueeze, ir.Gather, ir.Embedding],
    note="slices, one integer, one tensor of integers, or new axes",
    memory=Memory.SHARED,
)
def _getitem(call: Call) -> Lowered | None:
    """``x[...]`` where it is one op: slices, one integer, one tensor of integers, or new axes."""
    x, rank = ranked(call)
    index = call.get(1, "index")
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(p is Ellipsis for p in parts):
        place = next(i for i, p in enumerate(parts) if p is Ellipsis)
        taken = sum(p is not None for p in parts) - 1
        parts[place : place + 1] = [slice(None)] * (rank - taken)
    if len([p for p in parts if p is not None]) > rank:
        return None
    if any(isinstance(p, Value) for p in parts):
        return _picked(x, parts)
    cut = {i: p for i, p in enumerate(parts) if isinstance(p, slice) and p != slice(None)}
    numbers = [i for i, p in enumerate(parts) if type(p) is int]
    new = tuple(i for i, p in enumerate(parts) if p is None)
    plain = all(isinstance(p, slice) or p is None or type(p) is int for p in parts)
    if not plain or bool(cut) + bool(numbers) + bool(new) != 1 or len(numbers) > 1:
        return None
    if cut:
        return _sliced(call, x, cut)
    if numbers:
        return ir.Select(numbers[0], parts[numbers[0]]), [x]
    return ir.Unsqueeze(new), [x]


def _sliced(call: Call, x: Value, cut: dict[int, slice]) -> Lowered | None:
    starts, ends, steps = [], [], []
    for part in cut.values():
        starts.append(0 if part.start is None else part.start)
        ends.append(_END if part.stop is None else part.stop)
        steps.append(1 if part.step is None else part.step)
    n = len(cut)
    if min(ints(steps, n)) < 1:
        return None
    return slicing(call.bounded(x), ints(starts, n), ints(ends, n), tuple(cut), steps), [x]


@reads("index_select", makes=ir.Gather, note="indices of one axis")
def _index_select(call: Call) -> Lowered | None:
    """``(x, dim, index)``."""
    x, dim, index = call.value(0), call.get(1, "dim"), call.value(2, "index")
    return gather(x, index, dim) if type(dim) is int and index.type.rank == 1 else None


@reads("index", makes=[ir.Gather, ir.Select, ir.Embedding], note="one tensor of integers")
def _index(call: Call) -> Lowered | None:
    """ATen's ``(x, indices)``, one an axis or ``None``."""
    indices = call.get(1, "indices")
    return _picked(call.value(0), [slice(None) if i is None else i for i in indices])


def _picked(x: Value, parts: list[Any]) -> Lowered | None:
    """``x[:, i]`` with a tensor of integers."""
    axes = [axis for axis, part in enumerate(parts) if isinstance(part, Value)]
    if len(axes) != 1 or any(p != slice(None) for p in parts if not isinstance(p, Value)):
        return None
    if parts[axes[0]].type.dtype is ir.DType.U8:
        raise LeftAlone("its mask is of bytes, not of booleans")
    return gather(x, parts[axes[0]], axes[0])


@reads("embedding", makes=ir.Embedding, note="a constant table, without max_norm")
def _embedding(call: Call) -> Lowered | None:
    """``(ids, table, padding_idx, max_norm, ...)``, or ATen's ``(table, ids, ...)``."""
    first, second = call.get(0, "input"), call.get(1, "weight", call.kwargs.get("indices"))
    if first is None:
        first = call.kwargs.get("weight")
    if not isinstance(first, Value) or not isinstance(second, Value):
        return None
    turned = second.type.dtype is not None and second.type.dtype.is_int
    ids, table = (second, first) if turned else (first, second)
    if table.data is None or ids.type.dtype is None or not table.data.dtype.is_wide_float:
        return None
    if table is second and call.get(3, "max_norm") is not None:
        raise LeftAlone("a bound on the norm writes to the table")
    return ir.Embedding(), [ids, table]


reads_module(nn.Embedding, call="embedding", fields="weight max_norm")


@reads_pieces("split", "split_with_sizes", "chunk", makes=ir.Split, note="known sizes")
def _split(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(x, sizes or their number, dim)``."""
    x, rank = ranked(call)
    axis = axis_of(call.get(2, "dim", 0), rank)
    total = call.certain(x).dim(axis)
    names = ("chunks", "split_size_or_sections", "split_size", "split_sizes")
    given = call.get(1, next((n for n in names if n in call.kwargs), names[0]))
    if isinstance(given, (list, tuple)):
        sizes = ints(list(given), len(given))
    elif type(given) is not int or not isinstance(total, int) or given < 1 or total < 1:
        return None
    else:
        size = -(-total // given) if call.name == "chunk" else given
        sizes = tuple(min(size, total - at) for at in range(0, total, size))
    made = Builder()
    pieces = made.add(ir.Split(sizes, axis), x)
    return made.steps({(i,): pieces.of(i) for i in range(len(sizes))})


@reads_pieces("unbind", makes=ir.Select, note="a known rank")
def _unbind(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(x, dim)``."""
    x, rank = ranked(call)
    axis = axis_of(call.get(1, "dim", 0), rank)
    size = x.type.dim(axis)
    if isinstance(size, int) and max(taken)[0] >= size:
        return None
    made = Builder()
    return made.steps({path: made.add(ir.Select(axis, path[0]), x) for path in taken})


@reads("gather", makes=ir.GatherElements)
def _gather(call: Call) -> Lowered | None:
    """``(x, dim, index)``."""
    x, dim, index = call.value(0), call.get(1, "dim"), call.value(2, "index")
    if not x.type.rank or x.type.rank != index.type.rank or type(dim) is not int:
        return None
    return ir.GatherElements(axis_of(dim, x.type.rank)), [x, index]


_ORDERED = "of equal numbers, the first ones come first"


@reads_pieces("topk", makes=ir.TopK, note=f"{_ORDERED}; a known number of them, sorted")
def _top_k(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(x, k, dim, largest, sorted)`` gives ``(numbers, indices)``."""
    x, rank = ranked(call)
    k, dim = ints([call.get(1, "k"), call.get(2, "dim", -1)], 2)
    if not call.get(4, "sorted", True):
        raise LeftAlone("its results have no defined order")
    return _ordered(x, ir.TopK(k, axis_of(dim, rank), bool(call.get(3, "largest", True))))


@reads_pieces("sort", makes=ir.TopK, note=f"{_ORDERED}; along an axis of known size")
def _sort(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(x, dim, descending, stable=...)`` gives ``(numbers, indices)``."""
    x, rank = ranked(call)
    (dim,) = ints([call.get(1, "dim", -1)], 1)
    axis, descending = axis_of(dim, rank), call.get(2, "descending", False)
    size = call.bounded(x).dim(axis)
    if not isinstance(size, int):
        raise LeftAlone(f"the size of axis {axis} is not known")
    return _ordered(x, ir.TopK(size, axis, bool(descending)))


def _ordered(x: Value, op: ir.TopK) -> Steps:
    made = Builder()
    step = made.add(op, x)
    return made.steps({(i,): step.of(i) for i in range(2)})

"""What torch's views, slices and pieces are in the IR.

Calls that give several tensors (``split``, ``chunk``, ``unbind``) are read together with the ``getitem`` calls
that take them apart: FX has a node for each, the IR has one node, or one for each result.
"""

from __future__ import annotations

from typing import Any

from .... import ir
from ....ir import Value
from ....ir.ops.base import axis_of
from ...lowering import Lowered, slicing
from ..call import Call, ints

_END = 2**63 - 1
"""An end that is open, as ONNX and ATen write it."""

_REDUCTIONS = {"sum": "sum", "amax": "max", "amin": "min"}


def reduction(kind: str) -> Any:
    """``(x, dim, keepdim)``."""

    def rule(call: Call) -> Lowered | None:
        x, dim = call.value(0), call.get(1, "dim")
        rank, dtype = x.type.rank, x.type.dtype
        if rank is None or dtype is None or not dtype.is_float:
            return None  # torch adds integers up in a wider type.
        if call.kwargs.get("dtype") is not None:
            return None
        axes = ints(dim, 1) if dim not in (None, (), []) else tuple(range(rank))
        keep = bool(call.get(2, "keepdim", False))
        return ir.Reduce(kind, tuple(sorted(axis_of(a, rank) for a in axes)), keep), [x]

    return rule


def select(call: Call) -> Lowered | None:
    """``(x, dim, index)``."""
    (x, rank), (axis, index) = _ranked(call), ints([call.get(1, "dim"), call.get(2, "index")], 2)
    return ir.Select(axis_of(axis, rank), index), [x]


def narrow(call: Call) -> Lowered | None:
    """``(x, dim, start, length)``."""
    x, rank = _ranked(call)
    axis, start, length = ints(
        [call.get(i, n) for i, n in ((1, "dim"), (2, "start"), (3, "length"))], 3
    )
    if start < 0:
        return None
    return slicing(call.certain(x), (start,), (start + length,), (axis_of(axis, rank),), (1,)), [x]


def slice_(call: Call) -> Lowered | None:
    """ATen's ``(x, dim, start, end, step)``."""
    x, rank = _ranked(call)
    axis = axis_of(call.get(1, "dim", 0), rank)
    return _sliced(
        call, x, {axis: slice(call.get(2, "start"), call.get(3, "end"), call.get(4, "step", 1))}
    )


def getitem(call: Call) -> Lowered | None:
    """``x[...]`` where it is one op: slices, one integer, or new axes."""
    x, rank = _ranked(call)
    index = call.get(1, "index")
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(p is Ellipsis for p in parts):
        place = next(i for i, p in enumerate(parts) if p is Ellipsis)
        taken = sum(p is not None for p in parts) - 1
        parts[place : place + 1] = [slice(None)] * (rank - taken)
    if len([p for p in parts if p is not None]) > rank:
        return None
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
        start = 0 if part.start is None else part.start
        end = _END if part.stop is None else part.stop
        step = 1 if part.step is None else part.step
        starts.append(start)
        ends.append(end)
        steps.append(step)
    n = len(cut)
    if min(ints(steps, n)) < 1:
        return None
    return slicing(call.certain(x), ints(starts, n), ints(ends, n), tuple(cut), steps), [x]


def unsqueeze(call: Call) -> Lowered | None:
    """``(x, dim)``."""
    x, rank = _ranked(call)
    (axis,) = ints(call.get(1, "dim"), 1)
    return ir.Unsqueeze((axis_of(axis, rank + 1),)), [x]


def squeeze(call: Call) -> Lowered | None:
    """``(x, dim)``; axes that are not of size 1 stay, so sizes must be known."""
    x, rank = _ranked(call)
    dim = call.get(1, "dim")
    axes = ints(dim, 1) if dim is not None else tuple(range(rank))
    axes = tuple(sorted({axis_of(a, rank) for a in axes}))
    sizes = [x.type.dim(a) for a in axes]
    if not all(isinstance(s, int) for s in sizes):
        return None
    gone = tuple(a for a, s in zip(axes, sizes, strict=True) if s == 1)
    return (ir.Squeeze(gone), [x]) if gone else None


def movedim(call: Call) -> Lowered | None:
    """``(x, source, destination)``."""
    x, rank = _ranked(call)
    source = [axis_of(a, rank) for a in ints(call.get(1, "source"), 1)]
    target = [axis_of(a, rank) for a in ints(call.get(2, "destination"), 1)]
    rest = iter([a for a in range(rank) if a not in source])
    moved = dict(zip(target, source, strict=True))
    return ir.Transpose(tuple(moved[a] if a in moved else next(rest) for a in range(rank))), [x]


def split_sizes(name: str, call: Call) -> tuple[tuple[int, ...], int] | None:
    """The sizes and the axis of ``split`` and ``chunk``; ``None`` where they are not known."""
    x, rank = _ranked(call)
    axis = axis_of(call.get(2, "dim", 0), rank)
    total = call.certain(x).dim(axis)
    given = call.get(1, "chunks" if name == "chunk" else "split_size_or_sections", call.kwargs.get(
        "split_size", call.kwargs.get("split_sizes")))  # fmt: skip
    if isinstance(given, (list, tuple)) and name != "chunk":
        return ints(list(given), len(given)), axis
    if type(given) is not int or not isinstance(total, int) or given < 1 or total < 1:
        return None
    size = -(-total // given) if name == "chunk" else given
    return tuple(min(size, total - at) for at in range(0, total, size)), axis


def unbind_axis(call: Call) -> tuple[Value, int]:
    """What ``unbind`` takes apart, along which axis.

    Raises:
        TypeError: If its rank is not known.
    """
    x, rank = _ranked(call)
    return x, axis_of(call.get(1, "dim", 0), rank)


def _ranked(call: Call) -> tuple[Value, int]:
    x = call.value(0)
    if x.type.rank is None:
        raise TypeError("the rank is not known")
    return x, x.type.rank


SHAPE_CALLS = {
    **{name: reduction(kind) for name, kind in _REDUCTIONS.items()},
    "getitem": getitem, "movedim": movedim, "moveaxis": movedim, "narrow": narrow, "select": select,
    "slice": slice_, "squeeze": squeeze, "unsqueeze": unsqueeze,
}  # fmt: skip

PIECES = ("split", "split_with_sizes", "chunk")
"""Calls that cut a tensor along one axis."""

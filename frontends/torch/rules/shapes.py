"""torch calls that change shapes: reshapes, permutations, new axes, joins, pads, repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .... import ir
from ....ir import Value
from ....ir.ops.base import axis_of
from ...lowering import Lowered, Steps
from ...lowering.base import Builder
from ...lowering.shapes import MOST_COPIES, expanding, repeated, reshaping
from ...support import LeftAlone
from ..call import Call, Followed, Free, flattened, ints, ranked
from ..registry import Memory, reads, reads_module

VIEW, SHARED = Memory.VIEW, Memory.SHARED


@reads("flatten", makes=[ir.Flatten, ir.Reshape], note="a known rank", memory=VIEW)
def _flatten(call: Call) -> Lowered | None:
    """``(x, start_dim, end_dim)``: a Flatten from axis 1 on, a Reshape where other axes stay."""
    x = call.value(0)
    start, end, rank = call.get(1, "start_dim", 0), call.get(2, "end_dim", -1), x.type.rank
    if rank is None:
        return (ir.Flatten(1), [x]) if (start, end) == (1, -1) else None
    start, end = axis_of(start, rank), axis_of(end, rank)
    if (start, end) == (1, rank - 1):
        return ir.Flatten(1), [x]
    if start >= end:
        return None
    sizes = [x.type.dim(a) for a in range(rank)]
    rest = sizes[end + 1 :]
    if None in rest or 0 in rest:
        return None
    joined = sizes[start : end + 1]
    # The size of batches stays open, and so does what is not known.
    product = -1 if start == 0 or None in joined else math.prod(d for d in joined if d is not None)
    return reshaping(x.type, (*sizes[:start], product, *rest)), [x]


reads_module(nn.Flatten, call="flatten", fields="start_dim end_dim")


@reads("reshape", "view", makes=[ir.Reshape, ir.Flatten], memory=VIEW)
def _reshape(call: Call) -> Lowered | None:
    """``(x, shape)`` or ``(x, *sizes)`` of known integers."""
    x, shape = call.value(0), call.get(1, "shape", call.kwargs.get("size"))
    if isinstance(shape, torch.dtype):
        return None  # The same bytes as other numbers.
    return _reshaped(call, x, flattened(call, 1, "shape"))


@reads("_unsafe_view", makes=[ir.Reshape, ir.Flatten], memory=SHARED)
def _unsafe_view(call: Call) -> Lowered | None:
    return _reshape(call)


def _reshaped(call: Call, x: Value, sizes: Sequence[Any]) -> Lowered | None:
    target: list[int | None] = []
    copied = [
        isinstance(size, Free) and i < (x.type.rank or 0) and call.same_size(x, i, size)
        for i, size in enumerate(sizes)
    ]
    left = [
        s
        for s, same in zip(sizes, copied, strict=True)
        if s == -1 or (isinstance(s, Free) and not same)
    ]
    for size, same in zip(sizes, copied, strict=True):
        # What is the size of the same axis already is copied; another one is what is left.
        if same:
            target.append(None)
        elif isinstance(size, Free) and (len(left) == 1 or not isinstance(size, Followed)):
            target.append(-1)
        else:
            target += ints(call.shaping(size), 1)
    # Numbers alone fit no other batch; beside -1 they would be as they are for any.
    kind = call.certain(x) if -1 in target else x.type
    return (reshaping(kind, tuple(target)), [x]) if target.count(-1) < 2 else None


@reads("reshape_as", "view_as", makes=[ir.Reshape, ir.Flatten], note="known sizes", memory=VIEW)
def _reshape_as(call: Call) -> Lowered | None:
    """``(x, other)``: the size of batches is what the others leave."""
    other = call.value(1, "other")
    sizes = [_size_of(call, other, axis) for axis in range(1, other.type.rank or 0)]
    if not other.type.rank or None in sizes:
        return None
    return _reshaped(call, call.value(0), (-1, *sizes))


def _size_of(call: Call, x: Value, axis: int) -> Any:
    """The size of an axis, marked where other inputs would change it."""
    size = x.type.dim(axis)
    follows = isinstance(x.host, str) and call.runs.follows(x.host, axis)
    if type(size) is not int or not isinstance(x.host, str) or not follows:
        return size
    return Followed(size, (x.host, axis), runs=call.runs.sizes(x.host, axis) or ())


@reads("unflatten", makes=ir.Reshape, note="a known rank", memory=SHARED)
def _unflatten(call: Call) -> Lowered | None:
    """``(x, dim, sizes)``: one axis becomes several; the others are copied."""
    x, rank = ranked(call)
    axis = axis_of(call.get(1, "dim"), rank)
    sizes = call.get(2, "sizes", call.kwargs.get("unflattened_size"))
    inner: list[int] = [-1 if isinstance(size, Free) else ints(size, 1)[0] for size in sizes]
    certain = call.certain(x)
    total, known = certain.dim(axis), math.prod(size for size in inner if size != -1)
    if inner.count(-1) == 1 and isinstance(total, int) and known:
        inner[inner.index(-1)] = total // known
    ahead = [certain.dim(a) if a else None for a in range(axis)]
    behind = [certain.dim(a) for a in range(axis + 1, rank)]
    if sum(not isinstance(d, int) for d in behind) + inner.count(-1) > 1:
        return None
    return reshaping(certain, (*ahead, *inner, *(-1 if d is None else d for d in behind))), [x]


reads_module(nn.Unflatten, call="unflatten", fields="dim", sizes="unflattened_size")


@reads("permute", makes=ir.Transpose, memory=VIEW)
def _permute(call: Call) -> Lowered | None:
    """``(x, dims)`` or ``(x, *dims)``."""
    dims = flattened(call, 1, "dims")
    perm = ints(list(dims), len(dims))
    return ir.Transpose(tuple(p % len(perm) for p in perm)), [call.value(0)]


@reads("transpose", makes=ir.Transpose, memory=VIEW)
def _transpose(call: Call) -> Lowered | None:
    """``(x, dim0, dim1)``."""
    (x, rank), a, b = ranked(call), call.get(1, "dim0"), call.get(2, "dim1")
    perm = list(range(rank))
    perm[a], perm[b] = perm[b], perm[a]
    return ir.Transpose(tuple(perm)), [x]


@reads("swapaxes", "swapdims", makes=ir.Transpose, memory=SHARED)
def _swap(call: Call) -> Lowered | None:
    """``(x, axis0, axis1)``."""
    a = call.get(1, "axis0", call.kwargs.get("dim0"))
    b = call.get(2, "axis1", call.kwargs.get("dim1"))
    return _transpose(call.again(call.value(0), a, b))


@reads("t", makes=ir.Transpose, note="of two axes", memory=VIEW)
def _matrix_transpose(call: Call) -> Lowered | None:
    x = call.value(0)
    return (ir.Transpose((1, 0)), [x]) if x.type.rank == 2 else None


@reads("movedim", "moveaxis", makes=ir.Transpose, memory=SHARED)
def _movedim(call: Call) -> Lowered | None:
    """``(x, source, destination)``."""
    x, rank = ranked(call)
    source = [axis_of(a, rank) for a in ints(call.get(1, "source"), 1)]
    target = [axis_of(a, rank) for a in ints(call.get(2, "destination"), 1)]
    rest = iter([a for a in range(rank) if a not in source])
    moved = dict(zip(target, source, strict=True))
    return ir.Transpose(tuple(moved[a] if a in moved else next(rest) for a in range(rank))), [x]


@reads("unsqueeze", makes=ir.Unsqueeze, memory=VIEW)
def _unsqueeze(call: Call) -> Lowered | None:
    """``(x, dim)``."""
    x, rank = ranked(call)
    (axis,) = ints(call.get(1, "dim"), 1)
    return ir.Unsqueeze((axis_of(axis, rank + 1),)), [x]


@reads("squeeze", makes=ir.Squeeze, note="known sizes", memory=VIEW)
def _squeeze(call: Call) -> Lowered | None:
    """``(x, dim)``; axes that are not of size 1 stay, so sizes must be known."""
    x, rank = ranked(call)
    dim = call.get(1, "dim")
    axes = ints(dim, 1) if dim is not None else tuple(range(rank))
    axes = tuple(sorted({axis_of(a, rank) for a in axes}))
    sizes = [x.type.dim(a) for a in axes]
    if not all(isinstance(s, int) for s in sizes):
        return None
    gone = tuple(a for a, s in zip(axes, sizes, strict=True) if s == 1)
    return (ir.Squeeze(gone), [x]) if gone else None


@reads("cat", "concat", "concatenate", makes=ir.Concat)
def _concat(call: Call) -> Lowered | None:
    """``(tensors, dim)``."""
    tensors, dim = call.get(0, "tensors"), call.get(1, "dim", 0)
    if not isinstance(tensors, (list, tuple)) or not all(isinstance(t, Value) for t in tensors):
        return None
    rank = tensors[0].type.rank
    if rank is None and dim < 0:
        return None
    return ir.Concat(dim % rank if rank else dim), list(tensors)


@reads("stack", makes=[ir.Unsqueeze, ir.Concat], several=True)
def _stack(call: Call) -> Steps | None:
    """``(tensors, dim)``: a new axis in each, and a concatenation along it."""
    tensors, dim = call.get(0, "tensors"), call.get(1, "dim", 0)
    if not isinstance(tensors, (list, tuple)) or not all(isinstance(t, Value) for t in tensors):
        return None
    rank = tensors[0].type.rank
    if rank is None or len({t.type.dtype for t in tensors}) != 1:
        return None
    made, axis = Builder(), axis_of(dim, rank + 1)
    made.add(ir.Concat(axis), *[made.add(ir.Unsqueeze((axis,)), t) for t in tensors])
    return made.steps()


@reads(
    "expand",
    makes=[ir.Expand, ir.Identity],
    note="sizes that are known, or those of another value's axes",
    memory=VIEW,
)
def _expand(call: Call) -> Lowered | None:
    """``(x, *sizes)``; -1 keeps a size."""
    sizes = flattened(call, 1, "size")
    targets = [d.place if isinstance(d, Free) else ints(d, 1)[0] for d in sizes]
    return expanding(call.value(0), [1 if d == -1 else d for d in targets], call.roots)


@reads("expand_as", makes=[ir.Expand, ir.Identity], memory=SHARED)
def _expand_as(call: Call) -> Lowered | None:
    """``(x, other)``: the size of batches, and what is not known, is that of the other one."""
    other = call.value(1, "other")
    if other.type.shape is None:
        return None
    targets = [
        d if axis > 0 and isinstance(d, int) else call.roots.root(other, axis)
        for axis, d in enumerate(other.type.shape)
    ]
    return expanding(call.value(0), targets, call.roots)


@reads("repeat", "tile", makes=[ir.Concat, ir.Expand], note="up to 16 copies", several=True)
def _repeat(call: Call) -> Lowered | Steps | None:
    """``(x, *repeats)``: copies side by side along each axis."""
    x, rank = ranked(call)
    found = flattened(call, 1, "repeats" if "repeats" in call.kwargs else "dims")
    times = ints(list(found), len(found))
    if min(times) < 1 or len(times) > rank or max(times) > MOST_COPIES:
        raise LeftAlone(f"it repeats by {times} a tensor of {rank} axes")
    made = Builder()
    copied: Any = x
    for axis, count in enumerate(times, rank - len(times)):
        if count > 1:
            copied = made.chain(repeated(copied, axis, count))
    return made.steps() if made.parts else (ir.Identity(), [x])


@reads("roll", makes=[ir.Slice, ir.Concat], note="along axes of known size", several=True)
def _roll(call: Call) -> Steps | None:
    """``(x, shifts, dims)``: what is shifted out behind comes in front."""
    (x, rank), shifts, dims = ranked(call), call.get(1, "shifts"), call.get(2, "dims")
    if dims in (None, (), []):
        raise LeftAlone("it rolls the flattened tensor")
    amounts, axes = ints(shifts, 1), ints(dims, 1)
    made, certain = Builder(), call.certain(x)
    rolled: Any = x
    for amount, axis in zip(amounts, axes, strict=True):
        own = axis_of(axis, rank)
        size = certain.dim(own)
        if not isinstance(size, int) or not size:
            raise LeftAlone(f"the size of axis {own} is not known")
        if amount % size == 0:
            continue
        cut = size - amount % size
        front = made.add(ir.Slice((0,), (cut,), (own,), (1,)), rolled)
        back = made.add(ir.Slice((cut,), (size,), (own,), (1,)), rolled)
        rolled = made.add(ir.Concat(own), back, front)
    if not made.parts:
        raise LeftAlone("it moves nothing")
    return made.steps()


PAD_MODES = {
    "zeros": "constant", "constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap",
}  # fmt: skip
"""torch's modes of padding and the IR's."""


@reads("pad", makes=ir.Pad, note="constant amounts")
def _pad(call: Call) -> Lowered | None:
    """``(x, pad, mode, value)``: torch counts from the last axis backwards."""
    (x, rank), amounts, mode = ranked(call), call.get(1, "pad"), call.get(2, "mode", "constant")
    amounts = ints(amounts, len(amounts))
    begins, ends = [0] * rank, [0] * rank
    for i in range(len(amounts) // 2):
        begins[rank - 1 - i], ends[rank - 1 - i] = amounts[2 * i], amounts[2 * i + 1]
    value = float(call.get(3, "value") or 0.0) if mode == "constant" else 0.0
    return ir.Pad((*begins, *ends), PAD_MODES[mode], value), [x]


@reads("constant_pad_nd", makes=ir.Pad, note="constant amounts")
def _constant_pad(call: Call) -> Lowered | None:
    """ATen's ``(x, pad, value)``."""
    return _pad(call.again(call.value(0), call.get(1, "pad"), "constant", call.get(2, "value", 0)))


def _pad_modules() -> None:
    for n in (1, 2, 3):
        for kind in ("Constant", "Zero"):
            module = getattr(nn, f"{kind}Pad{n}d")
            reads_module(module, call="pad", pad="padding", value="value")
        for kind, name in (
            ("Reflection", "reflect"),
            ("Replication", "replicate"),
            ("Circular", "circular"),
        ):
            module = getattr(nn, f"{kind}Pad{n}d")
            reads_module(module, call="pad", constants={"mode": name}, pad="padding")


_pad_modules()

"""Calls that pick, scatter, sort and count elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....ir import DType, TensorType, Value
from .arithmetic import operand
from .call import Call, NotWritten, Number, Size, whole, writes

_END = 2**63 - 1


@writes("getitem")
def getitem(call: Call) -> Any:
    """An element of a list; of a tensor: slices, numbers, new axes, and tensors of indices that follow each other."""
    x, index = call.get(0, "x"), call.get(1, "index")
    if not isinstance(x, Value):
        if isinstance(x, (list, tuple)) and isinstance(index, (int, slice)):
            return x[index]
        raise NotWritten("it takes an element at a computed place")
    return picked(call, x, list(index) if isinstance(index, tuple) else [index])


@writes("index")
def index(call: Call) -> Value:
    """ATen's ``(x, indices)``, one an axis or ``None``."""
    return picked(
        call, call.tensor(0), [slice(None) if i is None else i for i in call.get(1, "indices")]
    )


def picked(call: Call, x: Value, parts: list[Any]) -> Value:
    """``x[parts]``."""
    rank = call.out.rank(x)
    if any(p is Ellipsis for p in parts):
        place = next(i for i, p in enumerate(parts) if p is Ellipsis)
        taken = sum(p is not None for p in parts) - 1
        parts[place : place + 1] = [slice(None)] * (rank - taken)
    tensors = [i for i, p in enumerate(parts) if isinstance(p, Value)]
    if not tensors:
        return _cut(call, x, parts)
    if any(p is None for p in parts):
        raise NotWritten("it has new axes beside tensors of indices")
    # A tensor of bytes is a mask, not one of indices.
    parts = [call.out.cast(p, DType.BOOL) if _is_bytes(p) else p for p in parts]
    if any(p.type.dtype is DType.BOOL for p in parts if isinstance(p, Value)):
        return _masked(call, x, parts)
    if tensors[-1] - tensors[0] + 1 != len(tensors):
        raise NotWritten("its tensors of indices do not follow each other")
    start = tensors[0]
    if any(p != slice(None) for p in parts[:start]) or any(
        p != slice(None) for p in parts[tensors[-1] + 1 :]
    ):
        raise NotWritten("it has slices beside tensors of indices")
    if len(tensors) == 1:
        return call.op("Gather", x, _wide(call, parts[start]), axis=start)
    # The axes in front come last, are picked from, and go back.
    joined = _joined(call, parts[start : tensors[-1] + 1])
    if start:
        perm = [*range(start, rank), *range(start)]
        x = call.out.op("Transpose", x, type=TensorType(x.type.dtype, (None,) * rank), perm=perm)
    made = call.out.op("GatherND", x, joined)
    if not start:
        return made
    count = max(call.out.rank(p) for p in parts if isinstance(p, Value))
    total = count + rank - len(tensors)
    perm = [*range(total - start, total), *range(total - start)]
    return call.op("Transpose", made, perm=perm)


def _is_bytes(index: Any) -> bool:
    return isinstance(index, Value) and index.type.dtype is DType.U8


def _wide(call: Call, x: Value) -> Value:
    return x if x.type.dtype in (DType.I32, DType.I64) else call.out.cast(x, DType.I64)


def _joined(call: Call, indices: Sequence[Any]) -> Value:
    """Indices of several axes as vectors along a last axis, in the shape that they have together."""
    wide = [call.out.cast(i, DType.I64) for i in indices]
    alike = len({i.type.static_shape for i in wide}) == 1 and wide[0].type.static_shape is not None
    if not alike and len(wide) > 1:
        total = wide[0]
        for i in wide[1:]:
            total = call.out.op("Add", total, i)
        shape = call.out.op("Shape", total, type=TensorType(DType.I64))
        wide = [call.out.op("Expand", i, shape) for i in wide]
    parts = [call.out.op("Unsqueeze", i, call.out.ints(-1)) for i in wide]
    return call.out.op("Concat", *parts, axis=-1) if len(parts) > 1 else parts[0]


def _masked(call: Call, x: Value, parts: Sequence[Any]) -> Value:
    """``x[mask]``: the elements, or slices, where a mask of the first axes is true."""
    mask = parts[0]
    if len(parts) != 1 or not isinstance(mask, Value):
        raise NotWritten("it has a mask beside other indices")
    if call.out.rank(mask) == 0:
        raise NotWritten("its mask has no axes")
    return call.op("GatherND", x, _places(call, mask))


def _places(call: Call, x: Value) -> Value:
    """Where a tensor is not 0, a row each."""
    found = call.out.op("NonZero", x, type=TensorType(DType.I64, (x.type.rank, None)))
    return call.out.op(
        "Transpose", found, type=TensorType(DType.I64, (None, x.type.rank)), perm=[1, 0]
    )


def _cut(call: Call, x: Value, parts: Sequence[Any]) -> Value:
    """Slices, numbers and new axes."""
    starts: list[Size] = []
    ends: list[Size] = []
    steps: list[Size] = []
    axes: list[int] = []
    gone: list[int] = []
    new: list[int] = []
    axis = place = 0
    for part in parts:
        if part is None:
            new.append(place)
            place += 1
            continue
        if isinstance(part, slice):
            if part != slice(None):
                starts.append(0 if part.start is None else whole(call.out, part.start, "start"))
                ends.append(_END if part.stop is None else whole(call.out, part.stop, "stop"))
                steps.append(1 if part.step is None else whole(call.out, part.step, "step"))
                axes.append(axis)
            place += 1
        else:
            at = whole(call.out, part, "index")
            if isinstance(at, Number):
                raise NotWritten("its index is computed")
            starts.append(at)
            ends.append(at + 1 if at != -1 else _END)
            steps.append(1)
            axes.append(axis)
            gone.append(axis)
        axis += 1
    made = x
    if axes:
        vectors = [call.out.vector(v) for v in (starts, ends, axes, steps)]
        made = call.out.op("Slice", made, *vectors)
    if gone:
        made = call.out.op("Squeeze", made, call.out.ints(*gone))
    if new:
        made = call.out.op("Unsqueeze", made, call.out.ints(*new))
    return made if made is not x else call.op("Identity", x)


@writes("select")
def select(call: Call) -> Value:
    """``(x, dim, index)``."""
    x, at = call.tensor(0), call.size(2, "index")
    return call.op("Gather", x, call.out.scalar(at, DType.I64), axis=call.axis(x, 1))


@writes("narrow")
def narrow(call: Call) -> Value:
    """``(x, dim, start, length)``."""
    x, start, length = call.tensor(0), call.get(2, "start"), call.size(3, "length")
    if isinstance(start, Value):
        start = call.out.item(start)
    axis, out = call.axis(x, 1), call.out
    if isinstance(start, Number):
        # A negative one is counted from the end, where the piece may end too.
        size = out.size(x, axis)
        start = out.modulo(out.arithmetic("Add", start, size), out.arithmetic("Max", size, 1))
    end = out.arithmetic("Add", start, length)
    if isinstance(start, int) and start < 0 and isinstance(length, int) and end == 0:
        end = _END
    return call.op("Slice", x, *(out.vector([n]) for n in (start, end, axis)))


@writes("index_select")
def index_select(call: Call) -> Value:
    """``(x, dim, indices)``."""
    x = call.tensor(0)
    return call.op("Gather", x, _wide(call, call.tensor(2, "index")), axis=call.axis(x, 1))


@writes("gather")
def gather(call: Call) -> Value:
    """``(x, dim, indices)``."""
    x = call.tensor(0)
    return call.op("GatherElements", x, _wide(call, call.tensor(2, "index")), axis=call.axis(x, 1))


@writes("nonzero", "argwhere")
def nonzero(call: Call) -> Value:
    """The places of what is not 0, a row each."""
    if call.flag(1, "as_tuple"):
        raise NotWritten("it gives places as a tuple")
    x = call.tensor(0)
    if call.out.rank(x) == 0:
        raise NotWritten("its input has no axes")
    return _places(call, x)


_REDUCTIONS = {
    "sum": "add",
    "add": "add",
    "prod": "mul",
    "multiply": "mul",
    "amax": "max",
    "amin": "min",
}


@writes("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> Value:
    """``(x, dim, indices, updates, reduce)``."""
    x, indices, updates = (
        call.tensor(0),
        call.tensor(2, "index"),
        call.get(3, "src", call.kwargs.get("value")),
    )
    reduction = "sum" if call.name == "scatter_add" else call.get(4, "reduce")
    whole = call.flag(5, "include_self", True)
    mean = reduction == "mean" and call.dtype.is_float
    if not whole and not mean:
        raise NotWritten("it leaves out what is in the places before")
    if reduction is not None and reduction not in _REDUCTIONS and not mean:
        raise NotWritten(f"ONNX has no scatter with {reduction}")
    if not isinstance(updates, Value):
        number = call.out.scalar(updates, call.dtype)
        updates = call.out.op("Expand", number, call.out.shape(indices))
    elif (
        indices.type.static_shape is None or indices.type.static_shape != updates.type.static_shape
    ):
        # torch reads the first updates alone, as many as there are indices.
        n = call.out.rank(indices)
        if x.type.dtype is None:
            raise NotWritten("the element type of its input is not known")
        updates = call.out.op(
            "Slice",
            updates,
            call.out.ints(*[0] * n),
            call.out.shape(indices),
            call.out.ints(*range(n)),
        )
    places, axis = _wide(call, indices), call.axis(x, 1)
    if mean:
        return _scattered_mean(call, x, places, updates, axis, whole)
    attrs = {} if reduction is None else {"reduction": _REDUCTIONS[reduction]}
    return call.op("ScatterElements", x, places, updates, axis=axis, **attrs)


def _scattered_mean(
    call: Call, x: Value, places: Value, updates: Value, axis: int, whole: bool
) -> Value:
    """The means of the updates of each place, with what is there before if ``whole``: their sums over their numbers."""
    out = call.out
    one = out.scalar(1, call.dtype)
    ones = out.op("Expand", one, out.shape(places))
    counts = out.op("Expand", one, out.shape(x))
    if not whole:
        zeros = out.op("Expand", out.scalar(0, call.dtype), out.shape(places))
        x, counts = (out.op("ScatterElements", v, places, zeros, axis=axis) for v in (x, counts))
    total, count = (
        out.op("ScatterElements", v, places, added, axis=axis, reduction="add")
        for v, added in ((x, updates), (counts, ones))
    )
    return call.op("Div", total, count)


@writes("index_put")
def index_put(call: Call) -> Value:
    """``(x, indices, updates, accumulate)`` of indices of the first axes."""
    x, indices, updates = call.tensor(0), call.get(1, "indices"), call.tensor(2, "values")
    if not all(isinstance(i, Value) and i.type.dtype is not DType.BOOL for i in indices):
        raise NotWritten("its indices are no tensors of integers of the first axes")
    if any(_is_bytes(i) for i in indices):
        raise NotWritten("its mask is of bytes, not of booleans")
    joined = _joined(call, indices)
    places = max(call.out.rank(i) for i in indices)
    rest = call.out.rank(x) - len(indices)
    if call.out.rank(updates) != places + rest:
        raise NotWritten("it repeats its updates")
    # ONNX does not repeat updates along axes of size 1.
    shape = call.out.op("Shape", call.out.op("GatherND", x, joined), type=TensorType(DType.I64))
    wide = call.out.op("Expand", updates, shape)
    known = updates.type.static_shape
    sizes = {i.type.static_shape for i in indices}
    if (
        known is not None
        and len(sizes) == 1
        and None not in sizes
        and x.type.static_shape is not None
    ):
        (first,) = sizes
        if known == (*(first or ()), *x.type.static_shape[len(indices) :]):
            wide = updates
    attrs = {"reduction": "add"} if call.flag(3, "accumulate") else {}
    return call.op("ScatterND", x, joined, wide, **attrs)


@writes("unique")
def unique(call: Call) -> Any:
    """``(x, sorted, inverse, counts, dim)``."""
    x, dim = call.tensor(0), call.get(4, "dim")
    inverse, counts = call.flag(2, "return_inverse"), call.flag(3, "return_counts")
    kinds = [TensorType(x.type.dtype), *[TensorType(DType.I64)] * 3]
    attrs = {} if dim is None else {"axis": call.axis(x, 4)}
    values, _, places, numbers = call.out.node("Unique", [x], kinds, sorted=1, **attrs)
    if inverse and dim is None and call.out.rank(x) != 1:
        places = call.out.op("Reshape", places, call.out.shape(x))
    found = [values, *([places] if inverse else []), *([numbers] if counts else [])]
    return found if len(found) > 1 else values


@writes("argmax", "argmin")
def place(call: Call) -> Value:
    """``(x, dim, keepdim)``."""
    x, dim = call.tensor(0), call.get(1, "dim")
    if dim is None:
        x, axis = call.out.op("Reshape", x, call.out.ints(-1)), 0
        if call.flag(2, "keepdim"):
            raise NotWritten("it keeps axes that it joins")
    else:
        axis = call.axis(x, 1)
    kind = "ArgMax" if call.name == "argmax" else "ArgMin"
    return call.op(kind, x, axis=axis, keepdims=int(call.flag(2, "keepdim")))


@writes("one_hot")
def one_hot(call: Call) -> Value:
    """``(x, classes)``."""
    classes = call.size(1, "num_classes")
    if classes == -1:
        raise NotWritten("it counts its classes")
    values = call.out.ints(0, 1)
    return call.op("OneHot", call.tensor(0), call.out.scalar(classes, DType.I64), values, axis=-1)


@writes("masked_select")
def masked_select(call: Call) -> Value:
    """``(x, mask)`` of one shape."""
    x, mask = call.tensor(0), call.tensor(1, "mask")
    if x.type.static_shape is None or x.type.static_shape != mask.type.static_shape:
        raise NotWritten("its mask has another shape, or one that is not known")
    return call.op("GatherND", x, _places(call, mask))


__all__ = ["operand", "picked"]

"""Numbers in order: sorted ones, medians, and running extrema.

Of equal numbers ONNX's ``TopK`` gives the first place, where torch documents no place or, for a stable sort, the same. onnxruntime puts a
NaN anywhere, so that calls which torch documents to hand on a NaN look for it themselves. A call that has no exact form in ONNX
(``mode``, ``nanmedian``) has no rule here.
"""

from __future__ import annotations

from ....ir import DType, TensorType, Value
from .call import Call, NotWritten, Size, Writer, writes


def sorted_along(out: Writer, x: Value, axis: int, count: Size, largest: bool) -> list[Value]:
    """The first numbers along an axis in descending or ascending order, and their places.

    Args:
        out: Appends nodes.
        x: The numbers.
        axis: The axis.
        count: How many of them.
        largest: In descending order.
    """
    dtype = x.type.dtype
    if out.rank(x) == 0:
        raise NotWritten("its input has no axes")
    if dtype is None or dtype is DType.BOOL:
        raise NotWritten("its numbers have no order in ONNX")
    known, shape = x.type.shape, None
    if known is not None:
        size = count if isinstance(count, int) else None
        shape = tuple(size if a == axis else n for a, n in enumerate(known))
    types = [TensorType(dtype, shape), TensorType(DType.I64, shape)]
    counts = out.vector([count])
    return list(out.node("TopK", [x, counts], types, axis=axis, largest=int(largest), sorted=1))


@writes("sort")
def sort(call: Call) -> list[Value]:
    """``(x, dim, descending, stable)``."""
    x = call.tensor(0)
    axis = call.axis(x, 1, "dim", -1)
    return sorted_along(call.out, x, axis, call.out.size(x, axis), call.flag(2, "descending"))


@writes("argsort")
def argsort(call: Call) -> Value:
    """``(x, dim, descending, stable)``."""
    x = call.tensor(0)
    axis = call.axis(x, 1, "dim", -1)
    return sorted_along(call.out, x, axis, call.out.size(x, axis), call.flag(2, "descending"))[1]


@writes("msort")
def msort(call: Call) -> Value:
    """``(x)``, along the first axis."""
    x = call.tensor(0)
    return sorted_along(call.out, x, 0, call.out.size(x, 0), False)[0]


@writes("topk")
def topk(call: Call) -> list[Value]:
    """``(x, k, dim, largest, sorted)``."""
    x = call.tensor(0)
    axis = call.axis(x, 2, "dim", -1)
    largest = call.flag(3, "largest", True)
    return sorted_along(call.out, x, axis, call.size(1, "k"), largest)


def _last_of(call: Call, x: Value, axis: int, count: Size, keep: bool) -> list[Value]:
    """The number that is ``count``-th in ascending order along an axis, and its place."""
    out = call.out
    found = []
    for part in sorted_along(out, x, axis, count, False):
        last = out.op("Slice", part, out.ints(-1), out.ints(2**63 - 1), out.ints(axis))
        found.append(last if keep else out.op("Squeeze", last, out.ints(axis)))
    return found


@writes("kthvalue")
def kth(call: Call) -> list[Value]:
    """``(x, k, dim, keepdim)``."""
    x = call.tensor(0)
    axis = call.axis(x, 2, "dim", -1)
    return _last_of(call, x, axis, call.size(1, "k"), call.flag(3, "keepdim"))


@writes("median")
def median(call: Call) -> Value | list[Value]:
    """``(x, dim, keepdim)``: the lower one of two in the middle, or NaN if there is one; of all numbers without an axis."""
    out, x = call.out, call.tensor(0)
    whole, keep = call.get(1, "dim") is None, call.flag(2, "keepdim")
    if whole:
        x = out.op("Reshape", x, out.ints(-1), type=TensorType(x.type.dtype, (None,)))
    axis = 0 if whole else call.axis(x, 1)
    if out.rank(x) == 0:
        raise NotWritten("its input has no axes")
    count = out.floor_divide(out.arithmetic("Add", out.size(x, axis), 1), 2)
    found = _last_of(call, x, axis, count, keep)
    if x.type.dtype is not None and x.type.dtype.is_float:
        nans = out.cast(out.op("IsNaN", x, type=TensorType(DType.BOOL)), DType.I32)
        place = out.op("ArgMax", nans, type=TensorType(DType.I64), axis=axis, keepdims=1)
        number = out.op("GatherElements", x, place, axis=axis)
        if not keep:
            place, number = (out.op("Squeeze", v, out.ints(axis)) for v in (place, number))
        is_nan = out.op("IsNaN", number, type=TensorType(DType.BOOL))
        pairs = zip((number, place), found, strict=True)
        found = [out.op("Where", is_nan, a, b, type=TensorType(a.type.dtype)) for a, b in pairs]
    return found[0] if whole else found


@writes("cummax", "cummin")
def running_extremum(call: Call) -> list[Value]:
    """``(x, dim)``: of equal numbers the last one counts, and a NaN stays.

    A scan in steps of 1, 2, 4, ...: each number is compared with the extremum of the numbers before it.
    """
    out, best = call.out, call.tensor(0)
    axis, dtype = call.axis(best, 1), best.type.dtype
    if out.rank(best) == 0:
        raise NotWritten("its input has no axes")
    size = best.type.dim(axis)
    if not isinstance(size, int):
        raise NotWritten("the size of its axis is not known")
    if dtype is None or dtype is DType.BOOL:
        raise NotWritten("its numbers have no order in ONNX")
    better = "Greater" if call.name == "cummax" else "Less"
    shape = [1] * out.rank(best)
    shape[axis] = size
    count = out.constant([*range(size)], DType.I64)
    counted = out.op("Reshape", count, out.ints(*shape), type=TensorType(DType.I64))
    place = out.op("Expand", counted, out.shape(best), type=TensorType(DType.I64))

    def part(v: Value, first: int, end: int) -> Value:
        return out.op("Slice", v, out.ints(first), out.ints(end), out.ints(axis))

    truth, step = TensorType(DType.BOOL), 1
    while step < size:
        before, own = part(best, 0, size - step), part(best, step, size)
        earlier = out.op(better, before, own, type=truth)
        if dtype.is_float:
            # A NaN compares as false; the last one counts.
            nan = [out.op("IsNaN", v, type=truth) for v in (before, own)]
            earlier = out.op("Or", earlier, nan[0], type=truth)
            earlier = out.op("And", earlier, out.op("Not", nan[1], type=truth), type=truth)
        pair = []
        for v in (best, place):
            own, before = part(v, step, size), part(v, 0, size - step)
            chosen = out.op("Where", earlier, before, own, type=TensorType(v.type.dtype))
            pair.append(out.op("Concat", part(v, 0, step), chosen, axis=axis))
        best, place = pair
        step *= 2
    return [best, place]


__all__ = ["sorted_along"]

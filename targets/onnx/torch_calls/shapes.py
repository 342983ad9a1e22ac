"""Calls that change shapes, by sizes that the module computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....hosts.onnx.tensors import code_of
from ....ir import DType, TensorType, Value
from .call import Call, NotWritten, Number, Size, Writer, dtype_of, writes


@writes("reshape", "view", "_unsafe_view")
def reshape(call: Call) -> Value:
    """``(x, sizes)``; or, of ``view``, the same bytes as another element type."""
    x, first = (
        call.tensor(0),
        call.get(1, "shape", call.kwargs.get("size", call.kwargs.get("dtype"))),
    )
    if not isinstance(first, (int, Number, list, tuple)):
        to = dtype_of(first)
        if x.type.dtype is None or to.bits != x.type.dtype.bits:
            raise NotWritten("it reads bytes as elements of another size")
        return call.op("BitCast", x, to=code_of(to))
    return reshaped(call, x, call.sizes(1, "shape"))


def reshaped(call: Call, x: Value, sizes: Sequence[Size]) -> Value:
    """A tensor in other sizes, of which one may be -1."""
    # In ONNX, a 0 copies a size, unless it is told otherwise.
    zeros = 1 if any(n == 0 or isinstance(n, Number) for n in sizes) else None
    return call.op("Reshape", x, call.out.vector(sizes), allowzero=zeros)


@writes("reshape_as", "view_as")
def reshape_as(call: Call) -> Value:
    """``(x, other)``."""
    return call.op("Reshape", call.tensor(0), call.out.shape(call.tensor(1, "other")), allowzero=1)


@writes("flatten")
def flatten(call: Call) -> Value:
    """``(x, start, end)``."""
    x = call.tensor(0)
    rank = call.out.rank(x)
    start, end = call.known(1, "start_dim", 0), call.known(2, "end_dim", -1)
    if rank == 0:
        return call.op("Reshape", x, call.out.ints(-1))
    start, end = start % rank, end % rank
    if start == end:
        return call.op("Identity", x)
    sizes = call.out.sizes(x)
    joined: Any = 1
    for n in sizes[start : end + 1]:
        joined = call.out.arithmetic("Mul", joined, n)
    return reshaped(call, x, [*sizes[:start], joined, *sizes[end + 1 :]])


@writes("unflatten")
def unflatten(call: Call) -> Value:
    """``(x, dim, sizes)``."""
    x = call.tensor(0)
    axis, sizes = call.axis(x, 1), call.get(2, "sizes")
    own: list[Size] = call.out.sizes(x)
    return reshaped(call, x, [*own[:axis], *sizes, *own[axis + 1 :]])


@writes("expand", "broadcast_to")
def expand(call: Call) -> Value:
    """``(x, sizes)``; -1 keeps a size, which in ONNX is a 1."""
    x = call.tensor(0)
    sizes = [1 if type(n) is int and n == -1 else n for n in call.sizes(1, "size")]
    return call.op("Expand", x, call.out.vector(sizes))


@writes("expand_as")
def expand_as(call: Call) -> Value:
    """``(x, other)``."""
    return call.op("Expand", call.tensor(0), call.out.shape(call.tensor(1, "other")))


@writes("broadcast_tensors")
def broadcast_tensors(call: Call) -> list[Value]:
    """Tensors in the shape that they have together."""
    given = call.args[0] if isinstance(call.args[0], (list, tuple)) else call.args
    made = []
    for x in given:
        for other in given:
            if other is not x:
                x = call.out.op("Expand", x, call.out.shape(other), type=TensorType(x.type.dtype))
        made.append(x)
    return made


@writes("repeat", "tile")
def repeat(call: Call) -> Value:
    """``(x, times)``."""
    x, times = call.tensor(0), call.sizes(1, "repeats" if "repeats" in call.kwargs else "dims")
    rank = call.out.rank(x)
    if len(times) < rank:
        times = [*[1] * (rank - len(times)), *times]
    elif len(times) > rank:
        wide = call.out.vector([*[1] * (len(times) - rank), *call.out.sizes(x)])
        x = call.out.op("Reshape", x, wide)
    return call.op("Tile", x, call.out.vector(times))


def squeezed_axes(dim: Any, rank: int) -> list[int]:
    """The axes that ``squeeze(dim)`` drops if they have size 1, in order."""
    given = range(rank) if dim is None else dim if isinstance(dim, (list, tuple)) else (dim,)
    return sorted({a % max(rank, 1) for a in given if rank})


@writes("squeeze")
def squeeze(call: Call) -> Value:
    """``(x, dim)``: axes of known size 1; others stay, and so does the axis of an open batch."""
    x = call.tensor(0)
    axes = squeezed_axes(call.get(1, "dim"), call.out.rank(x))
    shape = x.type.shape or ()
    if any(shape[a] is None for a in axes):
        raise NotWritten("whether an axis has size 1 is not known")
    if any(isinstance(shape[a], str) for a in axes):
        call.out.keeps_axis(call.out.name)
    axes = [a for a in axes if shape[a] == 1]
    return call.op("Squeeze", x, call.out.ints(*axes)) if axes else call.op("Identity", x)


@writes("unsqueeze")
def unsqueeze(call: Call) -> Value:
    """``(x, dim)``."""
    return call.op("Unsqueeze", call.tensor(0), call.out.ints(call.known(1, "dim")))


@writes("transpose", "swapaxes", "swapdims")
def transpose(call: Call) -> Value:
    """``(x, dim0, dim1)``."""
    x = call.tensor(0)
    perm = list(range(call.out.rank(x)))
    if not perm:
        return call.op("Identity", x)
    a, b = call.known(1, "dim0"), call.known(2, "dim1")
    perm[a], perm[b] = perm[b], perm[a]
    return call.op("Transpose", x, perm=perm)


@writes("permute")
def permute(call: Call) -> Value:
    """``(x, dims)``."""
    x, dims = call.tensor(0), call.sizes(1, "dims")
    rank = call.out.rank(x)
    return call.op("Transpose", x, perm=[d % rank for d in dims if isinstance(d, int)])


@writes("cat", "concat", "concatenate")
def cat(call: Call) -> Value:
    """``(tensors, dim)``."""
    tensors, dim = call.get(0, "tensors"), call.known(1, "dim", 0)
    if not all(isinstance(t, Value) for t in tensors):
        raise NotWritten("it joins what is no tensor")
    if len({call.out.rank(t) for t in tensors}) > 1:
        raise NotWritten("it leaves out an empty vector beside tensors of more axes")
    return call.op("Concat", *(call.out.cast(t, call.dtype) for t in tensors), axis=dim)


@writes("stack")
def stack(call: Call) -> Value:
    """``(tensors, dim)``."""
    tensors, dim = call.get(0, "tensors"), call.known(1, "dim", 0)
    wide = [
        call.out.op("Unsqueeze", call.out.cast(t, call.dtype), call.out.ints(dim)) for t in tensors
    ]
    return call.op("Concat", *wide, axis=dim)


@writes("contiguous", "clone", "detach", "alias", "lift_fresh_copy", "cpu")
def same(call: Call) -> Value:
    """The tensor itself."""
    return call.tensor(0)


@writes("to", "type_as")
def to(call: Call) -> Value:
    """Another element type, or another device, which changes no numbers."""
    return cast(call.out, call.tensor(0), call.dtype)


def cast(out: Writer, x: Value, dtype: DType) -> Value:
    """A tensor in another element type as torch converts it: what is not 0 is true."""
    if x.type.dtype is not None and dtype is DType.BOOL and x.type.dtype is not DType.BOOL:
        zero = out.constant(0, x.type.dtype)
        same = out.op("Equal", x, zero, type=TensorType(DType.BOOL, x.type.shape))
        return out.op("Not", same, type=same.type)
    return out.cast(x, dtype)


@writes("pad")
def pad(call: Call) -> Value:
    """``(x, amounts, mode, number)``: torch counts from the last axis backwards."""
    x, amounts = call.tensor(0), call.get(1, "pad")
    mode, number = call.get(2, "mode", "constant"), call.get(3, "value")
    rank = call.out.rank(x)
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if mode not in modes:
        raise NotWritten(f"ONNX has no padding {mode!r}")
    begins: list[Size] = [0] * rank
    ends: list[Size] = [0] * rank
    for i in range(len(amounts) // 2):
        begins[rank - 1 - i], ends[rank - 1 - i] = amounts[2 * i], amounts[2 * i + 1]
    filling = None
    if mode == "constant":
        filling = call.out.scalar(number or 0, call.dtype)
    attrs = {} if mode == "constant" else {"mode": modes[mode]}
    return call.op("Pad", x, call.out.vector([*begins, *ends]), filling, **attrs)


@writes("split", "split_with_sizes")
def split(call: Call) -> list[Value]:
    """``(x, sizes, dim)`` of a known number of pieces."""
    x, sizes = call.tensor(0), call.get(1, "split_size_or_sections")
    axis = call.axis(x, 2, "dim", 0)
    if isinstance(sizes, int):
        total = x.type.dim(axis)
        if not isinstance(total, int):
            raise NotWritten("the size of the axis that it splits is not known")
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    if not isinstance(sizes, (list, tuple)):
        raise NotWritten("it splits into a computed number of pieces")
    types = [TensorType(x.type.dtype)] * len(sizes)
    return list(call.out.node("Split", [x, call.out.vector(sizes)], types, axis=axis))


@writes("tensor_split", "hsplit", "vsplit", "dsplit")
def tensor_split(call: Call) -> list[Value]:
    """``(x, sections or places, dim)``: pieces of nearly the same size, or between known places."""
    x, given = call.tensor(0), call.get(1, "indices_or_sections")
    if given is None:
        given = call.get(1, "sections", call.get(1, "indices"))
    own = {"hsplit": int(call.out.rank(x) > 1), "vsplit": 0, "dsplit": 2}
    axis = own[call.name] if call.name in own else call.axis(x, 2, "dim", 0)
    total = x.type.dim(axis)
    if not isinstance(total, int):
        raise NotWritten("the size of the axis that it splits is not known")
    if type(given) is int:
        ends = [(i + 1) * (total // given) + min(i + 1, total % given) for i in range(given)]
    elif isinstance(given, (list, tuple)) and all(type(n) is int for n in given):
        ends = [*(slice(n).indices(total)[1] for n in given), total]
    else:
        raise NotWritten("it splits at computed places")
    starts = [0, *ends[:-1]]
    if any(a > b for a, b in zip(starts, ends, strict=True)):
        raise NotWritten("its places are not in order")
    sizes = [b - a for a, b in zip(starts, ends, strict=True)]
    types = [TensorType(x.type.dtype)] * len(sizes)
    return list(call.out.node("Split", [x, call.out.vector(sizes)], types, axis=axis))


@writes("diff")
def diff(call: Call) -> Value:
    """``(x, n, dim)``: differences of neighbours."""
    x, order = call.tensor(0), call.known(1, "n", 1)
    axis, out = call.axis(x, 2, "dim", -1), call.out
    if call.get(3, "prepend") is not None or call.get(4, "append") is not None:
        raise NotWritten("it puts numbers in front or behind")
    if x.type.dtype is None or x.type.dtype is DType.BOOL:
        raise NotWritten("its numbers have no differences in ONNX")
    for _ in range(order):
        behind = out.op("Slice", x, out.ints(1), out.ints(2**63 - 1), out.ints(axis))
        before = out.op("Slice", x, out.ints(0), out.ints(-1), out.ints(axis))
        x = out.op("Sub", behind, before)
    return x


@writes("flip")
def flip(call: Call) -> Value:
    """``(x, dims)``: a slice with a step of -1."""
    x, dims = call.tensor(0), call.sizes(1, "dims")
    axes = [d % call.out.rank(x) for d in dims if isinstance(d, int)]
    ends = call.out.ints(*[-(2**63)] * len(axes))
    back = call.out.ints(*[-1] * len(axes))
    return call.op("Slice", x, back, ends, call.out.ints(*axes), back)


@writes("triu", "tril")
def triangle(call: Call) -> Value:
    """``(x, diagonal)``."""
    k = call.size(1, "diagonal") if call.get(1, "diagonal") is not None else 0
    diagonal = call.out.scalar(k, DType.I64) if k != 0 else None
    return call.op("Trilu", call.tensor(0), diagonal, upper=int(call.name == "triu"))


__all__ = ["cast", "reshaped", "squeezed_axes"]

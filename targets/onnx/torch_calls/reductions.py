"""Reductions, running sums and products, also of whole numbers, which torch adds up in int64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ....ir import DType, LogSoftmax, Softmax, TensorType, Value
from .call import Call, NotWritten, Writer, dtype_of, writes
from .shapes import cast


def axes_of(call: Call, x: Value, dim: object = "dim") -> tuple[list[int], bool]:
    """The axes of a reduction, in order, and whether they are kept.

    Args:
        call: A call ``(x, dim, keepdim)``.
        x: What it reduces.
        dim: The axes, where the call has them at another place.
    """
    rank = call.out.rank(x)
    given: Any = call.get(1, "dim") if dim == "dim" else dim
    if given in (None, (), []):
        given = range(rank)
    elif not isinstance(given, (list, tuple)):
        given = (given,)
    return sorted({a % max(rank, 1) for a in given if rank}), call.flag(2, "keepdim")


def reduce_along(
    out: Writer,
    kind: str,
    x: Value,
    axes: Sequence[int],
    keep: bool,
    type: TensorType | None = None,
) -> Value:
    """One ONNX reduction along axes; without any, the numbers themselves."""
    if not axes:
        return out.op("Identity", x, type=type or x.type)
    if out.opset >= (13 if kind == "ReduceSum" else 18):
        return out.op(kind, x, out.ints(*axes), type=type, keepdims=int(keep))
    return out.op(kind, x, type=type, axes=list(axes), keepdims=int(keep))


def reduced(call: Call, kind: str, x: Value) -> Value:
    """A reduction along the axes of a call."""
    axes, keep = axes_of(call, x)
    if not axes and kind not in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceMean"):
        raise NotWritten("it reduces no axes")
    return reduce_along(call.out, kind, x, axes, keep, call.type)


def _summed(call: Call, x: Value) -> Value:
    """The numbers that are added up: in the element type of the result."""
    stated = call.get(3, "dtype")
    dtype = dtype_of(stated) if stated is not None else call.dtype
    return cast(call.out, x, dtype)


@writes("sum")
def total(call: Call) -> Value:
    """``(x, dim, keepdim, dtype)``."""
    return reduced(call, "ReduceSum", _summed(call, call.tensor(0)))


@writes("mean")
def mean(call: Call) -> Value:
    """``(x, dim, keepdim, dtype)``."""
    return reduced(call, "ReduceMean", _summed(call, call.tensor(0)))


def prod(call: Call) -> Value:
    """``(x, dim, keepdim, dtype)``."""
    return reduced(call, "ReduceProd", _summed(call, call.tensor(0)))


@writes("amax", "amin")
def extremum(call: Call) -> Value:
    """``(x, dim, keepdim)``; of short integers and booleans in int32, since older opsets have no other integers."""
    x, dtype = call.tensor(0), call.dtype
    short = not dtype.is_float and dtype not in (DType.I32, DType.I64)
    kind = TensorType(DType.I32 if short else dtype, call.type.shape)
    name = "ReduceMax" if call.name == "amax" else "ReduceMin"
    made = reduced(replace(call, type=kind), name, call.out.cast(x, kind.dtype or dtype))
    return cast(call.out, made, dtype)


def extreme_along(call: Call, kind: str) -> list[Value]:
    """``max`` and ``min`` as ``(x, dim, keepdim)``, which give the largest or smallest numbers along an axis and their places.

    Args:
        call: The call.
        kind: ``Max`` or ``Min``.
    """
    x, keep = call.tensor(0), call.flag(2, "keepdim")
    if type(call.get(1, "dim")) is not int or call.out.rank(x) == 0:
        raise NotWritten("it takes an extremum along something else than one axis")
    axis, dtype = call.axis(x, 1), x.type.dtype
    if dtype is DType.BOOL:
        x = call.out.cast(x, DType.I32)
    most = reduce_along(call.out, f"Reduce{kind}", x, [axis], keep)
    most = most if dtype is None else cast(call.out, most, dtype)
    place = TensorType(DType.I64)
    return [most, call.out.op(f"Arg{kind}", x, type=place, axis=axis, keepdims=int(keep))]


@writes("any", "all")
def truth(call: Call) -> Value:
    """``(x, dim, keepdim)`` of anything that is not 0."""
    x = call.out.cast(cast(call.out, call.tensor(0), DType.BOOL), DType.I32)
    kind = "ReduceMax" if call.name == "any" else "ReduceMin"
    axes, keep = axes_of(call, x)
    if not axes:
        return cast(call.out, x, DType.BOOL)
    return call.out.cast(reduce_along(call.out, kind, x, axes, keep), DType.BOOL)


@writes("cumsum")
def cumsum(call: Call) -> Value:
    """``(x, dim, dtype)``."""
    stated, x = call.kwargs.get("dtype"), call.tensor(0)
    dtype = dtype_of(stated) if stated is not None else call.dtype
    axis = call.axis(x, 1)
    wide = dtype if dtype in (DType.I32, DType.I64, DType.F32, DType.F64) else DType.I64
    if wide is not dtype and dtype.is_float:
        raise NotWritten("ONNX has no running sums of 16 bits")
    given = call.out.cast(cast(call.out, x, dtype), wide)
    made = call.out.op("CumSum", given, call.out.constant(axis, DType.I64), type=TensorType(wide))
    return call.out.cast(made, dtype)


@writes("cumprod")
def cumprod(call: Call) -> Value:
    """``(x, dim, dtype)``, which older opsets have no operator for."""
    x = call.tensor(0)
    axis, size = call.axis(x, 1), None
    size = x.type.dim(axis)
    if not isinstance(size, int) or not 0 < size <= _MOST_FACTORS:
        raise NotWritten(
            f"ONNX has no running products; up to {_MOST_FACTORS} numbers are written one by one"
        )
    given = cast(call.out, x, call.dtype)
    parts: list[Value] = []
    for i in range(size):
        one = call.out.op("Slice", given, *(call.out.ints(n) for n in (i, i + 1, axis)))
        parts.append(call.out.op("Mul", parts[-1], one) if parts else one)
    return call.op("Concat", *parts, axis=axis)


_MOST_FACTORS = 64


@writes("logsumexp")
def log_sum_exp(call: Call) -> Value:
    """``(x, dim, keepdim)``."""
    return reduced(call, "ReduceLogSumExp", cast(call.out, call.tensor(0), call.dtype))


@writes("det")
@writes("linalg_det")
def determinant(call: Call) -> Value:
    """``torch.linalg.det``."""
    return call.op("Det", call.tensor(0, "A"))


@writes("einsum")
def einsum(call: Call) -> Value:
    """``(equation, *tensors)``."""
    tensors = (
        call.args[1]
        if len(call.args) == 2 and isinstance(call.args[1], (list, tuple))
        else call.args[1:]
    )
    return call.op("Einsum", *tensors, equation=call.get(0, "equation"))


@writes("matmul", "bmm", "mm")
def matmul(call: Call) -> Value:
    """A matrix product."""
    a, b = call.tensor(0), call.tensor(1, "mat2" if "mat2" in call.kwargs else "other")
    dtype = call.dtype
    # ONNX has no products of shorter integers; int32 has the same bits.
    wide = dtype if dtype.is_float or dtype is DType.I64 else DType.I32
    made = call.out.op(
        "MatMul",
        call.out.cast(a, wide),
        call.out.cast(b, wide),
        type=TensorType(wide, call.type.shape),
    )
    return call.out.cast(made, dtype)


@writes("softmax", "log_softmax")
def softmax(call: Call) -> Value:
    """``(x, dim)``, computed in the element type that is asked for."""
    x = call.tensor(0)
    if type(call.get(1, "dim")) is not int:
        raise NotWritten("its axis is not known")
    if not call.out.rank(x):
        raise NotWritten("its input has no axes")
    # The op of the IR, since before opset 13 ONNX sums over all axes from the given one on.
    kind = Softmax if call.name == "softmax" else LogSoftmax
    (made,) = call.out.canonical(kind(call.axis(x, 1)), cast(call.out, x, call.dtype))
    return made


@dataclass(frozen=True)
class Complex:
    """Complex numbers, which ONNX's operators take as pairs.

    Attributes:
        pairs: Real and imaginary parts along a last axis.
    """

    pairs: Value


@writes("view_as_complex")
def as_complex(call: Call) -> Complex:
    """Pairs along the last axis."""
    return Complex(call.tensor(0))


@writes("view_as_real")
def as_real(call: Call) -> Value:
    """The pairs."""
    found = call.get(0, "input")
    if not isinstance(found, Complex):
        raise NotWritten("its complex numbers come from a call without a rule")
    return found.pairs


@writes("fft_fft", "fft_ifft", "fft_rfft")
def fourier(call: Call) -> Complex:
    """``(x, length, axis, norm)``."""
    found, out = call.get(0, "input"), call.out
    if call.get(3, "norm") not in (None, "backward"):
        raise NotWritten("it scales its results in another way")
    if isinstance(found, Complex):
        x = found.pairs
    else:
        real = call.tensor(0)
        x = out.op(
            "Unsqueeze",
            real,
            out.ints(-1),
            type=TensorType(real.type.dtype, (*(None,) * out.rank(real), 1)),
        )
    rank = out.rank(x)
    axis, length = call.known(2, "dim", -1) % (rank - 1), call.get(1, "n")
    kind = TensorType(x.type.dtype, (*(None,) * (rank - 1), 2))
    size = None if length is None else out.scalar(length, DType.I64)
    attrs = {"inverse": int(call.name == "fft_ifft"), "onesided": int(call.name == "fft_rfft")}
    if out.opset < 20:
        return Complex(out.op("DFT", x, size, type=kind, axis=axis, **attrs))
    return Complex(out.op("DFT", x, size, out.scalar(axis, DType.I64), type=kind, **attrs))


__all__ = ["axes_of", "prod", "reduce_along", "reduced"]

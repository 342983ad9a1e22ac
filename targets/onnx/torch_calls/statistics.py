"""Statistics along axes that ONNX has no operator for: variances, both extrema, and sums that leave NaN out."""

from __future__ import annotations

from ....ir import DType, TensorType, Value
from .call import Call, NotWritten, Size, writes
from .reductions import axes_of, reduce_along
from .shapes import cast


@writes("aminmax")
def both_extrema(call: Call) -> list[Value]:
    """``(x, dim, keepdim)``."""
    x = call.tensor(0)
    axes, keep = axes_of(call, x)
    if x.type.dtype is DType.BOOL:
        raise NotWritten("its numbers have no order in ONNX")
    return [reduce_along(call.out, kind, x, axes, keep) for kind in ("ReduceMin", "ReduceMax")]


def _spread(call: Call) -> list[Value]:
    """The variance and the mean of ``(x, dim, unbiased, keepdim)``, of ``(x, unbiased)`` or of ``(x, dim, correction, keepdim)``."""
    out, x = call.out, call.tensor(0)
    dim, keep = call.get(1, "dim"), call.flag(3, "keepdim")
    unbiased, correction = call.kwargs.get("unbiased"), call.kwargs.get("correction")
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    elif len(call.args) > 2:
        unbiased = call.args[2]
    if correction is None:
        correction = 1 if unbiased is None else int(bool(unbiased))
    if type(correction) not in (int, float):
        raise NotWritten("its correction is no known number")
    axes, _ = axes_of(call, x, dim)
    dtype = x.type.dtype
    if dtype is None or not dtype.is_wide_float:
        raise NotWritten("its numbers are no floats")
    wide = DType.F64 if dtype is DType.F64 else DType.F32  # torch adds up in 32 bits or more
    given = out.cast(x, wide)
    mean = reduce_along(out, "ReduceMean", given, axes, True)
    apart = out.op("Sub", given, mean)
    squares = reduce_along(out, "ReduceSum", out.op("Mul", apart, apart), axes, keep)
    count: Size = 1
    for axis in axes:
        count = out.arithmetic("Mul", count, out.size(x, axis))
    divisor = out.arithmetic("Max", out.arithmetic("Sub", count, correction), 0)
    variance = out.op("Div", squares, out.scalar(divisor, wide))
    if not keep and axes and call.name.endswith("_mean"):
        mean = out.op("Squeeze", mean, out.ints(*axes))
    if call.name.startswith("std"):
        variance = out.op("Sqrt", variance)
    return [out.cast(v, dtype) for v in (variance, mean)]


@writes("var", "std")
def spread(call: Call) -> Value:
    """The variance or its root."""
    return _spread(call)[0]


@writes("var_mean", "std_mean")
def spread_and_mean(call: Call) -> list[Value]:
    """The variance or its root, and the mean."""
    return _spread(call)


@writes("nansum", "nanmean")
def without_nan(call: Call) -> Value:
    """``(x, dim, keepdim)`` of the numbers that are no NaN."""
    call.only("dim", "keepdim")
    out, x = call.out, call.tensor(0)
    axes, keep = axes_of(call, x)
    dtype = call.dtype
    if x.type.dtype is not dtype or not dtype.is_wide_float:
        if call.name == "nansum" and dtype.is_int:
            return reduce_along(out, "ReduceSum", cast(out, x, dtype), axes, keep)
        raise NotWritten("it adds up in another element type")
    missing = out.op("IsNaN", x, type=TensorType(DType.BOOL))
    kept = out.op("Where", missing, out.scalar(0.0, dtype), x, type=TensorType(dtype, x.type.shape))
    total = reduce_along(out, "ReduceSum", kept, axes, keep)
    if call.name == "nansum":
        return total
    there = out.cast(out.op("Not", missing, type=TensorType(DType.BOOL, x.type.shape)), dtype)
    return out.op("Div", total, reduce_along(out, "ReduceSum", there, axes, keep))


__all__: list[str] = []

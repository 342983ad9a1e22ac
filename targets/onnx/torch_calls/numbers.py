"""Numbers of Python: sizes, elements of tensors, and what is computed from them."""

from __future__ import annotations

import math
from typing import Any

import torch

from ....ir import DType, TensorType, Value
from .call import Call, NotWritten, Number, writes


def _dtype(x: Value) -> Any:
    from ...torch.speller import TORCH_DTYPES

    if x.type.dtype is None:
        raise NotWritten("the element type of its input is not known")
    return TORCH_DTYPES[x.type.dtype]


@writes("getattr")
def attribute(call: Call) -> Any:
    """``x.shape``, ``x.device``, ``x.dtype``, ``x.ndim``, and transposes."""
    x, name = call.tensor(0), call.get(1, "name")
    if name == "shape":
        return tuple(call.out.sizes(x))
    if name in ("T", "mT"):
        rank = call.out.rank(x)
        if name == "T" and rank != 2:
            raise NotWritten("it turns the order of all axes around")
        return call.op("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])
    if name == "device":
        return None
    if name == "ndim":
        return call.out.rank(x)
    if name == "dtype":
        return _dtype(x)
    raise NotWritten(f"the attribute {name!r} has no rule")


@writes("size", "sym_size")
def size(call: Call) -> Any:
    """``(x, dim)``."""
    x = call.tensor(0)
    if call.get(1, "dim") is None:
        return tuple(call.out.sizes(x))
    return call.out.size(x, call.axis(x, 1))


@writes("dim", "ndimension")
def dim(call: Call) -> int:
    """The number of axes."""
    return call.out.rank(call.tensor(0))


@writes("numel", "nelement")
def numel(call: Call) -> Any:
    """The number of elements."""
    x = call.tensor(0)
    if x.type.size is not None:
        return x.type.size
    return Number(call.out.op("Size", x, type=TensorType(DType.I64, ())))


@writes("item")
def item(call: Call) -> Number:
    """The one number of a tensor."""
    return call.out.item(call.tensor(0))


@writes("int")
def as_int(call: Call) -> Any:
    """A whole number, rounded towards zero."""
    found = call.get(0, "x")
    if isinstance(found, Value):
        found = call.out.item(found)
    return (
        Number(call.out.cast(found.value, DType.I64)) if isinstance(found, Number) else int(found)
    )


@writes("float")
def as_float(call: Call) -> Any:
    """A number as a float, or a tensor in float32."""
    found = call.get(0, "x")
    if isinstance(found, Value):
        return call.out.cast(found, DType.F32)
    return (
        Number(call.out.cast(found.value, DType.F64)) if isinstance(found, Number) else float(found)
    )


@writes("tolist")
def tolist(call: Call) -> Any:
    """The numbers of a vector, or of a tensor without axes."""
    x = call.tensor(0)
    if call.out.rank(x) == 0:
        return call.out.item(x)
    count = x.type.dim(0)
    if call.out.rank(x) > 1 or not isinstance(count, int):
        raise NotWritten("it makes a list of a tensor that is no vector of known length")
    kind = TensorType(x.type.dtype, ())
    places = [call.out.constant(i, DType.I64) for i in range(count)]
    return [call.out.item(call.out.op("Gather", x, i, type=kind, axis=0)) for i in places]


@writes("sym_max", "max")
def most(call: Call) -> Any:
    """The larger of two numbers; of a tensor, see :mod:`.reductions`."""
    return _two(call, "Max")


@writes("sym_min", "min")
def least(call: Call) -> Any:
    """The smaller of two numbers; of a tensor, see :mod:`.reductions`."""
    return _two(call, "Min")


def _two(call: Call, kind: str) -> Any:
    from .reductions import extreme_along

    if isinstance(call.get(0, "input"), Value):
        return extreme_along(call, kind)
    a, b = call.args if len(call.args) == 2 else (None, None)
    if not all(isinstance(n, (int, float, Number)) for n in (a, b)):
        raise NotWritten("it takes an extremum of other arguments than two numbers")
    return call.out.arithmetic(kind, a, b)


@writes("prod")
def product(call: Call) -> Any:
    """The product of sizes (``math.prod``); of a tensor, see :mod:`.reductions`."""
    from .reductions import prod

    found = call.get(0, "input")
    if isinstance(found, Value):
        return prod(call)
    total: Any = math.prod(n for n in found if isinstance(n, int))
    for n in found:
        if not isinstance(n, int):
            total = call.out.arithmetic("Mul", total, n)
    return total


@writes("broadcast_shapes")
def broadcast_shapes(call: Call) -> tuple[Any, ...]:
    """The sizes that shapes have together; of two of which neither is known, the larger one."""
    shapes = [list(s) for s in call.args]
    rank = max(map(len, shapes), default=0)
    made = []
    for sizes in zip(*([1] * (rank - len(s)) + s for s in shapes), strict=True):
        known = [n for n in sizes if isinstance(n, int) and n != 1]
        found: Any = known[0] if known else 1
        for n in sizes:
            if isinstance(n, Number) and not known:
                found = n if found == 1 else call.out.arithmetic("Max", found, n)
        made.append(found)
    return tuple(made)


@writes("_assert", "_check", "_check_is_size")
def check(call: Call) -> None:
    """Nothing: assertions are left out."""


def is_number(found: Any) -> bool:
    """Whether an argument is a number, known or computed."""
    return isinstance(found, (bool, int, float, Number))


def result_type(*found: Any) -> torch.dtype:
    """The element type in which torch computes with tensors and numbers.

    Raises:
        NotWritten: If an element type is not known.
    """
    made: list[Any] = []
    for one in found:
        if isinstance(one, Value):
            rank = min(one.type.rank if one.type.rank is not None else 1, 1)
            made.append(torch.empty((1,) * rank, dtype=_dtype(one), device="meta"))
        else:
            floats = isinstance(one, float) or (isinstance(one, Number) and one.dtype is DType.F64)
            bools = isinstance(one, bool) or (isinstance(one, Number) and one.dtype is DType.BOOL)
            made.append(1.0 if floats else bools or 1)
    return torch.result_type(made[0], made[-1])


__all__ = ["is_number", "result_type"]

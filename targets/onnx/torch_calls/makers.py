"""Calls that make tensors of sizes: filled ones, sequences of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import DType, TensorType, Value
from .call import Call, NotWritten, Number, Size, dtype_of, writes


def filled(call: Call, sizes: Sequence[Size], number: Any, dtype: DType) -> Value:
    """A tensor of one number."""
    if isinstance(number, Value):
        number = call.out.item(number)
    known = [n for n in sizes if isinstance(n, int)]
    if len(known) == len(sizes) and not isinstance(number, Number):
        with np.errstate(all="ignore"):
            return call.out.constant(np.full(tuple(known), number).astype(dtype.numpy))
    made = call.out.scalar(number, dtype)
    return call.out.op("Expand", made, call.out.vector(sizes), type=call.type)


def _stated(call: Call, other: Value | None = None) -> DType:
    given = call.get(99, "dtype")
    if given is not None:
        return dtype_of(given)
    if other is not None and other.type.dtype is not None:
        return other.type.dtype
    return call.dtype


@writes("full")
def full(call: Call) -> Value:
    """``(size, number)``."""
    call.only("dtype", "fill_value", "size")
    sizes = (
        call.sizes(0, "size")
        if not isinstance(call.get(0, "size"), int)
        else [call.known(0, "size")]
    )
    return filled(call, sizes, call.get(1, "fill_value"), _stated(call))


def _register(number: int, name: str) -> None:
    @writes(name)
    def made(call: Call) -> Value:
        call.only("dtype", "size")
        return filled(call, call.sizes(0, "size"), number, _stated(call))

    @writes(f"{name}_like")
    def like(call: Call) -> Value:
        call.only("dtype")
        return filled(call, call.out.sizes(call.tensor(0)), number, _stated(call, call.tensor(0)))

    @writes(f"new_{name}")
    def new(call: Call) -> Value:
        call.only("dtype", "size")
        return filled(call, call.sizes(1, "size"), number, _stated(call, call.tensor(0)))


for _number, _name in enumerate(("zeros", "ones")):
    _register(_number, _name)


@writes("full_like")
def full_like(call: Call) -> Value:
    """``(x, number)``."""
    call.only("dtype", "fill_value")
    x = call.tensor(0)
    return filled(call, call.out.sizes(x), call.get(1, "fill_value"), _stated(call, x))


@writes("new_full")
def new_full(call: Call) -> Value:
    """``(x, size, number)``."""
    call.only("dtype", "size", "fill_value")
    if not isinstance(call.get(1, "size"), (list, tuple)):
        raise NotWritten("its sizes are no list")
    sizes, number = call.sizes(1, "size"), call.get(2, "fill_value")
    return filled(call, sizes, number, _stated(call, call.tensor(0)))


@writes("tensor")
def tensor(call: Call) -> Value:
    """A number, or a list of numbers."""
    call.only("dtype")
    found, dtype = call.get(0, "data"), _stated(call)
    if isinstance(found, (list, tuple)):
        if all(isinstance(n, (bool, int, float)) for n in found):
            return call.out.constant(np.array(found).astype(dtype.numpy))
        return call.out.cast(call.out.vector(found), dtype)
    return call.out.scalar(found, dtype)


@writes("arange")
def arange(call: Call) -> Value:
    """``(start, end, step)``, counted in float64 where a number is no whole one."""
    call.only("dtype", "start", "end", "step")
    given = list(call.args)
    if len(given) == 1 and "end" not in call.kwargs:
        given = [0, *given]  # One number is the end.
    defaults = {"start": 0, "end": None, "step": 1}
    named = [call.kwargs.get(name, default) for name, default in defaults.items()]
    start, end, step = [*given, *named[len(given) :]]
    numbers: list[Any] = [
        call.out.item(n) if isinstance(n, Value) else n for n in (start, end, step)
    ]
    floats = any(
        isinstance(n, float) or (isinstance(n, Number) and n.dtype is DType.F64) for n in numbers
    )
    wide, dtype = DType.F64 if floats else DType.I64, _stated(call)
    if not any(isinstance(n, Number) for n in numbers):
        return call.out.constant(np.arange(*numbers).astype(dtype.numpy))
    parts = [call.out.scalar(n, wide) for n in numbers]
    made = call.out.op("Range", *parts, type=TensorType(wide, call.type.shape))
    return call.out.cast(made, dtype)


@writes("empty", "new_empty", "empty_like")
def empty(call: Call) -> Value:
    """Zeros in place of numbers that are not stated: only their shape can matter."""
    if call.name == "empty_like":
        sizes = call.out.sizes(call.tensor(0))
    else:
        sizes = call.sizes(0 if call.name == "empty" else 1, "size")
    if call.type.dtype is None:
        raise NotWritten("the element type of its result is not known")
    return filled(call, sizes, 0, call.type.dtype)


__all__ = ["filled"]

"""Sizes that an ONNX model computes by nodes, as ints of Python: ``Shape``, and what is computed from it.

A module that computes shapes with ints takes inputs of other sizes, and ``torch.export`` follows them symbolically; tensors of sizes
would have to be read back. Sizes are followed number by number, as :mod:`graphshrink.frontends.onnx.sizes` does for known ones.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from ... import ir
from ...ir import DType, Node, Value
from .speller import Size

_Sizes = npt.NDArray[np.object_]

MOST = 64
"""Longer vectors are not taken for sizes."""

_Call = Callable[..., fx.Node]


class Sizes:
    """The sizes that values hold.

    Args:
        call: Writes a call.
        value: Gives the FX node of a value.
    """

    def __init__(self, call: _Call, value: Callable[[Value], fx.Node]) -> None:
        self._call, self._value = call, value
        self._found: dict[Value, _Sizes] = {}
        self._asked: dict[tuple[Value, int], fx.Node] = {}
        self._natural: set[fx.Node] = set()
        """Calls whose result is not below zero."""

    def of(self, value: Value) -> list[Size] | None:
        """The numbers of a value of up to one axis, if it holds sizes; those of a constant too."""
        found = self._numbers(value)
        return None if found is None or found.ndim > 1 else list(found.reshape(-1))

    def size(self, value: Value, axis: int) -> Size:
        """The size of an axis."""
        known = value.type.dim(axis)
        if isinstance(known, int):
            return known
        if (value, axis) not in self._asked:
            made = self._call("size", self._value(value), axis)
            self._asked[value, axis] = made
            self._natural.add(made)
        return self._asked[value, axis]

    def shape(self, value: Value) -> list[Size] | None:
        """The sizes of all axes; ``None`` if their number is not known."""
        rank = value.type.rank
        return None if rank is None else [self.size(value, axis) for axis in range(rank)]

    def note(self, value: Value, sizes: list[Size], *, scalar: bool = False) -> None:
        """Note the sizes that a value holds: a vector, or one number."""
        made: _Sizes = np.empty(() if scalar else len(sizes), object)
        made[...] = sizes[0] if scalar else sizes
        self._found[value] = made

    def see(self, node: Node) -> None:
        """Follow sizes through a canonical node."""
        rule = _RULES.get(type(node.op))
        if rule is None or len(node.outputs) != 1 or self._found.keys().isdisjoint(node.inputs):
            return
        dtype = node.output.type.dtype
        if dtype is not None and not dtype.is_int:
            return
        operands = [None if v is None else self._numbers(v) for v in node.inputs]
        if any(o is None for o in operands):
            return
        try:
            found = rule(self, node.op, *operands)
        except (IndexError, TypeError, ValueError, ZeroDivisionError):
            return  # Shapes that do not fit, or arithmetic that is left to tensors.
        if found is not None and found.size <= MOST:
            self._found[node.output] = found

    def _numbers(self, value: Value) -> _Sizes | None:
        data = value.data
        if data is None:
            return self._found.get(value)
        if data.size > MOST or not data.dtype.is_int:
            return None
        made: _Sizes = np.empty(data.shape, object)
        for place, number in np.ndenumerate(data.numpy()):
            made[place] = number.item()
        return made

    def _made(self, function: Callable[..., Any], *operands: Size, natural: bool) -> Size:
        if all(isinstance(o, int) for o in operands):
            return int(function(*operands))
        made = self._call(function, *operands)
        if natural and all(self._is_natural(o) for o in operands):
            self._natural.add(made)
        return made

    def _is_natural(self, size: Size) -> bool:
        return size >= 0 if isinstance(size, int) else size in self._natural

    def add(self, a: Size, b: Size) -> Size:
        """The sum."""
        if a == 0:
            return b
        return a if b == 0 else self._made(operator.add, a, b, natural=True)

    def sub(self, a: Size, b: Size) -> Size:
        """The difference."""
        return a if b == 0 else self._made(operator.sub, a, b, natural=False)

    def mul(self, a: Size, b: Size) -> Size:
        """The product."""
        if a == 1:
            return b
        return a if b == 1 else self._made(operator.mul, a, b, natural=True)

    def div(self, a: Size, b: Size) -> Size:
        """The quotient, rounded towards zero.

        Raises:
            ValueError: If it may be below zero, where Python rounds otherwise.
        """
        if b == 1:
            return a
        if not (self._is_natural(a) and self._is_natural(b)):
            raise ValueError("a quotient that may be below zero")
        return self._made(operator.floordiv, a, b, natural=True)

    def mod(self, a: Size, b: Size) -> Size:
        """The remainder with the sign of the divisor."""
        return self._made(operator.mod, a, b, natural=True)

    def most(self, a: Size, b: Size) -> Size:
        """The larger of two."""
        return self._made(torch.sym_max, a, b, natural=True)

    def least(self, a: Size, b: Size) -> Size:
        """The smaller of two."""
        return self._made(torch.sym_min, a, b, natural=True)


def _each(function: Callable[[Sizes, Size, Size], Size]) -> Callable[..., _Sizes]:
    """A rule that applies a function element by element, with broadcasting."""

    def rule(sizes: Sizes, op: ir.Op, *operands: _Sizes) -> _Sizes:
        found, *rest = operands
        for other in rest:
            left, right = np.broadcast_arrays(found, other)
            made: _Sizes = np.empty(left.shape, object)
            for place in np.ndindex(left.shape):
                pair: Any = left[place], right[place]
                made[place] = function(sizes, *pair)
            found = made
        return found

    return rule


def _reduce(sizes: Sizes, op: ir.Reduce, x: _Sizes) -> _Sizes | None:
    """A product or a sum of all numbers of a vector."""
    function = {"prod": sizes.mul, "sum": sizes.add}.get(op.kind)
    if function is None or x.ndim != 1:
        return None
    total: Size = 1 if op.kind == "prod" else 0
    for number in x:
        total = function(total, number)
    made: _Sizes = np.empty((1,) if op.keepdims else (), object)
    made[...] = total
    return made


def _reshape(sizes: Sizes, op: ir.Reshape, x: _Sizes) -> _Sizes:
    return x.reshape([x.shape[i] if d is None else d for i, d in enumerate(op.shape)])


def _where(sizes: Sizes, op: ir.Where, condition: _Sizes, a: _Sizes, b: _Sizes) -> _Sizes:
    c, left, right = np.broadcast_arrays(condition, a, b)
    made: _Sizes = np.empty(c.shape, object)
    for place in np.ndindex(c.shape):
        chosen: Any = c[place]
        if not isinstance(chosen, int):
            raise ValueError("a choice that depends on sizes")
        made[place] = left[place] if chosen else right[place]
    return made


_RULES: dict[type[ir.Op], Callable[..., _Sizes | None]] = {
    ir.Add: _each(Sizes.add),
    ir.Cast: lambda sizes, op, x: x if DType(op.to) in (DType.I32, DType.I64) else None,
    ir.Concat: lambda sizes, op, *parts: np.concatenate(parts, op.axis),
    ir.Div: _each(Sizes.div),
    ir.Gather: lambda sizes, op, x, index: x.take(index.astype(np.int64), op.axis),
    ir.Identity: lambda sizes, op, x: x,
    ir.Max: _each(Sizes.most),
    ir.Min: _each(Sizes.least),
    ir.Mod: lambda sizes, op, a, b: _each(Sizes.mod)(sizes, op, a, b) if op.kind == "floor" else None,
    ir.Mul: _each(Sizes.mul),
    ir.Reduce: _reduce,
    ir.Reshape: _reshape,
    ir.Select: lambda sizes, op, x: x.take([op.index], op.axis).reshape(np.delete(x.shape, op.axis)),
    ir.Slice: lambda sizes, op, x: x[op.index(x.ndim)],
    ir.Squeeze: lambda sizes, op, x: x.squeeze(op.axes),
    ir.Sub: _each(Sizes.sub),
    ir.Unsqueeze: lambda sizes, op, x: np.expand_dims(x, op.axes),
    ir.Where: _where,
}  # fmt: skip
"""How each op computes sizes."""


def product(sizes: Sizes, numbers: list[Size]) -> Size:
    """The product of sizes."""
    known = math.prod(n for n in numbers if isinstance(n, int))
    total: Size = known
    for number in numbers:
        if not isinstance(number, int):
            total = sizes.mul(total, number)
    return total


__all__ = ["MOST", "Sizes", "product"]

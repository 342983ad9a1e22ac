"""Matrix products; a product with a constant matrix on the right is a dense layer."""

from __future__ import annotations

from typing import Any

from ... import ir
from ...ir import Value
from ...ir.tensor import transposed
from .base import Builder, Lowered, Steps


def matmul(a: Value, b: Value) -> Lowered | None:
    """``a @ b`` by NumPy's rule."""
    weight = b.data
    if weight is not None and len(weight.shape) == 2 and weight.dtype.is_wide_float:
        if a.type.rank == 0:
            return None
        if a.type.rank is not None:
            return ir.Linear(), [a, transposed(weight)]
    return ir.MatMul(), [a, b]


def einsum(equation: str, a: Value, b: Value) -> Steps | None:
    """An Einstein sum of two operands, if it is a batched product of two matrices; otherwise ``None``.

    Each operand has the letters of the batch, one letter of its own, and the letter that is summed over. With a constant
    matrix as the second operand, the first may have several letters of its own.
    """
    found = _letters(equation)
    if found is None or a.type.dtype is not b.type.dtype:
        return None
    first, second, out = found
    if (a.type.rank, b.type.rank) != (len(first), len(second)):
        return None
    (summed,) = (c for c in first if c not in out)
    rows = [c for c in out if c in first and c not in second]
    columns = [c for c in out if c in second and c not in first]
    batch = [c for c in out if c in first and c in second]
    weight, made = b.data, Builder()
    if weight is not None and len(second) == 2 and weight.dtype.is_wide_float and not batch:
        x = _permuted(made, a, first, [*rows, summed])
        product = made.add(ir.Linear(), x, weight if second[1] == summed else transposed(weight))
    elif len(rows) == 1:
        left = _permuted(made, a, first, [*batch, *rows, summed])
        right = _permuted(made, b, second, [*batch, summed, *columns])
        product = made.add(ir.MatMul(), left, right)
    else:
        return None
    _permuted(made, product, "".join([*batch, *rows, *columns]), list(out))
    return made.steps()


def _letters(equation: str) -> tuple[str, str, str] | None:
    """The letters of both operands and of the result; ``None`` unless one letter is summed over and the second operand has one of its own."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or len(terms) != 2 or not all(t.isalpha() for t in (*terms, out)):
        return None
    first, second = terms
    if any(len(set(t)) != len(t) for t in (first, second, out)):
        return None
    summed, columns = set(first) - set(out), set(second) - set(first)
    plain = len(summed) == len(columns) == 1 and summed <= set(second)
    known = set(out) <= set(first) | set(second) and set(second) - set(out) == summed
    return (first, second, out) if plain and known and set(first) - set(second) else None


def _permuted(made: Builder, x: Any, letters: str, wanted: list[str]) -> Any:
    perm = tuple(letters.index(c) for c in wanted)
    return x if perm == tuple(range(len(perm))) else made.add(ir.Transpose(perm), x)

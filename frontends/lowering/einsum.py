"""Einstein sums of any number of operands: transposes, sums, and a product of two operands at a time.

Letters of two operands are batched (in both and needed later), rows or columns (in one and needed later), or summed over (in both
and in nothing else). Without summed letters the product is elementwise on broadcast operands; otherwise rows, columns and summed
letters are joined to one axis each, and the product is one of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters

from ... import ir
from ...ir import Value
from ...ir.tensor import transposed
from ..support import Makes
from .base import Builder, Operand, Step, Steps
from .products import einsum

EINSUM: list[Makes] = [
    ir.MatMul,
    ir.Linear,
    ir.Mul,
    ir.Transpose,
    ir.Reshape,
    ir.Unsqueeze,
    (ir.Reduce, "sum"),
]
"""The ops that an Einstein sum can become."""

NOT_READ = "an operand has a letter twice, the equation does not fit the operands, or sizes of joined axes are not known"
"""The reason if :func:`einstein_sum` reads nothing."""


def einstein_sum(equation: str, operands: Sequence[Value]) -> Steps | None:
    """An Einstein sum; ``None`` if an operand has a letter twice, or a size that must be known is not."""
    ranks = [v.type.rank for v in operands]
    found = _parsed(equation, [r for r in ranks if r is not None])
    if found is None or None in ranks or len({v.type.dtype for v in operands}) != 1:
        return None
    terms, out = found
    if len(operands) == 2 and (plain := einsum(f"{','.join(terms)}->{out}", *operands)):
        return plain
    sizes: dict[str, int | None] = {}
    for value, term in zip(operands, terms, strict=True):
        for letter, size in zip(term, value.type.shape or (), strict=True):
            known = size if isinstance(size, int) else None
            if sizes.setdefault(letter, known) != known:
                sizes[letter] = None  # Not known, or broadcast.
    made = _Sum(Builder(), sizes)
    current: _Part | None = None
    for i, (value, term) in enumerate(zip(operands, terms, strict=True)):
        others = set(out).union(*terms[i + 1 :])
        part = made.summed(_Part(value, term), others | set(current.letters if current else ""))
        current = part if current is None else made.product(current, part, others)
        if current is None:
            return None
        current = made.summed(current, others)
    assert current is not None
    made.permuted(current, out)
    if not made.builder.parts:
        made.builder.add(ir.Identity(), operands[0])
    return made.builder.steps()


def _parsed(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """The letters of each operand and of the result, with letters in place of ``...``; ``None`` if they do not fit the ranks."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != len(ranks):
        return None
    free = [c for c in ascii_letters if c not in equation]
    wide = [r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True)]
    most = max([w for t, w in zip(terms, wide, strict=True) if "..." in t], default=0)
    if any(w != 0 and "..." not in t for t, w in zip(terms, wide, strict=True)):
        return None
    if min(wide) < 0 or most > len(free):
        return None
    dots = "".join(free[:most])
    terms = [t.replace("...", dots[most - w :]) for t, w in zip(terms, wide, strict=True)]
    if not arrow:
        given = "".join(terms)
        out = dots + "".join(sorted(c for c in set(given) - set(dots) if given.count(c) == 1))
    else:
        out = out.replace("...", dots)
    if any(len(set(t)) != len(t) or not (t.isalpha() or not t) for t in (*terms, out)):
        return None
    return (terms, out) if set(out) <= set("".join(terms)) else None


@dataclass(frozen=True)
class _Part:
    """A value with a letter for each axis."""

    value: Operand | Step
    letters: str


@dataclass
class _Sum:
    """The steps of one sum, and the sizes of its letters; ``None`` for one that is not known."""

    builder: Builder
    sizes: dict[str, int | None]

    def summed(self, part: _Part, kept: set[str]) -> _Part:
        """Sum over the letters that nothing else needs."""
        axes = tuple(i for i, c in enumerate(part.letters) if c not in kept)
        if not axes:
            return part
        step = self.builder.add(ir.Reduce("sum", axes, keepdims=False), part.value)
        return _Part(step, "".join(c for c in part.letters if c in kept))

    def permuted(self, part: _Part, letters: str) -> Operand | Step:
        """The value with its axes in the order of ``letters``."""
        perm = tuple(part.letters.index(c) for c in letters)
        if perm == tuple(range(len(perm))):
            return part.value
        return self.builder.add(ir.Transpose(perm), part.value)

    def product(self, a: _Part, b: _Part, kept: set[str]) -> _Part | None:
        """The product, summed over the letters of both that nothing else needs; ``None`` if a size must be known and is not."""
        both = [c for c in a.letters if c in b.letters]
        batch = "".join(c for c in both if c in kept)
        summed = "".join(c for c in both if c not in kept)
        rows = "".join(c for c in a.letters if c not in both)
        columns = "".join(c for c in b.letters if c not in both)
        if not summed:
            left = self._widened(a, batch + rows, batch + rows + columns)
            right = self._widened(b, batch + columns, batch + rows + columns)
            return _Part(self.builder.add(ir.Mul(), left, right), batch + rows + columns)
        weight = b.value.data if isinstance(b.value, Value) else None
        single = len(summed) == len(columns) == 1 and not batch
        if single and weight is not None and weight.dtype.is_wide_float:
            matrix = weight if b.letters == columns + summed else transposed(weight)
            dense = self.builder.add(ir.Linear(), self.permuted(a, rows + summed), matrix)
            return _Part(dense, rows + columns)
        joined = [g for g in (rows, columns, summed) if len(g) != 1]
        if any(self.sizes[c] is None for group in joined for c in group):
            return None
        one = self._joined(self.permuted(a, batch + rows + summed), batch, rows, summed)
        other = self._joined(self.permuted(b, batch + summed + columns), batch, summed, columns)
        made: Step = self.builder.add(ir.MatMul(), one, other)
        if len(rows) != 1 or len(columns) != 1:
            shape = [*self._copied(batch), *self._split(rows), *self._split(columns)]
            made = self.builder.add(ir.Reshape(tuple(shape)), made)
        return _Part(made, batch + rows + columns)

    def _widened(self, part: _Part, order: str, letters: str) -> Operand | Step:
        """The value in an order of axes, with axes of size 1 for the other letters."""
        value = self.permuted(part, order)
        axes = tuple(i for i, c in enumerate(letters) if c not in order)
        # Axes in front are those that broadcasting adds.
        if axes == tuple(range(len(axes))):
            return value
        return self.builder.add(ir.Unsqueeze(axes), value)

    def _joined(self, value: Operand | Step, batch: str, *groups: str) -> Operand | Step:
        """The value with one axis for each group of letters behind the batch."""
        if all(len(group) == 1 for group in groups):
            return value
        shape: list[int | None] = [*self._copied(batch)]
        for group in groups:
            size = math.prod(self.sizes[c] or 0 for c in group)
            if len(group) == 1 and self.sizes[group] is None:
                size = -1
            shape.append(size)
        return self.builder.add(ir.Reshape(tuple(shape)), value)

    def _copied(self, batch: str) -> list[None]:
        return [None] * len(batch)

    def _split(self, group: str) -> list[int]:
        unknown = [c for c in group if self.sizes[c] is None]
        assert len(unknown) <= 1
        return [-1 if self.sizes[c] is None else self.sizes[c] or 0 for c in group]


__all__ = ["NOT_READ", "einstein_sum"]

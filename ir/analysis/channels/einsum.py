"""Channels through ops that are treated like an einsum: each tie of axes is one letter of its subscripts.

A letter that no operand combines with others joins the elements of all operands that have it. Letters that one operand
combines in a grid (heads and dimensions) move jointly: an operand with fewer of these letters is a projection of the grid,
and so is a result in which some of them are summed up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...graph import Node
from ...ops import (
    Activation,
    Add,
    Axis,
    Cast,
    Concat,
    Div,
    Embedding,
    Expand,
    Gate,
    GlobalAveragePool,
    GroupNorm,
    Identity,
    LayerNorm,
    Linear,
    MatMul,
    Mul,
    Op,
    Pad,
    PRelu,
    Reduce,
    Scale,
    Softmax,
    Squeeze,
    Sub,
    Transpose,
    Unsqueeze,
)
from ...ops.base import axis_of
from .elements import Elements, Factor, Ids, projection
from .reshapes import MAX_COPIES

BATCHED: tuple[type[Op], ...] = (
    Activation, Add, Cast, Concat, Div, Embedding, Expand, Gate, GlobalAveragePool, GroupNorm, Identity, LayerNorm, Linear, MatMul,
    Mul, PRelu, Pad, Reduce, Scale, Softmax, Squeeze, Sub, Transpose, Unsqueeze,
)  # fmt: skip
"""Ops that can be treated like an einsum, so that tied axes may also move jointly: element ``(h, d)`` of a grid
to ``(h', d')``, not only row by row."""


@dataclass(frozen=True)
class EinsumOperand:
    """A factor that a node reads, with one letter for each of its axes."""

    factor: Factor
    letters: tuple[int, ...]


def einsum_elements(
    elements: Elements,
    node: Node,
    what: str,
    uses: Sequence[EinsumOperand],
    strings: dict[int, list[str]],
) -> list[tuple[tuple[int, ...], Ids | str]]:
    """For each set of letters that move jointly: the elements of the result, or the reason why there are none."""
    home: dict[int, int] = {}

    def find(letter: int) -> int:
        while home.setdefault(letter, letter) != letter:
            letter = home[letter]
        return letter

    for use in uses:
        for letter in use.letters:
            home[find(letter)] = find(use.letters[0])
    for letter in strings:
        find(letter)
    members: dict[int, list[int]] = {}
    for letter in sorted(home):
        members.setdefault(find(letter), []).append(letter)
    found: list[tuple[tuple[int, ...], Ids | str]] = []
    for root, letters in members.items():
        mine = [u for u in uses if find(u.letters[0]) == root]
        if len(letters) == 1:
            result = _single(elements, mine, strings.get(letters[0], []), what)
            found.append((tuple(letters), result))
        else:
            found += _grid(elements, node, what, letters, mine, strings)
    return found


def _single(
    elements: Elements, uses: Sequence[EinsumOperand], strings: Sequence[str], what: str
) -> Ids | str:
    if not uses:
        return strings[0]
    first = uses[0].factor.ids
    sizes = {u.factor.ids.size for u in uses}
    if strings or len(sizes) != 1:
        why = strings[0] if strings else f"{what} reads sizes that disagree"
        for use in uses:
            elements.fix(use.factor.ids, why)
        return why
    for use in uses[1:]:
        elements.join(first, use.factor.ids)
    return first


def _grid(
    elements: Elements,
    node: Node,
    what: str,
    letters: Sequence[int],
    uses: Sequence[EinsumOperand],
    strings: dict[int, list[str]],
) -> list[tuple[tuple[int, ...], Ids | str]]:
    lead = max(uses, key=lambda u: len(u.letters))
    pairs = [p for u in uses for p in zip(u.letters, u.factor.ids.shape, strict=True)]
    sizes = dict(pairs)
    agree = all(sizes[k] == n for k, n in pairs)
    covers = len(lead.letters) == len(letters)
    small = math.prod(sizes.values()) <= MAX_COPIES
    if not isinstance(node.op, BATCHED) or not agree or not (covers or small):
        why = f"{what} reads reshaped channels in a fixed order"
        for use in uses:
            elements.fix(use.factor.ids, why)
        return [(tuple(letters), why)]
    produced = {a.axis: k for k, a in _output_letters(node)}
    grid, order = lead.factor.ids, lead.letters
    if not covers:
        # No operand has all letters (one has heads and positions, another heads and dimensions): make their product.
        order = tuple(dict.fromkeys([produced[a] for a in sorted(produced)] + list(letters)))
        order = tuple(k for k in order if k in sizes)
        grid = elements.new([sizes[k] for k in order])
    for use in uses:
        if use is lead and covers:
            continue
        other = _arranged(use, order)
        if len(use.letters) == len(order):
            elements.join(grid, other)
        else:
            kept = [order.index(k) for k in use.letters]
            elements.project(grid, other, projection(grid, kept))
    for place, letter in enumerate(order):
        for why in strings.get(letter, [])[:1]:
            shape = [n if k == place else 1 for k, n in enumerate(grid.shape)]
            parents = elements.new_fixed(shape, why)
            elements.project(grid, parents, projection(grid, [place]))
    out = [k for k in order if k in produced.values()]
    symmetric = _symmetric(node, produced)
    rows = [order.index(k) for k in out if k not in symmetric]
    if 0 < len(rows) < len(order):
        # A row is summed up as a whole: its elements stay in it.
        shape = [n if k in rows else 1 for k, n in enumerate(grid.shape)]
        parents = elements.new(shape)
        elements.project(grid, parents, projection(grid, rows))
        if len(out) == len(rows):
            squeezed = parents.reshape([grid.shape[k] for k in rows])
            return [(tuple(order[k] for k in rows), squeezed)]
    if len(out) == len(order):
        return [(tuple(order), grid)]
    if not out:
        return []
    # No op sums along one axis and normalises along another.
    elements.fix(grid, f"{what} reads reshaped channels in a fixed order")
    return [(tuple(out), f"{what} makes them in a fixed order")]


def _output_letters(node: Node) -> list[tuple[int, Axis]]:
    """The letters of the first result."""
    ties = node.op.channels(node.input_types) or ()
    return [(k, axis) for k, tie in enumerate(ties) for axis in tie if axis.operand == -1]


def _symmetric(node: Node, produced: dict[int, int]) -> set[int]:
    """The letters along which a result is normalised: they are summed up, and the result has them too."""
    op, rank = node.op, node.output.type.rank or 0
    if isinstance(op, Softmax):
        axes = [axis_of(op.axis, rank)]
    elif isinstance(op, LayerNorm):
        axes = list(range(axis_of(op.axis, rank), rank))
    elif isinstance(op, GroupNorm):
        axes = list(range(1 if op.groups == 1 else 2, rank))
    else:
        return set()
    return {produced[a] for a in axes if a in produced}


def _arranged(use: EinsumOperand, order: Sequence[int]) -> Ids:
    """The elements of a factor with its axes in the order ``order`` of letters, and an axis of size 1 for each letter that it lacks."""
    ids = use.factor.ids.transpose(
        sorted(range(len(use.letters)), key=lambda k: order.index(use.letters[k]))
    )
    sizes = iter(ids.shape)
    return ids.reshape([next(sizes) if k in use.letters else 1 for k in order])


__all__ = ["EinsumOperand", "einsum_elements"]

"""Follows channels through a graph: which elements lie along the axes of each value, and what binds them.

One walk in topological order. Each tie of an op (:meth:`graphshrink.ir.Op.channels`) is one *letter*, as in an
einsum; ops that only move elements (reshape, split, concat, ...) are followed exactly; everything else
is a barrier that fixes what it reads. Values hold their channels as :class:`Factor`; axes without elements keep
their order, with a reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...graph import Graph, Node, Value
from ...ops import (
    Axis,
    Concat,
    Conv,
    ConvTranspose,
    Expand,
    Flatten,
    GroupNorm,
    Reshape,
    Select,
    Slice,
    Split,
    Tie,
)
from ...ops.base import axis_of
from ...ops.recurrent import _Recurrent
from ..dequantized import is_dequantized
from .einsum import EinsumOperand, einsum_elements
from .elements import Binding, Elements, Entry, Factor, Ids, Origin, projection
from .reshapes import axis_runs, reshape_entries


class ChannelFlow:
    """The channels of a graph.

    Attributes:
        elements: All elements and their bindings.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.elements = Elements()
        self._layouts: dict[Value, list[Entry] | str] = {}
        self._constants: dict[tuple[Value, int, int], Ids] = {}
        self._ordered: dict[tuple[Value, int], str] = {}

    def run(self) -> None:
        """Walk the graph."""
        for value in self.graph.inputs:
            self._unknown(value, f"%{value.name} is an input of the graph")
        for node in self.graph.nodes:
            if not node.is_constant:  # A constant one binds nothing.
                self._node(node)
        for value in self.graph.outputs:
            self._fix_all(value, f"%{value.name} is an output of the graph")
        self._settle_constants()

    def _settle_constants(self) -> None:
        """Constants that are read in order in one place and as channels in another; mixed block sizes."""
        by_axis: dict[tuple[Value, int], list[tuple[int, Ids]]] = {}
        for (value, axis, blocks), ids in self._constants.items():
            by_axis.setdefault((value, axis), []).append((blocks, ids))
        for key, found in by_axis.items():
            reason = self._ordered.get(key)
            if reason is None and len(found) > 1:
                reason = f"%{key[0].name} is the weight of convolutions with different groups"
            if reason is not None:
                for _, ids in found:
                    self.elements.fix(ids, reason)

    # Entries.

    def _constant(self, value: Value, axis: int, blocks: int = 1) -> Ids:
        key = (value, axis, blocks)
        if key not in self._constants:
            assert value.data is not None
            size = value.data.shape[axis]
            shape = (size,) if blocks == 1 else (blocks, size)
            self._constants[key] = self.elements.new(shape, Origin(value, axis, blocks))
            if is_dequantized(value):
                reason = f"%{value.name} is quantised, and a reordered copy would not be"
                self.elements.fix(self._constants[key], reason)
        return self._constants[key]

    def _entry(self, value: Value, axis: int) -> Entry:
        if value.data is not None:
            if value.data.shape[axis] == 1:
                return None
            return Factor((axis,), self._constant(value, axis))
        layout = self._layouts[value]
        return layout if isinstance(layout, str) else layout[axis]

    def _entries(self, value: Value) -> list[Entry]:
        return [self._entry(value, axis) for axis in range(value.type.rank or 0)]

    def _fix(self, entry: Entry, reason: str) -> None:
        if isinstance(entry, Factor):
            self.elements.fix(entry.ids, reason)

    def _fix_axis(self, value: Value, axis: int, reason: str) -> None:
        if value.data is not None:
            self._ordered.setdefault((value, axis), reason)
        else:
            self._fix(self._entry(value, axis), reason)

    def _fix_all(self, value: Value, reason: str) -> None:
        rank = len(value.data.shape) if value.data is not None else value.type.rank or 0
        for axis in range(rank):
            self._fix_axis(value, axis, reason)

    def _unknown(self, value: Value, reason: str) -> None:
        """All axes of a value keep their order."""
        shape = value.type.shape
        self._layouts[value] = (
            reason if shape is None else [None if d == 1 else reason for d in shape]
        )

    def _define(self, value: Value, entries: Sequence[Entry]) -> None:
        if value.type.rank == len(entries):
            self._layouts[value] = list(entries)
            return
        reason = f"the rank of %{value.name} is unknown"
        for entry in entries:
            self._fix(entry, reason)
        self._layouts[value] = reason

    # Nodes.

    def _node(self, node: Node) -> None:
        op = node.op
        first = node.inputs[0] if node.inputs else None
        if any(v.data is not None for v in node.outputs):
            self._barrier(node)
        elif isinstance(op, (Reshape, Flatten)) and first is not None:
            self._reshape(node, first)
        elif isinstance(op, (Split, Slice, Select)) and first is not None:
            self._cut(node, op, first)
        elif isinstance(op, Concat):
            self._concat(node, op)
        elif isinstance(op, GroupNorm) and first is not None:
            self._group_norm(node, op, first)
        elif isinstance(op, _Recurrent) and first is not None:
            self._recurrent(node, op, first)
        else:
            ties = op.channels(node.input_types)
            if ties is not None:
                # Of its second input an Expand reads only sizes.
                sized = [a for t in ties for a in t if a.operand == 1 and isinstance(op, Expand)]
                self._tied(node, ties, {(a.operand, a.axis) for a in sized})
            elif isinstance(op, (Conv, ConvTranspose)) and op.groups > 1:
                self._grouped(node, op)
            else:
                self._barrier(node)

    def _barrier(self, node: Node) -> None:
        kind = getattr(node.op, "kind", None)
        what = f"{node.name} ({kind or node.op.name})"
        for value in node.inputs:
            if value is not None:
                self._fix_all(value, f"{what} may depend on the order of %{value.name}")
        for value in node.outputs:
            self._unknown(value, f"{what} gives %{value.name} in a fixed order")

    # Ops that move elements.

    def _reshape(self, node: Node, x: Value) -> None:
        source, target = x.type.shape, node.output.type.shape
        if source is None or target is None or 0 in source or 0 in target:
            self._barrier(node)
            return
        assert isinstance(node.op, Reshape | Flatten)
        runs = axis_runs(node.op, source, target)
        what = f"{node.name} ({node.op.name})"
        made = reshape_entries(self.elements, self._entries(x), source, target, runs, what)
        self._define(node.output, made)

    def _cut(self, node: Node, op: Split | Slice | Select, x: Value) -> None:
        rank = x.type.rank
        if rank is None:
            self._barrier(node)
            return
        entries = self._entries(x)
        for index, output in zip(_indices(op, rank, x), node.outputs, strict=True):
            kept = [a for a in range(rank) if not isinstance(index[a], int)]
            place = {a: k for k, a in enumerate(kept)}
            made: dict[int, Entry] = {}
            seen: set[int] = set()
            for axis, entry in enumerate(entries):
                if not isinstance(entry, Factor):
                    if axis in place:
                        made[place[axis]] = entry
                elif id(entry) not in seen:
                    seen.add(id(entry))
                    ids = entry.ids[tuple(index[a] for a in entry.axes)]
                    if ids.size < entry.ids.size:
                        self.elements.mark(ids)
                    axes = tuple(place[a] for a in entry.axes if a in place)
                    result = _squeezed(Factor(axes, ids))
                    made.update(dict.fromkeys(result.axes, result))
            self._define(output, [made.get(k) for k in range(len(kept))])

    def _concat(self, node: Node, op: Concat) -> None:
        values = [v for v in node.inputs if v is not None]
        rank = node.output.type.rank
        ties = op.channels(node.input_types)
        if rank is None or ties is None or any(v.type.rank != rank for v in values):
            self._barrier(node)
            return
        own = axis_of(op.axis, rank)
        pieces = [self._entry(v, own) for v in values]
        sizes = [v.type.dim(own) for v in values]
        joint = next((p for p in pieces if isinstance(p, Factor) and len(p.axes) > 1), None)
        what = f"{node.name} (Concat)"
        axes = joint.axes if joint is not None else (own,)
        joined: Factor | None = None
        if any(isinstance(p, Factor) for p in pieces):
            same = all(isinstance(p, Factor) and p.axes == axes for p in pieces)
            if (joint is None and None not in sizes) or same:
                joined = self._joined(pieces, sizes, axes, own, what)
        if joined is None:
            axes = (own,)
            for piece in pieces:
                self._fix(piece, f"{what} joins it with an axis that has an unknown size")
        handled = {(i, a) for i in range(len(values)) for a in axes}
        made = self._tied(node, ties, handled)
        for axis in axes:
            made[axis] = (
                joined if joined is not None else f"{what} makes this axis in a fixed order"
            )
        self._define(node.output, made)

    def _joined(
        self,
        pieces: Sequence[Entry],
        sizes: Sequence[int | None],
        axes: tuple[int, ...],
        own: int,
        what: str,
    ) -> Factor | None:
        arrays: list[Ids] = []
        along = axes.index(own)
        for piece, size in zip(pieces, sizes, strict=True):
            if isinstance(piece, Factor):
                arrays.append(piece.ids)
            else:
                why = piece or f"{what} joins a single channel to others"
                arrays.append(self.elements.new_fixed((size or 0,), why))
        rest = [k for k in range(len(axes)) if k != along]
        shapes = {tuple(a.shape[k] for k in rest) for a in arrays}
        if len(shapes) != 1:
            return None
        if rest:
            # The pieces of a row stay together.
            parents = np.expand_dims(self.elements.new(shapes.pop()), along)
            for array in arrays:
                self.elements.project(array, parents, projection(array, rest))
        ids = np.concatenate(arrays, along)
        if np.unique(ids).size < ids.size:
            # One channel occurs twice, though not as the same number: behind a ReLU in one piece, say.
            copies = self.elements.new(ids.shape)
            self.elements.project(copies, ids, Binding.COLUMN)
            ends = np.cumsum([a.shape[along] for a in arrays])[:-1]
            for piece_ids in np.split(copies, ends, along):
                self.elements.mark(piece_ids)
            ids = copies
        return Factor(axes, ids)

    # Groups of channels.

    def _group_norm(self, node: Node, op: GroupNorm, x: Value) -> None:
        ties = op.channels(node.input_types)
        entry = self._entry(x, 1) if x.type.rank else None
        joint = isinstance(entry, Factor) and (
            len(entry.axes) > 1 or entry.ids.size % max(op.groups, 1) != 0
        )
        if ties is None or (joint and op.groups > 1):
            self._barrier(node)
            return
        if not any(Axis(0, 1) in tie for tie in ties):
            if isinstance(entry, Factor):
                parents = self.elements.new((op.groups, 1))
                self.elements.project(entry.ids.reshape(op.groups, -1), parents, Binding.ROW)
            channels = frozenset(Axis(o, a) for o, a in op.channel_axes(node.input_types))
            ties = (*ties, channels)
        self._tied(node, ties)

    def _grouped(self, node: Node, op: Conv | ConvTranspose) -> None:
        x, w, bias = node.inputs[0], node.inputs[1], node.input(2)
        groups = op.groups
        if x is None or w is None or w.data is None or x.type.rank is None:
            self._barrier(node)
            return
        if w.data.shape[0] % groups or node.output.type.rank != x.type.rank:
            self._barrier(node)
            return
        what = f"{node.name} ({op.name})"
        entry = self._entry(x, 1)
        for axis in range(x.type.rank):
            if axis != 1:
                self._fix_axis(x, axis, f"{what} keeps the order of axis {axis}")
        for axis in range(2, len(w.data.shape)):
            self._fix_axis(w, axis, f"{what} keeps the order of axis {axis}")
        rows = self._constant(w, 0).reshape(groups, -1)
        inner = self._constant(w, 1, groups).reshape(groups, -1)
        reads, makes = (rows, inner) if isinstance(op, ConvTranspose) else (inner, rows)
        parents = self.elements.new((groups, 1))
        if isinstance(entry, Factor) and entry.axes == (1,) and entry.ids.size == reads.size:
            self.elements.join(entry.ids.reshape(reads.shape), reads)
        else:
            self._fix(entry, f"{what} reads reshaped channels in groups")
            why = entry if isinstance(entry, str) else f"{what} reads channels in a fixed order"
            self.elements.fix(reads, why)
            self.elements.fix(parents, why)
        self.elements.project(reads, parents, Binding.ROW)
        self.elements.project(makes, parents, Binding.ROW)
        if bias is not None:
            given = self._entry(bias, 0)
            if isinstance(given, Factor):
                self.elements.join(given.ids, makes.reshape(-1))
            elif given is not None:
                self.elements.fix(makes, f"{what} adds a bias in a fixed order")
        made: list[Entry] = [
            None if d == 1 else f"{what} makes this axis in a fixed order"
            for d in node.output.type.shape or ()
        ]
        made[1] = Factor((1,), makes.reshape(-1)) if makes.size > 1 else None
        self._define(node.output, made)

    # Recurrent layers.

    def _recurrent(self, node: Node, op: _Recurrent, x: Value) -> None:
        weights = [node.input(i) for i in (1, 2, 3)]
        if x.type.rank != 3 or any(v is not None and v.data is None for v in weights):
            self._barrier(node)
            return
        what = f"{node.name} ({op.name})"
        d, n = op.directions, op.hidden
        state = self.elements.new((d, 1, n))
        if d > 1:
            ways = self.elements.new_fixed((d, 1, 1), f"{what} reads forwards and backwards")
            self.elements.project(state, ways, Binding.ROW)
        # Both weights have a row for each gate and unit, the bias has two of them; the state comes back in r.
        g = op.gates
        for value, axis, gates in zip(
            (*weights, weights[1]), (1, 1, 1, 2), (g, g, 2 * g, 1), strict=True
        ):
            if value is not None:
                ids = self._constant(value, axis, d).reshape(d, gates, n)
                self.elements.join(np.broadcast_to(state, ids.shape), ids)
        looks = node.input(5 + op.states) if op.peepholes else None
        if looks is not None and looks.data is None:
            self._fix_all(looks, f"{what} reads the weights of its peepholes in order")
            self.elements.fix(state, f"{what} reads the weights of its peepholes in order")
        elif looks is not None:
            ids = self._constant(looks, 1, d).reshape(d, op.peepholes, n)
            self.elements.join(np.broadcast_to(state, ids.shape), ids)
        lengths = node.input(4)
        if lengths is not None:
            self._fix_all(lengths, f"{what} keeps the order of the batch")
        for index in range(5, 5 + op.states):
            start = node.input(index)
            if start is not None:
                self._start_state(start, state, what)
        w = weights[0]
        assert w is not None
        self._bind(self._entry(x, 2), self._entry(w, 2), what)
        for axis in (0, 1):
            self._fix_axis(x, axis, f"{what} keeps the order of axis {axis}")
        for output, axes in zip(node.outputs, ((1, 3), (0, 2), (0, 2)), strict=False):
            made = _in_order(output, what)
            result = _squeezed(Factor(axes, state.reshape(d, n)))
            for axis in result.axes:
                made[axis] = result
            self._define(output, made)

    def _start_state(self, start: Value, state: Ids, what: str) -> None:
        d = len(state)
        if start.data is not None:
            self.elements.join(self._constant(start, 2, d).reshape(state.shape), state)
            return
        entry = (
            self._entry(start, 2)
            if start.type.rank == 3
            else f"the rank of %{start.name} is unknown"
        )
        if isinstance(entry, Factor) and entry.ids.size == state.size:
            self.elements.join(entry.ids.reshape(state.shape), state)
        elif entry is not None:
            why = entry if isinstance(entry, str) else f"{what} starts both ways alike"
            self._fix(entry, why)
            self.elements.fix(state, why)
        self._fix_axis(start, 1, f"{what} keeps the order of axis 1")

    def _bind(self, a: Entry, b: Entry, what: str) -> None:
        """Bind two axes, so that they move together; fix both if that is not possible."""
        whole = [e for e in (a, b) if isinstance(e, Factor) and len(e.axes) == 1]
        if len(whole) == 2 and whole[0].ids.size == whole[1].ids.size:
            self.elements.join(whole[0].ids, whole[1].ids)
            return
        known = next((e for e in (a, b) if isinstance(e, str)), f"{what} reads reshaped channels")
        for entry in (a, b):
            self._fix(entry, known)

    # Ops that tie axes.

    def _tied(
        self, node: Node, ties: Sequence[Tie], handled: set[tuple[int, int]] | None = None
    ) -> list[Entry]:
        """Bind the axes of ties, and set the entries of the results; returns those of the first result.

        Args:
            node: The node.
            ties: Its ties.
            handled: Axes of inputs that are taken care of elsewhere.
        """
        what = f"{node.name} ({node.op.name})"
        letter_of = {axis: k for k, tie in enumerate(ties) for axis in tie}
        strings: dict[int, list[str]] = {}
        uses: list[EinsumOperand] = []
        for operand, value in enumerate(node.inputs):
            if value is not None:
                skipped = {axis for of, axis in handled or () if of == operand}
                uses += self._tied_operand(what, operand, value, letter_of, skipped, strings)
        results = einsum_elements(self.elements, node, what, uses, strings)
        made: list[list[Entry]] = []
        for number, output in enumerate(node.outputs):
            entries = _in_order(output, what)
            axis_by_letter = {
                letter_of[Axis(-1 - number, a)]: a
                for a in range(len(entries))
                if Axis(-1 - number, a) in letter_of
            }
            for group, found in results:
                self._place(entries, axis_by_letter, group, found)
            made.append(entries)
            self._define(output, entries)
        return made[0]

    def _tied_operand(
        self,
        what: str,
        operand: int,
        value: Value,
        letter_of: dict[Axis, int],
        skipped: set[int],
        strings: dict[int, list[str]],
    ) -> list[EinsumOperand]:
        """Fix the axes of an operand that no tie names; returns its channel entries with their letters.

        Args:
            what: The node, for reasons.
            operand: The index of the operand.
            value: Its value.
            letter_of: The letter of each axis that a tie names.
            skipped: Axes that are taken care of elsewhere.
            strings: Gets the reasons, by letter, why axes cannot be reordered.
        """
        uses: list[EinsumOperand] = []
        seen: set[int] = set()
        for axis in self._axes(value, operand, letter_of):
            if axis in skipped:
                continue
            letter = letter_of.get(Axis(operand, axis))
            if letter is None:
                self._fix_axis(value, axis, f"{what} keeps the order of axis {axis}")
                continue
            entry = self._entry(value, axis)
            if isinstance(entry, str):
                strings.setdefault(letter, []).append(entry)
                continue
            if entry is None or id(entry) in seen:
                continue
            seen.add(id(entry))
            letters = [letter_of.get(Axis(operand, a)) for a in entry.axes]
            known = tuple(k for k in letters if k is not None)
            if len(known) == len(letters):
                uses.append(EinsumOperand(entry, known))
                continue
            self._fix(entry, f"{what} keeps the order of one of its axes")
            for k in known:
                strings.setdefault(k, []).append(f"{what} reads it in a fixed order")
        return uses

    @staticmethod
    def _axes(value: Value, operand: int, letter_of: dict[Axis, int]) -> Sequence[int]:
        """The axes of an operand: all or, if the rank is unknown, those that the ties name."""
        if value.data is not None:
            return range(len(value.data.shape))
        if value.type.rank is not None:
            return range(value.type.rank)
        return sorted(a.axis for a in letter_of if a.operand == operand)

    @staticmethod
    def _place(
        entries: list[Entry],
        axis_by_letter: dict[int, int],
        letters: Sequence[int],
        found: Ids | str,
    ) -> None:
        """Set the entries of the axes of a result that have these letters."""
        axes = [axis_by_letter[k] for k in letters if k in axis_by_letter]
        if isinstance(found, str):
            for axis in axes:
                if entries[axis] is not None:
                    entries[axis] = found
        elif axes:
            order = sorted(range(len(axes)), key=axes.__getitem__)
            factor = Factor(tuple(sorted(axes)), found.transpose(order))
            for axis in axes:
                entries[axis] = factor


def _in_order(output: Value, what: str) -> list[Entry]:
    """The initial entries of the axes of a result: fixed, with a reason."""
    return [
        None if d == 1 else f"{what} makes axis {a} in a fixed order"
        for a, d in enumerate(output.type.shape or ())
    ]


def _squeezed(factor: Factor) -> Factor:
    """A factor without its axes of size 1."""
    kept = [k for k, n in enumerate(factor.ids.shape) if n != 1]
    axes = [a for k, a in enumerate(factor.axes) if k in kept]
    return Factor(tuple(axes), factor.ids.reshape([factor.ids.shape[k] for k in kept]))


def _indices(op: Split | Slice | Select, rank: int, x: Value) -> list[list[slice | int]]:
    """The part of each axis that each result takes."""
    whole: list[slice | int] = [slice(None)] * rank
    if isinstance(op, Select):
        axis = axis_of(op.axis, rank)
        return [[*whole[:axis], op.index, *whole[axis + 1 :]]]
    if isinstance(op, Slice):
        for start, end, axis, step in zip(op.starts, op.ends, op.axes, op.steps, strict=True):
            whole[axis_of(axis, rank)] = slice(start, end, step)
        return [whole]
    axis, start = axis_of(op.axis, rank), 0
    found: list[list[slice | int]] = []
    for size in op.sizes:
        found.append([*whole[:axis], slice(start, start + size), *whole[axis + 1 :]])
        start += size
    return found


__all__ = ["ChannelFlow"]

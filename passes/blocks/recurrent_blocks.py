"""Blocks of recurrent layers (LSTM, GRU, RNN).

Hidden unit ``u`` has a row in every gate of the input matrix and of the recurrent matrix, and a column in the recurrent matrix.
All of them belong to the same block: block ``i`` of the hidden units reads block ``i`` of the inputs and block ``i`` of the
hidden units of the step before. A layer whose weights are zero outside such blocks computes the same as k smaller layers side by
side. If only the recurrent matrix has the zeros, each of the smaller layers reads the whole input.

The two directions of a bidirectional layer have hidden units of their own, and read the same inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ir import MaskedTensor, Node, Tensor
from ...ir.analysis import ChannelGroup, ChannelGroups
from ...ir.analysis.dequantized import is_dequantized
from ...ir.ops.recurrent import _Recurrent
from .blocks import Array64, Blocks, Ids, capacities, component_labels, contiguous_labels, pack
from .form_cost import LayerSize, RecurrentSize
from .layer_blocks import PivotSite, WeightAxis, weight_axis
from .order import ChannelOrder
from .search import Side, search_blocks

_ROUNDS = 30
"""The largest number of rounds of a search that chooses hidden units and inputs in turn."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class RecurrentLabels:
    """The blocks of a recurrent layer, as labels of units.

    Attributes:
        hidden: The labels of the hidden units of each direction.
        inputs: The labels of the inputs; ``None`` if each block reads all inputs.
    """

    hidden: tuple[Ids, ...]
    inputs: Ids | None


@dataclass(frozen=True, eq=False)
class RecurrentSite:
    """A recurrent layer that may get blocks.

    Attributes:
        node: The layer.
        op: Its op.
        count: The number of blocks.
        w: The input matrix.
        r: The recurrent matrix.
        hidden: The hidden units of each direction; positions are channels of that direction.
        inputs: The inputs; ``None`` if they cannot be divided into blocks.
        work: The size of the layer.
    """

    node: Node
    op: _Recurrent
    count: int
    w: Tensor
    r: Tensor
    hidden: tuple[WeightAxis, ...]
    inputs: WeightAxis | None
    work: RecurrentSize

    @property
    def shares_order(self) -> bool:
        """Whether both directions must have the same blocks, because other layers read their units alike."""
        return len(self.hidden) > 1 and self.hidden[0].order is self.hidden[1].order

    def sides(self, labels: RecurrentLabels) -> list[tuple[PivotSite, Blocks]]:
        """Each direction as a layer with rows (hidden units) and columns (inputs), and its blocks; none without labels of inputs."""
        if self.inputs is None or labels.inputs is None:
            return []
        size = LayerSize(False, self.op.hidden, self.w.shape[2], None)
        return [
            (
                PivotSite(self.node, self.w, None, size, axis, self.inputs),
                Blocks(own, labels.inputs, self.count),
            )
            for axis, own in zip(self.hidden, labels.hidden, strict=True)
        ]

    def gates(self, array: npt.NDArray[Any], direction: int) -> npt.NDArray[Any]:
        """The rows of one direction of a matrix, of shape (gates, hidden, columns)."""
        own = array[direction]
        return np.asarray(own.reshape(self.op.gates, self.op.hidden, own.shape[-1]))

    def per_unit(self, saliency: Array64, direction: int, *, inputs: bool) -> Array64:
        """The sum of a matrix (hidden, columns) over the channels of each pair of units."""
        rows = self.hidden[direction]
        columns = self.inputs if inputs else rows
        assert columns is not None
        return rows.summed(columns.summed(saliency, 1), 0)

    def masks(self, labels: RecurrentLabels) -> tuple[Mask, Mask]:
        """The masks of the input and of the recurrent matrix, true inside the blocks."""
        made_w, made_r = np.ones(self.w.shape, bool), np.zeros(self.r.shape, bool)
        for d, (axis, own) in enumerate(zip(self.hidden, labels.hidden, strict=True)):
            rows = np.tile(axis.spread(own), self.op.gates)
            made_r[d] = rows[:, None] == axis.spread(own)[None]
            if self.inputs is not None and labels.inputs is not None:
                made_w[d] = rows[:, None] == self.inputs.spread(labels.inputs)[None]
        return made_w, made_r


def recurrent_site(
    node: Node,
    groups: ChannelGroups,
    orders: dict[ChannelGroup, ChannelOrder],
    blocks: int,
    pad: bool,
) -> RecurrentSite | str:
    """A recurrent layer that may get blocks, or the reason why it cannot.

    Args:
        node: The layer.
        groups: The channel groups of the graph.
        orders: The channel orders of the layers before; those of this layer are added.
        blocks: The number of blocks.
        pad: Whether the last block may be smaller.
    """
    op = node.op
    assert isinstance(op, _Recurrent)
    x, w, r, bias = (node.input(i) for i in range(4))
    looks = node.input(5 + op.states) if op.peepholes else None
    if x is None or x.type.rank != 3:
        return "the rank of its input is not known (give example inputs)"
    if w is None or r is None or any(v is not None and v.data is None for v in (w, r, bias, looks)):
        return "its weights are not constants"
    assert w.data is not None
    assert r.data is not None
    if w is r:
        return "its input matrix and its recurrent matrix are one constant"
    if is_dequantized(w) or is_dequantized(r):
        return "its weights are quantised: pivot before quantising, or inside requantize{...}"
    if not (w.data.dtype.is_wide_float and r.data.dtype.is_wide_float):
        return f"its weights have the element type {w.data.dtype.value}"
    hidden = tuple(_hidden_axis(groups, orders, node, d, blocks) for d in range(op.directions))
    for axis in hidden:
        units, each = axis.positions.shape
        of = f"{units} hidden units" if each == 1 else f"{units} runs of {each} hidden units"
        if units % blocks and not pad:
            return (
                f"its {of} do not divide into {blocks} blocks; divide=pad lets the last be smaller"
            )
        if axis.sizes.min() < 1:
            return f"its {of} are too few for {blocks} blocks"
        for other in axis.others:
            if other.parts:
                return f"some of its hidden units are in the order of the blocks of {other.owner}"
    if any(not np.array_equal(a.channel_sizes, hidden[0].channel_sizes) for a in hidden):
        return "its directions divide into blocks of different sizes"
    inputs: WeightAxis | None = weight_axis(groups, orders, node, 2, blocks)
    assert inputs is not None
    if (len(inputs.positions) % blocks and not pad) or inputs.sizes.min() < 1:
        inputs = None
    steps, batch = (d if isinstance(d, int) else None for d in (x.type.shape or (None, None))[:2])
    work = RecurrentSize(op.gates, op.hidden, w.data.shape[2], op.directions, steps, batch)
    return RecurrentSite(node, op, blocks, w.data, r.data, hidden, inputs, work)


def _hidden_axis(
    groups: ChannelGroups,
    orders: dict[ChannelGroup, ChannelOrder],
    node: Node,
    direction: int,
    blocks: int,
) -> WeightAxis:
    """The hidden units of one direction: the columns of its recurrent matrix."""
    value, op = node.required(2), node.op
    assert isinstance(op, _Recurrent)
    n = op.hidden
    known: dict[ChannelGroup, ChannelOrder] = {}
    for group, placement in groups.along(value, 2):
        own = placement.positions // n == direction
        if not own.any():
            continue
        known[group] = orders.setdefault(group, ChannelOrder(group.size))
        # A unit may have channels of both directions.
        positions = placement.positions[own] - direction * n
        if np.array_equal(positions, np.arange(n)):
            positions = positions.reshape(group.size, -1)
            return WeightAxis(known[group], positions, capacities(group.size, blocks))
    reasons = groups.reasons(value, 2) or ("they belong to several channel groups",)
    order = ChannelOrder(n, fixed=reasons[0])
    positions = np.arange(n, dtype=np.int64)[:, None]
    return WeightAxis(order, positions, capacities(n, blocks), tuple(known.values()))


# Blocks of existing zeros.


def labels_of_zeros(site: RecurrentSite) -> Iterator[RecurrentLabels]:
    """The blocks that the zeros of a layer form; those in which the inputs have blocks too come first."""
    inner, outer = _nonzeros(site)
    found = list(_hidden_labels(site, inner, outer))
    for hidden in found:
        inputs = _input_labels(site, outer, hidden)
        if inputs is not None:
            yield RecurrentLabels(hidden, inputs)
    for hidden in found:
        yield RecurrentLabels(hidden, None)


def _nonzeros(site: RecurrentSite) -> tuple[list[Mask], list[Mask]]:
    """For each direction, which hidden units and which inputs each hidden unit reads, in units."""
    made: tuple[list[Mask], list[Mask]] = ([], [])
    for data, inputs in ((site.r, False), (site.w, True)):
        if inputs and site.inputs is None:
            continue
        # Prefer the mask: a weight inside it may have been trained to zero.
        kept = data.mask if isinstance(data, MaskedTensor) else data.numpy() != 0
        for d in range(site.op.directions):
            any_gate = np.asarray(site.gates(kept, d).any(0), np.float64)
            made[inputs].append(site.per_unit(any_gate, d, inputs=inputs) != 0)
    if site.shares_order:
        return tuple([np.logical_or.reduce(m)] * len(m) if m else [] for m in made)  # type: ignore[return-value]
    return made


def _hidden_labels(
    site: RecurrentSite, inner: list[Mask], outer: list[Mask]
) -> Iterator[tuple[Ids, ...]]:
    """Labels of the hidden units in which no block reads another one."""
    present = [contiguous_labels(axis.sizes) for axis in site.hidden]
    placed = [
        _with_sizes(axis.order.parts[0], axis.sizes) if axis.order.parts else own
        for axis, own in zip(site.hidden, present, strict=True)
    ]
    for labels in (placed, present):
        if all(
            own is not None and not found[own[:, None] != own[None]].any()
            for own, found in zip(labels, inner, strict=True)
        ):
            yield tuple(own for own in labels if own is not None)
    joint = _packed(site, inner, outer) if outer else None
    if joint is not None:
        yield joint
    alone = [_packed_alone(m, a.sizes) for m, a in zip(inner, site.hidden, strict=True)]
    if all(own is not None for own in alone):
        yield tuple(own for own in alone if own is not None)


def _with_sizes(labels: Ids, sizes: Ids) -> Ids | None:
    same = np.array_equal(np.bincount(labels, minlength=sizes.size), sizes)
    return labels if same else None


def _packed_alone(inner: Mask, sizes: Ids) -> Ids | None:
    """Labels of hidden units from the recurrent matrix alone; ``None`` if its components do not fit the blocks."""
    components, _ = component_labels(inner | np.eye(len(inner), dtype=bool))
    labels = _packed_components([components], [sizes])
    return None if labels is None else labels[0]


def _packed(site: RecurrentSite, inner: list[Mask], outer: list[Mask]) -> tuple[Ids, ...] | None:
    """Labels of the hidden units of all directions, such that no input is read by two blocks; ``None`` if there are none."""
    assert site.inputs is not None
    sizes = [len(m) for m in inner]
    width = sum(sizes) + outer[0].shape[1]
    edges = np.zeros((sum(sizes), width), bool)
    start = 0
    for own, given in zip(inner, outer, strict=True):
        rows = slice(start, start + len(own))
        edges[rows, rows] = own | np.eye(len(own), dtype=bool)
        edges[rows, sum(sizes) :] = given
        if site.shares_order:
            edges[: sizes[0], rows] |= np.eye(len(own), dtype=bool)
        start += len(own)
    rows_of, columns_of = component_labels(edges)
    parts = [*np.split(rows_of, np.cumsum(sizes)[:-1]), columns_of[sum(sizes) :]]
    # An input that nothing reads is its own component, and may be in any block.
    used = np.isin(parts[-1], rows_of)
    labels = _packed_components(
        [*parts[:-1], parts[-1][used]], [*(a.sizes for a in site.hidden), site.inputs.sizes]
    )
    return None if labels is None else tuple(labels[:-1])


def _packed_components(components: list[Ids], sizes: list[Ids]) -> list[Ids] | None:
    """The block of each unit of several kinds, from its component; ``None`` if the components do not fit.

    Args:
        components: For each kind, the component of each unit.
        sizes: For each kind, the number of units of each block.
    """
    names, flat = np.unique(np.concatenate(components), return_inverse=True)
    own = np.split(flat.reshape(-1), np.cumsum([c.size for c in components])[:-1])
    extents = np.stack([np.bincount(c, minlength=names.size) for c in own], 1)
    orders = [np.argsort(-extents.sum(1), kind="stable"), np.lexsort(-extents.T)]
    for order in orders:
        place = pack(extents[order], np.stack(sizes))
        if place is not None:
            block = np.empty(names.size, np.int64)
            block[order] = place
            return [block[c] for c in own]
    return None


def _input_labels(site: RecurrentSite, outer: list[Mask], hidden: tuple[Ids, ...]) -> Ids | None:
    """Labels of the inputs that fit those of the hidden units; ``None`` if a block reads inputs of another."""
    if site.inputs is None:
        return None
    reads = np.zeros((site.count, outer[0].shape[1]), bool)
    for own, found in zip(hidden, outer, strict=True):
        for block in range(site.count):
            reads[block] |= found[own == block].any(0)
    times, sizes = reads.sum(0), site.inputs.sizes
    if (times > 1).any():
        return None
    labels = np.where(times == 1, reads.argmax(0), -1).astype(np.int64)
    rest = sizes - np.bincount(labels[labels >= 0], minlength=site.count)
    if (rest < 0).any():
        return None
    labels[labels < 0] = contiguous_labels(rest)
    return labels


# Blocks for dense weights.


def hidden_sides(axis: WeightAxis) -> Side:
    """The choice of labels for hidden units: those that other layers gave them, or any."""
    if axis.order.fixed:
        return Side(axis.sizes, fixed=contiguous_labels(axis.sizes))
    if axis.order.parts:
        labels = _with_sizes(axis.order.parts[0], axis.sizes)
        return Side(axis.sizes, fixed=axis.order.parts[0] if labels is None else labels)
    return Side(axis.sizes)


def search_labels(
    inner: Array64, outer: Array64 | None, hidden: Side, inputs: Side | None, seed: int
) -> tuple[Ids, Ids | None, float]:
    """Labels of hidden units and inputs that keep much of the saliency.

    Hidden units and inputs are chosen in turn, from several starts, as long as more is kept.

    Args:
        inner: The saliency of each pair of hidden units.
        outer: The saliency of each pair of a hidden unit and an input; ``None`` if inputs have no blocks.
        hidden: The constraints on the hidden units.
        inputs: The constraints on the inputs.
        seed: The seed of the search.

    Returns:
        The labels of the hidden units, those of the inputs, and the saliency that is kept.
    """
    count = len(hidden.sizes)
    both = inner + inner.T
    starts = [contiguous_labels(hidden.sizes)]
    if hidden.fixed is not None:
        starts = [hidden.fixed]
    else:
        if inner.any():
            starts.append(search_blocks(both, hidden, hidden, seed=seed).rows)
        if outer is not None and inputs is not None and outer.any():
            starts.append(search_blocks(outer, hidden, inputs, seed=seed).rows)
    best: tuple[Ids, Ids | None, float] | None = None
    for labels in starts:
        last = -1.0
        for _ in range(_ROUNDS):
            members = np.eye(count)[labels]
            benefit, own = both @ members, None
            kept = float(inner[labels[:, None] == labels[None]].sum())
            if outer is not None and inputs is not None:
                own = inputs.best(outer.T @ members)
                benefit = benefit + outer @ np.eye(count)[own]
                kept += float(outer[labels[:, None] == own[None]].sum())
            if best is None or kept > best[2]:
                best = labels, own, kept
            if kept <= last:
                break
            last, labels = kept, hidden.best(benefit)
    assert best is not None
    return best


__all__ = [
    "RecurrentLabels",
    "RecurrentSite",
    "hidden_sides",
    "labels_of_zeros",
    "recurrent_site",
    "search_labels",
]

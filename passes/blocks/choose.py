"""Choose the blocks of one layer, within what its neighbours have left free.

Units are what moves as one: single channels, or all that stands for one behind a flatten, or the dimensions of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...ir import Conv, Linear, MaskedTensor, Node, Tensor
from ...ir.analysis import ChannelGroup, ChannelGroups
from ...ir.analysis.dequantized import is_dequantized
from .blocks import Array64, Blocks, Ids, capacities, find_blocks, in_order
from .forms import Work
from .order import Access, ChannelOrder
from .refit import Layer
from .search import Side, search_blocks

_ROUNDS = 4
"""How often rows by output error and columns by saliency take turns."""


@dataclass(frozen=True, eq=False)
class Axis:
    """The rows or the columns of a layer's weight.

    Attributes:
        order: The order of its units, shared with other layers.
        positions: The channels of each unit, of shape (units, channels a unit).
        sizes: How many units each block takes.
        others: The orders of other groups that move channels along the same axis.
    """

    order: ChannelOrder
    positions: Ids
    sizes: Ids
    others: tuple[ChannelOrder, ...] = ()

    @property
    def channel_sizes(self) -> Ids:
        """How many channels each block takes."""
        return np.asarray(self.sizes * self.positions.shape[1])

    def spread(self, labels: Ids) -> Ids:
        """The labels of channels from those of units."""
        found = np.empty(self.positions.size, np.int64)
        found[self.positions] = labels[:, None]
        return np.asarray(found)

    def access(self, labels: Ids) -> Access:
        """How a layer with these labels of units gets at its blocks."""
        return self.order.access(labels, self.positions)

    def summed(self, array: Array64, axis: int) -> Array64:
        """Channels of an array added up to units."""
        taken = np.moveaxis(array, axis, 0)[self.positions]
        return np.asarray(np.moveaxis(taken.sum(1), 0, axis))


@dataclass(frozen=True, eq=False)
class Site:
    """A layer that may be pivoted.

    Attributes:
        node: The layer.
        weight: Its weight.
        bias: Its bias.
        work: Its size.
        rows: Its outputs.
        columns: Its inputs.
    """

    node: Node
    weight: Tensor
    bias: Tensor | None
    work: Work
    rows: Axis
    columns: Axis

    def read(self) -> Array64:
        """The weight as (rows, columns, taps)."""
        return self.weight.float64().reshape(*self.weight.shape[:2], -1)

    def per_unit(self, array: Array64) -> Array64:
        """A matrix over channels, added up to one over units."""
        return self.rows.summed(self.columns.summed(array, 1), 0)

    def spread(self, blocks: Blocks) -> Blocks:
        """Blocks of channels from blocks of units."""
        rows, columns = self.rows.spread(blocks.rows), self.columns.spread(blocks.columns)
        return Blocks(rows, columns, blocks.count)


def site_of(
    node: Node,
    groups: ChannelGroups,
    orders: dict[ChannelGroup, ChannelOrder],
    blocks: int,
    pad: bool,
) -> Site | str:
    """A layer as a site, or why it is none.

    Args:
        node: The layer.
        groups: The channel groups of the graph.
        orders: The orders of groups that were met before; gets those of this layer.
        blocks: The number of blocks.
        pad: Whether the last block may be smaller.
    """
    if not isinstance(node.op, (Linear, Conv)):
        return "it is no dense layer and no convolution"
    x, weight, bias = node.inputs[0], node.inputs[1], node.input(2)
    if isinstance(node.op, Conv) and node.op.groups != 1:
        return "it has groups already"
    if weight is None or weight.data is None or (bias is not None and bias.data is None):
        return "its weight or bias is no constant"
    if is_dequantized(weight):
        return "its weight is quantised, and would not be any more: pivot before quantising"
    if not weight.data.dtype.is_wide_float:
        return f"its weight is of type {weight.data.dtype.value}"
    if x is None or x.type.rank is None or x.type.rank < 2:
        return "the rank of its input is not known (give example inputs) or below 2"
    axes = []
    for axis, what in ((0, "outputs"), (1, "inputs")):
        found = _axis(groups, orders, node, axis, blocks)
        units = len(found.positions)
        each = found.positions.shape[1]
        of = f"{units} {what}" if each == 1 else f"{units} runs of {each} {what}"
        if units % blocks and not pad:
            return (
                f"its {of} do not divide into {blocks} blocks; divide=pad lets the last be smaller"
            )
        if found.sizes.min() < 1:
            return f"its {of} are too few for {blocks} blocks"
        axes.append(found)
    sizes = weight.data.shape
    taps, is_conv = math.prod(sizes[2:]), isinstance(node.op, Conv)
    work = Work(is_conv, sizes[0], sizes[1], _batch(node), taps, x.type.rank)
    return Site(node, weight.data, None if bias is None else bias.data, work, *axes)


def _batch(node: Node) -> int | None:
    shape = node.output.type.shape
    if shape is None:
        return None
    uses = (shape[0], *shape[2:]) if isinstance(node.op, Conv) else shape[:-1]
    known = [d for d in uses if isinstance(d, int)]
    return math.prod(known) if len(known) == len(uses) else None


def _axis(
    groups: ChannelGroups,
    orders: dict[ChannelGroup, ChannelOrder],
    node: Node,
    axis: int,
    blocks: int,
) -> Axis:
    value = node.inputs[1]
    assert value is not None
    assert value.data is not None
    size = value.data.shape[axis]
    along = groups.along(value, axis)
    known = {g: orders.setdefault(g, ChannelOrder(g.size)) for g, _ in along}
    whole = [(g, p) for g, p in along if p.positions.size == size and p.is_contiguous]
    if not whole:
        order = ChannelOrder(size, fixed=_why_fixed(groups, node, axis))
        positions = np.arange(size, dtype=np.int64)[:, None]
        return Axis(order, positions, capacities(size, blocks), tuple(known.values()))
    group, placement = max(whole, key=lambda found: found[0].size)
    others = tuple(order for g, order in known.items() if g is not group)
    return Axis(known[group], placement.positions, capacities(group.size, blocks), others)


def _why_fixed(groups: ChannelGroups, node: Node, axis: int) -> str:
    value = node.inputs[1]
    assert value is not None
    reasons = groups.reasons(value, axis)
    if reasons:
        return reasons[0]
    return "they belong to several groups of channels, which do not mix"


# Zeros that are there.


def exact_blocks(site: Site) -> Blocks | None:
    """The blocks that the zeros of a layer form."""
    data = site.weight
    # A mask says more than the numbers: what was trained to zero inside it has its place too.
    kept = data.mask if isinstance(data, MaskedTensor) else data.numpy() != 0
    taps = np.asarray(kept, np.float64).reshape(*data.shape[:2], -1)
    nonzero = site.per_unit(taps.max(2)) != 0
    most = int((site.rows.sizes * site.columns.sizes).sum())
    if int(nonzero.sum()) > most:
        return None
    sizes = (site.rows.sizes, site.columns.sizes)
    present = Blocks(in_order(sizes[0]), in_order(sizes[1]), len(sizes[0]))
    # Where the present order will do, it also says to which blocks rows and columns of zeros belong.
    if not nonzero[~present.mask()].any():
        return present
    return find_blocks(nonzero, *sizes)


def is_half_sparse(weight: npt.NDArray[np.float64]) -> bool:
    """Whether a weight (rows, columns, taps) is 2:4 sparse: of 4 channels in a row no more than 2 are kept."""
    if weight.shape[1] % 4:
        return False
    kept = (weight != 0).reshape(len(weight), -1, 4, weight.shape[2]).sum(2)
    return bool((kept <= 2).all())


def moved(site: Site) -> str:
    """Why a layer can have no blocks at all any more: others have ordered some of its channels; empty if it can."""
    for axis, what in ((site.rows, "output"), (site.columns, "input")):
        for other in axis.others:
            if other.parts:
                return (
                    f"some of its {what} channels are in the order of the blocks of {other.owner}"
                )
    return ""


def fits(site: Site, blocks: Blocks) -> tuple[str, int]:
    """Why blocks do not fit the orders of their channels (else empty), and how many shuffles they take."""
    return _place(site, blocks, [replace(o, parts=list(o.parts)) for o in _orders(site)])


def settle(site: Site, blocks: Blocks) -> None:
    """Fix the orders of a layer's channels, as far as they serve these blocks."""
    _place(site, blocks, _orders(site))
    for axis in (site.rows, site.columns):
        for other in axis.others:
            other.fixed = other.fixed or f"{site.node.name} has blocks across them"


def _orders(site: Site) -> list[ChannelOrder]:
    return [site.rows.order, site.columns.order]


def _place(site: Site, blocks: Blocks, orders: list[ChannelOrder]) -> tuple[str, int]:
    if site.rows.order is site.columns.order:
        orders[1] = orders[0]
    problems, moves = [], 0
    sides = ((blocks.rows, "output"), (blocks.columns, "input"))
    for order, (labels, what) in zip(orders, sides, strict=True):
        place = order.place(labels)
        if place is not None:
            order.add(labels, site.node.name)
            moves += place > 0
            continue
        moves += 1
        if order.fixed:
            problems.append(f"its {what} channels cannot change places ({order.fixed})")
        else:
            problems.append(
                f"its {what} channels are in the order of the blocks of {order.owner}, across which its "
                "own do not cut evenly"
            )
    return "; ".join(problems), moves


# Blocks for dense weights.


@dataclass(frozen=True, eq=False)
class Choice:
    """Blocks of a layer that change what it computes.

    Attributes:
        blocks: The blocks, of units.
        weight: The weight in these blocks, zero elsewhere: (rows, columns, taps).
        shift: What is added to the bias.
        error: How far the outputs are off; see :mod:`.refit`.
    """

    blocks: Blocks
    weight: Array64
    shift: Array64
    error: float


def best_blocks(
    site: Site, layer: Layer, *, search: bool, refit: bool, gather: bool, seed: int
) -> Choice | str:
    """The blocks of the smallest output error among all that are tried, or why there are none.

    Args:
        site: The layer.
        layer: Its numbers.
        search: Whether other orders than the present one are tried.
        refit: Whether weights are refitted.
        gather: Whether channels that cannot be reordered may be gathered.
        seed: The seed of the search.
    """
    best: Choice | None = None
    problem = ""
    for blocks in _candidates(site, layer, search, gather, seed):
        reason, _ = fits(site, blocks)
        if reason and not gather:
            problem = problem or reason
            continue
        channels = site.spread(blocks)
        weight, shift = layer.refitted(channels) if refit else layer.masked(channels)
        error = layer.error(weight, shift)
        # Of equals the one that came first, which needs no more moves.
        if best is None or error < best.error * (1 - 1e-6):
            best = Choice(blocks, weight, shift, error)
    if best is None:
        return problem
    return best


def _candidates(
    site: Site, layer: Layer, search: bool, gather: bool, seed: int
) -> Iterator[Blocks]:
    rows, columns = site.rows, site.columns
    count = len(rows.sizes)
    yield Blocks(in_order(rows.sizes), in_order(columns.sizes), count)
    if not search:
        return
    saliency = site.per_unit(layer.saliency())
    shared = rows.order is columns.order
    for across in rows.order.sides(rows.sizes, gather):
        for along in columns.order.sides(columns.sizes, gather):
            found = search_blocks(saliency, across, along, seed=seed)
            if shared and rows.order.is_free:
                yield Blocks(found.columns, found.columns, count)
                yield Blocks(found.rows, found.rows, count)
                continue
            yield found
            yield from _refined(site, layer, saliency, found, across, along)
    if rows.order.is_free and not shared:
        # The present columns, with the best rows for them.
        present = Blocks(in_order(rows.sizes), in_order(columns.sizes), count)
        yield _with_rows(site, layer, present, Side(rows.sizes))


def _with_rows(site: Site, layer: Layer, blocks: Blocks, side: Side) -> Blocks:
    """The same columns with the rows that leave the smallest error after the refit."""
    gains = layer.gains(site.columns.spread(blocks.columns), blocks.count)
    return Blocks(side.best(site.rows.summed(gains, 0)), blocks.columns, blocks.count)


def _refined(
    site: Site, layer: Layer, saliency: Array64, blocks: Blocks, across: Side, along: Side
) -> Iterator[Blocks]:
    """Rows by output error and columns by saliency in turns."""
    for _ in range(_ROUNDS):
        if across.fixed is not None:
            return
        blocks = _with_rows(site, layer, blocks, across)
        yield blocks
        if along.fixed is not None:
            return
        members = np.eye(blocks.count)[blocks.rows]
        blocks = Blocks(blocks.rows, along.best(saliency.T @ members), blocks.count)


__all__ = [
    "Axis",
    "Choice",
    "Site",
    "best_blocks",
    "exact_blocks",
    "fits",
    "is_half_sparse",
    "moved",
    "settle",
    "site_of",
]

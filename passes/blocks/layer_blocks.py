"""Choose the blocks of one layer, under the constraints of the channel orders that it shares with its neighbours.

A unit is a set of channels that move as one: a single channel, all columns that a channel has after a flatten, or the
dimensions of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...ir import Conv, GraphError, Linear, MaskedTensor, Node, Tensor
from ...ir.analysis import ChannelGroup, ChannelGroups
from ...ir.analysis.dequantized import is_dequantized
from .blocks import Array64, Blocks, Ids, capacities, contiguous_labels, find_blocks
from .form_cost import LayerSize
from .order import BlockAccess, ChannelOrder
from .refit import RefitLayer
from .search import Side, search_blocks

_ROUNDS = 4
"""The number of rounds that choose rows by output error, then columns by saliency."""


@dataclass(frozen=True, eq=False)
class WeightAxis:
    """The rows or the columns of a layer's weight.

    Attributes:
        order: The order of its units, shared with other layers.
        positions: The channels of each unit, of shape (units, channels of a unit).
        sizes: The number of units of each block.
        others: The orders of other groups that have channels along the same axis.
    """

    order: ChannelOrder
    positions: Ids
    sizes: Ids
    others: tuple[ChannelOrder, ...] = ()

    @property
    def channel_sizes(self) -> Ids:
        """The number of channels of each block."""
        return np.asarray(self.sizes * self.positions.shape[1])

    def spread(self, labels: Ids) -> Ids:
        """The labels of channels, from the labels of units."""
        found = np.empty(self.positions.size, np.int64)
        found[self.positions] = labels[:, None]
        return np.asarray(found)

    def access(self, labels: Ids) -> BlockAccess:
        """How a layer whose units have these labels accesses its blocks."""
        return self.order.access(labels, self.positions)

    def summed(self, array: Array64, axis: int) -> Array64:
        """The sum over the channels of each unit, along an axis of an array."""
        taken = np.moveaxis(array, axis, 0)[self.positions]
        return np.asarray(np.moveaxis(taken.sum(1), 0, axis))


@dataclass(frozen=True, eq=False)
class PivotSite:
    """A layer that may be pivoted.

    Attributes:
        node: The layer.
        weight: The weight.
        bias: The bias.
        work: The size of the layer.
        rows: The outputs.
        columns: The inputs.
    """

    node: Node
    weight: Tensor
    bias: Tensor | None
    work: LayerSize
    rows: WeightAxis
    columns: WeightAxis

    def read(self) -> Array64:
        """The weight in float64, of shape (rows, columns, taps)."""
        return self.weight.float64().reshape(*self.weight.shape[:2], -1)

    def per_unit(self, array: Array64) -> Array64:
        """The sum of a matrix (rows, columns) over the channels of each pair of units."""
        return self.rows.summed(self.columns.summed(array, 1), 0)

    def spread(self, blocks: Blocks) -> Blocks:
        """The blocks of channels, from blocks of units."""
        rows, columns = self.rows.spread(blocks.rows), self.columns.spread(blocks.columns)
        return Blocks(rows, columns, blocks.count)


def pivot_site(
    node: Node,
    groups: ChannelGroups,
    orders: dict[ChannelGroup, ChannelOrder],
    blocks: int,
    pad: bool,
) -> PivotSite | str:
    """A layer that may be pivoted, or the reason why it cannot be.

    Args:
        node: The layer.
        groups: The channel groups of the graph.
        orders: The channel orders of the layers before; those of this layer are added.
        blocks: The number of blocks.
        pad: Whether the last block may be smaller.
    """
    if not isinstance(node.op, (Linear, Conv)):
        return "it is neither a dense layer nor a convolution"
    x, weight, bias = node.inputs[0], node.inputs[1], node.input(2)
    if isinstance(node.op, Conv) and node.op.groups != 1:
        return "it has groups already"
    if weight is None or weight.data is None or (bias is not None and bias.data is None):
        return "its weight or bias is not a constant"
    if is_dequantized(weight):
        return "its weight is quantised: pivot before quantising, or inside requantize{...}"
    if not weight.data.dtype.is_wide_float:
        return f"its weight has the element type {weight.data.dtype.value}"
    if x is None or x.type.rank is None or x.type.rank < 2:
        return "the rank of its input is not known (give example inputs), or below 2"
    axes = []
    for axis, what in ((0, "outputs"), (1, "inputs")):
        found = weight_axis(groups, orders, node, axis, blocks)
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
    work = LayerSize(is_conv, sizes[0], sizes[1], _batch(node), taps, x.type.rank)
    return PivotSite(node, weight.data, None if bias is None else bias.data, work, *axes)


def _batch(node: Node) -> int | None:
    """How often a layer uses its weight in one run; ``None`` if not known."""
    shape = node.output.type.shape
    if shape is None:
        return None
    uses = (shape[0], *shape[2:]) if isinstance(node.op, Conv) else shape[:-1]
    known = [d for d in uses if isinstance(d, int)]
    return math.prod(known) if len(known) == len(uses) else None


def weight_axis(
    groups: ChannelGroups,
    orders: dict[ChannelGroup, ChannelOrder],
    node: Node,
    axis: int,
    blocks: int,
) -> WeightAxis:
    """One axis of the weight of a layer: the rows (axis 0) or the columns (axis 1); of a recurrent layer, the columns (axis 2)."""
    value = node.required(1)
    if value.data is None:
        raise GraphError(f"the weight of {node.name} is not a constant")
    size = value.data.shape[axis]
    along = groups.along(value, axis)
    known = {g: orders.setdefault(g, ChannelOrder(g.size)) for g, _ in along}
    whole = [(g, p) for g, p in along if p.positions.size == size and p.is_contiguous]
    if not whole:
        order = ChannelOrder(size, fixed=_why_fixed(groups, node, axis))
        positions = np.arange(size, dtype=np.int64)[:, None]
        return WeightAxis(order, positions, capacities(size, blocks), tuple(known.values()))
    group, placement = max(whole, key=lambda found: found[0].size)
    others = tuple(order for g, order in known.items() if g is not group)
    return WeightAxis(known[group], placement.positions, capacities(group.size, blocks), others)


def _why_fixed(groups: ChannelGroups, node: Node, axis: int) -> str:
    """The reason why the channels of a layer cannot be reordered."""
    reasons = groups.reasons(node.required(1), axis)
    if reasons:
        return reasons[0]
    return "they belong to several channel groups, which cannot be mixed"


# Blocks of existing zeros.


def blocks_of_zeros(site: PivotSite) -> Blocks | None:
    """The blocks of units that the zeros of a layer form; ``None`` if they form none."""
    data = site.weight
    # Prefer the mask: a weight inside it may have been trained to zero.
    kept = data.mask if isinstance(data, MaskedTensor) else data.numpy() != 0
    taps = np.asarray(kept, np.float64).reshape(*data.shape[:2], -1)
    nonzero = site.per_unit(taps.max(2)) != 0
    most = int((site.rows.sizes * site.columns.sizes).sum())
    if int(nonzero.sum()) > most:
        return None
    sizes = (site.rows.sizes, site.columns.sizes)
    present = Blocks(contiguous_labels(sizes[0]), contiguous_labels(sizes[1]), len(sizes[0]))
    # If the present order has the blocks, it also assigns rows and columns of zeros.
    if not nonzero[~present.mask()].any():
        return present
    return find_blocks(nonzero, *sizes)


def has_2_4_sparsity(weight: npt.NDArray[np.float64]) -> bool:
    """Whether a weight (rows, columns, taps) is 2:4 sparse: at most 2 of 4 adjacent channels are not zero."""
    if weight.shape[1] % 4:
        return False
    kept = (weight != 0).reshape(len(weight), -1, 4, weight.shape[2]).sum(2)
    return bool((kept <= 2).all())


def order_problem(site: PivotSite) -> str:
    """The reason why the layer can have no blocks: another layer ordered some of its channels; empty if it can."""
    for axis, what in ((site.rows, "output"), (site.columns, "input")):
        for other in axis.others:
            if other.parts:
                return (
                    f"some of its {what} channels are in the order of the blocks of {other.owner}"
                )
    return ""


def check_orders(site: PivotSite, blocks: Blocks) -> tuple[str, int]:
    """The reason why blocks do not fit the channel orders (else empty), and the number of shuffles they need."""
    return _place_labels(site, blocks, [replace(o, parts=list(o.parts)) for o in _orders(site)])


def fix_orders(site: PivotSite, blocks: Blocks) -> None:
    """Add the blocks of a layer to the orders of its channels."""
    _place_labels(site, blocks, _orders(site))
    for axis in (site.rows, site.columns):
        for other in axis.others:
            other.fixed = other.fixed or f"{site.node.name} has blocks across them"


def _orders(site: PivotSite) -> list[ChannelOrder]:
    return [site.rows.order, site.columns.order]


def _place_labels(site: PivotSite, blocks: Blocks, orders: list[ChannelOrder]) -> tuple[str, int]:
    """Add the labels of blocks to ``orders``; see :func:`check_orders`."""
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
            problems.append(f"its {what} channels cannot be reordered ({order.fixed})")
        else:
            problems.append(
                f"its {what} channels are in the order of the blocks of {order.owner}, which its own "
                "blocks do not cut evenly"
            )
    return "; ".join(problems), moves


# Blocks for dense weights.


@dataclass(frozen=True, eq=False)
class Choice:
    """Approximate blocks of a layer, with the weight and bias that go with them.

    Attributes:
        blocks: The blocks of units.
        weight: The weight, zero outside the blocks, of shape (rows, columns, taps).
        shift: The vector that is added to the bias.
        error: The relative error of the outputs; see :mod:`.refit`.
    """

    blocks: Blocks
    weight: Array64
    shift: Array64
    error: float


def best_blocks(
    site: PivotSite, layer: RefitLayer, *, search: bool, refit: bool, gather: bool, seed: int
) -> Choice | str:
    """The blocks with the smallest output error among those tried, or the reason why there are none.

    Args:
        site: The layer.
        layer: Its weight and the statistics of its inputs.
        search: Whether to try other orders than the present one.
        refit: Whether weights are refitted.
        gather: Whether channels that cannot be reordered may be gathered.
        seed: The seed of the search.
    """
    best: Choice | None = None
    problem = ""
    for blocks in _candidates(site, layer, search, gather, seed):
        reason, _ = check_orders(site, blocks)
        if reason and not gather:
            problem = problem or reason
            continue
        channels = site.spread(blocks)
        weight, shift = layer.refitted(channels) if refit else layer.masked(channels)
        error = layer.error(weight, shift)
        # Of equal errors, keep the first one, which needs the fewest shuffles.
        if best is None or error < best.error * (1 - 1e-6):
            best = Choice(blocks, weight, shift, error)
    if best is None:
        return problem
    return best


def _candidates(
    site: PivotSite, layer: RefitLayer, search: bool, gather: bool, seed: int
) -> Iterator[Blocks]:
    """The blocks to try; see :func:`best_blocks`."""
    rows, columns = site.rows, site.columns
    count = len(rows.sizes)
    yield Blocks(contiguous_labels(rows.sizes), contiguous_labels(columns.sizes), count)
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
        # The present columns with the best rows for them.
        present = Blocks(contiguous_labels(rows.sizes), contiguous_labels(columns.sizes), count)
        yield _with_rows(site, layer, present, Side(rows.sizes))


def _with_rows(site: PivotSite, layer: RefitLayer, blocks: Blocks, side: Side) -> Blocks:
    """The blocks with the same columns, and the rows with the smallest error after the refit."""
    gains = layer.gains(site.columns.spread(blocks.columns), blocks.count)
    return Blocks(side.best(site.rows.summed(gains, 0)), blocks.columns, blocks.count)


def _refined(
    site: PivotSite, layer: RefitLayer, saliency: Array64, blocks: Blocks, across: Side, along: Side
) -> Iterator[Blocks]:
    """Blocks from alternating choices: rows by output error, then columns by saliency."""
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
    "Choice",
    "PivotSite",
    "WeightAxis",
    "best_blocks",
    "blocks_of_zeros",
    "check_orders",
    "fix_orders",
    "has_2_4_sparsity",
    "order_problem",
    "pivot_site",
    "weight_axis",
]

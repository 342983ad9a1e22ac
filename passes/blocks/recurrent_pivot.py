"""The part of ``pivot`` that is about recurrent layers (LSTM, GRU, RNN).

Their blocks are settled before those of other layers, because their hidden units must be in the order of their own blocks: initial
states and results are then cut without moving anything. Layers around them follow, or shuffle channels.

1. Blocks that zeros form (:mod:`.recurrent_blocks`) are exact: of inputs and hidden units, or of hidden units alone.
2. Other blocks are approximate. A step is a dense layer on the inputs beside the hidden state of the step before; its
   rows are the sums that the gates read. Kept weights are refitted to these sums on calibration data (:mod:`.refit`), and the error is
   that of the sums, with the true states of the dense layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...ir import Exactness, Graph, Gru, Node, Rewriter
from ...ir.analysis import ChannelGroup, ChannelGroups
from ...ir.ops.recurrent import _Recurrent
from ..infra.contract import Context
from ..merge.algebra.tensors import from_float64, out_of_range
from ..statistics.gram import GramMatrix
from .blocks import Array64, Blocks, Ids, contiguous_labels
from .layer_blocks import check_orders, fix_orders, order_problem
from .numbering import BlockNumbering, PlacedLayer
from .order import ChannelOrder
from .recurrent_blocks import (
    RecurrentLabels,
    RecurrentSite,
    hidden_sides,
    labels_of_zeros,
    recurrent_site,
    search_labels,
)
from .recurrent_lower import RecurrentLayer, write_recurrent
from .refit import Covariance, RefitLayer
from .search import Side

if TYPE_CHECKING:
    from .pivot import Pivot

_BOTH = 0
"""The index that requests statistics of the inputs beside the states; see :mod:`..statistics.recurrent_columns`."""


@dataclass(eq=False)
class _Planned:
    """A recurrent layer whose blocks are part of the channel orders.

    Attributes:
        site: The layer.
        labels: Its blocks.
        placed: For each direction, its labels in :class:`BlockNumbering`, which may renumber them; empty if inputs have no blocks.
        refitted: The new constants by index; empty for exact blocks.
        error: The relative error of the sums that the gates read.
    """

    site: RecurrentSite
    labels: RecurrentLabels
    placed: list[PlacedLayer]
    refitted: dict[int, Array64] = field(default_factory=dict)
    error: float = 0.0

    def current(self) -> RecurrentLabels:
        """The labels as they are numbered now."""
        if self.placed:
            return RecurrentLabels(
                tuple(p.blocks.rows for p in self.placed), self.placed[0].blocks.columns
            )
        axes = zip(self.site.hidden, self.labels.hidden, strict=True)
        hidden = tuple(a.order.parts[0] if a.order.parts else own for a, own in axes)
        return RecurrentLabels(hidden, None)


@dataclass(eq=False)
class RecurrentPivot:
    """The recurrent layers of one run of the pass.

    Attributes:
        options: The pass.
        graph: The graph.
        rw: The rewriter.
        ctx: The context.
        orders: The channel orders, shared with the other layers.
        numbering: The numbers of blocks, shared with the other layers.
        planned: The layers that get blocks.
    """

    options: Pivot
    graph: Graph
    rw: Rewriter
    ctx: Context
    orders: dict[ChannelGroup, ChannelOrder]
    numbering: BlockNumbering
    planned: list[_Planned] = field(default_factory=list)
    groups: ChannelGroups = field(init=False)

    def settle(self, nodes: list[Node], groups: ChannelGroups) -> None:
        """Choose the blocks of recurrent layers, in the order of the graph, and add them to the channel orders."""
        o, self.groups = self.options, groups
        for node in nodes:
            site = recurrent_site(node, groups, self.orders, o.blocks, o.divide == "pad")
            if isinstance(site, str):
                self._skip(node, site)
                continue
            if not self._is_faster(site, divided=site.inputs is not None):
                self._slow(site)
                continue
            found = self._exact(site)
            if found is None and o.method == "zeros":
                self._skip(node, f"its zeros do not form {o.blocks} blocks of equal size")
            elif found is None:
                self._approximate(site)

    def layers(self) -> list[tuple[RecurrentLayer, str, Exactness]]:
        """The layers to write, each with the description of its rewrite; call it before channels are reordered."""
        return [self._layer(plan) for plan in self.planned]

    def write(self, layers: list[tuple[RecurrentLayer, str, Exactness]]) -> None:
        """Write the blocks of all layers."""
        for layer, what, exactness in layers:
            write_recurrent(self.rw, layer, what, exactness)

    # Choosing.

    def _exact(self, site: RecurrentSite) -> bool | None:
        """Use the blocks that zeros form; ``None`` if there are none, false if other layers' orders exclude them."""
        if self.options.method not in ("auto", "zeros"):
            return None
        tried: str | None = None
        for labels in labels_of_zeros(site):
            problem = self._place(_Planned(site, labels, []))
            if not problem:
                return True
            tried = tried or problem
        if tried is not None:
            self._skip(site.node, tried)
        return None if tried is None else False

    def _place(self, plan: _Planned) -> str:
        """Add the blocks of a layer to the channel orders; returns the reason if they do not fit, else an empty text."""
        site, divided = plan.site, plan.labels.inputs is not None
        problem = self._fits(plan)
        if problem:
            return problem
        moves = 0
        for placed in plan.placed:
            moves = max(moves, check_orders(placed.site, placed.blocks)[1])
        if not self._is_faster(site, divided=divided, moves=moves):
            return self._slow_reason(site)
        for placed in plan.placed:
            fix_orders(placed.site, placed.blocks)
            self.numbering.tie(placed)
        if not plan.placed:
            for axis, own in zip(site.hidden, plan.labels.hidden, strict=True):
                axis.order.add(own, site.node.name)
                for other in axis.others:
                    other.fixed = other.fixed or f"{site.node.name} has blocks across them"
        self.planned.append(plan)
        return ""

    def _fits(self, plan: _Planned) -> str:
        """The reason why blocks do not fit the channel orders, else empty; numbers blocks as the orders do."""
        site = plan.site
        sides = site.sides(plan.labels)
        blocks = [b for _, b in sides]
        for number, (side, _) in enumerate(sides):
            if problem := order_problem(side):
                return problem
            agreed = self.numbering.agreed(side, blocks[number])
            if number and not np.array_equal(agreed.columns, blocks[0].columns):
                return "the orders of its directions number blocks of inputs differently"
            if not number:
                # The other direction has the same inputs, and their numbers.
                blocks = [_renumbered_like(b, b.columns, agreed.columns) for b in blocks]
            blocks[number] = agreed
        plan.placed = [PlacedLayer(s, b) for (s, _), b in zip(sides, blocks, strict=True)]
        hidden = [b.rows for b in blocks] if sides else list(plan.labels.hidden)
        for number, axis in enumerate(site.hidden):
            if not sides:
                numbers = axis.order.numbers_in(hidden[number])
                if numbers is not None and np.array_equal(axis.sizes[numbers], axis.sizes):
                    hidden[number] = numbers[hidden[number]]
            if axis.order.place(hidden[number]) != 0:
                why = (
                    axis.order.fixed or f"they are in the order of the blocks of {axis.order.owner}"
                )
                return f"its hidden units cannot be reordered ({why})"
        if not sides:
            plan.labels = RecurrentLabels(tuple(hidden), None)
        for placed in plan.placed:
            problem, _ = check_orders(placed.site, placed.blocks)
            if problem and not self.options.gather:
                return problem + "; gather=true gathers them at run time"
        return ""

    def _approximate(self, site: RecurrentSite) -> None:
        """Choose the blocks with the smallest error on calibration data."""
        o, calibration = self.options, self.ctx.calibration
        if calibration is None:
            self._skip(
                site.node,
                f"its zeros do not form {o.blocks} blocks of equal size, and without calibration data "
                "the error of other blocks is not known: give calibration data, or train it in blocks first",
            )
            return
        problem = _statistics_problem(site)
        if problem:
            self._skip(site.node, problem)
            return
        request = GramMatrix(site.node, _BOTH)
        gram = calibration.collect(self.graph, [request])[request]
        layers = []
        for d in range(site.op.directions):
            covariance = Covariance(gram.scatter[d] / max(1, gram.count), gram.mean[d])
            whole = np.concatenate([site.w.float64()[d], site.r.float64()[d]], 1)
            layers.append(RefitLayer(whole[:, :, None], covariance))
        problem = next((layer.problem for layer in layers if layer.problem), "")
        best: _Planned | None = None
        for labels in [] if problem else self._candidates(site, layers):
            if best is not None and labels.inputs is None and best.labels.inputs is not None:
                continue  # Inputs that are not divided lose less, and save less.
            plan = self._refitted(site, labels, layers)
            if reason := self._fits(plan):
                problem = problem or reason
            elif best is None or plan.error < best.error * (1 - 1e-6):
                best = plan
        if best is None:
            self._skip(site.node, problem)
        elif (reason := self._number_problem(best)) or (reason := self._place(best)):
            self._skip(site.node, reason)

    def _candidates(
        self, site: RecurrentSite, layers: list[RefitLayer]
    ) -> Iterator[RecurrentLabels]:
        """The blocks to try: the present order, and the searched one."""
        inputs = site.inputs
        present = tuple(contiguous_labels(axis.sizes) for axis in site.hidden)
        yield RecurrentLabels(present, None if inputs is None else contiguous_labels(inputs.sizes))
        if self.options.method == "identity":
            return
        saliency = [layer.saliency() for layer in layers]
        yield from searched_labels(site, saliency, self.ctx.seed, self.options.gather)

    def _refitted(
        self, site: RecurrentSite, labels: RecurrentLabels, layers: list[RefitLayer]
    ) -> _Planned:
        """The plan of approximate blocks, with its new weights and its error."""
        w, r = site.w.float64().copy(), site.r.float64().copy()
        kept_w, kept_r = site.masks(labels)
        rows, features = site.op.gates * site.op.hidden, w.shape[2]
        bias = site.node.input(3)
        b = (
            np.zeros((len(w), 2 * rows))
            if bias is None or bias.data is None
            else bias.data.float64()
        )
        b, off, size, refit = b.copy(), 0.0, 0.0, self.options.refit and labels.inputs is not None
        for d, layer in enumerate(layers):
            if refit:
                blocks = _joint_blocks(site, labels, d)
                weight, shift = layer.refitted(blocks)
            else:
                mask = np.concatenate([kept_w[d], kept_r[d]], 1)
                weight, shift = np.where(mask[:, :, None], layer.weight, 0.0), np.zeros(rows)
            variance = float(layer.variance.sum())
            off += layer.error(weight, shift) ** 2 * variance if variance else math.inf
            size += variance
            w[d], r[d] = weight[:, :features, 0], weight[:, features:, 0]
            b[d, :rows] += shift
        refitted = {1: w, 2: r}
        if bias is not None or b.any():
            refitted[3] = b
        error = math.sqrt(off / size) if size else math.inf
        return _Planned(site, labels, [], refitted, error)

    def _number_problem(self, plan: _Planned) -> str:
        """The reason why approximate blocks cannot be used; empty if they can."""
        o, dtype = self.options, plan.site.w.dtype
        if not math.isfinite(plan.error):
            return "its gates never vary on the calibration data, so the error of blocks cannot be measured"
        if any(out_of_range(from_float64(a, dtype)) for a in plan.refitted.values()):
            return f"the refitted numbers would leave the range of {dtype.value}"
        if o.max_error is not None and plan.error > o.max_error:
            return f"the error of its gates would be {plan.error:.1%}, max-error allows {o.max_error:.1%}"
        return ""

    def _is_faster(self, site: RecurrentSite, *, divided: bool, moves: int = 0) -> bool:
        o, target = self.options, self.ctx.target
        blocked = site.work.expected(target, o.blocks, divided=divided, moves=moves)
        return o.force or blocked < 0.95 * site.work.expected(target)

    def _slow(self, site: RecurrentSite) -> None:
        self._skip(site.node, self._slow_reason(site))

    def _slow_reason(self, site: RecurrentSite) -> str:
        w = site.work
        return (
            f"{self.options.blocks} layers of {w.hidden // self.options.blocks} hidden units are not expected to run "
            f"faster for {self.ctx.target} than one of {w.hidden}: it stays dense (force=true overrides)"
        )

    def _skip(self, node: Node, reason: str) -> None:
        self.rw.skip(node, f"not pivoted: {reason}")

    # Writing.

    def _layer(self, plan: _Planned) -> tuple[RecurrentLayer, str, Exactness]:
        site, labels = plan.site, plan.current()
        hidden = []
        for axis, own in zip(site.hidden, labels.hidden, strict=True):
            access = axis.order.access(own, axis.positions)
            assert access.is_direct  # ``_fits`` checked it.
            hidden.append(access.channels)
        inputs = None
        input_sizes = np.empty(0, np.int64)
        if site.inputs is not None and labels.inputs is not None:
            inputs = site.inputs.access(labels.inputs)
            input_sizes = site.inputs.channel_sizes
        values = enumerate(site.node.inputs)
        constants = {i: v.data for i, v in values if i not in (0, 4) and v and v.data is not None}
        layer = RecurrentLayer(
            site.node, tuple(hidden), site.hidden[0].channel_sizes, inputs, input_sizes,
            self._input_order(site), constants, plan.refitted, self.ctx.target != "fx",
        )  # fmt: skip
        what = f"pivot into {self.options.blocks} recurrent layers"
        what += " side by side" if inputs is not None else " side by side that read all inputs"
        if plan.refitted:
            what += f", error of the gates {plan.error:.1%}"
        if inputs is not None and not inputs.is_direct:
            what += ", 1 gather" if inputs.gather is not None else ", 1 shuffle"
        exactness = Exactness.APPROXIMATE if plan.refitted else Exactness.EXACT
        return layer, what, exactness

    def _input_order(self, site: RecurrentSite) -> Ids:
        """The inputs of a layer as the orders of their channel groups leave them."""
        made = np.arange(site.w.shape[2], dtype=np.int64)
        for group, placement in self.groups.along(site.node.required(1), 2):
            if group in self.orders:
                made[placement.positions] = placement.positions[self.orders[group].order()]
        return made


def recurrent_nodes(graph: Graph, wanted: set[Node] | None) -> list[Node]:
    """The recurrent layers that a pass is about."""
    return [
        node
        for node in graph.nodes
        if isinstance(node.op, _Recurrent) and (wanted is None or node in wanted)
    ]


def searched_labels(
    site: RecurrentSite, saliency: list[Array64], seed: int, gather: bool = False
) -> Iterator[RecurrentLabels]:
    """Blocks that keep much of the saliency, one for each way in which the inputs may be divided; last, one that does not divide them.

    Args:
        site: The layer.
        saliency: For each direction, the saliency of the weights (rows of all gates, inputs and hidden units).
        seed: The seed of the search.
        gather: Whether inputs that cannot be reordered may be gathered.
    """
    features, op = site.w.shape[2], site.op
    inner, outer = [], []
    for d, both in enumerate(saliency):
        summed = both.reshape(op.gates, op.hidden, -1).sum(0)
        inner.append(site.per_unit(summed[:, features:], d, inputs=False))
        if site.inputs is not None:
            outer.append(site.per_unit(summed[:, :features], d, inputs=True))
    if site.shares_order:
        inner, outer = ([np.sum(p, 0)] * len(p) if p else [] for p in (inner, outer))
    inputs = site.inputs
    for side in [*([] if inputs is None else inputs.order.sides(inputs.sizes, gather)), None]:
        chosen: list[Ids] = []
        given = side
        for d, axis in enumerate(site.hidden):
            own_side = hidden_sides(axis)
            if chosen and site.shares_order:
                own_side = Side(axis.sizes, fixed=chosen[0])
            hidden, own, _ = search_labels(
                inner[d], outer[d] if outer else None, own_side, given, seed
            )
            chosen.append(hidden)
            if given is not None and own is not None:
                # The second direction reads the inputs in the blocks of the first one.
                given = Side(given.sizes, fixed=own)
        yield RecurrentLabels(tuple(chosen), None if given is None else given.fixed)


def _joint_blocks(site: RecurrentSite, labels: RecurrentLabels, direction: int) -> Blocks:
    """The blocks of one direction as a dense layer on the inputs beside the state."""
    assert site.inputs is not None
    assert labels.inputs is not None
    own = site.hidden[direction].spread(labels.hidden[direction])
    columns = np.concatenate([site.inputs.spread(labels.inputs), own])
    return Blocks(np.tile(own, site.op.gates), columns, site.count)


def _statistics_problem(site: RecurrentSite) -> str:
    """The reason why the error of approximate blocks cannot be measured; empty if it can."""
    if isinstance(site.op, Gru) and not site.op.reset_after:
        return (
            "its reset gate scales the state before the product, for which blocks are not refitted: "
            "use mask-blocks, or train it in blocks first"
        )
    if site.node.input(4) is not None:
        return "its sequences have different lengths: use mask-blocks, or train it in blocks first"
    return GramMatrix(site.node, _BOTH).problem()


def _renumbered_like(blocks: Blocks, old: Ids, new: Ids) -> Blocks:
    """The blocks, with the change of numbers that made ``new`` of ``old``."""
    numbers = np.arange(blocks.count)
    numbers[old] = new
    return Blocks(numbers[blocks.rows], numbers[blocks.columns], blocks.count)


__all__ = ["RecurrentPivot", "recurrent_nodes", "searched_labels"]

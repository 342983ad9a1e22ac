"""``mask-blocks``: put weights under masks of permuted blocks, for training; ``pivot`` then makes them dense blocks exactly.

With more than a few blocks, no order of trained weights keeps the accuracy, but a network that is trained under such
masks loses hardly any (Supic et al., *MPDCompress: Matrix Permutation Decomposition Algorithm for Deep Neural Network
Compression*, 2018). Masks are drawn at random as in that paper, or chosen to keep most of the present weights. Layers
that share channels get masks that fit a common order: blocks that cut each other evenly, so that a layer mixes channels
that the layer before it keeps separate, or equal blocks if that is not possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from ...ir import Conv, Exactness, Graph, Linear, MaskedTensor, Node, Rewriter, Value
from ...ir.analysis import ChannelGroup, channel_groups
from ...ir.ops.recurrent import _Recurrent
from ...ir.options import Bounds
from ..infra.contract import Context, Pass, named_nodes
from ..infra.registry import register
from .blocks import Array64, Blocks
from .layer_blocks import PivotSite, WeightAxis, check_orders, fix_orders, order_problem, pivot_site
from .order import ChannelOrder
from .recurrent_blocks import RecurrentLabels, RecurrentSite, hidden_sides, recurrent_site
from .recurrent_pivot import searched_labels
from .search import Side, kept_mass, search_blocks


@register
@dataclass(frozen=True)
class MaskBlocks(Pass):
    """Put weights under masks of permuted blocks, for training.

    Attributes:
        blocks: The number of blocks.
        draw: ``random`` draws the blocks, ``weights`` chooses those that keep most of the squared weights.
        layers: Names of layers, or patterns with * and ?; all dense layers, convolutions and recurrent layers if not given.
        divide: What to do if the number of channels is not a multiple of blocks: ``refuse``, or ``pad``, which makes the
            last block smaller.
    """

    name = "mask-blocks"
    exactness = Exactness.APPROXIMATE
    blocks: Annotated[int, Bounds(at_least=2)] = 4
    draw: Literal["random", "weights"] = "random"
    layers: str | tuple[str, ...] = ()
    divide: Literal["refuse", "pad"] = "refuse"

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        wanted = named_nodes(graph, self.layers, self.name) if self.layers else None
        groups = channel_groups(graph)
        orders: dict[ChannelGroup, ChannelOrder] = {}
        for node in list(graph.nodes):
            kinds = (Linear, Conv, _Recurrent)
            chosen = isinstance(node.op, kinds) if wanted is None else node in wanted
            if not chosen:
                continue
            pad = self.divide == "pad"
            if isinstance(node.op, _Recurrent):
                layer = recurrent_site(node, groups, orders, self.blocks, pad)
                problem = layer if isinstance(layer, str) else self._mask_recurrent(layer, rw, ctx)
            else:
                site = pivot_site(node, groups, orders, self.blocks, pad)
                problem = site if isinstance(site, str) else self._mask(site, rw, ctx)
            if problem:
                rw.skip(node, f"not masked: {problem}")

    def _mask(self, site: PivotSite, rw: Rewriter, ctx: Context) -> str:
        """Put one layer under a mask; returns the reason if it cannot be done, else an empty text."""
        value = site.node.required(1)
        if problem := _shared_problem(value, site.node):
            return problem
        if problem := order_problem(site):
            return problem
        best, mass = None, -1.0
        weight = site.read()
        if not np.isfinite(weight).all():
            return "its weight is not finite everywhere"
        # Only ratios matter: with a largest number near 1 no square leaves the range of float64.
        near_one = np.ldexp(weight, -math.frexp(np.abs(weight).max(initial=0.0))[1])
        saliency = site.per_unit((near_one**2).sum(2))
        for blocks in self._candidates(site, saliency, ctx):
            found, _ = check_orders(site, blocks)
            kept = kept_mass(saliency, blocks)
            # Random blocks: take the first ones that fit. Otherwise: those that keep most.
            if not found and (best is None or (self.draw == "weights" and kept > mass)):
                best, mass = blocks, kept
            problem = problem or found
        if best is None:
            return problem
        fix_orders(site, best)
        mask = (
            site.spread(best).mask().reshape(*weight.shape[:2], *[1] * (len(site.weight.shape) - 2))
        )
        masked = MaskedTensor(site.weight, np.broadcast_to(mask, site.weight.shape), lasting=True)
        what = f"mask by {self.blocks} blocks, {mass:.0%} of the squared weights kept"
        with rw.rewrite(what, site.node):
            rw.set_input(site.node, 1, rw.constant(masked, value.name))
            if value.producer is None and not value.use_count:
                rw.erase_constant(value)
        return ""

    def _mask_recurrent(self, site: RecurrentSite, rw: Rewriter, ctx: Context) -> str:
        """Put both matrices of a recurrent layer under masks; returns the reason if it cannot be done, else an empty text."""
        node, problem = site.node, ""
        values = [node.required(1), node.required(2)]
        for value in values:
            if problem := _shared_problem(value, node):
                return problem
        w, r = site.w.float64(), site.r.float64()
        if not (np.isfinite(w).all() and np.isfinite(r).all()):
            return "its weights are not finite everywhere"
        both = np.concatenate([w, r], 2)
        saliency = np.ldexp(both, -math.frexp(np.abs(both).max(initial=0.0))[1]) ** 2
        best, mass = None, -1.0
        for labels in self._recurrent_candidates(site, list(saliency), ctx):
            if best is not None and labels.inputs is None and best.inputs is not None:
                continue  # Inputs that are not divided keep more, and save less.
            found = _recurrent_problem(site, labels)
            inside = np.concatenate(site.masks(labels), 2)
            kept = float(saliency[inside].sum()) / (float(saliency.sum()) or 1.0)
            if not found and (best is None or (self.draw == "weights" and kept > mass)):
                best, mass = labels, kept
            problem = problem or found
        if best is None:
            return problem
        for side, blocks in site.sides(best):
            fix_orders(side, blocks)
        for axis, own in zip(site.hidden, best.hidden, strict=True):
            axis.order.add(own, node.name)
        what = f"mask by {self.blocks} blocks, {mass:.0%} of the squared weights kept"
        with rw.rewrite(what, node):
            for index, (value, mask) in enumerate(zip(values, site.masks(best), strict=True), 1):
                if value.data is None or mask.all():
                    continue
                masked = MaskedTensor(value.data, mask, lasting=True)
                rw.set_input(node, index, rw.constant(masked, value.name))
                if value.producer is None and not value.use_count:
                    rw.erase_constant(value)
        return ""

    def _recurrent_candidates(
        self, site: RecurrentSite, saliency: list[Array64], ctx: Context
    ) -> Iterator[RecurrentLabels]:
        """The blocks of a recurrent layer to try; of inputs and hidden units, then of hidden units alone."""
        if self.draw == "weights":
            yield from searched_labels(site, saliency, ctx.seed)
        else:
            hidden = tuple(
                side.best(ctx.rng.random((side.size, self.blocks)))
                for side in map(hidden_sides, site.hidden)
            )
            if site.shares_order:
                hidden = (hidden[0],) * len(hidden)
            inputs = site.inputs
            shared = inputs is not None and inputs.order is site.hidden[0].order
            if shared:
                yield RecurrentLabels(hidden, hidden[0])
            for side in [] if inputs is None or shared else _mixing_first(inputs):
                yield RecurrentLabels(hidden, side.best(ctx.rng.random((side.size, self.blocks))))
            yield RecurrentLabels(hidden, None)

    def _candidates(self, site: PivotSite, saliency: Array64, ctx: Context) -> Iterator[Blocks]:
        """The blocks of units to try."""
        rows, columns, count = site.rows, site.columns, self.blocks
        if rows.order is columns.order and rows.order.is_free:
            # Both sides share one order, so they must have the same blocks.
            sides: Iterable[tuple[Side, Side]] = [(Side(rows.sizes), Side(columns.sizes))]
        else:
            sides = [(a, b) for a in _mixing_first(rows) for b in _mixing_first(columns)]
        for across, along in sides:
            if self.draw == "weights":
                found = search_blocks(saliency, across, along, seed=ctx.seed)
            else:
                draws = [s.best(ctx.rng.random((s.size, count))) for s in (across, along)]
                found = Blocks(draws[0], draws[1], count)
            if rows.order is columns.order:
                found = Blocks(found.columns, found.columns, count)
            yield found


def _shared_problem(value: Value, node: Node) -> str:
    """The reason why a weight cannot be masked: another node reads it too; empty if none does."""
    others = [user.name for user in value.users if user is not node]
    if not others:
        return ""
    return f"its weight is shared with {others[0]}, which would get a copy without a mask"


def _recurrent_problem(site: RecurrentSite, labels: RecurrentLabels) -> str:
    """The reason why the blocks of a recurrent layer do not fit the channel orders; empty if they do."""
    for axis, own in zip(site.hidden, labels.hidden, strict=True):
        if axis.order.place(own) != 0:
            why = axis.order.fixed or f"they are in the order of the blocks of {axis.order.owner}"
            return f"its hidden units cannot be reordered ({why})"
    for side, blocks in site.sides(labels):
        if problem := order_problem(side) or check_orders(side, blocks)[0]:
            return problem
    return ""


def _mixing_first(axis: WeightAxis) -> list[Side]:
    """The choices of labels for an axis; blocks that cut those of the neighbours evenly come first."""
    sides = axis.order.sides(axis.sizes, gather=False)
    return sorted(sides, key=lambda side: side.fixed is not None)

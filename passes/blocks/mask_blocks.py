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

from ...ir import Conv, Exactness, Graph, Linear, MaskedTensor, Rewriter
from ...ir.analysis import ChannelGroup, channel_groups
from ...ir.options import Bounds
from ..infra.contract import Context, Pass, named_nodes
from ..infra.registry import register
from .blocks import Array64, Blocks
from .layer_blocks import PivotSite, WeightAxis, check_orders, fix_orders, order_problem, pivot_site
from .order import ChannelOrder
from .search import Side, kept_mass, search_blocks


@register
@dataclass(frozen=True)
class MaskBlocks(Pass):
    """Put weights under masks of permuted blocks, for training.

    Attributes:
        blocks: The number of blocks.
        draw: ``random`` draws the blocks, ``weights`` chooses those that keep most of the squared weights.
        layers: Names of layers, or patterns with * and ?; all dense layers and convolutions if not given.
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
            chosen = isinstance(node.op, (Linear, Conv)) if wanted is None else node in wanted
            if not chosen:
                continue
            site = pivot_site(node, groups, orders, self.blocks, self.divide == "pad")
            problem = site if isinstance(site, str) else self._mask(site, rw, ctx)
            if problem:
                rw.skip(node, f"not masked: {problem}")

    def _mask(self, site: PivotSite, rw: Rewriter, ctx: Context) -> str:
        """Put one layer under a mask; returns the reason if it cannot be done, else an empty text."""
        value = site.node.required(1)
        others = [node.name for node in value.users if node is not site.node]
        if others:
            return f"its weight is shared with {others[0]}, which would get a copy without a mask"
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


def _mixing_first(axis: WeightAxis) -> list[Side]:
    """The choices of labels for an axis; blocks that cut those of the neighbours evenly come first."""
    sides = axis.order.sides(axis.sizes, gather=False)
    return sorted(sides, key=lambda side: side.fixed is not None)

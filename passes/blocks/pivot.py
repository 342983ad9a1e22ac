"""``pivot``: weights in k dense blocks, with all reordering absorbed by the neighbours.

Rows and columns of a weight are put in an order in which what is kept forms k equal dense blocks on the diagonal. The
layer then has a k-th of its weights and of its arithmetic, in ops that every runtime runs fast. The idea is that of
MPDCompress (Supic et al., 2018) and of matrix pivoting; here it works on whole graphs:

1. Blocks: those that the zeros of a weight form already, exactly (:mod:`.blocks`); else the ones of the smallest
   output error on calibration data, among many (:mod:`.search`, :mod:`.refit`). How much of a weight is
   kept says little about accuracy, and is never what decides.
2. Orders: channels are reordered together with everything that is coupled to them
   (:mod:`graphshrink.ir.analysis`). Layers that share channels share their order where they can (:mod:`.order`).
3. Form: what runs fastest on the target (:mod:`.forms`, :mod:`.lower`), and no form where the dense layer does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from ...ir import Conv, Exactness, Graph, Linear, Node, Rewriter
from ...ir.analysis import ChannelGroup, channel_groups
from ...ir.options import Bounds
from ..channels.apply import apply_permutations
from ..cleanup.cancel_reshapes import cancel_reshapes
from ..infra.contract import Context, Pass, named_nodes
from ..infra.registry import register
from ..merge.algebra.tensors import exact, out_of_range
from ..statistics.gram import Gram, GramMatrix
from .blocks import Array64
from .choose import (
    Choice,
    Site,
    best_blocks,
    exact_blocks,
    fits,
    is_half_sparse,
    moved,
    settle,
    site_of,
)
from .forms import choose_form
from .lower import BlockLayer, write
from .names import Names, Settled
from .order import ChannelOrder
from .refit import Covariance, Layer

GRAMS_BYTES = 1 << 29
"""What the statistics that are collected in one run over the data may take."""

_GATHER = "; gather=true gathers them at run time"


_MOST_BLOCKS = 1 << 12


@register
@dataclass(frozen=True)
class Pivot(Pass):
    """Make weights k dense blocks: exactly where their zeros allow it, else by the smallest output error.

    Attributes:
        blocks: The number of blocks: weights and arithmetic of a layer are divided by it.
        method: ``zeros`` takes only blocks that zeros form already, ``search`` looks for the best order, ``identity``
            cuts the present order into blocks; ``auto`` is zeros, and search where there are none.
        layers: Names of layers, or patterns with * and ?; all dense layers and convolutions when not given.
        max_error: The largest error of a layer's outputs, relative to their deviation (0.1: 10 %).
        divide: What to do where the number of channels is no multiple of blocks: ``refuse``, or ``pad``, which lets the last
            block be smaller.
        refit: Refit the weights that stay to what the layer computed, by ridge regression.
        gather: Gather channels at run time where they cannot be reordered.
        force: Write blocks even where they are not expected to be faster.
    """

    name = "pivot"
    exactness = Exactness.APPROXIMATE
    blocks: Annotated[int, Bounds(at_least=2, at_most=_MOST_BLOCKS)] = 4
    method: Literal["auto", "zeros", "search", "identity"] = "auto"
    layers: str | tuple[str, ...] = ()
    max_error: Annotated[float, Bounds(at_least=0)] | None = None
    divide: Literal["refuse", "pad"] = "refuse"
    refit: bool = True
    gather: bool = False
    force: bool = False

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        _Run(self, graph, rw, ctx).run()


@dataclass(eq=False)
class _Planned(Settled):
    """A layer whose blocks are settled, with what replaces its weight and bias."""

    refitted: tuple[Array64, Array64] | None = None
    error: float = 0.0


@dataclass(eq=False)
class _Run:
    options: Pivot
    graph: Graph
    rw: Rewriter
    ctx: Context
    orders: dict[ChannelGroup, ChannelOrder] = field(default_factory=dict)
    planned: list[_Planned] = field(default_factory=list)
    names: Names = field(default_factory=Names)

    def run(self) -> None:
        sites = sorted(self._sites(), key=lambda s: -_macs(s))
        dense = [site for site in sites if not self._exact(site)]
        self._search([site for site in dense if self._may_search(site)])
        self._apply()

    def _sites(self) -> Iterator[Site]:
        o, graph = self.options, self.graph
        wanted = named_nodes(graph, o.layers, o.name) if o.layers else None
        groups = channel_groups(graph)
        for node in graph.nodes:
            if (wanted is None and not isinstance(node.op, (Linear, Conv))) or (
                wanted is not None and node not in wanted
            ):
                continue
            found = site_of(node, groups, self.orders, o.blocks, o.divide == "pad")
            if isinstance(found, str):
                self._skip(node, found)
            elif self._form(found) is None:
                self._slow(found)
            else:
                yield found

    def _form(self, site: Site, moves: int = 0) -> str | None:
        o = self.options
        even = all(
            bool((axis.channel_sizes == axis.channel_sizes[0]).all())
            for axis in (site.rows, site.columns)
        )
        target = self.ctx.target
        return choose_form(site.work, o.blocks, target, even=even, moves=moves, force=o.force)

    def _slow(self, site: Site) -> None:
        w, o = site.work, self.options
        uses = "an unknown number of" if w.batch is None else str(w.batch)
        self._skip(
            site.node,
            f"{o.blocks} blocks of {w.rows} x {w.columns} weights, used {uses} times, are not expected to run "
            f"faster for {self.ctx.target}: it stays dense (force=true overrides)",
        )

    def _skip(self, node: Node, reason: str) -> None:
        self.rw.skip(node, f"not pivoted: {reason}")

    # Choosing.

    def _exact(self, site: Site) -> bool:
        """Take the blocks that zeros form; whether there are such."""
        o = self.options
        if o.method not in ("auto", "zeros"):
            return False
        try:
            found = exact_blocks(site)
        except ValueError as error:
            self._skip(site.node, str(error))
            return True
        if found is None:
            if o.method == "zeros":
                self._skip(site.node, f"its zeros do not form {o.blocks} blocks of equal size")
            return o.method == "zeros"
        if not self._is_moved(site):
            self._settle(_Planned(site, self.names.agreed(site, found)))
        return True

    def _is_moved(self, site: Site) -> bool:
        problem = moved(site)
        if problem:
            self._skip(site.node, problem)
        return bool(problem)

    def _settle(self, planned: _Planned) -> None:
        """Fix the orders of a layer's channels, if they fit and it pays."""
        site, blocks = planned.site, planned.blocks
        problem, moves = fits(site, blocks)
        if problem and not self.options.gather:
            self._skip(site.node, problem + _GATHER)
        elif self._form(site, moves) is None:
            self._slow(site)
        else:
            settle(site, blocks)
            self.names.settle(planned)
            self.planned.append(planned)

    def _may_search(self, site: Site) -> bool:
        if self.ctx.calibration is None:
            self._skip(
                site.node,
                f"its zeros do not form {self.options.blocks} blocks of equal size, and without calibration data "
                "nobody knows what other blocks would cost: give calibration data, or train it in blocks first",
            )
            return False
        if is_half_sparse(site.read()):
            self._skip(site.node, "it is 2:4 sparse, which blocks would undo")
            return False
        problem = GramMatrix(site.node).problem()
        if problem:
            self._skip(site.node, problem)
        return not problem

    def _search(self, sites: list[Site]) -> None:
        o, calibration = self.options, self.ctx.calibration
        grams: dict[GramMatrix, Gram] = {}
        for done, site in enumerate(sites):
            self.ctx.progress(done, len(sites), f"pivot {site.node.name}")
            request = GramMatrix(site.node)
            if request not in grams:
                # As many layers at a time as memory allows.
                assert calibration is not None
                requests = list(_within([GramMatrix(s.node) for s in sites[done:]], GRAMS_BYTES))
                results = calibration.collect(self.graph, requests)
                grams = {r: results[r] for r in requests}
            gram = grams.pop(request)
            if self._is_moved(site):
                continue
            layer = Layer(site.read(), _covariance(gram))
            if layer.problem:
                self._skip(site.node, layer.problem)
                continue
            found = best_blocks(
                site, layer, search=o.method != "identity", refit=o.refit, gather=o.gather, seed=self.ctx.seed,
            )  # fmt: skip
            if isinstance(found, str):
                self._skip(site.node, found + _GATHER)
            elif problem := _misfit(site, found):
                self._skip(site.node, problem)
            elif o.max_error is not None and found.error > o.max_error:
                self._skip(
                    site.node,
                    f"its outputs would be {found.error:.1%} off, max-error allows {o.max_error:.1%}",
                )
            else:
                self._settle(_Planned(site, found.blocks, (found.weight, found.shift), found.error))

    # Writing.

    def _apply(self) -> None:
        layers = [(plan, self._layer(plan)) for plan in self.planned]
        reordered = [(group, order.order()) for group, order in self.orders.items() if order.parts]
        apply_permutations(self.graph, self.rw, reordered)
        before = set(self.graph.nodes)
        for plan, layer in layers:
            moves = [a for a in (layer.rows, layer.columns) if not a.is_direct]
            what = f"pivot into {self.options.blocks} blocks ({layer.form})"
            if plan.refitted is not None:
                what += f", outputs {plan.error:.1%} off"
            if len(moves) > layer.gathers:
                what += f", {_counted(len(moves) - layer.gathers, 'shuffle')}"
            if layer.gathers:
                what += f", {_counted(layer.gathers, 'gather')}"
            exactness = Exactness.EXACT if plan.refitted is None else Exactness.APPROXIMATE
            write(self.rw, layer, what, exactness)
        cancel_reshapes(self.rw, [n for n in self.graph.nodes if n not in before])

    def _layer(self, plan: _Planned) -> BlockLayer:
        site = plan.site
        rows = site.rows.access(plan.blocks.rows)
        columns = site.columns.access(plan.blocks.columns)
        form = self._form(site, sum(not a.is_direct for a in (rows, columns)))
        assert form is not None
        return BlockLayer(
            site.node, form, rows, columns, site.rows.channel_sizes, site.columns.channel_sizes,
            site.weight, site.bias, plan.refitted, self.ctx.target != "fx",
        )  # fmt: skip


def _within(requests: list[GramMatrix], size: int) -> Iterator[GramMatrix]:
    """The first requests whose results take no more than so many bytes together, one at least."""
    taken = 0
    for request in requests:
        taken += request.nbytes()
        if taken > size and taken > request.nbytes():
            return
        yield request


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count > 1 else ''}"


def _macs(site: Site) -> int:
    return math.prod(site.weight.shape) * (site.work.batch or 1)


def _misfit(site: Site, found: Choice) -> str:
    """What the numbers of chosen blocks have against them; empty when nothing."""
    if not math.isfinite(found.error):
        return (
            "its outputs never vary on the calibration data, which therefore cannot say what blocks would cost: "
            "give other data, or leave the refit on"
        )
    dtype = site.weight.dtype
    bias = found.shift if site.bias is None else site.bias.float64() + found.shift
    if out_of_range(exact(found.weight, dtype)) or out_of_range(exact(bias, dtype)):
        return f"the refitted numbers would leave the range of {dtype.value}"
    return ""


def _covariance(gram: Gram) -> Covariance:
    return Covariance(gram.scatter[0] / max(1, gram.count), gram.mean[0])

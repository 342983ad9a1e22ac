"""``pivot``: weights become k dense blocks; the neighbouring layers absorb the reordering of channels.

The rows and columns of a weight are ordered so that the kept weights form k equal dense blocks on the diagonal. The layer
then has 1/k of its weights and of its arithmetic, in ops that every runtime runs fast. The idea comes from MPDCompress
(Supic et al., 2018) and from matrix pivoting; here it works on whole graphs:

1. Blocks: the exact ones that the zeros of a weight already form (:mod:`.blocks`), or else, of many candidates, those
   with the smallest output error on calibration data (:mod:`.search`, :mod:`.refit`). The magnitude that blocks keep
   says little about accuracy, so it does not decide.
2. Orders: channels are reordered together with everything that is coupled to them
   (:mod:`graphshrink.ir.analysis`). Layers that share channels share one order if possible (:mod:`.order`).
3. Form: the fastest ops on the target (:mod:`.form_cost`, :mod:`.lower`); the layer stays dense if that is faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from ...ir import Conv, Exactness, Graph, Linear, Node, Rewriter
from ...ir.analysis import ChannelGroup, ChannelGroups, channel_groups
from ...ir.ops.recurrent import _Recurrent
from ...ir.options import Bounds
from ..channels.apply import apply_permutations
from ..cleanup.cancel_reshapes import cancel_reshapes
from ..infra.contract import Context, Pass, named_nodes
from ..infra.registry import register
from ..merge.algebra.tensors import from_float64, out_of_range
from ..statistics.gram import Gram, GramMatrix
from .blocks import Array64
from .form_cost import choose_form
from .layer_blocks import (
    Choice,
    PivotSite,
    best_blocks,
    blocks_of_zeros,
    check_orders,
    fix_orders,
    has_2_4_sparsity,
    order_problem,
    pivot_site,
)
from .lower import BlockLayer, write_blocks
from .numbering import BlockNumbering, PlacedLayer
from .order import ChannelOrder
from .recurrent_pivot import RecurrentPivot, recurrent_nodes
from .refit import Covariance, RefitLayer

GRAMS_BYTES = 1 << 29
"""The largest size of all statistics that one run over the data collects, in bytes."""

_GATHER = "; gather=true gathers them at run time"


_MOST_BLOCKS = 1 << 12
"""The largest number of blocks."""


@register
@dataclass(frozen=True)
class Pivot(Pass):
    """Turn weights into k dense blocks: exactly if their zeros allow it, else with the smallest output error.

    Attributes:
        blocks: The number of blocks k; a layer keeps 1/k of its weights and arithmetic.
        method: ``zeros`` uses only blocks that zeros already form, ``search`` searches the best order, ``identity``
            divides the present order into blocks; ``auto`` is zeros, or search for layers without such zeros.
        layers: Names of layers, or patterns with * and ?; all dense layers, convolutions and recurrent layers if not given.
        max_error: The largest error of a layer's outputs, relative to their standard deviation (0.1: 10 %).
        divide: What to do if the number of channels is not a multiple of blocks: ``refuse``, or ``pad``, which makes the
            last block smaller.
        refit: Refit the kept weights to the outputs of the dense layer, by ridge regression.
        gather: Gather channels at run time if they cannot be reordered.
        force: Write blocks even if they are not expected to be faster.
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
        _PivotRun(self, graph, rw, ctx).run()


@dataclass(eq=False)
class _PlannedLayer(PlacedLayer):
    """A layer whose blocks are part of the channel orders, with its refitted weight.

    Attributes:
        refitted: The new weight, and the vector added to the bias; ``None`` for exact blocks.
        error: The relative error of the outputs.
    """

    refitted: tuple[Array64, Array64] | None = None
    error: float = 0.0


@dataclass(eq=False)
class _PivotRun:
    """One run of the pass over a graph."""

    options: Pivot
    graph: Graph
    rw: Rewriter
    ctx: Context
    orders: dict[ChannelGroup, ChannelOrder] = field(default_factory=dict)
    planned: list[_PlannedLayer] = field(default_factory=list)
    numbering: BlockNumbering = field(default_factory=BlockNumbering)
    recurrent: RecurrentPivot = field(init=False)

    def run(self) -> None:
        o, groups = self.options, channel_groups(self.graph)
        wanted = named_nodes(self.graph, o.layers, o.name) if o.layers else None
        self.recurrent = RecurrentPivot(
            o, self.graph, self.rw, self.ctx, self.orders, self.numbering
        )
        self.recurrent.settle(recurrent_nodes(self.graph, wanted), groups)
        sites = sorted(self._sites(groups, wanted), key=lambda s: -_macs(s))
        dense = [site for site in sites if not self._exact(site)]
        self._search([site for site in dense if self._may_search(site)])
        self._apply()

    def _sites(self, groups: ChannelGroups, wanted: set[Node] | None) -> Iterator[PivotSite]:
        o = self.options
        for node in self.graph.nodes:
            if isinstance(node.op, _Recurrent):
                continue
            if (wanted is None and not isinstance(node.op, (Linear, Conv))) or (
                wanted is not None and node not in wanted
            ):
                continue
            found = pivot_site(node, groups, self.orders, o.blocks, o.divide == "pad")
            if isinstance(found, str):
                self._skip(node, found)
            elif self._form(found) is None:
                self._slow(found)
            else:
                yield found

    def _form(self, site: PivotSite, moves: int = 0) -> str | None:
        o = self.options
        even = all(
            bool((axis.channel_sizes == axis.channel_sizes[0]).all())
            for axis in (site.rows, site.columns)
        )
        target = self.ctx.target
        return choose_form(site.work, o.blocks, target, even=even, moves=moves, force=o.force)

    def _slow(self, site: PivotSite) -> None:
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

    def _exact(self, site: PivotSite) -> bool:
        """Use the blocks that zeros form; returns whether the layer is done, so that no search follows."""
        o = self.options
        if o.method not in ("auto", "zeros"):
            return False
        try:
            found = blocks_of_zeros(site)
        except ValueError as error:
            self._skip(site.node, str(error))
            return True
        if found is None:
            if o.method == "zeros":
                self._skip(site.node, f"its zeros do not form {o.blocks} blocks of equal size")
            return o.method == "zeros"
        if not self._has_order_problem(site):
            self._fix_blocks(_PlannedLayer(site, self.numbering.agreed(site, found)))
        return True

    def _has_order_problem(self, site: PivotSite) -> bool:
        """Whether the orders of other layers exclude any blocks; records a refusal if so."""
        problem = order_problem(site)
        if problem:
            self._skip(site.node, problem)
        return bool(problem)

    def _fix_blocks(self, planned: _PlannedLayer) -> None:
        """Add the blocks of a layer to the channel orders, if they fit and are expected to be faster."""
        site, blocks = planned.site, planned.blocks
        problem, moves = check_orders(site, blocks)
        if problem and not self.options.gather:
            self._skip(site.node, problem + _GATHER)
        elif self._form(site, moves) is None:
            self._slow(site)
        else:
            fix_orders(site, blocks)
            self.numbering.tie(planned)
            self.planned.append(planned)

    def _may_search(self, site: PivotSite) -> bool:
        if self.ctx.calibration is None:
            self._skip(
                site.node,
                f"its zeros do not form {self.options.blocks} blocks of equal size, and without calibration data "
                "the error of other blocks is not known: give calibration data, or train it in blocks first",
            )
            return False
        if has_2_4_sparsity(site.read()):
            self._skip(site.node, "it is 2:4 sparse, and blocks would break the pattern")
            return False
        problem = GramMatrix(site.node).problem()
        if problem:
            self._skip(site.node, problem)
        return not problem

    def _search(self, sites: list[PivotSite]) -> None:
        """Search blocks for layers that :meth:`_may_search` allows."""
        o, calibration = self.options, self.ctx.calibration
        if calibration is None:
            return
        grams: dict[GramMatrix, Gram] = {}
        for done, site in enumerate(sites):
            self.ctx.progress(done, len(sites), f"pivot {site.node.name}")
            request = GramMatrix(site.node)
            if request not in grams:
                # Measure as many layers at a time as memory allows.
                requests = list(
                    _first_within([GramMatrix(s.node) for s in sites[done:]], GRAMS_BYTES)
                )
                results = calibration.collect(self.graph, requests)
                grams = {r: results[r] for r in requests}
            gram = grams.pop(request)
            if self._has_order_problem(site):
                continue
            layer = RefitLayer(site.read(), _covariance(gram))
            if layer.problem:
                self._skip(site.node, layer.problem)
                continue
            found = best_blocks(
                site, layer, search=o.method != "identity", refit=o.refit, gather=o.gather, seed=self.ctx.seed,
            )  # fmt: skip
            if isinstance(found, str):
                self._skip(site.node, found + _GATHER)
            elif problem := _number_problem(site, found):
                self._skip(site.node, problem)
            elif o.max_error is not None and found.error > o.max_error:
                self._skip(
                    site.node,
                    f"the error of its outputs would be {found.error:.1%}, max-error allows {o.max_error:.1%}",
                )
            else:
                self._fix_blocks(
                    _PlannedLayer(site, found.blocks, (found.weight, found.shift), found.error)
                )

    # Writing.

    def _apply(self) -> None:
        layers = [(plan, self._layer(plan)) for plan in self.planned]
        recurrent = self.recurrent.layers()
        reordered = [(group, order.order()) for group, order in self.orders.items() if order.parts]
        apply_permutations(self.graph, self.rw, reordered)
        before = set(self.graph.nodes)
        self.recurrent.write(recurrent)
        for plan, layer in layers:
            moves = [a for a in (layer.rows, layer.columns) if not a.is_direct]
            what = f"pivot into {self.options.blocks} blocks ({layer.form})"
            if plan.refitted is not None:
                what += f", output error {plan.error:.1%}"
            if len(moves) > layer.gathers:
                what += f", {_counted(len(moves) - layer.gathers, 'shuffle')}"
            if layer.gathers:
                what += f", {_counted(layer.gathers, 'gather')}"
            exactness = Exactness.EXACT if plan.refitted is None else Exactness.APPROXIMATE
            write_blocks(self.rw, layer, what, exactness)
        made = [n for n in self.graph.nodes if n not in before]
        cancel_reshapes(self.rw, made, fixed=self.ctx.target != "fx")

    def _layer(self, plan: _PlannedLayer) -> BlockLayer:
        site = plan.site
        rows = site.rows.access(plan.blocks.rows)
        columns = site.columns.access(plan.blocks.columns)
        form = self._form(site, sum(not a.is_direct for a in (rows, columns)))
        assert form is not None  # ``_fix_blocks`` checked it.
        return BlockLayer(
            site.node, form, rows, columns, site.rows.channel_sizes, site.columns.channel_sizes,
            site.weight, site.bias, plan.refitted, self.ctx.target != "fx",
        )  # fmt: skip


def _first_within(requests: list[GramMatrix], size: int) -> Iterator[GramMatrix]:
    """The first requests whose results take at most ``size`` bytes together; at least one."""
    taken = 0
    for request in requests:
        taken += request.nbytes()
        if taken > size and taken > request.nbytes():
            return
        yield request


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count > 1 else ''}"


def _macs(site: PivotSite) -> int:
    return math.prod(site.weight.shape) * (site.work.batch or 1)


def _number_problem(site: PivotSite, found: Choice) -> str:
    """The reason why the numbers of chosen blocks cannot be used; empty if they can."""
    if not math.isfinite(found.error):
        return (
            "its outputs never vary on the calibration data, so the error of blocks cannot be measured: "
            "give other data, or do not turn refit off"
        )
    dtype = site.weight.dtype
    bias = found.shift if site.bias is None else site.bias.float64() + found.shift
    if out_of_range(from_float64(found.weight, dtype)) or out_of_range(from_float64(bias, dtype)):
        return f"the refitted numbers would leave the range of {dtype.value}"
    return ""


def _covariance(gram: Gram) -> Covariance:
    return Covariance(gram.scatter[0] / max(1, gram.count), gram.mean[0])

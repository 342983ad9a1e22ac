"""``prune-channels``: remove whole channels, with everything that is coupled to them.

Channels that must move together (:mod:`graphshrink.ir.analysis.channels.groups`) also have to go together: the filters that make
them, their norms and slopes, the channels of a residual stream in all its blocks, and the weights of every layer that reads
them. The rest of the network is as it was, so that the result computes what the original computes when the layers that
read a removed channel read its mean instead (``method=variance``) or zero (``method=magnitude``). Only a layer norm
over removed channels does more: its statistics are those of the channels that stay.

Channels go by the weakest scores of their group:

- ``magnitude``: the sum of squares of all weights of a channel, in each constant relative to the mean of the group; after Fang
  et al., *DepGraph*, CVPR 2023.
- ``variance``: the variance of the channel times the squares of the weights that read it: the error that its removal causes
  where biases take up the mean, if channels are not correlated. It needs calibration data.

This is approximate at any rate: train or plan (:mod:`graphshrink.planning`) afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import numpy as np

from ...ir import (
    Conv,
    Exactness,
    Graph,
    GraphError,
    Linear,
    MaskedTensor,
    Node,
    Rewrite,
    Rewriter,
    Value,
)
from ...ir.analysis import ChannelGroup, Placement, channel_groups
from ...ir.options import Bounds
from ..infra.conditions import CALIBRATION_DATA, Condition
from ..infra.contract import Context, Pass, named_nodes
from ..infra.registry import register
from ..merge.algebra.tensors import Array64, Derived
from ..statistics.moments import ChannelMoments
from ..statistics.requests import Results
from .cuts import Followed, Keep, cut_graph, cuts_of, one_less


@register
@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the weakest channels of layers and of residual streams. Changes the outputs.

    Attributes:
        ratio: The fraction of the channels that goes, in each group of coupled channels.
        layers: Names of layers, or patterns with * and ?; only channels that such a layer makes. All layers if not given.
        skip: Names of layers, or patterns; channels that such a layer makes stay.
        method: How channels are ranked: ``magnitude`` of their weights, or ``variance``, for which calibration data is
            needed; then biases take up the means of what goes.
        multiple: The numbers of channels that stay are rounded to multiples of this, as runtimes compute in vectors.
    """

    name = "prune-channels"
    exactness = Exactness.APPROXIMATE
    ratio: Annotated[float, Bounds(above=0, below=1)] = 0.25
    layers: str | tuple[str, ...] = ()
    skip: str | tuple[str, ...] = ()
    method: Literal["magnitude", "variance"] = "magnitude"
    multiple: Annotated[int, Bounds(at_least=1)] = 8

    @property
    def requires(self) -> tuple[Condition, ...]:  # type: ignore[override]
        """Calibration data, except for magnitudes."""
        return () if self.method == "magnitude" else (CALIBRATION_DATA,)

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        wanted = named_nodes(graph, self.layers, self.name) if self.layers else None
        spared = named_nodes(graph, self.skip, self.name) if self.skip else set()
        chosen: list[_Cut] = []
        for group in channel_groups(graph):
            makers = [n for n in _makers(group) if n.graph is graph]
            if not makers or (wanted is not None and wanted.isdisjoint(makers)):
                continue
            if not spared.isdisjoint(makers):
                continue
            kept = kept_count(group.size, self.ratio, self.multiple)
            cut = _Cut.of(graph, group, makers, kept)
            if isinstance(cut, str):
                rw.skip(makers[0], f"its {group.size} channels stay: {cut}")
            else:
                chosen.append(cut)
        if not chosen:
            return
        found = self._statistics(graph, chosen, ctx)
        for cut in chosen:
            cut.choose(found)
        _apply(graph, rw, chosen, found)

    def _statistics(self, graph: Graph, chosen: Sequence[_Cut], ctx: Context) -> Results | None:
        if self.method == "magnitude":
            return None
        assert ctx.calibration is not None
        return ctx.calibration.collect(graph, [m for cut in chosen for m in cut.moments()])


def kept_count(size: int, ratio: float, multiple: int) -> int:
    """How many of ``size`` channels stay if the fraction ``ratio`` goes: a multiple of ``multiple``, at least one, at most ``size``."""
    return min(size, max(multiple, round(size * (1 - ratio) / multiple) * multiple))


@dataclass(eq=False)
class _Cut:
    """A group that loses channels.

    Attributes:
        group: The group.
        makers: The layers that make its channels.
        readers: The layers that sum over them, with the places of the channels in their weights.
        count: How many stay.
        keep: Which stay.
    """

    group: ChannelGroup
    makers: list[Node]
    readers: list[tuple[Node, Placement]]
    count: int
    keep: Keep = field(default_factory=lambda: np.ones(0, bool))

    @classmethod
    def of(cls, graph: Graph, group: ChannelGroup, makers: list[Node], count: int) -> _Cut | str:
        """A cut that keeps ``count`` channels, or the reason why there is none."""
        if count == group.size:
            return "no multiple of channels is smaller"
        if group.unit != 1 or any(p.blocks != 1 for p in group.placements):
            return "they move in blocks"
        for placement in group.placements:
            value = placement.value
            if value.producer is not None or value.data is None or value.is_output:
                return f"%{value.name} is computed, or an output"
            if isinstance(value.data, MaskedTensor):
                return f"%{value.name} has a mask: remove channels before weights"
        readers = [
            (node, placement)
            for placement in group.placements
            for node in placement.value.users
            if _sums_over(node, placement)
        ]
        if not readers:
            return "no layer with a constant weight reads them"
        problem = Followed(cuts_of([(group, one_less(group))])).problem(graph.nodes)
        return problem or cls(group, makers, readers, count)

    def moments(self) -> list[ChannelMoments]:
        """What the layers read, channel by channel."""
        return [_moments(node) for node, _ in self.readers]

    def choose(self, found: Results | None) -> None:
        """Keep the channels with the largest scores."""
        scores = self._magnitudes() if found is None else self._variances(found)
        # The first of equal channels stay.
        order = np.argsort(-scores, kind="stable")
        self.keep = np.zeros(self.group.size, bool)
        self.keep[order[: self.count]] = True

    def _magnitudes(self) -> Array64:
        parts = [p for p in self.group.placements if len(p.value.type.shape or ()) > 1]
        return _mean([_squares(p).sum(1) for p in parts or self.group.placements])

    def _variances(self, found: Results) -> Array64:
        return _mean(
            [
                (found[_moments(node)].var[p.positions] * _squares(p)).sum(1)
                for node, p in self.readers
            ]
        )


def _mean(scores: Sequence[Array64]) -> Array64:
    """The mean of scores, each relative to its own mean, so that large weights do not outvote others."""
    total = np.zeros_like(scores[0])
    for each in scores:
        if not np.isfinite(each).all():
            continue
        mean = each.mean()
        total += each / mean if mean > 0 else 0.0
    return total


def _squares(placement: Placement) -> Array64:
    """The sums of squares of the numbers of each channel, of the shape of the positions."""
    assert placement.value.data is not None
    rows = np.moveaxis(placement.value.data.float64(), placement.axis, 0)
    sums: Array64 = (rows.reshape(len(rows), -1) ** 2).sum(1)
    return sums[placement.positions]


def _moments(node: Node) -> ChannelMoments:
    return ChannelMoments(node.required(0), -1 if isinstance(node.op, Linear) else 1)


def _makers(group: ChannelGroup) -> list[Node]:
    """The layers whose filters make the channels of a group, in the order of the graph."""
    return [
        node
        for p in group.placements
        if p.axis == 0
        for node in p.value.users
        if isinstance(node.op, Conv | Linear)
        and node.inputs[1] is p.value
        and not (isinstance(node.op, Conv) and node.op.groups > 1)
    ]


def _sums_over(node: Node, placement: Placement) -> bool:
    if placement.axis != 1 or node.input(1) is not placement.value:
        return False
    return isinstance(node.op, Linear) or (isinstance(node.op, Conv) and node.op.groups == 1)


def _apply(graph: Graph, rw: Rewriter, cuts: Sequence[_Cut], found: Results | None) -> None:
    """Cut all constants, then give the nodes behind them their new sizes.

    Raises:
        GraphError: If the cuts do not go together, which would be an error of this pass.
    """
    biases = {} if found is None else _biases(cuts, found)
    constants = cuts_of((cut.group, cut.keep) for cut in cuts)
    followed = Followed(constants)
    problem = followed.problem(graph.nodes)
    if problem:
        raise GraphError(f"prune-channels: {problem}")
    for number, cut in enumerate(cuts):
        nodes = dict.fromkeys(n for p in cut.group.placements for n in p.value.users)
        gone = cut.group.size - cut.count
        more = f" and {len(cut.makers) - 1} more" if len(cut.makers) > 1 else ""
        what = f"remove {gone} of the {cut.group.size} channels of {cut.makers[0].name}{more}"
        measures = {"channels": float(cut.count), "before": float(cut.group.size)}
        if number:
            # The sizes of all groups change in one walk, which the first entry holds.
            names = tuple(n.name for n in nodes)
            rw.rewrites.append(Rewrite(what, names, Exactness.APPROXIMATE, measures=measures))
            continue
        with rw.rewrite(what, *nodes, exactness=Exactness.APPROXIMATE, measures=measures):
            finish = {n: partial(_shifted, rw, n, shift) for n, shift in biases.items()}
            cut_graph(graph, rw, followed, constants, finish)


def _shifted(
    rw: Rewriter, node: Node, shift: Array64, inputs: list[Value | None]
) -> list[Value | None]:
    """The inputs of a layer with another bias, to which is added what the removed channels added on average."""
    given = inputs[2] if len(inputs) > 2 else None
    weight = node.required(1)
    assert weight.data is not None
    sources, name = [weight.data], f"{node.name}.bias"
    if given is not None:
        assert given.data is not None
        sources, name = [given.data], given.name
        shift = given.data.float64() + shift
    made = Derived(shift.shape, weight.data.dtype, lambda: shift, sources)
    return [*inputs[:2], rw.constant(made, name)]


def _biases(cuts: Sequence[_Cut], found: Results) -> dict[Node, Array64]:
    """For each layer that reads removed channels, what they add on average to the outputs that stay."""
    made: dict[Node, Array64] = {}
    for cut in cuts:
        for node, placement in cut.readers:
            bias = node.input(2)
            if bias is not None and (bias.data is None or bias.producer is not None):
                continue
            assert placement.value.data is not None
            weight = placement.value.data.float64()
            gone = placement.positions[~cut.keep].reshape(-1)
            sums = weight.reshape(*weight.shape[:2], -1).sum(2)
            shift = sums[:, gone] @ found[_moments(node)].mean[gone]
            made[node] = made.get(node, 0.0) + shift
    kept = cuts_of((cut.group, cut.keep) for cut in cuts)
    for node, shift in made.items():
        rows = kept.get(node.required(1), {}).get(0)
        if rows is not None:
            made[node] = shift[rows]
    return made


__all__ = ["PruneChannels", "kept_count"]

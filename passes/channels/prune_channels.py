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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from ...ir import (
    Activation,
    Add,
    AveragePool,
    Cast,
    Concat,
    Conv,
    DerivedTensor,
    Div,
    Embedding,
    Exactness,
    Flatten,
    Gate,
    GlobalAveragePool,
    Graph,
    GraphError,
    Identity,
    InferenceError,
    LayerNorm,
    LazyTensor,
    Linear,
    MaskedTensor,
    Max,
    MaxPool,
    Min,
    MovedTensor,
    Mul,
    Node,
    Op,
    Pad,
    Pow,
    PRelu,
    Reduce,
    Reshape,
    Resize,
    Rewrite,
    Rewriter,
    Scale,
    Squeeze,
    Sub,
    Tensor,
    TensorType,
    Transpose,
    Unary,
    Unsqueeze,
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

Keep = npt.NDArray[np.bool_]

CARRIES: tuple[type[Op], ...] = (
    Activation, Add, AveragePool, Cast, Concat, Div, Embedding, Flatten, Gate, GlobalAveragePool, Identity, LayerNorm, Max,
    MaxPool, Min, Mul, PRelu, Pad, Pow, Reduce, Resize, Scale, Squeeze, Sub, Transpose, Unary, Unsqueeze,
)  # fmt: skip
"""Ops that hold no number of channels: with fewer of them, they compute the same for the others."""


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
        # Any channels may go: they are used alike.
        keep = np.arange(group.size) < count
        cut = cls(group, makers, readers, count, keep)
        problem = _Types(_constants([cut])).problem(graph)
        return problem or cut

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


Cuts = dict[Value, dict[int, Keep]]
"""For each constant and axis, which positions stay."""


def _constants(cuts: Sequence[_Cut]) -> Cuts:
    made: Cuts = {}
    for cut in cuts:
        for placement in cut.group.placements:
            size = placement.value.type.dim(placement.axis)
            assert isinstance(size, int)
            axes = made.setdefault(placement.value, {})
            keep = axes.setdefault(placement.axis, np.ones(size, bool))
            keep[placement.positions[~cut.keep].reshape(-1)] = False
    return made


class _Types:
    """The types of a graph in which constants are smaller.

    Attributes:
        types: The types that change.
        ops: The ops that change with them: depthwise convolutions.
    """

    def __init__(self, constants: Cuts) -> None:
        self.types: dict[Value, TensorType] = {}
        self.ops: dict[Node, Op] = {}
        for value, axes in constants.items():
            shape = list(value.type.shape or ())
            for axis, keep in axes.items():
                shape[axis] = int(keep.sum())
            self.types[value] = value.type.with_shape(tuple(shape))

    def problem(self, graph: Graph) -> str:
        """Infer all types anew; returns the reason why a node cannot follow, or an empty text."""
        for node in graph.nodes:
            if not any(v in self.types for v in node.inputs):
                continue
            reason = self._follow(node)
            if reason:
                return reason
        return ""

    def _follow(self, node: Node) -> str:
        op = node.op
        narrowed = [v for v in node.inputs if v is not None and v in self.types]
        if isinstance(op, Conv) and op.groups > 1:
            weight = node.inputs[1]
            if node.required(1).type.dim(1) != 1 or weight not in self.types:
                return f"{node.name} is a convolution of groups"
            if node.required(1).type.dim(0) != op.groups:
                return f"{node.name} makes several channels of each"
            groups = self.types[node.required(1)].dim(0)
            assert isinstance(groups, int)
            op = self.ops[node] = replace(op, groups=groups)
        elif isinstance(op, Reshape):
            if not _flattens(node):
                return f"{node.name} reshapes them to sizes that it states"
        elif isinstance(op, Reduce) and self._is_reduced(node, op):
            return f"{node.name} reduces over them, without a weight"
        elif not isinstance(op, (Conv, Linear, *CARRIES)):
            return f"{node.name} ({op.name}) may hold their number"
        try:
            inferred = op.infer(
                [None if v is None else self.types.get(v, v.type) for v in node.inputs]
            )
        except InferenceError as error:
            return f"{node.name} would not fit: {error}"
        if inferred is None:
            return f"{node.name} cannot infer its result"
        changed = False
        for value, type_ in zip(node.outputs, inferred, strict=True):
            if type_ == value.type:
                continue
            if value.is_output:
                return f"{node.name} makes an output of the model of them"
            if value.data is not None:
                return f"{node.name} computes a constant of them"
            self.types[value], changed = type_, True
        weighs = isinstance(op, Conv | Linear) and node.inputs[1] in self.types
        if not changed and not weighs:
            return f"{node.name} sums over them, without a weight"
        if any(v.type.rank is None for v in narrowed):
            return f"the rank of what {node.name} reads is not known"
        return ""

    def _is_reduced(self, node: Node, op: Reduce) -> bool:
        """Whether an axis of which channels go is among those of a reduction."""
        before = node.required(0).type
        after = self.types.get(node.required(0), before)
        return any(before.dim(axis) != after.dim(axis) for axis in op.axes)


def _flattens(node: Node) -> bool:
    """Whether a Reshape only joins all axes behind the first one, whatever their sizes are."""
    assert isinstance(node.op, Reshape)
    shape, rank = node.op.shape, node.required(0).type.rank
    batch = node.required(0).type.dim(0) if rank else None
    first = len(shape) == 2 and (shape[0] is None or (shape[0] == batch and shape[0] != -1))
    return first and shape[1] == -1


def _apply(graph: Graph, rw: Rewriter, cuts: Sequence[_Cut], found: Results | None) -> None:
    """Cut all constants, then give the nodes behind them their new sizes.

    Raises:
        GraphError: If the cuts do not go together, which would be an error of this pass.
    """
    biases = {} if found is None else _biases(cuts, found)
    constants = _constants(cuts)
    types = _Types(constants)
    problem = types.problem(graph)
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
            smaller = {v: rw.constant(_cut(v, axes), v.name) for v, axes in constants.items()}
            _resize(graph, rw, types, smaller, biases)
            for value in smaller:
                if not value.use_count:
                    rw.erase_constant(value)


def _cut(value: Value, axes: Mapping[int, Keep]) -> Tensor:
    """A constant without the channels that go."""
    data = value.data
    assert data is not None
    shape = list(data.shape)
    for axis, keep in axes.items():
        shape[axis] = int(keep.sum())

    def cut(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        for axis, keep in axes.items():
            array = array.compress(keep, axis)
        return array

    if isinstance(data, DerivedTensor):
        return MovedTensor(data, cut, tuple(shape))
    return LazyTensor(tuple(shape), data.dtype, lambda: cut(data.numpy()), source=data)


def _resize(
    graph: Graph,
    rw: Rewriter,
    types: _Types,
    smaller: Mapping[Value, Value],
    biases: Mapping[Node, Array64],
) -> None:
    changed = set(types.types)
    for node in graph.nodes:
        if not any(v in changed for v in node.inputs):
            continue
        inputs = [None if v is None else smaller.get(v, v) for v in node.inputs]
        op = types.ops.get(node, node.op)
        shift = biases.get(node)
        if shift is not None:
            inputs[2:] = [_shifted(rw, node, inputs, shift)]
        if any(v in changed for v in node.outputs):
            rw.resize(node, op, inputs, anew=True)
        else:
            rw.replace(node, op, inputs)


def _shifted(rw: Rewriter, node: Node, inputs: Sequence[Value | None], shift: Array64) -> Value:
    """The bias of a layer, plus what the removed channels added on average."""
    given = inputs[2] if len(inputs) > 2 else None
    weight = node.required(1)
    assert weight.data is not None
    sources, name = [weight.data], f"{node.name}.bias"
    if given is not None:
        assert given.data is not None
        sources, name = [given.data], given.name
        shift = given.data.float64() + shift
    made = Derived(shift.shape, weight.data.dtype, lambda: shift, sources)
    return rw.constant(made, name)


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
    kept = _constants(cuts)
    for node, shift in made.items():
        rows = kept.get(node.required(1), {}).get(0)
        if rows is not None:
            made[node] = shift[rows]
    return made


__all__ = ["PruneChannels", "kept_count"]

"""Equalisation: channels are scaled between layers, so that the channels of a tensor have ranges that one scale can represent.

A *segment* is a set of values that must be scaled together: the results of layers, the sums of a residual stream, and what ReLU, leaky ReLU and pools
make of them. All of these commute with a positive factor for each channel. Where nothing else reads or computes a segment, channel
``c`` of it can be divided by ``s[c]``: the layers that compute it have their output channel and bias divided, those that read it their
input channel multiplied. The network computes the same.

- ``weights``: ``s = sqrt(r1 / r2)``, with the largest magnitudes ``r1`` of the weights that compute a channel and ``r2`` of those that read it (Nagel et al.,
  *Data-Free Quantization Through Weight Equalization and Bias Correction*, ICCV 2019, section 4.1, here over whole residual streams). A layer belongs to
  two segments, so that the rule is repeated until factors are near 1.
- ``activations``: ``r1`` is the largest magnitude of the channel itself on the calibration data (Xiao et al., *SmoothQuant*, ICML 2023, with strength 1/2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from ...ir import (
    Activation,
    Add,
    AveragePool,
    Conv,
    DerivedTensor,
    GlobalAveragePool,
    Graph,
    Identity,
    Linear,
    MaxPool,
    Node,
    Rewriter,
    Tensor,
    Value,
)
from ...ir.analysis.dequantized import is_dequantized
from ..merge.algebra.tensors import Array64
from ..statistics.moments import ChannelMoments
from ..statistics.requests import Calibration

ROUNDS = 20
"""How often segments are equalised by weights."""

CLOSE = 1.02
"""Factors below this are near enough to 1."""


@dataclass(eq=False)
class Segment:
    """Values whose channels are scaled together.

    Attributes:
        values: The values, in order.
        makers: The layers that compute some of them.
        readers: The layers that read some of them.
        axis: The axis of the channels: 1, or -1 between dense layers.
        size: The number of channels.
    """

    values: list[Value] = field(default_factory=list)
    makers: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)
    axis: int = 1
    size: int = 0


def segments(graph: Graph) -> Iterator[Segment]:
    """The segments of a graph that can be scaled."""
    parent: dict[Value, Value] = {}

    def root(value: Value) -> Value:
        while parent.setdefault(value, value) is not value:
            value = parent[value]
        return value

    flowing = [v for v in graph.values() if v.data is None]
    for node in graph.nodes:
        values = [v for v in node.inputs if v is not None and v.data is None]
        if _commutes(node):
            for joined in (*values, node.output):
                parent[root(joined)] = root(values[0])
    found: dict[Value, Segment] = {}
    barred = {root(v) for v in (*graph.inputs, *graph.outputs)}
    for value in flowing:
        found.setdefault(root(value), Segment()).values.append(value)
    for node in graph.nodes:
        if node.is_constant or _commutes(node):
            continue
        layer = _is_layer(node)
        for place, read in enumerate(node.inputs):
            if read is None or read.data is not None:
                continue
            if layer and place == 0:
                found[root(read)].readers.append(node)
            else:
                barred.add(root(read))
        for value in node.outputs:
            if layer:
                found[root(value)].makers.append(node)
            else:
                barred.add(root(value))
    for top, segment in found.items():
        layers = [*segment.makers, *segment.readers]
        if top in barred or not segment.makers or not segment.readers:
            continue
        axes = {-1 if isinstance(node.op, Linear) else 1 for node in layers}
        sizes = {_channels(n, True) for n in segment.makers}
        sizes |= {_channels(n, False) for n in segment.readers}
        if len(axes) == len(sizes) == 1:
            segment.axis, segment.size = axes.pop(), sizes.pop()
            yield segment


def _commutes(node: Node) -> bool:
    """Whether a node commutes with a positive factor for each channel of all that it reads."""
    if node.output.data is not None:
        return False
    match node.op:
        case Activation(kind="relu" | "leaky_relu") | Identity() | MaxPool() | AveragePool():
            return True
        case GlobalAveragePool():
            return True
        case Add():
            shapes = {v.type.shape for v in node.inputs if v is not None and v.data is None}
            return len(shapes) == 1 and all(v is not None and v.data is None for v in node.inputs)
    return False


def _is_layer(node: Node) -> bool:
    """Whether a node's weight and bias are its own constants, so that channels of both sides can be scaled."""
    if not isinstance(node.op, Conv | Linear):
        return False
    if isinstance(node.op, Conv) and node.op.groups > 1 and not _is_depthwise(node):
        return False
    return all(
        v is None or (v.data is not None and v.use_count == 1 and not is_dequantized(v))
        for v in node.inputs[1:]
    )


def _is_depthwise(node: Node) -> bool:
    shape = node.required(1).type.static_shape
    return (
        isinstance(node.op, Conv)
        and shape is not None
        and node.op.groups == shape[0]
        and shape[1] == 1
    )


def _weight_axis(node: Node, makes: bool) -> int:
    """The axis of a layer's weight that holds the channels that it makes or reads."""
    return 0 if makes or (isinstance(node.op, Conv) and node.op.groups > 1) else 1


def _channels(node: Node, makes: bool) -> int:
    return node.required(1).type.dim(_weight_axis(node, makes)) or 0


class Equalizer:
    """Scales channels; weights are changed in memory until :meth:`write`.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.found = graph, list(segments(graph))
        layers = {n for s in self.found for n in (*s.makers, *s.readers)}
        self.weights = {n: _data(n, 1).float64().copy() for n in layers}
        self.factors = {s: np.ones(s.size) for s in self.found}

    def by_weights(self) -> None:
        """Equalise the largest weights on both sides of each segment."""
        for _ in range(ROUNDS):
            largest = 1.0
            for segment in self.found:
                made = np.max([self._largest(n, True) for n in segment.makers], axis=0)
                read = np.max([self._largest(n, False) for n in segment.readers], axis=0)
                factors = _square_root(made, read)
                self._scale(segment, factors)
                largest = max(largest, factors.max(), 1 / factors.min())
            if largest < CLOSE:
                return

    def by_activations(self, calibration: Calibration) -> None:
        """Equalise the channels of each segment on the data with the weights that read them."""
        requests = {s: [ChannelMoments(v, s.axis) for v in s.values] for s in self.found}
        stats = calibration.collect(self.graph, [r for own in requests.values() for r in own])
        tops = {
            s: np.max([np.maximum(-stats[r].min, stats[r].max) for r in own], axis=0)
            for s, own in requests.items()
        }
        for segment, top in tops.items():
            read = np.max([self._largest(n, False) for n in segment.readers], axis=0)
            factors = _square_root(top, read)
            # Only ratios between channels matter: the middle keeps its size.
            self._scale(segment, factors / np.exp(np.log(factors).mean()))

    def _largest(self, node: Node, makes: bool) -> Array64:
        """The largest magnitude of the weights of each channel."""
        weight = self.weights[node]
        rows = np.moveaxis(weight, _weight_axis(node, makes), 0)
        found: Array64 = np.abs(rows.reshape(len(rows), -1)).max(1)
        return found

    def _scale(self, segment: Segment, factors: Array64) -> None:
        for node in segment.makers:
            self.weights[node] /= _along(self.weights[node], 0, factors)
        for node in segment.readers:
            axis = _weight_axis(node, False)
            self.weights[node] *= _along(self.weights[node], axis, factors)
        self.factors[segment] = self.factors[segment] * factors

    def write(self, rw: Rewriter) -> int:
        """Write the new weights; returns the number of segments."""
        count = 0
        weights: dict[Node, None] = {}
        biases: dict[Node, Array64] = {}
        for segment, factors in self.factors.items():
            if np.max(np.maximum(factors, 1 / factors)) < CLOSE:
                continue
            count += 1
            weights |= dict.fromkeys((*segment.makers, *segment.readers))
            biases |= dict.fromkeys(segment.makers, factors)
        if not count:
            return 0
        with rw.rewrite("equalise channels", *weights):
            for node in weights:
                _replace(rw, node, 1, self.weights[node])
            for node, factors in biases.items():
                if node.input(2) is not None:
                    _replace(rw, node, 2, _data(node, 2).float64() / factors)
        return count


def equalize(
    graph: Graph, rw: Rewriter, by: str, calibration: Calibration | None
) -> Mapping[Segment, Array64]:
    """Equalise the channels of a graph.

    Args:
        graph: The graph.
        rw: Its rewriter.
        by: ``"weights"`` or ``"activations"``.
        calibration: The data, for activations.

    Returns:
        The factor that each channel of a segment was divided by.
    """
    job = Equalizer(graph)
    if by == "weights":
        job.by_weights()
    else:
        assert calibration is not None
        job.by_activations(calibration)
    job.write(rw)
    return job.factors


def _square_root(above: Array64, below: Array64) -> Array64:
    """The square root of a ratio; 1 where it is not defined."""
    usable = (above > 0) & (below > 0) & np.isfinite(above) & np.isfinite(below)
    found: Array64 = np.sqrt(np.divide(above, below, out=np.ones_like(above), where=usable))
    return found


def _along(weight: Array64, axis: int, vector: Array64) -> Array64:
    shape = [1] * weight.ndim
    shape[axis] = -1
    return vector.reshape(shape)


def _data(node: Node, place: int) -> Tensor:
    data = node.required(place).data
    assert data is not None
    return data


def _replace(rw: Rewriter, node: Node, place: int, numbers: Array64) -> None:
    old = node.required(place)
    data = _data(node, place)
    made = DerivedTensor(data.shape, data.dtype, lambda: numbers, sources=(data,))
    rw.set_input(node, place, rw.constant(made, old.name))

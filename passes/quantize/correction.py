"""Bias correction: the mean error that quantised weights cause in each output channel is subtracted from the bias.

With weights ``W`` and their quantised form ``V``, the outputs change on average by ``(V - W) E[x]`` (Nagel et al., *Data-Free Quantization
Through Weight Equalization and Bias Correction*, ICCV 2019, section 4.2). The mean is measured on the calibration data: a layer with the
weights ``V - W`` beside each layer gives it, with padding and strides as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...ir import Graph, LazyTensor, Linear, MatMul, Node, Tensor, Value
from ..merge.algebra.tensors import Array64
from ..statistics.im2col import Array
from ..statistics.requests import Accumulator, Calibration, Request
from .weights import QuantizedWeight


@dataclass(frozen=True)
class ChannelMeans(Request[Array64]):
    """Requests the mean of each channel of a value, over all other axes.

    Attributes:
        value: The value.
        axis: The axis of the channels; a negative one counts from the end.
    """

    value: Value
    axis: int

    def values(self) -> tuple[Value, ...]:
        return (self.value,)

    def accumulator(self) -> Accumulator[Array64]:
        return _MeanAccumulator(self.axis)


class _MeanAccumulator(Accumulator[Array64]):
    def __init__(self, axis: int) -> None:
        self.axis, self.count = axis, 0
        self.total = np.zeros(0)

    def add(self, *arrays: Array) -> None:
        (array,) = arrays
        axis = self.axis % array.ndim
        others = tuple(a for a in range(array.ndim) if a != axis)
        part = array.sum(others, dtype=np.float64)
        self.total = part if not self.count else self.total + part
        self.count += array.size // max(1, array.shape[axis])

    def result(self) -> Array64:
        return self.total / max(1, self.count)


def mean_errors(
    graph: Graph, calibration: Calibration, made: Mapping[Node, QuantizedWeight]
) -> dict[Node, Array64]:
    """The mean error of each output channel of some layers that quantised weights cause.

    Args:
        graph: The graph, with weights in float32.
        calibration: The data.
        made: The quantised weights of layers.

    Returns:
        ``(channels,)`` for each layer.
    """
    probe = graph.clone()
    twins = dict(zip(graph.nodes, probe.nodes, strict=True))
    requests: dict[Node, ChannelMeans] = {}
    for node, weight in made.items():
        twin, value = twins[node], node.required(1)
        assert value.data is not None
        data = _difference(value.data, weight)
        error = probe.add_constant(data, f"{value.name}.error")
        added = probe.append(
            twin.op, [twin.required(0), error], after=twin, name=f"{node.name}/error"
        )
        axis = -1 if isinstance(node.op, Linear | MatMul) else 1
        requests[node] = ChannelMeans(added.output, axis)
    found = calibration.collect(probe, requests.values())
    return {node: found[request] for node, request in requests.items()}


def _difference(data: Tensor, weight: QuantizedWeight) -> Tensor:
    return LazyTensor(
        data.shape,
        data.dtype,
        lambda: (weight.floats() - data.float64()).astype(data.dtype.numpy),
    )

"""Bias correction: the mean error that quantised weights cause in each output channel is subtracted from the bias.

With weights ``W`` and their quantised form ``V``, the outputs change on average by ``(V - W) E[x]`` (Nagel et al., *Data-Free Quantization
Through Weight Equalization and Bias Correction*, ICCV 2019, section 4.2). The mean is measured on the calibration data: a layer with the
weights ``V - W`` beside each layer gives it, with padding and strides as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...ir import Graph, LazyTensor, Linear, MatMul, Node, Tensor
from ..merge.algebra.tensors import Array64
from ..statistics.moments import ChannelMoments
from ..statistics.requests import Calibration
from .weights import QuantizedWeight


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
    requests: dict[Node, ChannelMoments] = {}
    for node, weight in made.items():
        twin, value = twins[node], node.required(1)
        assert value.data is not None
        data = _difference(value.data, weight)
        error = probe.add_constant(data, f"{value.name}.error")
        added = probe.append(
            twin.op, [twin.required(0), error], after=twin, name=f"{node.name}/error"
        )
        axis = -1 if isinstance(node.op, Linear | MatMul) else 1
        requests[node] = ChannelMoments(added.output, axis)
    found = calibration.collect(probe, requests.values())
    return {node: found[request].mean for node, request in requests.items()}


def _difference(data: Tensor, weight: QuantizedWeight) -> Tensor:
    return LazyTensor(
        data.shape,
        data.dtype,
        lambda: (weight.floats() - data.float64()).astype(data.dtype.numpy),
    )

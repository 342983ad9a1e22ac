"""``fresh-norms``: batch norms behind layers whose own norms were folded away, by an exporter or by a merge.

A network without its batch norms computes the same and trains badly. Each norm that this pass adds is the identity in evaluation
mode: with the mean and variance of the layer's results on calibration data as running statistics, its scale is
``gamma = sqrt(var + epsilon)`` and its shift ``beta = mean``, so that ``gamma * (y - mean) / sqrt(var + epsilon) + beta = y``. In training mode
it normalises by the statistics of each batch, as the norm that was folded did. ``merge-linear`` folds the norms into the layers again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...ir import (
    ArrayTensor,
    Conv,
    ConvTranspose,
    DType,
    Graph,
    Linear,
    Node,
    Rewriter,
    Scale,
)
from ...ir.batch_norm import BatchNorm, BatchNormPart
from ...ir.errors import counted
from ..infra.contract import Context, Pass, PassError, name_list, named_nodes
from ..infra.registry import register
from ..statistics.moments import ChannelMoments, ChannelStats

_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@register
@dataclass(frozen=True)
class FreshNorms(Pass):
    """Put batch norms that change nothing in evaluation mode behind convolutions, for training; exact.

    Attributes:
        layers: Names of layers, or patterns with * and ?; if not given, convolutions with a bias that have no norm behind them and
            do not make an output of the model.
        linear: Linear layers of rows too, not only convolutions.
        epsilon: What the norms add to the variance.
    """

    name = "fresh-norms"
    layers: str | tuple[str, ...] = ()
    linear: bool = False
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.epsilon < 1:
            raise PassError(f"fresh-norms: epsilon is between 0 and 1, not {self.epsilon}")

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        chosen = self._chosen(graph, rw)
        if not chosen:
            return
        requests = {node: ChannelMoments(node.output, 1) for node in chosen}
        if ctx.calibration is None:
            graph.notes.append(
                f"fresh-norms: no calibration data were given, so that the running statistics of {counted(len(chosen), 'norm')} are 0 and 1: "
                "give --calibration PATH (calibration=... in Python), or train before you evaluate"
            )
            for node in chosen:
                channels = _channels(node)
                self._add(node, np.zeros(channels), np.ones(channels), rw)
            return
        found = ctx.calibration.collect(graph, requests.values())
        stats: Mapping[Node, ChannelStats] = {n: found[r] for n, r in requests.items()}
        for node in chosen:
            self._add(node, stats[node].mean, stats[node].var, rw)

    def _chosen(self, graph: Graph, rw: Rewriter) -> list[Node]:
        """The layers that get a norm."""
        named = None
        if name_list(self.layers):
            named = named_nodes(graph, self.layers, "fresh-norms: layers")
        found = []
        for node in graph.nodes:
            kinds = (Conv, ConvTranspose, Linear) if self.linear or named else (Conv, ConvTranspose)
            if named is not None and node not in named:
                continue
            if not isinstance(node.op, kinds):
                if named is not None:
                    rw.skip(node, "it is neither a convolution nor a linear layer")
                continue
            reason = _reason(node, named is not None)
            if reason:
                rw.skip(node, reason)
            else:
                found.append(node)
        return found

    def _add(self, node: Node, mean: _Array, var: _Array, rw: Rewriter) -> None:
        value, name = node.output, f"{node.name}_norm"
        dtype = value.type.dtype
        assert dtype is not None
        stored = np.float64 if dtype is DType.F64 else np.float32
        # The scale is made of the variance as it is stored, so that both cancel.
        mean, var = mean.astype(stored), np.maximum(var, 0).astype(stored)
        gamma = np.sqrt(var.astype(np.float64) + self.epsilon).astype(stored)
        norm = BatchNorm(
            ArrayTensor(gamma), ArrayTensor(mean), ArrayTensor(mean), ArrayTensor(var), self.epsilon
        )
        with rw.rewrite("add a batch norm that changes nothing", node):
            parts = [
                rw.constant(data, f"{name}_{part}")
                for data, part in zip(norm.evaluated(dtype), ("scale", "shift"), strict=True)
            ]
            readers, is_output = value.uses, value.is_output
            made = rw.insert(Scale(1), [value, *parts], after=node, name=name)
            if is_output:
                rw.replace_uses(value, made.output)
                rw.set_input(made, 0, value)
                return
            for reader, index in readers:
                rw.set_input(reader, index, made.output)


def _reason(node: Node, named: bool) -> str:
    """Why a layer gets no norm; empty if it gets one."""
    value, bias = node.output, node.input(2)
    rank, dtype = value.type.rank, value.type.dtype
    if rank is None or dtype is None or not dtype.is_float:
        return "the type of its result is not known, or no float"
    if isinstance(node.op, Linear) and rank != 2:
        return "a batch norm takes rows, and its result has other axes"
    if _channels(node) <= 0 or value.data is not None:
        return "its weight is not constant, or its result is"
    if value.use_count and not value.is_output and all(map(_is_norm, value.users)):
        return "it has a batch norm behind it"
    if not named and bias is None:
        return "it has no bias, so that no norm was folded into it"
    if not named and value.is_output:
        return "it makes an output of the model"
    return ""


def _channels(node: Node) -> int:
    """The number of channels of a layer with a constant weight, else 0."""
    weight = node.required(1)
    if weight.data is None:
        return 0
    if isinstance(node.op, ConvTranspose):
        return weight.data.shape[1] * node.op.groups
    return weight.data.shape[0]


def _is_norm(node: Node) -> bool:
    """Whether a node is an evaluated batch norm."""
    scale = node.input(1) if isinstance(node.op, Scale) else None
    data = scale.data if scale is not None else None
    return data is not None and isinstance(getattr(data, "host", None), BatchNormPart)


__all__ = ["FreshNorms"]

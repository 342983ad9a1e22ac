"""``drop-blocks``: leave out the residual blocks, or the layers of a transformer, that a network needs least.

Each step leaves out one block of those that are left:

- ``loss``: the one without which the outputs of the whole network, as it is by then, stay closest to those of the given network on calibration
  data. It takes a run of the network for each block and step.
- ``influence``: the one whose result is most like what it reads, by the mean cosine over positions: block influence of Men et al., *ShortGPT: layers
  in large language models are more redundant than you expect* (2024), measured once.

A block of the calibration samples is held out. With ``repair``, what the block computed is approximated by a factor and a constant for
each channel of what it read, where the node in front can take them up exactly: the gain and the shift of a norm, or, for the constants alone, the bias
of a layer that is added to the skip. A repair stays only if the outputs on the held-out samples come closer. ``reconstruct`` behind it
trains the blocks that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from ...ir import (
    Add,
    Conv,
    Exactness,
    Graph,
    GroupNorm,
    Identity,
    LayerNorm,
    Linear,
    Node,
    Rewriter,
    Tensor,
    Value,
)
from ...ir.options import Bounds
from ..infra.conditions import CALIBRATION_DATA
from ..infra.contract import Context, Pass, PassError, named_nodes
from ..infra.registry import register
from ..merge.algebra.tensors import Array64, from_float64
from ..statistics.errors import NetworkError
from ..statistics.requests import Calibration
from .residual_blocks import Block, skip, sub_layers, transformer_layers

HELD = 8
"""Of this number of samples one is held out to judge repairs."""

CALM = 0.01
"""The ridge of a channel's factor towards 1, relative to the variance of the channel."""


@register
@dataclass(frozen=True)
class DropBlocks(Pass):
    """Leave out whole residual blocks, or layers of a transformer. Changes the outputs.

    Attributes:
        count: The number of blocks that go.
        ratio: The fraction of the blocks that goes, at least one; instead of ``count``.
        blocks: What a block is in a transformer: ``layer``, attention together with its MLP, or ``sub-layer``, each by itself.
        by: How blocks are chosen: ``loss`` of the whole network without them, or ``influence``, the cosine of a block's input and output.
        layers: Names of layers, or patterns with * and ?; only blocks with such a layer may go.
        repair: Correct what a block read by a factor and a constant for each channel, where a norm or a bias in front can take them up.
    """

    name = "drop-blocks"
    exactness = Exactness.APPROXIMATE
    asks_first = True
    requires = (CALIBRATION_DATA,)
    count: Annotated[int, Bounds(at_least=1)] | None = None
    ratio: Annotated[float, Bounds(above=0, below=1)] | None = None
    blocks: Literal["layer", "sub-layer"] = "layer"
    by: Literal["loss", "influence"] = "loss"
    layers: str | tuple[str, ...] = ()
    repair: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.count is None) == (self.ratio is None):
            raise PassError(
                "drop-blocks: give either count, a number of blocks, or ratio, a fraction of them"
            )

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        assert ctx.calibration is not None
        found = transformer_layers(graph) if self.blocks == "layer" else sub_layers(graph)
        if self.layers:
            only = named_nodes(graph, self.layers, "drop-blocks: layers")
            found = [block for block in found if not only.isdisjoint(block.nodes)]
        count = self.count or max(1, round((self.ratio or 0) * len(found)))
        if count > len(found):
            raise PassError(
                f"drop-blocks: {count} blocks should go, but there are {len(found)} with a skip between values of one type"
            )
        fitting, held = ctx.calibration.split(HELD)
        ctx.calibration.used = True
        loss, judge = NetworkError(graph, fitting), NetworkError(graph, held)
        original = graph.clone()
        alike = self._cosines(graph, found, fitting)
        left = list(found)
        total = sum(len(found) - i for i in range(count)) if self.by == "loss" else count
        done = 0
        for _ in range(count):
            losses: dict[Block, float] = {}
            for block in left if self.by == "loss" else [max(left, key=lambda b: alike[b])]:
                losses[block] = loss(_without(graph, block))
                done += 1
                ctx.progress(done, total, "blocks left out")
            block = min(losses, key=lambda b: losses[b])
            left.remove(block)
            measures = {"loss": losses[block], "cosine": alike[block]}
            entry, exit = block.entry.name, block.exit.name
            skip(rw, block.name, block.entry, block.exit, *block.nodes)
            rw.rewrites[-1].measures.update(measures)
            if self.repair:
                self._repair(graph, rw, original, (entry, exit), block, fitting, judge)
        for block in left:
            rw.skip(
                block.layers[0],
                f"its block stays: the cosine of what it reads and computes is {alike[block]:.3f}",
            )

    def _cosines(
        self, graph: Graph, blocks: Sequence[Block], data: Calibration
    ) -> dict[Block, float]:
        """For each block the mean cosine of its input and its output, over samples and positions."""
        wanted = list(dict.fromkeys(v for b in blocks for v in (b.entry, b.exit)))
        place = {value: i for i, value in enumerate(wanted)}
        sums, counts = dict.fromkeys(blocks, 0.0), dict.fromkeys(blocks, 0)
        for arrays in data.stream(graph, wanted):
            for block in blocks:
                x, y = (
                    np.moveaxis(arrays[place[v]], block.channel_axis, -1).astype(np.float64)
                    for v in (block.entry, block.exit)
                )
                sizes = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
                cosines = (x * y).sum(-1) / np.maximum(sizes, 1e-30)
                sums[block] += float(cosines.sum())
                counts[block] += cosines.size
        return {block: sums[block] / max(counts[block], 1) for block in blocks}

    def _repair(
        self,
        graph: Graph,
        rw: Rewriter,
        original: Graph,
        names: tuple[str, str],
        block: Block,
        data: Calibration,
        judge: NetworkError,
    ) -> None:
        """Let the node in front of a block that went compute what fits the block's result best, if that helps."""
        entry = next(v for v in graph.values() if v.name == names[0])
        place = _place(entry)
        if isinstance(place, str):
            rw.skip(block.layers[0], f"what its block read is not corrected: {place}")
            return
        node, gain, shift = place
        goal = next(v for v in original.values() if v.name == names[1])
        # The axis that the vectors of the node in front lie along, whatever the block's own channels are.
        axis = 1 if isinstance(node.op, Conv | GroupNorm) else -1
        factor, constant = _fitted(graph, original, entry, goal, axis, data, gain is not None)
        before = judge(graph)
        numbers = _moved(node, gain, shift, factor, constant)
        variant = graph.clone()
        twin = list(variant.nodes)[list(graph.nodes).index(node)]
        _write(Rewriter(variant), twin, numbers)
        after = judge(variant)
        if not after < before:
            reason = f"the error on held-out samples would change from {before:.4g} to {after:.4g}"
            rw.skip(block.layers[0], f"what its block read is not corrected: {reason}")
            return
        with rw.rewrite(
            f"correct what {block.name} read",
            node,
            measures={"loss before": before, "loss after": after},
        ):
            _write(rw, node, numbers)


def _without(graph: Graph, block: Block) -> Graph:
    """A copy of a graph without a block."""
    made = graph.clone()
    values = {v.name: v for v in made.values()}
    skip(Rewriter(made), block.name, values[block.entry.name], values[block.exit.name])
    return made


def _place(entry: Value) -> tuple[Node, int | None, int] | str:
    """The node that can take up a factor and a constant for each channel of a value: it, and the indices of its gain (if any) and shift."""
    node = entry.producer
    while node is not None and isinstance(node.op, Identity) and entry.use_count == 1:
        # A block that went before.
        entry = node.required(0)
        node = entry.producer
    if entry.use_count != 1:
        return "other nodes read it too"
    if node is not None and isinstance(node.op, LayerNorm | GroupNorm):
        vectors = [node.input(i) for i in (1, 2)]
        if all(_is_own(v) for v in vectors):
            return node, 1, 2
        return f"gain and shift of {node.name} are no constants of its own"
    if node is not None and isinstance(node.op, Add):
        for value in node.inputs:
            layer = None if value is None else value.producer
            if (
                layer is not None
                and value is not None
                and value.has_one_use
                and isinstance(layer.op, Linear | Conv)
                and _is_own(layer.input(2))
            ):
                return layer, None, 2
    return "neither a norm nor a bias stands in front of it"


def _is_own(value: Value | None) -> bool:
    return (
        value is not None
        and value.data is not None
        and value.producer is None
        and value.type.rank == 1
    )


def _fitted(
    graph: Graph,
    original: Graph,
    entry: Value,
    goal: Value,
    axis: int,
    data: Calibration,
    scaled: bool,
) -> tuple[Array64, Array64]:
    """The factor and the constant of each channel of ``entry`` that come closest to ``goal`` of the original network."""
    count = 0
    sums: list[Array64] = []
    both = zip(data.stream(graph, [entry]), data.stream(original, [goal]), strict=True)
    for (given,), (wanted,) in both:
        x, y = (
            np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1).astype(np.float64)
            for a in (given, wanted)
        )
        parts = [x.sum(1), y.sum(1), (x * x).sum(1), (x * y).sum(1)]
        sums = parts if not sums else [a + b for a, b in zip(sums, parts, strict=True)]
        count += x.shape[1]
    mean_x, mean_y, square, product = (s / count for s in sums)
    spread = np.maximum(square - mean_x**2, 0)
    ridge = CALM * spread + 1e-12 * square + 1e-30
    factor = (product - mean_x * mean_y + ridge) / (spread + ridge)
    if not scaled:
        factor = np.ones_like(factor)
    return factor, mean_y - factor * mean_x


def _moved(
    node: Node, gain: int | None, shift: int, factor: Array64, constant: Array64
) -> dict[int, Tensor]:
    """The new constants of a node, by the index of the input."""
    found: dict[int, Tensor] = {}
    data = node.required(shift).data
    assert data is not None
    found[shift] = from_float64(data.float64() * factor + constant, data.dtype, data)
    if gain is not None:
        scale = node.required(gain).data
        assert scale is not None
        found[gain] = from_float64(scale.float64() * factor, scale.dtype, scale)
    return found


def _write(rw: Rewriter, node: Node, numbers: dict[int, Tensor]) -> None:
    for index, tensor in numbers.items():
        old = node.required(index)
        rw.set_input(node, index, rw.constant(tensor, f"{old.name}.corrected"))

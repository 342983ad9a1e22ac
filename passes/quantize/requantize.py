"""``requantize{...}``: passes that change weights, on a model whose weights are quantised.

Passes refuse weights that are dequantised from integers: a changed weight would be floating-point. Inside this group they see the same
numbers as ordinary weights. Behind them, a weight that did not change is read from its integers as before; one that changed becomes integers again:

- If all numbers of a channel are whole multiples of one step, at most 127 of them, these are the integers, and nothing is lost. That holds for channels
  that were permuted, scaled (a batch norm), or lost some of their numbers (2:4, blocks).
- Otherwise the channel gets a fresh scale, from its largest number, and the error is in the report.

A weight that had one scale for the whole tensor keeps one. Nothing else changes: activations are quantised where they were, and no pass merges across that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ...ir import (
    ArrayTensor,
    Conv,
    ConvTranspose,
    Dequantize,
    DType,
    Exactness,
    Graph,
    Linear,
    MaskedTensor,
    MatMul,
    Node,
    Rewriter,
    Tensor,
    Value,
)
from ...ir.analysis.dequantized import is_dequantized
from ...ir.analysis.integer_pairs import pair_sums, within_limit
from ...ir.tensor import transposed
from ..infra.contract import Context, Pass
from ..infra.repeat import Group
from ..merge.algebra.tensors import Array64
from ..statistics.im2col import Array
from .weights import (
    BIAS_LARGEST,
    LARGEST,
    QuantizedWeight,
    Scales,
    least_scales,
    quantized_bias,
    quantized_weight,
)
from .write import dequantized

_LAYERS = (Conv, ConvTranspose, Linear, MatMul)

WHOLE = 1e-3
"""How far from a whole number a multiple of the step may be."""

_PROBED = 64
"""The numbers of a channel that are looked at before all of them are."""


@dataclass
class Memory:
    """The integers that weights were read from, from the first of the inner passes to the last.

    Attributes:
        layers: What is known of each layer by name.
        constants: The ordinary weights that replace dequantised ones, each with the tensors to read again.
    """

    layers: dict[str, Kept] = field(default_factory=dict)
    constants: dict[Value, Form] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    """The weights of all layers before the inner passes, by name of the layer."""


@dataclass(frozen=True)
class Kept:
    """How a layer's weight was stored.

    Attributes:
        whole: One scale for the whole tensor.
        integer_bias: The bias was dequantised too.
        limited: No two magnitudes of an output channel add up to more than 128.
    """

    whole: bool
    integer_bias: bool
    limited: bool


@dataclass(frozen=True)
class Form:
    """A dequantised constant, to be written again.

    Attributes:
        parts: The integers, the scale and perhaps the zero point.
        axis: The axis of the scales.
        numbers: The floats.
        turned: The layer reads the transpose.
    """

    parts: tuple[Tensor, ...]
    axis: int
    numbers: Tensor
    turned: bool


@dataclass(frozen=True)
class _End(Pass):
    """A pass that the group puts in front of its passes or behind them; both share one memory."""

    asks_first = True
    memory: Memory = field(default_factory=Memory, compare=False, repr=False)

    def check_options(self) -> None:
        """There are no options: the group makes this pass."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class FloatWeights(_End):
    """Replace dequantised weights and biases of layers by ordinary ones of the same numbers."""

    name: ClassVar[str] = "float-weights"

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        made: dict[Value, Value] = {}
        for node in list(graph.nodes):
            if not isinstance(node.op, _LAYERS) or node.output.data is not None:
                continue
            forms = {i: _form(v) for i, v in enumerate(node.inputs) if i > 0}
            weight = forms.get(1)
            if weight is None:
                continue
            whole = weight.parts[1].size == 1
            limited = within_limit(weight.parts[0].numpy(), _channel_axis(node, weight.turned))
            self.memory.layers[node.name] = Kept(whole, forms.get(2) is not None, limited)
            with rw.rewrite("read a quantised weight as floats", node):
                for index, form in forms.items():
                    value = node.inputs[index]
                    if form is None or value is None or value.data is None:
                        continue
                    if value not in made:
                        made[value] = rw.constant(value.data, f"{value.name}.floats")
                        self.memory.constants[made[value]] = form
                    rw.set_input(node, index, made[value])
        self.memory.weights.update((node.name, weight) for node, _, weight in _weighted(graph))


def _channel_axis(node: Node, turned: bool) -> int:
    """The axis of the output channels of a layer's weight, or of the matrix that it reads the transpose of."""
    axis = 1 if isinstance(node.op, ConvTranspose | MatMul) else 0
    return 1 - axis if turned else axis


def _weighted(graph: Graph) -> list[tuple[Node, Value, Tensor]]:
    """The layers with a constant weight, each with the weight and its numbers."""
    read = ((n, n.input(1)) for n in graph.nodes if isinstance(n.op, _LAYERS))
    return [(n, v, v.data) for n, v in read if v is not None and v.data is not None]


def _form(value: Value | None) -> Form | None:
    """How a constant is dequantised; ``None`` if it is not, or not by one node that the IR knows."""
    if value is None or value.data is None or not is_dequantized(value):
        return None
    base, turned = value, False
    if value.producer is None and len(value.bases) == 1:
        base = value.bases[0]
        turned = value.type.rank == 2
    node = base.producer
    if node is None or not isinstance(node.op, Dequantize) or base.data is None:
        return None
    parts = [v.data for v in node.inputs if v is not None]
    known = tuple(p for p in parts if p is not None)
    if len(known) < len(parts):
        return None
    return Form(known, node.op.axis, base.data, turned)


@dataclass(frozen=True)
class RestoreWeights(_End):
    """Make weights integers again."""

    name: ClassVar[str] = "requantize-weights"
    exactness = Exactness.APPROXIMATE

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        same: dict[Value, Value] = {}
        names = self._renamed(graph)
        for node, value, _ in _weighted(graph):
            if value in self.memory.constants:
                with rw.rewrite("read a weight from its integers", node, exactness=Exactness.EXACT):
                    for index, own in enumerate(node.inputs):
                        if own is not None and own in self.memory.constants:
                            if own not in same:
                                same[own] = _written(rw, node, own, self.memory.constants[own])
                            rw.set_input(node, index, same[own])
                    self._changed_bias(node, value, rw)
                continue
            kept = names.get(node.name)
            if kept is not None:
                self._requantize(node, kept, rw)
        with rw.rewrite("remove weights that were read as floats", exactness=Exactness.EXACT):
            for value in graph.constants:
                if value in self.memory.constants and not value.use_count:
                    rw.erase_constant(value)

    def _renamed(self, graph: Graph) -> Mapping[str, Kept]:
        """The layers to be quantised again, by name.

        Layers that are gone are part of one that changed: a merged layer is called like the first of its parts.
        """
        present = {n.name for n in graph.nodes if isinstance(n.op, _LAYERS)}
        names = dict(self.memory.layers)
        gone = [kept for name, kept in self.memory.layers.items() if name not in present]
        if gone:
            for node, _, weight in _weighted(graph):
                before = self.memory.weights.get(node.name)
                if weight is not before and node.name not in names:
                    names[node.name] = gone[0]
        return names

    def _requantize(self, node: Node, kept: Kept, rw: Rewriter) -> None:
        value = node.required(1)
        data = value.data
        assert data is not None
        if isinstance(data, MaskedTensor) and data.lasting:
            rw.skip(node, "its mask is lasting: run fold-masks before weights become integers")
            return
        weight = data.float64()
        if not np.isfinite(weight).all():
            rw.skip(node, "its new weight is not finite everywhere")
            return
        if data.dtype is not DType.F32:
            rw.skip(
                node, f"its new weight is {data.dtype.value}, and only f32 becomes integers again"
            )
            return
        axis = _channel_axis(node, False)
        least = _scales_for_bias(node, weight.shape[axis]) if kept.integer_bias else None
        made, exact = fresh(weight, axis, kept.whole, least=least, pair_limit=kept.limited)
        size = float(np.square(weight).sum())
        error = float(np.square(made.floats() - weight).sum() / size) if size else 0.0
        kind = Exactness.EXACT if exact else Exactness.APPROXIMATE
        what = "the same steps" if exact else "fresh scales"
        with rw.rewrite(f"quantise a changed weight with {what}", node, exactness=kind, measures={"weight error": error}):  # fmt: skip
            scales = made.scales[:1] if kept.whole else made.scales
            shape = () if kept.whole else scales.shape
            parts: list[Tensor] = [
                ArrayTensor(made.numbers),
                ArrayTensor(scales.reshape(shape)),
                ArrayTensor(np.zeros(shape, np.int8)),
            ]
            turned = isinstance(node.op, Linear) and node.required(0).type.rank != 2
            if turned:
                parts[0], axis = ArrayTensor(np.ascontiguousarray(made.numbers.T)), 1
            floats = dequantized(parts[0], parts[1], data.dtype, axis)
            form = Form(tuple(parts), axis, floats, turned)
            rw.set_input(node, 1, _written(rw, node, value, form))
            if kept.integer_bias:
                self._bias(node, made.scales, rw)

    def _changed_bias(self, node: Node, value: Value, rw: Rewriter) -> None:
        """Store the bias of a layer as int32 again if the bias alone changed."""
        kept, bias = self.memory.layers.get(node.name), node.input(2)
        if kept is None or not kept.integer_bias or bias is None or is_dequantized(bias):
            return
        scales = self.memory.constants[value].parts[1].numpy().reshape(-1)
        self._bias(node, np.broadcast_to(scales, bias.type.dim(0) or 1), rw)

    def _bias(self, node: Node, weight_scales: Scales, rw: Rewriter) -> None:
        """Store a bias as int32 again, if the scale of the layer's input is known."""
        bias, number = node.input(2), _input_scale(node)
        if bias is None or bias.data is None or number is None:
            return
        wanted, scales = bias.data.float64(), number * weight_scales
        if wanted.shape != scales.shape:
            rw.skip(node, "its new bias has not one number for each scale of its weight")
            return
        with np.errstate(all="ignore"):
            fits = bool((np.abs(wanted / scales.astype(np.float64)) <= BIAS_LARGEST).all())
        if not fits:
            rw.skip(node, "its new bias does not fit into 32 bits with the scale of its weight")
            return
        parts = (
            ArrayTensor(quantized_bias(wanted, scales.astype(np.float64))),
            ArrayTensor(scales),
            ArrayTensor(np.zeros(scales.size, np.int32)),
        )
        floats = dequantized(parts[0], parts[1], bias.data.dtype, 0)
        rw.set_input(node, 2, _written(rw, node, bias, Form(parts, 0, floats, False)))


def _input_scale(node: Node) -> np.float32 | None:
    """The scale of what a layer reads; ``None`` if that is not dequantised with one scale."""
    maker = node.required(0).producer
    if maker is None or not isinstance(maker.op, Dequantize):
        return None
    scale = maker.required(1).data
    return None if scale is None or scale.size != 1 else np.float32(scale.numpy().reshape(()))


def _scales_for_bias(node: Node, channels: int) -> Array64 | None:
    """The smallest scales of a layer's weight with which its bias fits into 32 bits; ``None`` if it is not stored in them."""
    bias, scale = node.input(2), _input_scale(node)
    if bias is None or bias.data is None or scale is None:
        return None
    numbers = bias.data.float64().reshape(-1)
    if numbers.size != channels or not np.isfinite(numbers).all():
        return None
    return least_scales(numbers, float(scale))


def _written(rw: Rewriter, node: Node, value: Value, form: Form) -> Value:
    """A dequantised constant in front of a node."""
    hint = value.name.removesuffix(".floats")
    kinds = ("integers", "scale", "zero")
    parts = [rw.constant(p, f"{hint}.{k}") for p, k in zip(form.parts, kinds, strict=False)]
    made = rw.computed(
        Dequantize(form.axis), parts, [form.numbers], before=node, name=f"{hint}/dequantize"
    ).output
    if not form.turned:
        return made
    matrix = rw.constant(transposed(form.numbers), hint)
    rw.rebase(matrix, [made])
    return matrix


def fresh(
    weight: Array64,
    axis: int,
    whole: bool,
    *,
    least: Array64 | None = None,
    pair_limit: bool = False,
) -> tuple[QuantizedWeight, bool]:
    """Integers for a weight: the steps that its numbers are multiples of, where there are such, else fresh scales.

    Args:
        weight: The weight.
        axis: The axis of its output channels.
        whole: One scale for all channels.
        least: ``(channels,)``: lower bounds of the scales, so that biases fit into 32 bits.
        pair_limit: Keep the sum of any two magnitudes of a channel at most 128 where scales are fresh.

    Returns:
        The integers, and whether nothing is lost.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    groups = rows.reshape(1, -1) if whole else rows
    tops = np.abs(groups).max(1, initial=0)
    found = np.array([_step(row, top) for row, top in zip(groups, tops, strict=True)])
    if least is not None:
        bound = least.max(keepdims=True) if whole else least
        found = np.where(found >= bound, found, 0)
    else:
        bound = np.zeros(len(groups))
    largest = tops
    if pair_limit:
        pairs = pair_sums(rows, 0)
        largest = np.maximum(tops, pairs.max(keepdims=True) if whole else pairs)
    # Channels of zeros get the usual scale: a step of 1 would be too coarse for their biases.
    scales = np.where(tops == 0, 0, np.where(found > 0, found, largest / LARGEST))
    scales = np.maximum(scales, bound)
    if whole:
        scales = np.repeat(scales, len(rows))
    # A lower bound that no channel undercuts, since its largest number is at most 127 steps.
    made = quantized_weight(weight, axis, least=scales)
    return made, bool(((found > 0) | (tops == 0)).all())


def _step(row: Array64, top: float) -> float:
    """The largest step that all numbers of a row are whole multiples of, at most 127 of them; 0 if there is none."""
    if top == 0:
        return 1.0
    steps = top / np.arange(1, LARGEST + 1)
    probe = row[np.argsort(-np.abs(row), kind="stable")[:_PROBED]]
    for step in steps[_are_whole(probe, steps)]:
        if _are_whole(row, np.array([step]))[0]:
            return float(step)
    return 0.0


def _are_whole(row: Array64, steps: Array64) -> Array:
    counts = row[None, :] / steps[:, None]
    return np.asarray((np.abs(counts - np.rint(counts)) < WHOLE).all(1))


@dataclass(frozen=True)
class Requantize(Group):
    """Run passes on the numbers of quantised weights, and make weights that they changed integers again.

    Attributes:
        passes: The passes, in order.
    """

    name: ClassVar[str] = "requantize"

    @property
    def exactness(self) -> Exactness:  # type: ignore[override]
        """Approximate: changed weights may need fresh scales."""
        return Exactness.APPROXIMATE

    def expanded(self) -> tuple[Pass, ...]:
        """The passes between the one that reads integers as floats and the one that makes them integers again."""
        memory = Memory()
        return (FloatWeights(memory), *self.passes, RestoreWeights(memory))

"""Writes quantisation into a graph: ``Dequantize(Quantize(value))`` in front of integer readers, dequantised constants as weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...ir import (
    ArrayTensor,
    Conv,
    Dequantize,
    DerivedTensor,
    DType,
    GlobalAveragePool,
    Graph,
    Linear,
    MatMul,
    Node,
    Quantize,
    Rewriter,
    Tensor,
    Value,
)
from ...ir.tensor import transposed
from ..merge.algebra.tensors import Array64
from .placement import Placement, Scheme, result_of
from .ranges import Extent, Levels
from .weights import TINY, QuantizedWeight, least_scales, quantized_bias, quantized_weight

_TYPES = {"u8": np.uint8, "i8": np.int8}


@dataclass(frozen=True)
class WeightRule:
    """How weights are quantised.

    Attributes:
        clip: Choose the scales with the least squared error.
        pair_limit: Keep the sum of any two magnitudes of a channel at most 128.
    """

    clip: bool = False
    pair_limit: bool = False


def channel_axis(node: Node) -> int:
    """The axis of the output channels of a layer's weight."""
    return 1 if isinstance(node.op, MatMul) else 0


@dataclass
class Writer:
    """Writes one quantisation into one graph.

    Attributes:
        graph: The graph.
        scheme: What the target wants.
        rule: How weights are quantised.
        kept: Quantised weights by name of the value and lower bounds of their scales, to be used again.
    """

    graph: Graph
    scheme: Scheme
    rule: WeightRule
    kept: dict[tuple[str, int, bytes], QuantizedWeight] = field(default_factory=dict)
    used: dict[str, QuantizedWeight] = field(default_factory=dict)
    """The weights that were written, by name of the layer's result."""

    def weight(self, node: Node, least: Array64 | None = None) -> QuantizedWeight:
        """The quantised weight of a layer.

        Raises:
            ValueError: If it is not finite.
        """
        value = node.required(1)
        assert value.data is not None
        key = (value.name, channel_axis(node), b"" if least is None else least.tobytes())
        if key not in self.kept:
            rule = self.rule
            self.kept[key] = quantized_weight(
                value.data.float64(), channel_axis(node), clip=rule.clip, pair_limit=rule.pair_limit, least=least,
            )  # fmt: skip
        return self.kept[key]

    def write(
        self, rw: Rewriter, placement: Placement, parameters: Parameters, biases: Biases
    ) -> None:
        """Write everything.

        Args:
            rw: The rewriter of the graph.
            placement: What computes in integers.
            parameters: Scale and zero point of each value that is quantised; empty for weights alone.
            biases: The biases of layers, in float64.
        """
        stored: Stored = {}
        for node in placement.layers:
            if node.required(1).data is None:
                continue
            bias, scale = biases.get(node), None
            if parameters and bias is not None and self.has_integer_bias(node):
                scale = parameters[node.required(0)][0]
            made = self.used[node.output.name] = self._fitting(node, bias, scale)
            data = node.required(1).data
            assert data is not None
            old = data.float64()
            error = float(np.square(made.floats() - old).sum() / max(np.square(old).sum(), TINY))
            with rw.rewrite(
                f"{made.numbers.dtype} weights of {node.op.name}", node, measures={"weight error": error}
            ):  # fmt: skip
                self.write_weight(rw, node, made, stored)
                self.write_bias(rw, node, made, bias, scale)
        if placement.points:
            counts = {
                "quantized values": float(len(placement.points)),
                "other ops in integers": float(len(placement.others)),
            }
            with rw.rewrite(
                "quantize activations", *placement.layers, *placement.others, measures=counts
            ):
                self.write_points(rw, placement, parameters)

    def _fitting(
        self, node: Node, bias: Array64 | None, scale: np.float32 | None
    ) -> QuantizedWeight:
        """The quantised weight of a layer, with scales that are large enough for a 32-bit bias."""
        made = self.weight(node)
        if bias is None or scale is None:
            return made
        least = least_scales(bias, float(scale))
        return made if (made.scales >= least).all() else self.weight(node, least)

    def has_integer_bias(self, node: Node) -> bool:
        """Whether a layer's kernel reads its bias as int32."""
        if not self.scheme.integer_bias:
            return False
        return isinstance(node.op, Conv) or (
            isinstance(node.op, Linear) and node.required(0).type.rank == 2
        )

    def write_weight(self, rw: Rewriter, node: Node, made: QuantizedWeight, stored: Stored) -> None:
        """Let a layer read its weight from integers."""
        value, op = node.required(1), node.op
        assert value.data is not None
        # Dense layers of higher rank are written as a product with the transposed matrix.
        turned = isinstance(op, Linear) and node.required(0).type.rank != 2
        key = (value, made.axis, turned, made.scales.tobytes())
        if key not in stored:
            numbers, axis = (made.numbers.T, 1) if turned else (made.numbers, made.axis)
            name = value.name
            parts = [
                rw.constant(ArrayTensor(np.ascontiguousarray(numbers)), f"{name}.int8"),
                rw.constant(ArrayTensor(made.scales), f"{name}.scale"),
                rw.constant(ArrayTensor(np.zeros(made.scales.size, np.int8)), f"{name}.zero"),
            ]
            floats = _floats(parts, value.data.dtype, axis)
            result = rw.computed(
                Dequantize(axis), parts, [floats], before=node, name=f"{name}/dequantize"
            ).output
            if turned:
                matrix = rw.constant(transposed(floats), f"{name}.quantized")
                rw.rebase(matrix, [result])
                result = matrix
            stored[key] = result
        rw.set_input(node, 1, stored[key])
        erase_unused(rw, value)

    def write_bias(
        self, rw: Rewriter, node: Node, made: QuantizedWeight, bias: Array64 | None, scale: np.float32 | None
    ) -> None:  # fmt: skip
        """Give a layer its bias: from 32-bit integers if there is a scale of the input, else in floats, if it changed."""
        if bias is None:
            return
        value, x = node.input(2), node.required(0)
        name = f"{node.name}.bias" if value is None else value.name
        dtype = x.type.dtype or DType.F32
        if scale is None:
            if value is None or value.data is None or (value.data.float64() != bias).any():
                self._set_bias(rw, node, rw.constant(ArrayTensor(bias.astype(dtype.numpy)), name))
            return
        scales = scale * made.scales
        numbers = quantized_bias(bias, scales.astype(np.float64))
        parts = [
            rw.constant(ArrayTensor(numbers), f"{name}.int32"),
            rw.constant(ArrayTensor(scales), f"{name}.scale"),
            rw.constant(ArrayTensor(np.zeros(scales.size, np.int32)), f"{name}.zero"),
        ]
        floats = _floats(parts, dtype, 0)
        made_node = rw.computed(
            Dequantize(0), parts, [floats], before=node, name=f"{name}/dequantize"
        )
        self._set_bias(rw, node, made_node.output)

    def _set_bias(self, rw: Rewriter, node: Node, bias: Value) -> None:
        if len(node.inputs) > 2:
            old = node.input(2)
            rw.set_input(node, 2, bias)
            if old is not None:
                erase_unused(rw, old)
        else:
            rw.replace(node, node.op, [*node.inputs, bias])

    def write_points(self, rw: Rewriter, placement: Placement, parameters: Parameters) -> None:
        """Quantise the activations."""
        own = placement.nodes
        for node in placement.others:
            # A mean over the spatial axes has no integer kernel under its other names.
            if isinstance(node.op, GlobalAveragePool) and rw.unwritable(node) is None:
                rw.replace(node, node.op, node.inputs)
        by_kernel = {
            result_of(node) for node in own
            if not (self.scheme.float_results and isinstance(node.op, Linear | MatMul))
        }  # fmt: skip
        shared: dict[int, tuple[Value, Value]] = {}
        first = next(self.graph.nodes)
        for value, number in placement.points.items():
            levels, (scale, zero) = self.scheme.levels, parameters[value]
            if number not in shared:
                shared[number] = (
                    rw.constant(ArrayTensor(np.array(scale)), f"{value.name}.scale"),
                    rw.constant(
                        ArrayTensor(np.array(zero, _TYPES[levels.dtype])), f"{value.name}.zero"
                    ),
                )
            pair = shared[number]
            uses, is_output = value.uses, value.is_output
            quantize = rw.insert(
                Quantize(levels.dtype), [value, *pair], after=value.producer,
                before=first if value.producer is None else None, name=f"{value.name}/quantize",
            )  # fmt: skip
            result = rw.insert(
                Dequantize(), [quantize.output, *pair], after=quantize, name=f"{value.name}/dequantize"
            ).output  # fmt: skip
            everywhere = value in by_kernel
            if everywhere and is_output:
                rw.replace_uses(value, result)
                rw.set_input(quantize, 0, value)
                continue
            for node, index in uses:
                if node in own or everywhere:
                    rw.set_input(node, index, result)


Parameters = Mapping[Value, tuple[np.float32, int]]
"""The scale and the zero point of each value that is quantised."""

Biases = Mapping[Node, Array64 | None]
"""The biases of layers."""

Stored = dict[tuple[Value, int, bool, bytes], Value]
"""Dequantised weights that were written, by weight, axis, whether they are transposed, and scales."""


def erase_unused(rw: Rewriter, value: Value) -> None:
    """Remove a float constant that nothing reads any more."""
    if value.producer is None and not value.use_count:
        rw.erase_constant(value)


def dequantized(numbers: Tensor, scales: Tensor, dtype: DType, axis: int) -> DerivedTensor:
    """The floats of integers with the zero point 0.

    Args:
        numbers: The integers.
        scales: One scale, or one for each index of ``axis``.
        dtype: The element type of the result.
        axis: The axis of the scales.
    """

    def compute() -> Array64:
        shape = [1] * len(numbers.shape)
        if scales.size > 1:
            shape[axis] = -1
        made: npt.NDArray[np.float32] = numbers.numpy().astype(np.float32)
        # In float32, as the runtime computes it.
        return (made * scales.numpy().reshape(shape)).astype(np.float64)

    return DerivedTensor(numbers.shape, dtype, compute, sources=(numbers, scales))


def _floats(parts: list[Value], dtype: DType, axis: int) -> DerivedTensor:
    numbers, scales = parts[0].data, parts[1].data
    assert numbers is not None
    assert scales is not None
    return dequantized(numbers, scales, dtype, axis)


def parameters_of(
    extents: Mapping[Value, Extent], levels: Levels
) -> dict[Value, tuple[np.float32, int]]:
    """The scale and the zero point of each value."""
    return {value: levels.parameters(extent) for value, extent in extents.items()}

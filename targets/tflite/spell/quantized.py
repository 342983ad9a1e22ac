"""Convolutions and products of quantised numbers: dequantised, computed and quantised again, for which there are int8 kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import (
    Conv,
    Dequantize,
    DerivedTensor,
    DType,
    DynamicQuantize,
    Graph,
    IntegerMatMul,
    Linear,
    MatMul,
    Node,
    Op,
    Quantize,
    QuantizedConv,
    QuantizedMatMul,
    Tensor,
    Value,
)
from ....ir.tensor import transposed
from ..emitter import Emitter, Unsupported, spells

_DYNAMIC = "LiteRT has no kernel for it: quantise the model statically, with calibration data"
spells.cannot(IntegerMatMul, _DYNAMIC)
spells.cannot(DynamicQuantize, _DYNAMIC)


@spells(QuantizedConv, note="of constant weights and scales")
def quantized_conv(e: Emitter, node: Node, op: QuantizedConv) -> None:
    """CONV_2D or DEPTHWISE_CONV_2D of int8."""
    parts = _Parts(e, node)
    weight = parts.constant(3, 0)
    bias = node.input(8)
    operands = [parts.activation(0), weight, *([] if bias is None else [parts.bias(bias)])]
    parts.put(Conv(op.strides, op.pads, op.dilations, op.groups), operands, 6)


@spells(QuantizedMatMul, note="of constant scales")
def quantized_product(e: Emitter, node: Node, op: QuantizedMatMul) -> None:
    """FULLY_CONNECTED of int8 by a constant matrix; the product of other operands is computed in float32."""
    parts, right = _Parts(e, node), node.required(3)
    if right.data is None:
        parts.put(MatMul(), [parts.activation(0), parts.activation(3)], 6)
    elif len(right.data.shape) == 2:
        parts.put(Linear(), [parts.activation(0), parts.transposed(parts.constant(3, 1))], 6)
    else:
        raise Unsupported("LiteRT has no kernel for a constant that is no matrix")


class _Parts:
    """The nodes that compute the same as a node, in a graph of their own; what they read is what the node reads."""

    def __init__(self, e: Emitter, node: Node) -> None:
        self.e, self.node, self.graph = e, node, Graph("parts")

    def _held(self, place: int) -> Value:
        value = self.node.required(place)
        if value.data is not None:
            return self.graph.add_constant(value.data, value.name)
        twin = self.graph.add_input(value.name, value.type)
        self.e.placed[twin] = self.e.placed[value]
        return twin

    def _scales(self, place: int) -> list[Value]:
        """A scale and the zero point behind it, which are constant."""
        made = [self._held(place), self._held(place + 1)]
        if any(value.data is None for value in made):
            raise Unsupported("the model computes its scale or zero point")
        dtype = made[0].type.dtype
        if dtype is not DType.F32:
            raise Unsupported(
                f"LiteRT has no kernel for scales of {dtype.value if dtype else 'unknown type'}"
            )
        return made

    def activation(self, place: int) -> Value:
        """A dequantised input, whose scale and zero point are behind it."""
        return self.graph.append(Dequantize(), [self._held(place), *self._scales(place + 1)]).output

    def constant(self, place: int, axis: int) -> Value:
        """A dequantised constant."""
        held, scales = self._held(place), self._scales(place + 1)
        if held.data is None:
            raise Unsupported("its weight is computed by the model, not constant")
        made = self.graph.append(Dequantize(axis), [held, *scales]).output
        made.data = _real(held.data, axis, *(value.data for value in scales))
        made.type = made.data.type
        return made

    def bias(self, value: Value) -> Value:
        """The bias as real numbers: its scale is the product of those of input and weight."""
        data = value.data
        x_scale, w_scale = (self.node.required(place).data for place in (1, 4))
        if data is None or x_scale is None or w_scale is None:
            raise Unsupported("its bias is computed by the model, not constant")

        def numbers() -> Any:
            scale = x_scale.float64().reshape(-1) * w_scale.float64().reshape(-1)
            return data.float64() * scale

        return self.graph.add_constant(DerivedTensor(data.shape, DType.F32, numbers), value.name)

    def transposed(self, value: Value) -> Value:
        """A matrix, transposed; it names the one that it is another form of."""
        data = value.data
        assert data is not None
        made = self.graph.add_constant(transposed(data), value.name)
        made.bases = (value,)
        return made

    def put(self, op: Op, operands: list[Value], place: int) -> None:
        """Write all nodes, and record the result, which is quantised by the scale and zero point at a place."""
        made = self.graph.append(op, operands, name=self.node.name).output
        dtype = self.node.output.type.dtype
        if dtype is None:
            raise Unsupported("the element type of its result is not known")
        scales = self._scales(place)
        result = self.graph.append(Quantize(dtype.value), [made, *scales], name=self.node.name)
        for node in self.graph.nodes:
            if node.output.data is None:
                self.e.spell(node)
        self.e.put(self.node.output, *self.e.placed[result.output])


def _real(data: Tensor, axis: int, scale: Tensor | None, zero: Tensor | None) -> Tensor:
    """The real numbers of a quantised constant, with scales of all or along an axis."""
    assert scale is not None
    assert zero is not None

    def numbers() -> Any:
        wide = [1] * len(data.shape)
        wide[axis] = -1
        shapes = [wide if t.size > 1 else [1] * len(wide) for t in (zero, scale)]
        points, scales = (
            t.float64().reshape(shape) for t, shape in zip((zero, scale), shapes, strict=True)
        )
        return np.asarray((data.float64() - points) * scales)

    return DerivedTensor(data.shape, DType.F32, numbers)

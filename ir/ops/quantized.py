"""Convolutions and products of quantised numbers, each with its own scales: ONNX's integer operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..types import DType, TensorType
from .base import (
    Axis,
    InferenceError,
    InputTypes,
    Op,
    Tie,
    optional,
    required,
    same_shape_ties,
)
from .elementwise import MatMul
from .linear import Conv, _Windowed

_BYTES = (None, DType.I8, DType.U8)


def _shape_alone(type_: TensorType | None) -> TensorType | None:
    return None if type_ is None else TensorType(None, type_.shape)


def _check_bytes(op: Op, inputs: InputTypes, places: Sequence[int]) -> None:
    for place in places:
        type_ = optional(inputs, place)
        if type_ is not None and type_.dtype not in _BYTES:
            raise InferenceError(f"{op.name} of {type_}, which is no i8 or u8")


def _check_one(op: Op, inputs: InputTypes, places: Sequence[int]) -> None:
    """Scales and zero points of one number."""
    for place in places:
        type_ = required(inputs, place)
        if type_.static_shape not in ((), (1,)):
            raise InferenceError(
                f"{op.name} with a scale or zero point {type_}, which is no number"
            )


def _along(op: Op, inputs: InputTypes, places: Sequence[int], size: int | None) -> list[Axis]:
    """Those of some scales and zero points that have a number for each of ``size`` channels.

    Raises:
        InferenceError: If one has another number of them.
    """
    found = []
    for place in places:
        type_ = optional(inputs, place)
        shape = type_.static_shape if type_ is not None else ()
        if shape in ((), (1,)):
            continue
        if shape is None or len(shape) != 1 or shape[0] != size:
            raise InferenceError(f"{op.name} of {size} channels with a scale or zero point {type_}")
        found.append(Axis(place, 0))
    return found


@dataclass(frozen=True)
class QuantizedConv(_Windowed):
    """Convolution of quantised numbers: ``(x, x scale, x zero, w, w scale, w zero, y scale, y zero, b?)``.

    It is that of the real numbers, quantised with the last scale and zero point, which give the element type of the result. The
    weight may have a scale and a zero point for each output channel, all others have one. The bias is i32 and has the scale
    ``x scale * w scale`` and the zero point 0.

    Attributes:
        strides: As those of ``Conv``, like the next three.
        pads: The padding, of x's zero point.
        dilations: The dilations.
        groups: The groups.
    """

    groups: int = 1
    arity = (8, 9)

    def _plain(self) -> Conv:
        return Conv(self.strides, self.pads, self.dilations, self.groups)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        w, zero = required(inputs, 3), required(inputs, 7)
        _check_bytes(self, inputs, (0, 2, 3, 5, 7))
        _check_one(self, inputs, (1, 2, 6, 7))
        _along(self, inputs, (4, 5), w.dim(0))
        bias = optional(inputs, 8)
        if bias is not None and bias.dtype not in (None, DType.I32):
            raise InferenceError(f"QuantizedConv with a bias {bias}")
        plain = [_shape_alone(optional(inputs, i)) for i in (0, 3, 8)]
        (made,) = self._plain().infer(plain)
        return (TensorType(zero.dtype, made.shape),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        plain = [_shape_alone(optional(inputs, i)) for i in (0, 3, 8)]
        found = self._plain().channels(plain)
        try:
            vectors = _along(self, inputs, (4, 5), required(inputs, 3).dim(0))
        except InferenceError:
            return None
        return None if found is None else _moved(found, {1: 3, 2: 8}, Axis(3, 0), vectors)

    def macs(self, inputs: InputTypes, outputs: Sequence[TensorType]) -> int | None:
        return self._plain().macs([required(inputs, 0), required(inputs, 3)], outputs)


def _moved(
    found: Sequence[Tie], places: dict[int, int], beside: Axis, vectors: Sequence[Axis]
) -> tuple[Tie, ...]:
    """Ties of operands that are at other places here, with vectors beside one of their axes."""
    made = []
    for tie in found:
        own = {Axis(places.get(a.operand, a.operand), a.axis) for a in tie}
        made.append(frozenset(own | set(vectors) if beside in own else own))
    return tuple(made)


@dataclass(frozen=True)
class _QuantizedProduct(Op):
    """What the products of quantised matrices share: where the right operand and what belongs to both are."""

    def _product(
        self, inputs: InputTypes, right: int, right_vectors: Sequence[int]
    ) -> tuple[Tie, ...] | None:
        a, b = TensorType(None, required(inputs, 0).shape), required(inputs, right)
        try:
            vectors = _along(self, inputs, right_vectors, b.dim(-1))
        except InferenceError:
            return None
        found = MatMul().channels([a, TensorType(None, b.shape)])
        if found is None:
            return None
        return _moved(found, {1: right}, Axis(right, (b.rank or 0) - 1), vectors)

    def _result(self, inputs: InputTypes, right: int, dtype: DType | None) -> TensorType:
        pair = [TensorType(None, required(inputs, i).shape) for i in (0, right)]
        (made,) = MatMul().infer(pair)
        return TensorType(dtype, made.shape)

    def _macs(self, inputs: InputTypes, outputs: Sequence[TensorType], right: int) -> int | None:
        return MatMul().macs([required(inputs, 0), required(inputs, right)], outputs)


@dataclass(frozen=True)
class QuantizedMatMul(_QuantizedProduct):
    """Product of quantised numbers: ``(a, a scale, a zero, b, b scale, b zero, y scale, y zero)``.

    It is that of the real numbers, quantised with the last scale and zero point, which give the element type of the result. The right
    operand may have a scale and a zero point for each column, all others have one.
    """

    arity = (8, 8)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        _check_bytes(self, inputs, (0, 2, 3, 5, 7))
        _check_one(self, inputs, (1, 2, 6, 7))
        _along(self, inputs, (4, 5), required(inputs, 3).dim(-1))
        return (self._result(inputs, 3, required(inputs, 7).dtype),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return self._product(inputs, 3, (4, 5))

    def macs(self, inputs: InputTypes, outputs: Sequence[TensorType]) -> int | None:
        return self._macs(inputs, outputs, 3)


@dataclass(frozen=True)
class IntegerMatMul(_QuantizedProduct):
    """Product of integers minus their zero points, as i32: ``(a, b, a zero?, b zero?)``.

    The right operand may have a zero point for each column, the left one has one.
    """

    arity = (2, 4)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        _check_bytes(self, inputs, range(4))
        if optional(inputs, 2) is not None:
            _check_one(self, inputs, (2,))
        _along(self, inputs, (3,), required(inputs, 1).dim(-1))
        return (self._result(inputs, 1, DType.I32),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return self._product(inputs, 1, (3,))

    def macs(self, inputs: InputTypes, outputs: Sequence[TensorType]) -> int | None:
        return self._macs(inputs, outputs, 1)


@dataclass(frozen=True)
class DynamicQuantize(Op):
    """Quantisation to u8 with a scale that follows the numbers: ``(x)`` gives ``(integers, scale, zero point)``.

    The scale is chosen so that the smallest and the largest number, and 0, can be represented.
    """

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if x.dtype not in (None, DType.F32):
            raise InferenceError(f"DynamicQuantize of {x}")
        return TensorType(DType.U8, x.shape), TensorType(DType.F32, ()), TensorType(DType.U8, ())

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return same_shape_ties(required(inputs, 0).rank, (0, -1))


__all__ = ["DynamicQuantize", "IntegerMatMul", "QuantizedConv", "QuantizedMatMul"]

"""Quantisation: integers and the real numbers that they represent, ``real = (integer - zero) * scale``."""

from __future__ import annotations

from dataclasses import dataclass

from ..types import DType, TensorType
from .base import InferenceError, InputTypes, Op, Tie, axis_of, optional, required, ties

QUANTIZED = ("i8", "u8", "i16", "u16")
"""The element types of quantised activations and weights."""


@dataclass(frozen=True)
class _Quantizer(Op):
    """The operands of both directions: ``(x, scale, zero?)``, one scale for all, or a vector along ``axis``."""

    arity = (2, 3)

    def _check(self, inputs: InputTypes, axis: int) -> TensorType:
        x, scale, zero = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
        if scale.rank not in (None, 0, 1) or (zero is not None and zero.rank not in (None, 0, 1)):
            raise InferenceError(f"{self.name} of {x} with a scale {scale}")
        if x.rank is not None and scale.rank == 1 and scale.dim(0) != 1:
            size, have = scale.dim(0), x.dim(axis_of(axis, x.rank))
            if None not in (size, have) and size != have:
                raise InferenceError(f"{self.name} of {x} with {size} scales along axis {axis}")
        return x

    def _ties(self, inputs: InputTypes, axis: int) -> tuple[Tie, ...] | None:
        x, scale, zero = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
        if x.rank is None or scale.rank is None or (scale.rank == 1 and scale.dim(0) is None):
            return None
        vectors: list[tuple[int, int]] = []
        if scale.rank == 1 and scale.dim(0) != 1:
            vectors = [(1, 0)]
            if zero is not None:
                if zero.dim(0) != scale.dim(0):
                    return None
                vectors.append((2, 0))
        own = axis_of(axis, x.rank) if vectors else -1
        return ties(*([(0, a), *(vectors if a == own else []), (-1, a)] for a in range(x.rank)))


@dataclass(frozen=True)
class Quantize(_Quantizer):
    """``clip(round(x / scale) + zero)`` as integers; halves are rounded to even.

    Attributes:
        dtype: The element type of the result, one of :data:`QUANTIZED`.
        axis: Which axis a vector of scales lies along.
    """

    dtype: str
    axis: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in QUANTIZED:
            raise ValueError(f"Quantize to {self.dtype!r}; known are {', '.join(QUANTIZED)}")

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x, zero = self._check(inputs, self.axis), optional(inputs, 2)
        dtype = DType(self.dtype)
        if zero is not None and zero.dtype not in (None, dtype):
            raise InferenceError(f"Quantize to {self.dtype} with a zero point {zero}")
        return (TensorType(dtype, x.shape),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return self._ties(inputs, self.axis)


@dataclass(frozen=True)
class Dequantize(_Quantizer):
    """``(x - zero) * scale`` in the element type of the scale.

    Attributes:
        axis: Which axis a vector of scales lies along, or blocks do.
        block: How many elements along ``axis`` share a scale: the scales have the rank of ``x`` then. 0 without blocks.
    """

    axis: int = 1
    block: int = 0

    def __post_init__(self) -> None:
        if self.block < 0:
            raise ValueError(f"Dequantize in blocks of {self.block}")

    def _check_blocks(self, inputs: InputTypes) -> TensorType:
        x, scale = required(inputs, 0), required(inputs, 1)
        if x.rank is not None and scale.rank not in (None, x.rank):
            raise InferenceError(f"{self.name} of {x} in blocks with a scale {scale}")
        for axis in range(x.rank or 0):
            size, have = x.dim(axis), scale.dim(axis)
            if size is not None and axis == axis_of(self.axis, x.rank or 0):
                size = -(-size // self.block)
            if None not in (size, have) and size != have:
                raise InferenceError(
                    f"{self.name} of {x} in blocks of {self.block} with a scale {scale}"
                )
        return x

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = self._check_blocks(inputs) if self.block else self._check(inputs, self.axis)
        zero = optional(inputs, 2)
        if x.dtype is not None and x.dtype.value not in (
            *QUANTIZED,
            "i32",
            *("i4", "u4") * bool(self.block),
        ):
            raise InferenceError(f"Dequantize of {x}")
        if zero is not None and None not in (zero.dtype, x.dtype) and zero.dtype is not x.dtype:
            raise InferenceError(f"Dequantize of {x} with a zero point {zero}")
        return (TensorType(required(inputs, 1).dtype, x.shape),)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        return None if self.block else self._ties(inputs, self.axis)


__all__ = ["QUANTIZED", "Dequantize", "Quantize"]

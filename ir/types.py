"""Tensor types: an element type and a shape of ints, symbols and unknown sizes.

The element types are those of ONNX's ``TensorProto.DataType``. Their NumPy types come from NumPy itself or, for types
that NumPy lacks, from ml_dtypes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import numpy as np

Dim = int | str | None
"""One dimension: a size, a symbol (``"batch"``), or ``None`` when unknown. Equal symbols are equal sizes."""

Shape = tuple[Dim, ...]


class DType(Enum):
    """The element type of a tensor. The value is its short name in the text form."""

    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    F64 = "f64"
    F8E4M3FN = "f8e4m3fn"
    F8E4M3FNUZ = "f8e4m3fnuz"
    F8E5M2 = "f8e5m2"
    F8E5M2FNUZ = "f8e5m2fnuz"
    F8E8M0 = "f8e8m0"
    F4E2M1 = "f4e2m1"
    I2 = "i2"
    U2 = "u2"
    I4 = "i4"
    U4 = "u4"
    I8 = "i8"
    U8 = "u8"
    I16 = "i16"
    U16 = "u16"
    I32 = "i32"
    U32 = "u32"
    I64 = "i64"
    U64 = "u64"
    C64 = "c64"
    C128 = "c128"
    BOOL = "bool"
    STRING = "string"

    @property
    def is_float(self) -> bool:
        """True for the real floating-point types, 4-bit and 8-bit ones included."""
        return self.value[0] == "f" or self is DType.BF16

    @property
    def is_wide_float(self) -> bool:
        """True for the floating-point types that weights are computed in: f16, bf16, f32, f64."""
        return self in _WIDE_FLOATS

    @property
    def is_int(self) -> bool:
        """True for the signed and unsigned integer types."""
        return self.value[0] in "iu"

    @property
    def bits(self) -> int:
        """Bits of storage for one element; 0 for strings."""
        if self is DType.STRING:
            return 0
        if self is DType.BOOL:
            return 8
        digits = re.match(r"[a-z]+(\d+)", self.value)
        assert digits is not None
        return int(digits[1])

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy type of an unpacked array of this element type."""
        return _numpy_dtype(self)

    @property
    def largest(self) -> float:
        """The largest finite number of a floating-point type."""
        return float(_limits(self).max)

    @property
    def smallest_normal(self) -> float:
        """The smallest positive normal (not subnormal) number of a floating-point type."""
        return float(_limits(self).smallest_normal)

    @classmethod
    def of(cls, dtype: Any) -> DType:
        """The element type of a NumPy (or ml_dtypes) dtype.

        Raises:
            TypeError: If there is none.
        """
        return _from_numpy(np.dtype(dtype))


_WIDE_FLOATS = frozenset({DType.F16, DType.BF16, DType.F32, DType.F64})

_NUMPY = {
    "f16": "float16", "f32": "float32", "f64": "float64", "i8": "int8", "u8": "uint8",
    "i16": "int16", "u16": "uint16", "i32": "int32", "u32": "uint32", "i64": "int64",
    "u64": "uint64", "c64": "complex64", "c128": "complex128", "bool": "bool", "string": "object",
}  # fmt: skip
_ML_DTYPES = {
    "bf16": "bfloat16", "f8e4m3fn": "float8_e4m3fn", "f8e4m3fnuz": "float8_e4m3fnuz",
    "f8e5m2": "float8_e5m2", "f8e5m2fnuz": "float8_e5m2fnuz", "f8e8m0": "float8_e8m0fnu",
    "f4e2m1": "float4_e2m1fn", "i2": "int2", "u2": "uint2", "i4": "int4", "u4": "uint4",
}  # fmt: skip


@cache
def _numpy_dtype(dtype: DType) -> np.dtype[Any]:
    if dtype.value in _NUMPY:
        return np.dtype(_NUMPY[dtype.value])
    import ml_dtypes

    extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[dtype.value]))
    return extended


@cache
def _limits(dtype: DType) -> Any:
    import ml_dtypes

    return ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]


@cache
def _from_numpy(dtype: np.dtype[Any]) -> DType:
    if dtype.kind in "OSUT":
        return DType.STRING
    for candidate in DType:
        if candidate.value in _NUMPY and _numpy_dtype(candidate) == dtype:
            return candidate
    for short, name in _ML_DTYPES.items():
        if dtype.name == name:
            return DType(short)
    raise TypeError(f"no element type for the NumPy dtype {dtype}")


@dataclass(frozen=True, slots=True)
class TensorType:
    """The type of a value: element type and shape, which may be unknown.

    Attributes:
        dtype: The element type, or ``None`` when unknown.
        shape: The dimensions, or ``None`` when the rank is unknown.
    """

    dtype: DType | None = None
    shape: Shape | None = None

    @property
    def rank(self) -> int | None:
        """The number of dimensions, or ``None``."""
        return None if self.shape is None else len(self.shape)

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        """The shape if every size is known, else ``None``."""
        if self.shape is None or not all(isinstance(d, int) for d in self.shape):
            return None
        return tuple(d for d in self.shape if isinstance(d, int))

    @property
    def is_static(self) -> bool:
        """True when the rank and every size are known."""
        return self.static_shape is not None

    @property
    def size(self) -> int | None:
        """The number of elements if every size is known, else ``None``."""
        shape = self.static_shape
        return None if shape is None else math.prod(shape)

    def dim(self, axis: int) -> int | None:
        """The size of ``axis`` (negative counts from the end), or ``None`` when it is unknown or does not exist."""
        if self.shape is None or not -len(self.shape) <= axis < len(self.shape):
            return None
        d = self.shape[axis]
        return d if isinstance(d, int) else None

    def with_shape(self, shape: Shape | None) -> TensorType:
        """This type with another shape."""
        return TensorType(self.dtype, shape)

    def one_sample(self) -> TensorType:
        """This type with a batch of one sample, if the first size is open."""
        if not self.shape or isinstance(self.shape[0], int):
            return self
        return self.with_shape((1, *self.shape[1:]))

    def accepts(self, other: TensorType) -> bool:
        """Whether a value of type ``other`` can be used where this type is expected.

        Known sizes and element types must be equal; symbols and unknown parts agree with anything.
        """
        if self.dtype and other.dtype and self.dtype is not other.dtype:
            return False
        if self.shape is None or other.shape is None:
            return True
        return len(self.shape) == len(other.shape) and all(
            a == b
            for a, b in zip(self.shape, other.shape, strict=True)
            if isinstance(a, int) and isinstance(b, int)
        )

    def refined(self, other: TensorType) -> TensorType:
        """This type, with unknown parts taken from ``other``, and symbols replaced by its sizes."""
        dtype = self.dtype or other.dtype
        if self.shape is None:
            return TensorType(dtype, other.shape)
        if other.shape is None or len(self.shape) != len(other.shape):
            return TensorType(dtype, self.shape)
        shape = tuple(
            b if not isinstance(a, int) and (isinstance(b, int) or a is None) else a
            for a, b in zip(self.shape, other.shape, strict=True)
        )
        return TensorType(dtype, shape)

    def __str__(self) -> str:
        name = self.dtype.value if self.dtype else "?"
        if self.shape is None:
            return f"{name}[*]"
        return f"{name}[{', '.join(_dim_text(d) for d in self.shape)}]"


UNKNOWN = TensorType()


def _dim_text(dim: Dim) -> str:
    if dim is None:
        return "?"
    if isinstance(dim, int):
        return str(dim)
    plain = re.fullmatch(r"(?!(?:inf|nan)$)[A-Za-z_][A-Za-z0-9_]*", dim)
    return dim if plain else f'"{_escape(dim)}"'


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")

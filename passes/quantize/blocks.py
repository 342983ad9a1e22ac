"""Weights as 4-bit integers in blocks: each run of some inputs of an output channel has a scale of its own.

onnxruntime makes its kernel MatMulNBits of the product with such a weight, if it is stored as (inputs, outputs), int4, in blocks along axis 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...ir import (
    Add,
    ArrayTensor,
    Dequantize,
    DerivedTensor,
    DType,
    Linear,
    MatMul,
    Node,
    Rewriter,
    Tensor,
    TensorType,
    Value,
    sketch,
)
from ..merge.algebra.tensors import Array64

LOW, HIGH = -8, 7
"""The integers of 4 bits."""

_FRACTIONS = np.linspace(1, 0.7, 13)


@dataclass(frozen=True)
class BlockWeight:
    """A matrix as 4-bit integers.

    Attributes:
        numbers: int8 from -8 to 7, ``(inputs, outputs)``.
        scales: ``(inputs / block, outputs)``; negative where the largest number of a block is positive, so that it is -8.
        block: The number of inputs of a block.
    """

    numbers: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    block: int

    def floats(self) -> Array64:
        """The numbers that the integers represent."""
        wide = np.repeat(self.scales.astype(np.float64), self.block, axis=0)
        return np.asarray(self.numbers * wide, np.float64)


def block_weight(matrix: Array64, block: int) -> BlockWeight:
    """Quantise a matrix in blocks: of some scales, the one with the least squared error.

    Args:
        matrix: ``(inputs, outputs)``.
        block: The number of inputs of a block, which divides their number.
    """
    rows, columns = matrix.shape
    parts = matrix.reshape(rows // block, block, columns)
    largest = np.take_along_axis(parts, np.abs(parts).argmax(1, keepdims=True), 1)
    best = np.zeros(largest.shape, np.float32)
    least = np.full(largest.shape, np.inf)
    for end in (LOW, HIGH):
        for fraction in _FRACTIONS:
            scale = (largest * fraction / end).astype(np.float32)
            error = np.square(_rounded(parts, scale) * scale - parts).sum(1, keepdims=True)
            better = error < least
            best[better], least[better] = scale[better], error[better]
    best[best == 0] = 1
    numbers = _rounded(parts, best).astype(np.int8).reshape(rows, columns)
    return BlockWeight(numbers, best[:, 0], block)


def _rounded(parts: Array64, scale: npt.NDArray[np.float32]) -> Array64:
    safe = np.where(scale == 0, 1, scale).astype(np.float64)
    found: Array64 = np.clip(np.rint(parts / safe), LOW, HIGH)
    return found


def block_problem(node: Node, block: int, rw: Rewriter) -> str | None:
    """Why the weight of a layer cannot be stored in blocks; ``None`` if it can."""
    if not isinstance(node.op, Linear | MatMul):
        return "only dense layers have 4-bit kernels"
    size = node.required(1).type.dim(0 if isinstance(node.op, MatMul) else 1)
    if size is None or size % block:
        return f"its {size} inputs do not divide into blocks of {block}"
    fan_out = node.required(1).type.dim(1 if isinstance(node.op, MatMul) else 0) or 1
    numbers = Value("w", TensorType(DType.I4, (size, fan_out)))
    scales = Value("s", TensorType(DType.F32, (size // block, fan_out)))
    return rw.unwritable(sketch(Dequantize(0, block), [numbers, scales]))


def write_blocks(rw: Rewriter, node: Node, block: int) -> None:
    """Let a layer read its weight from 4-bit integers; a dense layer becomes a product and a sum.

    Args:
        rw: The rewriter.
        node: The layer, which has no :func:`block_problem`.
        block: The number of inputs of a block.
    """
    value, op = node.required(1), node.op
    assert value.data is not None
    weight = value.data.float64()
    matrix = weight if isinstance(op, MatMul) else weight.T
    made = block_weight(matrix, block)
    total = np.square(matrix).sum()
    error = float(np.square(made.floats() - matrix).sum() / total) if total else 0.0
    bias = node.input(2)
    with rw.rewrite(
        f"int4 weights of {op.name} in blocks of {block}", node, measures={"weight error": error}
    ):
        parts = [
            rw.constant(ArrayTensor(made.numbers.astype(DType.I4.numpy)), f"{value.name}.int4"),
            rw.constant(ArrayTensor(made.scales), f"{value.name}.scale"),
        ]
        floats = _floats(made, value.data)
        read = rw.computed(
            Dequantize(0, block), parts, [floats], before=node, name=f"{value.name}/dequantize"
        ).output
        if isinstance(op, MatMul):
            rw.set_input(node, 1, read)
        elif bias is None:
            rw.replace(node, MatMul(), [node.required(0), read])
        else:
            product = rw.insert(
                MatMul(), [node.required(0), read], before=node, name=f"{node.name}/product"
            )
            rw.replace(node, Add(), [product.output, bias])
        if value.producer is None and not value.use_count:
            rw.erase_constant(value)


def _floats(made: BlockWeight, source: Tensor) -> DerivedTensor:
    return DerivedTensor(made.numbers.shape, source.dtype, made.floats, sources=(source,))

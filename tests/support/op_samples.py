"""A sample for each row of the table of ops: a node, with operands that show what the op computes.

``tests/contract/test_op_table.py`` writes each sample through every target that has a spelling, and compares the results;
it fails for a row without a sample. The first operand is an input of the graph, the others are constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphshrink import ir
from graphshrink.ir import ArrayTensor, DType, Graph, Op, TensorType
from graphshrink.ir.ops.rows import Key, key_of, rows


@dataclass(frozen=True, eq=False)
class Sample:
    """A node.

    Attributes:
        op: The op.
        operands: The graph's input, then constants; ``None`` for an operand that is left out.
    """

    op: Op
    operands: tuple[Any, ...]

    def graph(self) -> Graph:
        """A graph of this node alone, with the input ``x``."""
        first, *rest = self.operands
        graph = Graph("sample")
        inputs: list[Any] = [
            graph.add_input("x", TensorType(DType.of(first.dtype), first.shape)),
            *(None if c is None else graph.add_constant(ArrayTensor(c), f"c{i}") for i, c in enumerate(rest)),
        ]  # fmt: skip
        for value in graph.append(self.op, inputs, name="node").outputs:
            graph.add_output(value)
        return graph


_RNG = np.random.default_rng(5)


def _n(*shape: int) -> Any:
    """Normally distributed numbers."""
    return _RNG.standard_normal(shape).astype(np.float32)


def _u(*shape: int, low: float = 0.1, high: float = 0.9) -> Any:
    """Numbers between two ends."""
    return _RNG.uniform(low, high, shape).astype(np.float32)


def _q(*shape: int) -> Any:
    """Quantised numbers."""
    return _RNG.integers(-128, 128, shape).astype(np.int8)


def _b(*shape: int) -> Any:
    """Booleans."""
    return _RNG.integers(0, 2, shape).astype(bool)


_IMAGE, _MATRIX = _n(2, 4, 6, 6), _n(3, 4)
_PARAMETERS: dict[str, tuple[float, ...]] = {
    "clip": (-0.5, 0.75), "leaky_relu": (0.125,), "elu": (0.5,), "celu": (0.5,), "selu": (1.5, 1.25),
    "hard_sigmoid": (0.25, 0.5), "thresholded_relu": (0.5,),
}  # fmt: skip
_DOMAINS: dict[str, Any] = {
    "acosh": _u(3, 4, low=1.5, high=3.0), "not": _b(3, 4), "isnan": np.where(_b(3, 4), np.nan, np.float32(1)).astype(np.float32),
    "isinf": np.array([[1, np.inf, -np.inf, np.nan]], np.float32),
    **{kind: _u(3, 4) for kind in ("log", "sqrt", "rsqrt", "reciprocal", "asin", "acos", "atanh")},
}  # fmt: skip
"""The operands of functions that are not defined, or not interesting, on all numbers."""

_ALL: list[tuple[Any, ...]] = [
    *((ir.Activation(kind, _PARAMETERS.get(kind, ())), 3 * _MATRIX) for kind in ir.ACTIVATIONS),
    (ir.Add(), _MATRIX, _n(4)),
    *((ir.ArgReduce(kind, 1, False), _MATRIX) for kind in ("max", "min")),
    (ir.AveragePool((2, 2), (1, 1, 1, 1), (1, 1), (3, 3), count_include_pad=False), _IMAGE),
    (ir.Cast("i32"), 9 * _MATRIX),
    *((ir.Compare(kind), np.round(_MATRIX), np.round(_n(3, 4))) for kind in ir.COMPARISONS),
    (ir.Concat(1), _MATRIX, _n(3, 2)),
    (ir.Conv((2, 1), (1, 1, 1, 1), (1, 1), 2), _IMAGE, _n(6, 2, 3, 3), _n(6)),
    (ir.ConvTranspose((2, 2), (1, 1, 1, 1), (1, 1)), _IMAGE, _n(4, 3, 3, 3), _n(3)),
    (ir.CumSum(1), _MATRIX),
    (ir.DepthToSpace(2), _IMAGE),
    (ir.Dequantize(), np.arange(-8, 8, dtype=np.int8).reshape(4, 4), np.float32(0.25), np.int8(0)),
    (ir.DynamicQuantize(), _MATRIX),
    (ir.Div(), _MATRIX, _u(4, low=0.5, high=2.0)),
    (ir.DynamicSlice((3, 1), (2, 1)), _IMAGE, np.array([1, -3]), np.array([2**62, 3])),
    (ir.Embedding(), np.array([[2, 0], [1, 4]]), _n(5, 3)),
    (ir.Expand((2, 1, 4)), _n(3, 4)),
    (ir.Flatten(1), _IMAGE),
    (ir.Gate("relu"), _MATRIX, np.float32([0.25])),
    (ir.Gate("relu6", axis=1), _IMAGE, np.float32([0.25]), None, _n(4), _n(4)),
    (ir.Gate("prelu", axis=1), _IMAGE, np.float32([0.25]), _n(4), _n(4), _n(4)),
    (ir.Gather(1), _MATRIX, np.array([[3, 0], [1, 1]])),
    (ir.GatherElements(1), _MATRIX, np.array([[3, -4], [1, 1]])),
    (ir.GatherNd(), _IMAGE, np.array([[0, 3], [-1, -2], [1, 1]])),
    (ir.GlobalAveragePool(), _IMAGE),
    (ir.GroupNorm(2, 0.25), _IMAGE, _n(4), _n(4)),
    (ir.Gru(3, "forward", 2, reset_after=True), _n(5, 2, 4), _n(1, 9, 4), _n(1, 9, 3), _n(1, 18)),
    (ir.Identity(), _MATRIX),
    (ir.IntegerMatMul(), _q(3, 4), _q(4, 5), np.int8(3), np.int8([1, 0, -2, 3, 4])),
    (ir.LayerNorm(-1, 0.25), _MATRIX, _n(4), _n(4)),
    (ir.Linear(), _MATRIX, _n(5, 4), _n(5)),
    (ir.LogSoftmax(1), _MATRIX),
    (ir.LocalResponseNorm(3, 0.5, 0.75, 2.0), _IMAGE),
    *((ir.Logical(kind), _b(3, 4), _b(3, 4)) for kind in ir.LOGIC),
    (ir.Lstm(3, "forward", 3), _n(5, 2, 4), _n(1, 12, 4), _n(1, 12, 3), _n(1, 24)),
    (ir.MatMul(), _n(2, 3, 4), _n(4, 5)),
    (ir.Max(), _MATRIX, _n(4)),
    (ir.MaxPool((2, 2), (1, 1, 1, 1), (1, 1), (3, 3)), _IMAGE),
    (ir.Min(), _MATRIX, _n(4)),
    *(
        (ir.Mod(kind), np.arange(-5, 7, dtype=np.int32).reshape(3, 4), np.int32([2, -3, 4, -5]))
        for kind in ir.REMAINDERS
    ),
    (ir.Mul(), _MATRIX, _n(4)),
    (ir.PRelu(1), _IMAGE, _n(4)),
    (ir.Pad((0, 0, 1, 2, 0, 0, 3, 0), "constant", 1.5), _IMAGE),
    (ir.Pow(), _u(3, 4), _n(4)),
    (ir.Quantize("i8"), 9 * _MATRIX, np.float32(0.1), np.int8(0)),
    (ir.Range(), np.array(2), np.array(-7), np.array(-2)),
    (
        ir.QuantizedConv((2, 1), (1, 1, 1, 1), (1, 1), 2),
        _q(2, 4, 6, 6),
        np.float32(0.5),
        np.int8(3),
        _q(6, 2, 3, 3),
        np.float32([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]),
        np.zeros(6, np.int8),
        np.float32(
            9.75
        ),  # 0.5 * 0.1 / 9.75 is 1 / 195: no result lies half-way between two integers.
        np.int8(-5),
        np.arange(-3, 3, dtype=np.int32),
    ),
    (
        ir.QuantizedMatMul(),
        _q(3, 4),
        np.float32(0.5),
        np.int8(3),
        _q(4, 5),
        np.float32(0.2),
        np.int8(0),
        np.float32(54.1),
        np.int8(-5),
    ),
    *((ir.Reduce(kind, (1, 3), False), _IMAGE) for kind in ir.REDUCTIONS),
    (ir.Reshape((None, 2, -1)), _IMAGE),
    (ir.Resize("linear", "half_pixel", (1.0, 1.0, 2.0, 2.0)), _IMAGE),
    *(
        (ir.Rnn(3, "forward", 2, kind), _n(5, 2, 4), _n(1, 3, 4), _n(1, 3, 3), _n(1, 6))
        for kind in ir.Rnn.kinds
    ),
    (ir.Scale(1), _IMAGE, _n(4), _n(4)),
    (ir.Select(1, -1), _IMAGE),
    (ir.Slice((1, 0), (5, -1), (2, 3), (2, 1)), _IMAGE),
    (ir.Softmax(1), _MATRIX),
    (ir.SpaceToDepth(2), _IMAGE),
    (ir.Split((1, 3), 1), _MATRIX),
    (ir.Squeeze((0,)), _n(1, 3, 4)),
    (ir.Sub(), _MATRIX, _n(4)),
    (ir.TopK(3, 1), np.float32([[1, 3, 3, 2], [0, -1, 5, 5]])),
    (ir.Transpose((0, 2, 3, 1)), _IMAGE),
    *((ir.Unary(kind), _DOMAINS.get(kind, _MATRIX)) for kind in ir.UNARY),
    (ir.Unsqueeze((1,)), _MATRIX),
    (ir.Where(), _b(3, 4), _n(3, 4), _n(4)),
]

SAMPLES: dict[Key, Sample] = {key_of(op): Sample(op, tuple(rest)) for op, *rest in _ALL}
"""A sample for each row of the table of ops."""

FORGOTTEN = [key for key in rows() if key not in SAMPLES]

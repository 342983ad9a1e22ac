"""Random graphs: whatever the analysis calls a group can be permuted without changing an output."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphshrink import ir
from graphshrink.ir import ArrayTensor, DType, Graph, Op, TensorType, Value
from support.evaluate import evaluate
from support.permutations import permute_all

OPS = (
    "act", "add", "mul", "scale", "linear", "matmul", "transpose", "reshape", "reshape", "reshape", "split",
    "slice", "select", "concat", "concat", "reduce", "softmax", "norm", "gnorm", "conv", "group", "unsqueeze", "pad",
)  # fmt: skip


class Maker:
    """Draws a graph, op by op."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.graph = draw, Graph()
        self.rng = np.random.default_rng(draw(st.integers(0, 2**20)))
        x = self.graph.add_input("x", TensorType(DType.F64, (2, 4, 6)))
        # Weights that take part as activations are free where inputs are not.
        self.pool = [
            x,
            *(self.op(ir.Identity(), self.constant(*s)) for s in ((4, 6), (2, 6, 4), (12,))),
        ]
        for _ in range(draw(st.integers(2, 9))):
            made = getattr(self, f"make_{draw(st.sampled_from(OPS))}")(
                draw(st.sampled_from(self.pool))
            )
            self.pool += [v for v in made if 0 < math.prod(self.shape(v)) <= 600]
        for value in self.pool:
            if not value.use_count:
                # A weighted sum sees every element and fixes none.
                shape = self.shape(value)
                weighted = self.op(ir.Mul(), value, self.constant(*shape))
                axes = tuple(range(len(shape)))
                self.graph.add_output(
                    self.op(ir.Reduce("sum", axes, False), weighted) if axes else weighted
                )

    def shape(self, value: Value) -> tuple[int, ...]:
        shape = value.type.static_shape
        assert shape is not None
        return shape

    def constant(self, *shape: int) -> Value:
        return self.graph.add_constant(ArrayTensor(self.rng.standard_normal(shape)))

    def op(self, op: Op, *inputs: Value | None) -> Value:
        return self.graph.append(op, inputs).output

    def pick(self, items: Any) -> Any:
        return self.draw(st.sampled_from(list(items)))

    def axis(self, x: Value) -> int:
        return int(self.draw(st.integers(0, len(self.shape(x)) - 1)))

    def alike(self, x: Value) -> Value:
        """A value of the same shape: another one, a constant, or the value itself."""
        return self.pick([v for v in self.pool if self.shape(v) == self.shape(x)] + [self.constant(*self.shape(x))])  # fmt: skip

    def make_act(self, x: Value) -> list[Value]:
        return [self.op(ir.Activation("tanh"), x)]

    def make_add(self, x: Value) -> list[Value]:
        return [self.op(ir.Add(), *self.draw(st.permutations([x, self.alike(x)])))]

    def make_mul(self, x: Value) -> list[Value]:
        shape = self.shape(x)
        cut = self.draw(st.integers(0, len(shape)))
        kept = [n if self.draw(st.booleans()) else 1 for n in shape[cut:]]
        return [self.op(ir.Mul(), x, self.constant(*kept))]

    def make_scale(self, x: Value) -> list[Value]:
        if not self.shape(x):
            return []
        axis = self.axis(x)
        n = self.shape(x)[axis]
        return [self.op(ir.Scale(axis), x, self.constant(n), self.constant(n))]

    def make_linear(self, x: Value) -> list[Value]:
        if not self.shape(x):
            return []
        out = self.pick([1, 4, 6])
        return [self.op(ir.Linear(), x, self.constant(out, self.shape(x)[-1]), self.constant(out))]

    def make_matmul(self, x: Value) -> list[Value]:
        shape = self.shape(x)
        if len(shape) < 2:
            return []
        fitting = [
            v
            for v in self.pool
            if self.shape(v)[:-2] == shape[:-2] and self.shape(v)[-2:-1] == shape[-1:]
        ]
        turned = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        return [self.op(ir.MatMul(), x, self.pick([*fitting, self.op(ir.Transpose(turned), x)]))]

    def make_transpose(self, x: Value) -> list[Value]:
        return [
            self.op(ir.Transpose(tuple(self.draw(st.permutations(range(len(self.shape(x))))))), x)
        ]

    def make_reshape(self, x: Value) -> list[Value]:
        shape = list(self.shape(x))
        for _ in range(self.draw(st.integers(1, 2))):
            if shape and self.draw(st.booleans()):
                at = self.draw(st.integers(0, len(shape) - 1))
                n = self.pick(d for d in range(1, shape[at] + 1) if shape[at] % d == 0)
                shape[at : at + 1] = [n, shape[at] // n]
            elif len(shape) > 1:
                at = self.draw(st.integers(0, len(shape) - 2))
                shape[at : at + 2] = [shape[at] * shape[at + 1]]
        return [self.op(ir.Reshape(tuple(shape)), x)]

    def make_split(self, x: Value) -> list[Value]:
        if not self.shape(x):
            return []
        axis = self.axis(x)
        n = self.shape(x)[axis]
        first = self.draw(st.integers(0, n))
        first = n // 2 if self.draw(st.booleans()) else first
        return list(self.graph.append(ir.Split((first, n - first), axis), [x]).outputs)

    def make_slice(self, x: Value) -> list[Value]:
        if not self.shape(x):
            return []
        axis = self.axis(x)
        start, step = self.draw(st.integers(0, self.shape(x)[axis] - 1)), self.pick([1, 1, 2])
        return [self.op(ir.Slice((start,), (self.pick([-1, 99, 3]),), (axis,), (step,)), x)]

    def make_select(self, x: Value) -> list[Value]:
        if not self.shape(x):
            return []
        axis = self.axis(x)
        return [self.op(ir.Select(axis, self.draw(st.integers(0, self.shape(x)[axis] - 1))), x)]

    def make_concat(self, x: Value) -> list[Value]:
        if not self.shape(x):
            return []
        axis = self.axis(x)
        others = [
            v for v in self.pool
            if len(self.shape(v)) == len(self.shape(x))
            and all(a == b for i, (a, b) in enumerate(zip(self.shape(v), self.shape(x), strict=True)) if i != axis)
        ]  # fmt: skip
        pieces = [x, *(self.pick(others) for _ in range(self.draw(st.integers(1, 2))))]
        return [self.op(ir.Concat(axis), *self.draw(st.permutations(pieces)))]

    def make_reduce(self, x: Value) -> list[Value]:
        if not self.shape(x):
            return []
        return [
            self.op(
                ir.Reduce(self.pick(["mean", "max"]), (self.axis(x),), self.draw(st.booleans())), x
            )
        ]

    def make_softmax(self, x: Value) -> list[Value]:
        return [self.op(ir.Softmax(self.axis(x)), x)] if self.shape(x) else []

    def make_norm(self, x: Value) -> list[Value]:
        if not self.shape(x) or self.shape(x)[-1] == 1:
            return []
        n = self.shape(x)[-1]
        return [self.op(ir.LayerNorm(-1), x, self.constant(n), self.constant(n))]

    def make_gnorm(self, x: Value) -> list[Value]:
        shape = self.shape(x)
        if len(shape) < 3 or math.prod(shape[2:]) == 1:
            return []
        groups = self.pick([0, *(g for g in range(1, shape[1] + 1) if shape[1] % g == 0)])
        vectors = [self.constant(shape[1]) for _ in range(self.draw(st.integers(0, 2)))]
        return [self.op(ir.GroupNorm(groups, 0.1), x, *vectors)]

    def make_conv(self, x: Value) -> list[Value]:
        return self._conv(x, 1)

    def make_group(self, x: Value) -> list[Value]:
        shape = self.shape(x)
        return self._conv(x, self.pick(g for g in range(1, shape[1] + 1) if shape[1] % g == 0)) if len(shape) == 3 else []  # fmt: skip

    def _conv(self, x: Value, groups: int) -> list[Value]:
        shape = self.shape(x)
        if len(shape) != 3:
            return []
        each, kernel = self.pick([1, 2, 3]), self.pick([1, 3])
        window = ((1,), (kernel // 2,) * 2, (1,))
        if self.draw(st.booleans()):
            weight = self.constant(shape[1], each, kernel)
            return [
                self.op(ir.ConvTranspose(*window, groups), x, weight, self.constant(each * groups))
            ]
        weight = self.constant(each * groups, shape[1] // groups, kernel)
        return [self.op(ir.Conv(*window, groups), x, weight, self.constant(each * groups))]

    def make_unsqueeze(self, x: Value) -> list[Value]:
        return [self.op(ir.Unsqueeze((self.draw(st.integers(0, len(self.shape(x)))),)), x)]

    def make_pad(self, x: Value) -> list[Value]:
        rank = len(self.shape(x))
        pads = [int(self.draw(st.integers(0, 4)) == 0) for _ in range(2 * rank)]
        return [self.op(ir.Pad(tuple(pads)), x)]


@st.composite
def graphs(draw: Any) -> Graph:
    return Maker(draw).graph


@settings(max_examples=85)
@given(graphs(), st.integers(0, 100))
def test_random_graphs(graph: Graph, seed: int) -> None:
    want = evaluate(graph)
    permute_all(graph, seed)
    for a, b in zip(want, evaluate(graph), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9 * max(1.0, float(np.abs(a).max())))

"""merge-linear on random graphs: the same function, whatever the structure."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphshrink import ir
from graphshrink.ir import ArrayTensor, DType, Exactness, Graph, Rewriter, TensorType, Value
from graphshrink.passes import Context
from graphshrink.passes.merge.merge_linear import MergeLinear
from support.evaluate import evaluate, random_inputs

KINDS = [
    "conv", "conv", "conv", "pointwise", "pointwise", "depthwise", "scale", "scale", "number", "pad",
    "pool", "transposed", "identity", "relu", "add", "add", "sub", "map",
]  # fmt: skip


class Builder:
    """Grows a graph of convolution-shaped values by random ops."""

    def __init__(self, draw: Any, rank: int, static: bool) -> None:
        self.draw, self.rank, self.static = draw, rank, static
        self.graph = Graph()
        self.rng = np.random.default_rng(draw(st.integers(0, 2**20)))
        self.channels = draw(st.sampled_from([1, 2, 4]))
        self.size = [draw(st.integers(4, 8)) for _ in range(rank)]
        shape = [*self.size] if static else [f"s{a}" for a in range(rank)]
        start = self.graph.add_input("x", TensorType(DType.F64, ("n", self.channels, *shape)))
        # The true sizes, which the graph may not know.
        self.values: list[tuple[Value, tuple[int, ...]]] = [(start, (self.channels, *self.size))]

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def constant(self, *shape: int) -> Value:
        return self.graph.add_constant(ArrayTensor(self.rng.standard_normal(shape)))

    def apply(
        self, op: ir.Op, inputs: list[Value | None], shape: tuple[int, ...] | None = None
    ) -> None:
        node = self.graph.append(op, inputs)
        sizes = [
            None
            if v is None
            else TensorType(DType.F64, (2, *dict(self.values)[v]))
            if v in dict(self.values)
            else v.type
            for v in inputs
        ]
        true = op.infer(sizes)
        assert true is not None
        full = true[0].static_shape
        assert full is not None
        self.values.append((node.output, full[1:]))

    def step(self) -> None:
        kind = self.draw(st.sampled_from(KINDS))
        # Mostly go on from the newest value, so that chains appear.
        back = self.draw(st.sampled_from([1, 1, 1, 1, 2, 3]))
        value, (channels, *size) = self.values[-min(back, len(self.values))]
        n = self.rank
        ones, zeros = (1,) * n, (0,) * (2 * n)
        match kind:
            case "conv" | "pointwise" | "depthwise":
                groups = channels if kind == "depthwise" else self.number(1, 2)
                if channels % groups:
                    groups = 1
                out = groups * self.number(1, 3)
                if kind == "depthwise" or self.number(0, 2):
                    out = channels
                taps = ones if kind == "pointwise" else tuple(self.number(1, 3) for _ in ones)
                pads = zeros if kind == "pointwise" else tuple(self.number(0, 2) for _ in zeros)
                if kind == "conv" and self.number(0, 1):
                    taps, pads = (3,) * n, (1,) * (2 * n)
                strides = tuple(self.draw(st.sampled_from([1, 1, 1, 2])) for _ in ones)
                dilations = tuple(self.draw(st.sampled_from([1, 1, 2])) for _ in ones)
                for a in range(n):
                    if size[a] + pads[a] + pads[n + a] <= dilations[a] * (taps[a] - 1):
                        return
                weight = self.constant(out, channels // groups, *taps)
                bias = self.constant(out) if self.number(0, 1) else None
                inputs = [value, weight] if bias is None else [value, weight, bias]
                self.apply(ir.Conv(strides, pads, dilations, groups), inputs)
            case "transposed":
                taps = tuple(self.number(1, 3) for _ in ones)
                weight = self.constant(channels, channels, *taps)
                strides = tuple(self.number(1, 2) for _ in ones)
                if max(size) < 10:
                    op = ir.ConvTranspose(strides, zeros, ones, 1)
                    self.apply(op, [value, weight, self.constant(channels)])
            case "scale":
                factor = self.constant(channels) if self.number(0, 2) else None
                shift = self.constant(channels) if self.number(0, 2) else None
                self.apply(ir.Scale(1), [value, factor, shift])
            case "number":
                self.apply(ir.Scale(1), [value, self.constant(1), self.constant(1)])
            case "pad":
                if max(size) < 10:
                    pads = [self.number(0, 1) for _ in zeros]
                    self.apply(ir.Pad((0, 0, *pads[:n], 0, 0, *pads[n:])), [value])
            case "pool":
                taps = tuple(self.number(1, 2) for _ in ones)
                pads = tuple(self.number(0, k - 1) for k in (*taps, *taps))
                if all(s >= k for s, k in zip(size, taps, strict=True)):
                    strides = tuple(self.number(1, 2) for _ in ones)
                    include, ceil = bool(self.number(0, 1)), bool(self.number(0, 1))
                    self.apply(ir.AveragePool(strides, pads, ones, taps, ceil, include), [value])
            case "identity":
                self.apply(ir.Identity(), [value])
            case "relu":
                self.apply(ir.Activation("relu"), [value])
            case "add" | "sub":
                peers = [v for v, shape in self.values if shape == (channels, *size)]
                other = self.draw(st.sampled_from(peers))
                self.apply(ir.Add() if kind == "add" else ir.Sub(), [value, other])
            case "map":
                if self.static:
                    self.apply(ir.Add(), [value, self.constant(1, channels, *size)])


@st.composite
def graphs(draw: Any) -> tuple[Graph, dict[str, int]]:
    rank = draw(st.sampled_from([1, 1, 2, 2, 3]))
    builder = Builder(draw, rank, draw(st.booleans()))
    for _ in range(draw(st.integers(2, 12))):
        builder.step()
    graph = builder.graph
    graph.add_output(builder.values[-1][0], "y")
    if draw(st.integers(0, 4)) == 0:
        graph.add_output(draw(st.sampled_from(builder.values))[0], "z")
    # Without its own name for every axis, the oracle could not tell the sizes.
    return graph, {f"s{a}": s for a, s in enumerate(builder.size)}


def check(graph: Graph, sizes: dict[str, int], options: MergeLinear) -> None:
    inputs = random_inputs(graph, 1, sizes)
    before = evaluate(graph, inputs)
    nodes = len(graph)
    rw = Rewriter(graph)
    options.run(graph, rw, Context())
    graph.verify()
    assert rw.worst is Exactness.EXACT
    assert len(graph) <= nodes
    after = evaluate(graph, inputs)
    for want, got in zip(before, after, strict=True):
        assert want.shape == got.shape
        # Values in between may be larger than what is left of them at the end.
        scale = max(1.0, float(np.abs(want).max(initial=0.0)))
        assert float(np.abs(want - got).max(initial=0.0)) < 1e-10 * scale
    second = Rewriter(graph)
    options.run(graph, second, Context())
    graph.verify()
    for want, got in zip(before, evaluate(graph, inputs), strict=True):
        scale = max(1.0, float(np.abs(want).max(initial=0.0)))
        assert float(np.abs(want - got).max(initial=0.0)) < 1e-10 * scale


@given(graphs())
@settings(max_examples=50, deadline=None)
def test_the_default_options_keep_the_function(case: tuple[Graph, dict[str, int]]) -> None:
    check(*case, MergeLinear())


@given(graphs())
@settings(max_examples=50, deadline=None)
def test_merging_whatever_the_cost_keeps_the_function(case: tuple[Graph, dict[str, int]]) -> None:
    check(*case, MergeLinear(force=True, max_kernel=99))

"""Random graphs of ops that move, join and mix axes: whatever order is chosen, the numbers are right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper

from graphshrink.targets.tflite.layout import (
    InnerOrder,
    Layout,
    channels_last,
    model_order,
    reshape_parts,
)
from support.litert import codes, compared, model_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')


def factored(draw: Any, size: int, rank: int) -> list[int]:
    """A random shape of this many elements."""
    shape = []
    for _ in range(rank - 1):
        options = [d for d in range(1, size + 1) if size % d == 0]
        shape.append(draw(st.sampled_from(options)))
        size //= shape[-1]
    return [*shape, size]


class Chain:
    """A graph that grows at its end."""

    def __init__(self, draw: Any, seed: int) -> None:
        self.draw, self.rng = draw, np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, Any] = {}
        self.seen: list[tuple[str, list[int]]] = []

    def constant(self, array: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = array
        return name

    def numbers(self, *shape: int) -> str:
        return self.constant((self.rng.standard_normal(shape) * 0.5).astype(np.float32))

    def add(self, kind: str, inputs: list[str], shape: list[int], **attributes: Any) -> None:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        self.seen.append((name, shape))

    def grow(self) -> None:
        x, shape = self.seen[-1]
        rank, axis = len(shape), self.draw(st.integers(0, len(shape) - 1))
        kind = self.draw(st.sampled_from(
            ["transpose", "reshape", "relu", "bias", "softmax", "mean", "concat", "slice", "add", "dense",
             "pool", "conv", "conv", "split"]
        ))  # fmt: skip
        match kind:
            case "transpose":
                perm = self.draw(st.permutations(range(rank)))
                self.add("Transpose", [x], [shape[p] for p in perm], perm=perm)
            case "reshape":
                new = factored(self.draw, math.prod(shape), self.draw(st.integers(1, 5)))
                self.add("Reshape", [x, self.constant(np.array(new))], new)
            case "relu":
                self.add("LeakyRelu", [x], shape, alpha=0.3)
            case "bias":
                sizes = [d if self.draw(st.booleans()) else 1 for d in shape[axis:]]
                self.add("Add", [x, self.numbers(*sizes)], shape)
            case "softmax":
                self.add("Softmax", [x], shape, axis=axis)
            case "mean" if rank > 1:
                keep = self.draw(st.booleans())
                new = [1 if i == axis else d for i, d in enumerate(shape) if keep or i != axis]
                self.add(
                    "ReduceMean", [x, self.constant(np.array([axis]))], new, keepdims=int(keep)
                )
            case "concat" if math.prod(shape) < 300:
                new = [2 * d if i == axis else d for i, d in enumerate(shape)]
                self.add("Concat", [x, x], new, axis=axis)
            case "slice" if shape[axis] > 1:
                tables = [self.constant(np.array([n])) for n in (1, shape[axis], axis)]
                self.add(
                    "Slice", [x, *tables], [d - 1 if i == axis else d for i, d in enumerate(shape)]
                )
            case "add":
                others = [n for n, s in self.seen[:-1] if s == shape]
                if others:
                    self.add("Add", [x, self.draw(st.sampled_from(others))], shape)
            case "dense":
                self.add("MatMul", [x, self.numbers(shape[-1], 4)], [*shape[:-1], 4])
            case "pool" if rank == 4:
                self.add("GlobalAveragePool", [x], [*shape[:2], 1, 1])
            case "conv" if rank in (3, 4):
                out = self.draw(st.integers(1, 5))
                weight = self.numbers(out, shape[1], *[1] * (rank - 2))
                self.add("Conv", [x, weight], [shape[0], out, *shape[2:]])
            case "split" if shape[axis] > 1:
                sizes = self.constant(np.array([1, shape[axis] - 1]))
                name = f"s{len(self.nodes)}"
                self.nodes.append(
                    helper.make_node("Split", [x, sizes], [name, f"{name}b"], axis=axis)
                )
                self.seen.append(
                    (f"{name}b", [d - 1 if i == axis else d for i, d in enumerate(shape)])
                )
                self.seen.append((name, [1 if i == axis else d for i, d in enumerate(shape)]))


@settings(max_examples=30)
@given(
    st.data(),
    st.integers(0, 2**16),
    st.sampled_from([(1, 3, 4, 5), (2, 4, 3, 2), (2, 3, 6), (3, 8)]),
)
def test_any_order_gives_the_same_numbers(
    data: st.DataObject, seed: int, shape: tuple[int, ...]
) -> None:
    chain = Chain(data.draw, seed)
    chain.seen.append(("x", list(shape)))
    for _ in range(data.draw(st.integers(2, 9))):
        chain.grow()
    if not chain.nodes:
        return
    outputs = {chain.seen[-1][0], data.draw(st.sampled_from(chain.seen[1:]))[0]} - {"x"}
    feeds = {"x": chain.rng.standard_normal(shape).astype(np.float32) + 0.1}
    model = model_of(chain.nodes, feeds, sorted(outputs), chain.weights)
    keep = data.draw(st.booleans())
    compared(model, feeds, keep_nchw_io=keep)


def test_groups_of_a_reshape() -> None:
    assert reshape_parts((2, 3, 4), (6, 4)) == [((0, 1), (0,)), ((2,), (1,))]
    assert reshape_parts((2, 1, 12), (2, 3, 4)) == [((0,), (0,)), ((2,), (1, 2))]
    assert reshape_parts(("n", 6, 2), ("n", 3, 4)) == [((0,), (0,)), ((1, 2), (1, 2))]
    assert reshape_parts(("n", 4), ("m", 4)) == [((0, 1), (0, 1))]
    assert reshape_parts((None, 4), (2, 2, 4)) == [((0, 1), (0, 1, 2))]
    assert reshape_parts((1, 1), (1,)) == []


def test_layouts() -> None:
    last = channels_last(4)
    assert last.stored_shape((1, 2, 3, 4)) == (1, 3, 4, 2)
    assert last.transposed((0, 2, 3, 1)).is_model_order
    assert model_order(4).transposed((0, 3, 1, 2)) == last
    assert last.without([2, 3]) == model_order(2)
    inner = Layout((0, 1), InnerOrder(1, (2, 3), (1, 0)))
    assert not inner.is_model_order
    assert inner.transposed((1, 0)) == Layout((1, 0), InnerOrder(0, (2, 3), (1, 0)))
    assert inner.without([1]) == model_order(1)


def test_attention_transposes_only_what_it_must() -> None:
    """Queries, keys, values and the result; the transposed keys are read as they lie."""
    weights: dict[str, Any] = {"split": np.array([2, 5, 2, 4]), "join": np.array([2, 5, 8])}
    nodes = []
    for name in "qkv":
        weights[f"w{name}"] = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"{name}1"]),
            helper.make_node("Reshape", [f"{name}1", "split"], [f"{name}2"]),
            helper.make_node("Transpose", [f"{name}2"], [name], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "join"], ["y"]),
    ]
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 5, 8)).astype(np.float32)}
    assert codes(compared(model_of(nodes, feeds, ["y"], weights), feeds)).count("TRANSPOSE") == 4

"""``fuse-patterns``: functions that a model computes by several nodes become one operator, by onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from graphshrink import shrink
from support.onnx_run import agree

NUMBERS = {
    "two": 2, "three": 3, "six": 6, "one": 1, "half": 0.5, "root": 2**0.5, "eps": 1e-5, "cubic": 0.044715, "k": (2 / np.pi) ** 0.5,
    "g": np.linspace(0.5, 2, 8), "b": np.linspace(-1, 1, 8),
}  # fmt: skip

GELU = "Div x root d, Erf d e, Add e one a, Mul x a m, Mul m half y"
TANH = "Pow x three p, Mul p cubic q, Add x q r, Mul r k s, Tanh s t, Add t one u, Mul x half w, Mul w u y"
NORM = "ReduceMean x m, Sub x m d, Pow d two p, ReduceMean p v, Add v eps ve, Sqrt ve s, Div d s n, Mul n g ng, Add ng b y"
GATE = "Add x three a, Clip a low high c, Div c six y"
SWISH = "Add x three a, Clip a low high c, Div c six s, Mul x s y"
LATE = "Add x three a, Clip a low high c, Mul c x s, Div s six y"
MISH = "Softplus x s, Tanh s t, Mul x t y"


def model(
    text: str, opset: int, dtype: Any = np.float32, extra: tuple[str, ...] = ()
) -> ModelProto:
    nodes = []
    for item in text.split(", "):
        op, *names = item.split()
        attributes = {"axes": [-1]} if op == "ReduceMean" and opset < 18 else {}
        axes = ["ax"] if op == "ReduceMean" and opset >= 18 else []
        nodes.append(helper.make_node(op, [*names[:-1], *axes], names[-1:], **attributes))
    read = {n for node in nodes for n in node.input}
    numbers = {**NUMBERS, "low": 0, "high": 6}
    stored = [
        numpy_helper.from_array(np.asarray(v, dtype), n) for n, v in numbers.items() if n in read
    ]
    if "ax" in read:
        stored.append(numpy_helper.from_array(np.array([-1]), "ax"))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info("x", kind, ["n", 8])]
    outputs = [helper.make_tensor_value_info(n, kind, None) for n in ("y", *extra)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def written(before: ModelProto) -> list[str]:
    """The operators after the default pipeline, which is checked."""
    after = shrink(before).model
    kind = before.graph.input[0].type.tensor_type.elem_type
    x = np.random.default_rng(1).normal(0, 3, (5, 8)).astype(helper.tensor_dtype_to_np_dtype(kind))
    agree(before, after, {"x": x})
    return [n.op_type for n in after.graph.node]


@pytest.mark.parametrize(
    ("text", "opset", "operator"),
    [
        (GELU, 20, "Gelu"),
        (TANH, 22, "Gelu"),
        (NORM, 17, "LayerNormalization"),
        (NORM, 18, "LayerNormalization"),
        (GATE, 13, "HardSigmoid"),
        (SWISH, 14, "HardSwish"),
        (LATE, 14, "HardSwish"),
        (MISH, 18, "Mish"),
    ],
)
def test_a_pattern_becomes_the_operator(text: str, opset: int, operator: str) -> None:
    assert written(model(text, opset)) == [operator]


@pytest.mark.parametrize(("text", "opset"), [(GELU, 19), (TANH, 17), (NORM, 16), (MISH, 17)])
def test_a_pattern_stays_where_the_opset_has_no_operator(text: str, opset: int) -> None:
    before = model(text, opset)
    assert sorted(written(before)) == sorted(n.op_type for n in before.graph.node)


def test_an_older_hard_swish_is_shorter_by_two_nodes() -> None:
    assert written(model(SWISH, 13)) == ["HardSigmoid", "Mul"]


def test_other_types_and_values_that_are_read_elsewhere_stay() -> None:
    assert len(written(model(NORM, 17, np.float64))) == 9
    assert len(written(model(NORM, 17, extra=("v",)))) == 9
    assert len(written(model(GELU, 20, extra=("e",)))) == 5

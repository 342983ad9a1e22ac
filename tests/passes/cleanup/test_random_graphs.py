"""Random small graphs in float64: tidying changes no bit of what onnx's reference implementation computes."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphshrink import shrink

TIDYING = "fold-constants,prune-dead,repeat{deduplicate,remove-noops,fuse-moves},push-pads,prune-dead"  # fmt: skip
KINDS = (
    "transpose", "reshape", "unsqueeze", "squeeze", "slice", "concat", "unary", "identity", "neutral", "again",
    "pad", "flatten", "cast", "expand", "neutral",
)  # fmt: skip


class Builder:
    """Adds nodes to a model of one input, and remembers the shape of each value for a first axis of two."""

    def __init__(self, draw: st.DataObject) -> None:
        self.draw = draw
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": (2, 3, 4)}

    def pick(self, *choices: Any) -> Any:
        return self.draw.draw(st.sampled_from(choices))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> None:
        """Add a node; its shape is that which the reference implementation computes."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        feed = {"x": np.zeros(self.shapes["x"])}
        (result,) = ReferenceEvaluator(self.model([name])).run(None, feed)
        self.shapes[name] = result.shape

    def step(self, kind: str) -> None:
        v = self.pick(*list(self.shapes)[-3:])
        shape = self.shapes[v]
        rank = len(shape)
        axis = self.draw.draw(st.integers(0, rank - 1))
        if kind == "transpose":
            self.add("Transpose", [v], perm=self.draw.draw(st.permutations(range(rank))))
        elif kind == "reshape":
            size = int(np.prod(shape[1:]))
            targets = [(0, -1), (-1, size), (*shape[:1], -1), (0, *shape[1:]), (-1,), shape]
            self.add("Reshape", [v, self.ints(*self.pick(*targets))])
        elif kind == "unsqueeze" and rank < 5:
            self.add("Unsqueeze", [v, self.ints(axis)])
        elif kind == "squeeze" and rank > 1 and shape[axis] == 1:
            self.add("Squeeze", [v, self.ints(axis)])
        elif kind == "slice":
            start, end = self.pick((0, 2**31), (1, 2**31), (0, 2), (-2, 9), (0, 1))
            if len(range(shape[axis])[start:end]):
                self.add("Slice", [v, self.ints(start), self.ints(end), self.ints(axis)])
        elif kind == "concat" and np.prod(shape) < 500:
            self.add("Concat", [v] * self.pick(1, 2), axis=axis)
        elif kind == "unary":
            self.add(self.pick("Neg", "Abs", "Floor", "Sign", "Ceil", "Sin"), [v])
        elif kind == "identity":
            self.add("Identity", [v])
        elif kind == "neutral":
            operator, number = self.pick(
                ("Mul", 1.0), ("Div", 1.0), ("Sub", 0.0), ("Add", 0.0), ("Add", -0.0)
            )
            self.add(operator, [v, self.constant(np.full(self.pick((), (1,)), number))])
        elif kind == "again" and self.nodes:
            last = self.nodes[-1]
            self.nodes.append(
                helper.make_node(last.op_type, list(last.input), [f"v{len(self.nodes)}"])
            )
            self.nodes[-1].attribute.extend(last.attribute)
            self.shapes[f"v{len(self.nodes) - 1}"] = self.shapes[last.output[0]]
        elif kind == "pad":
            amounts = [0] * (2 * rank)
            amounts[axis] = self.pick(0, 0, 1)
            self.add("Pad", [v, self.ints(*amounts)])
        elif kind == "flatten":
            self.add("Flatten", [v], axis=axis)
        elif kind == "cast":
            self.add("Cast", [v], to=TensorProto.DOUBLE)
        elif kind == "expand":
            self.add("Expand", [v, self.ints(*([1] * rank))])

    def model(self, outputs: list[str], first: int | str = 2) -> ModelProto:
        shape = [first, *self.shapes["x"][1:]]
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.DOUBLE, shape)],
            [helper.make_tensor_value_info(n, TensorProto.DOUBLE, None) for n in outputs],
            [numpy_helper.from_array(np.asarray(a), n) for n, a in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tidying_changes_no_bit(draw: st.DataObject) -> None:
    made = Builder(draw)
    # Nodes whose result is the input of the graph have to stay.
    made.add("Neg", ["x"])
    for kind in draw.draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=9)):
        made.step(kind)
    values = [name for name in made.shapes if name != "x"]
    outputs = list(dict.fromkeys([values[-1], draw.draw(st.sampled_from(values))]))
    before = made.model(outputs, draw.draw(st.sampled_from((2, "n"))))
    after = shrink(before, TIDYING).model
    assert len(after.graph.node) <= len(before.graph.node)
    x = np.random.default_rng(0).choice([0.0, -0.0, -0.3, 1.5, -2.5], size=(2, 3, 4))
    pairs = (ReferenceEvaluator(m).run(None, {"x": x}) for m in (before, after))
    for want, got in zip(*pairs, strict=True):
        assert want.shape == got.shape
        np.testing.assert_array_equal(np.signbit(got), np.signbit(want))
        np.testing.assert_array_equal(got, want)

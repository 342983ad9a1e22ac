"""Operators in every version that changed them: every target computes the same as onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphshrink import GraphshrinkError, shrink, shrink_graph
from graphshrink.api import load
from graphshrink.ir import Graph, Opaque, Rewriter
from graphshrink.targets.tflite import Options
from graphshrink.targets.tflite.convert import flat_model
from graphshrink.targets.tflite.write import to_bytes
from support.litert import run as run_litert
from support.onnx_run import outputs_of

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 6, 6)).astype(np.float32)
NEWEST = 20


def w(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def scalar(value: float) -> Any:
    return np.array(value, np.float32)


@dataclass
class Case:
    """A node, and its form in each version.

    Attributes:
        op: The operator.
        attributes: The attributes in every version.
        constants: Constant operands in every version.
        moved: Attributes that became inputs in a version: names in the order of inputs, with arrays.
        since: That version.
        low: The first opset that has this form.
        high: The last one.
    """

    op: str
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: tuple[Any, ...] = ()
    moved: dict[str, Any] = field(default_factory=dict)
    since: int = 99
    low: int = 7
    high: int = NEWEST
    x: Any = field(default_factory=lambda: X)
    outputs: int = 1

    def model(self, opset: int) -> onnx.ModelProto:
        attributes, arrays = dict(self.attributes), list(self.constants)
        if opset >= self.since:
            arrays += list(self.moved.values())
        else:
            attributes |= {n: a.tolist() for n, a in self.moved.items() if a is not None}
        names = ["" if a is None else f"c{i}" for i, a in enumerate(arrays)]
        outputs = [f"y{i}" for i in range(self.outputs)]
        # Behind another node, so that this one has no input of the model's to keep its name.
        nodes = [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node(self.op, ["r", *names], outputs, **attributes),
        ]
        graph = helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x.shape)],
            [helper.make_empty_tensor_value_info(n) for n in outputs],
            [numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True) if n],
        )  # fmt: skip
        version = 3 if opset < 9 else 7 if opset < 15 else 8
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version
        )


NORM = (w(4), w(4), w(4), np.abs(w(4)) + 0.1)
DOUBLE = np.array([1, 1, 2, 2], np.float32)
CASES = [
    *(Case(op, {"axis": a}) for op in ("Softmax", "LogSoftmax") for a in (0, 1, 2, 3, -1)),
    Case("Softmax"), Case("LogSoftmax"), Case("Softmax", {"axis": 1}, x=w(3, 5)),
    Case("Softmax", x=w(2, 3, 4)), Case("Hardmax", {"axis": 1}),
    Case("Gemm", {"transB": 1}, (w(5, 6), w(5)), x=w(3, 6)),
    Case("Gemm", {"transB": 1, "alpha": 0.5, "beta": 2.0}, (w(5, 6), w(5)), x=w(3, 6)),
    Case("Gemm", {"transB": 1}, (w(5, 6),), x=w(3, 6), low=11),
    Case("MatMul", {}, (w(6, 5),), x=w(3, 6)),
    Case("Clip", moved={"min": scalar(0.2), "max": scalar(0.8)}, since=11),
    Case("Clip", moved={"min": None, "max": scalar(0.5)}, since=11), Case("Clip"),
    *(Case("Pad", {"mode": m}, moved={"pads": ints(0, 0, 1, 2, 0, 0, 2, 1)}, since=11)
      for m in ("constant", "reflect", "edge")),
    Case("Pad", moved={"pads": ints(0, 0, 1, 2, 0, 0, 2, 1), "value": scalar(0.5)}, since=11),
    Case("BatchNormalization", {"epsilon": 1e-2}, NORM),
    Case("BatchNormalization", {"epsilon": 1e-2, "spatial": 1}, NORM, high=8),
    Case("BatchNormalization", {"epsilon": 1e-2, "spatial": 0},
         (w(4, 6, 6), w(4, 6, 6), w(4, 6, 6), np.abs(w(4, 6, 6)) + 0.1), high=8),
    Case("Dropout", {"ratio": 0.3}, high=11), Case("Dropout", low=12), Case("Dropout", {}, (scalar(0.3),), low=12),
    Case("Upsample", {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 3.0]}, high=8),
    Case("Upsample", {"mode": "linear", "scales": [1.0, 1.0, 2.0, 2.0]}, high=8),
    Case("Upsample", {"mode": "nearest"}, (DOUBLE,), low=9, high=9),
    Case("Resize", {"mode": "nearest"}, (DOUBLE,), low=10, high=10),
    Case("Resize", {"mode": "nearest"}, (np.array([1, 1, 0.5, 0.5], np.float32),), low=10, high=10),
    Case("Resize", {"mode": "linear"}, (np.array([1, 1, 1.5, 2], np.float32),), low=10, high=10),
    *(Case("Resize", {"mode": m}, (None, DOUBLE), low=13) for m in ("nearest", "linear")),
    Case("Slice", moved={"starts": ints(1, -4), "ends": ints(9, -1), "axes": ints(2, 3)}, since=10),
    Case("Slice", {}, (ints(4), ints(-99), ints(2), ints(-1)), low=10),
    Case("Squeeze", moved={"axes": ints(0, 2)}, since=13, x=w(1, 3, 1, 5)), Case("Squeeze", x=w(1, 3, 1, 5)),
    Case("Squeeze", moved={"axes": ints(-2)}, since=13, x=w(1, 3, 1, 5), low=11),
    Case("Unsqueeze", moved={"axes": ints(0, 3)}, since=13),
    Case("Unsqueeze", moved={"axes": ints(-1)}, since=13, low=11),
    Case("Split", {"axis": 1}, moved={"split": ints(1, 3)}, since=13, outputs=2),
    Case("Split", {"axis": 1}, outputs=2, high=17), Case("Split", {"axis": 1, "num_outputs": 3}, outputs=3, low=18),
    Case("Reshape", {}, (ints(0, -1, 3),)), Case("Reshape", {}, (ints(2, 0, 36),), x=w(2, 4, 6, 6)),
    Case("Flatten", {"axis": 2}), Case("Flatten", {"axis": -1}, low=11), Case("Flatten"),
    *(Case(f"Reduce{k}", {"keepdims": d}, moved={"axes": ints(1, 3)}, since=18 - 5 * (k == "Sum"))
      for k in ("Mean", "Max", "Min", "Sum", "Prod", "L2") for d in (0, 1)),
    Case("ReduceMean"), Case("ReduceSum", {"keepdims": 0}),
    Case("ArgMax", {"axis": 1, "keepdims": 0}), Case("ArgMax", {"axis": -1}, low=11),
    Case("TopK", {"axis": 1}, moved={"k": ints(2)}, since=99, high=6, outputs=2),
    Case("TopK", {"axis": 1, "k": 2}, high=9, outputs=2), Case("TopK", {"axis": 1}, (ints(2),), low=10, outputs=2),
    Case("PRelu", {}, (w(4, 1, 1),)), Case("PRelu", {}, (w(6),)), Case("PRelu", {}, (w(1),)),
    Case("Cast", {"to": TensorProto.INT32}), Case("Cast", {"to": TensorProto.FLOAT16}),
    *(Case(op, {}, (c,)) for op in ("Add", "Sub", "Mul", "Div") for c in (w(4, 1, 1), w(6), w(2, 4, 6, 6))),
    Case("Sum", {}, (w(4, 1, 1), w(6)), low=8), Case("Sum", {}, (X, X)), Case("Max", {}, (w(4, 1, 1),), low=8),
    Case("Pow", {}, (scalar(2.0),)), Case("Selu"), Case("Elu", {"alpha": 0.7}), Case("HardSigmoid", {"alpha": 0.3}),
    Case("ThresholdedRelu", {"alpha": 0.2}, low=10), Case("Celu", {"alpha": 0.7}, low=12),
    Case("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}),
    Case("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2], "count_include_pad": 1, "ceil_mode": 1},
         low=10),
    Case("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2]}),
    Case("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2], "ceil_mode": 1}, low=10),
    Case("CumSum", {}, (np.array(1, np.int64),), low=11), Case("DepthToSpace", {"blocksize": 2}),
    Case("LRN", {"size": 3}), Case("InstanceNormalization", {}, (w(4), w(4))),
    Case("LpNormalization", {"axis": 1}), Case("Concat", {"axis": 1}, (X,)), Case("Gather", {"axis": 1}, (ints(2, 0),)),
    Case("Gather", {"axis": 1}, (ints(-1),), low=11), Case("Expand", {}, (ints(2, 1, 4, 6, 6),), low=8),
    Case("Tile", {}, (ints(1, 2, 1, 1),)), Case("Transpose", {"perm": [0, 2, 3, 1]}), Case("Erf", low=9),
    Case("Where", {}, (X, X), low=99),
]  # fmt: skip


def versions(op: str) -> Iterator[int]:
    """The last opset of each version of an operator."""
    since = sorted(
        s.since_version for s in onnx.defs.get_all_schemas_with_history() if (s.name, s.domain) == (op, "")
    )  # fmt: skip
    for this, after in zip(since, [*since[1:], NEWEST + 1], strict=True):
        if this <= NEWEST:
            yield min(after - 1, NEWEST)


def respell(graph: Graph, rw: Rewriter) -> None:
    """Spell every node again that the IR knows."""
    for node in graph.nodes:
        if not isinstance(node.op, Opaque):
            rw.replace(node, node.op, node.inputs)


def same(want: list[Any], got: list[Any], error: float = 1e-5) -> str:
    for a, b in zip(want, got, strict=True):
        if a.shape != b.shape:
            return f"{b.shape} in place of {a.shape}"
        off = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)
        if not off <= error * max(1.0, np.abs(a.astype(np.float64)).max(initial=0)):
            return f"off by {off:.2g}"
    return ""


def tflite(model: onnx.ModelProto, x: Any) -> list[Any]:
    flat, _, orders = flat_model(load(model)[0], Options())
    return list(run_litert(to_bytes(flat), {"x": x}, "builtin", orders).values())


MODELS = [
    (case, opset)
    for case in CASES
    for opset in sorted({v for v in versions(case.op) if case.low <= v} | {case.high})
    if case.low <= opset <= case.high
]


def test_all_versions(tmp_path: Path) -> None:
    """Equal, or refused with a reason; most are not refused."""
    wrong: list[str] = []
    compared = {"onnx": 0, "tflite": 0, "tensorrt": 0}
    refused = dict.fromkeys(compared, 0)
    for case, opset in MODELS:
        model = case.model(opset)
        try:
            want = outputs_of(model, case.x, plain=True)
        except Exception:
            continue  # onnxruntime does not run it either.
        for output, array in zip(model.graph.output, want, strict=True):
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            output.CopyFrom(helper.make_tensor_value_info(output.name, kind, array.shape))
        target = tmp_path / "m.onnx"

        def tensorrt(model: onnx.ModelProto = model, target: Path = target) -> Any:
            shrink(model, "", target="tensorrt").save(target)
            return target

        routes: dict[str, Any] = {
            "onnx": lambda m=model, x=case.x: outputs_of(shrink_graph(m, [respell]), x),
            "tflite": lambda m=model, x=case.x: tflite(m, x),
            "tensorrt": lambda x=case.x, make=tensorrt: outputs_of(make(), x),
        }
        for name, route in routes.items():
            try:
                got = route()
            except GraphshrinkError:
                refused[name] += 1
                continue
            compared[name] += 1
            # In TFLite float16 is computed in float32.
            half = name == "tflite" and case.attributes.get("to") == TensorProto.FLOAT16
            problem = same(want, got, 1e-3 if half else 1e-5)
            if problem:
                wrong.append(f"{name}: {case.op} {case.attributes} of opset {opset}: {problem}")
    assert not wrong, "\n".join(wrong)
    assert refused["onnx"] <= 3, refused
    assert compared["onnx"] > 200
    for name in compared:
        assert compared[name] >= 0.6 * compared["onnx"], (compared, refused)


@pytest.mark.parametrize("op", ["BatchNormalization", "Dropout", "PRelu", "Gemm", "Selu", "Concat"])
def test_older_meanings_are_barriers(op: str) -> None:
    """Forms that onnxruntime does not run any more: training by default, channels along axis 1, other defaults."""
    case = next(c for c in CASES if c.op == op)
    old = 3 if op == "Concat" else 5 if op == "Selu" else 6
    graph = load(case.model(old))[0]
    assert [type(n.op).__name__ for n in graph.nodes] == ["Activation", "Opaque"]
    graph = load(case.model({"Concat": 4, "Selu": 6}.get(op, 7)))[0]
    assert Opaque not in {type(n.op) for n in graph.nodes}


def test_nothing_is_spelled_with_broadcasting_before_there_was_any() -> None:
    model = Case("Relu").model(6)
    model.graph.node[1].op_type = "Sigmoid"

    def scaled(graph: Graph, rw: Rewriter) -> None:
        from graphshrink.ir import ArrayTensor, Scale

        node = list(graph.nodes)[1]
        rw.replace(node, Scale(1), [node.inputs[0], rw.constant(ArrayTensor(w(4)), "s")])

    with pytest.raises(
        GraphshrinkError, match="is written with broadcasting, which does not exist in opset 6"
    ):
        shrink_graph(model, [scaled])

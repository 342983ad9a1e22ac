"""What the commands tell of nodes that stayed opaque, of data that nothing used, and of changes that nobody measured."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.cli import call, small_model, succeeds, write

node = helper.make_node


def tensor(name: str, *shape: int) -> Any:
    rng = np.random.default_rng(len(name))
    return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)


def save(
    path: Path, nodes: list[Any], shape: list[Any], tensors: list[Any], opset: int = 17
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)],
        tensors,
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("my.ops", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A barrier of two custom operators between convolutions, and a NonZero behind all layers."""
    return save(
        tmp_path / "in.onnx",
        [
            node("Conv", ["x", "w"], ["a"], name="first"),
            node("Fancy", ["a"], ["b"], name="fancy", domain="my.ops"),
            node("Fancy", ["b"], ["c"], name="fancy_too", domain="my.ops"),
            node("Conv", ["c", "v"], ["d"], name="last"),
            node("NonZero", ["d"], ["y"], name="where"),
        ],
        [1, 4, 5, 5],
        [tensor("w", 4, 4, 1, 1), tensor("v", 4, 4, 1, 1)],
    )


def test_the_summary_counts_and_verbose_lists(model: Path) -> None:
    out = model.with_name("out.onnx")
    plain = succeeds(model, out)
    line = "note: 2 kinds of operators were not understood (3 nodes): my.ops.Fancy (2), NonZero (1); -v lists them"
    assert line in plain.splitlines()
    listed = [x for x in succeeds(model, out, "-v").splitlines() if x.startswith("not understood")]
    assert [x.split(":")[2].split(" ")[0] for x in listed] == ["my.ops.Fancy", "NonZero"]
    assert (
        "(2 nodes: fancy, fancy_too): operators of the domain my.ops are not those of" in listed[0]
    )
    assert "passes change nothing across it" in listed[0]
    assert "(1 node: where): the IR has no such op; no layers are on both sides" in listed[1]


def test_json_has_the_nodes_of_the_file(model: Path) -> None:
    found = json.loads(succeeds(model, model.with_name("out.onnx"), "--json"))["not_understood"]
    written = Counter(n.op_type for n in onnx.load(model.with_name("out.onnx")).graph.node)
    assert {e["kind"]: e["count"] for e in found} == {
        "onnx:my.ops.Fancy": written["Fancy"],
        "onnx:NonZero": written["NonZero"],
    }
    assert [e["barrier"] for e in found] == [True, False]
    assert all(e["reason"] and e["remedy"] for e in found)
    assert json.loads(succeeds("inspect", model, "--json"))["not_understood"] == found
    assert "not understood: onnx:my.ops.Fancy (2 nodes" in succeeds("inspect", model)


def test_nothing_is_said_of_a_model_that_is_understood(tmp_path: Path) -> None:
    model = small_model(tmp_path / "in.onnx")
    assert "not understood" not in succeeds(model, tmp_path / "out.onnx")
    assert json.loads(succeeds(model, tmp_path / "out.onnx", "--json"))["not_understood"] == []


def test_operators_that_no_layer_lies_behind_are_counted_calmly(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("NonZero", ["a"], ["y"], name="where")]
    model = save(tmp_path / "in.onnx", nodes, [1, 4, 5, 5], [tensor("w", 4, 4, 1, 1)])
    (line,) = [
        x for x in succeeds(model, tmp_path / "o.onnx").splitlines() if "not understood" in x
    ]
    assert line.startswith("note: 1 kind of operator was not understood (1 node): NonZero (1); no ")


@pytest.mark.parametrize(
    ("name", "attributes", "shape", "opset", "reason", "remedy"),
    [
        ("Hidden", {"domain": "com.microsoft"}, [2], 17, "onnxruntime's own", "as it was exported"),
        ("Shape", {}, ["n"], 17, "sizes that are open", "--fix-shape"),
        ("Det", {}, [2, 2], 17, "the IR has no such op", "it is kept"),
    ],
)  # fmt: skip
def test_reasons_and_remedies(
    tmp_path: Path, name: str, attributes: Any, shape: Any, opset: int, reason: str, remedy: str
) -> None:
    model = save(tmp_path / "in.onnx", [node(name, ["x"], ["y"], **attributes)], shape, [], opset)
    if "domain" in attributes:
        proto = onnx.load(model)
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        model.write_bytes(proto.SerializeToString())
    (entry,) = json.loads(succeeds(model, tmp_path / "o.onnx", "--json"))["not_understood"]
    assert reason in entry["reason"]
    assert remedy in entry["remedy"]


def test_a_known_operator_in_another_form_has_the_limit_of_its_rule(tmp_path: Path) -> None:
    nodes = [node("MaxPool", ["x"], ["y", "z"], name="pool", kernel_shape=[1, 1])]
    model = save(tmp_path / "in.onnx", nodes, [1, 1, 4, 4], [])
    proto = onnx.load(model)
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.INT64, None))
    model.write_bytes(proto.SerializeToString())
    (entry,) = json.loads(succeeds(model, tmp_path / "o.onnx", "--json"))["not_understood"]
    assert entry["kind"] == "onnx:MaxPool"
    assert entry["reason"] == "the limit of its rule: without indices"
    assert "graphshrink ops" in entry["remedy"]


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), "w")
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    return write(tmp_path / "in.onnx", nodes, {"x": [2, 8]}, {"y": [2, 8]}, [weight])


def test_calibration_data_that_no_pass_used(dense: Path) -> None:
    data, out = dense.with_name("d.npz"), dense.with_name("out.onnx")
    np.savez(data, x=np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32))
    text, given = "no pass used the calibration data", ("--calibration", data)
    assert text in succeeds(dense, out, *given)
    assert json.loads(succeeds(dense, out, *given, "--json"))["calibration_used"] is False
    assert text not in succeeds(dense, out)
    assert json.loads(succeeds(dense, out, "--json"))["calibration_used"] is None
    wanda = (*given, "--passes", "sparsify{method=wanda,min-size=1}")
    assert text not in succeeds(dense, out, *wanda)
    assert json.loads(succeeds(dense, out, *wanda, "--json"))["calibration_used"] is True


def test_ranges_are_a_use_of_calibration_data(tmp_path: Path) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    model, data = small_model(tmp_path / "in.onnx"), tmp_path / "d.npz"
    np.savez(data, x=np.ones((2, 3, 16, 16), np.float32))
    done = call(
        model, tmp_path / "out.onnx", "--calibration", data, "--target", "tensorrt{fp16}",
        "--profile", "x:1x3x16x16",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "no pass used" not in done.out


def test_approximate_passes_that_nobody_checked(dense: Path) -> None:
    out, text = dense.with_name("out.onnx"), "nobody measured by how much: --check does"
    prune = ("--passes", "sparsify{min-size=1}")
    (line,) = [x for x in succeeds(dense, out, *prune).splitlines() if text in x]
    assert line.startswith("note: sparsify")
    assert len(json.loads(succeeds(dense, out, *prune, "--json"))["unchecked"]) == 1
    for checked in ((*prune, "--check"), ()):
        assert text not in succeeds(dense, out, *checked)
        assert json.loads(succeeds(dense, out, *checked, "--json"))["unchecked"] == []


def test_a_loss_that_the_pass_measured_is_known(dense: Path) -> None:
    data, out = dense.with_name("d.npz"), dense.with_name("out.onnx")
    np.savez(data, x=np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32))
    given, text = ("--calibration", data), "nobody measured by how much"
    assert text in succeeds(dense, out, *given, "--passes", "quantize")
    measured = (*given, "--passes", "quantize{max-loss=0.1}")
    assert text not in succeeds(dense, out, *measured)
    assert json.loads(succeeds(dense, out, *measured, "--json"))["unchecked"] == []
    both = (*given, "--passes", "sparsify{min-size=1},quantize{max-loss=0.9}")
    (name,) = json.loads(succeeds(dense, out, *both, "--json"))["unchecked"]
    assert name.startswith("sparsify")


def test_sizes_that_leave_no_numbers(tmp_path: Path) -> None:
    model = small_model(tmp_path / "in.onnx")
    out = tmp_path / "out.onnx"
    printed = succeeds(model, out, "--fix-shape", "x:0x3x16x16")
    assert "note: input x is f32[0, 3, 16, 16]: a size of 0 leaves no numbers in it" in printed
    assert "leaves no numbers" not in succeeds(model, out, "--fix-shape", "x:1x3x16x16")

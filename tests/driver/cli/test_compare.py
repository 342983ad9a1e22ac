"""``compare``: element types, names, what differs, and the same tolerance as ``--check``."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphshrink import shrink
from graphshrink.ir import ArrayTensor, Exactness, Graph, Rewriter
from graphshrink.passes import Context, Pass
from support.cli import call, fails, succeeds
from support.onnx_run import outputs_of

node = helper.make_node
info = helper.make_tensor_value_info


def save(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], tensors: Sequence[Any] = ()
) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(tensors))
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def compared(first: Path, second: Path, *more: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        succeeds("compare", first, second, "--runs", 1, "--json", *more)
    )
    return found


@pytest.mark.parametrize(
    "kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE]
)
def test_every_float_type_against_its_tflite_file(tmp_path: Path, kind: int) -> None:
    pytest.importorskip("ai_edge_litert")
    weight = helper.make_tensor("w", kind, [2], [1.5, -0.25])
    model = save(
        tmp_path / "m.onnx",
        [node("Mul", ["x", "w"], ["a"]), node("Add", ["a", "x"], ["y"])],
        [info("x", kind, [3, 2])],
        [info("y", kind, [3, 2])],
        [weight],
    )
    succeeds(model, tmp_path / "m.tflite")
    found = compared(model, tmp_path / "m.tflite")
    assert found["equal"]
    assert bool(found["notes"]) == (kind == TensorProto.BFLOAT16)
    succeeds(model, tmp_path / "o.onnx", "--check")
    assert compared(model, tmp_path / "o.onnx")["equal"]


def test_bfloat16_is_held_against_ml_dtypes(tmp_path: Path) -> None:
    """The same sums in NumPy, rounded to bfloat16 at the end; and a wrong model is found."""
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [2], [1.5, -0.25])
    ports = [info("x", TensorProto.BFLOAT16, [2])], [info("y", TensorProto.BFLOAT16, [2])]
    right = save(tmp_path / "a.onnx", [node("Add", ["x", "w"], ["y"])], *ports, [weight])
    wrong = save(tmp_path / "b.onnx", [node("Sub", ["x", "w"], ["y"])], *ports, [weight])
    line = fails("compare", right, wrong, "--runs", 1, "--seed", 3, code=1)
    import ml_dtypes

    x = np.random.default_rng(3).standard_normal(2).astype(ml_dtypes.bfloat16)
    w = np.array([1.5, -0.25], ml_dtypes.bfloat16)
    assert f"output y at [0] is {float((x - w)[0]):.6g} instead of {float((x + w)[0]):.6g}" in line


def test_rank_0_inputs(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    model = save(
        tmp_path / "m.onnx",
        [node("Add", ["x", "s"], ["y"])],
        [info("x", 1, [2]), info("s", 1, [])],
        [info("y", 1, [2])],
    )
    succeeds(model, tmp_path / "m.tflite")
    np.savez(tmp_path / "d.npz", x=np.array([1, 2], np.float32), s=np.float32(5))
    assert compared(model, tmp_path / "m.tflite")["equal"]
    assert compared(model, tmp_path / "m.tflite", "--data", tmp_path / "d.npz")["error"] == 0
    succeeds(model, tmp_path / "o.onnx", "--check")


def test_what_differs_is_named(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    one, other = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    other[1, 0], other[1, 2] = 0.5, 2
    files = [
        save(
            tmp_path / f"{i}.onnx",
            [node("Identity", ["x"], ["same"]), node("Add", ["x", "c"], ["sum"])],
            [info("x", 1, [2, 3])],
            [info("same", 1, [2, 3]), info("sum", 1, [2, 3])],
            [numpy_helper.from_array(c, "c")],
        )
        for i, c in enumerate((one, other))
    ]
    np.savez(tmp_path / "d.npz", x=x)
    line = fails("compare", *files, "--runs", 1, "--data", tmp_path / "d.npz", code=1)
    assert "output sum at [1, 2] is 7 instead of 5; 2 of its 6 numbers differ by more" in line
    shown = call("compare", *files, "--runs", 1, "--data", tmp_path / "d.npz").out
    assert "test the accuracy of such a model on labelled data" in shown
    assert compared(files[0], files[0])["difference"] is None


def test_shapes_that_differ_are_named(tmp_path: Path) -> None:
    files = [
        save(
            tmp_path / f"{axis}.onnx",
            [node("ReduceSum", ["x", "a"], ["y"], keepdims=0)],
            [info("x", 1, [2, 3])],
            [info("y", 1, None)],
            [numpy_helper.from_array(np.array([axis]), "a")],
        )
        for axis in (0, 1)
    ]
    assert "output y is float32[2] instead of float32[3]" in fails(
        "compare", *files, "--runs", 1, code=1
    )


def test_other_names_are_matched_in_order_and_said(tmp_path: Path) -> None:
    first = save(
        tmp_path / "a.onnx",
        [node("Sub", ["x", "s"], ["y"])],
        [info("x", 1, [2, 2]), info("s", 1, [])],
        [info("y", 1, [2, 2])],
    )
    second = save(
        tmp_path / "b.onnx",
        [node("Sub", ["input_1", "input_2"], ["out"])],
        [info("input_1", 1, [2, 2]), info("input_2", 1, [])],
        [info("out", 1, [2, 2])],
    )
    found = compared(first, second)
    assert found["error"] == 0
    assert found["notes"] == [
        "the inputs have other names and are matched in order: x = input_1, s = input_2",
        "the outputs have other names and are matched in order: y = out",
    ]
    assert f"note: {found['notes'][0]}" in succeeds("compare", first, second, "--runs", 1)


def test_the_same_names_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    inputs = [info("x", 1, [2]), info("s", 1, [2])]
    outputs = [info("y", 1, [2]), info("z", 1, [2])]
    nodes = [node("Sub", ["x", "s"], ["y"]), node("Mul", ["x", "s"], ["z"])]
    first = save(tmp_path / "a.onnx", nodes, inputs, outputs)
    second = save(tmp_path / "b.onnx", nodes, inputs[::-1], outputs[::-1])
    assert (found := compared(first, second))["error"] == 0
    assert found["notes"] == []


def test_models_that_do_not_match_list_both_sides(tmp_path: Path) -> None:
    first = save(
        tmp_path / "a.onnx", [node("Abs", ["x"], ["y"])], [info("x", 1, [2])], [info("y", 1, [2])]
    )
    second = save(
        tmp_path / "b.onnx", [node("Abs", ["u"], ["y"])], [info("u", 1, [3])], [info("y", 1, [3])]
    )
    line = fails("compare", first, second)
    assert "different inputs: " in line
    assert "a.onnx has x: f32[2]" in line
    assert "b.onnx has u: f32[3]" in line


def custom(path: Path) -> Path:
    return save(
        path,
        [node("Fancy", ["x"], ["y"], domain="my.ops")],
        [info("x", 1, [2])],
        [info("y", 1, [2])],
    )


def test_custom_operators_need_a_library(tmp_path: Path) -> None:
    model, out = custom(tmp_path / "m.onnx"), tmp_path / "o.onnx"
    succeeds(model, out)
    for words in (("compare", model, out), (model, out, "--check")):
        line = fails(*words)
        assert "kernel of Fancy of my.ops" in line
        assert "--custom-ops FILE" in line
    (tmp_path / "text.so").write_text("no library")
    assert "text.so" in fails("compare", model, out, "--custom-ops", tmp_path / "text.so")
    assert "none.so" in fails(model, out, "--check", "--custom-ops", tmp_path / "none.so")


def test_a_library_is_loaded(tmp_path: Path) -> None:
    """It leaves a file behind when onnxruntime asks it for its operators."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    source, library, trace = tmp_path / "l.c", tmp_path / "l.so", tmp_path / "asked"
    source.write_text(
        f'#include <stdio.h>\nvoid *RegisterCustomOps(void *o, const void *a) '
        f'{{ fclose(fopen("{trace}", "w")); return 0; }}\n'
    )  # fmt: skip
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    model = save(
        tmp_path / "m.onnx", [node("Abs", ["x"], ["y"])], [info("x", 1, [2])], [info("y", 1, [2])]
    )
    assert compared(model, model)["equal"]
    assert not trace.exists()
    assert compared(model, model, "--custom-ops", library)["equal"]
    assert trace.exists()


@pytest.mark.parametrize("units", [1, 4096])
def test_a_model_that_amplifies_rounding_has_one_tolerance_in_both(
    tmp_path: Path, units: int
) -> None:
    """Near 1, x * 40,000 - 39,990 moves by 4e-4 of itself if x moves by a rounding unit, so one unit passes and many do not."""
    files = [
        save(
            tmp_path / f"{i}.onnx",
            [node("Mul", ["x", "big"], ["a"], name="product"), node("Sub", ["a", "less"], ["y"])],
            [info("x", 1, [64])],
            [info("y", 1, [64])],
            [
                numpy_helper.from_array(np.float32(c), n)
                for n, c in (("big", big), ("less", 39_990))
            ],
        )
        for i, big in enumerate((40_000, 40_000 * (1 + units * 2.0**-23)))
    ]
    x = np.ones(64, np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    want, got = (outputs_of(p, {"x": x})[0] for p in files)
    error = float(np.abs(want - got).max() / np.abs(want).max())
    assert error > 1e-4

    class Off(Pass):
        name = "off"
        exactness = Exactness.EXACT

        def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
            product = next(n for n in graph.nodes if n.name == "product")
            moved = np.array([40_000 * (1 + units * 2.0**-23)], np.float32)
            constant = graph.add_constant(ArrayTensor(moved), "moved")
            with rw.rewrite("move by units", product):
                rw.replace(product, product.op, [product.inputs[0], constant])

    report = shrink(files[0], [Off()], check=True, example_inputs={"x": x}).report
    assert report.passes[0].error == pytest.approx(error)
    data = ("--runs", 1, "--data", tmp_path / "d.npz")
    done = call("compare", *files, *data)
    assert report.failed == (done.code == 1) == (units > 1)

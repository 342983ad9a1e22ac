"""Nodes out of order are sorted; names that are missing, doubled or empty are one error that names them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import ModelError, shrink, shrink_graph
from support.cli import fails, succeeds
from support.onnx_run import agree, outputs_of

RNG = np.random.default_rng(3)
X = RNG.standard_normal((1, 4, 6, 6)).astype(np.float32)


def info(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def built(
    nodes: list[Any], tensors: dict[str, Any], functions: list[Any] | None = None
) -> ModelProto:
    """A model of x (1, 4, 6, 6) and c, a bool, to y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", 1, 4, 6, 6), info("c", kind=TensorProto.BOOL)],
        [info("y", 1, 4, 6, 6)],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions or [], ir_version=8)


def node(kind: str, *names: str, **attributes: Any) -> Any:
    """A node of the names' last one as its result."""
    return helper.make_node(kind, names[:-1], names[-1:], name=f"n_{names[-1]}", **attributes)


LINE = [
    node("Conv", "x", "w", "a", pads=[1, 1, 1, 1]),
    node("Unsqueeze", "b", "axes", "u"),
    node("Add", "a", "u", "s"),
    node("Relu", "s", "y"),
]


def line(order: tuple[int, ...] = (0, 1, 2, 3)) -> ModelProto:
    made = built([LINE[i] for i in order], {"w": RNG.standard_normal((4, 4, 3, 3)), "b": range(4)})
    made.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "axes"))
    return made


def test_every_order_of_nodes_gives_the_numbers_of_onnxruntime() -> None:
    for order in itertools.permutations(range(4)):
        before = line(order)
        content = before.SerializeToString()
        after = shrink_graph(before)
        assert before.SerializeToString() == content
        assert [n.op_type for n in after.graph.node] == ["Conv", "Relu"]
        onnx.checker.check_model(after, full_check=True)
        agree(before, after, {"x": X, "c": np.array(True)})


def test_sorting_is_stable_and_said() -> None:
    # a reader first: everything else keeps its order.
    result = shrink(line((2, 0, 3, 1)), "")
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Unsqueeze", "Add", "Relu"]
    assert any("sorted" in note for note in result.report.notes)
    ordered = line()
    assert shrink(ordered, "").model.SerializeToString() == ordered.SerializeToString()
    assert not shrink(ordered, "").report.notes


def branches(*, sort: bool) -> ModelProto:
    """An ``If`` that captures h, made behind it; its bodies are out of order too."""
    then_nodes = [node("Add", "h", "i", "r"), node("Neg", "x", "i")]
    inner = helper.make_graph([node("Mul", "x", "k", "q")], "inner", [], [info("q", 1, 4, 6, 6)])
    other = [
        node("If", "c", "r2", then_branch=inner, else_branch=inner),
        node("Exp", "x", "k"),
    ]
    if sort:
        then_nodes.reverse()
        other.reverse()
    bodies = [
        helper.make_graph(nodes, name, [], [info(result, 1, 4, 6, 6)])
        for nodes, name, result in ((then_nodes, "yes", "r"), (other, "no", "r2"))
    ]
    outer = [
        node("If", "c", "t", then_branch=bodies[0], else_branch=bodies[1]),
        node("Sigmoid", "x", "h"),
        node("own_f", "t", "y", domain="own"),
    ]
    outer[2].op_type = "F"
    calls = [node("Relu", "p", "out"), node("Neg", "in", "p")]
    if sort:
        outer[0], outer[1] = outer[1], outer[0]
        calls.reverse()
    function = helper.make_function(
        "own", "F", ["in"], ["out"], calls, [helper.make_opsetid("", 17)]
    )
    return built(outer, {}, [function])


@pytest.mark.parametrize("taken", [True, False])
def test_bodies_and_functions_are_sorted(taken: bool) -> None:
    after = shrink_graph(branches(sort=False))
    onnx.checker.check_model(after, full_check=True)
    # onnxruntime itself takes no body that is out of order.
    agree(branches(sort=True), after, {"x": X, "c": np.array(taken)})
    assert shrink_graph(branches(sort=True), "") == branches(sort=True)


def test_every_command_takes_a_model_out_of_order(tmp_path: Path) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    made = line((3, 2, 1, 0))
    del made.graph.input[1:]
    onnx.save(made, source)
    assert "onnx:" not in succeeds("inspect", source)
    want = outputs_of(source, {"x": X})
    for extra in ([], ["--check"], ["--passes", ""], ["--target", "tensorrt"]):
        succeeds(source, out, *extra)
        assert np.allclose(outputs_of(out, {"x": X})[0], want[0], atol=1e-5)
        succeeds("compare", source, out, "--runs", "1")
    succeeds(source, tmp_path / "out.tflite")
    data = tmp_path / "x.npz"
    np.savez(data, x=np.repeat(X, 4, 0))
    succeeds(source, out, "--passes", "sparsify{method=wanda}", "--calibration", data)
    onnx.checker.check_model(onnx.load(out), full_check=True)


def add(made: ModelProto, *nodes: Any) -> None:
    made.graph.node.extend(nodes)


def rename_output(made: ModelProto, name: str) -> None:
    made.graph.output[0].name = name


def body_reads(made: ModelProto, name: str) -> None:
    body = helper.make_graph([node("Relu", name, "r")], "b", [], [info("r", 1)])
    add(made, node("If", "c", "q", then_branch=body, else_branch=body))


CASES: list[tuple[Callable[[ModelProto], Any], str]] = [
    (lambda m: add(m, node("Relu", "nowhere", "q")), "'nowhere', which is read by node 'n_q'"),
    (lambda m: body_reads(m, "nowhere"), "'nowhere', which is read by node 'n_r' (Relu)"),
    (lambda m: rename_output(m, "nowhere"), "makes 'nowhere', which is read as an output"),
    (lambda m: add(m, node("Relu", "x", "a")), "makes 'a' twice: node 'n_a' (Conv) and node 'n_a'"),
    (lambda m: add(m, node("Relu", "a", "w")), "'w' twice: an initializer and node 'n_w'"),
    (lambda m: add(m, node("Relu", "a", "x")), "'x' twice: an input and node 'n_x'"),
    (
        lambda m: add(m, helper.make_node("Split", ["x"], ["q", "q"], name="split")),
        "'q' twice: node 'split' (Split) and node 'split'",
    ),
    (lambda m: m.graph.input.append(m.graph.input[0]), "'x' twice: an input and an input"),
    (lambda m: m.graph.output.append(m.graph.output[0]), "two outputs 'y'"),
    (lambda m: m.graph.input.append(info("", 1)), "an input of the graph has no name"),
    (lambda m: m.graph.output.append(info("", 1)), "an output of the graph has no name"),
    (
        lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros(2))),
        "an initializer of the graph has no name",
    ),
    (
        lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros(2), "w")),
        "two different initializers 'w'",
    ),
    (
        lambda m: add(m, node("Add", "x", "q2", "q1"), node("Relu", "q1", "q2")),
        "a cycle: node 'n_q1' (Add), which reads node 'n_q2' (Relu), which reads the first",
    ),
    (lambda m: add(m, node("Add", "q", "x", "q")), "node 'n_q' (Add) reads its own result"),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(CASES)))
def test_names_that_are_wrong_are_one_error(place: int, tmp_path: Path) -> None:
    change, message = CASES[place]
    made = line()
    change(made)
    path, out = tmp_path / "bad.onnx", tmp_path / "out.onnx"
    path.write_bytes(made.SerializeToString())
    for arguments in ((path, out), ("inspect", path), ("compare", path, path)):
        said = fails(*arguments)
        assert message in said
        assert "bad.onnx is not valid ONNX" in said
    assert not out.exists()
    with pytest.raises(ModelError, match="the model is not valid ONNX"):
        shrink_graph(made)


def test_a_node_without_a_name_is_named_by_its_place(tmp_path: Path) -> None:
    made = line()
    made.graph.node.append(helper.make_node("Relu", ["nowhere"], ["q"]))
    with pytest.raises(ModelError, match=r"read by node 4 \(Relu of 'q'\)"):
        shrink_graph(made)


def test_names_in_functions_are_checked() -> None:
    for nodes, message in (
        ([node("Relu", "outside", "out")], "nothing in function 'F' makes 'outside'"),
        ([node("Relu", "in", "out"), node("Neg", "in", "out")], "function 'F' makes 'out' twice"),
        ([node("Relu", "in", "p")], "makes 'out', which is read as an output"),
    ):
        function = helper.make_function(
            "own", "F", ["in"], ["out"], nodes, [helper.make_opsetid("", 17)]
        )
        made = built([helper.make_node("F", ["x"], ["y"], domain="own")], {}, [function])
        with pytest.raises(ModelError, match=message):
            shrink_graph(made)


def test_a_second_copy_of_an_initializer_does_no_harm() -> None:
    made = line()
    made.graph.initializer.append(made.graph.initializer[0])
    assert [n.op_type for n in shrink_graph(made).graph.node] == ["Conv", "Relu"]


def test_a_result_that_is_left_out_is_no_empty_name() -> None:
    made = line()
    made.graph.node.append(helper.make_node("Dropout", ["y"], ["z", ""]))
    made.graph.node.append(helper.make_node("Clip", ["z", "", ""], ["q"]))
    assert shrink_graph(made, "") == made


def test_constants_keep_their_stated_types() -> None:
    """An input that has a default and no reader has the model put together anew."""
    constant = numpy_helper.from_array(np.ones(3, np.float32), "k")
    nodes = [
        helper.make_node("Add", ["m", "w"], ["y"]),
        helper.make_node("Mul", ["x", "k"], ["m"]),
        helper.make_node("Constant", [], ["k"], value=constant),
    ]
    graph = helper.make_graph(
        nodes, "stated", [info("x", 3), info("idle", 3)], [info("y", 3)],
        [numpy_helper.from_array(np.ones(3, np.float32), n) for n in ("w", "idle")],
        value_info=[info("k", 3), info("m", 3), info("w", 3)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    made = shrink(model, [], overridable_initializers=True).model
    assert {v.name for v in made.graph.value_info} == {"k", "m", "w"}

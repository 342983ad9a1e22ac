"""External data wherever a model may have it: checked when it is read, there when the result is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from graphshrink import ModelError, shrink
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.hosts.onnx.tensors import external_names, read_model, tensors_in
from graphshrink.targets.onnx.emitter import to_onnx
from support.onnx_run import outputs_of

SMALL, LARGE = 8, 40_000
"""Numbers in a tensor: one that is read with the model, and one that is streamed."""

FLOAT = TensorProto.FLOAT


def outside(name: str, count: int, location: str = "w.bin") -> TensorProto:
    """A tensor of ``count`` numbers in another file."""
    tensor = TensorProto(name=name, data_type=FLOAT, dims=[count])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * count))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def info(name: str, count: int, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, [count] if count else [])


def model_of(nodes: list[NodeProto], count: int, **more: Any) -> ModelProto:
    graph = helper.make_graph(
        nodes, "g", [info("x", count), info("c", 0, TensorProto.BOOL)], [info("y", count)],
        **{k: v for k, v in more.items() if k != "functions"},
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=8, functions=more.get("functions", [])
    )


def constant(tensor: TensorProto) -> NodeProto:
    return helper.make_node("Constant", [], ["w"], value=tensor)


def choice(yes: list[NodeProto], count: int, tensors: list[TensorProto]) -> NodeProto:
    branch = helper.make_graph(yes, "yes", [], [info("a", count)], tensors)
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["b"])], "no", [], [info("b", count)])
    return helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)


ADD = helper.make_node("Add", ["x", "w"], ["a"])


def in_a_branch(tensor: TensorProto, count: int) -> ModelProto:
    return model_of([choice([ADD], count, [tensor])], count)


def in_a_constant_of_a_branch(tensor: TensorProto, count: int) -> ModelProto:
    return model_of([choice([constant(tensor), ADD], count, [])], count)


def in_a_branch_of_a_branch(tensor: TensorProto, count: int) -> ModelProto:
    inner = choice([ADD], count, [tensor])
    inner.output[0] = "a"
    return model_of([choice([inner], count, [])], count)


def in_a_loop(tensor: TensorProto, count: int) -> ModelProto:
    body = helper.make_graph(
        [helper.make_node("Add", ["v", "w"], ["u"]), helper.make_node("Identity", ["k"], ["l"])],
        "body",
        [info("i", 0, TensorProto.INT64), info("k", 0, TensorProto.BOOL), info("v", count)],
        [info("l", 0, TensorProto.BOOL), info("u", count)],
        [tensor],
    )
    once = helper.make_tensor("once", TensorProto.INT64, [], [1])
    return model_of(
        [helper.make_node("Loop", ["once", "c", "x"], ["y"], body=body)], count, initializer=[once]
    )


def in_a_constant(tensor: TensorProto, count: int) -> ModelProto:
    return model_of([constant(tensor), helper.make_node("Add", ["x", "w"], ["y"])], count)


def in_a_function(tensor: TensorProto, count: int) -> ModelProto:
    function = helper.make_function(
        "own", "Shift", ["x"], ["a"], [constant(tensor), ADD], [helper.make_opsetid("", 17)]
    )
    return model_of([helper.make_node("Shift", ["x"], ["y"], domain="own")], count, functions=[function])  # fmt: skip


PLACES: list[Callable[[TensorProto, int], ModelProto]] = [
    in_a_branch, in_a_constant_of_a_branch, in_a_branch_of_a_branch, in_a_loop, in_a_constant,
    in_a_function,
]  # fmt: skip


def in_a_sparse_initializer(tensor: TensorProto, count: int) -> ModelProto:
    indices = helper.make_tensor("", TensorProto.INT64, [count], list(range(count)))
    sparse = helper.make_sparse_tensor(tensor, indices, [count])
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], count, sparse_initializer=[sparse])  # fmt: skip


def in_a_sparse_constant(tensor: TensorProto, count: int) -> ModelProto:
    indices = helper.make_tensor("", TensorProto.INT64, [count], list(range(count)))
    node = helper.make_node("Constant", [], ["w"])
    attribute = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(helper.make_sparse_tensor(tensor, indices, [count]))
    return model_of([node, helper.make_node("Add", ["x", "w"], ["y"])], count)


def in_a_list_of_tensors(tensor: TensorProto, count: int) -> ModelProto:
    node = helper.make_node("Odd", ["x"], ["y"], domain="own")
    node.attribute.add(name="many", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
    return model_of([node], count)


def in_a_default_of_a_function(tensor: TensorProto, count: int) -> ModelProto:
    model = in_a_function(TensorProto(name="w", data_type=FLOAT, dims=[0]), count)
    default = model.functions[0].attribute_proto.add(name="d", type=onnx.AttributeProto.TENSOR)
    default.t.CopyFrom(tensor)
    return model


def in_an_unread_default(tensor: TensorProto, count: int) -> ModelProto:
    """An initializer that is an input too."""
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], count, initializer=[tensor])
    model.graph.input.append(info("w", count))
    return model


ALL = [
    *PLACES, in_a_sparse_initializer, in_a_sparse_constant, in_a_list_of_tensors,
    in_a_default_of_a_function, in_an_unread_default,
]  # fmt: skip


def placed(folder: Path, model: ModelProto, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    np.arange(count, dtype=np.float32).tofile(folder / "w.bin")
    path = folder / "in.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("count", [SMALL, LARGE])
@pytest.mark.parametrize("place", PLACES)
def test_the_result_has_its_numbers_with_it(
    place: Callable[[TensorProto, int], ModelProto], count: int, tmp_path: Path
) -> None:
    source = placed(tmp_path / "in", place(outside("w", count), count), count)
    out = tmp_path / "out" / "out.onnx"
    out.parent.mkdir()
    for passes in (None, "prune-dead"):
        shrink(source, passes).save(out)
        (tmp_path / "in").rename(tmp_path / "gone")  # Nothing is read from there any more.
        feeds = {"x": np.ones(count, np.float32), "c": np.array(True)}
        kept = {v.name for v in onnx.load(out, load_external_data=False).graph.input}
        (y,) = outputs_of(out, {n: a for n, a in feeds.items() if n in kept})
        np.testing.assert_array_equal(y, np.arange(count, dtype=np.float32) + 1)
        (tmp_path / "gone").rename(tmp_path / "in")
    assert len(list(out.parent.iterdir())) == (1 if count == SMALL else 2)


@pytest.mark.parametrize("place", ALL)
def test_no_place_reads_what_it_must_not(
    place: Callable[[TensorProto, int], ModelProto], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.bin"
    np.arange(SMALL, dtype=np.float32).tofile(secret)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.bin").symlink_to(secret)
    for location in ("../secret.bin", str(secret), "link.bin", "C:\\secret.bin"):
        source = placed(folder, place(outside("w", SMALL, location), SMALL), SMALL)
        with pytest.raises(ModelError, match="outside the model's folder"):
            shrink(source)
    for location, why in (
        ("no.bin", "is missing"),
        ("a\0b", "names no file"),
        ("", "outside"),
    ):
        source = placed(folder, place(outside("w", SMALL, location), SMALL), SMALL)
        with pytest.raises(ModelError, match=why):
            shrink(source)
    wrong = outside("w", SMALL)
    wrong.dims[0] = 1 << 40
    source = placed(folder, place(wrong, SMALL), SMALL)
    with pytest.raises(ModelError, match="needs 4398046511104 bytes"):
        shrink(source)
    wrong.dims[0] = -1
    source = placed(folder, place(wrong, SMALL), SMALL)
    with pytest.raises(ModelError, match="negative dimension"):
        shrink(source)
    short = placed(folder, place(outside("w", SMALL), SMALL), SMALL)
    (folder / "w.bin").write_bytes(b"1234")
    with pytest.raises(ModelError, match="ends at byte"):
        shrink(short)


@pytest.mark.parametrize("place", ALL)
def test_every_place_is_found(place: Callable[[TensorProto, int], ModelProto], tmp_path: Path) -> None:  # fmt: skip
    model = place(outside("w", LARGE), LARGE)
    assert external_names(model) == {"w.bin"}
    read, folder = read_model(placed(tmp_path, model, LARGE))
    assert external_names(read) == {"w.bin"}
    assert folder == tmp_path


def test_many_small_ones_are_not_read_again_and_again(tmp_path: Path) -> None:
    """A small file cannot ask for much memory by naming one piece of another many times."""
    count = 16_384
    tensor = outside("w", count)
    nodes = [helper.make_node("Constant", [], [f"w{i}"], value=tensor) for i in range(1_100)]
    source = placed(tmp_path, model_of([*nodes, helper.make_node("Neg", ["x"], ["y"])], count), count)  # fmt: skip
    model, _ = read_model(source)
    assert sum(len(t.raw_data) for t in tensors_in(model)) == 1 << 26


def test_a_model_without_a_folder_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that the process runs in is no model's folder."""
    np.full(1, 7, np.float32).tofile(tmp_path / "w.bin")
    monkeypatch.chdir(tmp_path)
    shape = helper.make_node("Shape", ["x"], ["s"])
    filled = helper.make_node("ConstantOfShape", ["s"], ["f"], value=outside("w", 1))
    model = model_of([shape, filled, helper.make_node("Add", ["x", "f"], ["y"])], SMALL)
    graph = from_onnx(model)
    assert not any(v.data is not None and v.name == "f" for n in graph.nodes for v in n.outputs)
    assert external_names(to_onnx(graph)) == {"w.bin"}
    with pytest.raises(ModelError, match="give the model by its path"):
        shrink(model).save(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_tensorrt_files_have_the_numbers_of_bodies_inside(tmp_path: Path) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    source = placed(tmp_path / "in", in_a_branch(outside("w", LARGE), LARGE), LARGE)
    out = tmp_path / "out.onnx"
    shrink(source, target="tensorrt").save(out)
    (tmp_path / "in" / "w.bin").unlink()
    feeds = {"x": np.ones(LARGE, np.float32), "c": np.array(True)}
    (y,) = outputs_of(out, feeds)
    np.testing.assert_array_equal(y, np.arange(LARGE, dtype=np.float32) + 1)

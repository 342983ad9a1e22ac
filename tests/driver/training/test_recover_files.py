"""ONNX files that are trained on samples without labels: judged in onnxruntime, and compared with torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from graphshrink import UsageError, recover_file
from graphshrink.api import load
from graphshrink.readers import HostReaders
from graphshrink.targets.onnx.emitter import to_onnx
from graphshrink.targets.torch.trainable import Trainable
from graphshrink.training.recovery import file_run
from graphshrink.training.recovery.augmentation import Augmentation
from graphshrink.training.recovery.feature_pairs import feature_pairs
from support.cli import call, fails, succeeds

SIDE, CLASSES = 12, 5
Arrays = dict[str, np.ndarray[Any, Any]]


def weights(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)

    def normal(*shape: int, size: float = 1.0) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(shape) * size).astype(np.float32)

    return {
        "conv.weight": normal(8, 3, 3, 3, size=0.4), "gamma": normal(8), "beta": normal(8), "mean": normal(8),
        "var": rng.uniform(0.5, 2, 8).astype(np.float32), "deep.weight": normal(8, 8, 3, 3, size=0.2),
        "dense": normal(8, 16, size=0.5), "held": normal(16), "head.weight": normal(16, CLASSES, size=1.5),
        "head.bias": normal(CLASSES),
    }  # fmt: skip


def network(path: Path, found: Arrays, batch: Any = "n", softmax: bool = False) -> Path:
    """A network with a batch norm, a matrix that torch has transposed, and a weight in a Constant node."""
    held = numpy_helper.from_array(found["held"], "held_value")
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["b"], "norm"),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("Conv", ["c", "deep.weight"], ["d"], "deep", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "dense"], ["g"], "product"),
        helper.make_node("Constant", [], ["held"], "constant", value=held),
        helper.make_node("Add", ["g", "held"], ["h"], "sum"),
        helper.make_node("Relu", ["h"], ["i"], "relu2"),
        helper.make_node("Gemm", ["i", "head.weight", "head.bias"], ["logits"], "head"),
    ]  # fmt: skip
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["p"], "softmax"))
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("p" if softmax else "logits", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(a, name) for name, a in found.items() if name != "held"],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def damaged(found: Arrays) -> Arrays:
    """The weights with noise, half of one matrix zero, and one layer 2:4."""
    rng = np.random.default_rng(1)
    made = {n: a + 0.15 * rng.standard_normal(a.shape).astype(np.float32) for n, a in found.items()}
    made["var"] = found["var"]
    made["dense"] = made["dense"] * (rng.random(made["dense"].shape) > 0.5)
    sparse = made["deep.weight"].copy()
    sparse[:, ::2] = 0
    return {**made, "deep.weight": sparse, "dense": made["dense"].astype(np.float32)}


def images(count: int = 96) -> np.ndarray[Any, Any]:
    return np.random.default_rng(2).standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)


def run(file: Any, x: Any) -> Any:
    data = str(file) if isinstance(file, Path) else file.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def stored(file: Path) -> Arrays:
    graph = onnx.load(file).graph
    found = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return network(tmp_path / "teacher.onnx", weights())


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return network(tmp_path / "student.onnx", damaged(weights()))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "samples.npz", x=images())
    return tmp_path / "samples.npz"


def divergence(student: Any, teacher: Any, x: Any) -> float:
    logs = [torch.from_numpy(run(f, x)).double().log_softmax(1) for f in (teacher, student)]
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(1).mean())


def test_only_numbers_change(student: Path, teacher: Path, data: Path, tmp_path: Path) -> None:
    done = recover_file(student, teacher, data, epochs=4, lr=0.02, progress=False)
    assert done.improved
    out = tmp_path / "out.onnx"
    done.save(out)
    held = images()[4::8]
    assert done.before.loss == pytest.approx(divergence(student, teacher, held), rel=1e-4)
    assert done.after.loss == pytest.approx(divergence(out, teacher, held), rel=1e-4)
    assert done.after.loss < 0.5 * done.before.loss
    agreed = (run(out, held).argmax(1) == run(teacher, held).argmax(1)).mean()
    assert done.after.agreement == pytest.approx(agreed)
    before, after = stored(student), stored(out)
    assert before.keys() == after.keys()
    assert [n.name for n in onnx.load(out).graph.node if n.op_type != "Constant"] == [
        n.name for n in onnx.load(student).graph.node if n.op_type != "Constant"
    ]
    for name in ("mean", "var"):
        assert np.array_equal(before[name], after[name])
    for name in ("deep.weight", "dense"):
        assert not after[name][before[name] == 0].any()
    for name in before.keys() - {"mean", "var"}:
        assert not np.array_equal(before[name], after[name]), name
    onnx.checker.check_model(onnx.load(out), full_check=True)


def test_the_written_model_computes_what_the_module_does(student: Path) -> None:
    trainable = Trainable(load(student)[0])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainable.module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in trainable.module.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.5)
        x = images(3)
        wanted = trainable.module(torch.from_numpy(x)).numpy()
    from graphshrink.targets.onnx import to_onnx

    assert not trainable.frozen
    assert np.abs(run(to_onnx(trainable.trained()), x) - wanted).max() < 1e-5
    assert np.abs(run(student, x) - wanted).max() > 0.1


def test_weights_that_cannot_be_written_back_stay(tmp_path: Path) -> None:
    # One matrix is the table of an embedding and, transposed, the last layer: two tensors in torch.
    rng = np.random.default_rng(0)
    table = numpy_helper.from_array(rng.standard_normal((7, 4)).astype(np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["a"]),
        helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 7])], [table],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "tied.onnx"
    onnx.save(model, path)
    trainable = Trainable(load(path)[0])
    assert len(trainable.frozen) + len(trainable.places) == len(list(trainable.module.parameters()))
    with pytest.raises(UsageError, match="16"):
        recover_file(path, path, {"x": np.zeros((4, 3), np.int64)})


@pytest.mark.parametrize("start", [np.eye(4), np.ones((4, 4)), np.zeros((4, 4))])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_weights_that_equal_their_transpose_are_written_back_in_their_order(
    start: np.ndarray[Any, Any], op: str
) -> None:
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(start.astype(np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    trainable = Trainable(load(model)[0], HostReaders())
    assert not trainable.frozen
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for p in trainable.module.parameters():
            p.copy_(torch.from_numpy(rng.standard_normal(p.shape)))
    x = rng.standard_normal((3, 4)).astype(np.float32)
    made = trainable.module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(run(to_onnx(trainable.trained()), x), made, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(4, 1, 1), (1, 4, 1, 1), (1, 1, 1), (1,), (), (4, 5, 5), (5,), (1, 5, 1)]
)
def test_slopes_are_trained_and_keep_their_shape(shape: tuple[int, ...]) -> None:
    """Of a PRelu: one for all, one a channel, one along another axis, or one an element."""
    rng = np.random.default_rng(0)
    tensors = {"w": rng.standard_normal((4, 3, 1, 1)), "slope": rng.uniform(0.1, 0.4, shape)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("PRelu", ["a", "slope"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 5, 5])],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    trainable = Trainable(load(model)[0], HostReaders())
    assert not trainable.frozen
    with torch.no_grad():
        for p in trainable.module.parameters():
            p.copy_(torch.from_numpy(rng.uniform(0.2, 0.9, p.shape)))
    made = to_onnx(trainable.trained())
    after = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assert after["slope"].shape == shape
    assert not np.isclose(after["slope"], tensors["slope"]).any()
    x = rng.standard_normal((2, 3, 5, 5)).astype(np.float32)
    wanted = trainable.module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(run(made, x), wanted, atol=1e-5)


def test_samples_and_options_that_nothing_can_be_learned_from(student: Path, teacher: Path) -> None:
    with pytest.raises(UsageError, match="96 samples are all the same"):
        recover_file(student, teacher, images()[:1].repeat(96, 0), progress=False)
    for number in (0, -1.0, np.nan):
        with pytest.raises(UsageError, match="temperature must be above 0"):
            recover_file(student, teacher, images(), temperature=number, progress=False)


def test_training_that_does_not_help_is_undone(teacher: Path, data: Path, tmp_path: Path) -> None:
    out, near = tmp_path / "out.onnx", weights()
    near["head.bias"] = near["head.bias"] + np.float32(1e-4) * np.arange(CLASSES, dtype=np.float32)
    student = network(tmp_path / "near.onnx", near)
    options = ("--teacher", teacher, "--data", data, "-o", out, "--epochs", 1)
    line = succeeds("recover", student, *options, "--lr", 0.3)
    assert "not recovered" in line
    assert "the model is the given one" in line
    assert out.read_bytes() == student.read_bytes()
    found = json.loads(succeeds("recover", teacher, *options, "--json"))
    assert found["notes"] == [
        "the student gives the teacher's outputs: there is nothing to recover"
    ]
    assert out.read_bytes() == teacher.read_bytes()


def test_values_are_paired_by_what_reads_them(teacher: Path, student: Path, tmp_path: Path) -> None:
    # A student without one of two equal blocks: what is left in front of it should give what the block gave.
    def chain(path: Path, blocks: list[int]) -> Path:
        w = np.eye(4, dtype=np.float32)
        nodes, last = [], "x"
        for i in blocks:
            nodes.append(helper.make_node("Gemm", [last, "w"], [f"a{i}"], f"first{i}"))
            nodes.append(helper.make_node("Relu", [f"a{i}"], [f"r{i}"], f"relu{i}"))
            nodes.append(helper.make_node("Add", [f"r{i}", last], [f"y{i}"], f"add{i}"))
            last = f"y{i}"
        nodes.append(helper.make_node("Gemm", [last, "w"], ["y"], "head"))
        infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("x", "y")]
        graph = helper.make_graph(
            nodes, "chain", infos[:1], infos[1:], [numpy_helper.from_array(w, "w")]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, path)
        return path

    whole, part = (load(chain(tmp_path / f"{len(b)}.onnx", b))[0] for b in ([0, 1, 2], [0, 2]))
    assert [(a.name, b.name) for a, b in feature_pairs(part, whole)] == [("y0", "y1"), ("y2", "y2")]
    assert [b.name for _, b in feature_pairs(whole, whole)] == []
    pairs = feature_pairs(load(student)[0], load(teacher)[0])
    assert {"a", "d", "f", "i"} <= {b.name for _, b in pairs}


def test_an_interrupted_run_goes_on(
    student: Path, teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"epochs": 3, "lr": 0.02, "seed": 5, "progress": False}
    whole = recover_file(student, teacher, data, **options)
    step, count = file_run.Keeper.step, []

    def interrupted(self: Any) -> None:
        step(self)
        count.append(1)
        if len(count) == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(file_run.Keeper, "step", interrupted)
        part = recover_file(student, teacher, data, checkpoint=tmp_path / "kept", **options)
    assert part.interrupted
    assert part.improved
    held = images()[4::8]
    found = divergence(part.model, teacher, held)
    assert found == pytest.approx(part.after.loss, rel=1e-4)
    assert found < divergence(student, teacher, held)
    rest = recover_file(student, teacher, data, checkpoint=tmp_path / "kept", **options)
    assert not rest.interrupted
    assert len(rest.history) == 3
    assert rest.model == whole.model


def test_a_softmax_and_a_fixed_batch(tmp_path: Path, data: Path) -> None:
    found = weights()
    teacher = network(tmp_path / "t.onnx", found, 1, softmax=True)
    student = network(tmp_path / "s.onnx", damaged(found), 1, softmax=True)
    done = recover_file(
        student, teacher, data, epochs=2, lr=0.02, progress=False, labels=np.arange(96) % CLASSES, label_weight=0
    )  # fmt: skip
    assert done.improved
    assert done.after.accuracy is not None
    assert run(done.model, images(1)).shape == (1, CLASSES)


def mixed(path: Path) -> Path:
    """Subtract the mean over the batch in the middle of a network."""
    model = onnx.load(path)
    places = [n.op_type for n in model.graph.node]
    (dense,) = [n for n in model.graph.node if n.op_type == "MatMul"]
    mean = helper.make_node("ReduceMean", ["f"], ["f_mean"], axes=[0], keepdims=1)
    model.graph.node.insert(places.index("MatMul"), mean)
    rest = helper.make_node("Sub", ["f", "f_mean"], ["f_rest"])
    model.graph.node.insert(places.index("MatMul") + 1, rest)
    dense.input[0] = "f_rest"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("given", [None, 4, 8])
def test_a_batch_size_that_the_model_does_not_take_is_said(
    given: int | None, tmp_path: Path, data: Path
) -> None:
    found = weights()
    teacher = mixed(network(tmp_path / "t.onnx", found, 4))
    student = mixed(network(tmp_path / "s.onnx", damaged(found), 4))
    done = recover_file(
        student, teacher, data, epochs=1, lr=0.02, batch_size=given, progress=False
    )  # fmt: skip
    said = "batch_size was not used: the model computes 4 samples at a time and no other number"
    assert (said in done.notes) == (given == 8)


def test_labels_and_no_augmentation(student: Path, teacher: Path) -> None:
    labels = run(teacher, images()).argmax(1)
    done = recover_file(
        student, teacher, {"x": images()}, epochs=2, lr=0.02, labels=labels, augment=False, progress=False
    )  # fmt: skip
    assert done.after.accuracy == done.after.agreement


def test_shrink_recovers_what_a_pipeline_lost(teacher: Path, data: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    line = succeeds(
        teacher, out, "--passes", "sparsify", "--calibration", data, "--recover", 2, "--report", report
    )  # fmt: skip
    assert "recovered; held-out samples: loss" in line
    assert "nobody measured" not in line
    assert any("recovered" in note for note in json.loads(report.read_text())["notes"])
    sparse = [a for a in stored(out).values() if a.ndim == 2 and (a == 0).mean() == 0.5]
    assert sparse
    assert "give --calibration" in fails(teacher, out, "--recover", 2)
    assert "--checkpoint is for --recover" in fails(teacher, out, "--checkpoint", tmp_path / "c")
    line = fails(teacher, out, "--recover", "1", "--calibration", data, "--checkpoint", data)
    assert "is a file: give a folder" in line


def test_shrink_recovers_with_labels(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, classes = tmp_path / "out.onnx", tmp_path / "y.npy"
    np.save(classes, run(teacher, images()).argmax(1))
    words = ("--passes", "sparsify", "--calibration", data, "--recover", 1, "--no-augment")
    line = succeeds(teacher, out, *words, "--labels", classes, "--lr", "1e-3", "--measure", "kl")
    assert "accuracy" in line
    before = out.read_bytes()
    # What does not fit is refused before the passes run.
    monkeypatch.setattr("graphshrink.api.shrink", None)
    np.save(tmp_path / "few.npy", np.zeros(3, np.int64))
    for wrong, expected in (
        (("--labels", tmp_path / "none.npy"), "no such file of labels"),
        (("--labels", tmp_path / "few.npy"), "one for each of the"),
        (("--labels", "folders"), "for a folder of images"),
        (("--labels", classes, "--measure", "mse"), "measure kl or auto, not mse"),
        (("--measure", "volume"), "not 'volume'"),
    ):
        assert expected in fails(teacher, out, *words, *wrong)
    for unused in (("--labels", classes), ("--lr", "1e-3"), ("--measure", "kl"), ("--no-augment",)):
        assert f"{unused[0]} is for --recover" in fails(teacher, out, *unused)
    both = fails(teacher, out, *words, "--labels", tmp_path / "none.npy", "--macs", "0.5")
    assert "leave out --passes" in both
    line = fails(teacher, out, *words, "--labels", classes, "--report", classes)
    assert "the labels" in line
    assert out.read_bytes() == before


def test_what_cannot_be_recovered(teacher: Path, student: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"

    def problem(student: Path, *more: Any, teacher: Path = teacher, data: Path = data) -> str:
        return fails("recover", student, "--teacher", teacher, "--data", data, "-o", out, *more)

    few = tmp_path / "few.npz"
    np.savez(few, x=images(3))
    assert "needs at least 16" in problem(student, data=few)
    nothing = tmp_path / "empty"
    nothing.mkdir()
    assert "neither .npy files nor images" in problem(student, data=nothing)
    assert "not an .npy file" in problem(student, "--labels", few)
    np.save(tmp_path / "labels.npy", np.arange(96) % 9)
    assert "beyond the 5 classes" in problem(student, "--labels", tmp_path / "labels.npy")
    soft = network(tmp_path / "soft.onnx", weights(), softmax=True)
    assert "outputs of student and teacher differ" in problem(soft)
    broken = weights()
    broken["head.bias"] = np.full(CLASSES, np.nan, np.float32)
    assert "not finite" in problem(student, teacher=network(tmp_path / "nan.onnx", broken))
    assert "would overwrite" in fails(
        "recover", student, "--teacher", teacher, "--data", data, "-o", teacher
    )
    assert not out.exists()


def test_variants_of_images() -> None:
    torch.manual_seed(0)
    image = torch.rand(3, 100, 130) + 1
    small = torch.rand(1, 12, 12) + 1
    for _ in range(20):
        made = Augmentation().image(image, (80, 96))
        assert made.shape == (3, 80, 96)
        assert 1 <= float(made.min()) <= float(made.max()) <= 2
        assert Augmentation().image(small, (12, 12)).shape == (1, 12, 12)
    plain = Augmentation(area=1.0, aspect=1.0, flip=0.0).image(image[:, :, :100], (100, 100))
    assert torch.equal(plain, image[:, :, :100])
    batch, labels = torch.rand(6, 3, 8, 8), torch.eye(6)
    mixed, shares = Augmentation(mixup=1.0).mixed(batch, labels)
    assert shares is not None
    expected = torch.einsum("ij,jchw->ichw", shares, batch)
    assert torch.allclose(mixed, expected, atol=1e-6)
    assert torch.allclose(shares.sum(1), torch.ones(6))


def test_checkpoints_of_other_models_are_refused(tmp_path: Path) -> None:
    teacher = network(tmp_path / "t.onnx", weights())
    one, other = (network(tmp_path / f"{i}.onnx", weights(i)) for i in (1, 2))
    data, out, run = tmp_path / "d.npz", tmp_path / "o.onnx", tmp_path / "run"
    rng = np.random.default_rng(0)
    np.savez(data, x=rng.standard_normal((32, 3, SIDE, SIDE)).astype(np.float32))
    options = ("--teacher", teacher, "--data", data, "-o", out, "--checkpoint", run)
    succeeds("recover", one, *options, "--epochs", "1")
    out.unlink()
    assert "another student or teacher" in fails("recover", other, *options, "--epochs", "1")
    index = json.loads((run / "recovery.json").read_text())
    for item in index["state"]["dict"]:
        if item[0] == "callbacks":
            item[1] = []
    (run / "recovery.json").write_text(json.dumps(index))
    assert "not of an ONNX file" in fails("recover", one, *options, "--epochs", "1")
    line = fails("recover", one, *options[:-2], "--labels", tmp_path / "no.npy")
    assert "no such file of labels" in line
    assert not out.exists()


def test_an_interrupted_run_keeps_the_student_that_it_reads_again(
    student: Path, teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.onnx"
    own.write_bytes(student.read_bytes())
    command = ("recover", own, "--teacher", teacher, "--data", data, "--lr", "0.02", "-o", own,
               "--epochs", "1", "--checkpoint", tmp_path / "kept")  # fmt: skip

    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(file_run.Keeper, "step", interrupted)
        patch.setattr("os._exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
        done = call(*command)
    assert done.code == 130
    assert "own.onnx stays as it was" in done.err
    assert own.read_bytes() == student.read_bytes()
    succeeds(*command)
    assert own.read_bytes() != student.read_bytes()


@pytest.mark.parametrize("command", ["recover", "shrink"])
def test_without_checkpoints_the_best_so_far_goes_beside_the_file_that_was_given(
    student: Path,
    teacher: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    own, mine = tmp_path / "own.onnx", tmp_path / "own.interrupted.onnx"
    own.write_bytes(student.read_bytes())
    mine.write_text("a file of the user")
    steps = []

    def interrupted(self: Any) -> None:
        steps.append(1)
        if len(steps) > 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(file_run.Keeper, "step", interrupted)
        patch.setattr("os._exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
        if command == "recover":
            done = call("recover", own, "--teacher", teacher, "--data", data, "--lr", "0.02", "-o", own, "--epochs", "9")  # fmt: skip
        else:
            done = call("shrink", own, own, "--passes", "sparsify", "--calibration", data, "--recover", "9")  # fmt: skip
    assert done.code == 130
    assert "own.onnx stays as it was; the best so far is in " in done.err
    assert own.read_bytes() == student.read_bytes()
    assert mine.read_text() == "a file of the user"
    best = tmp_path / "own.interrupted1.onnx"
    onnx.checker.check_model(best, full_check=True)
    assert run(best, images(4)).shape == (4, CLASSES)
    assert best.read_bytes() != own.read_bytes()


def test_inner_values_that_mislead_are_not_compared(
    student: Path, teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = []

    def tried(run: file_run.FileRun, rates: Any, steps: int) -> dict[float, float]:
        trials.append(run.feature_weight)
        return dict.fromkeys(rates, run.before.loss * (1.5 if run.feature_weight else 0.5))

    monkeypatch.setattr(file_run.FileRun, "_trials", tried)
    kept = {"checkpoint": tmp_path / "kept", "progress": False}
    half = recover_file(student, teacher, data, epochs=4, lr=0.02, **kept)
    assert trials == [10.0, 0.0]
    assert "features" not in half.history[0]
    assert any("outputs alone were compared" in note for note in half.notes)
    again = recover_file(student, teacher, data, epochs=4, lr=0.02, **kept)
    assert again.history == half.history
    assert len(trials) == 2
    forced = recover_file(
        student, teacher, data, epochs=4, lr=0.02, feature_weight=10.0, progress=False
    )
    assert "features" in forced.history[0]
    assert len(trials) == 2


def test_labels_and_lengths_that_do_not_fit(teacher: Path, student: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="compared as classes: measure kl or auto, not mse"):
        recover_file(student, teacher, images(), labels=np.zeros(96, int), measure="mse")
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, "length"])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    places = onnx.ModelProto.FromString(model.SerializeToString())
    places.graph.node[0].CopyFrom(helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0))
    places.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, [4]))
    places.graph.node.add().CopyFrom(helper.make_node("Mul", ["x", "w"], ["z"]))
    places.graph.initializer.add().CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    places.graph.node[0].input[0] = "z"
    places.graph.node.insert(0, places.graph.node.pop())
    with pytest.raises(UsageError, match="no numbers of floating point"):
        recover_file(places, places, np.random.default_rng(0).random((32, 3), np.float32))
    texts = [(np.ones((4, 2 + i % 3), np.float32),) for i in range(12)]
    with pytest.raises(
        UsageError, match=r"takes batches of 4, and the samples .* different shapes"
    ):
        recover_file(model, model, texts)


def test_texts_of_different_lengths_are_batched_by_length(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((20, 6)).astype(np.float32)
    dense = rng.standard_normal((6, 4)).astype(np.float32)

    def write(path: Path, weight: np.ndarray[Any, Any]) -> Path:
        graph = helper.make_graph(
            [
                helper.make_node("Gather", ["table", "ids"], ["words"]),
                helper.make_node("ReduceMean", ["words"], ["mean"], axes=[1], keepdims=0),
                helper.make_node("MatMul", ["mean", "weight"], ["y"]),
            ],
            "texts",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "tokens"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")],
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
            path,
        )
        return path

    teacher = write(tmp_path / "teacher.onnx", dense)
    noisy = dense + 0.3 * rng.standard_normal(dense.shape).astype(np.float32)
    student = write(tmp_path / "student.onnx", noisy)
    # Most texts have one of two lengths; a single one has a length of its own.
    lengths = [3] * 60 + [5] * 60 + [9]
    texts = [(rng.integers(0, 20, (1, n)),) for n in rng.permutation(lengths)]
    done = recover_file(
        student, teacher, texts, epochs=6, batch_size=8, lr=0.02, measure="error", progress=False
    )
    assert done.improved
    assert done.after.loss < 0.5 * done.before.loss
    held = [r["held-out loss"] for r in done.history]
    # What torch computed while it trained is what onnxruntime computes.
    assert min(held) == pytest.approx(done.after.loss, rel=1e-3)

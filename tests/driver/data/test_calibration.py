"""Calibration data from files and Python, through onnxruntime and torch, and every way in which they can be wrong."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import nn

from graphshrink import CalibrationData, Graph, Pass, Rewriter, UsageError, shrink, shrink_graph
from graphshrink.api import load
from graphshrink.cli.progress import Bar, Lines
from graphshrink.data.calibration import calibrated
from graphshrink.data.images import Preprocess
from graphshrink.ir import Conv, DType, ModelError, TensorType
from graphshrink.passes import ChannelMoments, GramMatrix, PassRecord
from support.cli import fails, small_model, succeeds
from support.onnx_run import outputs_of

RNG = np.random.default_rng(0)
X = RNG.standard_normal((10, 3, 16, 16)).astype(np.float32)


class Net(nn.Module):
    """Groups, strides, in-place activations, a layer over tokens, two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, stride=2, dilation=2, padding=(2, 1), groups=2)
        self.relu = nn.ReLU(inplace=True)
        self.dense = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.a(x))
        y = self.relu(self.b(y)).flatten(2).transpose(1, 2)
        return self.dense(y) + t


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = Net().eval()
    path = tmp_path_factory.mktemp("pair") / "net.onnx"
    given = (torch.from_numpy(X[:2]), torch.zeros(2, 1, 5))
    dims = ({0: torch.export.Dim("n")},) * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, given, str(path), dynamo=True, dynamic_shapes=dims, verbose=False)
    return model, path


def statistics(graph: Graph, kind: str, data: Any) -> list[Any]:
    """Gram matrices of all layers, and moments of what they give."""
    nodes = [n for n in graph.nodes if n.op.name in ("Conv", "Linear")]
    assert [n.op.name for n in nodes] == ["Conv", "Conv", "Linear"]
    grams = [GramMatrix(n) for n in nodes]
    moments = [ChannelMoments(n.output, 1 if isinstance(n.op, Conv) else -1) for n in nodes]
    found = calibrated(graph, kind, data).collect(graph, [*grams, *moments])
    return [found[r] for r in (*grams, *moments)]


def test_both_hosts_give_the_statistics_of_torch(pair: Any) -> None:
    model, path = pair
    t = RNG.standard_normal((10, 1, 5)).astype(np.float32)
    fx, _ = load(model, (torch.from_numpy(X[:1]), torch.from_numpy(t[:1])))
    native, _ = load(path)
    data = CalibrationData({"x": X, "t": t}, batch_size=3)
    ours = [statistics(fx, "fx", data), statistics(native, "onnx", data)]
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, given: Any, made: torch.Tensor) -> None:
            inputs[name], outputs[name] = given[0].double().clone(), made.double().clone()

        return hook

    hooks = [
        m.register_forward_hook(keep(n))
        for n, m in model.named_modules()
        if n in ["a", "b", "dense"]
    ]
    with torch.no_grad():
        model(torch.from_numpy(X), torch.from_numpy(t))
    for hook in hooks:
        hook.remove()
    a = nn.functional.unfold(inputs["a"], 3, padding=1).movedim(1, 0).reshape(1, 27, -1)
    b = nn.functional.unfold(inputs["b"], 3, 2, (2, 1), 2).movedim(1, 0).reshape(2, 36, -1)
    want = [a, b, inputs["dense"].reshape(1, -1, 8).mT]
    for found in ours:
        for gram, cols in zip(found[:3], want, strict=True):
            exact = (cols @ cols.mT).numpy()
            assert gram.count == cols.shape[2]
            np.testing.assert_allclose(gram.matrix, exact, atol=1e-5 * np.abs(exact).max())
        for stats, name, axis in zip(found[3:], ("a", "b", "dense"), (1, 1, 2), strict=True):
            rows = outputs[name].movedim(axis, 0).reshape(outputs[name].shape[axis], -1)
            np.testing.assert_allclose(stats.mean, rows.mean(1).numpy(), atol=1e-5)
            np.testing.assert_allclose(stats.var, rows.var(1, correction=0).numpy(), rtol=1e-4)
            # An in-place activation behind it has not touched it.
            assert stats.min.min() < 0


def test_onnx_is_calibrated_without_torch(tmp_path: Path) -> None:
    path = small_model(tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=X)
    code = (
        "import sys\nfrom graphshrink import shrink\n"
        f"shrink({str(path)!r}, 'remove-activations{{names=*,by=affine}}', "
        f"calibration={str(tmp_path / 'c.npz')!r})\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_line_fits_an_activation_from_a_file(tmp_path: Path) -> None:
    """Of all lines, the one from the data is the nearest to SiLU on these data."""
    path = small_model(tmp_path / "m.onnx")
    np.savez_compressed(tmp_path / "c.npz", x=X)
    passes = "remove-activations{names=*,by=affine}"
    for out, extra in (("a.onnx", ()), ("b.onnx", ("--calibration-batch", "4"))):
        succeeds(path, tmp_path / out, "--passes", passes, "--calibration", tmp_path / "c.npz", *extra)  # fmt: skip
    [want] = outputs_of(path, X)
    [got] = outputs_of(tmp_path / "a.onnx", X)
    [other] = outputs_of(tmp_path / "b.onnx", X)
    np.testing.assert_allclose(got, other, atol=1e-5)
    feeds = {"x": X}
    model = onnx.load(path)
    model.graph.output.append(onnx.ValueInfoProto(name="n"))
    before = outputs_of(model, feeds)[1]
    for channel in range(8):
        xs, ys = before[:, channel].ravel(), want[:, channel].ravel()
        a, b = np.polyfit(xs.astype(float), ys.astype(float), 1)
        np.testing.assert_allclose(got[:, channel].ravel(), a * xs + b, atol=1e-4)


class Values(Pass):
    """Keeps what comes in."""

    name = "values"

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def run(self, graph: Graph, rw: Rewriter, ctx: Any) -> None:
        self.batches = [arrays[0] for arrays in ctx.calibration.stream(graph, graph.inputs[:1])]


def given(model: Any, data: Any, **options: Any) -> list[Any]:
    """The batches that a model is run on."""
    step = Values()
    shrink(model, step, calibration=data, **options)
    return step.batches


def relu(path: Path, shape: Any, dtype: int = TensorProto.FLOAT) -> Path:
    """A file of one Relu."""
    info = [helper.make_tensor_value_info(n, dtype, shape) for n in "xy"]
    made = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [info[0]], [info[1]])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return relu(tmp_path / "relu.onnx", ["n", 3, 16, 16])


def test_batches_of_files_and_arrays(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=X)
    np.savez_compressed(tmp_path / "z.npz", x=X)
    for source in (tmp_path / "c.npz", str(tmp_path / "z.npz"), {"x": X}, X, torch.from_numpy(X)):
        got = given(model, CalibrationData(source, samples=7, batch_size=4))
        assert [len(b) for b in got] == [4, 3]
        np.testing.assert_array_equal(np.concatenate(got), X[:7])
    # Samples, and batches, in a folder; the other inputs of a model lie in folders of their names.
    folder = tmp_path / "npy"
    (folder / "deep").mkdir(parents=True)
    for i in range(10):
        np.save(folder / "deep" / f"{i}.npy", X[i])
    got = given(model, CalibrationData(folder, batch_size=4))
    assert [len(b) for b in got] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(got), X)
    spread = given(model, CalibrationData(folder, samples=5))
    np.testing.assert_array_equal(spread[0], X[::2])
    batches = tmp_path / "batches"
    batches.mkdir()
    np.save(batches / "a.npy", X[:6])
    np.save(batches / "b.npy", X[6:])
    got = given(model, CalibrationData(batches, samples=9, batch_size=4))
    assert [len(b) for b in got] == [4, 4, 1]
    np.testing.assert_array_equal(np.concatenate(got), X[:9])


def test_batches_of_iterables(model: Path) -> None:
    parts = [X[:4], X[4:]]
    for data in (parts, [(p,) for p in parts], [{"x": p} for p in parts], (p for p in parts),
                 [torch.from_numpy(p) for p in parts]):  # fmt: skip
        got = given(model, data)
        assert [len(b) for b in got] == [4, 6]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(X)), 5)
    assert [len(b) for b in given(model, loader)] == [5, 5]
    assert [len(b) for b in given(model, CalibrationData(parts, samples=5))] == [4, 1]


def test_a_model_that_fixes_its_batch_gets_full_ones(tmp_path: Path) -> None:
    path = relu(tmp_path / "m.onnx", [4, 3, 16, 16])
    assert [len(b) for b in given(path, X)] == [4, 4]
    with pytest.raises(UsageError, match="there are no samples enough for a batch of 4"):
        given(path, X[:3])
    with pytest.raises(UsageError, match="takes batches of 4, so batch_size cannot be 2"):
        given(path, CalibrationData(X, batch_size=2))
    # A module that was traced on an example of one takes any.
    module = nn.Sequential(nn.ReLU()).eval()
    got = given(module, X, example_inputs=(torch.zeros(1, 3, 16, 16),))
    assert [len(b) for b in got] == [10]


def test_sequences_of_several_lengths_are_batches_of_their_own(tmp_path: Path) -> None:
    path = relu(tmp_path / "m.onnx", ["n", "t"])
    for i, size in enumerate((5, 5, 7)):
        np.save(tmp_path / f"{i}.npy", np.ones(size, np.float32))
    assert [b.shape for b in given(path, tmp_path)] == [(2, 5), (1, 7)]


def test_two_inputs_from_folders(pair: Any, tmp_path: Path) -> None:
    path = pair[1]
    for name, arrays in (("x", X), ("t", np.zeros((10, 1, 5), np.float32))):
        (tmp_path / name).mkdir()
        for i in range(3):
            np.save(tmp_path / name / f"{i}.npy", arrays[i])
    np.testing.assert_array_equal(given(path, tmp_path)[0], X[:3])
    (tmp_path / "t" / "2.npy").unlink()
    with pytest.raises(UsageError, match=r"2.npy does not exist for every input"):
        given(path, tmp_path)
    (tmp_path / "t").rename(tmp_path / "u")
    with pytest.raises(UsageError, match=r"no folder 't' of .npy files"):
        given(path, tmp_path)


def test_bfloat16_and_float16_reach_the_model(tmp_path: Path) -> None:
    half = relu(tmp_path / "h.onnx", ["n", 3], TensorProto.FLOAT16)
    assert given(half, np.ones((2, 3), np.float16))[0].dtype == np.float16
    module = nn.Linear(3, 4).bfloat16().eval()
    x = torch.randn(6, 3).bfloat16()
    graph, kind = load(module, (x,))
    [node] = graph.nodes
    gram = calibrated(graph, kind, [x]).collect(graph, [GramMatrix(node)])[GramMatrix(node)]
    np.testing.assert_allclose(gram.matrix[0], (x.double().T @ x.double()).numpy(), rtol=1e-6)
    weight = numpy_helper.from_array(np.ones((4, 3), DType.BF16.numpy), "w")
    weight.data_type = TensorProto.BFLOAT16
    info = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["n", 3])]  # fmt: skip
    nodes = [helper.make_node("Cast", ["x"], ["c"], to=TensorProto.BFLOAT16),
             helper.make_node("Identity", ["c"], ["y"])]  # fmt: skip
    made = helper.make_model(
        helper.make_graph(nodes, "g", [info[0]], [info[1]]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    graph, kind = load(made)
    value = next(iter(graph.nodes)).output
    [(got,)] = calibrated(graph, kind, np.full((2, 3), 1 / 3, np.float32)).stream(graph, [value])
    np.testing.assert_array_equal(
        got, np.full((2, 3), 1 / 3).astype(DType.BF16.numpy).astype(float)
    )


def test_values_inside_bodies_and_raised_patterns(tmp_path: Path) -> None:
    """Values that a body captures, and results of several host nodes, can be read; the rest is not computed."""
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "s"], ["d"])], "b", [],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["g"]), helper.make_node("Mul", ["x", "g"], ["s"]),
        helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body),
        helper.make_node("Relu", ["z"], ["y"]),
    ]  # fmt: skip
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_graph(
        nodes, "g", infos, [out], [numpy_helper.from_array(np.array(True), "c")]
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    graph, kind = load(model)
    silu, branch, last = list(graph.nodes)
    assert silu.op.name == "Activation"
    x = RNG.standard_normal((4, 3)).astype(np.float32)
    wanted = [last.output, silu.output, graph.inputs[0], branch.output, silu.output]
    [got] = calibrated(graph, kind, x).stream(graph, wanted)
    s = x / (1 + np.exp(-x))
    for array, want in zip(got, (np.maximum(2 * s, 0), s, x, 2 * s, s), strict=True):
        np.testing.assert_allclose(array, want, rtol=1e-5)


# What can be wrong.


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"z": X}, r"there is no array for input 'x', only z"),
        ({"x": X, "z": X}, r"'z' is not an input of the model; inputs are x"),
        (X[:, :2], r"input 'x' takes f32\[n, 3, 16, 16\], not 10x2x16x16"),
        (X.astype(float), r"takes float32, not float64; convert it with .astype\('float32'\)"),
        (np.where(X > 2, np.nan, X).astype("f4"), r"input 'x' contains NaN or infinite numbers"),
        (X[:0], "there are no samples"),
        ([], "there are no samples"),
        (iter([]), "there are no samples"),
        ({"x": np.float32(1)}, "'x' is a scalar"),
        ([(X, X)], "calibration batch 0 has 2 arrays, the model takes 1; leave labels out"),
        ([{"y": X}], "calibration batch 0: there is no array for input 'x'"),
        ([object()], "a object is not an array of numbers"),
        (5, "a int cannot be calibration data"),
        ("nowhere.npz", "nowhere.npz: No such file"),
        ("relu.onnx", "calibration data are an .npz file, or a folder"),
        (CalibrationData(X, preprocess="imagenet"), "preprocess is for a folder of images"),
    ],
)  # fmt: skip
def test_wrong_data_are_one_clear_error(
    data: Any, said: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    with pytest.raises(UsageError, match=said):
        shrink(model, "", calibration=data)


def test_wrong_files_are_one_clear_error(model: Path, tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        return fails(model, tmp_path / "o.onnx", "--calibration", path)

    path = tmp_path / "c.npz"
    path.write_bytes(b"no zip file")
    assert "is damaged, or not an .npz file of arrays" in refused(path)
    np.savez(path, x=np.array([object()], dtype=object))
    assert "array 'x' contains Python objects, which are not loaded" in refused(path)
    np.savez(path, x=np.asfortranarray(X))
    assert "Fortran order" in refused(path)
    np.savez(path, y=X)
    assert "there is no array for input 'x', only y" in refused(path)
    np.savez(path, x=X)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2000])
    assert "is damaged" in refused(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "has neither .npy files nor images" in refused(folder)
    assert "folder/missing: No such file or directory" in refused(folder / "missing")
    np.save(folder / "a.npy", X[0, 0])
    assert "has 2 axes; for input 'x' a batch has 4, a sample 3" in refused(folder)
    (folder / "a.npy").write_bytes(b"\x93NUMPY nothing")
    assert "is damaged, or not an .npy file of an array" in refused(folder)
    np.save(folder / "a.npy", np.array([{}]), allow_pickle=True)
    assert "is damaged, or not an .npy file of an array" in refused(folder)
    np.save(folder / "a.npy", X[0])
    Image.new("RGB", (4, 4)).save(folder / "b.png")
    assert "has both images and .npy files" in refused(folder)
    (folder / "b.png").unlink()
    line = fails(model, tmp_path / "o.onnx", "--calibration", folder, "--preprocess", "resize=4")
    assert "preprocess is for a folder of images, and there are none" in line


def test_options_without_data(model: Path, tmp_path: Path) -> None:
    for option, value in (
        ("--calibration-samples", "3"), ("--calibration-batch", "3"), ("--preprocess", "imagenet"),
    ):  # fmt: skip
        line = fails(model, tmp_path / "o.onnx", option, value)
        assert f"{option} is about calibration data: give --calibration PATH" in line
    for name in ("samples", "batch_size"):
        with pytest.raises(UsageError, match=f"{name} must be at least 1, not 0"):
            CalibrationData(X, **{name: 0})
    line = fails(model, tmp_path / "o.onnx", "--passes", "remove-activations{names=*,by=affine}")
    assert "needs calibration data: none were given; give --calibration PATH" in line


def test_data_that_can_be_read_once_are_kept_within_bounds(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphshrink.data.calibration.CACHE_BYTES", X.nbytes)
    with pytest.raises(UsageError, match="can be read only once and take more than 0 MiB"):
        given(model, iter([X, X]))
    # A list is read again.
    graph, kind = load(model)
    data = calibrated(graph, kind, [X, X])
    for _ in range(2):
        assert len(list(data.stream(graph, graph.inputs))) == 2


def test_a_model_that_does_not_run_on_the_data(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval()
    graph, kind = load(module, (torch.zeros(2, 3),))
    first, second = graph.nodes
    data = calibrated(graph, kind, np.ones((2, 5), np.float32))
    with pytest.raises(
        ModelError, match=r"torch cannot run the model on calibration batch 0 \(2x5\)"
    ):
        data.collect(graph, [GramMatrix(second)])
    with pytest.raises(UsageError, match=r"0 takes 3 channels, on the calibration .* is 2x5"):
        data.collect(graph, [GramMatrix(first)])
    table = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    made = helper.make_graph(
        [helper.make_node("Gather", ["w", "x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])], [table],
    )  # fmt: skip
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    graph, kind = load(proto)
    request = ChannelMoments(next(iter(graph.nodes)).output)
    with pytest.raises(ModelError, match="onnxruntime cannot run the model on calibration batch 0"):
        calibrated(graph, kind, np.array([7])).collect(graph, [request])


def test_a_model_without_inputs(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["c"], ["y"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    constant = numpy_helper.from_array(np.ones(2, np.float32), "c")
    made = helper.make_graph([node], "g", [], [out], [constant])
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(UsageError, match="no inputs for calibration data"):
        shrink(proto, "", calibration=X)


def test_progress_is_told(model: Path) -> None:
    seen: list[Any] = []
    graph, kind = load(model)
    data = calibrated(
        graph, kind, CalibrationData(X, batch_size=4), lambda *said: seen.append(said)
    )
    data.collect(graph, [ChannelMoments(graph.inputs[0])])
    assert seen == [(i, 3, "calibration batches") for i in (1, 2, 3)]


def test_a_second_bar_shows_what_goes_on_inside_a_pass(model: Path) -> None:
    graph, _ = load(model)
    progress = Progress(console=Console(file=io.StringIO()))
    bar = Bar(progress, progress.add_task("passes", total=1), 1)
    for done, total in ((1, 3), (2, 0)):
        bar.progress_within(done, total, "calibration batches")
        inner = progress.tasks[-1]
        assert (inner.description, inner.completed) == ("calibration batches", done)
    assert len(progress.tasks) == 2
    bar.after(Values(), graph, PassRecord("values"))
    assert len(progress.tasks) == 1
    told = io.StringIO()
    Lines(told).progress_within(1, 3, "calibration batches")
    assert not told.getvalue()


def test_lines_of_a_torch_model_come_from_a_loader() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), nn.Conv2d(4, 2, 1)).eval()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(X)), 4)
    x = torch.from_numpy(X)
    passes = "remove-activations{names=*,by=affine},merge-linear,prune-dead"
    small = shrink_graph(module, passes, example_inputs=(x[:1],), calibration=loader)
    assert len([m for m in small.modules() if isinstance(m, nn.Conv2d)]) == 1
    # Least squares through the activation, by hand.
    with torch.no_grad():
        h = module[0](x)
        y = module[1](h)
        dims = (0, 2, 3)
        mean_h, mean_y = h.mean(dims, True), y.mean(dims, True)
        slope = ((h - mean_h) * (y - mean_y)).sum(dims, True) / ((h - mean_h) ** 2).sum(dims, True)
        want = module[2](slope * (h - mean_h) + mean_y)
    torch.testing.assert_close(small(x), want, atol=1e-5, rtol=0)


# Images.


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for i, (kind, size) in enumerate([("cats", (20, 30)), ("dogs", (40, 20)), ("dogs", (24, 24))]):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    (folder / "labels.txt").write_text("not an image")
    return folder


def test_images_become_samples(pictures: Path, model: Path) -> None:
    recipe = (
        "resize=20,crop=16,mean=[0.5,0.4,0.3],std=[0.2,0.3,0.4],channels=bgr,interpolation=bicubic"
    )
    [got] = given(model, CalibrationData(pictures, preprocess=recipe))
    assert got.shape == (3, 3, 16, 16)
    file = Image.open(pictures / "cats" / "0.png").resize((30, 20), Image.Resampling.BICUBIC)
    want = np.asarray(file.crop((7, 2, 23, 18)), float)[:, :, ::-1] / 255
    want = (want - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(got[0], want.transpose(2, 0, 1), atol=1e-6)
    few = given(model, CalibrationData(pictures, samples=2, preprocess=Preprocess(20, 16)))
    assert few[0].shape == (2, 3, 16, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_camera_was_held(
    orientation: int, tmp_path: Path, model: Path
) -> None:
    """The eight orientations of EXIF, by the corner in which the first pixel of the file belongs."""
    upright = RNG.integers(0, 256, (16, 16, 3), np.uint8)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photos" / "0.png", exif=exif)
    recipe = "resize=16,crop=16,mean=[0,0,0],std=[1,1,1]"
    [got] = given(model, CalibrationData(tmp_path / "photos", preprocess=recipe))
    np.testing.assert_allclose(got[0], upright.transpose(2, 0, 1) / 255, atol=1e-6)


def test_images_by_the_shape_of_the_input(pictures: Path) -> None:
    recipe = Preprocess(resize=(16, 18))
    path = pictures / "dogs" / "2.png"
    for shape, dtype, want in (
        (("n", 3, 16, 18), DType.F32, (3, 16, 18)),
        (("n", 16, 18, 3), DType.F16, (16, 18, 3)),
        (("n", 1, 16, 18), DType.F32, (1, 16, 18)),
        ((None, 16, 18, 3), DType.U8, (16, 18, 3)),
    ):
        got = recipe.sample(path, TensorType(dtype, shape))
        assert (got.shape, got.dtype) == (want, dtype.numpy)
        assert (got.max() <= 1) == (dtype is not DType.U8)
    plain = Preprocess(scale=2.0, layout="nhwc").sample(path, TensorType(DType.F32))
    np.testing.assert_array_equal(plain, 2.0 * np.asarray(Image.open(path)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("size=3", "preprocess: 'size=3' is not one of resize=, crop="),
        ("resize", "preprocess: 'resize' is not one of"),
        ("resize=a", "resize does not take 'a'"),
        ("resize=3,resize=4", "resize is given twice"),
        ("layout=hwc", "layout is one of nchw, nhwc, not 'hwc'"),
        ("channels=cmyk", "channels is one of rgb, bgr, gray"),
        ("interpolation=lanczos", "interpolation is one of"),
        ("crop=0", "crop must be at least 1, not 0"),
        ("std=[0.1,0,1]", "neither std nor scale may be 0"),
        ("resize=20,crop=16,mean=[1,2]", "mean has 2 numbers, the image 3 channels"),
        ("resize=20,crop=30", "smaller than the crop 30x30: give a larger resize="),
        ("resize=20", r"takes f32\[n, 3, 16, 16\], not 1x3x20x30 .*crop="),
    ],
)  # fmt: skip
def test_wrong_recipes(text: str, said: str, pictures: Path, model: Path) -> None:
    with pytest.raises(UsageError, match=said):
        given(model, CalibrationData(pictures, preprocess=text))


def test_wrong_images(pictures: Path, model: Path, tmp_path: Path, pair: Any) -> None:
    line = fails(pair[1], tmp_path / "o.onnx", "--calibration", pictures)
    assert "images are for models of one input, this one has 2" in line
    with pytest.raises(UsageError, match="images need an input with four axes"):
        given(relu(tmp_path / "flat.onnx", ["n", 3]), pictures)
    path = pictures / "dogs" / "2.png"
    with pytest.raises(UsageError, match="for inputs of floating point"):
        Preprocess(mean=(1.0,)).sample(path, TensorType(DType.U8))
    path.write_bytes(path.read_bytes()[:100])
    recipe = CalibrationData(pictures, preprocess="resize=20,crop=16")
    with pytest.raises(UsageError, match=r"2.png cannot be read as an image"):
        given(model, recipe)
    huge = Image.new("1", (15000, 13000))
    huge.save(path)
    with pytest.raises(UsageError, match="the image is too large to be read"):
        given(model, recipe)


def test_images_need_pillow(
    pictures: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    line = fails(model, tmp_path / "o.onnx", "--calibration", pictures)
    assert '[images]"' in line


def test_values_inside_one_node_of_the_host_can_be_measured() -> None:
    """What the product of an Einsum reads is no value of the host."""
    w = RNG.standard_normal((8, 8)).astype(np.float32)
    made = helper.make_graph(
        [helper.make_node("Einsum", ["x", "w"], ["y"], equation="ji,jk->ik")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (8, 5))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (5, 8))],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.from_numpy(w))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("ji,jk->ik", x, self.w)

    x = RNG.standard_normal((8, 5)).astype(np.float32)
    options: dict[str, Any] = {"passes": "sparsify{method=wanda}", "calibration": x}
    got = outputs_of(shrink(model, **options).model, x)[0]
    # Wanda keeps the two of four numbers with the largest product of weight and root mean square of its input.
    scores = np.abs(w.T) * np.sqrt((x.astype(np.float64) ** 2).mean(1))
    order = np.argsort(scores.reshape(8, 2, 4), axis=2)
    kept = np.ones((8, 2, 4), bool)
    np.put_along_axis(kept, order[..., :2], values=False, axis=2)
    want = x.T @ (w.T * kept.reshape(8, 8)).T
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    module = shrink(Product(), example_inputs=(torch.from_numpy(x),), **options).model
    np.testing.assert_allclose(
        module(torch.from_numpy(x)).detach().numpy(), want, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("batch", "every"), [(4, 3), (3, 8), (10, 2)])
def test_two_parts_have_each_sample_once(tmp_path: Path, batch: int, every: int) -> None:
    graph, kind = load(small_model(tmp_path / "in.onnx"))
    given = CalibrationData(X, batch_size=batch)
    fitting, held = calibrated(graph, kind, given).split(every)
    parts = [
        np.concatenate([a for (a,) in part.stream(graph, [graph.inputs[0]])])
        for part in (fitting, held)
    ]
    chosen = np.arange(len(X)) % every == every // 2
    assert np.array_equal(parts[0], X[~chosen])
    assert np.array_equal(parts[1], X[chosen])
    assert sum(fitting.samples) + sum(held.samples) == len(X)
    assert len(held.samples) == held.batch_count


def test_parts_of_batches_that_cannot_be_divided(tmp_path: Path) -> None:
    path = small_model(tmp_path / "in.onnx")
    graph, kind = load(path, None, {"x": (2, 3, 16, 16)})
    fitting, held = calibrated(graph, kind, X).split(3)
    assert (fitting.samples, held.samples) == ([0, 0, 0], [0, 0])
    (second,) = next(iter(held.stream(graph, [graph.inputs[0]])))
    assert np.array_equal(second, X[2:4])
    with pytest.raises(UsageError, match="5 batches are too few to judge with some of them"):
        calibrated(graph, kind, X).split(20)
    for given, text in ((X[:2], "1 batch is too few"), (X[:4], "2 batches are too few")):
        with pytest.raises(UsageError, match=text):
            calibrated(graph, kind, given).split(8)
    graph, kind = load(path)
    with pytest.raises(UsageError, match=r"1 sample is too few .* at least 5 are needed"):
        calibrated(graph, kind, X[:1]).split(8)

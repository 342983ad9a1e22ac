"""Recovery of ONNX files in Q/DQ form: what is trained is what integer kernels compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from graphshrink import UsageError, recover_file, shrink
from graphshrink.readers import HostReaders
from graphshrink.targets.onnx.emitter import to_onnx
from graphshrink.targets.torch.trainable import Trainable
from graphshrink.training.recovery.fake_quantization import make_differentiable, rounded
from support.cli import succeeds


class Net(nn.Module):
    """A convolutional network with every form of weight: full, depthwise, dense."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
            nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip
        for p in self.parameters():
            nn.init.normal_(p, std=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


SAMPLES = np.random.default_rng(0).standard_normal((400, 2, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``float.onnx``, ``sparse.onnx`` and ``int8.onnx``, the sparse one quantised."""
    folder = tmp_path_factory.mktemp("files")
    shrink(Net().eval(), "default", example_inputs=(torch.from_numpy(SAMPLES[:2]),)).save(
        folder / "float.onnx"
    )
    shrink(folder / "float.onnx", "sparsify{sparsity=0.4}").save(folder / "sparse.onnx")
    shrink(folder / "sparse.onnx", "quantize", calibration=SAMPLES).save(folder / "int8.onnx")
    return folder


def run(path: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The first output in onnxruntime, with the kernels that the graph states, not fused ones."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = path if isinstance(path, str | Path) else path.SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return {n: a for n, a in stored.items() if a.dtype == np.int8 and a.ndim > 1}


def test_what_is_trained_is_what_the_file_computes(files: Path) -> None:
    graph = shrink(files / "int8.onnx", []).graph
    trainable = Trainable(graph, HostReaders())
    made = make_differentiable(trainable)
    assert not made.stopped
    assert not trainable.frozen
    assert len(made.names) == 4
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for name, p in trainable.module.named_parameters():
            if name in made.names.values():
                p.mul_(torch.from_numpy(rng.uniform(0.7, 1.3, p.shape).astype(np.float32)))
    from graphshrink.targets.onnx.emitter import to_onnx

    written = to_onnx(trainable.trained())
    with torch.no_grad():
        got = trainable.module(torch.from_numpy(SAMPLES)).numpy()
    wanted = run(written, SAMPLES)
    # Sums in another order may fall on the other side of a half; a step of an activation is about 0.02 of the outputs' range.
    assert np.mean(np.abs(got - wanted) > 1e-4 * np.abs(wanted).max()) < 0.05
    changed = weights(files / "int8.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    assert all(not np.array_equal(stored[n], a) for n, a in changed.items())
    assert all(np.array_equal(stored[n] == 0, a == 0) for n, a in changed.items())


def test_the_unchanged_module_gives_the_same_bytes(files: Path) -> None:
    from graphshrink.targets.onnx.emitter import to_onnx

    trainable = Trainable(shrink(files / "int8.onnx", []).graph, HostReaders())
    make_differentiable(trainable)
    made = to_onnx(trainable.trained()).SerializeToString(deterministic=True)
    assert made == onnx.load(files / "int8.onnx").SerializeToString(deterministic=True)


@pytest.mark.parametrize("quantize", [False, True, "quantize{method=mse}"])
def test_training_helps_and_sparsity_stays(
    files: Path, quantize: bool | str, tmp_path: Path
) -> None:
    student = files / ("sparse.onnx" if quantize else "int8.onnx")
    done = recover_file(
        student,
        files / "float.onnx",
        SAMPLES,
        epochs=4,
        quantize=quantize,
        augment=False,
        lr=0.01,
        feature_weight=0.0,
        progress=False,
    )
    assert done.improved
    assert done.after.loss < 0.9 * done.before.loss
    done.save(tmp_path / "out.onnx")
    sparse = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(files / "sparse.onnx").graph.initializer
    }
    found = weights(tmp_path / "out.onnx")
    assert len(found) == 4
    for name, array in found.items():
        mask = sparse[name.removesuffix(".int8")]
        mask = mask if mask.shape == array.shape else mask.T
        assert not array[mask == 0].any()
        largest = np.sort(np.abs(array.astype(int)).reshape(len(array), -1), axis=1)[:, -2:]
        assert (largest.sum(1) <= 128).all()
    if quantize:
        # What only rounding made zero may grow again.
        assert done.before.loss > 0


def test_rounding_has_the_gradient_of_clipping() -> None:
    x = torch.tensor([-5.0, -0.26, 0.25, 0.1, 9.0], dtype=torch.float64, requires_grad=True)
    made = rounded(x, torch.tensor(0.5), torch.tensor(-2.0), torch.tensor(3.0))
    wanted = torch.fake_quantize_per_tensor_affine(x.detach().float(), 0.5, 0, -2, 3)
    torch.testing.assert_close(made.detach().float(), wanted)
    made.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_integers_that_something_else_reads_are_named(files: Path, tmp_path: Path) -> None:
    model = onnx.load(files / "int8.onnx")
    quantized = next(n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear")
    model.graph.node.append(helper.make_node("Cast", [quantized], ["seen"], to=TensorProto.FLOAT))
    model.graph.node.append(helper.make_node("ReduceMax", ["seen"], ["most"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("most", TensorProto.FLOAT, []))
    teacher = onnx.load(files / "float.onnx")
    name = teacher.graph.input[0].name
    teacher.graph.node.append(helper.make_node("ReduceMax", [name], ["most"], keepdims=0))
    teacher.graph.output.append(helper.make_tensor_value_info("most", TensorProto.FLOAT, []))
    done = recover_file(model, teacher, SAMPLES, epochs=1, measure="error", progress=False)
    assert any("learns from other paths alone" in note for note in done.notes)


def test_what_cannot_be_quantised_again(files: Path) -> None:
    with pytest.raises(UsageError, match="quantised already: leave out quantize"):
        recover_file(files / "int8.onnx", files / "float.onnx", SAMPLES, quantize=True)
    with pytest.raises(UsageError, match="quantise nothing: quantize must be one of them"):
        recover_file(files / "sparse.onnx", files / "float.onnx", SAMPLES, quantize="prune-dead")


def test_integer_kernels_are_refused(files: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(files / "int8.onnx", options, providers=["CPUExecutionProvider"])
    with pytest.raises(
        UsageError, match=r"computes with integers in .*QuantizeLinear and Dequantize"
    ):
        recover_file(tmp_path / "fused.onnx", files / "float.onnx", SAMPLES)


def test_the_command(files: Path, tmp_path: Path) -> None:
    name = onnx.load(files / "float.onnx").graph.input[0].name
    np.savez(tmp_path / "samples.npz", **{name: SAMPLES})
    succeeds(
        "recover", files / "sparse.onnx", "--teacher", files / "float.onnx", "--data",
        tmp_path / "samples.npz", "--epochs", "1", "--quantize", "quantize", "-o", tmp_path / "out.onnx",
    )  # fmt: skip
    assert len(weights(tmp_path / "out.onnx")) == 4


@pytest.mark.parametrize("scales", [[0.1], [0.1, 0.2, 0.3]])
def test_integers_at_the_end_of_their_range_stay(scales: list[float]) -> None:
    stored = np.array([[-128, 127, 3, 0], [5, -7, 127, 1], [2, -128, 0, 9]], np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0),
            helper.make_node("Gemm", ["x", "d"], ["y"], transB=1),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(stored, "w"),
            numpy_helper.from_array(np.array(scales if len(scales) > 1 else scales[0], np.float32), "s"),
            numpy_helper.from_array(np.zeros(3 if len(scales) > 1 else (), np.int8), "z"),
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    trainable = Trainable(shrink(model, []).graph, HostReaders())
    assert not trainable.frozen
    make_differentiable(trainable)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    made = trainable.module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(made, run(model, x), atol=1e-4)
    (kept,) = (
        numpy_helper.to_array(t)
        for t in to_onnx(trainable.trained()).graph.initializer
        if t.name == "w"
    )
    np.testing.assert_array_equal(kept, stored)


def test_scales_of_activations_are_not_trained() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["q"], to=TensorProto.INT8),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"], axis=1),
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0),
            helper.make_node("MatMul", ["a", "d"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(np.arange(9, dtype=np.int8).reshape(3, 3), "w"),
            numpy_helper.from_array(np.array([0.1, 0.2, 0.3], np.float32), "s"),
            numpy_helper.from_array(np.zeros(3, np.int8), "z"),
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    trainable = Trainable(shrink(model, []).graph, HostReaders())
    assert not trainable.frozen
    trained = [n for n, p in trainable.module.named_parameters() if p.requires_grad]
    assert trained == list(trainable.steps)
    assert len(trained) == 1


def test_names_of_values_and_of_modules_may_be_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)).eval()
    x = torch.randn(64, 5, 8)
    shrink(net, "default", example_inputs=(x[:2],)).save(tmp_path / "net.onnx")
    file = tmp_path / "net.onnx"
    # The scale of the value 0_norm1 is in a module of this name; the value itself is of another one.
    done = recover_file(file, file, x.numpy(), epochs=1, lr=1e-4, quantize=True, progress=False)
    assert "features" in done.history[0]

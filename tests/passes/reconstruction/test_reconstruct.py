"""``reconstruct``: files and modules that come closer to their original, judged in onnxruntime and torch on other data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from graphshrink import PassError, UsageError, shrink
from graphshrink.ir import Gate, Graph, MaskedTensor, Rewriter
from graphshrink.nn import masks
from graphshrink.passes import Context, Pipeline
from graphshrink.passes.reconstruction.reconstruct import Reconstruct
from graphshrink.passes.statistics.errors import relative_error
from support.cli import fails, succeeds
from support.onnx_run import outputs_of

SIZE, WIDTH, CLASSES = 8, 16, 6
Arrays = dict[str, np.ndarray[Any, Any]]


def weights(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)

    def normal(*shape: int, fan: int = 1) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(shape) / fan**0.5).astype(np.float32)

    return {
        "first": normal(SIZE, WIDTH), "first.bias": normal(WIDTH), "up": normal(WIDTH, WIDTH, fan=WIDTH),
        "up.bias": normal(WIDTH), "down": normal(WIDTH, WIDTH, fan=WIDTH), "down.bias": normal(WIDTH),
        "head": normal(CLASSES, WIDTH, fan=WIDTH), "head.bias": normal(CLASSES),
    }  # fmt: skip


def nodes(output: str = "y") -> list[Any]:
    return [
        helper.make_node("MatMul", ["x", "first"], ["a"], "first"),
        helper.make_node("Add", ["a", "first.bias"], ["b"], "first_bias"),
        helper.make_node("Tanh", ["b"], ["c"], "tanh"),
        helper.make_node("MatMul", ["c", "up"], ["d"], "up"),
        helper.make_node("Add", ["d", "up.bias"], ["e"], "up_bias"),
        helper.make_node("Relu", ["e"], ["f"], "relu"),
        helper.make_node("MatMul", ["f", "down"], ["g"], "down"),
        helper.make_node("Add", ["g", "down.bias"], ["h"], "down_bias"),
        helper.make_node("Add", ["c", "h"], ["i"], "skip"),
        helper.make_node("Gemm", ["i", "head", "head.bias"], [output], "head", transB=1),
    ]


def network(
    path: Path,
    found: Arrays | None = None,
    made: list[Any] | None = None,
    outputs: tuple[str, int] = ("y", CLASSES),
) -> Path:
    """A residual block between two dense layers."""
    tensors = [numpy_helper.from_array(a, n) for n, a in (found or weights()).items()]
    graph = helper.make_graph(
        nodes(outputs[0]) if made is None else made, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZE])],
        [helper.make_tensor_value_info(outputs[0], TensorProto.FLOAT, ["n", outputs[1]])], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def samples(seed: int, count: int = 320) -> np.ndarray[Any, Any]:
    """Samples with 4 directions of large variance and some noise."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, 4)) @ np.random.default_rng(7).standard_normal((4, SIZE))
    return (mixed / 2 + 0.2 * rng.standard_normal((count, SIZE))).astype(np.float32)


def holds(weight: Any, axis: int) -> bool:
    """At most 2 of every 4 numbers along an axis are nonzero."""
    rows = np.moveaxis(np.asarray(weight), axis, -1).reshape(-1, 4)
    return all(np.count_nonzero(row) <= 2 for row in rows)


def error(model: Any, given: Any) -> float:
    """The relative squared error of the outputs on samples that nothing was fitted to."""
    x = {"x": samples(99)}
    made, wanted = outputs_of(model, x)[0], outputs_of(given, x)[0]
    return float(np.square(made - wanted).mean() / wanted.var())


def initializers(model: Any) -> Arrays:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("method", ["closed-form", "adam", "both"])
def test_sparse_files_come_closer_and_keep_pattern_and_nodes(tmp_path: Path, method: str) -> None:
    given = network(tmp_path / "in.onnx")
    data = samples(1)
    sparse = shrink(given, "sparsify", calibration=data)
    text = f"sparsify,reconstruct{{method={method},steps=60}}"
    done = shrink(given, text, calibration=data, check=True)
    before, after = error(sparse.model, given), error(done.model, given)
    assert after < (0.8 if method == "adam" else 0.5) * before
    assert [n.op_type for n in done.model.graph.node] == [
        n.op_type for n in sparse.model.graph.node
    ]
    own, old = initializers(done.model), initializers(sparse.model)
    assert len(own) == len(old)
    for a, b in zip(own.values(), old.values(), strict=True):
        assert a.shape == b.shape
        if a.ndim == 2:
            assert holds(a, axis=1)
            assert np.array_equal(a == 0, b == 0)
    record = done.report.passes[-1]
    assert record.rewrites
    for made in record.rewrites:
        assert made.measures["error after"] < made.measures["error before"]
        assert made.measures["network after"] <= made.measures["network before"]


def test_a_layer_of_other_numbers_is_found_again_exactly(tmp_path: Path) -> None:
    given = network(tmp_path / "in.onnx")

    def shaken(graph: Graph, rw: Rewriter) -> None:
        from graphshrink.ir import ArrayTensor

        node = next(n for n in graph.nodes if n.name == "down")
        old = node.required(1).data
        assert old is not None
        moved = old.numpy() + np.random.default_rng(0).standard_normal(old.shape).astype("f4")
        rw.set_input(node, 1, rw.constant(ArrayTensor(moved), "moved"))

    done = shrink(
        given, [shaken, Reconstruct(method="closed-form", damping=1e-9)], calibration=samples(1)
    )
    assert error(shrink(given, [shaken]).model, given) > 0.1
    assert error(done.model, given) < 1e-8
    reasons = {r.node: r.reason for r in done.report.passes[-1].refusals}
    assert "gives what the original gave" in reasons["first"]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    given = network(tmp_path / "in.onnx")
    text = "sparsify,reconstruct{steps=10,method=adam}"
    one, two = (
        shrink(given, text, calibration=samples(1), seed=3).model.SerializeToString() for _ in "ab"
    )
    assert one == two


def test_a_given_reference_for_a_group_of_passes(tmp_path: Path) -> None:
    given, sparse, out = (tmp_path / name for name in ("in.onnx", "sparse.onnx", "o.onnx"))
    network(given)
    np.savez(tmp_path / "x.npz", x=samples(1))
    succeeds(given, sparse, "--passes", "sparsify")
    text = "repeat{reconstruct{method=closed-form}}"
    calibration = ("--calibration", tmp_path / "x.npz")
    succeeds(sparse, out, "--passes", text, *calibration, "--reference", given)
    assert error(out, given) < 0.6 * error(sparse, given)


def test_a_given_reference_for_a_file_that_is_sparse_already(tmp_path: Path) -> None:
    given, sparse, out = (
        network(tmp_path / "in.onnx"),
        tmp_path / "sparse.onnx",
        tmp_path / "o.onnx",
    )
    np.savez(tmp_path / "x.npz", x=samples(1))
    succeeds(given, sparse, "--passes", "sparsify")
    text = "reconstruct{method=closed-form}"
    common = ("--passes", text, "--calibration", tmp_path / "x.npz")
    told = fails(sparse, out, *common)
    assert "--reference FILE" in told
    succeeds(sparse, out, *common, "--reference", given)
    assert error(out, given) < 0.6 * error(sparse, given)
    for name, array in initializers(onnx.load(out)).items():
        if array.ndim == 2:
            assert holds(array, axis=1), name
    small = {**weights(), "head": weights()["head"][:4], "head.bias": weights()["head.bias"][:4]}
    other = network(tmp_path / "other.onnx", small, outputs=("z", 4))
    assert "has other outputs than the model: z, not y" in fails(
        sparse, out, *common, "--reference", other
    )
    told = fails(sparse, out, "--passes", "sparsify", "--reference", given)
    assert "there is none" in told


def test_refusals(tmp_path: Path) -> None:
    given = network(tmp_path / "in.onnx")
    with pytest.raises(PassError, match="needs calibration data"):
        shrink(given, "sparsify,reconstruct")
    with pytest.raises(PassError, match="needs a reference: no pass before it is approximate"):
        shrink(given, "prune-dead,reconstruct", calibration=samples(1))
    with pytest.raises(PassError, match="3 samples are too few"):
        shrink(given, "sparsify,reconstruct", calibration=samples(1, 3))
    broken = weights()
    broken["head"][0, 0] = np.nan
    mended = network(tmp_path / "nan.onnx", broken)
    with pytest.raises(PassError, match="output 'y' of the original is not finite everywhere"):
        shrink(mended, "sparsify{skip=head},reconstruct", calibration=samples(1))


def test_without_torch_the_closed_form_is_taken_and_training_refused(tmp_path: Path) -> None:
    from graphshrink.api import load
    from graphshrink.data.calibration import calibrated

    graph, kind = load(network(tmp_path / "in.onnx"))
    ctx = Context(calibration=calibrated(graph, kind, samples(1)))
    with pytest.raises(PassError, match="needs torch"):
        Pipeline("sparsify,reconstruct{method=adam}").run(graph.clone(), ctx)
    records = Pipeline("sparsify,reconstruct").run(graph, ctx)
    assert {r.what for r in records[-1].rewrites} == {"reconstruct by least squares"}


def test_layers_that_cannot_be_reconstructed_are_named(tmp_path: Path) -> None:
    made = nodes()
    made[5] = helper.make_node("Trilu", ["e", "k"], ["f"], "opaque", upper=0)
    given = network(tmp_path / "in.onnx", {**weights(), "k": np.array(99)}, made)
    done = shrink(given, "sparsify,reconstruct{method=closed-form}", calibration=samples(1))
    # Layers beside what is not understood are reconstructed one by one, not together.
    record = done.report.passes[-1]
    touched = [r.nodes for r in record.rewrites] + [(r.node,) for r in record.refusals]
    assert sorted(touched) == [("down",), ("first",), ("head",), ("up",)]
    assert len(record.rewrites) > 1


@pytest.mark.parametrize("count", [9, 64])
def test_samples_that_are_all_the_same_are_refused(tmp_path: Path, count: int) -> None:
    given, data = network(tmp_path / "in.onnx"), np.repeat(samples(1, 1), count, 0)
    with pytest.raises(PassError, match=f"the {count} samples are all the same"):
        shrink(given, "sparsify,reconstruct{method=closed-form}", calibration=data)


@pytest.mark.parametrize("found", [np.nan, np.inf])
def test_numbers_of_which_nothing_is_known_are_not_kept(
    found: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([0.5])
    monkeypatch.setattr(
        "graphshrink.passes.statistics.errors.NetworkError.__call__",
        lambda judge, graph: next(errors, found),
    )
    given = network(tmp_path / "in.onnx")
    done = shrink(given, "sparsify,reconstruct{method=closed-form}", calibration=samples(1))
    assert not done.report.passes[-1].rewrites
    reasons = [refusal.reason for refusal in done.report.passes[-1].refusals]
    assert any(f"would rise from 0.5 to {found:.4g}" in reason for reason in reasons)


def test_errors_without_a_finite_variance_are_infinite() -> None:
    wanted = np.array([1e200, -1e200])
    assert relative_error([(wanted, wanted)]) == np.inf


class Small(nn.Module):
    """Convolutions with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(8, 4)
        self.up, self.down = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.down(torch.relu(self.up(x))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    "passes",
    [
        "sparsify{lasting=true}",
        "prune-channels{ratio=0.5}",
        "insert-gates,remove-activations{names=relu_1}",
    ],
)
def test_torch_modules(passes: str) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    x, fresh = torch.randn(96, 4, 6, 6), torch.randn(64, 4, 6, 6)
    options: Any = {"example_inputs": (x[:2],), "calibration": x}
    plain = shrink(model, passes, **options).model
    done = shrink(model, f"{passes},reconstruct{{steps=40}}", **options)
    with torch.no_grad():
        before, after = ((m(fresh) - model(fresh)).square().mean() for m in (plain, done.model))
    assert after < before
    assert len(list(masks(done.model))) == len(list(masks(plain)))
    assert any(p.requires_grad for p in done.model.parameters())


def test_gates_keep_their_numbers() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4, 6, 6)
    graph = shrink(
        Small().eval(),
        "insert-gates,sparsify,reconstruct{steps=5}",
        example_inputs=(x[:2],),
        calibration=x,
    ).graph
    numbers = [n.inputs[1].data for n in graph.nodes if isinstance(n.op, Gate) and n.inputs[1]]
    assert numbers
    assert all(d is not None and float(d.float64().item()) == 1 for d in numbers)
    assert any(isinstance(v.data, MaskedTensor) for v in graph.constants if v.uses)


def test_options_are_checked() -> None:
    for text in ("reconstruct{steps=0}", "reconstruct{lr=0}", "reconstruct{method=magic}"):
        with pytest.raises(PassError):
            Pipeline(text)
    with pytest.raises(UsageError, match="reference is for passes"):
        shrink(Small().eval(), "prune-dead", reference=Small())

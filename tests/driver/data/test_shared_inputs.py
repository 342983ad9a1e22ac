"""Inputs without an axis of samples, such as a sampling rate or a first state: their arrays hold for all samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphshrink import CalibrationData, UsageError, plan, recover_file, shrink
from graphshrink.api import load
from graphshrink.data.calibration import calibrated
from graphshrink.data.sources import shared_arrays
from graphshrink.data.unlabelled import read_unlabelled
from graphshrink.ir import DType, TensorType
from graphshrink.planning.samples import read_samples
from support.cli import succeeds, write
from support.onnx_run import outputs_of

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 8)).astype(np.float32)
RATE = np.array(0.5, np.float32)
SCALES = np.array([1, 2, 3], np.float32)


def network(path: Path, **more: list[Any]) -> Path:
    """Two dense layers, whose result is multiplied by a scalar and by the sum of three scales."""
    w = [RNG.standard_normal(shape).astype(np.float32) / 3 for shape in ((8, 32), (32, 8))]
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w1"], ["c"]),
        helper.make_node("Mul", ["c", "rate"], ["d"]),
        helper.make_node("ReduceSum", ["scales"], ["s"], keepdims=0),
        helper.make_node("Mul", ["d", "s"], ["y"]),
    ]
    inputs = {"rate": [], "x": ["n", 8], "scales": [3]} | more
    tensors = [numpy_helper.from_array(a, f"w{i}") for i, a in enumerate(w)]
    return write(path, nodes, inputs, {"y": ["n", 8]}, tensors)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return network(tmp_path / "in.onnx")


ARRAYS = {"x": X, "rate": RATE, "scales": SCALES}


def batches(model: Path, data: Any) -> list[dict[str, Any]]:
    graph = load(model)[0]
    bound = calibrated(graph, "onnx", data)
    names = [v.name for v in graph.inputs]
    return [dict(zip(names, batch, strict=True)) for batch in bound.batches()]


def test_which_arrays_hold_for_all_samples() -> None:
    f32 = DType.F32
    types = [TensorType(f32, ()), TensorType(f32, ("n", 8)), TensorType(f32, (3,)), TensorType(f32, (1, 4)), TensorType(f32)]  # fmt: skip
    found = shared_arrays(types, [(), (5, 8), (3,), (1, 4), (7, 3)])
    assert found == (True, False, True, True, False)
    # As many rows as samples: an axis of samples.
    assert shared_arrays(types[1:3], [(5, 8), (5,)]) == (False, False)
    # All first sizes are fixed: what has more rows has samples, and if nothing has, all is one batch.
    assert shared_arrays(types[2:4], [(3,), (5, 4)]) == (True, False)
    assert shared_arrays(types[2:4], [(3,), (1, 4)]) == (True, True)
    assert shared_arrays(types[3:4] * 2, [(1, 4), (1, 4)]) == (False, False)
    assert shared_arrays(types[3:4], [(1, 4)]) == (False,)


@pytest.mark.parametrize("form", ["arrays", "npz", "batches"])
def test_every_batch_has_them(form: str, model: Path, tmp_path: Path) -> None:
    data: Any = CalibrationData(ARRAYS, batch_size=16)
    if form == "npz":
        np.savez(tmp_path / "samples.npz", **ARRAYS)
        data = CalibrationData(tmp_path / "samples.npz", batch_size=16)
    if form == "batches":
        data = [{**ARRAYS, "x": X[i : i + 16]} for i in range(0, 40, 16)]
    got = batches(model, data)
    assert [len(b["x"]) for b in got] == [16, 16, 8]
    fixed = load(model, None, {"x": (2, 8)})[0]
    bound = calibrated(fixed, "onnx", ARRAYS)
    assert [b[1].shape for b in bound.batches()] == [(2, 8)] * 20
    assert all(b[2].shape == (3,) for b in bound.batches())
    (whole,) = calibrated(fixed, "onnx", {**ARRAYS, "x": X[:2]}).batches()
    assert [a.shape for a in whole] == [(), (2, 8), (3,)]
    for batch in got:
        assert batch["rate"].shape == ()
        np.testing.assert_array_equal(batch["scales"], SCALES)
        outputs_of(onnx.load(model), batch)
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in got]), X)
    limited = batches(model, CalibrationData(ARRAYS, samples=10))
    assert [len(b["x"]) for b in limited] == [10]


def test_files_with_other_values_are_batches_of_their_own(model: Path, tmp_path: Path) -> None:
    for name in ARRAYS:
        (tmp_path / "data" / name).mkdir(parents=True)
    for i in range(4):
        np.save(tmp_path / "data/x" / f"{i}.npy", X[4 * i : 4 * i + 4])
        np.save(tmp_path / "data/rate" / f"{i}.npy", np.float32(i // 2))
        np.save(tmp_path / "data/scales" / f"{i}.npy", SCALES)
    got = batches(model, tmp_path / "data")
    assert [(len(b["x"]), float(b["rate"])) for b in got] == [(8, 0.0), (8, 1.0)]
    held = read_unlabelled(load(model)[0], tmp_path / "data")
    rates = [float(batch[0]) for batch in held.held_batches(8)]
    assert sorted(set(rates)) == [0.0, 1.0]


def test_parts_plans_and_recovery(model: Path, tmp_path: Path) -> None:
    graph = load(model)[0]
    fitting, held = calibrated(graph, "onnx", ARRAYS).split(4)
    rows = [part.samples for part in (fitting, held)]
    assert [sum(r) for r in rows] == [30, 10]
    samples = read_samples(graph, ARRAYS)
    assert samples.count == 40
    assert all(batch[0].shape == () for batch in (*samples.fitting, *samples.scoring))
    made = plan(model, ARRAYS, macs=0.9, score="mse").apply()
    np.savez(tmp_path / "samples.npz", **ARRAYS)
    made.save(tmp_path / "small.onnx")
    done = recover_file(tmp_path / "small.onnx", model, str(tmp_path / "samples.npz"), epochs=1)
    done.save(tmp_path / "out.onnx")
    feeds = {**ARRAYS, "x": X[:4]}
    (wanted,), (got,) = (
        outputs_of(onnx.load(tmp_path / f), feeds) for f in ("in.onnx", "out.onnx")
    )
    assert got.shape == wanted.shape == (4, 8)


def test_passes_with_calibration(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", **ARRAYS)
    out = tmp_path / "out.onnx"
    succeeds(model, out, "--passes", "default,quantize", "--calibration", tmp_path / "samples.npz")
    feeds = {**ARRAYS, "x": X}
    (wanted,), (got,) = (outputs_of(onnx.load(p), feeds) for p in (model, out))
    assert np.square(wanted - got).mean() < 0.01 * wanted.var()


def recurrent(path: Path) -> Path:
    """An LSTM with first states, whose batch is their second axis."""
    lstm = {
        "w": RNG.standard_normal((1, 16, 8)),
        "r": RNG.standard_normal((1, 16, 4)),
    }
    nodes = [helper.make_node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["y"], hidden_size=4)]
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in lstm.items()]
    nodes.insert(0, helper.make_node("Transpose", ["z"], ["x"], perm=[1, 0, 2]))
    inputs: dict[str, Any] = {"z": ["n", "t", 8], "h": [1, "n", 4], "c": [1, "n", 4]}
    return write(path, nodes, inputs, {"y": ["t", 1, "n", 4]}, tensors)


def test_a_first_state_fixes_the_batch(tmp_path: Path) -> None:
    path = recurrent(tmp_path / "lstm.onnx")
    z, state = X.reshape(20, 2, 8), np.zeros((1, 2, 4), np.float32)
    got = batches(path, {"z": z, "h": state, "c": state})
    assert [b["z"].shape[0] for b in got] == [2] * 10
    for batch in got:
        outputs_of(onnx.load(path), batch)


def test_batches_with_a_first_state_are_not_divided(tmp_path: Path) -> None:
    path = recurrent(tmp_path / "lstm.onnx")
    graph = load(path)[0]
    state = np.zeros((1, 4, 4), np.float32)
    given = [{"z": z, "h": state, "c": state} for z in X.reshape(10, 4, 1, 8)]
    for data in (given, {"z": X[:, None], "h": state, "c": state}):
        samples = read_samples(graph, data)
        assert samples.count == 40
        parts = calibrated(graph, "onnx", data).split(4)
        for part in (*parts, *samples.statistics(graph).split(4)):
            for z, h, _ in part.batches():
                assert (z.shape, h.shape) == ((4, 1, 8), (1, 4, 4))
            assert list(part.stream(graph, graph.outputs))
    few = batches(path, CalibrationData(given, samples=6))
    assert [len(b["z"]) for b in few] == [4, 4]
    with pytest.raises(UsageError, match="recovery needs inputs whose first axes are the samples"):
        read_unlabelled(graph, given)


@pytest.mark.parametrize("rows", [0, 16])
def test_files_for_a_fixed_batch(rows: int, tmp_path: Path) -> None:
    path = network(tmp_path / "in.onnx", x=[8, 8], scales=[1])
    for name in ARRAYS:
        (tmp_path / "data" / name).mkdir(parents=True)
    shape = (rows, 8) if rows else (8,)
    for i in range(640 // math.prod(shape)):
        np.save(tmp_path / "data/x" / f"{i}.npy", RNG.standard_normal(shape).astype(np.float32))
        np.save(tmp_path / "data/rate" / f"{i}.npy", RATE)
        np.save(tmp_path / "data/scales" / f"{i}.npy", SCALES[:1])
    got = batches(path, tmp_path / "data")
    assert [b["x"].shape for b in got] == [(8, 8)] * 10
    outputs_of(onnx.load(path), got[-1])
    if not rows:
        half = batches(path, CalibrationData(tmp_path / "data", samples=40))
        assert [b["x"].shape for b in half] == [(8, 8)] * 5


def test_whole_batches_count_by_their_samples(tmp_path: Path) -> None:
    path = network(tmp_path / "in.onnx", x=[8, 8], scales=[1])
    given = [{"x": x, "rate": RATE, "scales": SCALES[:1]} for x in X.reshape(5, 8, 8)]
    few = batches(path, CalibrationData(given, samples=20))
    assert [b["x"].shape for b in few] == [(8, 8)] * 3
    no_scalar = write(
        tmp_path / "two.onnx",
        [helper.make_node("Mul", ["x", "k"], ["y"])],
        {"x": [8, 8], "k": [1]},
        {"y": [8, 8]},
        [],
    )
    pairs = [{"x": x, "k": SCALES[:1]} for x in X.reshape(5, 8, 8)]
    assert read_samples(load(no_scalar)[0], pairs).count == 40


def test_missing_rows_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Mul", ["a", "b"], ["y"])
    path = write(tmp_path / "in.onnx", [node], {"a": [4, 8], "b": [4, 8]}, {"y": [4, 8]}, [])
    with pytest.raises(UsageError, match="numbers of samples differ: 40 for 'a', 4 for 'b'"):
        shrink(path, "", calibration={"a": X, "b": X[:4]})


def test_torch_modules_with_a_first_state() -> None:
    torch = pytest.importorskip("torch")

    class Stateful(torch.nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(8, 4, batch_first=True)

        def forward(self, x: Any, h: Any, c: Any) -> Any:
            return self.lstm(x, (h, c))[0]

    x, state = torch.from_numpy(X)[:, None], torch.zeros(1, 4, 4)
    example = (x[:2], state[:, :2], state[:, :2])
    graph = shrink(Stateful().eval(), "", example_inputs=example).graph
    given = [(x[i : i + 4], state, state) for i in range(0, 40, 4)]
    for data in (given, {"x": x, "h": state, "c": state}):
        for part in calibrated(graph, "fx", data).split(4):
            assert next(iter(part.batches()))[0].shape == (4, 1, 8)
            assert list(part.stream(graph, graph.outputs))


def test_a_mask_of_a_torch_module_does_not_fix_the_batch() -> None:
    torch = pytest.importorskip("torch")

    class Masked(torch.nn.Module):  # type: ignore[name-defined,misc]
        def forward(self, x: Any, mask: Any) -> Any:
            return x * mask

    x, mask = torch.from_numpy(X)[:, None], torch.ones(1, 1, 8)
    graph = shrink(Masked(), "", example_inputs=(x[:1], mask)).graph
    bound = calibrated(graph, "fx", CalibrationData({"x": x, "mask": mask}, batch_size=16))
    assert [len(b[0]) for b in bound.batches()] == [16, 16, 8]
    assert [len(b[0]) for b in bound.split(4)[1].batches()] == [4, 4, 2]


def test_without_any_axis_of_samples(tmp_path: Path) -> None:
    node = helper.make_node("Mul", ["a", "b"], ["y"])
    path = write(tmp_path / "in.onnx", [node], {"a": [], "b": []}, {"y": []}, [])
    with pytest.raises(UsageError, match="no array has an axis of samples"):
        shrink(path, "", calibration={"a": RATE, "b": RATE})
    three = network(tmp_path / "three.onnx")
    with pytest.raises(
        UsageError, match=r"numbers of samples differ: 40 for 'x', 5 for 'scales'; .* whole batches"
    ):
        shrink(three, "", calibration={**ARRAYS, "scales": np.ones(5, np.float32)})


def test_float64_scalars_are_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="input 'rate' takes float32, not float64"):
        shrink(model, "", calibration={**ARRAYS, "rate": 0.5})

"""What cannot be planned: each is one line with the thing and the remedy, and no file is made."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from graphshrink.planning.latency import store
from support.cli import fails, succeeds, write
from support.small_networks import residual_model

SHAPE = (64, 1, 6, 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return residual_model(tmp_path_factory.mktemp("model") / "m.onnx")


def _samples(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def _refused(model: Path, folder: Path, *options: Any) -> str:
    plan = folder / "p.json"
    line = fails("plan", model, "-o", plan, *options)
    assert not plan.exists()
    return line


_NORMAL = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"y": _NORMAL}, r"\bx\b"),
        ({"x": _NORMAL[:, :, :5]}, r"'x' takes .*, not \d+x1x5x6"),
        ({"x": _NORMAL[:, 0]}, r"'x' takes .*1, 6, 6.*, not \d+x6x6"),
        ({"x": _NORMAL.astype(np.float64)}, r"takes float32, not float64; convert it"),
        ({"x": _NORMAL * np.inf}, "NaN or infinite"),
        ({"x": _NORMAL[:20]}, "have 20 samples; the planner needs at least 32"),
        (
            {"x": _NORMAL[:1].repeat(64, 0)},
            "64 samples are all the same, so that a loss says nothing",
        ),
        ({"x": _NORMAL * 0}, "samples are all the same"),
        ({"x": _NORMAL[:0]}, r"no samples|without elements|0 samples"),
        ({"x": _NORMAL, "z": _NORMAL}, r"\bz\b"),
    ],
)
def test_samples_that_do_not_fit(
    model: Path, tmp_path: Path, arrays: dict[str, Any], expected: str
) -> None:
    data = _samples(tmp_path / "d.npz", **arrays)
    line = _refused(model, tmp_path, "--macs", "0.5", "--calibration", data)
    assert re.search(expected, line), line


@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_a_model_whose_outputs_are_not_finite(model: Path, tmp_path: Path, number: float) -> None:
    damaged = onnx.load(model)
    last = damaged.graph.initializer[-1]
    array = numpy_helper.to_array(last).copy()
    array.reshape(-1)[0] = number
    last.CopyFrom(numpy_helper.from_array(array, last.name))
    path = tmp_path / "damaged.onnx"
    onnx.save(damaged, path)
    (output,) = onnxruntime.InferenceSession(path).run(None, {"x": _NORMAL})
    assert not np.isfinite(output).all()
    data = _samples(tmp_path / "d.npz", x=_NORMAL)
    line = _refused(path, tmp_path, "--macs", "0.5", "--calibration", data)
    assert "has numbers that are not finite on the samples, so that no loss can be measured" in line


def test_too_few_batches_of_a_fixed_size(model: Path, tmp_path: Path) -> None:
    data = _samples(tmp_path / "d.npz", x=_NORMAL[:39])
    fixed = ("--fix-shape", "x:13x1x6x6")
    line = _refused(model, tmp_path, "--macs", "0.5", "--calibration", data, *fixed)
    assert "batch is fixed, and the calibration data have 3 batches" in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--macs", "0.0001"), r"macs 0.0001 cannot be reached: the best is \S+ MACs instead of"),
        (("--size", "10B"), r"size 10 cannot be reached: the best is \S+ bytes instead of"),
        (("--speedup", "5000"), r"speedup 5000 cannot be reached: the best is \S+ ms instead of"),
        (("--latency", "0.0000001ms"), r"latency 1e-07 cannot be reached: the best is \S+ ms"),
    ],
)
def test_targets_out_of_reach_name_the_best(
    model: Path, tmp_path: Path, options: tuple[str, str], expected: str
) -> None:
    data = _samples(tmp_path / "d.npz", x=_NORMAL)
    line = _refused(model, tmp_path, *options, "--calibration", data)
    assert re.search(rf"{expected}.*, (a speedup of \d|\S+ of it$)", line), line


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("abacus", "devices are ort-cpu"),
        ("torch-cuda", "needs a GPU"),
        ("tensorrt", "pip install tensorrt"),
    ],
)
def test_devices_that_are_missing(model: Path, tmp_path: Path, name: str, expected: str) -> None:
    if name != "abacus":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    data = _samples(tmp_path / "d.npz", x=_NORMAL)
    options = ("--speedup", "1.2", "--device", name, "--calibration", data)
    assert expected in _refused(model, tmp_path, *options)


def test_nothing_to_replace_says_why(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    plain = write(tmp_path / "m.onnx", nodes, {"x": [1, 4]}, {"y": [1, 4]}, [])
    data = _samples(tmp_path / "d.npz", x=_NORMAL.reshape(-1, 4))
    line = _refused(plain, tmp_path, "--macs", "0.5", "--calibration", data)
    assert "nothing to replace that would save anything" in line


def test_a_table_that_another_process_holds(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "t.sqlite"
    monkeypatch.setenv("GRAPHSHRINK_LATENCY_DB", str(table))
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.2)
    monkeypatch.setattr(store, "EXCLUSIVE_SECONDS", 0.2)
    data = _samples(tmp_path / "d.npz", x=_NORMAL)
    options = ("--speedup", "1.2", "--calibration", data)
    store.Store(table).rows()
    for path, expected in (
        (table, "is locked by another process: wait for it or end it"),
        (tmp_path / "t.sqlite.cpu.lock", "is held by another process that times on this cpu"),
    ):
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        try:
            line = _refused(model, tmp_path, *options)
        finally:
            holder.close()
        assert expected in line
        assert str(path) in line


def test_a_table_that_is_locked_in_the_middle_keeps_no_more_scores(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphshrink.planning.kept_scores import KeptScores

    table = tmp_path / "t.sqlite"
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.2)
    kept = KeptScores(["settings"], store.Store(table))
    assert kept.loss("alone", ["a"], lambda: 1.5) == 1.5
    holder = sqlite3.connect(table, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert kept.loss("alone", ["b"], lambda: 2.5) == 2.5
    assert kept.loss("alone", ["c"], lambda: 3.5) == 3.5
    holder.close()
    assert "scores are not kept" in kept.problem
    assert "locked" in kept.problem
    # They are known for the rest of the run, and the first one for the next run.
    refuse: Any = None
    assert kept.loss("alone", ["b"], refuse) == 2.5
    assert KeptScores(["settings"], store.Store(table)).loss("alone", ["a"], refuse) == 1.5
    data = _samples(tmp_path / "d.npz", x=_NORMAL)
    succeeds("plan", model, "-o", tmp_path / "p.json", "--macs", "0.6", "--calibration", data)


def test_a_plan_with_odd_labels_is_refused(model: Path, tmp_path: Path) -> None:
    data = _samples(tmp_path / "d.npz", x=_NORMAL)
    plan, out = tmp_path / "p.json", tmp_path / "o.onnx"
    succeeds("plan", model, "-o", plan, "--macs", "0.6", "--calibration", data)
    made = json.loads(plan.read_text())
    site = made["sites"][0]
    own = site["candidate"].split(" at ")[0]
    for label in ("at nan", "at 1e+09", "at -3", "at 0"):
        site["candidate"] = f"{own} {label}"
        plan.write_text(json.dumps(made))
        assert f"has no candidate '{own} {label}': plan anew" in fails(model, out, "--plan", plan)
    site["candidate"] = own
    for key, value in (("fixed_shapes", [1]), ("sites", [site, site])):
        plan.write_text(json.dumps({**made, key: value}))
        assert "is not a plan" in fails(model, out, "--plan", plan)
    repair = {"layer": "gone", "kind": "refit 0.03", "amount": 1.0}
    plan.write_text(json.dumps({**made, "repairs": [repair]}))
    assert "corrects layer 'gone'" in fails(model, out, "--plan", plan)
    assert not out.exists()

"""The command ``bench``: what it times, shows, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from graphshrink.planning.latency import LatencyTable
from graphshrink.planning.latency.timing import ratio
from support.cli import call, fails, small_model, succeeds, write

SHAPE = ("--fix-shape", "x:1x3x16x16")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHSHRINK_LATENCY_DB", str(tmp_path / "t.sqlite"))
    return small_model(tmp_path / "in.onnx")


def test_equal_ops_are_timed_once_and_counted(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((4, 4, 3, 3)).astype(np.float32), f"w{i}")
        for i in range(3)
    ]
    nodes = []
    for i in range(3):
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"x{i + 1}"]))
    shape = {"x0": (1, 4, 8, 8)}
    path = write(tmp_path / "three.onnx", nodes, shape, {"x3": (1, 4, 8, 8)}, weights)
    found = json.loads(succeeds("bench", path, "--json"))
    (op,) = found["ops"]
    assert (op["op"], op["count"], op["share"]) == ("Conv + relu", 3, 1.0)
    assert found["sum"] == pytest.approx(3 * op["milliseconds"])
    assert found["additivity"] == pytest.approx(found["whole"]["milliseconds"] / found["sum"])
    # The second run reads all figures from the table.
    assert json.loads(succeeds("bench", path, "--json")) == found
    rows = json.loads(succeeds("bench", "--show", "--json"))
    assert {row["milliseconds"] for row in rows} == {
        op["milliseconds"],
        found["whole"]["milliseconds"],
    }


def test_tables_are_shown_and_cleared(model: Path) -> None:
    out = succeeds("bench", model, *SHAPE)
    assert "additivity factor" in out
    assert "silu" in out
    assert "4 measurements in" in succeeds("bench", "--show")
    assert "0 measurements removed" in succeeds("bench", "--clear", "--device", "torch-cpu")
    assert "4 measurements removed" in succeeds("bench", "--clear")
    assert json.loads(succeeds("bench", "--show", "--json")) == []


def test_an_op_that_the_device_refuses_is_a_note(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Erf", ["r"], ["e"]),
        helper.make_node("TopK", ["e", "k"], ["y", "i"], sorted=0),
    ]
    k = numpy_helper.from_array(np.array([2], np.int64), "k")
    path = write(tmp_path / "odd.onnx", nodes, {"x": (2, 4)}, {"y": (2, 2)}, [k])
    found = json.loads(succeeds("bench", path, "--device", "litert-cpu", "--json"))
    assert "relu" in {op["op"] for op in found["ops"]}
    assert any("TopK" in note for note in found["notes"])
    assert found["whole"] is None


def test_an_interrupt_keeps_what_was_measured(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = iter(range(9))

    def interrupted(*arguments: object) -> object:
        if next(turns) == 2:
            raise KeyboardInterrupt
        return ratio(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("graphshrink.planning.latency.table.ratio", interrupted)
    monkeypatch.setattr("os._exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    done = call("bench", model, *SHAPE)
    assert done.code == 130
    assert "2 of 3 measurements (ops) are kept in" in done.err
    assert "2 measurements in" in succeeds("bench", "--show")
    monkeypatch.undo()


def test_wrong_use_is_one_line(model: Path, tmp_path: Path) -> None:
    assert "give one of" in fails("bench")
    assert "give one of" in fails("bench", model, "--show")
    assert "devices are" in fails("bench", "--clear", "--device", "abacus")
    assert "--fix-shape" in fails("bench", model)
    odd = tmp_path / "odd.sqlite"
    odd.write_text("not a database" * 500)
    assert str(odd) in fails("bench", "--show", "--table", odd)


def test_the_table_of_the_command_is_that_of_python(model: Path, tmp_path: Path) -> None:
    from graphshrink.api import load
    from graphshrink.planning.latency import device

    found = json.loads(succeeds("bench", model, *SHAPE, "--json"))
    graph, _ = load(str(model), None, {"x": (1, 3, 16, 16)})
    kept = LatencyTable(device("ort-cpu"), tmp_path / "t.sqlite").lookup(graph)
    assert kept is not None
    assert kept.milliseconds == found["whole"]["milliseconds"]

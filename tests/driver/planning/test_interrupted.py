"""Plans that are interrupted: what was measured and scored is kept, and the plan in the end is that of an unbroken run."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphshrink
from graphshrink.planning.costs import Latency, Macs
from graphshrink.planning.latency import LatencyTable, device
from graphshrink.planning.planner import Target, make_plan
from graphshrink.planning.quality import Prefix, Scorer
from support.cli import call, succeeds
from support.small_networks import residual_model

TABLE = "GRAPHSHRINK_LATENCY_DB"


@pytest.fixture
def given(tmp_path: Path) -> tuple[Path, Path]:
    """A small network of two residual blocks, and samples."""
    data = tmp_path / "d.npz"
    np.savez(data, x=np.random.default_rng(1).standard_normal((64, 1, 6, 6)).astype(np.float32))
    return residual_model(tmp_path / "m.onnx"), data


def _scores(path: Path) -> int:
    with sqlite3.connect(path) as database:
        return int(database.execute("SELECT count(*) FROM scores").fetchone()[0])


def test_ten_kills_and_the_same_bytes(given: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = given
    plan, table = tmp_path / "plan.json", tmp_path / "kept.sqlite"
    words = ["plan", model, "-o", plan, "--macs", "0.5", "--calibration", data]
    command = [sys.executable, "-m", "graphshrink", *map(str, words)]

    def start(table: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env={**os.environ, TABLE: str(table)}, cwd=tmp_path)

    begun = time.monotonic()
    assert start(tmp_path / "other.sqlite").wait(300) == 0
    whole = time.monotonic() - begun
    unbroken = plan.read_bytes()
    plan.unlink()

    draw, counts = random.Random(0), []
    for _ in range(10):
        process = start(table)
        try:
            process.wait(draw.uniform(0.3, 1) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        assert process.wait(60) in (0, -signal.SIGKILL)
        counts.append(_scores(table) if table.exists() and table.stat().st_size else 0)
        assert not plan.exists() or plan.read_bytes() == unbroken
    assert counts == sorted(counts)
    assert start(table).wait(300) == 0
    assert plan.read_bytes() == unbroken
    assert _scores(table) == _scores(tmp_path / "other.sqlite")


class _Stop(Exception):
    """In place of a kill."""


def test_latencies_and_scores_are_kept(
    given: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same table, a plan for a latency is the same whether it was interrupted or not."""
    table = tmp_path / "t.sqlite"
    monkeypatch.setenv(TABLE, str(table))
    model, data = given
    noise = np.random.default_rng()

    def paired(device: Any, graphs: Sequence[Any], rounds: int, *more: Any) -> list[list[float]]:
        """Whole networks on a device that is never equally fast, but faster for fewer MACs."""
        return [
            [m / 6e6 * noise.uniform(0.98, 1.02) for _ in range(rounds)]
            for m in Macs().networks(graphs)
        ]

    monkeypatch.setattr("graphshrink.planning.latency.paired", paired)

    def planned(stop: int = 0) -> str:
        cost = Latency(LatencyTable(device("ort-cpu"), table, seconds=0.02))
        calls = 0

        def progress(done: int, total: int, what: str) -> None:
            nonlocal calls
            calls += what not in ("reading", "fits")
            if calls == stop:
                raise _Stop

        made = make_plan(model, data, Target("max_loss", 0.5), cost, progress=progress)
        return made.to_json()

    for stop in (3, 12):
        with pytest.raises(_Stop):
            planned(stop)
    broken = planned()
    # The same latencies, and no scores.
    with sqlite3.connect(table) as database:
        database.execute("DELETE FROM scores")
    assert planned() == broken


def test_a_second_plan_scores_nothing_again(
    given: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TABLE, str(tmp_path / "t.sqlite"))
    first = graphshrink.plan(*given, macs=0.6, repair=False)

    def refuse(*_: Any) -> float:
        raise AssertionError("scored again")

    for scores in (Scorer, Prefix):
        monkeypatch.setattr(scores, "loss", refuse)
    assert graphshrink.plan(*given, macs=0.6, repair=False).to_json() == first.to_json()
    # Other samples, another way to compare, and a score of the user's own are scored anew.
    with np.load(given[1]) as held:
        samples = held["x"]
    with pytest.raises(AssertionError, match="scored again"):
        graphshrink.plan(given[0], {"x": samples[:40]}, macs=0.6)
    with pytest.raises(AssertionError, match="scored again"):
        graphshrink.plan(*given, macs=0.6, score="error")
    with pytest.raises(AssertionError, match="scored again"):
        graphshrink.plan(*given, macs=0.6, score=lambda a, b: float(abs(a[0] - b[0]).mean()))


@pytest.mark.parametrize("broken", ["text", "newer", "folder", "foreign"])
def test_without_its_file_a_plan_is_made_and_says_so(
    given: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    table = tmp_path / "t.sqlite"
    words = ("plan", given[0], "-o", tmp_path / "p.json", "--calibration", given[1])
    if broken == "text":
        table.write_text("no database" * 100)
    elif broken == "folder":
        table.mkdir()
    else:
        with sqlite3.connect(table) as database:
            if broken == "newer":
                database.execute("PRAGMA application_id = 1735609428")
            database.execute("PRAGMA user_version = 99")
    monkeypatch.setenv(TABLE, str(table))
    out = succeeds(*words, "--macs", "0.6", "--no-repair")
    assert "note: scores are not kept, so an interrupted run starts again" in out
    assert str(table) in out
    # What is timed needs the file: one line, before anything is scored.
    done = call(*words, "--speedup", "1.2")
    assert done.code == 2
    (line,) = done.err.splitlines()
    expected = {
        "text": "not a database", "newer": "upgrade graphshrink", "folder": str(table),
        "foreign": "another program",
    }  # fmt: skip
    assert expected[broken] in line


def test_a_file_of_the_first_version_gets_the_new_tables(tmp_path: Path) -> None:
    from graphshrink.planning.latency.store import Row, Store

    path = tmp_path / "t.sqlite"
    store = Store(path)
    store.add(Row("s", "ort-cpu", "text", 1.0, 0.1, 15))
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE scores")
        database.execute("DROP TABLE networks")
        database.execute("PRAGMA user_version = 1")
    assert store.find(["s"])["s"].milliseconds == 1.0
    store.add_score("plan", "key", float("inf"))
    store.add_networks("n", "ort-cpu", [0.1, 2 / 3])
    assert store.scores("plan") == {"key": float("inf")}
    assert store.networks("n") == [0.1, 2 / 3]
    assert store.networks("m") is None
    assert store.clear("ort-cpu") == 1
    assert store.networks("n") is None
    assert store.scores("plan")
    store.clear()
    assert not store.scores("plan")


def test_an_interrupt_says_how_to_go_on(
    given: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, plan = tmp_path / "t.sqlite", tmp_path / "p.json"
    words: Sequence[Any] = (
        "plan",
        given[0],
        "-o",
        plan,
        "--macs",
        "0.6",
        "--calibration",
        given[1],
    )
    code = (
        "import os, signal, sys\n"
        "from graphshrink.planning.quality import Scorer\n"
        "from graphshrink.cli import main\n"
        "real, left = Scorer.loss, [3]\n"
        "def loss(self, graph):\n"
        "    left[0] -= 1\n"
        "    if not left[0]: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(self, graph)\n"
        "Scorer.loss = loss\n"
        f"sys.argv = {['graphshrink', *map(str, words)]!r}\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, TABLE: str(table)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130
    assert f"is kept in {table}; the same command goes on from there" in done.stderr
    assert done.stderr.splitlines()[-1] == "graphshrink: interrupted"
    assert not plan.exists()
    assert _scores(table) > 2
    monkeypatch.setenv(TABLE, str(table))
    succeeds(*words)

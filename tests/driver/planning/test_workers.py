"""Scores from worker processes: the plan is the same for any number of them, and none outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

import graphshrink
from graphshrink.planning import quality, ray_workers, workers
from graphshrink.planning.ray_workers import RayPool
from support.cli import fails, write
from support.small_networks import residual_model

TABLE = "GRAPHSHRINK_LATENCY_DB"


def _given(folder: Path) -> tuple[Path, Path]:
    data = folder / "d.npz"
    np.savez(data, x=np.random.default_rng(1).standard_normal((64, 1, 6, 6)).astype(np.float32))
    return residual_model(folder / "m.onnx"), data


def test_the_same_bytes_for_any_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, plans = _given(tmp_path), []
    for number in (0, 2):
        monkeypatch.setenv(TABLE, str(tmp_path / f"{number}.sqlite"))
        with monkeypatch.context() as patch:
            if number:
                # The values in front of regions, and so all candidates alone, are computed by the workers.
                patch.setattr(quality.Prefix, "loss", None)
                patch.setattr(quality.Prefix, "kept", None)
            plans.append(graphshrink.plan(*given, macs=0.6, workers=number))
    assert plans[0].to_json() == plans[1].to_json()
    assert plans[1].notes == []


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of this machine with two processors, which plans join."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'graphshrink[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(graphshrink.UsageError, match="there is no Ray cluster at"):
            RayPool(_no_scorer, "auto")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


_no_scorer: Any = None


@pytest.mark.usefixtures("cluster")
def test_the_same_bytes_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, texts = _given(tmp_path), []
    for where in (0, "auto"):
        monkeypatch.setenv(TABLE, str(tmp_path / f"{where}.sqlite"))
        with monkeypatch.context() as patch:
            if where:
                patch.setattr(quality.Prefix, "loss", None)
            texts.append(graphshrink.plan(*given, macs=0.6, workers=where).to_json())
    assert texts[0] == texts[1]


def _kills(number: int) -> Any:
    """A progress function that kills all worker processes at the first scores, so often."""
    left = number

    def progress(done: int, total: int, what: str) -> None:
        nonlocal left
        if what == "scores" and left and (found := multiprocessing.active_children()):
            left -= 1
            for child in found:
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)

    return progress


def test_killed_workers_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = _given(tmp_path)
    plans = []
    for workers_, kills in ((0, 0), (2, 3)):
        monkeypatch.setenv(TABLE, str(tmp_path / f"{workers_}.sqlite"))
        plans.append(
            graphshrink.plan(
                *given, macs=0.6, workers=workers_, repair=False, progress=_kills(kills)
            )
        )
    assert plans[0].to_json() == plans[1].to_json()
    assert plans[0].notes == []
    (note,) = plans[1].notes
    assert "worker processes ended before their results came" in note
    assert "ran again" in note


def test_a_worker_that_is_killed_too_often_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TABLE, str(tmp_path / "t.sqlite"))
    monkeypatch.setattr(workers, "RETRIES", 0)
    with pytest.raises(graphshrink.ModelError, match=r"1 worker ended .* use fewer --workers"):
        graphshrink.plan(*_given(tmp_path), macs=0.6, workers=2, progress=_kills(1))
    assert not multiprocessing.active_children()


def test_workers_that_never_start_are_told_of_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = workers.ProcessPool.wait

    def wait(pool: workers.ProcessPool, running: Any) -> float:
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        return real(pool, running)

    monkeypatch.setenv(TABLE, str(tmp_path / "t.sqlite"))
    monkeypatch.setattr(workers, "RETRIES", 0)
    monkeypatch.setattr(workers.ProcessPool, "wait", wait)
    with pytest.raises(graphshrink.ModelError, match=r"a script needs if __name__ == .* memory"):
        graphshrink.plan(*_given(tmp_path), macs=0.6, workers=1)


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_of_ray_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, marks = _given(tmp_path), tmp_path / "marks"
    marks.mkdir()
    real, killer = ray_workers.score_task, signal.SIGKILL

    def dies(times: int) -> Any:
        """A job whose process is killed in the middle of it, so often in all."""

        def task(*job: Any) -> float:
            import os

            found = real(*job)
            if len(os.listdir(marks)) < times:
                (marks / str(os.getpid())).touch()
                os.kill(os.getpid(), killer)
            return found

        return task

    expected = graphshrink.plan(*given, macs=0.6, repair=False)
    monkeypatch.setenv(TABLE, str(tmp_path / "ray.sqlite"))
    monkeypatch.setattr(ray_workers, "score_task", dies(2))
    plan = graphshrink.plan(*given, macs=0.6, workers="auto", repair=False)
    assert plan.to_json() == expected.to_json()
    assert "ran again" in plan.notes[0]
    assert len(list(marks.iterdir())) == 2
    monkeypatch.setattr(ray_workers, "score_task", dies(1000))
    with pytest.raises(graphshrink.ModelError, match="3 workers ended one after the other"):
        graphshrink.plan(*given, macs=0.6, score="error", workers="auto", repair=False)


def test_a_score_of_ones_own_is_computed_here(tmp_path: Path) -> None:
    model, data = _given(tmp_path)
    here = []

    def score(outputs: quality.Outputs, reference: quality.Outputs) -> float:
        here.append(os.getpid())
        return float(((outputs[0] - reference[0]) ** 2).mean())

    plans = [
        graphshrink.plan(model, data, macs=0.6, score=score, workers=n).to_json() for n in (0, 1)
    ]
    assert plans[0] == plans[1]
    assert set(here) == {os.getpid()}


def test_outputs_in_front_of_a_region_and_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One output is computed before the region, and the input is an output of nothing; weights are in another file."""
    import onnx

    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((32, 8)).astype(np.float32),
        "b": rng.standard_normal((8, 32)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Tanh", ["x"], ["early"]),
        helper.make_node("Gemm", ["early", "a"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b"], ["late"], transB=1),
    ]
    tensors = [numpy_helper.from_array(v, n) for n, v in arrays.items()]
    path = write(
        tmp_path / "m.onnx", nodes, {"x": ["n", 8]}, {"early": ["n", 8], "late": ["n", 8]}, tensors
    )
    outside = tmp_path / "outside.onnx"
    onnx.save(
        onnx.load(path), outside, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    samples = {"x": rng.standard_normal((64, 8)).astype(np.float32)}
    texts = []
    for number in (0, 2):
        monkeypatch.setenv(TABLE, str(tmp_path / f"{number}.sqlite"))
        texts.append(graphshrink.plan(outside, samples, macs=0.7, workers=number).to_json())
    assert texts[0] == texts[1]


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """A worker that waits for work ends when its parent is killed."""
    code = (
        "import sys, time\n"
        "import graphshrink\n"
        "from graphshrink.planning import workers\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "import multiprocessing, os\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(2, multiprocessing.get_context('spawn'), workers._start, (None,))\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(100)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        end = time.monotonic() + 30
        while _runs(worker):
            assert time.monotonic() < end, "the worker is still there"
            time.sleep(0.1)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = _given(tmp_path)
    words = ("plan", model, "-o", tmp_path / "p.json", "--macs", "0.6", "--calibration", data)
    for wrong in ("-1", "257", "two"):
        assert "--workers" in fails(*words, "--workers", wrong)
    assert "--ray ADDRESS" in fails(*words, "--workers", "2", "--ray", "auto")
    for given in (("--workers", "2"), ("--ray", "local")):
        assert "are for a new plan" in fails(model, tmp_path / "o.onnx", *given)
    with pytest.raises(graphshrink.UsageError, match="not -3"):
        graphshrink.plan(model, data, macs=0.6, workers=-3)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "[ray]" in fails(*words, "--ray", "auto")

"""Scores from worker processes: the plan is the same for any number of them, and none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

import graphshrink
from graphshrink.planning import quality
from support.cli import fails, write
from support.small_networks import residual_model

TABLE = "GRAPHSHRINK_LATENCY_DB"


def _given(folder: Path) -> tuple[Path, Path]:
    data = folder / "d.npz"
    np.savez(data, x=np.random.default_rng(1).standard_normal((64, 1, 6, 6)).astype(np.float32))
    return residual_model(folder / "m.onnx"), data


def test_the_same_bytes_for_any_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, texts = _given(tmp_path), []
    for workers in (0, 1, 2):
        monkeypatch.setenv(TABLE, str(tmp_path / f"{workers}.sqlite"))
        with monkeypatch.context() as patch:
            if workers:
                # The values in front of regions, and so all candidates alone, are computed by the workers.
                patch.setattr(quality.Prefix, "loss", None)
                patch.setattr(quality.Prefix, "kept", None)
            texts.append(graphshrink.plan(*given, macs=0.6, workers=workers).to_json())
    assert texts[0] == texts[1] == texts[2]


def test_the_same_bytes_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'graphshrink[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given, texts = _given(tmp_path), []
    for workers in (0, "local"):
        monkeypatch.setenv(TABLE, str(tmp_path / f"{workers}.sqlite"))
        with monkeypatch.context() as patch:
            if workers:
                patch.setattr(quality.Prefix, "loss", None)
            texts.append(graphshrink.plan(*given, macs=0.6, workers=workers).to_json())
    assert texts[0] == texts[1]
    with pytest.raises(graphshrink.UsageError, match="there is no Ray cluster at"):
        graphshrink.plan(*given, macs=0.5, score="error", workers="auto")


def test_a_score_of_ones_own_is_computed_here(tmp_path: Path) -> None:
    model, data = _given(tmp_path)
    here = []

    def score(outputs: quality.Outputs, reference: quality.Outputs) -> float:
        here.append(os.getpid())
        return float(((outputs[0] - reference[0]) ** 2).mean())

    plans = [
        graphshrink.plan(model, data, macs=0.6, score=score, workers=n).to_json() for n in (0, 2)
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
    for workers in (0, 2):
        monkeypatch.setenv(TABLE, str(tmp_path / f"{workers}.sqlite"))
        texts.append(graphshrink.plan(outside, samples, macs=0.7, workers=workers).to_json())
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

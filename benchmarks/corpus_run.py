"""What each tool makes of a file, in a process of its own; results go into a file, line by line."""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

OTHERS = ("onnxslim", "onnxsim")
TARGETS = ("tflite", "tensorrt")

Job = Callable[[str, str], dict[str, Any]]
"""Reads the model at the first path, may write the second, and returns what is to be kept."""


def node_count(path: str) -> int:
    """The number of nodes of a model, those of its bodies included; constants do not count."""
    import onnx

    def count(graph: Any) -> int:
        return sum(
            (node.op_type != "Constant")
            + sum(count(g) for a in node.attribute for g in (*a.graphs, *([a.g] if a.type == a.GRAPH else [])))
            for node in graph.node
        )  # fmt: skip

    return count(onnx.load(path, load_external_data=False).graph)


def _size(path: str) -> int:
    folder, stem = Path(path).parent, Path(path).name
    return sum(p.stat().st_size for p in folder.iterdir() if p.name.startswith(stem))


def original(before: str, after: str) -> dict[str, Any]:
    """The number of nodes of the file, and what it is."""
    return {"nodes": node_count(before), "bytes": Path(before).stat().st_size, "kind": kind(before)}


_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})


def kind(path: str) -> str:
    """``"float"`` for a network of float numbers without control flow; else what it is."""
    import onnx

    from graphshrink.hosts.onnx.scopes import all_nodes, has_bodies

    model = onnx.load(path, load_external_data=False)
    nodes = list(all_nodes([*model.graph.node, *(n for f in model.functions for n in f.node)]))
    names = {n.op_type for n in nodes}
    if any(n.domain not in ("", "ai.onnx", "com.microsoft") for n in nodes):
        return "other domains"
    if any(map(has_bodies, nodes)):
        return "control flow"
    if any("Quant" in n or n.startswith("QLinear") or n.endswith("Integer") for n in names):
        return "quantised"
    return "float" if names & _LAYERS else "no layers"


def graphshrink(before: str, after: str) -> dict[str, Any]:
    """What the default pipeline leaves, and how the outputs differ; a crash of the comparison is one of its own."""
    from graphshrink import shrink

    result = shrink(before)
    result.save(after)
    reasons: dict[str, int] = {}
    for record in result.report.passes:
        for refusal in record.refusals:
            reasons[refusal.reason] = reasons.get(refusal.reason, 0) + 1
    return {"nodes": node_count(after), "bytes": _size(after), "refusals": reasons}


def compare(before: str, after: str) -> dict[str, Any]:
    """How the outputs of what graphshrink writes differ from those of the original."""
    from corpus_inputs import difference

    written = Path(after).with_name("graphshrink.onnx")
    if not written.exists():
        graphshrink(before, str(written))
    wrong, gap, own = difference(before, str(written))
    return {"wrong": wrong, "gap": gap, "own": own}


def onnxslim(before: str, after: str) -> dict[str, Any]:
    """What onnxslim leaves."""
    import onnxslim as tool

    tool.slim(before, after)
    return {"nodes": node_count(after), "bytes": _size(after)}


def onnxsim(before: str, after: str) -> dict[str, Any]:
    """What onnxsim leaves."""
    import onnx
    import onnxsim as tool

    model, _ = tool.simplify(onnx.load(before))
    onnx.save(model, after)
    return {"nodes": node_count(after), "bytes": _size(after)}


def _target(before: str, after: str, target: str) -> dict[str, Any]:
    """Whether the model can be written for a target; open sizes are fixed to some that the model runs with."""
    from corpus_inputs import running_inputs, session

    from graphshrink import shrink

    inputs = session(before).get_inputs()
    sizes: dict[str, list[int]] = {}
    if not all(isinstance(d, int) for i in inputs for d in i.shape or []):
        feeds, _ = running_inputs(before)
        sizes = {i.name: list(feeds[i.name].shape) for i in inputs}
    shrink(before, target=target, fixed_shapes=sizes or None).save(after, target=target)
    return {"fixed": sizes}


def tflite(before: str, after: str) -> dict[str, Any]:
    """Whether the model can be written for TFLite."""
    return _target(before, after, "tflite")


def tensorrt(before: str, after: str) -> dict[str, Any]:
    """Whether the model can be written for TensorRT."""
    return _target(before, after, "tensorrt")


JOBS: dict[str, Job] = {
    "original": original,
    "onnxslim": onnxslim,
    "onnxsim": onnxsim,
    "graphshrink": graphshrink,
    "compare": compare,
    "tflite": tflite,
    "tensorrt": tensorrt,
}
"""In the order in which they are done."""


def keys(label: str) -> dict[str, str]:
    """What the result of each job depends on: the version of a tool, or ``label`` for graphshrink's own.

    Results of other jobs and of onnx's count do not change with graphshrink.
    """
    return {
        job: version(job) if job in OTHERS else "2" if job == "original" else label for job in JOBS
    }


def preload() -> None:
    """Import what the jobs need, so that a new process need not; nothing may run before the processes are made."""
    import onnx
    import onnxruntime

    import graphshrink.api
    import graphshrink.frontends.onnx
    import graphshrink.passes
    import graphshrink.targets

    for package in (graphshrink.frontends.onnx, graphshrink.passes, graphshrink.targets):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # The jobs need no torch; TensorRT may not be there.
            if ".torch" not in module.name:
                with suppress(ImportError):
                    importlib.import_module(module.name)
    for tool in OTHERS:
        __import__(tool)
    assert onnx
    assert onnxruntime
    gc.freeze()  # Or collections in each process would copy the pages of all modules.


def run(job: str, before: str, folder: str, limit: float) -> dict[str, Any]:
    """Do a job in a process of its own, which is stopped after ``limit`` seconds.

    Args:
        job: One of the names in :data:`JOBS`.
        before: The model.
        folder: Where it writes; what earlier jobs on the same file wrote is there.
        limit: In seconds.

    Returns:
        What the job returns, or ``{"error": ...}``; and the seconds that it took.
    """
    started = time.monotonic()
    report = Path(folder) / "report"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _work(job, before, folder)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() - started > limit:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"error": f"stopped after {limit:g} s"}
        time.sleep(0.02)
    lines = (Path(folder) / "log").read_text(errors="replace").strip().splitlines()
    found: dict[str, Any] = {"error": f"crashed: {lines[-1][:200] if lines else 'no message'}"}
    if report.exists():
        found = json.loads(report.read_text())
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def _work(job: str, before: str, folder: str) -> None:
    """The child's part: it never returns, and what it prints stays in its folder."""
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        suffix = "tflite" if job == "tflite" else "onnx"
        try:
            found = JOBS[job](before, str(Path(folder) / f"{job}.{suffix}"))
        except Exception as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            found = {"error": f"{type(error).__name__}: {text[0][:400]}"}
        Path("unfinished").write_text(json.dumps(found))
        Path("unfinished").rename("report")
    finally:
        os._exit(0)


def commit() -> str:
    """The commit of the sources that run, with a mark if they differ from it."""
    here = ["git", "-C", str(Path(__file__).parent)]
    name = subprocess.run(
        [*here, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True
    )
    changed = subprocess.run(
        [*here, "status", "--porcelain", "-uno"], capture_output=True, text=True
    )
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "")


class Results:
    """Results by file and job, in a file of JSON lines that only grows, so that a stopped run goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[tuple[str, str], dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # The line that was being written when the run was stopped.
                self._found[entry["sha256"], entry["job"]] = entry

    def get(self, digest: str, job: str) -> dict[str, Any] | None:
        """The latest result, whatever it depended on."""
        return self._found.get((digest, job))

    def add(self, digest: str, job: str, key: str, found: dict[str, Any]) -> None:
        """Keep a result."""
        entry = {"sha256": digest, "job": job, "key": key, **found}
        self._found[digest, job] = entry
        text = json.dumps(entry) + "\n"
        with self._path.open("a") as file:
            file.write(text)


def main() -> int:
    """Do one job on one file, and print what it finds; for looking at a file."""
    preload()
    with tempfile.TemporaryDirectory() as folder:
        found = run(sys.argv[1], str(Path(sys.argv[2]).resolve()), folder, 600)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

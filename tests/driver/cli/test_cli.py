"""The commands: what they write, print and return."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphshrink
from graphshrink.ir import Opaque
from support.cli import call, external_model, fails, small_model, succeeds
from support.onnx_run import outputs_of


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "in.onnx")


def test_shrink_folds_the_batch_norm(model: Path) -> None:
    out, report = model.with_name("out.onnx"), model.with_name("r.json")
    printed = succeeds(model, out, "--check", "--report", report)
    assert "3 -> 2 nodes" in printed
    _, note = printed.splitlines()
    assert note == "note: run on inputs x:1x3x16x16 (--input gives other shapes)"
    shrunk = onnx.load(out)
    onnx.checker.check_model(shrunk, full_check=True)
    assert [n.op_type for n in shrunk.graph.node] == ["Conv", "Sigmoid", "Mul"]
    x = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    first, second = (outputs_of(p, {"x": x})[0] for p in (model, out))
    assert np.abs(first - second).max() <= 1e-5 * np.abs(first).max()
    written = json.loads(report.read_text())
    assert written["after"]["ops"] == {"Activation": 1, "Conv": 1}
    assert max(p["error"] for p in written["passes"]) < 1e-5
    assert json.loads(succeeds(model, out, "--check", "--json"))["after"] == written["after"]


def test_every_order_of_arguments(model: Path) -> None:
    out = model.with_name("out.onnx")
    for arguments in (
        ("shrink", model, out, "--passes", "prune-dead"),
        ("--passes", "prune-dead", model, out),
        (model, "--passes=prune-dead", out),
        ("--debug", model, out, "--passes", "prune-dead"),
    ):
        out.unlink(missing_ok=True)
        succeeds(*arguments)
        assert "BatchNormalization" in {n.op_type for n in onnx.load(out).graph.node}


def test_verbose_says_what_was_done_and_why_not(model: Path) -> None:
    done = call(model, model.with_name("o.onnx"), "-v", "--passes", "fold-constants,merge-linear")
    assert "merge-linear: merge Conv, Scale into one Conv (exact)" in done.out
    assert [line.split(":")[0] for line in done.err.splitlines()] == [
        "fold-constants",
        "merge-linear",
    ]
    two = "merge-linear{bias-maps=false,max-kernel=1}"
    done = call(model, model.with_name("o.onnx"), "-v", "--passes", two)
    assert done.code == 0


def test_same_bytes_every_time(model: Path) -> None:
    a, b = model.with_name("a.onnx"), model.with_name("b.onnx")
    succeeds(model, a)
    succeeds(model, b)
    assert a.read_bytes() == b.read_bytes()


def test_output_may_be_the_input(model: Path) -> None:
    succeeds(model, model)
    assert len(onnx.load(model).graph.node) == 3


def test_dump_dir(model: Path) -> None:
    folder = model.with_name("dump")
    succeeds(model, model.with_name("o.onnx"), "--dump-dir", folder)
    names = sorted(p.name for p in folder.iterdir())
    assert names[:2] == ["00-input.txt", "01-fold-constants.txt"]
    assert [n.partition("-")[2] for n in names[-2:]] == ["deduplicate.txt", "prune-dead.txt"]
    assert "Scale" in (folder / names[0]).read_text()
    assert "Scale" not in (folder / names[-1]).read_text()


def test_a_failed_check_is_exit_1_and_rolled_back(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphshrink.ir import Activation, Exactness, Graph, Rewriter
    from graphshrink.passes import PruneDead

    def run(self: object, graph: Graph, rw: Rewriter, ctx: object) -> None:
        for node in graph.nodes:
            if isinstance(node.op, Activation):
                rw.replace(node, Activation("relu"), node.inputs)

    monkeypatch.setattr(PruneDead, "run", run)
    assert PruneDead.exactness is Exactness.EXACT
    out = model.with_name("out.onnx")
    line = fails(model, out, "--check", code=1)
    assert "graphshrink: rolled back: pass prune-dead claims to be exact" in line
    x = np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)
    first, second = (outputs_of(p, {"x": x})[0] for p in (model, out))
    assert np.abs(first - second).max() <= 1e-5 * np.abs(first).max()


def test_the_reason_for_undoing_a_pass_is_shown(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphshrink.ir import Graph, Rewriter
    from graphshrink.passes import FoldConstants
    from graphshrink.targets.onnx import emitter

    def run(self: object, graph: Graph, rw: Rewriter, ctx: object) -> None:
        for node in graph.nodes:
            with rw.rewrite("make it anew", node):
                rw.replace(node, node.op, node.inputs)

    monkeypatch.setattr(FoldConstants, "run", run)
    monkeypatch.setattr(FoldConstants, "asks_first", False)
    monkeypatch.setattr(emitter, "unwritable", lambda graph: lambda node: f"no {node.op.name}")
    out = model.with_name("out.onnx")
    printed = succeeds(model, out, "--passes", "fold-constants")
    assert "note: fold-constants was undone: no Conv" in printed
    tables = succeeds(model, out, "--passes", "fold-constants", "-v")
    assert "note: fold-constants was undone: no Conv" in tables
    assert "rolled back" not in tables


def test_a_pass_that_leaves_a_model_that_does_not_run_is_rolled_back_with_this_reason(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphshrink.ir import Graph, Rewriter
    from graphshrink.passes import PruneDead

    def run(self: object, graph: Graph, rw: Rewriter, ctx: object) -> None:
        (conv,) = [node for node in graph.nodes if node.op.name == "Conv"]
        with rw.rewrite("make an unknown node", conv):
            types = [conv.output.type]
            wrong = rw.insert(Opaque("onnx:NoSuchOp"), conv.inputs, after=conv, types=types)
            rw.replace_uses(conv.output, wrong.output)

    monkeypatch.setattr(PruneDead, "run", run)
    monkeypatch.setattr(PruneDead, "asks_first", True)
    line = fails(model, model.with_name("o.onnx"), "--check", "--passes", "prune-dead", code=1)
    assert "rolled back: pass prune-dead left a model that does not run" in line


def test_check_on_a_given_shape(model: Path) -> None:
    assert "error" in succeeds(
        model, model.with_name("o.onnx"), "--check", "--input", "x:4x3x16x16", "--seed", 7
    )


def test_inspect(model: Path) -> None:
    found = json.loads(succeeds("inspect", model, "--json"))
    assert found["macs"] == 8 * 27 * 256
    assert found["parameters"] == 8 * 27 + 8 + 2 * 8  # A batch norm is one scale and one shift.
    assert found["inputs"] == {"x": "f32[batch, 3, 16, 16]"}
    assert found["regions"] == {"count": 3, "depth": 1}
    table = succeeds("inspect", model)
    assert "input  x: f32[batch, 3, 16, 16]" in table
    assert [r.split()[1] for r in table.splitlines() if r.strip().startswith("MACs")] == ["55,296"]
    assert succeeds("inspect", model, "--text").startswith("graph g(%x")


def test_compare(model: Path, tmp_path: Path) -> None:
    out = model.with_name("out.onnx")
    succeeds(model, out)
    found = json.loads(succeeds("compare", model, out, "--runs", 7, "--json"))
    assert found["equal"]
    assert found["error"] < 1e-5
    assert found["a"]["file_bytes"] == model.stat().st_size
    assert found["speedup"]["low"] <= found["speedup"]["median"] <= found["speedup"]["high"]
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3, 16, 16), np.float32))
    assert "speed of B beside A" in succeeds(
        "compare", model, out, "--data", tmp_path / "x.npz", "--runs", 2, "--threads", 1
    )
    line = fails("compare", model, out, "--runs", 1, "--tolerance", 0, code=1)
    assert "the outputs differ" in line


def test_compare_counts_external_data(tmp_path: Path) -> None:
    source = external_model(tmp_path / "m", "w.bin")
    (source.parent / "w.bin").write_bytes(np.arange(12, dtype=np.float32).tobytes())
    found = json.loads(succeeds("compare", source, source, "--runs", 1, "--json"))
    assert found["a"]["file_bytes"] == source.stat().st_size + 48
    assert found["error"] == 0


def test_compare_of_different_models_is_exit_1(model: Path) -> None:
    other = onnx.load(model)
    other.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(8, np.float32), "b"))
    path = model.with_name("other.onnx")
    onnx.save(other, path)
    assert "differ" in fails("compare", model, path, "--runs", 1, code=1)


def test_passes() -> None:
    found = {p["name"]: p for p in json.loads(succeeds("passes", "--json"))}
    assert {"merge-linear", "fold-constants", "prune-dead"} <= found.keys()
    (option,) = found["fold-constants"]["options"]
    assert (option["name"], option["default"]) == ("max-growth", "65536")
    assert option["doc"].startswith("How many bytes larger")
    assert all(o["doc"].endswith(".") for p in found.values() for o in p["options"])
    assert all(p["doc"] for p in found.values())
    assert found["merge-linear"]["exactness"] == "exact"
    assert found["remove-activations"]["exactness"] == "approximate"
    assert "max-growth=65536" in succeeds("passes")


def test_version_and_help() -> None:
    assert succeeds("--version").strip() == graphshrink.__version__
    for word in ("shrink", "inspect", "compare", "passes", "--debug"):
        assert word in succeeds("--help")
    assert "--dump-dir" in succeeds("shrink", "-h")
    assert "Usage" in call().out
    assert call().code == 2


def test_a_file_may_be_named_like_a_command(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    model.rename("inspect")
    succeeds("./inspect", "a.onnx")
    succeeds("shrink", "inspect", "b.onnx")


def test_nothing_heavy_is_imported(model: Path) -> None:
    code = (
        "import sys; from graphshrink.cli import main\n"
        f"sys.argv = ['graphshrink', {str(model)!r}, {str(model.with_name('o.onnx'))!r}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = ('torch', 'scipy', 'networkx', 'onnxruntime', 'pandas')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def run_on_terminal(*arguments: object, **environment: str) -> str:
    """The bytes that a terminal of 100 columns would get."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(environment, TERM="xterm", COLUMNS="100")
        command = [sys.executable, "-m", "graphshrink", *map(str, arguments)]
        os.execv(sys.executable, command)
    read = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        read += part
    assert os.waitpid(pid, 0)[1] == 0, read.decode()
    return read.decode()


def test_a_terminal_gets_bars_tables_and_colours_unless_told_not_to(model: Path) -> None:
    out = model.with_name("o.onnx")
    shown = run_on_terminal(model, out)
    assert "┃" in shown
    assert "reading" in shown
    assert "\x1b[3" in shown
    plain = run_on_terminal(model, out, NO_COLOR="1")
    assert "┃" in plain
    assert "\x1b[3" not in plain


def test_logging_by_variable_and_by_option(tmp_path: Path) -> None:
    source = small_model(tmp_path / "in.onnx")

    def run(*words: Any, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "graphshrink", *map(str, words)]
        environment = {**os.environ, **variables}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    out = tmp_path / "out.onnx"
    assert (
        "passes.infra.pipeline: merge-linear: " in run(source, out, GRAPHSHRINK_LOG="info").stderr
    )
    assert "DEBUG graphshrink.passes.infra.pipeline" in run(source, out, "-vv").stderr
    assert "graphshrink." not in run(source, out, "-v").stderr
    wrong = run(source, out, GRAPHSHRINK_LOG="loud")
    assert wrong.returncode == 2
    assert "GRAPHSHRINK_LOG is one of error, warning, info, debug, not 'loud'" in wrong.stderr

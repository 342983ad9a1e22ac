"""Help, near misses, single passes, and what is shown at 80 columns."""

from __future__ import annotations

import io
import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from graphshrink import MissingExtra
from graphshrink.cli.entry import COMMANDS
from graphshrink.cli.help import EXAMPLES
from graphshrink.cli.terminal import Name, shortened, show
from graphshrink.ir.errors import install_command
from support.cli import fails, small_model, succeeds


def test_help_lists_every_command_in_a_group_with_examples() -> None:
    shown = succeeds("help")
    assert shown == succeeds("--help")
    groups = re.findall(r"^(\S.*):\n", shown, re.MULTILINE)
    assert groups[0] == "Make a model smaller"
    assert groups[-1] == "Examples"
    assert "More" not in groups
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", shown, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_whole_names_in_80_columns(command: str) -> None:
    shown = succeeds("help", command)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert "Examples:" in shown
    options = set(re.findall(r"--[a-z0-9][a-z0-9-]*", shown.partition("Examples:")[0]))
    for example in EXAMPLES[command]:
        assert set(re.findall(r"--[a-z0-9-]+", example)) <= {*options, "--plan"}, example


def test_options_of_targets_are_groups() -> None:
    shown = succeeds("shrink", "--help")
    assert "--overridable-initializers" in shown
    assert shown.index("Target tensorrt:") < shown.index("--fp16 ") < shown.index("Target tflite:")


def test_near_misses(tmp_path: Path) -> None:
    model = small_model(tmp_path / "in.onnx")
    out = tmp_path / "out.onnx"
    assert "no option --pases; did you mean --passes?" in fails(model, out, "--pases", "x")
    assert "--help shows the options" in fails(model, out, "--zzzz")
    assert "did you mean 'advise'?" in fails("advize", model)
    assert "did you mean 'advise'?" in fails("help", "advize")
    assert "magnitude, wanda, sparsegpt" in fails(model, out, "--passes", "sparsify{method=magic}")
    assert "did you mean 'method'?" in fails(model, out, "--passes", "sparsify{metod=wanda}")
    assert not out.exists()


def test_one_pass() -> None:
    shown = succeeds("passes", "sparsify")
    assert shown.startswith("sparsify (approximate)\n")
    assert "one of magnitude, wanda, sparsegpt" in shown
    assert "merge-linear" not in shown
    (row,) = json.loads(succeeds("passes", "merge-linear", "--json"))
    assert row["name"] == "merge-linear"
    assert "did you mean 'merge-linear'?" in fails("passes", "merge-liner")


def test_what_was_written_and_whether_it_is_approximate(tmp_path: Path) -> None:
    model = small_model(tmp_path / "in.onnx")
    out = tmp_path / "out.onnx"
    line, *_ = succeeds(model, out).splitlines()
    sizes = f"{model.stat().st_size:,} -> {out.stat().st_size:,} bytes"
    assert line.startswith(f"{out}: {sizes}, 3 -> 2 nodes")
    assert "approximate" not in line
    pruned = "sparsify{sparsity=0.5}"
    line, *_ = succeeds(model, out, "--passes", pruned).splitlines()
    assert line.endswith("; approximate: sparsify{sparsity=0.5} changed the outputs")
    pytest.importorskip("onnx_graphsurgeon", reason="pip install 'graphshrink[tensorrt]'")
    line, *_ = succeeds(model, out, "--target", "tensorrt", "--profile", "x:1x3x16x16").splitlines()
    assert f"(and {tmp_path / 'out.trt.json'})" in line
    # In place: the size before is that of the file that was replaced.
    before = model.stat().st_size
    assert f": {before:,} -> " in succeeds(model, model)


def printed(table: Table, terminal: bool, width: int = 80) -> str:
    file = io.StringIO()
    show(Console(file=file, width=width, force_terminal=terminal, color_system=None), table)
    return file.getvalue()


def test_names_are_shortened_in_the_middle_on_a_terminal_only() -> None:
    assert shortened("features.0.conv.weight", 12) == "featu…weight"
    assert [shortened("abc", n) for n in (3, 2, 1, 0)] == ["abc", "…c", "…", ""]
    name = "model.backbone.stage3.block11.depthwise.convolution.weight"
    for terminal in (True, False):
        table = Table("layer", "what")
        table.add_row(Name(name), "words that wrap " * 5)
        shown = printed(table, terminal, 80 if terminal else 100)
        assert (name in shown) != terminal
        assert max(map(len, shown.splitlines())) <= (80 if terminal else 100)
        if terminal:
            assert re.search(r"model\.\S*…\S*weight", shown)


def test_extras_are_installed_from_the_checkout() -> None:
    root = Path(__file__).resolve().parents[3]
    command = install_command("tflite")
    assert command in (f'pip install -e "{root}[tflite]"', 'pip install -e ".[tflite]"')


def test_nn_without_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "graphshrink.nn", raising=False)
    with pytest.raises(MissingExtra, match=r"graphshrink\.nn needs torch.*\[torch\]"):
        import_module("graphshrink.nn")

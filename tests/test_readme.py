"""The README's Python runs as it stands, and its commands are ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from graphshrink.passes import base
from support.cli import small_model, succeeds

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_snippets_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    exec(compile(block, str(README), "exec", dont_inherit=True), {"__name__": "readme"})


def test_there_are_snippets() -> None:
    assert len(PYTHON) >= 3


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_model(tmp_path / "in.onnx")
    lines = re.findall(r"^graphshrink (.*?)(?:  #.*)?$", TEXT, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        succeeds(*shlex.split(line))


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (README.parent / target).exists(), target

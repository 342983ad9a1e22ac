"""The Python of the README and of the guides runs as it stands, and their commands are ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from graphshrink.passes import base
from support.cli import small_model, succeeds

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = [
    pytest.param(block, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", PYTHON)
def test_python_snippets_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    exec(compile(block, "a snippet", "exec", dont_inherit=True), {"__name__": "readme"})


def test_there_are_snippets() -> None:
    assert len(PYTHON) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_model(tmp_path / "in.onnx")
    lines = re.findall(r"^graphshrink (.*?)(?:  #.*)?$", page.read_text(), re.MULTILINE)
    assert page.stem != "README" or len(lines) >= 6
    for line in lines:
        succeeds(*shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target

"""The Python code of the README and of the guides runs unchanged, and their commands exist."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graphshrink import MissingExtra
from graphshrink.passes.infra import registry as base
from support.cli import small_model, succeeds

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = [
    pytest.param(block, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", PYTHON)
def test_python_snippets_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "torch" in block:
        pytest.importorskip("torch", reason="pip install 'graphshrink[torch]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    try:
        exec(compile(block, "a snippet", "exec", dont_inherit=True), {"__name__": "readme"})
    except MissingExtra as missing:
        if find_spec("torch") is not None:
            raise
        pytest.skip(str(missing))


def test_there_are_snippets() -> None:
    assert len(PYTHON) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_model(tmp_path / "in.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3), np.uint8)
    np.savez("samples.npz", x=np.float32(pixels[:, :16, :16].transpose(0, 3, 1, 2) / 255))
    Path("photos").mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(f"photos/{i}.png")
    lines = re.findall(r"^graphshrink (.*?)(?:  #.*)?$", page.read_text(), re.MULTILINE)
    assert page.stem != "README" or len(lines) >= 6
    for line in lines:
        succeeds(*shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target

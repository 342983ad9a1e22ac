"""What accompanies a release agrees with the package: versions, addresses, and the description for package indexes."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from graphshrink import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def field(text: str, name: str) -> str:
    found = re.search(rf"^{name}: (.+)$", text, re.MULTILINE)
    assert found is not None, name
    return found[1]


def test_the_citation_is_that_of_this_version(project: dict[str, Any]) -> None:
    text = (ROOT / "CITATION.cff").read_text()
    assert field(text, "version") == project["version"] == __version__
    released = re.search(
        rf"^## \[{re.escape(__version__)}\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert released is not None
    assert field(text, "date-released") == released[1]
    assert field(text, "repository-code") == project["urls"]["Repository"]
    assert field(text, "license") == project["license"]
    assert field(text, "abstract") == project["description"]


def test_the_hooks_use_the_ruff_of_the_constraints() -> None:
    pinned = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert f"rev: v{pinned[1]}\n" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_the_description_has_absolute_links(project: dict[str, Any]) -> None:
    pytest.importorskip("setuptools", reason="pip install setuptools")
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.description()
    readme = (ROOT / "README.md").read_text()
    assert found.count("\n") == readme.count("\n")
    targets = re.findall(r"\]\(([^)]+)\)", found)
    assert len(targets) == len(re.findall(r"\]\(([^)]+)\)", readme)) > 20
    for target in targets:
        assert re.match(r"https?://|#", target), target
    repository = project["urls"]["Repository"]
    for kind, path in re.findall(rf"{re.escape(repository)}/(blob|raw)/main/([^#)]+)", found):
        assert (ROOT / path).is_file(), path
        assert (kind == "raw") == path.endswith((".svg", ".png")), path

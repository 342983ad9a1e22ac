"""What an installed package contains: every folder and file of the source tree, as setuptools would copy it."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("frontends", "graphshrink", "hosts", "ir", "passes", "targets")


@pytest.fixture(scope="module")
def setuptools() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
        "setuptools"
    ]
    return found


def files() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in found if "__pycache__" not in path.parts]


def test_every_folder_with_modules_is_a_package(setuptools: dict[str, Any]) -> None:
    folders = setuptools["package-dir"]
    assert sorted(folders) == sorted(setuptools["packages"])
    modules = {path.parent for path in files() if path.suffix == ".py"}
    assert len(modules) > 30
    assert {ROOT / folder for folder in folders.values()} == modules


def test_every_other_file_is_package_data(setuptools: dict[str, Any]) -> None:
    patterns = [
        (ROOT / setuptools["package-dir"][name], pattern)
        for name, some in setuptools["package-data"].items()
        for pattern in some
    ]
    others = [path for path in files() if path.suffix != ".py"]
    for path in others:
        assert any(path.parent == f and fnmatch(path.name, p) for f, p in patterns), path
    for folder, pattern in patterns:
        assert any(folder.glob(pattern)), pattern

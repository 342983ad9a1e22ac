"""Imports follow the arrows of ARCHITECTURE.md, and NumPy-only folders import only NumPy and SciPy."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAY_IMPORT = {
    "ir": {"ir"},
    "hosts": {"ir", "hosts"},
    "frontends": {"ir", "hosts", "frontends"},
    "targets": {"ir", "hosts", "targets"},
    "passes": {"ir", "passes"},
    "graphshrink": {"ir", "hosts", "frontends", "targets", "passes", "graphshrink"},
}
"""For each folder at the root the folders that it may import from."""

NUMPY_ONLY = {"ir", "passes"}
HEAVY = {"torch", "onnx", "onnxruntime"}


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """The line and the absolute name of everything that a file imports."""
    parts = [*path.relative_to(root).with_suffix("").parts]
    inside = parts if parts[0] == "graphshrink" else ["graphshrink", *parts]
    package = inside[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # ``from .. import ir`` imports a module; each name may be one.
            yield from ((node.lineno, f"{module}.{name.name}") for name in node.names)


def folder_of(name: str) -> str | None:
    """The folder at the root that has one of our modules; ``None`` for other modules."""
    parts = name.split(".")
    if parts[0] != "graphshrink":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "graphshrink"


def wrong_imports(root: Path) -> list[str]:
    """``file:line: what is wrong`` for every import against the arrows."""
    found = []
    for folder, allowed in MAY_IMPORT.items():
        for path in sorted((root / folder).rglob("*.py")):
            for line, name in imports(path, root):
                target = folder_of(name)
                place = f"{path.relative_to(root)}:{line}"
                if target is not None and target not in allowed:
                    found.append(
                        f"{place}: {folder} imports {name} ({folder} may import {', '.join(sorted(allowed))})"
                    )
                if folder in NUMPY_ONLY and name.split(".")[0] in HEAVY:
                    found.append(f"{place}: {folder} imports {name} (NumPy and SciPy only)")
    return found


def test_imports_follow_the_arrows() -> None:
    assert wrong_imports(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ir/a.py", "from ..passes import Pass", "ir/a.py:1: ir imports graphshrink.passes.Pass"),
        (
            "passes/merge/a.py",
            "\nfrom ...frontends.onnx import x",
            "passes/merge/a.py:2: passes imports",
        ),
        (
            "targets/a.py",
            "def f():\n    from ..passes import Pipeline",
            "targets/a.py:2: targets imports",
        ),
        (
            "frontends/a.py",
            "from ..api import shrink",
            "frontends/a.py:1: frontends imports graphshrink.api",
        ),
        (
            "frontends/a.py",
            "from graphshrink.targets.onnx import save",
            "frontends/a.py:1: frontends imports",
        ),
        ("hosts/torch/a.py", "from ...training import gating", "hosts/torch/a.py:1: hosts imports"),
        ("ir/ops/a.py", "import onnx.helper", "ir/ops/a.py:1: ir imports onnx.helper"),
        ("passes/a.py", "from torch import nn", "passes/a.py:1: passes imports torch.nn"),
        ("ir/a.py", "from .. import __version__", "ir/a.py:1: ir imports graphshrink.__version__"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, text: str, message: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (found,) = wrong_imports(tmp_path)
    assert found.startswith(message)


def test_a_right_import_is_not(tmp_path: Path) -> None:
    path = tmp_path / "targets" / "onnx" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import onnx\nfrom ...ir import Graph\nfrom ...hosts.onnx.tensors import x\nfrom . import b\n"
    )
    assert wrong_imports(tmp_path) == []

"""The notebooks in examples/: their code compiles and uses the API as it is, and their stored outputs are complete and small.

``make notebooks`` runs them and stores the outputs; that takes a minute for each.
"""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import graphshrink

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 100_000
"""Bytes of a file."""


def code_of(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def tree_of(path: Path) -> ast.Module:
    source = "\n\n".join("".join(cell["source"]) for cell in code_of(path))
    return ast.parse(source, path.name)


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["depth_on_digits", "file_with_a_budget"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_calls_fit_the_api(path: Path) -> None:
    pytest.importorskip("torch", reason="pip install 'graphshrink[torch]'")
    tree = tree_of(path)
    compile(tree, path.name, "exec")
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "graphshrink"
        for alias in node.names
    ]
    assert len(names) >= 4
    for name in names:
        assert name in graphshrink.__all__, name
    called = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            keywords = {k.arg: None for k in node.keywords if k.arg is not None}
            given = [None] * len(node.args)
            inspect.signature(getattr(graphshrink, node.func.id)).bind(*given, **keywords)
            called += 1
    assert called >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_are_those_of_one_run(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    cells = code_of(path)
    if not any(cell["outputs"] for cell in cells):
        pytest.skip("it is stored without outputs; make notebooks runs it and stores them")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), (
        "run: make notebooks"
    )
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds
    shown = [
        "".join(output["data"]["text/html"])
        for cell in cells
        for output in cell["outputs"]
        if "text/html" in output.get("data", {})
    ]
    # A result shows its tables, and bars leave nothing behind.
    assert any(text.startswith("<pre") for text in shown)
    assert not any("<progress" in text for text in shown)
    assert all("/tmp/" not in json.dumps(cell["outputs"]) for cell in cells)

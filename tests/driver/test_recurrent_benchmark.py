"""The benchmark of recurrent layers, with tiny sizes: its forms compute the same, and its table is complete."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "recurrent_benchmark", ROOT / "benchmarks" / "recurrent.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # Its dataclasses look themselves up.
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert", "torch"])
def test_table(benchmark: ModuleType, runtime: str, tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    arguments = [
        *("--hidden", "8", "--blocks", "2,4", "--steps", "3", "--rounds", "3"),
        *("--runtimes", runtime, "--markdown", str(path)),
    ]
    assert benchmark.main(arguments) == 0
    text = path.read_text()
    assert "`python benchmarks/recurrent.py --hidden 8" in text
    rows = [line for line in text.splitlines() if line.startswith(f"| {runtime} |")]
    assert len(rows) == 2 * 6
    assert all(row.count("|") == 9 for row in rows)


def test_other_numbers_are_told(benchmark: ModuleType) -> None:
    line = benchmark.Line("torch", "lstm", 8, "k = 2, whole", 1.0, 1.0, [1.0, 1.0], float("nan"))
    assert line.wrong

"""The planner's benchmark: networks of other tools get the repair of plans."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphshrink.api import load
from graphshrink.planning.repair import Repairer
from graphshrink.planning.samples import Samples
from support.cli import write

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
KEPT = (0, 2, 3, 5, 6)


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import planner

    yield planner
    sys.modules.pop("planner", None)


def _network(file: Path, kept: tuple[int, ...]) -> onnx.ModelProto:
    """A convolution with some of its eight channels, a depthwise one, and what reads them."""
    rng = np.random.default_rng(0)
    channels = list(kept)
    arrays = {
        "a": rng.standard_normal((8, 2, 3, 3))[channels], "a0": rng.standard_normal(8)[channels],
        "b": rng.standard_normal((8, 1, 3, 3))[channels], "b0": rng.standard_normal(8)[channels],
        "c": rng.standard_normal((5, 8))[:, channels], "c0": rng.standard_normal(5),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "a", "a0"], ["ya"], pads=[1] * 4),
        helper.make_node("Relu", ["ya"], ["ra"]),
        helper.make_node("Conv", ["ra", "b", "b0"], ["yb"], pads=[1] * 4, group=len(kept)),
        helper.make_node("GlobalAveragePool", ["yb"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "c", "c0"], ["y"], transB=1),
    ]
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items()]
    return onnx.load(write(file, nodes, {"x": ["n", 2, 6, 6]}, {"y": ["n", 5]}, tensors))


def test_the_channels_that_another_tool_kept_are_found_and_repaired(
    planner: Any, tmp_path: Path
) -> None:
    original, _ = load(_network(tmp_path / "a.onnx", tuple(range(8))), None, None)
    pruned, _ = load(_network(tmp_path / "b.onnx", KEPT), None, None)
    kept = planner.kept_channels(original, pruned)
    assert kept == {"ya": KEPT, "yb": KEPT}
    assert planner.kept_channels(original, original) == {}
    assert planner.kept_channels(pruned, original) == {}
    rng = np.random.default_rng(1)
    made = [(rng.standard_normal((8, 2, 6, 6)).astype(np.float32),) for _ in range(10)]
    samples = Samples(tuple(made[2:]), tuple(made[:2]), "", 80)
    with_them = Repairer(original, pruned, [], samples, "error", kept=kept)
    assert [n.output.name for n, _ in with_them.pairs] == ["ya", "yb", "y"]
    assert [n.output.name for n, _ in Repairer(original, pruned, [], samples).pairs] == ["y"]
    repairs = with_them.search()
    assert repairs.before > 0.01
    assert repairs.after < 0.9 * repairs.before

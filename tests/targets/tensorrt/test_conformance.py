"""Node tests of the onnx package through the target: what is not refused gives the same in onnxruntime.

GRAPHSHRINK_LARGE=1 takes all of them (a minute or two each way).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from graphshrink import GraphshrinkError, shrink
from graphshrink.passes import relative_error

STEP = 1 if os.environ.get("GRAPHSHRINK_LARGE") else 20
LIMITS: dict[str, tuple[dict[str, Any], float]] = {
    "fp32": ({}, 1e-5),
    "fp16": ({"fp16": True}, 1e-2),
}


def run(source: Any, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize("precision", LIMITS)
def test_same_outputs(precision: str, cases: list[Any], tmp_path: Path) -> None:
    options, limit = LIMITS[precision]
    compared, wrong = 0, []
    for case in cases[::STEP]:
        target = tmp_path / "m.onnx"
        try:
            shrink(case.model, "", target="tensorrt").save(target, **options)
        except GraphshrinkError:
            continue
        inputs = case.data_sets[0][0]
        feeds = {v.name: a for v, a in zip(case.model.graph.input, inputs, strict=False)}
        try:
            want = run(case.model.SerializeToString(), feeds)
        except Exception:
            continue  # onnxruntime does not run the original either.
        half = any(np.asarray(a).dtype == np.float16 for a in want)
        taken = {v.name for v in onnx.load(target).graph.input}
        try:
            got = run(str(target), {n: a for n, a in feeds.items() if n in taken})
        except Exception as error:
            if "MLFloat16 data type is not supported" not in str(error):
                wrong.append(f"{case.name}: {error}")
            continue
        compared += 1
        found = relative_error(want, got)
        if not found <= (1e-2 if half else limit):
            wrong.append(f"{case.name}: {found}")
    assert wrong == []
    assert compared > len(cases) // STEP // 4


def test_branches_that_cannot_be_inlined_stay(cases: list[Any], tmp_path: Path) -> None:
    """graphsurgeon loses nodes of branches in branches: then they stay branches."""
    case = next(c for c in cases if c.name == "test_affine_grid_2d_expanded")
    shrink(case.model, "", target="tensorrt").save(tmp_path / "m.onnx")
    feeds = {v.name: a for v, a in zip(case.model.graph.input, case.data_sets[0][0], strict=True)}
    (want,) = run(case.model.SerializeToString(), feeds)
    (got,) = run(str(tmp_path / "m.onnx"), feeds)
    np.testing.assert_allclose(got, want, atol=1e-6)

"""onnxruntime as the judge of ONNX models."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto


def run(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    """The outputs of a model, with nothing optimised by onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def agree(
    before: ModelProto, after: ModelProto, feeds: dict[str, Any], error: float = 1e-5
) -> None:
    """Fail unless two models give the same outputs, relative to the largest number in each."""
    for want, got in zip(run(before, feeds), run(after, feeds), strict=True):
        assert want.shape == got.shape
        assert want.dtype == got.dtype
        assert np.abs(want).max(initial=0) > 1e-2, "the outputs are too small to tell"
        np.testing.assert_allclose(
            got, want, rtol=0, atol=error * float(np.abs(want).max(initial=0))
        )

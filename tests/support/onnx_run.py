"""onnxruntime as the oracle for ONNX models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto


def outputs_of(model: Path | ModelProto, feeds: Any, *, plain: bool = False) -> list[Any]:
    """The outputs that onnxruntime computes.

    Args:
        model: The model or its file.
        feeds: Arrays by name, or the one array for a model of one input.
        plain: Turn off onnxruntime's optimisations.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    if not isinstance(feeds, dict):
        feeds = {session.get_inputs()[0].name: feeds}
    return list(session.run(None, feeds))


def agree(
    before: ModelProto, after: ModelProto, feeds: dict[str, Any], error: float = 1e-5
) -> None:
    """Fail unless two models give the same outputs, relative to the largest number in each."""
    pairs = (outputs_of(m, feeds, plain=True) for m in (before, after))
    for want, got in zip(*pairs, strict=True):
        assert want.shape == got.shape
        assert want.dtype == got.dtype
        assert np.abs(want).max(initial=0) > 1e-2, "the outputs are too small to tell"
        np.testing.assert_allclose(
            got, want, rtol=0, atol=error * float(np.abs(want).max(initial=0))
        )

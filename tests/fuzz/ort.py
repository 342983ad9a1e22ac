"""onnxruntime without optimisations and logs, as the oracle for ONNX models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

onnxruntime.set_default_logger_severity(4)


class OrtError(Exception):
    """onnxruntime does not load or run a model."""


class NoKernel(OrtError):
    """onnxruntime has no kernel for an operator in an element type."""


class Session:
    """A model in onnxruntime."""

    def __init__(self, model: onnx.ModelProto | Path) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            kind = NoKernel if "NOT_IMPLEMENTED" in str(error) else OrtError
            raise kind(f"does not load: {error}") from error
        self.inputs = [i.name for i in self._session.get_inputs()]
        shapes = [i.shape for i in self._session.get_inputs()]
        self.open_batch = any(shape and isinstance(shape[0], str) for shape in shapes)
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Run the model; returns all outputs."""
        try:
            return list(self._session.run(None, dict(feeds)))
        except Exception as error:
            raise OrtError(f"does not run: {error}") from error


def run_model(model: onnx.ModelProto | Path, feeds: Mapping[str, Any]) -> list[Any]:
    """Load and run once."""
    return Session(model).run(feeds)

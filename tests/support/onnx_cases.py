"""The node tests of the onnx package, as they are and with constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


def feeds_of(case: Any) -> dict[str, Any]:
    inputs = case.model.graph.input
    return {i.name: v for i, v in zip(inputs, case.data_sets[0][0], strict=False)}


@dataclass
class Known:
    """A case whose operands beside the first are constants: weights, shapes, axes, scales."""

    name: str
    model: onnx.ModelProto
    data_sets: list[Any]

    @classmethod
    def of(cls, case: Any) -> Known | None:
        feeds = list(feeds_of(case).items())
        first, rest = feeds[:1], feeds[1:]
        if not rest or not all(isinstance(v, (np.ndarray, np.generic)) for _, v in rest):
            return None
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        del model.graph.input[1:]
        for name, array in rest:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return cls(case.name, model, [([v for _, v in first], None)])

"""Small networks as ONNX files, for plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from .cli import write


def residual_model(path: Path, name: str = "block") -> Path:
    """A convolution and two residual blocks with a dense layer behind, for a symbolic batch."""
    rng = np.random.default_rng(0)
    nodes, tensors, last = [], [], "x"

    def layer(op: str, out: str, shape: tuple[int, ...], *inputs: str, **attributes: Any) -> None:
        weight = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        tensors.append(numpy_helper.from_array(weight, f"w_{out}"))
        nodes.append(
            helper.make_node(op, [*inputs, f"w_{out}"], [out], name=f"{name} {out}", **attributes)
        )

    layer("Conv", "stem", (8, 1, 3, 3), "x", pads=[1, 1, 1, 1])
    nodes.append(helper.make_node("Relu", ["stem"], ["stem_r"]))
    last = "stem_r"
    for i in range(2):
        layer("Conv", f"a{i}", (16, 8, 3, 3), last, pads=[1, 1, 1, 1])
        nodes.append(helper.make_node("Relu", [f"a{i}"], [f"r{i}"]))
        layer("Conv", f"b{i}", (8, 16, 3, 3), f"r{i}", pads=[1, 1, 1, 1])
        nodes.append(helper.make_node("Add", [last, f"b{i}"], [f"{name} s{i}"]))
        last = f"{name} s{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
    layer("Gemm", "y", (5, 8), "f", transB=1)
    return write(path, nodes, {"x": ["n", 1, 6, 6]}, {"y": ["n", 5]}, tensors)

"""A network that has the pattern 2:4 in some of its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper

from .cli import write


def sparse_model(path: Path, channels: int = 256) -> Path:
    """Three 1x1 convolutions: with the pattern, without it, and along another axis only; and a MatMul with it."""
    rng = np.random.default_rng(0)
    arrays = {n: rng.standard_normal((channels, channels, 1, 1)) * 0.1 for n in ("a", "b", "c")}
    arrays["a"][:, 1::2] = 0
    arrays["c"][1::2] = 0
    arrays["d"] = rng.standard_normal((channels, 8))
    arrays["d"][::4] = arrays["d"][1::4] = 0
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["1"], name="first"),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "b"], ["3"], name="second"),
        helper.make_node("Relu", ["3"], ["4"]),
        helper.make_node("Conv", ["4", "c"], ["5"], name="third"),
        helper.make_node("GlobalAveragePool", ["5"], ["6"]),
        helper.make_node("Flatten", ["6"], ["7"]),
        helper.make_node("MatMul", ["7", "d"], ["y"], name="head"),
    ]
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    return write(path, nodes, {"x": [1, channels, 2, 2]}, {"y": [1, 8]}, tensors)

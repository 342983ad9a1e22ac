"""Whole-process time of ``graphshrink in out`` against ``onnxslim in out``, and growth with the graph.

Runs of both alternate; a ratio below 1 means that graphshrink is faster. Run from the root of a checkout::

    python benchmarks/compile_time.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

ROUNDS = 7


def seconds(command: list[str]) -> float:
    """The time that a command takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def chain(length: int, path: Path) -> None:
    """Alternating 1x1 convolutions and ReLUs."""
    weight = np.full((4, 4, 1, 1), 0.25, np.float32)
    nodes = []
    for i in range(length // 2):
        nodes.append(helper.make_node("Conv", [f"v{2 * i}", "w"], [f"v{2 * i + 1}"]))
        nodes.append(helper.make_node("Relu", [f"v{2 * i + 1}"], [f"v{2 * i + 2}"]))
    shape = [1, 4, 8, 8]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"v{length}", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def main() -> None:
    """Measure and print."""
    import torch
    from zoo.models import make

    warnings.filterwarnings("ignore")
    tools = {
        name: str(Path(sys.executable).with_name(name)) for name in ("graphshrink", "onnxslim")
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        print(
            f"{'model':<14}{'graphshrink':>12}{'onnxslim':>10}{'ratio':>8}  (medians of {ROUNDS}, s)"
        )
        for name in ("resnet50", "mobilenet_v2", "densenet121"):
            path = Path(folder) / f"{name}.onnx"
            image = torch.randn(1, 3, 224, 224)
            torch.onnx.export(make(name), (image,), path, dynamo=True, verbose=False,
                              optimize=False, external_data=False)  # fmt: skip
            times: list[list[float]] = []
            for turn in range(ROUNDS + 1):
                pair = [0.0, 0.0]
                for which in ((0, 1), (1, 0))[turn % 2]:
                    tool = ("graphshrink", "onnxslim")[which]
                    pair[which] = seconds([tools[tool], str(path), str(out)])
                if turn:
                    times.append(pair)
            ours, theirs = (statistics.median(t[i] for t in times) for i in (0, 1))
            ratio = statistics.median(a / b for a, b in times)
            print(f"{name:<14}{ours:>12.2f}{theirs:>10.2f}{ratio:>8.2f}")
        taken = {}
        for length in (10_000, 100_000):
            path = Path(folder) / f"chain{length}.onnx"
            chain(length, path)
            command = [tools["graphshrink"], str(path), str(out)]
            taken[length] = min(seconds(command) for _ in range(3))
            print(f"chain of {length:>7,} nodes: {taken[length]:.2f} s")
        print(f"ten times the nodes take {taken[100_000] / taken[10_000]:.1f} times as long")


if __name__ == "__main__":
    main()

"""Small files that ask for much: bounded before any work, in a process that may not take much memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

MEMORY = 8 << 30
"""Of address space: torch's and onnxruntime's libraries alone map some of it."""
SECONDS = 60


def limited(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command with a limit on its memory and its time."""
    return subprocess.run(
        [sys.executable, "-m", "graphshrink", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )


def info(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def built(nodes: list[Any], functions: list[Any] | None = None, **numbers: Any) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", "n")],
        [info("y", "m")],
        [numpy_helper.from_array(np.asarray(a, np.int64), name) for name, a in numbers.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions or [], ir_version=8)


HUGE = 1 << 40
node = helper.make_node
READ = [node("Cast", ["big"], ["c"], to=TensorProto.FLOAT), node("Add", ["x", "c"], ["y"])]
BOMBS = {
    "filled": [node("ConstantOfShape", ["s"], ["big"])],
    "reshaped": [node("ConstantOfShape", ["s"], ["b"]), node("Reshape", ["b", "m"], ["big"])],
    "expanded": [node("Expand", ["one", "s"], ["big"])],
    "tiled": [node("Tile", ["one", "s"], ["big"])],
    "ranged": [node("Range", ["zero", "end", "step"], ["big"])],
    "window": [node("HannWindow", ["end"], ["big"])],
    "computed": [
        node("Mul", ["half", "half"], ["size"]),
        node("ConstantOfShape", ["size"], ["b"]),
        node("Neg", ["b"], ["big"]),
    ],
    "joined": [
        node("Concat", [f"j{i}" if i else "one"] * 16, [f"j{i + 1}" if i < 9 else "big"], axis=0)
        for i in range(10)
    ],
}


def bomb(kind: str) -> ModelProto:
    return built(
        [*BOMBS[kind], *READ], s=[HUGE], m=[-1], one=[1], zero=0, end=HUGE, step=1, half=[1 << 20]
    )


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_takes_little_memory(kind: str, tmp_path: Path) -> None:
    path, out = tmp_path / "bomb.onnx", tmp_path / "out.onnx"
    before = bomb(kind)
    path.write_bytes(before.SerializeToString())
    assert path.stat().st_size < 2000
    done = limited(path, out)
    assert (done.returncode, done.stderr) == (0, "")
    kinds = [n.op_type for n in before.graph.node]
    assert [n.op_type for n in onnx.load(out).graph.node] == kinds


@pytest.mark.parametrize("kind", ["reshaped", "expanded"])
@pytest.mark.parametrize("target", ["tensorrt", "tflite", "inspect", "compare", "check"])
def test_no_other_way_takes_much_memory(kind: str, target: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnx"
    path.write_bytes(bomb(kind).SerializeToString())
    arguments: dict[str, tuple[object, ...]] = {
        "tensorrt": (path, tmp_path / "out.onnx", "--target", "tensorrt"),
        "tflite": (path, tmp_path / "out.tflite"),
        "inspect": ("inspect", path, "--text"),
        "compare": ("compare", path, path),
        "check": (path, tmp_path / "out.onnx", "--check"),
    }
    done = limited(*arguments[target])
    assert done.returncode == (0 if target == "inspect" else done.returncode)
    assert done.returncode in (0, 2), done.stderr
    assert len(done.stderr.splitlines()) <= 1
    assert "a fault of ours" not in done.stderr

"""Small files that demand much memory or time are refused before any work; tested in a process with little memory."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import ModelError, shrink_graph
from support.cli import fails, small_model
from support.onnx_run import agree

MEMORY = 8 << 30
"""The limit on address space; the libraries alone map some of it."""

DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from support.cli import call
for line in sys.stdin.read().splitlines():
    done = call(*line.split("|"))
    print(done.code, done.err.strip().replace(chr(10), " / "), flush=True)
"""


def limited(*calls: tuple[object, ...]) -> list[tuple[int, str]]:
    """Exit code and error of each call, all in one process with limits on memory and time."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(Path(__file__).parents[1])],
        input="\n".join("|".join(map(str, arguments)) for arguments in calls),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )
    assert done.returncode == 0, done.stderr
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    assert len(lines) == len(calls)
    return [(int(code), error) for code, _, error in lines]


def info(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def built(nodes: list[Any], functions: list[Any] | None = None, **numbers: Any) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", 1)],
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
        node("Sub", ["s", "one"], ["size"]),
        node("ConstantOfShape", ["size"], ["b"]),
        node("Neg", ["b"], ["big"]),
    ],
    "joined": [
        node("Concat", [f"j{i}" if i else "one"] * 16, [f"j{i + 1}" if i < 9 else "big"], axis=0)
        for i in range(10)
    ],
    # Each of them fits into memory, all together do not.
    "many": [
        *(node("Expand", ["one", "half"], [f"h{i}"]) for i in range(16)),
        *(node("Neg", [f"h{i}"], [f"n{i}"]) for i in range(16)),
        node("Concat", [f"n{i}" for i in range(16)], ["all"], axis=0),
        node("ReduceMax", ["all"], ["big"], keepdims=1),
    ],
}


def bomb(kind: str) -> ModelProto:
    numbers = {"s": [HUGE], "m": [-1], "one": [1], "zero": 0, "end": HUGE, "step": 1}
    return built([*BOMBS[kind], *READ], **numbers, half=[1 << 27])


def test_small_files_take_little_memory(tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = []
    for kind in BOMBS:
        path = tmp_path / f"{kind}.onnx"
        path.write_bytes(bomb(kind).SerializeToString())
        assert path.stat().st_size < 3000
        calls += [(path, tmp_path / f"{kind}.out.onnx"), ("inspect", path, "--text")]
    assert limited(*calls) == [(0, "")] * len(calls)
    for kind in BOMBS:
        written = tmp_path / f"{kind}.out.onnx"
        assert written.stat().st_size < 3000
        kept = [n.op_type for n in onnx.load(written).graph.node]
        left = iter(n.op_type for n in bomb(kind).graph.node)
        assert all(op in left for op in kept), kept  # Needless nodes may go, nothing is computed.
        assert kept[-1] == "Add"
        assert len(kept) > 1


def test_no_target_and_no_run_takes_much_memory(tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = []
    for kind in ("reshaped", "expanded", "ranged"):
        path = tmp_path / f"{kind}.onnx"
        path.write_bytes(bomb(kind).SerializeToString())
        calls += [
            (path, tmp_path / "trt.onnx", "--target", "tensorrt"),
            (path, tmp_path / "out.tflite"),
            ("compare", path, path),
            (path, tmp_path / "out.onnx", "--check"),
        ]
    for call, (code, error) in zip(calls, limited(*calls), strict=True):
        assert code in (0, 2), (call, error)
        assert " / " not in error
        assert "a bug in graphshrink" not in error
        if ("compare" in call or "--check" in call) and "ranged" not in str(call):
            assert "cannot be run here" in error
            assert "bytes; this machine has" in error


def test_inputs_that_no_memory_holds(tmp_path: Path) -> None:
    model = small_model(tmp_path / "m.onnx")
    for extra in (("compare", model, model), (model, tmp_path / "o.onnx", "--check")):
        said = fails(*extra, "--input", "x:99999999999x3x16x16")
        assert "this machine has" in said
        assert "--input" in said


def called(depth: int, times: int) -> ModelProto:
    """A chain of functions of the given depth, which ends in a Relu."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for level in range(depth):
        names = ["a", *(f"t{i}" for i in range(1, times)), "b"]
        kind, domain = ("Relu", "") if level == depth - 1 else (f"F{level + 1}", "own")
        nodes = [node(kind, [p], [q], domain=domain) for p, q in itertools.pairwise(names)]
        functions.append(helper.make_function("own", f"F{level}", ["a"], ["b"], nodes, opsets))
    made = built([node("F0", ["x"], ["y"], domain="own")], functions)
    made.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    return made


def test_functions_that_multiply_are_refused(tmp_path: Path) -> None:
    small = called(5, 3)
    agree(small, shrink_graph(small), {"x": np.float32([2])})
    path = tmp_path / "f.onnx"
    for depth, times, count in ((17, 2, "131,071"), (60, 2, "more than 10^18"), (2000, 3, "more")):
        path.write_bytes(called(depth, times).SerializeToString())
        for arguments in (
            (path, tmp_path / "o.onnx"),
            (path, tmp_path / "o.onnx", "--target", "tensorrt"),
            ("inspect", path),
            ("compare", path, path),
        ):
            said = fails(*arguments)
            assert f"expand to {count}" in said
            assert "at most 100,000" in said
    ring = called(3, 1)
    ring.functions[2].node[0].op_type, ring.functions[2].node[0].domain = "F0", "own"
    with pytest.raises(ModelError, match="function 'F0' calls itself"):
        shrink_graph(ring)


def test_a_tensor_that_claims_more_than_the_file_has(tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    for dims in ([HUGE, 4], [1 << 62] * 3, [5000]):
        for place in ("initializer", "constant", "body"):
            tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
            made = built([node("Add", ["x", "w"], ["y"])])
            constant = node("Constant", [], ["w"], value=tensor)
            if place == "initializer":
                made.graph.initializer.append(tensor)
            elif place == "constant":
                made.graph.node.insert(0, constant)
            else:
                body = helper.make_graph([constant], "b", [], [info("w")])
                truth = node("Constant", [], ["t"], value=numpy_helper.from_array(np.array(True)))
                choice = node("If", ["t"], ["w"], then_branch=body, else_branch=body)
                made.graph.node.insert(0, choice)
                made.graph.node.insert(0, truth)
            path.write_bytes(made.SerializeToString())
            said = fails(path, out)
            assert "tensor 'w' claims" in said
            assert "m.onnx is damaged" in said


def test_bodies_nested_too_deeply(tmp_path: Path) -> None:
    """Deeper than protobuf reads; made by hand, as protobuf's own classes do not nest as deeply either."""

    def field(number: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(200):
        attribute = field(1, b"body") + field(6, graph)
        graph = field(1, field(4, b"If") + field(5, attribute))
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11"))
    assert "too deeply" in fails("inspect", path)


def test_files_that_do_not_end(tmp_path: Path) -> None:
    model, out, pipe = small_model(tmp_path / "m.onnx"), tmp_path / "o.onnx", tmp_path / "pipe"
    os.mkfifo(pipe)
    lite = tmp_path / "pipe.tflite"
    os.mkfifo(lite)
    calls: list[tuple[object, ...]] = [("inspect", lite), ("compare", model, lite)]
    for endless in (pipe, "/dev/zero"):
        calls += [
            (endless, out),
            ("inspect", endless),
            ("compare", endless, model),
            ("compare", model, model, "--data", endless),
            ("inspect", model, "--trt-log", endless),
            (model, out, "--passes", f"remove-activations{{plan={endless}}}"),
        ]
    for code, error in limited(*calls):
        assert code == 2
        assert "is a device or a pipe: give a regular file" in error

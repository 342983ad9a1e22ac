"""Runs the command line inside this process, and makes small models for it."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from graphshrink.cli import main


class Done:
    """The result of a call: exit code, standard output and standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def call(*arguments: Any) -> Done:
    """Run ``graphshrink`` with these arguments."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["graphshrink", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
    return Done(code, out.getvalue(), err.getvalue())


def succeeds(*arguments: Any) -> str:
    """The standard output of a call that must succeed."""
    done = call(*arguments)
    assert done.code == 0, done.err
    return done.out


def fails(*arguments: Any, code: int = 2) -> str:
    """The one line that a call which must fail prints."""
    done = call(*arguments)
    assert done.code == code, done.err
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("graphshrink: ")
    assert "a bug in graphshrink" not in lines[0]
    return lines[0]


def write(
    path: Path, nodes: list[Any], inputs: Any, outputs: Any, tensors: list[Any], *, opset: int = 17
) -> Path:
    """An ONNX file of float32 inputs and outputs, given as shapes by name."""
    made = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in values.items()]
        for values in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "g", *made, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def small_model(path: Path) -> Path:
    """Conv, batch norm and SiLU for a symbolic batch."""
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "b": (8,), "gamma": (8,), "beta": (8,), "mean": (8,)}
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    arrays["var"] = rng.uniform(0.5, 1.5, 8).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Sigmoid", ["n"], ["s"]),
        helper.make_node("Mul", ["n", "s"], ["y"]),
    ]
    return write(
        path,
        nodes,
        {"x": ["batch", 3, 16, 16]},
        {"y": ["batch", 8, 16, 16]},
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )


def external_model(folder: Path, location: str) -> Path:
    """A 4x3 dense layer whose weight is in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "48")):
        tensor.external_data.add(key=key, value=value)
    folder.mkdir(exist_ok=True)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    return write(folder / "m.onnx", [node], {"x": [1, 3]}, {"y": [1, 4]}, [tensor])

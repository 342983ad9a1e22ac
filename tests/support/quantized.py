"""Small ONNX networks to quantise, and onnxruntime's view of the results."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import shrink
from support.onnx_run import outputs_of

IMAGES = np.random.default_rng(0).standard_normal((48, 3, 12, 12)).astype(np.float32)


class Net:
    """An ONNX model that is built layer by layer."""

    def __init__(self, *shape: Any, opset: int = 17, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.rng, self.opset, self.shape = np.random.default_rng(seed), opset, shape

    def constant(self, name: str, array: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def add(self, kind: str, inputs: list[str], out: str, **attrs: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attrs))
        return out

    def conv(self, x: str, out: str, fan_in: int, fan_out: int, kernel: int = 3, groups: int = 1) -> str:  # fmt: skip
        shape = (fan_out, fan_in // groups, kernel, kernel)
        weight = self.rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        names = [self.constant(f"{out}.w", weight), self.constant(f"{out}.b", self.rng.standard_normal(fan_out) / 5)]  # fmt: skip
        pads = [kernel // 2] * 4
        return self.add("Conv", [x, *names], out, pads=pads, kernel_shape=[kernel] * 2, group=groups)  # fmt: skip

    def dense(self, x: str, out: str, fan_in: int, fan_out: int) -> str:
        weight = self.rng.standard_normal((fan_out, fan_in)) / fan_in**0.5
        names = [self.constant(f"{out}.w", weight), self.constant(f"{out}.b", self.rng.standard_normal(fan_out))]  # fmt: skip
        return self.add("Gemm", [x, *names], out, transB=1)

    def model(self, *outputs: str) -> ModelProto:
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs], self.tensors,
        )  # fmt: skip
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )


def network(act: str = "Relu", batch: Any = "n") -> ModelProto:
    """Convolutions of all kinds, a residual sum, a concatenation, pools and a classifier."""
    net = Net(batch, 3, 12, 12)
    if act == "Clip":
        net.constant("low", 0)
        net.constant("high", 6)

    def activation(x: str) -> str:
        clip = act == "Clip"
        return net.add(act, [x, "low", "high"] if clip else [x], f"{x}.act")

    first = activation(net.conv("x", "stem", 3, 16))
    middle = activation(net.conv(first, "depthwise", 16, 16, groups=16))
    total = net.add("Add", [net.conv(middle, "project", 16, 16, 1), first], "sum")
    parts = [
        activation(net.conv(total, name, 16, 8, kernel))
        for name, kernel in (("left", 1), ("right", 3))
    ]
    joined = net.add("Concat", parts, "joined", axis=1)
    pooled = net.add("MaxPool", [joined], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    last = activation(net.conv(pooled, "head", 16, 32))
    flat = net.add("Flatten", [net.add("GlobalAveragePool", [last], "mean")], "flat")
    return net.model(net.dense(flat, "fc", 32, 10))


def quantized(model: Any, options: str = "", data: Any = IMAGES, **more: Any) -> Any:
    text = f"default,quantize{{{options}}}" if options else "default,quantize"
    return shrink(model, text, calibration=data, **more)


def kinds(model: ModelProto, tmp_path: Path) -> Counter[str]:
    """The operators of onnxruntime's optimised graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)


def error(model: ModelProto, made: ModelProto, x: Any, plain: bool = False) -> float:
    """The squared error of the outputs, relative to their variance."""
    (want,), (got,) = outputs_of(model, x), outputs_of(made, x, plain=plain)
    return float(np.square(want - got).mean() / want.var())


def constants(model: ModelProto) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}

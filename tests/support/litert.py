"""LiteRT as the oracle for .tflite files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.passes import Pipeline
from graphshrink.targets.emitted import Emitted
from graphshrink.targets.tflite import Options
from graphshrink.targets.tflite.convert import flat_model
from graphshrink.targets.tflite.flat import FlatModel
from graphshrink.targets.tflite.write import to_bytes
from support.onnx_run import outputs_of

KERNELS = ("xnnpack", "builtin")


def interpreter(model: Path | bytes, kernels: str = "builtin") -> Any:
    """An interpreter with XNNPACK, or with LiteRT's own kernels alone."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = {
        "xnnpack": OpResolverType.BUILTIN,
        "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    }[kernels]
    source = {"model_path": str(model)} if isinstance(model, Path) else {"model_content": model}
    return Interpreter(**source, num_threads=1, experimental_op_resolver_type=kind)


def run(
    model: Path | bytes,
    feeds: Mapping[str, Any],
    kernels: str,
    orders: Mapping[str, Mapping[str, list[int]]] | None = None,
) -> dict[str, Any]:
    """The outputs that LiteRT computes, by the signature's names.

    Args:
        model: The file or its bytes.
        feeds: Arrays by name, in the order of axes that the original model has.
        kernels: One of :data:`KERNELS`.
        orders: The stored order of the axes of every ``inputs`` and ``outputs`` entry; plain when not given.
    """
    loaded = interpreter(model, kernels)
    runner = loaded.get_signature_runner("serving_default")
    given = {}
    for name, detail in runner.get_input_details().items():
        array = np.asarray(feeds[name])
        if orders is not None:
            array = array.transpose(orders["inputs"][name])
        given[name] = array.astype(detail["dtype"]).copy(order="C")
    made = runner(**given)
    if orders is None:
        return dict(made)
    return {n: np.transpose(made[n], np.argsort(orders["outputs"][n])) for n in orders["outputs"]}


def check_shapes(model: FlatModel, content: bytes) -> None:
    """Check the declared size of every tensor against the size that LiteRT gives it."""
    loaded = interpreter(content)
    loaded.allocate_tensors()
    found = {d["name"]: tuple(d["shape"]) for d in loaded.get_tensor_details()}
    for tensor in model.tensors():
        if tensor.is_static and tensor.name in found:
            assert found[tensor.name] == tensor.shape, (tensor.name, tensor.shape)


def run_saved(done: Emitted, feeds: Any, kernels: str) -> list[Any]:
    """The outputs of a saved file, from arrays by name or in order, in the original order of axes."""
    if not isinstance(feeds, Mapping):
        items = feeds if isinstance(feeds, list | tuple) else [feeds]
        feeds = dict(zip(done.data["inputs"], items, strict=True))
    return list(run(done.files[0], feeds, kernels, done.data).values())


def relative(want: Any, got: Any) -> float:
    """The largest error relative to the largest number, which must not be near zero."""
    want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
    assert want.shape == got.shape, (want.shape, got.shape)
    assert np.abs(want).max(initial=0) > 1e-3, "the outputs are too small to tell"
    return float(np.abs(want - got).max(initial=0) / np.abs(want).max(initial=0))


def compared(model: ModelProto, feeds: dict[str, Any], **options: Any) -> FlatModel:
    """Convert an ONNX model, and compare LiteRT, with both kinds of kernels, with onnxruntime.

    Args:
        model: The model, which is imported as it is, with constants folded.
        feeds: Arrays by name.
        options: The target's options.

    Returns:
        The model that was written.
    """
    graph = from_onnx(model)
    Pipeline("fold-constants,prune-dead").run(graph)
    flat, _, orders = flat_model(graph, Options(**options))
    content = to_bytes(flat)
    if all(tensor.is_static for _, tensor in flat.inputs):
        check_shapes(flat, content)
    wanted = outputs_of(model, feeds, plain=True)
    for kernels in KERNELS:
        got = run(content, feeds, kernels, orders)
        for want, (name, array) in zip(wanted, got.items(), strict=True):
            error = relative(want, array)
            assert error <= 1e-5, f"{name} with {kernels}: {error:.1e}"
    return flat


def model_of(
    nodes: list[NodeProto],
    feeds: dict[str, Any],
    outputs: list[str],
    weights: Mapping[str, Any] | None = None,
    shapes: Mapping[str, list[int | str]] | None = None,
) -> ModelProto:
    """An ONNX model of some nodes.

    Args:
        nodes: The nodes in order.
        feeds: Inputs, by example.
        outputs: The names of the outputs.
        weights: Initializers.
        shapes: Shapes of inputs, if they differ from those of the examples.
    """
    graph = helper.make_graph(
        nodes,
        "case",
        [
            helper.make_tensor_value_info(
                n, helper.np_dtype_to_tensor_dtype(a.dtype), (shapes or {}).get(n, a.shape)
            )
            for n, a in feeds.items()
        ],
        [helper.make_empty_tensor_value_info(n) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def codes(model: FlatModel) -> list[str]:
    """The operators of a model, in order."""
    return [operation.code for operation in model.operations]

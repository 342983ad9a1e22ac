"""ONNX files by torch's own exporter, for graphs from torch that have calls which the IR does not know."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, shape_inference
from torch import nn

from ...hosts.onnx.operators import opset_of
from ...ir import Graph, ModelError
from ...ir.processors import session_threads

_STORED_BYTES = 1 << 10
"""Larger tensors are neither shapes nor axes, so that shape inference does not need their numbers."""


_COMPARED_BYTES = 1 << 30
"""Larger models are not run."""

_TOLERANCE = 0.02
"""How far outputs may be from those of the module, relative to the largest: half precision is rounded at other places."""


def exported(graph: Graph, opset: int | None = None) -> ModelProto:
    """Export a graph from torch by ``torch.onnx.export(dynamo=True)``, and remove stack traces.

    With onnxruntime installed, the file is run on the example inputs: torch's exporter ignores some arguments of calls.

    Args:
        graph: The graph.
        opset: The opset; the exporter's own choice if not given.

    Raises:
        ModelError: If the exporter fails, writes an invalid model, one that computes other numbers, or another opset.
        UsageError: If the shapes of inputs are not known.
    """
    from ...hosts.torch.modules.masks import without_masks
    from ..torch.emitter import example_inputs_of, to_fx

    module, inputs = without_masks(to_fx(graph)), example_inputs_of(graph)
    try:
        program = torch.onnx.export(module, inputs, dynamo=True, verbose=False, opset_version=opset)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ModelError(
            f"torch.onnx cannot export the module ({_first_cause(error)}): change the call in question, or export the model in "
            "another way and shrink the ONNX file"
        ) from error
    assert program is not None
    model: ModelProto = program.model_proto
    for node in model.graph.node:
        kept = [p for p in node.metadata_props if "stack_trace" not in p.key]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    if opset is not None and opset_of(model) != opset:
        raise ModelError(
            f"torch.onnx wrote opset {opset_of(model)} where opset={opset} was asked for: leave the option out"
        )
    _check(model)
    _compare(module, inputs, model)
    return model


def _first_cause(error: BaseException) -> str:
    """The first line of the innermost exception that caused an exporter's exception."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _check(model: ModelProto) -> None:
    """Check an exported model by strict inference of types and shapes: torch's exporter can write invalid models, such as a Squeeze of an axis longer than 1.

    Raises:
        ModelError: If types or shapes do not fit.
    """
    graph = model.graph
    bare = ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    bare.graph.node.extend(graph.node)
    bare.graph.input.extend(graph.input)
    bare.graph.output.extend(graph.output)
    for stored in graph.initializer:
        large = stored.ByteSize() > _STORED_BYTES
        kept = TensorProto(name=stored.name, dims=stored.dims, data_type=stored.data_type)
        bare.graph.initializer.append(kept if large else stored)
    try:
        shape_inference.infer_shapes(bare, check_type=True, strict_mode=True)
    except shape_inference.InferenceError as error:
        found = " ".join(str(error).split())
        raise ModelError(
            f"torch.onnx writes a model that no runtime loads ({found[:200]}): change the call in question, or export the "
            "model in another way and shrink the ONNX file"
        ) from error


def _compare(module: nn.Module, inputs: tuple[Any, ...], model: ModelProto) -> None:
    """Compare an exported model with its module, if onnxruntime is there and can run it.

    Raises:
        ModelError: If the outputs differ.
    """
    from torch.utils._pytree import tree_leaves

    if find_spec("onnxruntime") is None or model.ByteSize() > _COMPARED_BYTES:
        return
    given = [x for x in tree_leaves(inputs) if isinstance(x, torch.Tensor)]
    found = _run(model, given) if len(given) == len(model.graph.input) else None
    if found is None:
        return
    copies = [copy.deepcopy(inputs) for _ in range(2)]
    with torch.no_grad():
        first, second = (
            [x for x in tree_leaves(module(*c)) if isinstance(x, torch.Tensor)] for c in copies
        )
    for name, a, b, again in zip(
        [o.name for o in model.graph.output], first, found, second, strict=False
    ):
        want = a.detach().cpu().double().numpy()
        if not np.array_equal(want, again.detach().cpu().double().numpy(), equal_nan=True):
            continue  # It draws random numbers.
        finite = np.abs(want[np.isfinite(want)])
        allowed = _TOLERANCE * float(finite.max()) if finite.size else 0.0
        alike = want.shape == b.shape and np.allclose(b, want, rtol=0, atol=allowed, equal_nan=True)
        if not alike:
            raise ModelError(
                f"torch.onnx writes a model whose output {name} differs from the module's: change the call in question, or export "
                "the model in another way and shrink the ONNX file"
            )


def _run(model: ModelProto, inputs: list[torch.Tensor]) -> list[Any] | None:
    """The outputs in onnxruntime in float64; ``None`` if it cannot run the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = session_threads()
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {
            i.name: x.detach().cpu().numpy() for i, x in zip(model.graph.input, inputs, strict=True)
        }
        return [np.asarray(y).astype(np.float64) for y in session.run(None, feeds)]
    except Exception:  # onnxruntime lacks kernels, numpy element types.
        return None


__all__ = ["exported"]

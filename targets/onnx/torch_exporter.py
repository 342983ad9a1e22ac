"""ONNX files by torch's own exporter, for graphs from torch that have calls which the IR does not know."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, shape_inference

from ...hosts.onnx.operators import opset_of
from ...ir import Graph, ModelError

_STORED_BYTES = 1 << 10
"""Larger tensors are neither shapes nor axes, so that shape inference does not need their numbers."""


def exported(graph: Graph, opset: int | None = None) -> ModelProto:
    """Export a graph from torch by ``torch.onnx.export(dynamo=True)``, and remove stack traces.

    Args:
        graph: The graph.
        opset: The opset; the exporter's own choice if not given.

    Raises:
        ModelError: If the exporter fails, writes an invalid model, or another opset.
        UsageError: If the shapes of inputs are not known.
    """
    import torch

    from ...hosts.torch.modules.masks import without_masks
    from ..torch.emitter import example_inputs_of, to_fx

    module = without_masks(to_fx(graph))
    try:
        program = torch.onnx.export(
            module, example_inputs_of(graph), dynamo=True, verbose=False, opset_version=opset
        )
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
    return model


def _first_cause(error: BaseException) -> str:
    """The first line of the innermost exception that caused an exporter's exception."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _check(model: ModelProto) -> None:
    """Check an exported model by strict shape inference: torch's exporter can write invalid models, such as a Squeeze of an axis longer than 1.

    Raises:
        ModelError: If shapes do not fit.
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
        shape_inference.infer_shapes(bare, strict_mode=True)
    except shape_inference.InferenceError as error:
        found = " ".join(str(error).split())
        raise ModelError(
            f"torch.onnx writes a model that no runtime loads ({found[:200]}): change the call in question, or export the "
            "model in another way and shrink the ONNX file"
        ) from error


__all__ = ["exported"]

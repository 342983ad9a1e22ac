"""Models in a newer version of ONNX's operators, by onnx's own converter."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, helper, version_converter

from ...hosts.onnx.operators import opset_of
from ...hosts.onnx.tensors import embed, tensors_in
from ...ir import ModelError, UsageError
from ...ir.errors import one_line

MOST_BYTES = (1 << 31) - 1
"""The converter takes models up to this size, weights included: it reads them as one message."""


def in_newer_opset(
    model: ModelProto, opset: int, folder: Path | None, name: str
) -> tuple[ModelProto, str]:
    """A model in a newer opset, with external data read into it, and a note for the user; the given model if it has this opset already.

    Args:
        model: The model; it is not changed.
        opset: The version of ONNX's own operators.
        folder: The folder of its external data.
        name: The name of the model in errors.

    Raises:
        UsageError: If the model's opset is newer, or the installed onnx does not know the wanted one.
        ModelError: If the converter cannot convert the model.
    """
    own, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if opset == own:
        return model, ""
    if opset < own:
        raise UsageError(
            f"{name} has opset {own}, and no older one can be written: --opset {opset}"
        )
    if opset > newest:
        raise UsageError(f"--opset {opset}: onnx {onnx.__version__} knows opsets up to {newest}")
    if model.functions:
        raise ModelError(
            f"{name} cannot be written in opset {opset}: onnx's converter does not convert functions of a model"
        )
    copy = ModelProto()
    copy.CopyFrom(model)
    if folder is not None:
        embed(tensors_in(copy), folder)
    if copy.ByteSize() > MOST_BYTES:
        raise ModelError(
            f"{name} cannot be written in opset {opset}: onnx's converter takes models up to 2 GB: export it with a newer opset"
        )
    try:
        made = version_converter.convert_version(copy, opset)
        made.ir_version = max(made.ir_version, helper.find_min_ir_version_for(made.opset_import))
        onnx.checker.check_model(made)
    except Exception as error:  # The converter has errors of several classes.
        raise ModelError(
            f"{name} cannot be converted from opset {own} to {opset} by onnx: {one_line(error)}"
        ) from error
    for what, before, after in (
        ("inputs", model.graph.input, made.graph.input),
        ("outputs", model.graph.output, made.graph.output),
    ):
        if [v.name for v in before] != [v.name for v in after]:
            raise ModelError(f"{name} has other {what} after onnx converted it to opset {opset}")
    return made, f"opset {own} became opset {opset}, by the converter of onnx {onnx.__version__}"


__all__ = ["in_newer_opset"]

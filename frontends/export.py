"""torch.export programs to IR graphs: the unlifted module, read as an FX graph of ATen calls."""

from __future__ import annotations

import torch

from ..ir import Graph, ModelError
from .fx import from_fx


def from_export(program: torch.export.ExportedProgram) -> Graph:
    """Import an exported program.

    Raises:
        ModelError: If the program writes to its buffers or inputs.
    """
    kinds = {spec.kind.name for spec in program.graph_signature.output_specs}
    if "BUFFER_MUTATION" in kinds or "USER_INPUT_MUTATION" in kinds:
        raise ModelError(
            "the exported program writes to its buffers or inputs (a batch norm in training mode?): "
            "call model.eval() before torch.export.export"
        )
    module = program.module()
    if not isinstance(module, torch.fx.GraphModule):
        raise ModelError("the exported program has no graph module")
    return from_fx(module)

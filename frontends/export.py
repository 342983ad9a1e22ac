"""torch.export programs to IR graphs: the unlifted module, read as an FX graph of ATen calls."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..ir import Graph, ModelError
from .fx import from_fx
from .fx_copy import ModuleCopy, containers_kept
from .fx_trace import StateError, acts_alike, keeps_state, random_kept


def from_export(program: torch.export.ExportedProgram) -> Graph:
    """Import an exported program.

    Raises:
        ModelError: If the program writes to its buffers or inputs.
    """
    kinds = {spec.kind.name for spec in program.graph_signature.output_specs}
    if not kinds.isdisjoint(_MUTATIONS):
        raise ModelError(
            "the exported program writes to its buffers or inputs (a batch norm in training mode?): "
            "call model.eval() before torch.export.export"
        )
    module = program.module()
    if not isinstance(module, torch.fx.GraphModule):
        raise ModelError("the exported program has no graph module")
    return from_fx(module)


_MUTATIONS = {"BUFFER_MUTATION", "USER_INPUT_MUTATION", "PARAMETER_MUTATION"}


def exported(model: nn.Module, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """``torch.export.export`` of a module that stays what it was.

    Raises:
        StateError: If the module keeps values that its next call reads.
        Exception: Whatever torch raises where it cannot export.
    """
    shared = ModuleCopy(model)
    with containers_kept(model), random_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # About torch's own internals, nothing to act upon.
        program = torch.export.export(shared.module, inputs)
        changed = shared.changed()
        same = not changed or _same_again(program, shared.module, inputs)
        if not same and not acts_alike(model, program.module(), inputs):
            raise StateError(keeps_state(model, changed))
    return program


def _same_again(
    program: torch.export.ExportedProgram, module: nn.Module, inputs: tuple[Any, ...]
) -> bool:
    """Whether the next call computes the same, whatever the first one left behind."""
    try:
        again = torch.export.export(module, inputs)
    except Exception:
        return False
    same = program.graph_module.code == again.graph_module.code
    return same and _equal(program.constants, again.constants)


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    tensors = torch.Tensor
    return first.keys() == second.keys() and all(
        a is second[k]
        or (isinstance(a, tensors) and isinstance(second[k], tensors) and torch.equal(a, second[k]))
        for k, a in first.items()
    )

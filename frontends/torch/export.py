"""torch.export programs to IR graphs: the unlifted module is read as an FX graph of ATen calls."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from ...hosts.torch.copies import ModuleCopy, containers_kept
from ...ir import Graph, ModelError
from .importer import from_fx
from .trace import StateError, acts_alike, keeps_state, random_kept


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
    graph = from_fx(module)
    args, keywords = program.example_inputs or ((), {})
    if args and not keywords:
        graph.host = replace(graph.host, exported=tuple(args))
    return graph


_MUTATIONS = {"BUFFER_MUTATION", "USER_INPUT_MUTATION", "PARAMETER_MUTATION"}


def exported(model: nn.Module, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """``torch.export.export`` of a module, which is left unchanged.

    Raises:
        StateError: If the module keeps values that its next call reads.
        Exception: Whatever torch raises where it cannot export.
    """
    shared = ModuleCopy(model)
    with containers_kept(model), random_kept(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Warnings about torch's internals, which users cannot act on.
        program = torch.export.export(shared.module, inputs)
        kept = _left_behind(model, inputs)
        if kept and not acts_alike(model, program.module(), inputs):
            raise StateError(keeps_state(model, kept))
    return program


def _left_behind(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """The attributes that a call changes, found by a call on fake tensors: torch.export itself restores most of them."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shared = ModuleCopy(model, mode.from_tensor)
    fakes = tree_map(lambda x: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x, inputs)
    try:
        with mode, torch.no_grad():
            shared.module(*fakes)
    except Exception:
        return {"what a run on example_inputs alone can tell": None}
    return shared.changed()

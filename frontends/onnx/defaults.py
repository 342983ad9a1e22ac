"""Inputs with a default: initializers that a model lists as inputs as well, so that a caller may override them.

Exporters list all weights so (``keep_initializers_as_inputs``), and hardly any caller overrides one. They are read as
weights unless the user asks otherwise; files of TensorRT and TFLite have no such inputs at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from ...ir.errors import listed

OVERRIDABLE_FROM = 4
"""Before this IR version every initializer had to be listed as an input, and none can be overridden."""


def defaults(model: ModelProto) -> tuple[str, ...]:
    """The inputs that have a default."""
    if model.ir_version < OVERRIDABLE_FROM:
        return ()
    own = {t.name for t in model.graph.initializer}
    own |= {t.values.name for t in model.graph.sparse_initializer}
    return tuple(v.name for v in model.graph.input if v.name in own)


def hold_defaults(model: ModelProto) -> None:
    """Make the defaults constants, in place: the model loses these inputs."""
    gone = set(defaults(model))
    kept = [v for v in model.graph.input if v.name not in gone]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def held_note(names: Sequence[str], remedy: str) -> str:
    """The note that names inputs which became weights, and the option that keeps them inputs."""
    inputs = "1 input has" if len(names) == 1 else f"{len(names)} inputs have"
    kind = "is a weight here, no input" if len(names) == 1 else "are weights here, no inputs"
    note = f"{inputs} a default and {kind}: {listed(names)}"
    return f"{note} ({remedy})" if remedy else note


__all__ = ["defaults", "held_note", "hold_defaults"]

"""Inputs with a default: initializers that a model lists as inputs as well, so that a caller may override them.

Exporters list all weights so (``keep_initializers_as_inputs``), and hardly any caller overrides one. They are read as
weights unless the user asks otherwise; files of TensorRT and TFLite have no such inputs at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

OVERRIDABLE_FROM = 4
"""Before this IR version every initializer had to be listed as an input, and none can be overridden."""

_SHOWN = 5


def defaults(model: ModelProto) -> tuple[str, ...]:
    """The inputs that have a default."""
    if model.ir_version < OVERRIDABLE_FROM:
        return ()
    own = {t.name for t in model.graph.initializer}
    own |= {t.values.name for t in model.graph.sparse_initializer}
    return tuple(v.name for v in model.graph.input if v.name in own)


def hold_defaults(model: ModelProto) -> tuple[str, ...]:
    """Make the defaults constants, in place; returns the names of the inputs that went."""
    names = defaults(model)
    gone = set(names)
    kept = [v for v in model.graph.input if v.name not in gone]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return names


def held_note(names: Sequence[str]) -> str:
    """The note that names inputs which became weights."""
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (
        f"{len(names)} inputs have a default and are weights here, no inputs: {shown}{more} "
        "(--overridable-initializers keeps them as inputs)"
    )


__all__ = ["defaults", "held_note", "hold_defaults"]

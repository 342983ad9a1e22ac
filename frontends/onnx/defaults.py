"""Inputs with a default: initializers that a model lists as inputs as well, so that a caller may override them.

Files of TensorRT and TFLite have no such inputs. For them the defaults hold: they become constants, which the passes see too.
"""

from __future__ import annotations

from onnx import ModelProto

OVERRIDABLE_FROM = 4
"""Before this IR version every initializer had to be listed as an input, and none can be overridden."""


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
    kept = [v for v in model.graph.input if v.name not in set(names)]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return names


__all__ = ["defaults", "hold_defaults"]

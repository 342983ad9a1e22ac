"""Non-persistent buffers (in no ``state_dict``): making a ``GraphModule`` of a module loses which ones they are."""

from __future__ import annotations

from torch import fx, nn


def temporary(module: nn.Module) -> set[int]:
    """The buffers of a module that are not kept in its ``state_dict``, by identity."""
    return {
        id(m._buffers[name]) for m in module.modules() for name in m._non_persistent_buffers_set
    } - {id(None)}


def keep_temporary(made: fx.GraphModule, known: set[int]) -> None:
    """Mark buffers of a module as non-persistent, so that they stay out of its ``state_dict``."""
    for module in made.modules() if known else ():
        found = {name for name, tensor in module._buffers.items() if id(tensor) in known}
        module._non_persistent_buffers_set |= found


__all__ = ["keep_temporary", "temporary"]

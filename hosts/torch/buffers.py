"""Buffers that are in no ``state_dict``: a ``GraphModule`` that is made from a module forgets which they are."""

from __future__ import annotations

from torch import fx, nn


def temporary(module: nn.Module) -> set[int]:
    """The buffers of a module that are not kept in its ``state_dict``, by identity."""
    return {
        id(m._buffers[name]) for m in module.modules() for name in m._non_persistent_buffers_set
    } - {id(None)}


def keep_temporary(made: fx.GraphModule, known: set[int]) -> None:
    """Let buffers stay out of the ``state_dict`` of a module that reads them."""
    for module in made.modules() if known else ():
        found = {name for name, tensor in module._buffers.items() if id(tensor) in known}
        module._non_persistent_buffers_set |= found


__all__ = ["keep_temporary", "temporary"]

"""Memory: checks before a run whether its values fit."""

from __future__ import annotations

import os

from ..ir import Graph, ModelError


def check_memory(graph: Graph, name: str) -> None:
    """Check that no single value of a graph is larger than the memory of this machine.

    Args:
        graph: The graph to run.
        name: The model's name in errors.

    Raises:
        ModelError: If a value is larger; the message names it.
    """
    have = available_memory()
    results = (value for node in graph.nodes for value in node.outputs)
    for value in (*graph.inputs, *results):
        count, dtype = value.type.size, value.type.dtype
        if count is None or dtype is None or count * max(dtype.bits, 8) // 8 <= have:
            continue
        raise ModelError(
            f"{name} cannot be run here: {value.name!r} is {value.type}, {count * max(dtype.bits, 8) // 8:,} bytes; "
            f"this machine has {have:,}"
        )


def available_memory() -> int:
    """The bytes of memory of this machine; a very large number if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 62

"""torch as a host: element types, where IR nodes came from, and the modules of gated and masked networks."""

from __future__ import annotations

from ...ir import Graph


def is_from_torch(graph: Graph) -> bool:
    """Whether a graph came from a torch model; torch is not imported to tell."""
    return type(graph.host).__name__ == "FxHost"

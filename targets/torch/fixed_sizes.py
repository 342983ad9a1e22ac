"""Notes on sizes of the example inputs that became part of an emitted torch module."""

from __future__ import annotations

from ...hosts.torch.origins import FxHost, FxOrigin
from ...ir import Graph, Reshape, Resize


def fixed_sizes(graph: Graph) -> list[str]:
    """A note for each call whose sizes follow the inputs, and that a pass wrote anew with those of the example inputs."""
    host = graph.host
    if not isinstance(host, FxHost) or not host.baked:
        return []
    kept: set[str] = set()
    anew = False
    for node in graph.nodes:
        if isinstance(node.origin, FxOrigin):
            kept.update(node.origin.nodes)
        else:
            anew = anew or isinstance(node.op, (Reshape, Resize))
    if not anew:
        return []
    return [
        f"{name} was rewritten with the sizes {sizes}, which follow the inputs: the result is for inputs as large as example_inputs"
        for name, sizes in host.baked.items()
        if name not in kept
    ]


__all__ = ["fixed_sizes"]

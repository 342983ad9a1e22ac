"""Notes on sizes of the example inputs that became part of an emitted torch module."""

from __future__ import annotations

from ...hosts.torch.calls import call_name
from ...hosts.torch.origins import FxHost, FxOrigin
from ...ir import AveragePool, Conv, Graph, MaxPool, Op, Reshape, Resize

_SHAPING: tuple[type[Op], ...] = (Reshape, Resize)
_POOLING: tuple[type[Op], ...] = (AveragePool, MaxPool, Conv)
"""What an adaptive pool becomes: its windows, or a convolution that it is merged with."""


def fixed_sizes(graph: Graph) -> list[str]:
    """A note for each call whose sizes follow the inputs, and that a pass wrote anew with those of the example inputs."""
    host = graph.host
    if not isinstance(host, FxHost) or not host.baked:
        return []
    kept: set[str] = set()
    anew: set[type[Op]] = set()
    for node in graph.nodes:
        if isinstance(node.origin, FxOrigin):
            kept.update(node.origin.nodes)
        else:
            anew.add(type(node.op))
    return [
        f"{name} was rewritten with the sizes {sizes}, which follow the inputs: the result is for inputs as large as example_inputs"
        for name, sizes in host.baked.items()
        if name not in kept and not anew.isdisjoint(_POOLING if _is_pool(host, name) else _SHAPING)
    ]


def _is_pool(host: FxHost, name: str) -> bool:
    node = host.order[name]
    if node.op == "call_module":
        return "Adaptive" in type(host.module.get_submodule(str(node.target))).__name__
    return "adaptive" in call_name(node.target)


__all__ = ["fixed_sizes"]

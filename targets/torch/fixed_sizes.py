"""Notes on sizes of the example inputs that became part of an emitted torch module."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from ...hosts.torch.calls import call_name, shape_of_other
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
    values = {v.host for v in graph.inputs}
    for node in graph.nodes:
        whole = isinstance(node.origin, FxOrigin) and all(
            _has_other(host, name, values) for name in node.origin.nodes
        )
        if whole:
            kept.update(node.origin.nodes)
        else:
            anew.add(type(node.op))
        values.update(v.host for v in node.outputs)
    return [
        f"{name} was rewritten with the sizes {sizes}, which follow the inputs: the result is for inputs as large as example_inputs"
        for name, sizes in host.baked.items()
        if name not in kept and not anew.isdisjoint(_POOLING if _is_pool(host, name) else _SHAPING)
    ]


def _has_other(host: FxHost, name: str, values: Container[Any]) -> bool:
    """Whether a call finds a tensor of the shape that it takes from another one, if it does."""
    other = shape_of_other(host.order[name])
    return other is None or any(n in values for n, axis in host.alike(other.name) if axis is None)


def _is_pool(host: FxHost, name: str) -> bool:
    node = host.order[name]
    if node.op == "call_module":
        return "Adaptive" in type(host.module.get_submodule(str(node.target))).__name__
    return "adaptive" in call_name(node.target)


__all__ = ["fixed_sizes"]

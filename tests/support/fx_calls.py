"""One torch function as a traced module, and helpers to look at the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from graphshrink.ir import Graph, Opaque
from graphshrink.targets.torch.emitter import to_fx

CHECKS = ("fx:_guards_fn", "fx:aten._assert_tensor_metadata")
"""Calls that torch.export adds to check its inputs."""


class Call(nn.Module):
    """A module whose forward is one function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def traced(function: Callable[[Any], Any]) -> fx.GraphModule:
    """The trace of a function, or of a module."""
    return fx.symbolic_trace(
        nn.Sequential(function) if _is_leaf(function) else
        function if isinstance(function, nn.Module) else Call(function).eval()
    )  # fmt: skip


def _is_leaf(function: Any) -> bool:
    return isinstance(function, nn.Module) and type(function).__module__.startswith("torch.nn")


def ops(graph: Graph) -> list[str]:
    """The names of all ops; for opaque ones, the host's name."""
    found = [n.op.kind if isinstance(n.op, Opaque) else n.op.name for n in graph.nodes]
    return [k for k in found if k not in CHECKS]


def body(module: fx.GraphModule) -> str:
    """The code of a module without its signature, whose annotations are not kept."""
    return module.code.partition("def forward")[2].partition(":\n")[2]


def respelled(graph: Graph) -> fx.GraphModule:
    """The module written without copying any call of the host."""
    for node in graph.nodes:
        node.origin = None
    return to_fx(graph)

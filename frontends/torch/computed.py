"""Weights that a module computes from its own tensors at every call: ``F.conv2d(x, self.weight * self.gain)``, weight standardisation.

Passes see their numbers, which are those that the module computes; the calls stay for as long as their results are read.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from ... import ir
from ...hosts.torch.calls import call_name, is_aten
from ...hosts.torch.dtypes import DTYPES
from ...ir import DerivedTensor, Tensor
from .memory import is_inplace
from .registry import CALLS

_LAYERS = (ir.Conv, ir.ConvTranspose, ir.Linear, ir.MatMul, ir.LayerNorm, ir.GroupNorm)
"""Ops whose calls take a weight and a bias behind their input."""

_RANDOM = {
    "alpha_dropout", "bernoulli", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout", "feature_dropout",
    "gumbel_softmax", "multinomial", "normal", "native_dropout", "poisson", "rand_like", "randint_like", "randn_like", "random", "rrelu", "uniform",
}  # fmt: skip
"""Calls that draw random numbers."""


class Computed:
    """The values of a module that depend on nothing but its tensors.

    Args:
        module: The module; nothing is computed in training mode, which an exported program does not have.
        nodes: The nodes of its graph, in order.
        barrier: The names of nodes that share memory which is written.
    """

    def __init__(
        self, module: fx.GraphModule, nodes: Sequence[fx.Node], barrier: Container[str]
    ) -> None:
        self._module, self._modules = module, dict[str, nn.Module]()
        self._found: dict[str, Any] = {}
        self._sources: dict[str, tuple[str, ...]] = {}
        self._calls: dict[str, fx.Node] = {}
        exported = any(n.op == "call_function" and is_aten(n.target) for n in nodes)
        for node in [] if module.training and not exported else nodes:
            if node.name not in barrier:
                self._add(node)

    def _add(self, node: fx.Node) -> None:
        """Run a call on tensors without numbers, if it reads only what is known."""
        if node.op == "get_attr":
            held = operator.attrgetter(str(node.target))(self._module)
            if isinstance(held, torch.Tensor) and held.layout is torch.strided:
                self._found[node.name] = torch.empty_like(held, device="meta")
                self._sources[node.name] = (str(node.target),)
            return
        given = node.all_input_nodes
        if node.op not in ("call_function", "call_method") or not given:
            return
        if not all(s.name in self._found for s in given) or call_name(node.target) in _RANDOM:
            return
        if is_inplace(node, self._modules) or node.is_impure():
            return
        try:
            with torch.no_grad():
                self._found[node.name] = _called(node, self._found)
        except Exception:  # Whatever a call raises that needs numbers.
            return
        names = (name for s in given for name in self._sources[s.name])
        self._sources[node.name] = tuple(dict.fromkeys(names))
        self._calls[node.name] = node

    def weight(self, node: fx.Node) -> Tensor | None:
        """The numbers of a result that layers read as a weight or a bias; ``None`` if it is none."""
        found = self._found.get(node.name) if node.name in self._calls else None
        if not isinstance(found, torch.Tensor) or found.dtype not in DTYPES:
            return None
        if not any(_reads_weight(user, node) for user in node.users):
            return None
        held = [self._held(name) for name in self._sources[node.name]]
        sources = [
            ir.LazyTensor(tuple(t.shape), DTYPES[t.dtype], _Unread(), t)
            for t in held
            if t.dtype in DTYPES
        ]

        def compute() -> Any:
            return self._run(node).double().cpu().numpy()

        return DerivedTensor(
            tuple(found.shape), DTYPES[found.dtype], compute, sources=tuple(sources)
        )

    def owner(self, name: str) -> str | None:
        """The name of the one tensor of the same shape that a value is computed from; a ``weight`` comes first."""
        found = self._found.get(name)
        if not isinstance(found, torch.Tensor):
            return None
        same = [s for s in self._sources[name] if self._held(s).shape == found.shape]
        weights = [s for s in same if s.endswith(".weight")] if len(same) > 1 else same
        return weights[0] if len(weights) == 1 else None

    def _held(self, name: str) -> torch.Tensor:
        held: torch.Tensor = operator.attrgetter(name)(self._module)
        return held

    def _run(self, node: fx.Node) -> torch.Tensor:
        """The result of a call, on the module's tensors as they are now."""
        needed, pending = set[str](), [node]
        while pending:
            last = pending.pop()
            if last.name not in needed:
                needed.add(last.name)
                pending += last.all_input_nodes
        results: dict[str, Any] = {}
        with torch.no_grad():
            for source in self._module.graph.nodes:
                if source.name not in needed:
                    continue
                if source.op == "get_attr":
                    results[source.name] = self._held(str(source.target))
                else:
                    results[source.name] = _called(source, results)
                if source is node:
                    break
        found: torch.Tensor = results[node.name]
        return found


class _Unread:
    """The numbers of a source, which nobody asks for: only where they come from counts."""

    def __call__(self) -> Any:
        raise AssertionError("the numbers of a source are not read")


def _called(node: fx.Node, results: Mapping[str, Any]) -> Any:
    args: Any = fx.map_arg(node.args, lambda s: results[s.name])
    kwargs: Any = fx.map_arg(node.kwargs, lambda s: results[s.name])  # type: ignore[call-overload]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _reads_weight(user: fx.Node, node: fx.Node) -> bool:
    """Whether a call takes a value as its weight or bias."""
    if user.op not in ("call_function", "call_method"):
        return False
    name = call_name(user.target)
    entry = CALLS.get(name)
    norm = name in ("batch_norm", "aten.batch_norm")
    if not norm and (entry is None or not any(key[0] in _LAYERS for key in entry.makes)):
        return False
    given = [*user.args[1:], *user.kwargs.values()]
    return any(a is node for a in given) and user.args[:1] != (node,)


__all__ = ["Computed"]

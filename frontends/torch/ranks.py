"""Numbers of axes that a module tells without example inputs, and what it computes from them (``assert x.ndim == 4``).

An assertion and a layer that takes one number of axes alone make it certain. Other layers keep the number of axes, or that of their
operands: a convolution too, which also takes one sample without a batch axis.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from ... import ir
from ...hosts.torch.calls import call_name
from ...hosts.torch.modules.masks import plain_type
from .modules import hooked
from .registry import CALLS

_KEEPING_MODULES = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.padding._ConstantPadNd, nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd, nn.Identity, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.Upsample, nn.PixelShuffle,
)  # fmt: skip
_KEEPING_OPS = (
    ir.Activation, ir.Unary, ir.Scale, ir.LayerNorm, ir.GroupNorm, ir.Softmax, ir.Cast, ir.Pad, ir.Linear, ir.Identity, ir.Conv,
    ir.ConvTranspose, ir.MaxPool, ir.AveragePool,
)  # fmt: skip
_BROADCASTING = (ir.Add, ir.Sub, ir.Mul, ir.Div, ir.Min, ir.Max, ir.Pow, ir.Scale)


def told_ranks(module: fx.GraphModule) -> dict[str, Any]:
    """The calls that ask for a number of axes which is known, and those that compute with it, each with its result."""
    asking = [n for n in module.graph.nodes if _asks_rank(n) is not None]
    if not asking:
        return {}
    ranks = _Ranks(module).found
    results: dict[str, Any] = {}
    for node in module.graph.nodes:
        source, sources = _asks_rank(node), node.all_input_nodes
        if source is not None and source.name in ranks:
            results[node.name] = ranks[source.name]
        elif sources and node.op == "call_function" and all(s.name in results for s in sources):
            _compute(node, results)
    return results


def two_axes(module: fx.GraphModule) -> set[str]:
    """The values of a module without known shapes that certainly have two axes.

    Linear layers and functions keep all axes but the last. Two norms of different numbers of features on such a way can only norm
    those of the last axis, and ``nn.BatchNorm1d`` does that for two axes alone.
    """
    ranks, ways = _Ranks(module), dict[str, str]()
    features: dict[str, set[int]] = {}
    for node in module.graph.nodes:
        source = node.args[0] if node.args else None
        kept = isinstance(source, fx.Node) and ranks.keeps_axis_1(node)
        ways[node.name] = ways[source.name] if kept and isinstance(source, fx.Node) else node.name
        if kept and node.op == "call_module":
            found = ranks.modules[str(node.target)]
            if isinstance(found, nn.BatchNorm1d):
                features.setdefault(ways[node.name], set()).add(found.num_features)
    certain = {way for way, sizes in features.items() if len(sizes) > 1}
    return {name for name, way in ways.items() if way in certain}


def _compute(node: fx.Node, results: dict[str, Any]) -> None:
    """Add the result of a call that computes with known numbers."""
    known = getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")
    if not known and node.target is not torch._assert:
        return
    args: Any = fx.map_arg(node.args, lambda n: results[n.name])
    try:
        results[node.name] = node.target(*args)  # type: ignore[operator]
    except Exception:  # A failing assertion: it is for the host to raise it.
        return


def _asks_rank(node: fx.Node) -> fx.Node | None:
    """The value whose number of axes a call asks for."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    method = node.op == "call_method" and node.target in ("dim", "ndimension")
    attribute = node.target is builtins.getattr and node.args[1] == "ndim"
    return source if method or attribute else None


class _Ranks:
    """The numbers of axes of a module's values: from assertions, forwards, backwards, and forwards again."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.modules = module, dict(module.named_modules())
        self.found: dict[str, int] = {}
        nodes = list(module.graph.nodes)
        for node in nodes:
            self._assertion(node)
        self._forwards(nodes)
        for node in reversed(nodes):
            source = node.args[0] if node.args else None
            if isinstance(source, fx.Node) and source.name not in self.found:
                rank = self._given(node)
                if rank is None and self._keeps(node):
                    rank = self.found.get(node.name)
                if rank is not None:
                    self.found[source.name] = rank
        self._forwards(nodes)

    def _assertion(self, node: fx.Node) -> None:
        """``torch._assert(x.ndim == 4)``: without as many axes, the module raises."""
        test = node.args[0] if node.args else None
        if node.target is not torch._assert or not isinstance(test, fx.Node):
            return
        if test.target is not operator.eq or len(test.args) != 2:
            return
        asked, rank = test.args
        source = _asks_rank(asked) if isinstance(asked, fx.Node) else None
        if source is not None and type(rank) is int:
            self.found[source.name] = rank

    def _forwards(self, nodes: Sequence[fx.Node]) -> None:
        for node in nodes:
            if node.name not in self.found and (rank := self._result(node)) is not None:
                self.found[node.name] = rank

    def _result(self, node: fx.Node) -> int | None:
        if node.op == "get_attr":
            held = operator.attrgetter(str(node.target))(self.module)
            return held.ndim if isinstance(held, torch.Tensor) else None
        given = self._given(node)
        if given is not None:
            return given
        if self._keeps(node):
            source = node.args[0] if node.args else None
            return self.found.get(source.name) if isinstance(source, fx.Node) else None
        if node.op.startswith("call_") and _makes(node, _BROADCASTING):
            ranks = [self.found.get(s.name) for s in node.all_input_nodes]
            return max((r for r in ranks if r is not None), default=None) if None not in ranks else None  # fmt: skip
        return None

    def _given(self, node: fx.Node) -> int | None:
        """The number of axes that a layer takes and makes, whatever is in front of it."""
        if node.op == "call_module":
            kind, found = plain_type(self.modules[str(node.target)]), self.modules[str(node.target)]
            if hooked(found):
                return None
            return 4 if kind is nn.BatchNorm2d else 5 if kind is nn.BatchNorm3d else None
        return None

    def keeps_axis_1(self, node: fx.Node) -> bool:
        """Whether a module keeps the number of axes, and of three the size of the second one."""
        if node.op != "call_module" or not self._keeps(node):
            return False
        found = self.modules[str(node.target)]
        linear = isinstance(
            found, (nn.Linear, nn.BatchNorm1d, nn.Dropout, nn.Identity, nn.LayerNorm)
        )
        return linear or plain_type(found).__module__ == "torch.nn.modules.activation"

    def _keeps(self, node: fx.Node) -> bool:
        """Whether a call makes a value with as many axes as its first argument has."""
        if node.op == "call_module":
            found = self.modules[str(node.target)]
            kind = plain_type(found)
            activation = kind.__module__ == "torch.nn.modules.activation" and kind is not nn.MultiheadAttention  # fmt: skip
            ours = kind.__module__.startswith("torch.nn.modules.") and not hooked(found)
            return ours and (activation or issubclass(kind, _KEEPING_MODULES))
        return node.op.startswith("call_") and _makes(node, _KEEPING_OPS)


def _makes(node: fx.Node, ops: tuple[type[ir.Op], ...]) -> bool:
    entry = CALLS.get(call_name(node.target))
    made = entry.makes if entry is not None and entry.rule is not None else ()
    return bool(made) and all(key[0] in ops for key in made)


__all__ = ["told_ranks", "two_axes"]

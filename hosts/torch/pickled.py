"""Modules that survive pickling.

torch pickles the code of a ``GraphModule``, and traces it again when it is loaded. That loses what a trace does not show: calls of the
module's own buffers become constants, dataclasses become dicts, and some calls take no proxies. A :class:`ShrunkModule` is pickled in
torch's form, which torch alone can load, if it comes back the same; otherwise with its graph.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph_module import reduce_graph_module
from torch.fx.node import map_aggregate
from torch.utils._pytree import TreeSpec, tree_leaves

from .arguments import ArgumentsCodeGen
from .buffers import keep_temporary, temporary


class ShrunkModule(fx.GraphModule):
    """A ``GraphModule`` that is the same after it was pickled or copied."""

    def __reduce__(self) -> tuple[Any, ...]:
        theirs = super().__reduce__()
        if _comes_back(self, *theirs[1]):
            return theirs
        body = {k: v for k, v in self.__dict__.items() if k != "_graph"}
        nodes = [_stored(n) for n in self.graph.nodes]
        return _load, (body, nodes, self.graph._codegen, type(self).__name__)

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        made = super().__deepcopy__(memo)
        known = {id(memo[key]) for key in temporary(self) if key in memo}
        keep_temporary(made, known)
        return made


@dataclass(frozen=True)
class _Ref:
    """A node, by name."""

    name: str


@dataclass(frozen=True)
class _Operator:
    """An operator that torch does not pickle, by the path to it from ``torch.ops``."""

    path: tuple[str, ...]


@dataclass(frozen=True)
class _Function:
    """A function of ``torch.nn.functional`` that chooses between two others, and that pickle cannot find, by its name there."""

    name: str


def _stored(node: fx.Node) -> tuple[Any, ...]:
    args, kwargs = (map_aggregate(a, _without_torch) for a in (node.args, node.kwargs))
    return node.op, node.name, _without_torch(node.target), args, kwargs, node.type


def _without_torch(found: Any) -> Any:
    if isinstance(found, fx.Node):
        return _Ref(found.name)
    if isinstance(found, torch._ops.OpOverload):
        space, name = found._schema.name.split("::")
        return _Operator((space, name, found._overloadname))
    if isinstance(found, torch._ops.OpOverloadPacket):
        return _Operator(tuple(found._qualified_op_name.split("::")))
    if isinstance(found, torch._ops.HigherOrderOperator):
        return _Operator(("higher_order", found._name))
    if "<locals>" in getattr(found, "__qualname__", ""):
        known = next((k for k, v in vars(nn.functional).items() if v is found), None)
        return found if known is None else _Function(known)
    return found


def _load(
    body: dict[str, Any], nodes: list[tuple[Any, ...]], codegen: Any, name: str
) -> fx.GraphModule:
    """A module from its attributes and the nodes of its graph."""
    holder = nn.Module()
    holder.__dict__ = body
    graph, made = fx.Graph(), dict[str, fx.Node]()

    def found(stored: Any) -> Any:
        if isinstance(stored, _Ref):
            return made[stored.name]
        if isinstance(stored, _Operator):
            return reduce(getattr, stored.path, torch.ops)
        return getattr(nn.functional, stored.name) if isinstance(stored, _Function) else stored

    for op, own, target, args, kwargs, kind in nodes:
        args, kwargs = (map_aggregate(a, found) for a in (args, kwargs))
        made[own] = graph.create_node(op, found(target), args, kwargs, own, kind)
    graph.set_codegen(codegen)
    module = ShrunkModule(holder, graph, name)
    keep_temporary(module, temporary(holder))
    for key, value in body.items():
        if not hasattr(module, key):
            setattr(module, key, value)
    return module


def _comes_back(module: fx.GraphModule, body: Mapping[str, Any], imports: str) -> bool:
    """Whether torch's form of a module is loaded as the same graph."""
    if any(not torch.is_tensor(held) for held in _read(module)) or temporary(module):
        return False
    if isinstance(module.graph._codegen, ArgumentsCodeGen):
        return False
    info = getattr(module.graph._codegen, "pytree_info", None)
    if info is not None and not (info.out_spec is None or _is_plain(info.out_spec)):
        return False
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            loaded = reduce_graph_module(dict(body), imports)
    except Exception:  # Whatever a call raises that takes no proxies.
        return False
    return isinstance(loaded, fx.GraphModule) and _alike(module.graph, loaded.graph)


def _read(module: fx.GraphModule) -> list[Any]:
    targets = [str(n.target) for n in module.graph.nodes if n.op == "get_attr"]
    return [operator.attrgetter(t)(module) for t in targets]


def _is_plain(spec: TreeSpec) -> bool:
    """Whether a structure consists of tuples, lists and dicts."""
    if spec.is_leaf():
        return True
    return spec.type in (tuple, list, dict) and all(map(_is_plain, spec.children()))


def _alike(first: fx.Graph, second: fx.Graph) -> bool:
    """Whether two graphs make the same calls in the same order; what they return may be nested otherwise."""
    pairs = list(zip(first.nodes, second.nodes, strict=False))
    if len(first.nodes) != len(second.nodes):
        return False
    twins = dict(pairs)
    for a, b in pairs:
        if a.op == "output" and b.op == "output":
            mine: Any = [twins.get(x, x) for x in tree_leaves(a.args)]
            if mine != tree_leaves(b.args):
                return False
            continue
        given: Any = [fx.map_arg(x, lambda n: twins[n]) for x in (a.args, a.kwargs)]
        if (a.op, a.target) != (b.op, b.target) or given != [b.args, b.kwargs]:
            return False
    return True


__all__ = ["ShrunkModule"]

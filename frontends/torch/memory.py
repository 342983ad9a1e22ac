"""Which calls write in place, and which nodes must be barriers because somebody else may see such a write."""

from __future__ import annotations

import operator
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from ...hosts.torch.calls import call_name
from ...hosts.torch.modules.masks import plain_type
from .registry import CALLS, MODULES, Memory
from .trace import StateError, writes_tensors

_AUGMENTED = {
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor",
    "ilshift", "irshift", "iconcat",
}  # fmt: skip

_MAY_SHARE = (nn.ChannelShuffle,)
"""Modules of torch without a rule whose result may be the argument itself, or a view of it."""


@dataclass
class Writes:
    """What is known of the in-place calls of a graph.

    Attributes:
        inplace: The names of the nodes that work in place.
        barriers: The names of the nodes that touch memory in which such a write can be seen.
        notes: What to tell the user.
    """

    inplace: set[str] = field(default_factory=set)
    barriers: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def find_writes(
    nodes: Sequence[fx.Node], modules: Mapping[str, nn.Module], sizes: Container[str]
) -> Writes:
    """Find the in-place calls, and the nodes that must stay unchanged because of them.

    Args:
        nodes: The host's nodes in order.
        modules: Its modules by name.
        sizes: The names of nodes that compute sizes, which are no memory.

    Raises:
        StateError: If a call writes to the module's own tensors.
    """
    return _Analysis(nodes, modules, sizes).run()


def is_inplace(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a call writes to one of its arguments."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None:
        return True
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    special = name.startswith("__") and name.endswith(
        "__"
    )  # A method of a tensor of the module's own.
    if special:
        name = name.strip("_")
    operator_call = getattr(node.target, "__module__", "") == "_operator"
    if node.op.startswith("call") and (special or operator_call):
        return name in ("setitem", "delitem") or (name.startswith("i") and name in _AUGMENTED)
    place = CALLS[name].inplace if name in CALLS else None
    if place is not None and len(node.args) > max(place, 1):
        return node.args[place] is True
    return node.op.startswith("call") and name.endswith("_")


class _Analysis:
    def __init__(
        self, nodes: Sequence[fx.Node], modules: Mapping[str, nn.Module], sizes: Container[str]
    ) -> None:
        self.nodes = [n for n in nodes if n.name not in sizes]
        self.modules, self.sizes = modules, sizes
        self.position = {n.name: i for i, n in enumerate(nodes)}
        self.group: dict[str, str] = {}
        self.inplace = {n.name for n in nodes if is_inplace(n, modules)}
        self.all = nodes

    def run(self) -> Writes:
        """The writes, with the barriers that they need."""
        found = Writes(self.inplace)
        if not self.inplace:
            return found
        written = [_own_tensor(n) for n in self.all if n.name in self.inplace]
        if any(written):
            raise StateError(writes_tensors([name for name in written if name]))
        for shared in self._groups():
            acting = [n for n in shared if n.name in self.inplace]
            if acting and not all(self._is_private(n, shared) for n in acting):
                found.barriers.update(n.name for n in shared)
                found.barriers.update(user.name for n in shared for user in n.users)
                found.notes.append(
                    f"{acting[0].name} changes memory in place that others read: "
                    "everything that touches it is left alone"
                )
        return found

    def _groups(self) -> list[list[fx.Node]]:
        """The nodes whose results may be the same memory, by union-find."""
        for node in self.nodes:
            # The output reads, and is no memory of its own.
            if node.op != "output" and (node.name in self.inplace or not self._is_fresh(node)):
                for source in self._sources(node):
                    self.group[self._find(node.name)] = self._find(source.name)
        members: dict[str, list[fx.Node]] = {}
        for node in self.nodes:
            members.setdefault(self._find(node.name), []).append(node)
        return list(members.values())

    def _find(self, name: str) -> str:
        group = self.group
        while group.setdefault(name, name) != name:
            group[name] = group[group[name]]
            name = group[name]
        return name

    def _is_fresh(self, node: fx.Node) -> bool:
        """Whether the result is new memory."""
        if node.op == "call_module":
            kind = plain_type(self.modules[str(node.target)])
            if kind in MODULES:
                return MODULES[kind].memory is Memory.NEW
            known = kind.__module__.startswith("torch.nn.modules")
            return known and not issubclass(kind, (*_MAY_SHARE, fx.GraphModule))
        if node.op in ("call_function", "call_method"):
            return memory_of(node) is Memory.NEW
        return False

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """The arguments whose memory a result may be: of an in-place call with a rule, the one that it writes."""
        first = node.args[0] if node.args else None
        known = node.name in self.inplace and node.op != "call_module" and has_rule(node)
        if known and isinstance(first, fx.Node) and node.kwargs.get("out") is None:
            return [first]
        return node.all_input_nodes

    def _is_private(self, node: fx.Node, shared: list[fx.Node]) -> bool:
        """Whether nobody else can see what an in-place call writes.

        The call must write its first argument, and only the call's own result may be read afterwards.
        """
        if not node.all_input_nodes or node.kwargs.get("out") is not None or not node.args:
            return False
        if node.op != "call_module" and not has_rule(node):
            return False
        here = self.position[node.name]
        for member in shared:
            if member.op in ("placeholder", "get_attr"):
                return False
            if self.position[member.name] >= here:
                continue
            readers = (user.name for user in member.users if user.name not in self.sizes)
            if any(self.position[name] > here for name in readers):
                return False
        return True


def memory_of(node: fx.Node) -> Memory:
    """Whose memory the result of a call of a function or method is."""
    entry = CALLS.get(call_name(node.target)) or CALLS.get(
        call_name(node.target).removeprefix("aten.")
    )
    return entry.memory if entry is not None else Memory.SHARED


def has_rule(node: fx.Node) -> bool:
    """Whether a call of a function or method has a rule."""
    entry = CALLS.get(call_name(node.target))
    return entry is not None and entry.rule is not None


def _own_tensor(node: fx.Node) -> str | None:
    """The module's own tensor that an in-place call writes, through views or not."""
    written = node.kwargs.get("out", node.args[0] if node.args else None)
    while isinstance(written, fx.Node) and written.op != "get_attr":
        if not written.op.startswith("call_") or not _is_view(written):
            return None
        written = written.args[0]
    return str(written.target) if isinstance(written, fx.Node) else None


def _is_view(node: fx.Node) -> bool:
    if node.target is getattr:
        return node.args[1] in ("data", "T", "mT")
    if node.target in (operator.getitem, "__getitem__"):
        index = node.args[1]
        return all(map(_gives_view, index if isinstance(index, tuple) else (index,)))
    return bool(node.args) and node.op != "call_module" and memory_of(node) is Memory.VIEW


def _gives_view(index: Any) -> bool:
    """Whether an index gives a view."""
    return index is None or index is Ellipsis or isinstance(index, (int, slice))


__all__ = ["Writes", "find_writes", "is_inplace"]

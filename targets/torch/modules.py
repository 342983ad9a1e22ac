"""The tree of modules of an emitted torch module: which dotted names are taken, and registering what lies under them."""

from __future__ import annotations

import operator
from collections.abc import Container
from typing import Any

from torch import fx, nn


class ModuleTree:
    """The modules, parameters and buffers of an emitted module.

    Attributes:
        root: The module that holds them.
    """

    def __init__(self, host: fx.GraphModule | None = None, temporary: Container[int] = ()) -> None:
        """Start with no modules.

        Args:
            host: The host module, if there is one: some of its names must stay free for its own parts.
            temporary: The ids of buffers that are not in the ``state_dict``.
        """
        self.root = nn.Module()
        self._temporary = temporary
        self._reserved = _reserved(host) if host is not None else set()

    def place(self, name: str, found: Any) -> str:
        """Register a module, parameter or buffer under a dotted name, or a free one like it; returns the name."""
        if has(self.root, name) and get(self.root, name) is not found:
            name = self.free(name)
        owner, _, leaf = name.rpartition(".")
        holder: Any = self.root
        for part in owner.split(".") if owner else ():
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        if getattr(holder, leaf, None) is found:
            return name
        if isinstance(found, nn.Module):
            holder.add_module(leaf, found)
        elif isinstance(found, nn.Parameter):
            holder.register_parameter(leaf, found)
        else:
            holder.register_buffer(leaf, found, persistent=id(found) not in self._temporary)
        return name

    def free(self, hint: str) -> str:
        """A dotted name like the hint that is not taken here, nor reserved for parts of the host."""
        parts = hint.split(".")
        hint = ".".join(p if p.isidentifier() or p.isdigit() else _identifier(p) for p in parts)
        hint = name = self._outside(hint)
        count = 0
        while name in self._reserved or has(self.root, name):
            count += 1
            name = f"{hint}_{count}"
        return name

    def within(self, name: str) -> bool:
        """Whether a dotted name lies inside a module other than a plain container."""
        return self._outside(name) != name

    def _outside(self, name: str) -> str:
        """The name, changed if it would lie inside a module other than a plain container.

        That module may be the host's own, to which nothing may be added.
        """
        parts = name.split(".")
        for i in range(1, len(parts)):
            prefix = ".".join(parts[:i])
            if not has(self.root, prefix):
                break
            if type(get(self.root, prefix)) is not nn.Module:
                return "_".join([prefix, *parts[i:]])
        return name


def has(root: nn.Module, name: str) -> bool:
    """Whether a module has something under a dotted name."""
    try:
        get(root, name)
    except AttributeError:
        return False
    return True


def get(root: nn.Module, name: str) -> Any:
    """What a module has under a dotted name."""
    return operator.attrgetter(name)(root)


def _reserved(module: fx.GraphModule) -> set[str]:
    """Names of the host that a new module must not take: containers of modules, tensors, and modules that are called twice.

    What holds tensors alone was a module before it was exported, whose name a new module may have.
    """
    seen: set[str] = set()
    kept: set[str] = set()
    for node in module.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            parts = target.split(".")
            holders = len(parts) - (node.op == "get_attr")
            kept.update(".".join(parts[:i]) for i in range(1, holders))
            if target in seen or node.op == "get_attr":
                kept.add(target)
            seen.add(target)
    return kept


def _identifier(text: str) -> str:
    word = "".join(c if c.isalnum() or c == "_" else "_" for c in text)
    return word if word and (word.isdigit() or not word[0].isdigit()) else f"m_{word}"

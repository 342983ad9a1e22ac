"""Names of an emitted torch module that follow those of an ONNX model.

Exporters name a weight by its module (``layer1.0.conv1.weight``), a node by its scope (``/layer1/layer1.0/conv1/Conv``), or write the
scopes into the metadata of a node: all give the dotted name ``layer1.0.conv1``.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

from onnx import NodeProto

from ...hosts.torch.signature import unique
from ...ir import Node, Value

_OPERATOR = re.compile(r"([A-Z][A-Za-z0-9]*)(_\d+)?")
_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
"""The metadata of ``torch.onnx.export``: the scopes of a node from the outermost on, and their classes."""

_GLOBALS = frozenset(
    {"NoneType", "device", "fx_pytree", "inf", "int", "nan", "pytree", "self", "torch"}
)
"""Names that the code of a ``forward`` written by fx reads: an argument must not hide them."""

_LONGEST = 10_000
"""Longer metadata are not read."""


def host_name(value: Value) -> str:
    """The name of a value in its host, or its own."""
    return value.host if isinstance(value.host, str) else value.name


def module_name(node: Node, proto: NodeProto | None = None) -> str:
    """The dotted name of the module that a node becomes.

    Args:
        node: The node.
        proto: The ONNX node that it was read from, if it is one.
    """
    for name in _constants(node):
        owner, _, leaf = name.rpartition(".")
        if owner and leaf == "weight":
            return owner
    stated = _stated(proto) if proto is not None else ""
    return stated or dotted(node.name)


def _stated(proto: NodeProto) -> str:
    """The dotted name in the metadata of a node; empty if there is none."""
    found = {p.key: p.value for p in proto.metadata_props if p.key in (_SCOPES, _CLASSES)}
    lists: list[list[str]] = []
    for key in (_SCOPES, _CLASSES):
        text = found.get(key, "")
        if len(text) > _LONGEST:
            return ""
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            read = ast.literal_eval(text)
            lists.append([str(part) for part in read] if isinstance(read, list) else [])
    if len(lists) < 2 or len(lists[0]) < 2 or len(lists[0]) != len(lists[1]):
        return ""
    scopes, classes = lists
    # The last scope is the call itself; a call of no module of torch is one within its caller.
    if scopes[-2] and classes[-2].startswith("torch.nn.modules."):
        return scopes[-2]
    return f"{scopes[-2]}.{scopes[-1]}" if scopes[-2] else scopes[-1]


def dotted(name: str) -> str:
    """A dotted name from a path of scopes; the operator at its end is left out.

    Each scope may repeat the one before it: ``/layer1/layer1.0/Conv`` is ``layer1.0``.
    """
    parts = [part for part in name.split("/") if part]
    if len(parts) > 1 and _OPERATOR.fullmatch(parts[-1]):
        parts.pop()
    made, before = [], ""
    for part in parts:
        made.append(part[len(before) + 1 :] if before and part.startswith(f"{before}.") else part)
        before = part
    return ".".join(made) or "module"


def arguments(names: Iterable[str]) -> list[str]:
    """Names of arguments for the names of inputs: valid identifiers, each once."""
    return unique([_argument(name) for name in names])


def _argument(name: str) -> str:
    word = re.sub(r"\W", "_", name) or "x"
    if word[0].isdigit():
        word = f"x_{word}"
    return f"{word}_" if keyword.iskeyword(word) or word in _GLOBALS else word


def _constants(node: Node) -> Iterator[str]:
    """The host's names of the constants that a node was read with."""
    for value in node.inputs:
        if value is not None and value.data is not None:
            yield from (v.host for v in (value, *value.bases) if isinstance(v.host, str))


def constant_name(value: Value) -> str:
    """The dotted name of a constant that calls read: its own, or that of the one constant that it is derived from."""
    names = [v.host for v in (value, *value.bases) if isinstance(v.host, str)]
    name = names[0] if len(names) == 1 else value.name
    return ".".join(part for part in re.split(r"[/.]", name) if part) or "constant"


__all__ = ["arguments", "constant_name", "dotted", "host_name", "module_name"]

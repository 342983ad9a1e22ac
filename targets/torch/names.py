"""Names of an emitted torch module that follow those of an ONNX model.

Exporters name a node by its scope (``/layer1/layer1.0/conv1/Conv``), or its weight by the module (``layer1.0.conv1.weight``): both give the
dotted name ``layer1.0.conv1``.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator

from ...hosts.torch.signature import unique
from ...ir import Node, Value

_OPERATOR = re.compile(r"([A-Z][A-Za-z0-9]*)(_\d+)?")


def module_name(node: Node) -> str:
    """The dotted name of the module that a node becomes, from the name of its weight or from its own."""
    for name in _constants(node):
        owner, _, leaf = name.rpartition(".")
        if owner and leaf == "weight":
            return owner
    return dotted(node.name)


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
    return f"{word}_" if keyword.iskeyword(word) or word == "self" else word


def _constants(node: Node) -> Iterator[str]:
    """The host's names of the constants that a node was read with."""
    for value in node.inputs:
        if value is not None and value.data is not None:
            yield from (v.host for v in (value, *value.bases) if isinstance(v.host, str))


def constant_name(value: Value) -> str:
    """The dotted name of a constant that calls read."""
    name = value.host if isinstance(value.host, str) else value.name
    return ".".join(part for part in re.split(r"[/.]", name) if part) or "constant"


__all__ = ["arguments", "constant_name", "dotted", "module_name"]

"""Names in the scopes of an ONNX model: finds the names that subgraphs capture, and renames them.

The bodies of If, Loop and Scan read values of enclosing scopes by name. A name that a body defines itself
hides the outer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onnx import AttributeProto, GraphProto, NodeProto

_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The subgraphs among a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes and those of all bodies in them, in order; each before its own."""
    stack = [iter(nodes)]
    while stack:
        for node in stack[-1]:
            yield node
            inner = [n for body in bodies(node) for n in body.node]
            if inner:
                stack.append(iter(inner))
                break
        else:
            stack.pop()


def has_bodies(node: NodeProto) -> bool:
    """Whether a node has subgraphs."""
    return any(attribute.type in _GRAPHS for attribute in node.attribute)


def captures(node: NodeProto) -> list[str]:
    """Outer names that a node's subgraphs read, each once, in order."""
    return list(dict.fromkeys(name for body in bodies(node) for name in free_names(body)))


def free_names(body: GraphProto) -> list[str]:
    """Names that a graph reads and does not define, each once, in order."""
    found: dict[str, None] = {}
    own = _given(body)
    for inner in body.node:
        for name in (*inner.input, *captures(inner)):
            if name and name not in own:
                found.setdefault(name)
        own.update(inner.output)
    for value in body.output:
        if value.name and value.name not in own:
            found.setdefault(value.name)
    return list(found)


def all_names(body: GraphProto) -> set[str]:
    """Every name that a graph or one of its subgraphs reads or defines."""
    found = _given(body) | {v.name for v in body.output}
    for node in body.node:
        found.update(node.input)
        found.update(node.output)
        for inner in bodies(node):
            found |= all_names(inner)
    return found


def unique_name(name: str, taken: set[str]) -> str:
    """A name like this one that is not among those that are taken; it is taken from then on."""
    fresh, count = name, 1
    while fresh in taken:
        count += 1
        fresh = f"{name}_{count}"
    taken.add(fresh)
    return fresh


def rename(node: NodeProto, mapping: Mapping[str, str]) -> None:
    """Rename the inputs and results of a node, and the captured names in its subgraphs, in place.

    No subgraph may define one of the new names itself.
    """
    _rename_all(node.input, mapping)
    _rename_all(node.output, mapping)
    for body in bodies(node):
        _rename_free(body, mapping)


def _rename_free(body: GraphProto, mapping: Mapping[str, str]) -> None:
    own = _given(body)
    for node in body.node:
        own.update(node.output)
    outer = {a: b for a, b in mapping.items() if a not in own}
    if not outer:
        return
    for node in body.node:
        _rename_all(node.input, outer)
        for inner in bodies(node):
            _rename_free(inner, outer)
    for value in body.output:
        value.name = outer.get(value.name, value.name)


def _rename_all(names: list[str], mapping: Mapping[str, str]) -> None:
    for i, name in enumerate(names):
        if name in mapping:
            names[i] = mapping[name]


def _given(body: GraphProto) -> set[str]:
    own = {v.name for v in body.input} | {t.name for t in body.initializer}
    return own | {t.values.name for t in body.sparse_initializer}


__all__ = [
    "all_names",
    "all_nodes",
    "bodies",
    "captures",
    "free_names",
    "has_bodies",
    "rename",
    "unique_name",
]

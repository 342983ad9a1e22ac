"""Pairs: which layers of a changed network can be corrected, and which of its nodes compute other values than the original's."""

from __future__ import annotations

from ...ir import Conv, Graph, Linear, Node, Value


def is_repairable(node: Node) -> bool:
    """Whether a node is a layer with constant weights that no other node reads."""
    if not isinstance(node.op, Conv | Linear) or node.input(0) is None:
        return False
    constants = [v for v in node.inputs[1:] if v is not None]
    return all(v.data is not None and v.producer is None for v in constants) and (
        node.required(0).data is None and node.output.data is None
    )


def changed_nodes(original: Graph, graph: Graph) -> set[Node]:
    """The nodes of a changed graph whose results are not those of the original."""
    given = {v.name: v for v in original.values()}
    same: set[Value] = {v for v in graph.inputs if v.name in given}
    changed: set[Node] = set()
    for node in graph.nodes:
        twin = given.get(node.outputs[0].name) if node.outputs else None
        maker = None if twin is None else twin.producer
        alike = (
            maker is not None
            and maker.op == node.op
            and len(maker.inputs) == len(node.inputs)
            and all(_is_same(a, b, same) for a, b in zip(maker.inputs, node.inputs, strict=True))
        )
        if alike:
            same.update(node.outputs)
        else:
            changed.add(node)
    return changed


def _is_same(given: Value | None, value: Value | None, same: set[Value]) -> bool:
    if given is None or value is None:
        return given is value
    if value.data is not None or given.data is not None:
        return given.data is value.data
    return value in same and given.name == value.name

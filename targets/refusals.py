"""Nodes that a target cannot write, collected so that one error names all of them, and the nodes that are written at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir import Graph, Node, Opaque
from ..ir.errors import listed


@dataclass(frozen=True)
class Refusal:
    """A node, an input or an output that cannot be written, with the reason."""

    op: str
    node: str
    reason: str


def live_nodes(graph: Graph) -> list[Node]:
    """Return the nodes that outputs depend on, in order; nodes that compute constants are not needed."""
    wanted = {id(v) for v in graph.outputs if v.data is None}
    found = []
    for node in reversed(list(graph.nodes)):
        if any(id(v) in wanted for v in node.outputs):
            found.append(node)
            wanted.update(id(v) for v in node.inputs if v is not None and v.data is None)
    return found[::-1]


def op_name(node: Node) -> str:
    """Return the name of a node's op; for an opaque one the host's name."""
    return str(getattr(node.op, "kind", node.op.name)) if node.op.name == "Opaque" else node.op.name


def reason_of(node: Node, registered: str) -> str:
    """Why a node without a rule cannot be written: the frontend's reason for an opaque node, else the registered one."""
    if isinstance(node.op, Opaque):
        return node.op.reason or "the IR has no such op"
    return registered


def refusal_text(refusals: Sequence[Refusal], written: str, most: int = 5) -> str:
    """Return one line that names every op that cannot be written, with its nodes and the reason.

    Args:
        refusals: What cannot be written.
        written: What the model was to be written as.
        most: How many nodes of the same op and reason are named.
    """
    by_op: dict[tuple[str, str], list[str]] = {}
    for refusal in refusals:
        by_op.setdefault((refusal.op, refusal.reason), []).append(refusal.node)
    parts = []
    for (op, reason), nodes in by_op.items():
        parts.append(f"{op} ({listed(nodes, most)}{': ' + reason if reason else ''})")
    return f"the model cannot be written as {written}: {'; '.join(parts)}"


__all__ = ["Refusal", "live_nodes", "op_name", "reason_of", "refusal_text"]

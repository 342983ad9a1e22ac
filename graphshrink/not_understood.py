"""The nodes of a graph that stayed opaque, by kind and reason: what was not understood, what that prevents, and what helps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .bodies import bodies_of
from .ir import DType, Graph, Node, Opaque
from .ir.errors import counted
from .ir.ops.linear import Conv, ConvTranspose, Linear
from .ir.ops.recurrent import Gru, Lstm, Rnn

SHOWN = 8
"""The number of node names that a report lists for each entry."""

_CALM = "no layers are on both sides, so no merge is missed"
"""What is said of nodes that are no barrier between layers."""

_LAYERS = (Conv, ConvTranspose, Linear, Lstm, Gru, Rnn)


@dataclass(frozen=True)
class NotUnderstood:
    """Opaque nodes of one kind that stayed opaque for one reason.

    Attributes:
        kind: The host's name: ``"onnx:TopK"``, ``"fx:torch.topk"``.
        nodes: The names of the nodes, in order.
        reason: Why the IR does not express them.
        remedy: What the user can do about it.
        barrier: Whether some of them lie between layers with weights, so that passes may have missed something.
    """

    kind: str
    nodes: tuple[str, ...]
    reason: str
    remedy: str
    barrier: bool

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain data for JSON; it names the first :data:`SHOWN` nodes."""
        return {
            "kind": self.kind,
            "count": len(self.nodes),
            "nodes": list(self.nodes[:SHOWN]),
            "reason": self.reason,
            "remedy": self.remedy,
            "barrier": self.barrier,
        }

    def __str__(self) -> str:
        names = ", ".join(self.nodes[:SHOWN])
        more = f", and {len(self.nodes) - SHOWN} more" if len(self.nodes) > SHOWN else ""
        effect = "passes change nothing across it" if self.barrier else _CALM
        return f"{self.kind} ({counted(len(self.nodes), 'node')}: {names}{more}): {self.reason}; {effect}; {self.remedy}"


def not_understood(graph: Graph) -> list[NotUnderstood]:
    """The opaque nodes of a graph, grouped; barriers come first, then the most frequent.

    Nodes in bodies of If, Loop and Scan count too. Nodes whose results are known constants are left out: their results are
    understood.
    """
    groups: dict[tuple[str, str, str], list[tuple[str, bool]]] = {}
    for inside in (graph, *(body.graph for body in bodies_of(graph))):
        between = _between_layers(inside)
        for node in inside.nodes:
            if isinstance(node.op, Opaque) and not node.is_constant:
                key = (node.op.kind, *_explained(inside, node, node.op))
                groups.setdefault(key, []).append((node.name, node in between))
    found = [
        NotUnderstood(
            kind, tuple(n for n, _ in nodes), reason, remedy, any(barrier for _, barrier in nodes)
        )
        for (kind, reason, remedy), nodes in groups.items()
    ]
    return sorted(found, key=lambda entry: (not entry.barrier, -len(entry.nodes)))


def summary(found: Sequence[NotUnderstood], where: str = "-v lists them") -> str:
    """The entries, of which there is at least one, in one line; ``where`` says what shows all of them."""
    counts: Counter[str] = Counter()
    for entry in found:
        counts[entry.kind.partition(":")[2]] += len(entry.nodes)
    shown = ", ".join(f"{kind} ({n})" for kind, n in counts.most_common(SHOWN))
    more = ", ..." if len(counts) > SHOWN else ""
    total = counted(counts.total(), "node")
    kinds = (
        "1 kind of operator was" if len(counts) == 1 else f"{len(counts)} kinds of operators were"
    )
    calm = "" if any(e.barrier for e in found) else f"; {_CALM}"
    return f"{kinds} not understood ({total}): {shown}{more}{calm}; {where}"


def _between_layers(graph: Graph) -> set[Node]:
    """Nodes that make numbers which depend on a layer with weights, and on which another such layer depends."""
    nodes = list(graph.nodes)
    behind = _reached(nodes, lambda n: [v.producer for v in n.inputs if v is not None])
    users = {n: [user for v in n.outputs for user in v.users] for n in nodes}
    before = _reached(nodes[::-1], users.__getitem__)
    return behind & before


def _reached(nodes: Iterable[Node], neighbours: Any) -> set[Node]:
    """The nodes, in an order in which neighbours come first, that have a layer or a reached node as a neighbour.

    Whole numbers end a path: sizes and indices are not what passes change.
    """
    found: set[Node] = set()
    for node in nodes:
        if not any(_carries_numbers(v.type.dtype) for v in node.outputs):
            continue
        if any(
            n is not None and (isinstance(n.op, _LAYERS) or n in found) for n in neighbours(node)
        ):
            found.add(node)
    return found


def _carries_numbers(dtype: DType | None) -> bool:
    return dtype is None or dtype.is_float


def _explained(graph: Graph, node: Node, op: Opaque) -> tuple[str, str]:
    """The reason and the remedy for an opaque node."""
    host, _, name = op.kind.partition(":")
    if host == "onnx":
        return _onnx_explained(graph, node, op, name)
    reason = op.reason or "the IR has no such op"
    open_shape = any(v is not None and v.type.shape is None for v in node.inputs)
    if op.reason and open_shape:
        return reason, "give example_inputs, so that shapes are known"
    return reason, _KEPT if not op.reason else _FORMS


_KEPT = "it is kept as it is"
_FORMS = "it is kept as it is; 'graphshrink ops' lists the forms that are read"


def _onnx_explained(graph: Graph, node: Node, op: Opaque, name: str) -> tuple[str, str]:
    domain, _, operator = name.rpartition(".")
    model = getattr(graph.host, "model", None)
    functions = {(f.domain, f.name) for f in getattr(model, "functions", ())}
    if name == "initializer":
        return "it holds text or a sparse tensor", _KEPT
    if (domain, operator) in functions:
        return (
            "it calls a function that the model defines",
            "onnx.inliner.inline_local_functions writes the function out",
        )
    if domain.startswith("com.microsoft"):
        return (
            f"operators of {domain} are onnxruntime's own",
            "give the file as it was exported, before onnxruntime or its tools fused operators",
        )
    if domain:
        return f"operators of the domain {domain} are not those of ONNX", _KEPT
    if operator in ("Shape", "Size"):
        return "it returns sizes that are open", "--fix-shape NAME:SIZES makes them constants"
    if op.reason:
        if any(_is_open(v.type.shape) for v in node.inputs if v is not None):
            return op.reason, "fixed sizes may help: --fix-shape NAME:SIZES; " + _FORMS
        return op.reason, _FORMS
    if operator in _BODIES:
        return (
            "its bodies run as often as numbers say",
            "passes work on each body by itself; the nodes that were not understood there are listed too",
        )
    return "the IR has no such op", _KEPT


_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def _is_open(shape: Sequence[Any] | None) -> bool:
    return shape is None or not all(isinstance(d, int) for d in shape)


__all__ = ["NotUnderstood", "not_understood", "summary"]

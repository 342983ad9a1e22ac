"""What a report says of a network: its nodes in order, the work of each kind of op, and the latency of each where it was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..ir import Graph, Value
from ..passes import Pass, PassRecord

if TYPE_CHECKING:
    from ..planning.latency import LatencyTable
    from ..planning.latency.network import Piece

MOST = 240
"""The largest number of parts of the network that are listed; longer lists are joined."""

KEPT, CHANGED, REMOVED, LEFT = "kept", "changed", "removed", "left alone"
"""What passes did with a node: nothing, a rewrite, a rewrite after which its name is gone, or a refusal."""


@dataclass(frozen=True)
class NodeLine:
    """A node.

    Attributes:
        name: Its name.
        op: The name of its op.
        macs: Its multiply-accumulates for one sample; ``None`` if sizes are unknown.
        parameters: The number of elements of the floating-point constants that it is the first to read.
    """

    name: str
    op: str
    macs: int | None
    parameters: int


def lines_of(graph: Graph) -> list[NodeLine]:
    """The nodes that compute something from the inputs, in order."""
    seen: set[Value] = set()
    lines: list[NodeLine] = []
    for node in graph.nodes:
        if node.is_constant:
            continue
        fresh = {v for v in node.inputs if v is not None and v.data is not None} - seen
        seen |= fresh
        size = sum(v.data.size for v in fresh if v.data is not None and v.data.dtype.is_float)
        lines.append(NodeLine(node.name, node.op_name, node.macs, size))
    return lines


@dataclass
class Outline:
    """An observer that describes the network before the first pass.

    Attributes:
        timed: Whether the pieces of the network are kept too, to be timed one by one.
        lines: The nodes; ``None`` until a pass has run.
        pieces: The pieces.
        missing: The number of nodes that cannot be timed alone.
    """

    timed: bool = False
    lines: list[NodeLine] | None = None
    pieces: list[Piece] = field(default_factory=list)
    missing: int = 0

    def before(self, step: Pass, graph: Graph) -> None:
        """Describe the network once."""
        if self.lines is None:
            self.lines = lines_of(graph)
            if self.timed:
                self.pieces, self.missing = pieces_of(graph)

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Do nothing."""


def pieces_of(graph: Graph) -> tuple[list[Piece], int]:
    """The ops of a network as graphs that can be timed, for one sample if the batch is open, and how many nodes cannot be."""
    from ..planning.latency.network import pieces

    found, left = pieces(graph, one=True)
    return found, len(left)


def work(before: Sequence[NodeLine], after: Sequence[NodeLine]) -> list[dict[str, Any]]:
    """For each kind of op: nodes, multiply-accumulates and parameters, each before and after; the largest first."""
    rows = []
    for op in {line.op for line in (*before, *after)}:
        sides = [[line for line in lines if line.op == op] for lines in (before, after)]
        macs = [_sum(line.macs for line in lines) for lines in sides]
        sizes = [sum(line.parameters for line in lines) for lines in sides]
        rows.append({"op": op, "nodes": [*map(len, sides)], "macs": macs, "parameters": sizes})
    return sorted(rows, key=lambda r: (-(r["macs"][0] or 0), -r["parameters"][0], r["op"]))


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(v or 0 for v in known)


def op_latencies(
    before: Sequence[Piece], after: Sequence[Piece], table: LatencyTable
) -> list[dict[str, Any]]:
    """The milliseconds of each kind of op, timed alone, before and after; what the table lacks is measured.

    Raises:
        ModelError: If an op does not run on the device.
        UsageError: If the table cannot be used.
    """
    found = table.measure([piece.graph for piece in (*before, *after)])
    sums: dict[str, list[float]] = {}
    for i, (piece, entry) in enumerate(zip((*before, *after), found, strict=True)):
        sums.setdefault(piece.kind, [0.0, 0.0])[i >= len(before)] += entry.milliseconds
    rows = [{"op": op, "ms": both} for op, both in sums.items()]
    return sorted(rows, key=lambda r: (-max(r["ms"]), r["op"]))


def parts_after_passes(
    before: Sequence[NodeLine], after: Sequence[NodeLine], passes: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The nodes before the passes, joined where the passes did the same with neighbours.

    Args:
        before: The nodes before the passes.
        after: Those after them.
        passes: The passes as the report has them.

    Returns:
        The parts in order, as :func:`graphshrink.planning.strip.strip` has them; ``candidate`` is what passes did, ``why`` the
        rewrites or the reasons against them.
    """
    present = {line.name for line in after}
    done, against = _by_node(passes)
    parts: list[tuple[str, list[NodeLine]]] = []
    for line in before:
        if line.name in done:
            choice = CHANGED if line.name in present else REMOVED
        elif line.name not in present:
            choice = REMOVED
        else:
            choice = LEFT if line.name in against else KEPT
        if not parts or parts[-1][0] != choice:
            parts.append((choice, []))
        parts[-1][1].append(line)
    step = -(-len(parts) // MOST) if parts else 1
    joined = [parts[i : i + step] for i in range(0, len(parts), step)]
    return [_part(group, {**against, **done}) for group in joined]


def _by_node(passes: Iterable[Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, str]]:
    """For nodes by name, the first rewrite that changed it, and the last reason against one."""
    done: dict[str, str] = {}
    against: dict[str, str] = {}
    for record in passes:
        if not record["rolled_back"]:
            for rewrite in record["rewrites"]:
                for name in rewrite["nodes"]:
                    done.setdefault(name, f"{record['pass']}: {rewrite['what']}")
        for refusal in record["refusals"]:
            against[refusal["node"]] = f"{record['pass']}: {refusal['reason']}"
    return done, against


def _part(group: Sequence[tuple[str, list[NodeLine]]], whys: Mapping[str, str]) -> dict[str, Any]:
    choice = max(group, key=lambda g: len(g[1]))[0]
    lines = [line for _, some in group for line in some]
    return {
        "site": "",
        "kind": "",
        "candidate": choice,
        "nodes": len(lines),
        "ops": dict(sorted(Counter(line.op for line in lines).items())),
        "macs": _sum(line.macs for line in lines),
        "first": lines[0].name,
        "last": lines[-1].name,
        "why": [*dict.fromkeys(whys[x.name] for x in lines if x.name in whys)][:4],
    }

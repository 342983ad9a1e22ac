"""The network as a strip: its nodes in order, divided into planned regions, regions that could be planned, and the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..ir import Graph, Node
from .sites import Site
from .survey import Choice

_ORDER = ("residual", "branch", "pair", "hidden", "layer", "matrix", "block")
"""Which kind of site is shown where sites that stay overlap."""


def strip(
    graph: Graph, choices: Iterable[Choice], chosen: Iterable[Choice]
) -> list[dict[str, Any]]:
    """Divide a graph into parts that do not overlap.

    Args:
        graph: The graph that the sites belong to.
        choices: All candidates.
        chosen: The candidates that were chosen.

    Returns:
        The parts in order: the ``site``, empty for nodes between sites; its ``kind``; the chosen ``candidate``, or ``None``; ``nodes``,
        their number; ``ops``, how many there are of each; ``macs``, or ``None`` if sizes are open; ``first`` and ``last`` node.
    """
    made = {c.site: c.candidate.label for c in chosen}
    others = {c.site for c in choices} - made.keys()
    ranked = sorted(others, key=lambda s: (_ORDER.index(s.kind), len(s.nodes), s.name))
    owner: dict[Node, Site] = {}
    for site in [*made, *ranked]:
        if site in made or owner.keys().isdisjoint(site.nodes):
            # The first layer of a hidden site may be the last one of the hidden site before it.
            owner.update((node, site) for node in site.nodes if node not in owner)
    parts: list[tuple[Site | None, list[Node]]] = []
    places: dict[Site, list[Node]] = {}
    for node in graph.nodes:
        if node.is_constant:
            continue
        found = owner.get(node)
        if found is None:
            if not parts or parts[-1][0] is not None:
                parts.append((None, []))
            parts[-1][1].append(node)
        else:
            if found not in places:
                places[found] = []
                parts.append((found, places[found]))
            places[found].append(node)
    return [_part(site, nodes, made.get(site) if site else None) for site, nodes in parts]


def _part(site: Site | None, nodes: Sequence[Node], candidate: str | None) -> dict[str, Any]:
    ops = Counter(n.op_name for n in nodes)
    macs = [node.macs for node in nodes]
    return {
        "site": site.name if site else "",
        "kind": site.kind if site else "",
        "candidate": candidate,
        "nodes": len(nodes),
        "ops": dict(sorted(ops.items())),
        "macs": None if None in macs else sum(m or 0 for m in macs),
        "first": nodes[0].name,
        "last": nodes[-1].name,
    }

"""Which activations go, as a file: names, kinds, shapes and a digest, in JSON.

A plan is made from learned gates (:func:`graphshrink.save_removal_plan`) or by hand, and used by
``remove-activations{plan=...}`` on the gated network, on the network before it was gated, or on a retrained one. It does
not fit another network: names, kinds and shapes (but for the batch size) are compared, and unknown sizes fit anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...ir import Activation, Gate, Graph, Node, PRelu, UsageError
from ...ir.errors import check_readable
from .gate_sites import SHOWN, site_names

FORMAT = "graphshrink removal plan"
VERSION = 1

LARGEST = 1 << 26
"""The largest plan file that is read, in bytes."""


@dataclass(frozen=True)
class PlannedSite:
    """One activation that a plan decides about.

    Attributes:
        name: Its name, see :func:`.gate_sites.site_names`.
        kind: The kind of activation.
        shape: Its sizes as far as known, the batch size left out (``None``); ``None`` for no known rank.
        keep: Whether it stays.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...] | None
    keep: bool

    @property
    def shown(self) -> str:
        """Kind and sizes, for people."""
        return f"{self.kind} {_shape_text(self.shape)}"


@dataclass(frozen=True)
class RemovalPlan:
    """Which activations of a network go.

    Attributes:
        sites: What is decided about, in the order of the network.
        activations: How many activations the network has in all.
    """

    sites: tuple[PlannedSite, ...]
    activations: int

    @classmethod
    def of(cls, graph: Graph, keep: Mapping[str, bool]) -> RemovalPlan:
        """A plan for a graph.

        Args:
            graph: The graph.
            keep: For each site that is decided about: whether its activation stays.
        """
        names = site_names(graph)
        sites = tuple(
            PlannedSite(name, kind_of(node), _shape_of(node), keep[name])
            for node, name in names.items()
            if name in keep
        )
        return cls(sites, len(names))

    @property
    def digest(self) -> str:
        """A digest of the names, kinds and shapes, whatever is decided about them."""
        content = [self.activations, [[s.name, s.kind, s.shape] for s in self.sites]]
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data for a file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "digest": self.digest,
            "activations": self.activations,
            "sites": [
                {"name": s.name, "kind": s.kind, "shape": s.shape, "keep": s.keep}
                for s in self.sites
            ],
        }

    def match(self, graph: Graph, where: str) -> dict[Node, bool]:
        """The activations of a graph that the plan is about, and whether they stay.

        Args:
            graph: The graph.
            where: The file, for errors.

        Raises:
            UsageError: If the plan is for another network; the message says what differs.
        """
        names = site_names(graph)
        nodes = {name: node for node, name in names.items()}
        wrong = [
            problem for site in self.sites if (problem := _difference(site, nodes.get(site.name)))
        ]
        if not wrong and len(names) != self.activations:
            wrong = [f"it has {self.activations} activations, this network has {len(names)}"]
        if wrong:
            more = f"; {len(wrong) - SHOWN} more differences" if len(wrong) > SHOWN else ""
            raise UsageError(f"{where} is for another network: {'; '.join(wrong[:SHOWN])}{more}")
        return {nodes[site.name]: site.keep for site in self.sites}


def kind_of(node: Node) -> str:
    """The kind of an activation, gated or not."""
    if isinstance(node.op, Activation | Gate):
        return node.op.kind
    assert isinstance(node.op, PRelu)
    return "prelu"


def read_plan(path: str) -> RemovalPlan:
    """Read a plan file.

    Raises:
        UsageError: If it cannot be read, is no plan, or its names and shapes were changed.
    """
    check_readable(path, LARGEST)
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the plan {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no removal plan: it is not JSON") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UsageError(f"{path} is no removal plan")
    if data.get("version") != VERSION:
        raise UsageError(
            f"{path} has version {data.get('version')!r} of the plan format; this is version {VERSION}"
        )
    try:
        plan = RemovalPlan(tuple(map(_read_site, data["sites"])), _read_count(data["activations"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is a damaged removal plan: {error}") from error
    if data.get("digest") != plan.digest:
        raise UsageError(
            f"{path} is a damaged removal plan: names, kinds or shapes do not fit its digest "
            "(only 'keep' may be edited)"
        )
    return plan


def _read_site(data: Any) -> PlannedSite:
    name, kind, shape, keep = (data[key] for key in ("name", "kind", "shape", "keep"))
    if not isinstance(name, str) or not isinstance(kind, str) or not isinstance(keep, bool):
        raise ValueError(f"the site {name!r} is malformed")
    if shape is not None:
        if not isinstance(shape, list) or not all(d is None or type(d) is int for d in shape):
            raise ValueError(f"the shape of {name!r} is malformed")
        shape = tuple(shape)
    return PlannedSite(name, kind, shape, keep)


def _read_count(found: Any) -> int:
    if type(found) is not int:
        raise ValueError("the number of activations is malformed")
    return found


def _shape_of(node: Node) -> tuple[int | None, ...] | None:
    shape = node.output.type.shape
    if shape is None:
        return None
    return tuple(d if i and isinstance(d, int) else None for i, d in enumerate(shape))


def _difference(site: PlannedSite, node: Node | None) -> str:
    """What a node has against being this site; empty when nothing."""
    if node is None:
        return f"there is no activation {site.name!r} ({site.shown}) here"
    if kind_of(node) != site.kind:
        return f"{site.name!r} is {site.kind} in the plan and {kind_of(node)} here"
    here = _shape_of(node)
    if not _fit(site.shape, here):
        return (
            f"{site.name!r} is {_shape_text(site.shape)} in the plan and {_shape_text(here)} here"
        )
    return ""


def _fit(a: Sequence[int | None] | None, b: Sequence[int | None] | None) -> bool:
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(
        p == q or p is None or q is None for p, q in zip(a, b, strict=True)
    )


def _shape_text(shape: Sequence[int | None] | None) -> str:
    if shape is None:
        return "of unknown shape"
    return f"[{', '.join('?' if d is None else str(d) for d in shape)}]"

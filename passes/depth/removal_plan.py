"""The removal plan: a JSON file that says which activations are removed, with names, kinds, shapes and a digest.

A plan is made from learned gates (:func:`graphshrink.save_removal_plan`) or by hand. ``remove-activations{plan=...}``
applies it to the gated network, to the network before it was gated, or to a retrained one. Another network is an error:
names, kinds and shapes (except the batch size) are compared; an unknown size fits any size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...ir import Activation, Gate, Graph, Node, UsageError
from ...ir.errors import check_readable
from .gate_sites import SHOWN, site_names

FORMAT = "graphshrink removal plan"
VERSION = 1

LARGEST = 1 << 26
"""The largest plan file that is read, in bytes."""


@dataclass(frozen=True)
class PlannedSite:
    """One activation in a plan.

    Attributes:
        name: Its name; see :func:`.gate_sites.site_names`.
        kind: The kind of activation.
        shape: Its sizes, ``None`` for the batch size and for unknown sizes; ``None`` if the rank is not known.
        keep: Whether it is kept.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...] | None
    keep: bool

    @property
    def shown(self) -> str:
        """Kind and sizes, for messages."""
        return f"{self.kind} {_shape_text(self.shape)}"


@dataclass(frozen=True)
class RemovalPlan:
    """Which activations of a network are kept and which are removed.

    Attributes:
        sites: The activations in the plan, in the order of the network.
        activations: The number of all activations of the network.
    """

    sites: tuple[PlannedSite, ...]
    activations: int

    @classmethod
    def of(cls, graph: Graph, keep: Mapping[str, bool]) -> RemovalPlan:
        """A plan for a graph.

        Args:
            graph: The graph.
            keep: For the name of each site in the plan: whether its activation is kept.
        """
        names = site_names(graph)
        sites = tuple(
            PlannedSite(name, activation_kind(node), _shape_of(node), keep[name])
            for node, name in names.items()
            if name in keep
        )
        return cls(sites, len(names))

    @property
    def digest(self) -> str:
        """A digest of names, kinds and shapes; ``keep`` does not change it."""
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
        """The activations of a graph that are in the plan, each with whether it is kept.

        Args:
            graph: The graph.
            where: The path of the plan, for errors.

        Raises:
            UsageError: If the plan is for another network; the message names the differences.
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


def activation_kind(node: Node) -> str:
    """The kind of an activation, gated or not."""
    return node.op.kind if isinstance(node.op, Activation | Gate) else "prelu"


def read_plan(path: str) -> RemovalPlan:
    """Read a plan file.

    Raises:
        UsageError: If it cannot be read, is not a plan, or its names, kinds or shapes were changed.
    """
    check_readable(path, LARGEST)
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the plan {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a removal plan: it is not JSON") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UsageError(f"{path} is not a removal plan")
    if data.get("version") != VERSION:
        raise UsageError(
            f"{path} has version {data.get('version')!r} of the plan format; only version {VERSION} is supported"
        )
    try:
        plan = RemovalPlan(tuple(map(_read_site, data["sites"])), _read_count(data["activations"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is a damaged removal plan: {error}") from error
    if data.get("digest") != plan.digest:
        raise UsageError(
            f"{path} is a damaged removal plan: names, kinds or shapes do not match its digest "
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
    """The difference between a site of the plan and a node; empty if there is none."""
    if node is None:
        return f"there is no activation {site.name!r} ({site.shown}) here"
    if activation_kind(node) != site.kind:
        return f"{site.name!r} is {site.kind} in the plan and {activation_kind(node)} here"
    here = _shape_of(node)
    if not _shapes_fit(site.shape, here):
        return (
            f"{site.name!r} is {_shape_text(site.shape)} in the plan and {_shape_text(here)} here"
        )
    return ""


def _shapes_fit(a: Sequence[int | None] | None, b: Sequence[int | None] | None) -> bool:
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(
        p == q or p is None or q is None for p, q in zip(a, b, strict=True)
    )


def _shape_text(shape: Sequence[int | None] | None) -> str:
    if shape is None:
        return "of unknown shape"
    return f"[{', '.join('?' if d is None else str(d) for d in shape)}]"

"""The effect of N:M sparsity on a model: which weights can have the pattern, which have it, how much magnitude it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .ir import Graph, Pattern
from .ir.analysis.weights import NmWeight, nm_weights
from .passes import Pass, PermuteChannels, Pipeline
from .passes.channels.nm_layout import magnitude

if TYPE_CHECKING:
    from rich.table import Table

STEPS, ROWS = 300, 512
"""Options of the search for a channel order; a shorter search than the default of ``permute-channels``."""


@dataclass(frozen=True)
class LayerSparsity:
    """The effect of a pattern on one weight.

    Attributes:
        layer: The first layer that reads the weight.
        op: The layer's op.
        shape: The weight's shape; ``None`` if unknown.
        valid: Whether its values have the pattern now; ``None`` if it has no reduction axis.
        eligible: Whether the pattern can be applied to it.
        reason: Why it cannot.
        likely: Whether TensorRT is likely to choose a sparse kernel, judged by the sizes.
        kept: The share of the magnitude that the pattern keeps in the present order of channels.
        permuted: The same after a short search for a better order of channels.
    """

    layer: str
    op: str
    shape: tuple[int, ...] | None
    valid: bool | None
    eligible: bool
    reason: str | None
    likely: bool
    kept: float | None
    permuted: float | None


def sparsity(graph: Graph, pattern: Pattern | None = None) -> list[LayerSparsity]:
    """The effect of an N:M pattern on each weight; the graph is not changed.

    Args:
        graph: The graph.
        pattern: The pattern; 2:4 if not given.
    """
    pattern = pattern or Pattern()
    weights = nm_weights(graph)
    reasons = [w.reason(pattern) for w in weights]
    other = graph.clone()
    search: Pass = PermuteChannels(n=pattern.n, m=pattern.m, steps=STEPS, rows=ROWS)
    Pipeline([search]).run(other)
    rows = []
    for weight, turned, reason in zip(weights, nm_weights(other), reasons, strict=True):
        valid = kept = permuted = None
        if weight.value is not None and weight.reduction is not None:
            found = magnitude(weight)
            valid = pattern.holds(found)
            if reason is None:
                total = float(found.sum(dtype="float64"))
                kept = pattern.kept_score(found) / total if total else 1.0
                permuted = pattern.kept_score(magnitude(turned)) / total if total else 1.0
        rows.append(
            LayerSparsity(
                layer=weight.name,
                op=weight.node.op.name,
                shape=_shape(weight),
                valid=valid,
                eligible=reason is None,
                reason=reason,
                likely=reason is None and pattern == Pattern() and weight.likely(),
                kept=kept,
                permuted=permuted,
            )
        )
    return rows


def _shape(weight: NmWeight) -> tuple[int, ...] | None:
    value = weight.value if weight.value is not None else weight.node.input(1)
    return None if value is None else value.type.static_shape


def sparsity_dict(rows: list[LayerSparsity], pattern: Pattern) -> dict[str, Any]:
    """The rows as plain data, for JSON."""
    return {"pattern": str(pattern), "layers": [vars(r) for r in rows]}


def sparsity_table(rows: list[LayerSparsity], pattern: Pattern) -> Table:
    """The rows as a table, with the reasons in it."""
    return _table(rows, ["eligible"], pattern, lambda r: [r.reason or "yes"])


def narrow_table(rows: list[LayerSparsity], pattern: Pattern) -> tuple[Table, list[str]]:
    """The rows as a table for terminals, and the reasons that it refers to by their numbers from 1."""
    reasons = list(dict.fromkeys(r.reason for r in rows if r.reason is not None))
    number = {reason: i for i, reason in enumerate(reasons, 1)}

    def word(row: LayerSparsity) -> str:
        return "yes" if row.reason is None else f"no ({number[row.reason]})"

    return _table(rows, ["fits"], pattern, lambda r: [word(r)]), reasons


def _table(
    rows: list[LayerSparsity],
    titles: list[str],
    pattern: Pattern,
    cells: Callable[[LayerSparsity], list[str]],
) -> Table:
    """The rows as a table; ``cells`` gives those of the columns ``titles``."""
    from rich.markup import escape
    from rich.table import Table

    from .cli.terminal import Name

    table = Table(
        "layer", "op", "shape", str(pattern), *titles, "likely picked", "kept", "permuted"
    )
    for column in table.columns[-2:]:
        column.justify = "right"
    for r in rows:
        shape = "?" if r.shape is None else "x".join(map(str, r.shape))
        table.add_row(
            Name(r.layer),
            r.op,
            shape,
            "-" if r.valid is None else _yes(r.valid),
            *map(escape, cells(r)),
            _yes(r.likely),
            "-" if r.kept is None else f"{r.kept:.1%}",
            "-" if r.permuted is None else f"{r.permuted:.1%}",
        )
    return table


def _yes(value: bool) -> str:
    return "yes" if value else "no"


__all__ = ["LayerSparsity", "narrow_table", "sparsity", "sparsity_dict", "sparsity_table"]

"""*skip*: a residual block goes, its skip stays; or a whole layer of a transformer goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ir import Graph, Rewriter
from ...passes.depth.residual_blocks import skip
from ..closed_forms import Sums
from ..column_sums import ColumnSums
from ..sites import Site
from .base import Candidate, Kind, Names


@dataclass(frozen=True)
class Skipped(Candidate):
    """The exit becomes the entry."""

    site: Site
    label: str = "skip"
    error: float = 1.0

    def apply(self, graph: Graph, rw: Rewriter) -> None:
        """Replace the addition."""
        names = Names.of(graph)
        entry, exit = names.values[self.site.entry.name], names.values[self.site.exit.name]
        skip(rw, self.site.name, entry, exit)


class Skip(Kind):
    """Skips of residual blocks and of layers of transformers."""

    name = "skip"

    def requests(self, site: Site) -> Sequence[ColumnSums] | str:
        """Nothing has to be measured."""
        return [] if site.kind in ("residual", "block") else ""

    def fit(self, site: Site, results: Sequence[Sums]) -> list[Candidate]:
        """One candidate."""
        return [Skipped(site)]

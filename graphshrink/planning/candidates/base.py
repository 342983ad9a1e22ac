"""What a kind of candidate is: it names the statistics that it needs, and turns them into candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...ir import Graph, Node, Rewriter, Value
from ..closed_forms import Sums
from ..column_sums import ColumnSums
from ..sites import Site


class Candidate(ABC):
    """A replacement of one site, with everything that was fitted.

    Attributes:
        site: The site.
        label: Its name at this site, such as ``"linear 3x3"``.
        error: The squared error of the region's output on the fitting samples, relative to its variance; 1 for nothing at all.
    """

    site: Site
    label: str
    error: float

    @abstractmethod
    def apply(self, graph: Graph, rw: Rewriter) -> None:
        """Replace the region in a copy of the graph that the site was found in.

        Values are found by their names. The value with the name of the exit has the result afterwards.

        Raises:
            GraphError: If the graph cannot be changed like this.
            InferenceError: If sizes inside do not fit.
        """

    def weaker(self, strength: float) -> Candidate | None:
        """This candidate with what it adds to a skip multiplied by a number; ``None`` if it adds to no skip.

        Its label ends in ``at`` and the number.
        """
        return None


def at_strength(label: str) -> tuple[str, float]:
    """The label of the candidate that :meth:`Candidate.weaker` was asked of, and the strength; 1 if the label names none between 0 and 1."""
    own, _, number = label.partition(_AT)
    try:
        strength = float(number)
    except ValueError:
        return label, 1.0
    return (own, strength) if 0 < strength < 1 else (label, 1.0)


def weaker_label(label: str, strength: float) -> str:
    """The label of a candidate with another strength."""
    return f"{label}{_AT}{strength:g}"


_AT = " at "


class Kind(ABC):
    """A kind of candidate; subclasses are registered in :mod:`graphshrink.planning.candidates`.

    Attributes:
        name: The name of the kind: the first word of the labels of its candidates.
    """

    name: ClassVar[str]

    @abstractmethod
    def requests(self, site: Site) -> Sequence[ColumnSums] | str:
        """The statistics that are needed; or the reason why the kind has no candidates for a site, empty if it is not meant for it."""

    @abstractmethod
    def fit(self, site: Site, results: Sequence[Sums]) -> list[Candidate]:
        """The candidates of a site, from the results of its requests."""


@dataclass(frozen=True)
class Names:
    """The values and nodes of a graph by the names of values."""

    values: dict[str, Value]

    @classmethod
    def of(cls, graph: Graph) -> Names:
        """The names of a graph."""
        return cls({v.name: v for v in graph.values()})

    def producer(self, value: Value) -> Node:
        """The node of this graph that computes the value with the name of ``value``."""
        node = self.values[value.name].producer
        assert node is not None
        return node

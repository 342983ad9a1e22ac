"""What is known of sizes from several runs of a module, with inputs of other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...ir import TensorType

Sizes = tuple[Any, ...]
"""One size in the first run and in all others; ``None`` where a run did not show it."""


@dataclass(frozen=True)
class Resized:
    """One run with other sizes.

    Attributes:
        batch: Whether the first axis of all inputs is what was changed.
        found: The types of all results.
        results: The results that are no tensors.
    """

    batch: bool
    found: Mapping[str, TensorType]
    results: Mapping[str, Any]


@dataclass(frozen=True)
class Runs:
    """The run on the example inputs and those with other sizes.

    Attributes:
        found: The types of all results for the example inputs.
        resized: The other runs.
    """

    found: Mapping[str, TensorType] = field(default_factory=dict)
    resized: tuple[Resized, ...] = ()

    def sizes(self, name: str, axis: int) -> Sizes | None:
        """The sizes of an axis in all runs; ``None`` where it is not known for the example inputs."""
        kinds = [run.get(name) for run in (self.found, *(r.found for r in self.resized))]
        rank = kinds[0].rank if kinds[0] is not None else None
        if rank is None or not -rank <= axis < rank:
            return None
        return tuple(k.dim(axis) if k is not None and k.rank == rank else None for k in kinds)

    def all_sizes(self, name: str) -> tuple[Sizes | None, ...]:
        """The sizes of all axes in all runs."""
        kind = self.found.get(name)
        return tuple(self.sizes(name, a) for a in range((kind.rank if kind else None) or 0))

    def follows(self, name: str, axis: int) -> bool:
        """Whether the size of an axis is another one in another run."""
        return len({*(self.sizes(name, axis) or ())} - {None}) > 1

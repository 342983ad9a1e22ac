"""Groups of passes: ``repeat{...}`` runs passes again and again until none of them changes the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir import Exactness, Graph, Rewriter
from .contract import Context, Pass, PassError

MAX_ROUNDS = 20
"""The largest number of rounds; a note in the report names a group that still changes something after it."""


@dataclass(frozen=True)
class Group(Pass):
    """Passes in braces. The runner runs each of them separately, so that it is checked, timed and recorded like any other pass.

    Attributes:
        passes: The passes, in order.
    """

    passes: tuple[Pass, ...] = ()

    def __post_init__(self) -> None:
        if not self.passes:
            raise PassError(
                f"{self.name} has no passes; write {self.name}{{merge-linear,prune-dead}}"
            )

    def expanded(self) -> tuple[Pass, ...]:
        """What the runner runs: the passes, with others in front and behind where the group needs them."""
        return self.passes

    @property
    def exactness(self) -> Exactness:  # type: ignore[override]
        """The weakest exactness class of its passes."""
        return max(step.exactness for step in self.passes)

    @property
    def uses_reference(self) -> bool:  # type: ignore[override]
        """Whether one of its passes reads the original network."""
        return any(step.uses_reference for step in self.passes)

    def __str__(self) -> str:
        return f"{self.name}{{{','.join(map(str, self.passes))}}}"

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        """Not used: the runner runs the passes itself."""
        raise PassError(f"{self.name} is run by the pipeline; put it into one")


@dataclass(frozen=True)
class Repeat(Group):
    """Run passes in order until a whole round changes nothing (a fixed point)."""

    name: ClassVar[str] = "repeat"

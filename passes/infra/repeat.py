"""``repeat{...}``: run passes again and again until none of them changes the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir import Exactness, Graph, Rewriter
from .contract import Context, Pass, PassError

MAX_ROUNDS = 20
"""The largest number of rounds; a note in the report names a group that still changes something after it."""


@dataclass(frozen=True)
class Repeat(Pass):
    """Run passes in order until a whole round changes nothing (a fixed point).

    The runner runs each inner pass separately, so that it is checked, timed and recorded like any other pass.

    Attributes:
        passes: The passes of one round, in order.
    """

    name: ClassVar[str] = "repeat"

    passes: tuple[Pass, ...] = ()

    def __post_init__(self) -> None:
        if not self.passes:
            raise PassError("repeat has no passes; write repeat{merge-linear,prune-dead}")

    @property
    def exactness(self) -> Exactness:  # type: ignore[override]
        """The weakest exactness class of its passes."""
        return max(step.exactness for step in self.passes)

    def __str__(self) -> str:
        return f"{self.name}{{{','.join(map(str, self.passes))}}}"

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        """Not used: the runner runs ``passes`` itself."""
        raise PassError("repeat is run by the pipeline; put it into one")

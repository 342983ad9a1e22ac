"""The pass contract: what a pass is, and what it may ask for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np

from ...ir import Exactness, Graph, GraphshrinkError, Node, Rewriter
from ...ir.options import OptionError, check_options, options_text, suggestion
from ..statistics.requests import Calibration
from .conditions import Condition


class PassError(GraphshrinkError, ValueError):
    """A pass, an option or a pipeline text is wrong; the message names it and the remedy."""


@dataclass
class Context:
    """What a pass may ask for.

    Attributes:
        seed: The seed that ``rng`` starts from.
        target: What the graph will be emitted for: ``"fx"``, or the name of a target, such as ``"onnx"``.
        progress: Called with (done, total, what) by long passes.
        calibration: Calibration data and the statistics computed from it; ``None`` without such data.
        unwritable: Why the host cannot write a node, or ``None``. A node that was not changed is never asked about; without
            this function nothing is.
    """

    seed: int = 0
    target: str = "onnx"
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    calibration: Calibration | None = None
    unwritable: Callable[[Node], str | None] | None = None
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)


class Pass(ABC):
    """A rewrite of a graph. Subclasses are frozen dataclasses; their fields are the options.

    Attributes:
        name: The name in pipeline texts: lower case, words joined by hyphens.
        exactness: The promise for every input of the whole pass.
        asks_first: The pass makes no node without asking ``Rewriter.unwritable`` (or makes none at all), so that no copy
            of the graph is kept in case of one that cannot be written.
        requires: What must hold before it runs; a property where that depends on options.
        ensures: What holds when it has run.
    """

    name: ClassVar[str] = ""
    asks_first: ClassVar[bool] = False
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[tuple[Condition, ...]] = ()
    ensures: ClassVar[tuple[Condition, ...]] = ()

    def __post_init__(self) -> None:
        """Check the options against their declarations; subclasses that add checks call this first.

        Raises:
            PassError: If an option is of the wrong type, none of its choices or out of bounds.
        """
        self.check_options()

    def check_options(self) -> None:
        """Check the options against their declarations; pipelines do so too, for passes that never called it.

        Raises:
            PassError: If an option is of the wrong type, none of its choices or out of bounds.
        """
        try:
            check_options(self, f"pass {self.name!r}")
        except OptionError as error:
            raise PassError(str(error)) from None

    @abstractmethod
    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        """Rewrite ``graph`` through ``rw``."""

    def __str__(self) -> str:
        return f"{self.name}{options_text(self)}"


class FunctionPass(Pass):
    """A plain function ``(graph, rewriter)`` as a pass.

    Nobody has said how exact it is, so it counts as approximate.
    """

    exactness = Exactness.APPROXIMATE

    def __init__(self, function: Callable[[Graph, Rewriter], None]) -> None:
        self.function = function
        word = getattr(function, "__name__", "function").strip("<>_")
        self.title = word.replace("_", "-")

    @property
    def name(self) -> str:  # type: ignore[override]
        """The function's name, spelled as a pass name."""
        return self.title

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        self.function(graph, rw)


def name_list(given: str | Sequence[str]) -> tuple[str, ...]:
    """The names of an option that takes one or several."""
    return (given,) if isinstance(given, str) else tuple(given)


def named_nodes(graph: Graph, patterns: str | Sequence[str], what: str) -> set[Node]:
    """The nodes of these names.

    Args:
        graph: The graph.
        patterns: Names, or patterns with ``*`` and ``?``.
        what: Whose option it is, for the error.

    Raises:
        PassError: If a pattern stands for nothing.
    """
    found: set[Node] = set()
    for pattern in name_list(patterns):
        hits = [n for n in graph.nodes if n.name == pattern or fnmatchcase(n.name, pattern)]
        if not hits:
            near = suggestion(pattern, sorted({n.name for n in graph.nodes}))
            raise PassError(f"{what}: no node is named {pattern!r}{near}")
        found.update(hits)
    return found

"""The pass contract: the class of passes, and the context that a pass receives."""

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
from ..statistics.training import Trainer
from .conditions import Condition


class PassError(GraphshrinkError, ValueError):
    """A pass, an option or a pipeline text is wrong; the message names it and the remedy."""


@dataclass
class Context:
    """The data and services that a pass may use.

    Attributes:
        seed: The seed of ``rng``.
        target: The target that the graph will be emitted for: ``"fx"``, or another name such as ``"onnx"``.
        progress: Long passes call it with (done, total, description).
        calibration: Calibration data and the statistics computed from it; ``None`` if no data was given.
        unwritable: Returns the reason why the host cannot write a node, or ``None`` if it can. It is asked only about
            new and changed nodes. ``None`` if the host cannot be asked.
        host_nodes: Returns the number of nodes that the host would write a node with. ``None`` if the host cannot be asked.
        reference: The graph that approximate passes should stay close to. A pipeline keeps a copy of its graph before its first
            approximate pass if a later pass asks for it (:attr:`Pass.uses_reference`) and no reference was given.
        trainer: Trains pieces of the network; ``None`` where torch is not installed.
        rng: A random generator.
    """

    seed: int = 0
    target: str = "onnx"
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    calibration: Calibration | None = None
    unwritable: Callable[[Node], str | None] | None = None
    host_nodes: Callable[[Node], int] | None = None
    reference: Graph | None = None
    trainer: Trainer | None = None
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)


class Pass(ABC):
    """A rewrite of a graph. Subclasses are frozen dataclasses; their fields are the options.

    Attributes:
        name: The name in pipeline texts: lower-case words joined by hyphens.
        exactness: The exactness class of the rewrites, unless a rewrite states its own.
        asks_first: True if the pass asks ``Rewriter.unwritable`` before it makes a node, or makes no nodes. The runner
            then keeps no copy of the graph to undo the pass.
        uses_reference: True if the pass reads :attr:`Context.reference`.
        requires: The conditions that must hold before the pass; a property if they depend on options.
        ensures: The conditions that hold after the pass.
    """

    name: ClassVar[str] = ""
    asks_first: ClassVar[bool] = False
    uses_reference: ClassVar[bool] = False
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
        """Check the options against their declarations. Pipelines call it too, for passes that override ``__post_init__``.

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

    Its exactness is not known, so it counts as approximate.
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
    """The value of an option that takes one name or several, as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given)


def named_nodes(graph: Graph, patterns: str | Sequence[str], what: str) -> set[Node]:
    """The nodes whose names match any of some patterns.

    Args:
        graph: The graph.
        patterns: Names, or patterns with ``*`` and ``?``.
        what: The pass and the option, for the error.

    Raises:
        PassError: If a pattern matches no node.
    """
    found: set[Node] = set()
    for pattern in name_list(patterns):
        hits = [n for n in graph.nodes if n.name == pattern or fnmatchcase(n.name, pattern)]
        if not hits:
            near = suggestion(pattern, sorted({n.name for n in graph.nodes}))
            raise PassError(f"{what}: no node is named {pattern!r}{near}")
        found.update(hits)
    return found

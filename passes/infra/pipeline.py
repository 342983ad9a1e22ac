"""Pipelines: a sequence of passes, its text form, and the runner with its observers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...ir import Exactness, Graph, GraphshrinkError, Refusal, Rewrite, Rewriter
from .contract import (
    Context,
    FunctionPass,
    Pass,
    PassError,
)
from .pipeline_text import parse_passes
from .repeat import MAX_ROUNDS, Group, Repeat

log = logging.getLogger(__name__)

PassLike = str | Pass | type[Pass] | Callable[[Graph, Rewriter], None]
"""A step of a pipeline: a text, a pass, a class of passes, or a function ``(graph, rewriter)``."""


@dataclass
class PassRecord:
    """The result of one pass.

    Attributes:
        text: The pass with its options, as in a pipeline text.
        rewrites: The rewrites that it made.
        refusals: The rewrites that it considered and did not make, with the reasons.
        exactness: The weakest exactness class among its rewrites.
        seconds: How long it took (set by the Timing observer).
        error: The largest output error compared to the graph before the pass, relative to the largest
            output (set by the Check observer).
        rolled_back: True if the Check observer undid it.
        problem: The reason why it was undone, else empty.
    """

    text: str
    rewrites: list[Rewrite] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    exactness: Exactness = Exactness.EXACT
    seconds: float | None = None
    error: float | None = None
    rolled_back: bool = False
    problem: str = ""


class Observer(Protocol):
    """An object whose methods are called before and after every pass."""

    def before(self, step: Pass, graph: Graph) -> None:
        """Called before ``step`` runs."""

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Called after ``step`` ran; may raise an error, or undo the changes of the graph."""


class Pipeline:
    """A sequence of passes.

    Args:
        steps: Passes, classes, functions, pipelines, and texts such as ``"merge-linear{max-kernel=5},prune-dead"``.

    Raises:
        PassError: If a text names an unknown pass or option.
    """

    def __init__(self, steps: PassLike | Pipeline | Iterable[PassLike | Pipeline] = ()) -> None:
        self.passes: tuple[Pass, ...] = tuple(_flatten_steps(steps))

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """A pipeline from its text; ``str(pipeline)`` returns the text.

        Raises:
            PassError: If the text is malformed or names an unknown pass or option.
        """
        return cls(text)

    def run(
        self, graph: Graph, ctx: Context | None = None, observers: Sequence[Observer] = ()
    ) -> list[PassRecord]:
        """Run the passes on ``graph``, in place.

        ``Verify`` always observes the run, and ``Writable`` if ``ctx.unwritable`` is given. After a pass they are called
        before the given observers.

        Returns:
            One record for each pass.

        Raises:
            PassError: If a pass leaves the graph broken or raises; the message names the pass.
        """
        from .check import Check
        from .observers import Timing, Verify, Writable

        # Observers are called in reverse order before a pass and in order after it. So clocks are next to the
        # pass, and every other observer sees a verified graph.
        watching: list[Observer] = [Verify(), *observers]
        ctx = ctx or Context()
        if ctx.unwritable is not None:
            # A check runs the emitted model, so it finds unwritable nodes itself.
            checked = any(isinstance(observer, Check) for observer in observers)
            watching.insert(1, Writable(ctx.unwritable, leave_to_check=checked))
        watching.sort(key=lambda observer: not isinstance(observer, Timing))
        run = _PipelineRun(graph, ctx, watching)
        given = ctx.reference
        keeps = given is None and any(step.uses_reference for step in self.passes)
        try:
            for step in self.passes:
                if keeps and ctx.reference is None and _is_approximate(step):
                    ctx.reference = graph.clone()
                run.step(step)
        finally:
            ctx.reference = given
        return run.records

    def __add__(self, other: Pipeline | PassLike) -> Pipeline:
        return Pipeline([*self.passes, *Pipeline(other).passes])

    def __len__(self) -> int:
        return len(self.passes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self.passes == other.passes

    def __hash__(self) -> int:
        return hash(self.passes)

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def __repr__(self) -> str:
        return f"Pipeline({str(self)!r})"


@dataclass
class _PipelineRun:
    """One run of a pipeline."""

    graph: Graph
    ctx: Context
    observers: Sequence[Observer]
    records: list[PassRecord] = field(default_factory=list)

    def step(self, step: Pass) -> bool:
        """Run one pass or a ``repeat`` group; returns whether the graph changed.

        Raises:
            PassError: If it raises, leaves the graph broken, or one of its conditions does not hold.
        """
        if isinstance(step, Repeat):
            return self._repeat(step)
        if isinstance(step, Group):
            outcomes = [self.step(inner) for inner in step.expanded()]
            return any(outcomes)
        for condition in step.requires:
            problem = condition.problem(self.graph, self.ctx)
            if problem:
                raise PassError(f"pass {step} needs {condition}: {problem}; {condition.remedy}")
        for observer in reversed(self.observers):
            observer.before(step, self.graph)
        rw = Rewriter(self.graph, exactness=step.exactness)
        if self.ctx.unwritable is not None:
            rw.unwritable = self.ctx.unwritable
        try:
            step.run(self.graph, rw, self.ctx)
        except (PassError, MemoryError):
            raise
        except Exception as error:
            text = str(error) or type(error).__name__
            kind = "" if isinstance(error, GraphshrinkError) else f"{type(error).__name__}: "
            raise PassError(f"pass {step} failed: {kind}{text}") from error
        for condition in step.ensures:
            problem = condition.problem(self.graph, self.ctx)
            if problem:
                raise PassError(f"pass {step} promises {condition}, but {problem}")
        record = PassRecord(str(step), rw.rewrites, rw.refusals, rw.worst)
        for observer in self.observers:
            observer.after(step, self.graph, record)
        _log(record)
        self.records.append(record)
        return bool(record.rewrites) and not record.rolled_back

    def _repeat(self, group: Repeat) -> bool:
        changed = False
        for _ in range(MAX_ROUNDS):
            outcomes = [self.step(step) for step in group.passes]
            if not any(outcomes):
                return changed
            changed = True
        self.graph.notes.append(
            f"{group} still changed something after {MAX_ROUNDS} rounds; it was stopped"
        )
        return changed


def _is_approximate(step: Pass) -> bool:
    """Whether a pass may change what the network computes, and is not itself the one that mends it."""
    if isinstance(step, Group):
        return any(map(_is_approximate, step.expanded()))
    return step.exactness is not Exactness.EXACT and not step.uses_reference


def _log(record: PassRecord) -> None:
    seconds = "" if record.seconds is None else f", {record.seconds:.3f} s"
    log.info(
        "%s: %d changes, %d left alone%s",
        record.text,
        len(record.rewrites),
        len(record.refusals),
        seconds,
    )
    if log.isEnabledFor(logging.DEBUG):
        for rewrite in record.rewrites:
            log.debug("%s: %s: %s", record.text, rewrite.what, ", ".join(rewrite.nodes))
        for refusal in record.refusals:
            log.debug("%s: left %s alone: %s", record.text, refusal.node, refusal.reason)


def _flatten_steps(steps: Any) -> list[Pass]:
    if isinstance(steps, str):
        return parse_passes(steps)
    if isinstance(steps, Pipeline):
        return list(steps.passes)
    if isinstance(steps, Pass):
        steps.check_options()
        return [steps]
    if isinstance(steps, type):
        if not issubclass(steps, Pass):
            raise PassError(f"{steps.__name__} is not a Pass")
        return [steps()]
    if callable(steps):
        return [FunctionPass(steps)]
    if isinstance(steps, Iterable):
        return [step for item in steps for step in _flatten_steps(item)]
    raise PassError(f"{steps!r} is not a pass, a pipeline, a text or a function")

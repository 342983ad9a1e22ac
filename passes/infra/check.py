"""The differential check: compare the outputs of a graph before and after each pass."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ...ir import Exactness, Graph, GraphshrinkError
from ...ir.errors import listed
from .contract import Pass, PassError
from .difference import largest_difference
from .pipeline import PassRecord
from .tolerance import Outputs, PerturbedRuns, allowed_error, relative_error, tolerance_of

log = logging.getLogger(__name__)


class CheckFailed(PassError):
    """A pass changed the numbers more than its exactness class allows."""


@dataclass
class Check:
    """Differential numerics: run the graph before and after every pass and compare the outputs.

    Args:
        evaluate: Runs a graph on the check inputs and returns its outputs.
        on_failure: ``"raise"``, or ``"rollback"`` to undo the pass and continue.
        tolerance: The relative error that an exact pass may cause; if not given, it depends on the element type.
        nudged: Returns functions like ``evaluate``, each on inputs that are moved by one rounding unit. It is called if
            an exact pass moves the outputs too far, to find out whether the model itself is that sensitive; see
            :func:`.tolerance.noise_limit`.
        reference: The outputs of the first graph, if they are known; later the outputs after the last pass that was not
            rolled back.
    """

    evaluate: Callable[[Graph], Outputs]
    on_failure: Literal["raise", "rollback"] = "raise"
    tolerance: float | None = None
    nudged: PerturbedRuns | None = None
    reference: Outputs | None = None
    _backup: Graph | None = field(default=None, repr=False)

    def before(self, step: Pass, graph: Graph) -> None:
        """Run the graph, unless its outputs are known from the last pass."""
        if self.reference is None:
            self.reference = self.evaluate(graph)
        if self.on_failure == "rollback" or self.nudged is not None:
            self._backup = graph.clone()

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Run the graph and compare its outputs with the reference.

        Raises:
            CheckFailed: If the outputs moved too far and ``on_failure`` is ``"raise"``.
        """
        if not record.rewrites:
            record.error = 0.0
            return
        assert self.reference is not None  # Set by ``before``.
        try:
            outputs = self.evaluate(graph)
        except GraphshrinkError as error:
            record.error, problem = float("inf"), f"left a model that does not run ({error})"
        else:
            record.error = relative_error(self.reference, outputs)
            limit = self._limit(step, graph, record.exactness, record.error, self.reference)
            if record.exactness is not Exactness.EXACT or record.error <= limit:
                self.reference = outputs
                return
            where = largest_difference(self.reference, outputs, graph.output_names, limit)
            problem = (
                f"claims to be exact, but the outputs moved by {record.error:.2e} "
                f"(allowed {limit:.1g}){'' if where is None else f': {where}'}"
            )
        nodes = [name for r in record.rewrites for name in r.nodes]
        message = f"pass {step} {problem}; it rewrote {listed(nodes)}"
        if self.on_failure == "raise":
            raise CheckFailed(message)
        assert self._backup is not None  # ``before`` makes it for a rollback.
        log.warning("%s; rolled back", message)
        graph.adopt(self._backup)
        record.rolled_back, record.problem = True, message

    def _limit(
        self, step: Pass, graph: Graph, exactness: Exactness, error: float, reference: Outputs
    ) -> float:
        """The error that an exact pass may cause; adds a note if only the sensitivity of the model allows it."""
        limit = tolerance_of(graph) if self.tolerance is None else self.tolerance
        if self.nudged is None or self.tolerance is not None or exactness is not Exactness.EXACT:
            return limit
        before = graph if self._backup is None else self._backup
        nudged = self.nudged
        raised = allowed_error(limit, error, reference, lambda: (run(before) for run in nudged()))
        if limit < error <= raised:
            graph.notes.append(
                f"{step} moved the outputs by {error:.1e} of their largest value, no further than "
                "rounding the inputs differently moves them"
            )
        return raised

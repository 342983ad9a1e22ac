"""The differential check: what a graph computes before and after each pass."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ...ir import (
    Exactness,
    Graph,
    GraphshrinkError,
)
from .contract import Pass, PassError
from .pipeline import PassRecord
from .tolerance import Nudged, Outputs, allowed, relative_error, tolerance_of

log = logging.getLogger(__name__)


class CheckFailed(PassError):
    """A pass changed the numbers more than its exactness class allows."""


@dataclass
class Check:
    """Differential numerics: run the graph before and after every pass and compare the outputs.

    Args:
        evaluate: Runs a graph on the check inputs and gives its outputs.
        on_failure: ``"raise"``, or ``"rollback"`` to undo the pass and go on.
        tolerance: The relative error that an exact pass may cause; by element type when not given.
        nudged: Makes functions like ``evaluate``, each on inputs that differ by one rounding unit. It is called when an
            exact pass moves the outputs too far, to see whether the model itself is that sensitive; see
            :func:`noise_limit`.
        reference: The outputs of the graph that comes first, if they are known; later those of the last pass that stayed.
    """

    evaluate: Callable[[Graph], Outputs]
    on_failure: Literal["raise", "rollback"] = "raise"
    tolerance: float | None = None
    nudged: Nudged | None = None
    reference: Outputs | None = None
    _backup: Graph | None = field(default=None, repr=False)

    def before(self, step: Pass, graph: Graph) -> None:
        """Run the graph, unless the last pass's outputs are still at hand."""
        if self.reference is None:
            self.reference = self.evaluate(graph)
        if self.on_failure == "rollback" or self.nudged is not None:
            self._backup = graph.clone()

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        """Run and compare.

        Raises:
            CheckFailed: If the outputs moved too far and ``on_failure`` is ``"raise"``.
        """
        if not record.rewrites:
            record.error = 0.0
            return
        assert self.reference is not None
        try:
            outputs = self.evaluate(graph)
        except GraphshrinkError as error:
            record.error, problem = float("inf"), f"left a model that does not run ({error})"
        else:
            record.error = relative_error(self.reference, outputs)
            limit = tolerance_of(graph) if self.tolerance is None else self.tolerance
            exact = record.exactness is Exactness.EXACT
            if self.nudged is not None and self.tolerance is None and exact:
                before = graph if self._backup is None else self._backup
                tight, limit = (
                    limit,
                    allowed(limit, record.error, self.reference, before, self.nudged),
                )
                if tight < record.error <= limit:
                    graph.notes.append(
                        f"{step} moved the outputs by {record.error:.1e} of their largest value, no further than "
                        "inputs that are rounded otherwise move them"
                    )
            if record.exactness is not Exactness.EXACT or record.error <= limit:
                self.reference = outputs
                return
            problem = (
                f"claims to be exact, but the outputs moved by {record.error:.2e} "
                f"(allowed {limit:.1g})"
            )
        nodes = [name for r in record.rewrites for name in r.nodes]
        shown = ", ".join(nodes[:5]) + (f" and {len(nodes) - 5} more" if len(nodes) > 5 else "")
        message = f"pass {step} {problem}; it rewrote {shown}"
        if self.on_failure == "raise":
            raise CheckFailed(message)
        assert self._backup is not None
        log.warning("%s; rolled back", message)
        graph.adopt(self._backup)
        record.rolled_back, record.problem = True, message

"""Losses of candidates that were scored before: what an interrupted run, or one with another target, need not score again.

A loss belongs to the model, the samples, the way in which outputs are compared, and the weights and ops of the candidates, all of which are in its key.
Scores are kept in the file of the latency tables. Without that file a plan is made all the same, and a note says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import version

from ..ir import Graph, UsageError
from .latency.store import Store
from .latency.table import default_path

VERSION = 2
"""Increases when the same candidates would get other scores."""

ALONE, TOGETHER = "alone", "together"
"""How candidates were scored: one alone behind kept values, or a set in the whole network; the two round differently."""


class KeptScores:
    """The kept scores of one plan.

    Args:
        settings: Everything that losses depend on but the candidates; ``None`` if scores cannot be kept, because the user's own function
            computes them.
        store: The file; that of the latency tables if not given.

    Attributes:
        problem: Why scores are not kept; empty if they are.
    """

    def __init__(self, settings: Iterable[object] | None, store: Store | None = None) -> None:
        self.problem = ""
        self._known: dict[str, float] = {}
        self._store: Store | None = None
        if settings is None:
            return
        self._plan = _digest([VERSION, *_machine(), *settings])
        try:
            self._store = Store(default_path()) if store is None else store
            self._known = self._store.scores(self._plan)
        except UsageError as error:
            self._give_up(error)

    def has(self, how: str, candidates: Iterable[str]) -> bool:
        """Whether the loss of candidates is known."""
        return _digest([how, *sorted(candidates)]) in self._known

    def loss(self, how: str, candidates: Iterable[str], score: Callable[[], float]) -> float:
        """The loss of candidates: the kept one, or that of ``score()``, which is then kept.

        Args:
            how: :data:`ALONE` or :data:`TOGETHER`.
            candidates: The digests of the candidates, in any order.
            score: Scores them.
        """
        key = _digest([how, *sorted(candidates)])
        if key not in self._known:
            self._known[key] = score()
            if self._store is not None:
                try:
                    self._store.add_score(self._plan, key, self._known[key])
                except UsageError as error:
                    self._give_up(error)
        return self._known[key]

    def _give_up(self, error: UsageError) -> None:
        self._store = None
        self.problem = f"scores are not kept, so an interrupted run starts again: {error}"


def _machine() -> list[object]:
    """What the rounding of outputs depends on."""
    packages = [version(name) for name in ("graphshrink", "numpy", "onnxruntime")]
    return [*packages, platform.machine(), os.cpu_count()]


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def region_digest(name: str, region: Graph) -> str:
    """A hash of the ops and constants of a region, and of the name of its site: skipped regions are all alike."""
    digest = hashlib.sha256(f"{name}\n{region}".encode("utf-8", "surrogatepass"))
    for value in region.constants:
        if value.data is not None:
            digest.update(f"{value.name} {value.type}".encode("utf-8", "surrogatepass"))
            digest.update(value.data.numpy().tobytes())
    return digest.hexdigest()

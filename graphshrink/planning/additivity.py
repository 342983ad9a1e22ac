"""How well the savings of single regions add up: a factor that is fitted on a handful of whole networks.

A runtime fuses ops and keeps data in caches, so that a region saves more or less inside a network than alone. A few networks between the given one and
the smallest are timed in turn; one factor for all savings is fitted to them by least squares. Its error on these networks says
what a prediction is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .search import Front, Option
from .survey import Choice, Survey

PARTS = (0.25, 0.5, 0.75, 1.0)
"""The networks that are timed save these parts of the most that can be saved."""

LIMITS = (0.5, 2.0)
"""The factor stays between these: noise must not ask for much more, or less, than there is."""

WIDTH = 0.2
"""A network whose saving is larger or smaller by this part counts half."""

Chosen = frozenset[Choice]


@dataclass
class Additivity:
    """Whole networks with the savings that their regions promise and the savings that were measured.

    Attributes:
        promised: For each set of replacements, the sum of the savings of its regions.
        found: What the whole network saved.
        costs: What the whole network costs.
    """

    promised: dict[Chosen, float] = field(default_factory=dict)
    found: dict[Chosen, float] = field(default_factory=dict)
    costs: dict[Chosen, float] = field(default_factory=dict)

    def add(self, chosen: Chosen, promised: float, prepared: float, cost: float) -> None:
        """Add a network that was timed in turn with the prepared one."""
        if promised > 0:
            self.promised[chosen], self.found[chosen] = promised, prepared - cost
            self.costs[chosen] = cost

    def factor(self, without: Chosen | None = None, near: float | None = None) -> float:
        """What a saving is worth in a whole network, by least squares; 1 if nothing was timed.

        Args:
            without: A set that is left out of the fit, to see how well the others predict it.
            near: Networks count the more, the closer their promised saving is to this one: what is left of a network that has lost nearly
                everything says little about others.
        """
        sets = [s for s in self.promised if s != without] or list(self.promised)
        promised = np.array([self.promised[s] for s in sets])
        found = np.array([self.found[s] for s in sets])
        if not len(sets):
            return 1.0
        weights = 1.0 if not near else 1 / (1 + (np.log(promised / near) / WIDTH) ** 2)
        return float(
            np.clip((weights * promised) @ found / ((weights * promised) @ promised), *LIMITS)
        )

    def error(self) -> float | None:
        """The root mean square of the relative errors of predicted costs, each without the network itself; ``None`` below two networks."""
        if len(self.promised) < 2:
            return None
        off = [
            (self.factor(s, self.promised[s]) * self.promised[s] - self.found[s]) / self.costs[s]
            for s in self.promised
        ]
        return float(np.sqrt(np.mean(np.square(off))))


def handful(survey: Survey, saving: Callable[[Iterable[Choice]], float]) -> Sequence[Chosen]:
    """The sets with the smallest sum of losses that save some parts of the most that can be saved; each once."""
    total = sum(c.saving for c in survey.choices) or 1.0
    options = [
        Option(c.site.span, c.site.closer is not None, int(c.saving / total * _TICKS), c.loss)
        for c in survey.choices
    ]
    front = Front(survey.sites.size, options, _TICKS)
    most = max((p.ticks for p in front.points()), default=0)
    points = [front.at_least(int(part * most)) for part in PARTS]
    sets = [frozenset(survey.choices[i] for i in p.options) for p in points if p is not None]
    return [s for s in dict.fromkeys(sets) if saving(s) > 0]


_TICKS = 1000

"""Steps by true score on small problems in which replacements lose more beside others, against all sets there are."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from graphshrink.planning.candidates import Candidate
from graphshrink.planning.sites import Site, Sites
from graphshrink.planning.steps import Choices, Stepper
from graphshrink.planning.survey import Choice, Survey


class Replaced(Candidate):
    """A candidate that is only a name."""

    def __init__(self, site: Any, label: str) -> None:
        self.site, self.label, self.error = site, label, 0.0

    def apply(self, graph: Any, rw: Any) -> None:
        raise NotImplementedError


def problem(seed: int, sites: int = 7, labels: int = 2) -> tuple[Survey, Any]:
    """A survey of sites side by side, and a true loss with interactions between all pairs."""
    rng = np.random.default_rng(seed)
    # A site is only asked for its span, its name and its closing layer.
    made: list[Any] = [_Spot(f"s{i}", (i, i + 1)) for i in range(sites)]
    choices = [
        Choice(Replaced(site, f"c{k}"), float(rng.uniform(0.5, 2)), float(rng.uniform(0.1, 1)), 3.0, "")
        for site in made
        for k in range(labels)
    ]  # fmt: skip
    pairs = {frozenset((a, b)): float(rng.exponential(0.5)) for a in choices for b in choices}

    def loss(chosen: Choices) -> float:
        together = sum(pairs[frozenset(p)] for p in combinations(sorted(chosen, key=_key), 2))
        return sum(c.loss for c in sorted(chosen, key=_key)) + together

    return Survey(Sites(size=sites), choices, 20.0), loss


class _Spot(Site):
    def __init__(self, name: str, span: tuple[int, int]) -> None:
        object.__setattr__(self, "span", span)
        object.__setattr__(self, "closer", None)
        object.__setattr__(self, "kind", name)

    @property
    def name(self) -> str:
        return self.kind


def _key(choice: Choice) -> tuple[str, str]:
    return choice.key


def best_of_all(survey: Survey, loss: Any, saving: float) -> float:
    found = np.inf
    for count in range(len(survey.choices) + 1):
        for chosen in combinations(survey.choices, count):
            alone = len({c.site for c in chosen}) == count
            if alone and sum(c.saving for c in chosen) >= saving:
                found = min(found, loss(frozenset(chosen)))
    return float(found)


def test_sets_are_near_the_best_of_all() -> None:
    ratios = []
    for seed in range(12):
        survey, loss = problem(seed)
        scored: list[Choices] = []

        def score(chosen: Choices, scored: list[Choices] = scored, loss: Any = loss) -> float:
            scored.append(chosen)
            return float(loss(chosen))

        stepper = Stepper(survey, score, lambda *_: None)
        saving = 0.6 * stepper.most()
        found = stepper.reach(saving)
        assert found is not None
        assert sum(c.saving for c in found) >= saving
        assert len({c.site for c in found}) == len(found)
        assert len(set(scored)) == len(scored) <= 300
        # The sums alone choose a set like this one.
        sums = stepper._sum(saving)
        assert sums is not None
        assert loss(found) <= loss(sums)
        ratios.append(loss(found) / best_of_all(survey, loss, saving))
    assert np.median(ratios) < 1.02
    assert max(ratios) < 1.3


@pytest.mark.parametrize("limit", [0.0, 1.0, 4.0])
def test_within_a_loss(limit: float) -> None:
    for seed in range(6):
        survey, loss = problem(seed)
        scored: dict[Choices, float] = {}

        def score(
            chosen: Choices, scored: dict[Choices, float] = scored, loss: Any = loss
        ) -> float:
            scored[chosen] = loss(chosen)
            return scored[chosen]

        found = Stepper(survey, score, lambda *_: None).within(limit)
        assert loss(found) <= limit
        assert bool(found) == any(lost <= limit for lost in scored.values())
        # No scored network within the limit saves more.
        fitting = [sum(c.saving for c in made) for made, lost in scored.items() if lost <= limit]
        assert sum(c.saving for c in found) == pytest.approx(max(fitting, default=0.0))


def test_what_cannot_be_reached() -> None:
    survey, loss = problem(1)
    stepper = Stepper(survey, loss, lambda *_: None)
    assert stepper.reach(1.001 * stepper.most()) is None
    assert stepper.reach(0.0) == frozenset()


def test_the_largest_saving_is_reached() -> None:
    for seed in range(12):
        survey, loss = problem(seed)
        stepper = Stepper(survey, loss, lambda *_: None)
        largest = sum(max(c.saving for c in survey.choices if c.site is s) for s in _sites(survey))
        # Up to the rounding of savings to ticks, of which there are 2000.
        assert stepper.most() == pytest.approx(largest, rel=2e-3)
        found = stepper.reach(stepper.most())
        assert found is not None
        assert sum(c.saving for c in found) == pytest.approx(largest, rel=2e-3)


def _sites(survey: Survey) -> set[Any]:
    return {c.site for c in survey.choices}

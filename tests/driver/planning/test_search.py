"""The search against all choices there are."""

from __future__ import annotations

import time
from itertools import pairwise, product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphshrink.planning.search import Front, Option


@st.composite
def _problems(draw: st.DrawFn) -> tuple[int, list[Option]]:
    """Nested, adjacent and overlapping intervals with a few options each."""
    size = draw(st.integers(2, 7))
    options = []
    for _ in range(draw(st.integers(1, 9))):
        start = draw(st.integers(0, size - 2))
        hidden = draw(st.booleans())
        stop = draw(st.integers(start + 1, size - 1 if hidden else size))
        loss = draw(st.integers(0, 40)) / 8
        options.append(Option((start, stop), hidden, draw(st.integers(0, 12)), loss))
    return size, options


def _exclude(one: Option, other: Option) -> bool:
    """Two options touch the same node; two hidden ones may share the closing layer of one."""
    both = one.hidden and other.hidden
    nodes = [set(range(o.span[0], o.span[1] + (o.hidden and not both))) for o in (one, other)]
    return not nodes[0].isdisjoint(nodes[1])


def _brute(options: list[Option], top: int) -> dict[int, float]:
    best: dict[int, float] = {}
    for bits in product((False, True), repeat=len(options)):
        chosen = [o for o, bit in zip(options, bits, strict=True) if bit]
        if any(_exclude(a, b) for i, a in enumerate(chosen) for b in chosen[:i]):
            continue
        ticks = min(top, sum(o.ticks for o in chosen))
        best[ticks] = min(best.get(ticks, np.inf), sum(o.loss for o in chosen))
    return best


@settings(deadline=None, max_examples=50)
@given(_problems(), st.integers(5, 60))
def test_the_front_is_that_of_all_choices(problem: tuple[int, list[Option]], top: int) -> None:
    size, options = problem
    best = _brute(options, top)
    front = Front(size, options, top)
    for wanted in range(top + 1):
        losses = [loss for ticks, loss in best.items() if ticks >= wanted]
        found = front.at_least(wanted)
        if not losses:
            assert found is None
            continue
        assert found is not None
        assert found.loss == min(losses)
        chosen = [options[i] for i in found.options]
        assert sum(o.loss for o in chosen) == found.loss
        assert min(top, sum(o.ticks for o in chosen)) >= wanted
        assert not any(_exclude(a, b) for i, a in enumerate(chosen) for b in chosen[:i])
    points = front.points()
    assert all(a.ticks < b.ticks and a.loss < b.loss for a, b in pairwise(points))


def test_two_hundred_regions_with_twelve_candidates_each_take_seconds() -> None:
    rng = np.random.default_rng(0)
    options = []
    for region in range(200):
        for k in range(12):
            inside = k >= 6
            span = (5 * region + inside, 5 * region + 4 - inside)
            options.append(Option(span, inside, int(rng.integers(1, 20)), float(rng.random())))
    start = time.perf_counter()
    front = Front(1000, options)
    assert len(front.points()) > 100
    assert time.perf_counter() - start < 10

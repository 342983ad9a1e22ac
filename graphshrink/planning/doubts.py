"""Measured costs of regions that cannot be: a region costs no more than a larger one around it, and all together no more than the network.

A machine that was busy while a region was timed leaves such figures behind, and a plan that believes one of them is built around it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

from .sites import Site

FACTOR = 1.3
"""A region may cost this much more alone than within a larger one: there the runtime fuses more and keeps data in its own layout."""

CALL = 0.05
"""What a call of the runtime may add to the milliseconds of a region that is run alone."""


def too_large(costs: Mapping[Site, float], total: float) -> dict[Site, float]:
    """Sites that cost more than what they are a part of; for each the largest cost that is possible.

    Args:
        costs: Milliseconds of sites alone.
        total: Milliseconds of the network.
    """
    found: dict[Site, float] = {}
    for site, cost in costs.items():
        around = [c for other, c in costs.items() if _is_within(site, other)]
        most = FACTOR * min([total, *around]) + CALL
        if cost > most:
            found[site] = most
    return found


def too_many(costs: Mapping[Site, float], total: float) -> list[Site]:
    """Sites that follow each other and together cost more than the network; empty if none do."""
    chain = _heaviest(costs)
    most = FACTOR * total + CALL * len(chain)
    return chain if sum(costs[s] for s in chain) > most else []


def _is_within(site: Site, other: Site) -> bool:
    return site is not other and set(site.nodes) < set(other.nodes)


def _heaviest(costs: Mapping[Site, float]) -> list[Site]:
    """The sites with the largest sum of costs of which no two overlap (weighted interval scheduling)."""
    ordered = sorted(costs, key=lambda s: (_end(s), s.name))
    ends = [_end(s) for s in ordered]
    best: list[tuple[float, tuple[Site, ...]]] = [(0.0, ())]
    for i, site in enumerate(ordered):
        before = bisect_right(ends, site.span[0], hi=i)
        cost, sites = best[before]
        best.append(max(best[i], (cost + costs[site], (*sites, site)), key=lambda b: b[0]))
    return list(best[-1][1])


def _end(site: Site) -> int:
    # A hidden site has its closing layer too.
    return site.span[1] + (site.closer is not None)

"""``permute-channels``: the order of channels in which an N:M pattern keeps most of the weights.

The pattern keeps n of every m weights that happen to stand side by side; which ones do is a matter of the order of channels,
and that order is free: reordering a coupled group (:mod:`graphshrink.ir.analysis.channels.groups`) changes no result. For every
group the order is searched (:mod:`.nm_search`) that maximises what is kept over *all* weights that sum over the group, their
rows one below the other, and applied where it keeps more than the order that was found.
After Pool and Yu, "Channel permutations for N:M sparsity", NeurIPS 2021.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ...ir import Graph, MaskedTensor, Node, Pattern, Rewriter
from ...ir.analysis import ChannelGroup, Placement, channel_groups
from ...ir.analysis.weights import NmWeight, nm_weights
from ...ir.options import Bounds
from ..infra.contract import Context, Pass
from ..infra.registry import register
from .apply import Told, apply_permutations
from .nm_layout import Part, Problem, kept, magnitude, parts_of
from .nm_search import Ids, search_order

LEAST_STEPS, MOST_STEPS = 1000, 4000
"""How many exchanges are tried for a run of channels when ``steps`` is 0: four a channel, within these bounds."""


@register
@dataclass(frozen=True)
class PermuteChannels(Pass):
    """Order channels so that N:M sparsity keeps as much as possible. Run it before ``sparsify``.

    Without ``seconds`` the result depends on the weights and the options alone.

    Attributes:
        n: How many weights of m are kept.
        m: Of how many.
        steps: How many exchanges of two channels are tried for each run; 0 for four a channel, at least 1000 and at
            most 4000.
        rows: So many rows of weights are looked at for each group, a random sample of larger ones.
        window: A run has so many channels at most; larger groups are searched run by run. Time grows with it.
        seconds: Stop the search of a group after so many CPU seconds; 0 for no limit. With one the result depends on the
            machine.
        threads: How many groups are searched at once; the result is the same for any number.
    """

    name = "permute-channels"
    n: int = 2
    m: int = 4
    steps: Annotated[int, Bounds(at_least=0)] = 0
    rows: Annotated[int, Bounds(at_least=1)] = 1024
    window: int = 512
    seconds: Annotated[float, Bounds(at_least=0)] = 0.0
    threads: Annotated[int, Bounds(at_least=1)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.pattern
        if self.window < 2 * self.m:
            raise ValueError(f"window must be at least {2 * self.m}, not {self.window}")

    @property
    def pattern(self) -> Pattern:
        """The pattern."""
        return Pattern(self.n, self.m)

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        found = self.orders(graph, rw, ctx)
        apply_permutations(
            graph,
            rw,
            [(group, order) for group, order, _ in found],
            {group: gain for group, _, gain in found},
        )

    def orders(
        self, graph: Graph, rw: Rewriter, ctx: Context
    ) -> list[tuple[ChannelGroup, Ids, Told]]:
        """The groups for which a better order was found, with that order and what it does; others are refused."""
        plans = list(group_parts(graph, rw, self.pattern))
        found = []
        with ThreadPoolExecutor(self.threads) as pool:
            results = pool.map(lambda plan: self._search(*plan), plans)
            for done, ((group, parts), order) in enumerate(zip(plans, results, strict=True)):
                ctx.progress(done, len(plans), group.name)
                before, after, whole = kept(parts, self.pattern, order)
                if not after > before:
                    reason = f"no order of its inputs was found in which {self.pattern} keeps more"
                    rw.skip(parts[0].weight.node, reason)
                    continue
                readers = list(dict.fromkeys(p.weight.name for p in parts))
                more = f" and {len(readers) - 1} more" if len(readers) > 1 else ""
                what = (
                    f"permute the {group.size} inputs of {readers[0]}{more}: {self.pattern} keeps "
                    f"{after / whole:.2%} of the magnitude, it kept {before / whole:.2%}"
                )
                measures = {"magnitude kept": after / whole, "kept before": before / whole}
                found.append((group, order, Told(what, measures)))
        return found

    def _search(self, group: ChannelGroup, parts: Sequence[Part]) -> Ids:
        problem = Problem.of(parts, self.pattern)
        seed = seed_of(group)
        scores = problem.scores(self.rows, np.random.default_rng(seed))
        run = max(1, self.window // problem.stripes.shape[1])
        stripes = problem.stripes.copy()
        for start in range(0, len(stripes), run):
            own = stripes[start : start + run]
            columns = own.reshape(-1)
            steps = self.steps or steps_for(columns.size)
            local = search_order(
                scores[columns],
                np.arange(columns.size).reshape(own.shape),
                self.pattern,
                steps=steps,
                seed=seed,
                frozen=columns >= problem.units,
                seconds=self.seconds,
            )
            stripes[start : start + run] = columns[local]
        return problem.permutation(stripes)


def steps_for(channels: int) -> int:
    """How many exchanges are tried for so many channels when nothing else is asked for."""
    return min(max(4 * channels, LEAST_STEPS), MOST_STEPS)


def places_of(group: ChannelGroup) -> list[tuple[str, int, int, tuple[int, ...]]]:
    """Where a group stands: equal for the same group of two networks that differ in their numbers only."""
    return [(p.value.name, p.axis, p.offset, p.positions.shape) for p in group.placements]


def seed_of(group: ChannelGroup) -> int:
    """A number that depends on where a group stands, and on nothing else."""
    places = places_of(group)
    return int.from_bytes(hashlib.sha256(repr(places).encode()).digest()[:8], "little")


def group_parts(
    graph: Graph, rw: Rewriter, pattern: Pattern
) -> Iterator[tuple[ChannelGroup, list[Part]]]:
    """The groups whose order matters to a pattern, with their parts of weights; the others are refused."""
    weights = {w.value: w for w in nm_weights(graph)}
    known: dict[NmWeight, str | None] = {}
    for group in channel_groups(graph):
        reading: list[tuple[Placement, NmWeight]] = []
        problems: dict[NmWeight, str] = {}
        for placement in group.placements:
            weight = weights.get(placement.value)
            if (
                weight is None
                or weight.reduction is None
                or weight.reduction.axis != placement.axis
            ):
                continue
            problem = weight.reason(pattern)
            if problem is None:
                reading.append((placement, weight))
            else:
                problems[weight] = problem
        for weight, problem in problems.items():
            rw.skip(weight.node, f"it does not count for the order of its inputs: {problem}")
        parts, straddling = parts_of(reading, pattern)
        for reason in straddling:
            rw.skip(reading[0][1].node, f"its inputs keep their order: {reason}")
        against = next((p for _, w in reading if (p := _problem(w, pattern, known))), None)
        if parts and against is not None:
            rw.skip(*against)
        elif parts:
            yield group, parts


def _problem(
    weight: NmWeight, pattern: Pattern, known: dict[NmWeight, str | None]
) -> tuple[Node, str] | None:
    """What the numbers of a weight have against another order, with the layer that it belongs to."""
    if weight not in known:
        known[weight] = _number_problem(weight, pattern)
    reason = known[weight]
    return None if reason is None else (weight.node, reason)


def _number_problem(weight: NmWeight, pattern: Pattern) -> str | None:
    data = weight.value.data if weight.value is not None else None
    try:
        found = magnitude(weight)
    except ValueError as error:
        return f"its weight cannot be read: {error}"
    if not np.isfinite(found).all():
        return "its weight is not finite everywhere"
    # Pruned already: by its mask, or by its numbers.
    if (isinstance(data, MaskedTensor) and data.pattern is not None) or pattern.holds(found):
        return f"its weight is {pattern} already: another order of channels breaks it"
    return None


__all__ = ["PermuteChannels", "group_parts", "places_of", "seed_of", "steps_for"]

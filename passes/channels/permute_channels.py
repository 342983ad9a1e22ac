"""``permute-channels``: reorder channels so that an N:M pattern keeps most of the weights' magnitude.

The pattern keeps n of every m adjacent weights. The order of channels decides which weights are adjacent, and this order
is free: reordering a coupled group (:mod:`graphshrink.ir.analysis.channels.groups`) does not change the function. For
every group the pass searches (:mod:`.nm_search`) the order that keeps the largest magnitude over *all* weights that sum
over the group, with their rows concatenated. It applies the order if it keeps more than the present one.
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
from .apply import GroupReport, apply_permutations
from .nm_layout import OrderProblem, WeightPart, kept_magnitude, magnitude, parts_of
from .nm_search import Ids, search_order

LEAST_STEPS, MOST_STEPS = 1000, 4000
"""The bounds of the number of exchanges for a run of channels if ``steps`` is 0: four for each channel."""


@register
@dataclass(frozen=True)
class PermuteChannels(Pass):
    """Reorder channels so that N:M sparsity keeps as much magnitude as possible. Run it before ``sparsify``.

    Without ``seconds`` the result depends only on the weights and the options.

    Attributes:
        n: The number of weights that are kept in each group of m.
        m: The size of a group of weights.
        steps: The number of exchanges of two channels for each run of channels; 0 for four for each channel, at least
            1000 and at most 4000.
        rows: The largest number of rows of weights to search with; a random sample is taken of more.
        window: The largest number of channels of a run; larger groups are searched run by run. Time grows with it.
        seconds: Stop the search of a run after this number of CPU seconds; 0 for no limit. With a limit the result
            depends on the machine.
        threads: How many groups are searched in parallel; the result does not depend on it.
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
        """The N:M pattern."""
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
    ) -> list[tuple[ChannelGroup, Ids, GroupReport]]:
        """The groups for which a better order was found, each with that order and its report entry.

        Records a refusal for every other group.
        """
        plans = list(group_parts(graph, rw, self.pattern))
        found = []
        with ThreadPoolExecutor(self.threads) as pool:
            results = pool.map(lambda plan: self._search(*plan), plans)
            for done, ((group, parts), order) in enumerate(zip(plans, results, strict=True)):
                ctx.progress(done, len(plans), group.name)
                before, after, whole = kept_magnitude(parts, self.pattern, order)
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
                found.append((group, order, GroupReport(what, measures)))
        return found

    def _search(self, group: ChannelGroup, parts: Sequence[WeightPart]) -> Ids:
        problem = OrderProblem.of(parts, self.pattern)
        seed = group_seed(group)
        scores = problem.scores(self.rows, np.random.default_rng(seed))
        run = max(1, self.window // problem.stripes.shape[1])
        stripes = problem.stripes.copy()
        for start in range(0, len(stripes), run):
            own = stripes[start : start + run]
            columns = own.reshape(-1)
            steps = self.steps or default_steps(columns.size)
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


def default_steps(channels: int) -> int:
    """The number of exchanges for a run of ``channels`` channels if ``steps`` is 0."""
    return min(max(4 * channels, LEAST_STEPS), MOST_STEPS)


def group_key(group: ChannelGroup) -> list[tuple[str, int, int, tuple[int, ...]]]:
    """A key of the group that depends on names and shapes, not on the numbers of the weights."""
    return [(p.value.name, p.axis, p.offset, p.positions.shape) for p in group.placements]


def group_seed(group: ChannelGroup) -> int:
    """A random seed for a group; it depends only on :func:`group_key`."""
    key = group_key(group)
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")


def group_parts(
    graph: Graph, rw: Rewriter, pattern: Pattern
) -> Iterator[tuple[ChannelGroup, list[WeightPart]]]:
    """The groups whose order matters to a pattern, each with its parts of weights.

    Records a refusal for every other group.
    """
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
            rw.skip(weight.node, f"it does not influence the order of its inputs: {problem}")
        parts, straddling = parts_of(reading, pattern)
        for reason in straddling:
            rw.skip(reading[0][1].node, f"its inputs keep their order: {reason}")
        against = next((p for _, w in reading if (p := _weight_problem(w, pattern, known))), None)
        if parts and against is not None:
            rw.skip(*against)
        elif parts:
            yield group, parts


def _weight_problem(
    weight: NmWeight, pattern: Pattern, known: dict[NmWeight, str | None]
) -> tuple[Node, str] | None:
    """The layer of a weight and the reason why its numbers forbid another order; ``None`` if they do not."""
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
    # Already pruned, according to its mask or its numbers.
    if (isinstance(data, MaskedTensor) and data.pattern is not None) or pattern.holds(found):
        return f"its weight is {pattern} already: another order of channels would break the pattern"
    return None


__all__ = ["PermuteChannels", "default_steps", "group_key", "group_parts", "group_seed"]

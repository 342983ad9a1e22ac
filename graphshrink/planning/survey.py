"""The survey: what each candidate of each site saves and loses if it alone is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ..ir import Graph, GraphError, Identity, InferenceError, ModelError, Node, Rewriter
from ..passes.statistics.requests import groups_within_memory
from .candidates import MENU, Candidate, Kind, at_strength
from .column_sums import ColumnSums
from .costs import Cost, Progress
from .doubts import too_large, too_many
from .extract import region_graph
from .kept_scores import ALONE, KeptScores, region_digest
from .quality import Prefix, Scorer
from .samples import Samples
from .sites import Site, Sites, find_sites

if TYPE_CHECKING:
    from .workers import Job, Pool

_Key = TypeVar("_Key")

LEAST_SAVING = 0.002
"""A candidate that saves less than this part of the whole network is left out."""

AGAIN = 2
"""How often measured costs that cannot be are measured again."""

WEAKER = 0.6
"""A second strength at which what a candidate adds to a skip is scored.

Networks that were trained with stochastic depth stand a missing block better than a wrong one of the same error.
"""

NEAR = 0.15
"""Candidates with a smaller relative error are scored at their full strength alone."""

WORST_ERROR = 1.05
"""A fitted candidate whose relative error is larger is left out: the mean alone would have 1."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A candidate with what it saves and loses.

    Attributes:
        candidate: The candidate.
        saving: The cost of its region minus the cost of the candidate.
        loss: The loss of the network with this candidate alone, on the scoring samples.
        cost: The cost of its region as it is.
        digest: A hash of the region with the candidate.
    """

    candidate: Candidate
    saving: float
    loss: float
    cost: float
    digest: str

    @property
    def site(self) -> Site:
        """The site."""
        return self.candidate.site

    @property
    def key(self) -> tuple[str, str]:
        """The names of site and candidate."""
        return self.site.name, self.candidate.label


@dataclass
class Survey:
    """All choices for a graph.

    Attributes:
        sites: The sites.
        choices: The choices, by span.
        cost: The cost of the graph.
        refused: Sites and candidates that were left out, with reasons.
        notes: Remarks for the user.
    """

    sites: Sites
    choices: list[Choice]
    cost: float
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def survey(
    graph: Graph,
    samples: Samples,
    cost: Cost,
    scorer: Scorer,
    kept_scores: KeptScores,
    progress: Progress,
    kinds: Sequence[Kind] = tuple(MENU.values()),
    workers: int | str = 0,
) -> Survey:
    """Fit, measure and score all candidates of a graph; with workers, that many processes score, or the Ray cluster of that address."""
    sites = find_sites(graph)
    refused = dict(sites.refused)
    fitted = fit(graph, sites.found, samples, refused, progress, kinds)
    usable: list[Candidate] = []
    parts: list[Graph] = []
    for candidate in fitted:
        try:
            changed = apply(graph, [candidate])
            part = region_graph(changed, candidate.site.entry.name, candidate.site.exit.name)
        except (GraphError, InferenceError, ModelError) as error:
            refused[f"{candidate.label} of {candidate.site.name}"] = str(error)
            continue
        usable.append(candidate)
        parts.append(part)
    whole: dict[Site, Graph] = {}
    for candidate in usable:
        site = candidate.site
        if site not in whole:
            whole[site] = region_graph(graph, site.entry.name, site.exit.name)
    total = cost.networks([graph])[0]
    spent, kept = _costs(usable, parts, whole, total, cost, refused, progress)
    promising = [
        Promising(candidate, part, kept[candidate.site], kept[candidate.site] - spent[candidate])
        for candidate, part in zip(usable, parts, strict=True)
        if candidate in spent
        and candidate.site in kept
        and kept[candidate.site] - spent[candidate] > LEAST_SAVING * total
        and candidate.error < WORST_ERROR
    ]
    promising = [p for p in promising if not _is_beaten(p, promising)]
    promising += [w for p in promising if (w := _weaker(graph, p)) is not None]
    with _pool(scorer, workers) as pool:
        choices = _scored(graph, promising, scorer, kept_scores, progress, pool)
        notes = [] if pool is None else pool.notes
    return Survey(sites, _at_best_strength(choices), total, refused, notes)


def _weaker(graph: Graph, one: Promising) -> Promising | None:
    """A candidate that adds less to its skip; ``None`` if it has no skip, or is so near to the region that it would lose by it."""
    made = one.candidate.weaker(WEAKER) if one.candidate.error > NEAR else None
    if made is None:
        return None
    changed = apply(graph, [made])
    part = region_graph(changed, made.site.entry.name, made.site.exit.name)
    return replace(one, candidate=made, region=part)


def _at_best_strength(choices: Sequence[Choice]) -> list[Choice]:
    """Of each candidate only the strength with the smallest loss."""
    best: dict[tuple[str, str], Choice] = {}
    for choice in choices:
        site, label = choice.key
        key = site, at_strength(label)[0]
        if key not in best or choice.loss < best[key].loss:
            best[key] = choice
    return [c for c in choices if c in best.values()]


def _costs(
    usable: Sequence[Candidate],
    parts: Sequence[Graph],
    whole: dict[Site, Graph],
    total: float,
    cost: Cost,
    refused: dict[str, str],
    progress: Progress,
) -> tuple[dict[Candidate, float], dict[Site, float]]:
    """The costs of candidates, and of their sites as they are; what cannot be measured is refused.

    Sites whose measured costs cannot be are measured again, or else refused.
    """
    costs = cost.regions([*parts, *whole.values()], progress)
    names = {c: f"{c.label} of {c.site.name}" for c in usable}
    spent = _known(dict(zip(usable, costs[: len(parts)], strict=True)), names, refused)
    sites = {site: site.name for site in whole}
    kept = _known(dict(zip(whole, costs[len(parts) :], strict=True)), sites, refused)
    if not cost.measured:
        return spent, kept
    for _ in range(AGAIN):
        doubted = [*too_large(kept, total), *too_many(kept, total)]
        if not doubted:
            return spent, kept
        again: dict[Candidate | Site, Graph] = {
            c: part
            for c, part in zip(usable, parts, strict=True)
            if c in spent and c.site in doubted
        }
        again |= {site: whole[site] for site in kept if site in doubted}
        for key, value in zip(again, cost.regions_again([*again.values()], progress), strict=True):
            if isinstance(value, ModelError):
                continue  # It was measured before.
            if isinstance(key, Site):
                kept[key] = value
            else:
                spent[key] = value
    for site, most in too_large(kept, total).items():
        refused[site.name] = (
            f"timed alone it took {kept[site]:.3g} ms, but it is part of what takes {most:.3g} ms: "
            "the machine was busy; clear the table (graphshrink bench --clear) and plan again when it is not"
        )
        del kept[site]
    return spent, kept


def _known(
    costs: dict[_Key, float | ModelError], names: dict[_Key, str], refused: dict[str, str]
) -> dict[_Key, float]:
    """The costs that are known; the others are refused by name."""
    refused |= {
        names[key]: f"it cannot be measured: {value}"
        for key, value in costs.items()
        if isinstance(value, ModelError)
    }
    return {key: value for key, value in costs.items() if not isinstance(value, ModelError)}


@dataclass(frozen=True, eq=False)
class Promising:
    """A candidate that is worth a score: its region, what that costs as it is, and the saving."""

    candidate: Candidate
    region: Graph
    cost: float
    saving: float


def _is_beaten(one: Promising, others: Sequence[Promising]) -> bool:
    """Whether another candidate of the same site errs less and saves more."""
    mine = one.candidate
    return any(
        p.candidate.site is mine.site and p.saving > one.saving and p.candidate.error < mine.error
        for p in others
    )


def fit(
    graph: Graph,
    sites: Sequence[Site],
    samples: Samples,
    refused: dict[str, str],
    progress: Progress,
    kinds: Sequence[Kind] = tuple(MENU.values()),
) -> list[Candidate]:
    """The candidates of sites, fitted on the fitting samples; refusals are added to ``refused``."""
    asked: list[tuple[Kind, Site, Sequence[ColumnSums]]] = []
    for site in sites:
        for kind in kinds:
            requests = kind.requests(site)
            if not isinstance(requests, str):
                asked.append((kind, site, requests))
            elif requests:
                refused[f"{kind.name} of {site.name}"] = requests
    data = samples.statistics(graph)
    data.progress = progress  # type: ignore[method-assign]
    found: list[Candidate] = []
    for group in groups_within_memory(asked, lambda a: sum(r.nbytes() for r in a[2])):
        results = data.collect(graph, [r for *_, requests in group for r in requests])
        for done, (kind, site, requests) in enumerate(group):
            progress(done, len(group), "fits")
            found += kind.fit(site, [results[r] for r in requests])
    return found


def _pool(scorer: Scorer, workers: int | str) -> AbstractContextManager[Pool | None]:
    """The workers; none for the user's own function, which they may not be able to call."""
    if not workers or scorer.own is not None:
        return nullcontext()
    if isinstance(workers, str):
        from .ray_workers import RayPool

        return RayPool(scorer, workers)
    from .workers import ProcessPool

    return ProcessPool(scorer, workers)


def _scored(
    graph: Graph,
    promising: Sequence[Promising],
    scorer: Scorer,
    kept: KeptScores,
    progress: Progress,
    pool: Pool | None,
) -> list[Choice]:
    place = {node: i for i, node in enumerate(graph.nodes)}
    first = {
        p.candidate.site: min(p.candidate.site.nodes, key=place.__getitem__) for p in promising
    }
    ordered = sorted(promising, key=lambda p: place[first[p.candidate.site]])
    digests = [region_digest(p.candidate.site.name, p.region) for p in ordered]
    unknown = [i for i, digest in enumerate(digests) if not kept.has(ALONE, [digest])]
    prefixes: dict[Node, Prefix] = {}
    jobs: dict[int, Job] = {}

    def prefix(index: int) -> Prefix:
        start = first[ordered[index].candidate.site]
        if start not in prefixes:
            prefixes.clear()  # Candidates come in order: the values of one are kept at a time.
            prefixes[start] = scorer.prefix(start)
        return prefixes[start]

    def score(index: int) -> float:
        if pool is None:
            return max(prefix(index).loss(apply(graph, [ordered[index].candidate])), 0.0)
        for later in unknown[unknown.index(index) :][: pool.ahead]:
            if later not in jobs:
                made = apply(graph, [ordered[later].candidate])
                jobs[later] = pool.submit(prefix(later), made)
        return max(pool.result(jobs.pop(index)), 0.0)

    choices: list[Choice] = []
    for i, (one, digest) in enumerate(zip(ordered, digests, strict=True)):
        progress(i, len(ordered), "scores")
        loss = kept.loss(ALONE, [digest], partial(score, i))
        choices.append(Choice(one.candidate, one.saving, loss, one.cost, digest))
    return sorted(choices, key=lambda c: (c.site.span, c.key))


def apply(graph: Graph, candidates: Sequence[Candidate]) -> Graph:
    """A copy of a graph with candidates that do not exclude each other."""
    made = graph.clone()
    apply_to(made, Rewriter(made), candidates)
    return made


def apply_to(graph: Graph, rw: Rewriter, candidates: Sequence[Candidate]) -> None:
    """Replace sites of a graph; what is left without readers stays for ``prune-dead``."""
    for candidate in sorted(candidates, key=lambda c: (c.site.span, c.site.name)):
        candidate.apply(graph, rw)
    for node in graph.nodes:
        if isinstance(node.op, Identity) and node.origin is None and not node.output.is_output:
            rw.replace_uses(node.output, node.required(0))

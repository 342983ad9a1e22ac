"""Making a plan: survey, steps by true score, and a measurement of the whole network at the end."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, NoReturn

import numpy as np

from ..data.calibration import check_varied
from ..ir import Graph, GraphError, InferenceError, ModelError, Rewriter, UsageError
from ..not_understood import not_understood
from ..passes import Context, Pipeline
from ..targets.version import __version__
from .additivity import LIMITS, Additivity, handful
from .candidates import MENU, Candidate
from .costs import Cost, FileSize, Latency, Macs, Progress, cost_text
from .frontier import FrontierPoint, frontier
from .kept_scores import TOGETHER, KeptScores
from .plan import PREPARATION, Plan, PlannedSite, model_digest, rounded, where
from .quality import Score, Scorer
from .repair import Repairer, Repairs
from .samples import read_samples
from .steps import Choices, Stepper, saving_of
from .strip import strip
from .survey import Choice, Survey, apply, survey

_log = logging.getLogger(__name__)

TARGETS = ("speedup", "latency", "macs", "size", "max_loss")
"""The targets of a plan."""

TIGHTENINGS = 4
"""How often the search goes on if the measured network misses the budget, or is much smaller."""

SLACK = 0.985
"""A measured network that costs less than this part of the budget is searched again, with what its measurement has taught."""


@dataclass(frozen=True)
class Target:
    """What a plan is to reach.

    Attributes:
        kind: ``speedup``: how many times faster the network is to be; ``latency``: its milliseconds; ``macs``: the part of the MACs
            that it keeps; ``size``: the bytes of its ONNX files; ``max_loss``: the largest loss, and then the fastest network.
        value: The number.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in TARGETS:
            raise UsageError(f"a target is one of {', '.join(TARGETS)}, not {self.kind!r}")
        if not isinstance(self.value, Real) or not math.isfinite(self.value):
            raise UsageError(f"{self.kind} must be a finite number, not {self.value!r}")
        if self.kind == "speedup" and not self.value > 1:
            raise UsageError(f"a speedup must be larger than 1, not {self.value:g}")
        if self.kind == "macs" and not 0 < self.value < 1:
            raise UsageError(f"macs is the part that is kept, between 0 and 1, not {self.value:g}")
        if self.kind in ("latency", "size", "max_loss") and not self.value > 0:
            raise UsageError(f"{self.kind} must be larger than 0, not {self.value:g}")

    def budget(self, before: float) -> float:
        """The largest cost that reaches the target, from the cost of the given model."""
        if self.kind == "speedup":
            return before / self.value
        return self.value * before if self.kind == "macs" else self.value


def make_plan(
    model: Any,
    calibration: Any,
    target: Target,
    cost: Cost,
    *,
    measure: str | Score = "auto",
    fixed_shapes: Mapping[str, Sequence[int | None]] | None = None,
    frontier: bool = False,
    repair: bool = True,
    menu: Sequence[str] = tuple(MENU),
    workers: int | str = 0,
    progress: Progress | None = None,
) -> Plan:
    """Plan for a model from ONNX; see :func:`graphshrink.plan`. ``menu`` has the names of the kinds of candidates."""
    from ..api import load

    report = progress or (lambda *_: None)
    given, kind = load(model, None, fixed_shapes)
    if kind != "onnx":
        raise UsageError("only ONNX models can be planned: export the module, or give a file")
    graph = given.clone()
    Pipeline(PREPARATION).run(graph, Context())
    cost.check([given, graph])
    samples = read_samples(graph, calibration)
    check_varied(samples.scoring, samples.count)
    scorer = Scorer(graph, samples.scoring, measure)
    _check_finite(graph, scorer)
    digest = model_digest(model)
    shapes = {name: list(shape) for name, shape in (fixed_shapes or {}).items()}
    kept = KeptScores(None if scorer.own else [digest, shapes, samples.digest, scorer.kinds])
    kinds = [MENU[name] for name in menu]
    found = survey(graph, samples, cost, scorer, kept, report, kinds, workers)
    if not found.choices:
        raise UsageError(_nothing(found))

    def score(chosen: Choices) -> float:
        made = [c.candidate for c in chosen]
        try:
            return kept.loss(
                TOGETHER, [c.digest for c in chosen], lambda: scorer.loss(apply(graph, made))
            )
        except (GraphError, InferenceError, ModelError) as error:
            # Each fits alone; a set that does not fit together is a set that is not chosen.
            _log.info("%s do not fit together: %s", sorted(c.key for c in chosen), error)
            return float("inf")

    search = _Search(given, graph, target, cost, found, Stepper(found, score, report))
    chosen = search.run()
    if frontier:
        search.stepper.within(float("inf"))
    repairs = Repairs()
    if repair and chosen:
        candidates = [c.candidate for c in chosen]
        changed = apply(graph, candidates)
        repairs = Repairer(graph, changed, candidates, samples, measure, report).search()
        if repairs.layers:
            repairs.apply(changed, Rewriter(changed))
            search.loss = scorer.loss(changed)
    made = frozenset(chosen)
    saving = saving_of(made)
    search.factor = search.additivity.factor(without=made, near=saving)
    predicted = search.prepared - search.factor * saving
    before, predicted, after, added, loss, factor = rounded(
        [
            search.before,
            predicted,
            search.after,
            sum(c.loss for c in chosen),
            search.loss,
            search.factor,
        ]
    )
    return Plan(
        sites=[_planned(c) for c in chosen],
        target={target.kind: target.value},
        cost=cost.describe(),
        before=before,
        predicted=predicted,
        after=after,
        predicted_loss=added,
        loss=loss,
        factor=factor,
        model=digest,
        samples={"sha256": samples.digest, "count": samples.count, **where(calibration)},
        fixed_shapes=shapes,
        version=__version__,
        menu=[_planned(c) for c in found.choices],
        refused=found.refused,
        regions=strip(graph, found.choices, chosen),
        measures=["own"] if scorer.own is not None else list(scorer.kinds),
        frontier=search.frontier(chosen),
        repairs=[asdict(r) for r in repairs.layers],
        repaired=_before_and_after(repairs),
        additivity=search.agreement(predicted),
        _not_understood=tuple(not_understood(graph)),
        _notes=[*found.notes, *([kept.problem] if kept.problem else [])],
        _source=model,
        _data=calibration,
    )


def _before_and_after(repairs: Repairs) -> dict[str, float]:
    if not repairs.sought:
        return {}
    before, after = rounded([repairs.before, repairs.after])
    return {"before": before, "after": after}


def _planned(choice: Choice) -> PlannedSite:
    saving, loss, cost = rounded([choice.saving, choice.loss, choice.cost])
    return PlannedSite(*choice.key, saving, loss, cost)


def _check_finite(graph: Graph, scorer: Scorer) -> None:
    """Check that losses can be measured.

    Raises:
        ModelError: If an output of the original is not finite; a user's own function may be able to compare it.
    """
    if scorer.own is not None:
        return
    for name, output in zip(graph.output_names, scorer.reference, strict=True):
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise ModelError(
                f"output {name!r} has numbers that are not finite on the samples, so that no loss can be measured: "
                "leave out such samples, mend the model's weights, or give a function as score in Python"
            )


def _nothing(found: Survey) -> str:
    reasons = sorted(set(found.refused.values()))
    why = f": {'; '.join(reasons[:3])}" if reasons else ""
    return f"the model has nothing to replace that would save anything{why}"


class _Search:
    """Searches until the measured network reaches the target.

    Attributes:
        before: The cost of the given model.
        prepared: The cost of the network after the exact passes.
        after: The cost of the chosen network.
        loss: Its loss.
        factor: What a saving of a region is worth in a whole network.
        additivity: The networks that were timed, from which the factor comes.
    """

    def __init__(
        self,
        given: Graph,
        graph: Graph,
        target: Target,
        cost: Cost,
        found: Survey,
        stepper: Stepper,
    ) -> None:
        self.given, self.graph, self.target, self.cost = given, graph, target, cost
        self.stepper, self.factor, self.loss = stepper, 1.0, 0.0
        self.additivity = Additivity()
        self.before, self.prepared = cost.networks([given, graph])
        self.after = self.prepared

    def run(self) -> list[Choice]:
        """The chosen replacements, in the order of the network."""
        if self.cost.measured:
            self._measure_handful()
        if self.target.kind == "max_loss":
            chosen = self.stepper.within(self.target.value)
            self._measure(chosen)
        else:
            chosen = self._within_budget()
        if self.after >= self.before:
            better = "smaller" if self.target.kind == "size" else "faster"
            raise UsageError(
                f"the planned network would not be {better} than the given one ({cost_text(self.after, self.cost.unit)} "
                f"and {cost_text(self.before, self.cost.unit)}): no file is made"
            )
        self.loss = self.stepper.loss(chosen)
        return sorted(chosen, key=lambda c: (c.site.span, c.key))

    def frontier(self, chosen: Sequence[Choice]) -> list[dict[str, Any]]:
        """The sets of replacements that no other scored set beats, for the plan."""
        points = frontier(
            self.stepper.survey.choices,
            self.stepper.scores,
            frozenset(chosen),
            lambda made: self.prepared - self.factor * saving_of(made),
            (self.after, self.loss),
        )
        return [{**asdict(p), **_rounded_point(p)} for p in points]

    def _within_budget(self) -> Choices:
        """The reached set of the smallest loss: too small a network is as wrong as too slow a one."""
        budget, tightened = self.target.budget(self.before), 0.0
        if self.after <= budget:
            return frozenset()
        best, slack = self.after / self.before, SLACK if self.cost.measured else 0.0
        reached: dict[Choices, tuple[float, float, float, float]] = {}
        missed = 0.0
        for _ in range(TIGHTENINGS + 1):
            needed = (self.prepared - budget) / self.factor + tightened
            chosen = self.stepper.reach(needed)
            if chosen is None or chosen in reached:
                break
            self._measure(chosen)
            best = min(best, self.after / self.before)
            budget = self.target.budget(self.before)
            if self.after <= budget:
                reached[chosen] = (self.before, self.prepared, self.after, self.factor)
                if self.after >= slack * budget:
                    break
                tightened = 0.0
            else:
                missed = max(missed, saving_of(chosen))
                # Noise may hide that the factor is right: ask for a little more each time.
                tightened += 0.02 * self.prepared
        if not reached:
            reached = self._from_the_smallest(missed, best)
        chosen = min(reached, key=self.stepper.loss)
        self.before, self.prepared, self.after, self.factor = reached[chosen]
        return chosen

    def agreement(self, predicted: float) -> dict[str, float | int | None]:
        """How well costs add up, for the plan; see :attr:`.plan.Plan.additivity`."""
        error = self.additivity.error()
        off = abs(predicted - self.after) / self.after if self.after else 0.0
        return {
            "networks": len(self.additivity.promised),
            "error": None if error is None else rounded([error])[0],
            "off": rounded([off])[0],
        }

    def _measure_handful(self) -> None:
        """Time a few networks in turn, so that the search starts with the right factor."""
        sets, made = [], []
        for chosen in handful(self.stepper.survey, saving_of):
            try:
                made.append(finished(self.graph, [c.candidate for c in chosen]))
                sets.append(chosen)
            except (GraphError, InferenceError, ModelError) as error:
                _log.info("%s do not fit together: %s", sorted(c.key for c in chosen), error)
        self.before, self.prepared, *costs = self.cost.networks([self.given, self.graph, *made])
        for chosen, cost in zip(sets, costs, strict=True):
            self.additivity.add(chosen, saving_of(chosen), self.prepared, cost)
        self.factor, self.after = self.additivity.factor(), self.prepared

    def _measure(self, chosen: Choices) -> None:
        made = finished(self.graph, [c.candidate for c in chosen])
        self.before, self.prepared, self.after = self.cost.networks([self.given, self.graph, made])
        saving = saving_of(chosen)
        if self.cost.measured and saving > 0:
            self.additivity.add(chosen, saving, self.prepared, self.after)
            # The search goes on near this network, so its own factor is better than that of all.
            low, high = LIMITS
            self.factor = min(high, max(low, (self.prepared - self.after) / saving))

    def _from_the_smallest(
        self, missed: float, best: float
    ) -> dict[Choices, tuple[float, float, float, float]]:
        """Networks that reach a target for which the savings seemed too small, by bisection from the smallest network.

        Args:
            missed: The largest saving whose network missed the target.
            best: The smallest cost so far, as a part of that of the given network.

        Raises:
            UsageError: If the smallest network misses the target too.
        """
        smallest = self.stepper.reach(self.stepper.most())
        if smallest:
            self._measure(smallest)
            best = min(best, self.after / self.before)
        budget = self.target.budget(self.before)
        if not smallest or self.after > budget:
            self._unreachable(best)
        reached = {smallest: (self.before, self.prepared, self.after, self.factor)}
        # Costs are nearly linear in savings, so the first try is on the line to the smallest network.
        high = saving_of(smallest)
        saved = max(self.prepared - self.after, 1e-9 * self.prepared)
        needed = high * (self.prepared - budget) / saved
        for _ in range(TIGHTENINGS):
            chosen = self.stepper.reach(needed) if missed < needed < high else None
            if chosen and chosen not in reached:
                self._measure(chosen)
                if self.after <= self.target.budget(self.before):
                    reached[chosen] = (self.before, self.prepared, self.after, self.factor)
                    high = min(high, saving_of(chosen))
                else:
                    missed = max(missed, needed)
            elif chosen:
                high = needed
            needed = (missed + high) / 2
        return reached

    def _unreachable(self, best: float) -> NoReturn:
        value = f"{self.target.value:{',.0f' if self.target.kind == 'size' else 'g'}}"
        ratio = f"a speedup of {1 / best:.2f}" if self.cost.measured else f"{best:.3g} of it"
        raise UsageError(
            f"{self.target.kind} {value} cannot be reached: the best is {cost_text(best * self.before, self.cost.unit)} "
            f"instead of {cost_text(self.before, self.cost.unit)}, {ratio}"
        )


def _rounded_point(point: FrontierPoint) -> dict[str, float]:
    cost, loss = rounded([point.cost, point.loss])
    return {"cost": cost, "loss": loss}


def finished(graph: Graph, candidates: list[Candidate]) -> Graph:
    """A graph with its replacements, without what nobody reads."""
    made = apply(graph, candidates)
    Pipeline("prune-dead").run(made)
    return made


def plan(
    model: Any,
    calibration: Any,
    *,
    speedup: float | None = None,
    latency: float | None = None,
    macs: float | None = None,
    size: float | None = None,
    max_loss: float | None = None,
    device: str = "ort-cpu",
    threads: int = 1,
    score: str | Score = "auto",
    fixed_shapes: Mapping[str, Sequence[int | None]] | None = None,
    frontier: bool = False,
    repair: bool = True,
    workers: int | str = 0,
    progress: bool | Progress | None = None,
) -> Plan:
    """Plan what each region of a network becomes, so that it reaches a target and loses as little as possible.

    Nothing is trained, and no labels are needed. Give exactly one target.

    Args:
        model: The path of an ONNX file, or an ``onnx.ModelProto``.
        calibration: Samples, as for :func:`graphshrink.shrink`; a few hundred are good. Candidates are fitted on most of them and
            scored on the others.
        speedup: How many times faster the network is to be on the device, measured as a whole.
        latency: Its largest latency on the device, in milliseconds.
        macs: The part of its multiply-accumulate operations that it keeps; nothing is timed then.
        size: The largest number of bytes of its ONNX files; nothing is timed then.
        max_loss: The largest loss (see :mod:`graphshrink.planning.quality`); the fastest network within it is planned.
        device: A name of :data:`graphshrink.planning.latency.DEVICES`.
        threads: The number of threads of the device's runtime; 0 uses all cores.
        score: How outputs are compared: ``"kl"``, ``"error"``, ``"mse"``, ``"cosine"``, ``"auto"`` (by what computes them), or a function
            ``score(outputs, reference)`` of two lists of arrays, the outputs of a network and of the given one on all samples that candidates
            are scored on; it returns a number, at least 0, and less is better.
        fixed_shapes: Input shapes to fix in the model, by input name.
        frontier: Go on with the steps beyond the target, so that the plan's frontier has the whole trade-off of cost and loss.
        repair: Correct other layers of the planned network in closed form, where its outputs come closer to the original's.
        workers: The number of processes that score candidates, each on one thread; 0 scores them in this process. Or the address of a Ray
            cluster, such as ``"auto"``, whose processors score them; ``"local"`` starts one on this machine. The plan does not depend
            on their number. Scripts that use processes need ``if __name__ == "__main__":``.
        progress: ``True`` shows a bar on a terminal or in a notebook; a function is called with (done, total, what).

    Returns:
        The plan; ``plan.apply()`` makes the network, ``plan.save(path)`` writes the plan.

    Raises:
        UsageError: If the samples are too few or do not fit, nothing can be replaced, or the target cannot be reached: the error names
            the best that can.
        ModelError: If the model cannot be read.
    """
    given = {
        "speedup": speedup, "latency": latency, "macs": macs, "size": size, "max_loss": max_loss,
    }  # fmt: skip
    targets = [Target(kind, value) for kind, value in given.items() if value is not None]
    if len(targets) != 1:
        raise UsageError(f"give one target of {', '.join(given)}, not {len(targets)}")
    if isinstance(workers, int) and workers < 0:
        raise UsageError(f"workers is the number of processes, or 0, not {workers}")
    cost: Cost = Macs() if size is None else FileSize()
    if macs is None and size is None:
        from .latency import LatencyTable
        from .latency import device as device_of

        cost = Latency(LatencyTable(device_of(device, threads)))
    from ..cli.progress import shown

    with shown(progress) as report:
        return make_plan(
            model,
            calibration,
            targets[0],
            cost,
            measure=score,
            fixed_shapes=fixed_shapes,
            frontier=frontier,
            repair=repair,
            workers=workers,
            progress=report,
        )

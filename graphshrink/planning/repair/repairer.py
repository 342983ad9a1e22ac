"""The repairer: layer after layer, each correction judged by the outputs of the whole network.

Three parts of the samples take part. Corrections are computed on the first; the second chooses between them; and a correction
stays only if the third agrees that the outputs come closer to the original's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...ir import ArrayTensor, Conv, Exactness, Graph, Node, Rewriter, UsageError, Value
from ...passes.merge.algebra.tensors import Array64
from ...passes.reconstruction.targets import Target, target_of
from ...passes.statistics.least_squares import GroupSums, refit
from ..candidates import Candidate
from ..candidates.narrow import Narrowed
from ..column_sums import SUMS_BYTES, Window, sampled
from ..costs import Progress
from ..quality import Outputs, Score, Scorer, part_runner
from ..samples import Batch, Samples
from .joint import RIDGES, Coordinates, amounts
from .pairs import changed_nodes, is_repairable
from .refits import moved, moves, rescale, shift
from .walk import Walk

STRENGTHS = (0.03, 0.3)
"""The strengths of the ridge of refitted weights."""

JUDGED = 7
"""Of this number of fitting batches one is for the last judgement."""

STEPS = {"bias": 0.25, "moments": 0.25, "gain": 0.03}
"""The amounts of moves for finite differences."""

LINEARISED = 160
"""The largest number of samples for finite differences."""

Move = tuple[Array64, Array64]

LEAST_GAIN = 1e-3
"""A correction that improves the loss by less than this part is left out."""


@dataclass(frozen=True)
class Repair:
    """One correction.

    Attributes:
        layer: The name of the result of the layer.
        kind: What is corrected, such as ``"refit 0.03"``; ``"joint ..."`` for moves whose amounts were found together.
        amount: How far: 1 is the whole correction.
    """

    layer: str
    kind: str
    amount: float = 1.0


@dataclass
class Repairs:
    """What was repaired.

    Attributes:
        layers: The corrections, in the order of the network.
        before: The loss of the network without them, on samples that no correction was computed from.
        after: The loss with them.
        weights: The new weight and bias of each layer, by the name of its result.
        sought: Whether there were layers and samples to look for corrections.
    """

    layers: list[Repair] = field(default_factory=list)
    before: float = 0.0
    after: float = 0.0
    weights: dict[str, tuple[Array64, Array64]] = field(default_factory=dict)
    sought: bool = False

    def apply(self, graph: Graph, rw: Rewriter) -> None:
        """Write the new weights into a graph with the same layers."""
        values = {v.name: v for v in graph.values()}
        for name, (weight, bias) in self.weights.items():
            node = values[name].producer
            assert node is not None
            with rw.rewrite(f"repair {node.name}", node, exactness=Exactness.APPROXIMATE):
                _write(rw, node, weight, bias)


class Repairer:
    """Repairs a network.

    Args:
        original: The original graph, from ONNX.
        changed: The graph with its replacements; it stays as it is.
        candidates: The replacements.
        samples: The samples of the plan.
        measure: How outputs are compared; see :class:`..quality.Scorer`.
        progress: Called with (done, total, what).
        kept: The channels that are left, by the name of a value of the original graph that something else than a candidate narrowed.
    """

    def __init__(
        self,
        original: Graph,
        changed: Graph,
        candidates: Sequence[Candidate],
        samples: Samples,
        measure: str | Score = "auto",
        progress: Progress = lambda *_: None,
        kept: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.original, self.graph = original, changed.clone()
        self.progress, self.measure = progress, measure
        judged = range(JUDGED // 2, len(samples.fitting), JUDGED)
        self.judged = [samples.fitting[i] for i in judged]
        fitting = [b for i, b in enumerate(samples.fitting) if i not in judged]
        self.fitting, self.scoring = fitting, samples.scoring
        self.values = {v.name: v for v in original.values()}
        self.kept: dict[str, tuple[int, ...]] = dict(kept or {})
        for candidate in candidates:
            if isinstance(candidate, Narrowed):
                self.kept |= candidate.rows()
        self.before, self.after = Walk(original, fitting), Walk(self.graph, fitting)
        self.pairs = self._pairs()
        for node, _ in self.pairs:
            # Each layer gets a weight and a bias of its own.
            _write(Rewriter(self.graph), node, *_arrays(node, _rows(node)))

    def search(self) -> Repairs:
        """Find the corrections that bring the outputs closer to the original's."""
        made = Repairs()
        if not self.judged or not self.pairs:
            return made
        made.sought = True
        juries = [_Jury(self, self.scoring), _Jury(self, self.judged)]
        made.before = made.after = juries[1].present
        for i, (node, target) in enumerate(self.pairs):
            self.progress(i, len(self.pairs), "repairs")
            sums, weight = self._sums(i, node, target)
            if sums.error(_widened(weight, sums)) < 1e-9:
                continue
            for jury in juries:
                jury.walk.advance(node)
            options = _options(sums, weight)
            found = juries[0].losses(node, options)
            best = min(found, key=found.__getitem__)
            losses = [found[best], juries[1].losses(node, {best: options[best]})[best]]
            pairs = zip(losses, juries, strict=True)
            if not all(loss < (1 - LEAST_GAIN) * jury.present for loss, jury in pairs):
                continue
            for loss, jury in zip(losses, juries, strict=True):
                jury.present = loss
            made.layers.append(Repair(node.output.name, best))
            self._accept(made, node, options[best])
        self._join(made, juries)
        made.after = juries[1].present
        return made

    def _join(self, made: Repairs, juries: list[_Jury]) -> None:
        """Move all layers a little, by the amounts that are best together."""
        first = self.fitting[0]
        size = len(first[0]) if first and first[0].ndim else 1
        batches = self.fitting[: max(1, LINEARISED // max(size, 1))]
        walk, scorer = Walk(self.graph, batches), Scorer(self.original, batches, self.measure)
        outputs = self.graph.outputs
        before = scorer.joined(list(walk.values(outputs)))
        coordinates = Coordinates(scorer.kinds, scorer.reference, len(STEPS) * len(self.pairs))
        start = coordinates(before)
        found: list[tuple[Repair, Move]] = []
        columns: list[Array64] = []
        for i, (node, kind, move) in enumerate(self._moves()):
            self.progress(i, len(STEPS) * len(self.pairs), "joint repairs")
            walk.advance(node)
            step = STEPS[kind]
            tried = moved(_rows(node), step * move[0], step * move[1])
            after = next(iter(tried_outputs(walk, node, {kind: tried}).values()))
            columns.append((coordinates(scorer.joined(after)) - start) / step)
            found.append((Repair(node.output.name, f"joint {kind}"), move))
        if not np.isfinite(columns).all():
            return
        best: list[Repair] = []
        losses = [(1 - LEAST_GAIN) * jury.present for jury in juries]
        weights = {n.output.name: _rows(n) for n, _ in self.pairs}
        whole = np.stack(columns)
        for ridge in RIDGES:
            solved = amounts(whole, coordinates.target - start, ridge)
            for part in (1.0, 0.5):
                sizes = [float(f"{part * a:.6g}") for a in solved]
                moving = [
                    Repair(r.layer, r.kind, a) for (r, _), a in zip(found, sizes, strict=True)
                ]
                self._set(weights, moving, [m for _, m in found])
                loss = juries[0].scorer.loss(self.graph)
                if loss < losses[0] and (judged := juries[1].scorer.loss(self.graph)) < losses[1]:
                    losses, best = [loss, judged], moving
        made.layers += best
        self._set(weights, best, [m for _, m in found])
        if best:
            juries[0].present, juries[1].present = losses
            for node, _ in self.pairs:
                made.weights[node.output.name] = _arrays(node, _rows(node))

    def _moves(self) -> Iterator[tuple[Node, str, Move]]:
        """The moves of each layer of the network as it is now."""
        self.before = Walk(self.original, self.fitting)
        self.after = Walk(self.graph, self.fitting)
        for i, (node, target) in enumerate(self.pairs):
            sums, weight = self._sums(i, node, target)
            for kind, move in moves(sums, _widened(weight, sums)).items():
                yield node, kind, move

    def _set(
        self, weights: Mapping[str, Array64], repairs: Sequence[Repair], by: Sequence[Move]
    ) -> None:
        """Give all layers these weights, moved by some amounts."""
        for node, _ in self.pairs:
            name = node.output.name
            rows = weights[name]
            factor, constant = np.zeros(rows.shape[:2]), np.zeros(rows.shape[:2])
            for repair, move in zip(repairs, by, strict=bool(repairs)):
                if repair.layer == name:
                    factor += repair.amount * move[0].reshape(factor.shape)
                    constant += repair.amount * move[1].reshape(factor.shape)
            _write(Rewriter(self.graph), node, *_arrays(node, moved(rows, factor, constant)))

    def repeat(self, repairs: Sequence[Repair]) -> Repairs:
        """Compute corrections that are known already."""
        made = Repairs(list(repairs))
        together = [r for r in repairs if r.kind.startswith("joint ")]
        kinds = {r.layer: r.kind for r in repairs if r not in together}
        every = self.pairs
        gone = [r.layer for r in repairs if r.layer not in {n.output.name for n, _ in every}]
        if gone:
            raise UsageError(f"the plan corrects layer {gone[0]!r}, which there is not: plan anew")
        self.pairs = [(n, t) for n, t in every if n.output.name in kinds]
        for i, (node, target) in enumerate(self.pairs):
            self.progress(i, len(self.pairs), "repairs")
            sums, weight = self._sums(i, node, target)
            options, kind = _options(sums, weight), kinds[node.output.name]
            if kind not in options:
                raise UsageError(
                    f"layer {node.output.name!r} has no correction {kind!r}: plan anew"
                )
            self._accept(made, node, options[kind])
        self.pairs = every
        if together:
            found = list(self._moves())
            weights = {n.output.name: _rows(n) for n, _ in self.pairs}
            self._set(weights, together, [move for _, _, move in found])
            for node, _ in self.pairs:
                made.weights[node.output.name] = _arrays(node, _rows(node))
        return made

    def _accept(self, made: Repairs, node: Node, weight: Array64) -> None:
        made.weights[node.output.name] = _arrays(node, weight)
        _write(Rewriter(self.graph), node, *made.weights[node.output.name])

    def _pairs(self) -> list[tuple[Node, Target]]:
        """The layers behind the first change, with their targets."""
        alive: set[Value] = set(self.graph.outputs)
        for node in reversed(list(self.graph.nodes)):
            if any(v in alive for v in node.outputs):
                alive.update(v for v in node.inputs if v is not None)
        changed = changed_nodes(self.original, self.graph)
        made: list[tuple[Node, Target]] = []
        for node in self.graph.nodes:
            if node in changed and is_repairable(node) and node.output in alive:
                target = target_of(node, self.values, self.kept)
                if target is not None and target.value.producer is not None:
                    made.append((node, target))
        return made

    def _sums(self, index: int, node: Node, target: Target) -> tuple[GroupSums, Array64]:
        """The sums for a layer on the fitting samples, and its weight and bias in the form of refits.

        If the Gram matrix of what it reads is too large, the sums are over what it computes.
        """
        order = {n: i for i, n in enumerate(self.original.nodes)}
        makers = [t.value.producer for _, t in self.pairs[index:]]
        self.before.advance(min((m for m in makers if m is not None), key=order.__getitem__))
        self.after.advance(node)
        weight = _rows(node)
        groups, outputs, size = weight.shape
        narrow = 8 * groups * size**2 <= SUMS_BYTES
        wanted = [node.required(0) if narrow else node.output]
        wanted += [] if target.minus is None else [target.minus]
        window = _window(node) if narrow else _one_to_one(node)
        sums = (
            GroupSums.zeros(groups, size - 1, outputs)
            if narrow
            else GroupSums.zeros(groups * outputs, 1, 1)
        )
        rng = np.random.default_rng(0)
        both = zip(self.after.values(wanted), self.before.values([target.value]), strict=True)
        for (read, *minus), (goal,) in both:
            if minus:
                goal = goal - minus[0]
            if target.channels is not None:
                goal = goal.take(target.channels, window.axis)
            columns, rows = sampled(window, read, goal, rng)
            shape = (len(columns), len(sums.gram), -1)
            sums.add(columns[:, :-1].reshape(shape), rows.reshape(shape))
        return sums, weight


class _Jury:
    """A part of the samples that judges the whole network."""

    def __init__(self, repairer: Repairer, batches: Sequence[Batch]) -> None:
        self.scorer = Scorer(repairer.original, batches, repairer.measure)
        self.walk = Walk(repairer.graph, batches)
        self.present = self.scorer.loss(repairer.graph)

    def losses(self, node: Node, weights: Mapping[str, Array64]) -> dict[str, float]:
        """The loss with each of some weights of a layer."""
        found = tried_outputs(self.walk, node, weights)
        return {kind: self.scorer.of(made) for kind, made in found.items()}


def tried_outputs(
    walk: Walk, node: Node, weights: Mapping[str, Array64]
) -> dict[str, list[Outputs]]:
    """The outputs of a graph on each batch, with each of some weights of a layer; the graph stays as it is."""
    graph, fed = walk.graph, [node.required(1), node.required(2)]
    fresh = [v for v in graph.outputs if v not in walk.alive]
    run = part_runner(graph, [*walk.alive, *fed], fresh)
    found: dict[str, list[Outputs]] = {}
    for kind, weight in weights.items():
        given = tuple(
            array.astype(value.type.dtype.numpy)  # type: ignore[union-attr]
            for array, value in zip(_arrays(node, weight), fed, strict=True)
        )
        found[kind] = []
        for batch in walk.kept:
            arrays = dict(zip(walk.alive, batch, strict=True))
            arrays.update(zip(fresh, run((*batch, *given)), strict=True))
            found[kind].append([arrays[v] for v in graph.outputs])
    return found


def _options(sums: GroupSums, weight: Array64) -> dict[str, Array64]:
    """Corrections of a weight, by their kinds."""
    own = _widened(weight, sums)
    made = {
        "bias": shift(sums, own),
        "scale": rescale(sums, own, spread=False),
        "moments": rescale(sums, own, spread=True),
    }
    if own is not weight:
        return {kind: _composed(found, weight) for kind, found in made.items()}
    for strength in STRENGTHS:
        made[f"refit {strength:g}"] = refit(sums, weight, strength)
    return made


def _widened(weight: Array64, sums: GroupSums) -> Array64:
    """The weight that the sums are about: the layer's own, or a factor of 1 for each of its results."""
    if len(sums.gram) == len(weight) and sums.gram.shape[-1] == weight.shape[-1]:
        return weight
    return np.tile(np.array([[[1.0, 0.0]]]), (len(sums.gram), 1, 1))


def _composed(factors: Array64, weight: Array64) -> Array64:
    """A weight followed by a factor and a constant for each result."""
    scale, constant = (factors[:, 0, i].reshape(weight.shape[:2]) for i in range(2))
    made = weight * scale[:, :, None]
    made[:, :, -1] += constant
    return made


def _window(node: Node) -> Window:
    if not isinstance(node.op, Conv):
        return Window()
    shape = node.required(1).type.static_shape
    assert shape is not None
    return Window(1, shape[2:], node.op.strides, node.op.pads, node.op.dilations)


def _one_to_one(node: Node) -> Window:
    if not isinstance(node.op, Conv):
        return Window()
    n = len(node.op.strides)
    return Window(1, (1,) * n, (1,) * n, (0,) * 2 * n, (1,) * n)


def _rows(node: Node) -> Array64:
    """The weight and bias of a layer as ``(groups, O, K + 1)``."""
    data = node.required(1).data
    assert data is not None
    given = node.input(2)
    weight = data.float64()
    groups = node.op.groups if isinstance(node.op, Conv) else 1
    rows = weight.reshape(groups, len(weight) // groups, -1)
    bias = np.zeros(rows.shape[:2])
    if given is not None and given.data is not None:
        bias = given.data.float64().reshape(rows.shape[:2])
    return np.concatenate([rows, bias[:, :, None]], 2)


def _arrays(node: Node, rows: Array64) -> tuple[Array64, Array64]:
    """The weight and bias in their own shapes, from rows."""
    shape = node.required(1).type.static_shape
    assert shape is not None
    return rows[:, :, :-1].reshape(shape), rows[:, :, -1].reshape(-1)


def _write(rw: Rewriter, node: Node, weight: Array64, bias: Array64) -> None:
    old = node.required(1)
    assert old.type.dtype is not None
    made = [
        rw.constant(ArrayTensor(a.astype(old.type.dtype.numpy)), f"{node.output.name}_repaired")
        for a in (weight, bias)
    ]
    rw.replace(node, node.op, [node.inputs[0], *made])

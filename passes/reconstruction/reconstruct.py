"""``reconstruct``: after approximate passes, each piece of the network is fitted to give what the original's gave.

Pieces (:mod:`.units`) are taken in order. Each reads what the network *as it is now* computes in front of it, so that it makes up
for errors of the pieces before it, and its goal is what the original computes at its end. With torch, a few hundred steps of Adam
train its weights together; without, its layers are refitted one after the other by least squares (:mod:`.closed_form`). No labels are needed.

Zeros stay: a masked weight keeps its mask, and numbers that are 0 in other weights stay 0. Gates, embeddings and all nodes stay what
they are; only numbers of constants change. A piece keeps its new numbers only if both its own error and that of the whole
network are smaller with them, on samples that it was not fitted to.

Sources: Nagel et al., *Up or down? Adaptive rounding for post-training quantization* (AdaRound, 2020), which reconstructs layers with inputs
from the changed network; Li et al., *BRECQ* (2021), which reconstructs blocks; Guo et al., *EBFT: effective and block-wise fine-tuning
for sparse LLMs* (2024), which trains the kept weights of sparse blocks one after the other; Frantar and Alistarh, *Optimal brain
compression* (2022), for least squares under a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np

from ...ir import Exactness, Graph, ModelError, Node, Rewriter, Tensor, TrainingError, Value
from ...ir.options import Bounds
from ..infra.conditions import CALIBRATION_DATA, REFERENCE
from ..infra.contract import Context, Pass, PassError, named_nodes
from ..infra.registry import register
from ..statistics.errors import NetworkError, check_outputs, relative_error
from ..statistics.im2col import Array
from ..statistics.requests import Calibration
from ..statistics.training import Trainer, Training
from .closed_form import fits, fitted, sums_of
from .piece import as_piece, kept_of, with_numbers
from .units import Unit, find_units

HELD = 8
"""Of this number of samples one is kept for judging."""

DATA_BYTES = 1 << 29
"""The largest size of what a unit reads and should compute, in bytes; of more samples, evenly spaced batches are taken."""

LEAST_ERROR = 1e-9
"""A unit whose relative squared error is at most this computes what the original does."""

LEAST_GAIN = 0.01
"""A unit keeps its new numbers if its error falls by at least this part."""


@register
@dataclass(frozen=True)
class Reconstruct(Pass):
    """Fit each block to give what it gave before the approximate passes, with inputs from the blocks before it.

    Attributes:
        steps: The number of training steps of each block.
        lr: The largest part of its size by which a step changes a number.
        batch: The number of samples of a step.
        method: ``adam`` trains with torch, ``closed-form`` refits each layer by least squares, and ``both`` trains from there; ``auto`` is
            ``both`` where torch is installed, else ``closed-form``.
        damping: Closed form: the strength of the ridge towards the present weights, relative to the mean square of a layer's inputs.
        layers: Names of layers, or patterns with * and ?; blocks without any of them stay as they are.
    """

    name = "reconstruct"
    exactness = Exactness.APPROXIMATE
    asks_first = True
    uses_reference = True
    requires = (CALIBRATION_DATA, REFERENCE)
    steps: Annotated[int, Bounds(at_least=1)] = 200
    lr: Annotated[float, Bounds(above=0)] = 0.01
    batch: Annotated[int, Bounds(at_least=1)] = 32
    method: Literal["auto", "adam", "closed-form", "both"] = "auto"
    damping: Annotated[float, Bounds(at_least=0)] = 0.01
    layers: str | tuple[str, ...] = ()

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        trains = self.method in ("adam", "both")
        if trains and ctx.trainer is None:
            raise PassError(
                f"reconstruct: method={self.method} needs torch: install graphshrink[torch], or use method=closed-form"
            )
        assert ctx.calibration is not None
        assert ctx.reference is not None
        run = _Run(self, graph, ctx.reference, ctx.calibration, ctx)
        found = find_units(graph, run.originals)
        for node, reason in found.refused:
            rw.skip(node, reason)
        only = named_nodes(graph, self.layers, "reconstruct: layers") if self.layers else None
        units = [u for u in found.units if only is None or not only.isdisjoint(u.nodes)]
        if not units:
            raise PassError(f"reconstruct: there is nothing to reconstruct{_why(found.refused)}")
        for i, unit in enumerate(units):
            ctx.progress(i, len(units), "blocks reconstructed")
            outcome = run.reconstruct(unit)
            for node, reason in outcome.notes:
                rw.skip(node, reason)
            if not outcome.numbers:
                continue
            with rw.rewrite(
                f"reconstruct by {outcome.method}", *unit.layers, measures=outcome.measures
            ):
                for value, tensor in outcome.numbers.items():
                    fresh = rw.constant(tensor, f"{value.name}.fitted")
                    for node, index in value.uses:
                        rw.set_input(node, index, fresh)
            run.accept(outcome)
        ctx.progress(len(units), len(units), "blocks reconstructed")


@dataclass
class _Outcome:
    """What became of a unit.

    Attributes:
        numbers: New tensors of constants; empty if the unit stays as it is.
        method: How they were found.
        measures: Errors before and after.
        notes: What was left alone, with the reasons.
        network: The error of the whole network with them.
    """

    numbers: dict[Value, Tensor] = field(default_factory=dict)
    method: str = ""
    measures: dict[str, float] = field(default_factory=dict)
    notes: list[tuple[Node, str]] = field(default_factory=list)
    network: float = 0.0


class _Run:
    """One run of the pass."""

    def __init__(
        self, step: Reconstruct, graph: Graph, reference: Graph, data: Calibration, ctx: Context
    ) -> None:
        self.step, self.graph, self.reference, self.ctx = step, graph, reference, ctx
        self.fitting, self.held = data.split(HELD)
        data.used = True
        self.originals: dict[str, Value] = {v.name: v for v in reference.values()}
        if reference.output_names != graph.output_names:
            raise PassError("reconstruct: the reference has other outputs than the network")
        for own, other in zip(graph.outputs, reference.outputs, strict=True):
            self.originals[own.name] = other
        self._network_error = NetworkError(reference, self.held)
        self.network = self._network_error(graph)

    @property
    def trainer(self) -> Trainer | None:
        """What trains units; ``None`` if they are only refitted."""
        return None if self.step.method == "closed-form" else self.ctx.trainer

    def accept(self, outcome: _Outcome) -> None:
        """The graph has the new numbers now."""
        self.network = outcome.network

    def reconstruct(self, unit: Unit) -> _Outcome:
        """New numbers for a unit, if they help."""
        goal = self.originals[unit.exit.name]
        before = self._unit_error(self.graph, unit, goal)
        first = unit.layers[0]
        if before <= LEAST_ERROR:
            return _Outcome(notes=[(first, "its block gives what the original gave")])
        kept = kept_of(unit)
        outcome = _Outcome()
        numbers: dict[Value, Array] = {}
        used: list[str] = []
        if self.trainer is None or self.step.method in ("both", "auto"):
            notes = self._refit(unit, kept, numbers)
            outcome.notes += [] if self.trainer is not None else notes
            used += ["least squares"] if numbers else []
        options = [(dict(numbers), used)] if numbers else []
        if self.trainer is not None:
            try:
                options.insert(0, (self._train(unit, goal, kept, numbers), [*used, "training"]))
            except (ModelError, TrainingError) as error:
                outcome.notes.append((first, f"it was not trained: {error}"))
        if not options:
            return outcome
        reason = ""
        for made, how in options:
            tensors = {
                v: with_numbers(v.data, array) for v, array in made.items() if v.data is not None
            }
            variant = _variant(self.graph, tensors)
            after = self._unit_error(variant, unit, goal)
            if not (np.isfinite(after) and after <= (1 - LEAST_GAIN) * before):
                reason = (
                    reason
                    or f"its error on held-out samples would change from {before:.4g} to {after:.4g}"
                )
                continue
            network = self._network_error(variant)
            if not network <= self.network:
                reason = (
                    reason
                    or f"the error of the whole network on held-out samples would rise from {self.network:.4g} to {network:.4g}"
                )
                continue
            outcome.numbers, outcome.method, outcome.network = tensors, " and ".join(how), network
            outcome.measures = {
                "error before": before, "error after": after, "network before": self.network, "network after": network,
            }  # fmt: skip
            return outcome
        outcome.notes.append((first, f"its block stays as it is: {reason}"))
        return outcome

    def _refit(
        self, unit: Unit, kept: Mapping[Value, Any], numbers: dict[Value, Array]
    ) -> list[tuple[Node, str]]:
        """Refit the layers of a unit by least squares; returns those that cannot be, with the reasons."""
        waves, refused = fits(unit, self.graph, self.originals)
        tuned = {t.value: t for t in unit.tuned}
        places = {node: i for i, node in enumerate(self.graph.nodes)}
        for wave in waves:
            tensors = {v: with_numbers(v.data, a) for v, a in numbers.items() if v.data is not None}
            variant = _variant(self.graph, tensors)
            nodes = list(variant.nodes)
            values = {v.name: v for v in variant.values()}
            twins = [
                (
                    nodes[places[n]],
                    replace(t, minus=None if t.minus is None else values[t.minus.name]),
                )
                for n, t in wave
            ]
            found = sums_of(variant, self.reference, twins, self.fitting)
            for (node, target), sums in zip(wave, found, strict=True):
                if not (np.isfinite(sums.gram).all() and np.isfinite(sums.cross).all()):
                    refused.append((node, "what it reads or should compute is not finite"))
                elif node.required(1) in tuned:
                    numbers.update(fitted(node, target, tuned, kept, sums, self.step.damping))
        return refused

    def _train(
        self, unit: Unit, goal: Value, kept: Mapping[Value, Any], numbers: Mapping[Value, Array]
    ) -> dict[Value, Array]:
        assert self.trainer is not None
        inputs, goals, sizes = self._data(unit, goal)
        piece = as_piece(unit, numbers, kept, inputs, goals, sizes)
        how = Training(self.step.steps, self.step.lr, self.step.batch, self.ctx.seed)
        made = self.trainer.train(piece, how)
        return {t.value: array for t, array in zip(unit.tuned, made, strict=True)}

    def _data(
        self, unit: Unit, goal: Value
    ) -> tuple[list[tuple[Array, ...]], list[Array], list[int]]:
        """What a unit reads now and should compute, for the batches that fit into memory."""
        inputs: list[tuple[Array, ...]] = []
        goals: list[Array] = []
        sizes: list[int] = []
        known = self.fitting.samples
        both = zip(
            self.fitting.stream(self.graph, unit.inputs),
            self.fitting.stream(self.reference, [goal]),
            strict=True,
        )
        step = 1
        for i, (read, (wanted,)) in enumerate(both):
            if i == 0:
                each = wanted.nbytes + sum(a.nbytes for a in read)
                step = max(1, -(-each * self.fitting.batch_count // DATA_BYTES))
            if i % step == 0:
                inputs.append(read)
                goals.append(wanted)
                sizes.append(known[i] if known else 0)
        check_outputs(goals, f"%{goal.name} of the original")
        return inputs, goals, sizes

    def _unit_error(self, graph: Graph, unit: Unit, goal: Value) -> float:
        """The squared error of what a unit computes on held-out samples, relative to the variance of the goal."""
        exit = next(v for v in graph.values() if v.name == unit.exit.name)
        found = self.held.stream(graph, [exit])
        wanted = self.held.stream(self.reference, [goal])
        return relative_error((a, b) for (a,), (b,) in zip(found, wanted, strict=True))


def _variant(graph: Graph, numbers: Mapping[Value, Tensor]) -> Graph:
    """A copy of a graph with other numbers of some constants."""
    made = graph.clone()
    if numbers:
        values = {v.name: v for v in made.constants}
        rw = Rewriter(made)
        for value, tensor in numbers.items():
            fresh = rw.constant(tensor, f"{value.name}.fitted")
            for node, index in values[value.name].uses:
                rw.set_input(node, index, fresh)
    return made


def _why(refused: Sequence[tuple[Node, str]]) -> str:
    shown = "; ".join(f"{node.name}: {reason}" for node, reason in refused[:3])
    more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
    return f" ({shown}{more})" if shown else ": no layer has weights that are constants"

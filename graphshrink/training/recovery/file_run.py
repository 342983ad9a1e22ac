"""One recovery of an ONNX file: modules, batches, the loop of :func:`graphshrink.recover`, and what is kept of it."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ...data.calibration import check_varied
from ...data.unlabelled import read_unlabelled
from ...ir import Dequantize, Graph, ModelError, Node, Quantize, TrainingError, UsageError
from ...ir.errors import counted
from ...passes.infra.tolerance import spread_of
from ...planning.quality import DISTRIBUTIONS, Score
from ...readers import HostReaders
from ...targets.torch.anew import Anew, written_anew
from ...targets.torch.trainable import Trainable
from .batches import SampleBatches
from .checkpoints import Checkpoints
from .fake_quantization import is_quantised, make_differentiable, zeros_of
from .feature_pairs import feature_pairs, same_tables
from .files import (
    BATCH_SIZE,
    FEATURE_WEIGHT,
    LR,
    HeldOut,
    Judge,
    RecoveredFile,
    distill_loss,
    named,
)
from .optimizers import RelativeAdam
from .recovery import recover
from .token_augmentation import TokenAugmentation
from .variants import variants
from .zeros import Zeros

RATES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""The learning rates that are tried."""

TRIAL = 24
"""The largest number of steps with each of them."""

_HARM = 1.1
"""The held-out loss after a trial may be this many times the loss before."""

_LEAST_TRIAL = 4
"""If all epochs together have too few steps for so many with each, none is tried."""

_EVERY = 50
"""With a folder for checkpoints, one is written after this number of steps."""


@dataclass
class FileRun:
    """The recovery of a student by a teacher.

    Attributes:
        student: The student's graph.
        teacher: The teacher's graph.
        options: The arguments of :func:`graphshrink.recover_file`.
        plain: Whether trials showed that the samples should not be varied.
        feature_weight: The weight of inner values: the given one, or what trials favour.
        floats: The student before it was quantised, if that is known.
    """

    student: Graph
    teacher: Graph
    options: Mapping[str, Any]
    plain: bool = False
    feature_weight: float = FEATURE_WEIGHT
    floats: Graph | None = None

    def run(self) -> RecoveredFile:
        """Train and judge; see :func:`graphshrink.recover_file`."""
        given = self.options
        self._prepare()
        if not self.before.loss:
            notes = ["the student gives the teacher's outputs: there is nothing to recover"]
            return RecoveredFile(self.student, False, self.before, self.before, notes=notes)
        keeper = Keeper(self.module, self.before, self._digest(), kept=self.kept)
        interrupted = False
        try:
            lr = self._rate()
            checkpoint = given["checkpoint"]
            keeper.plain = self.batches.variants is None
            self._train(
                lr, keeper,
                epochs=given["epochs"],
                evaluate=lambda trained: _measured(self.judge, trained),
                checkpoint=checkpoint,
                checkpoint_every=given["checkpoint_every"] or (_EVERY if checkpoint else None),
                progress=given["progress"],
            )  # fmt: skip
        except KeyboardInterrupt:
            interrupted = True
            keeper.end_epoch(_measured(self.judge, self.module.eval()))
        keeper.restore()
        trained = self.trainable.trained()
        after = self.judge.model(trained)
        improved = after.loss < self.before.loss
        best = min((r["held-out loss"] for r in keeper.history), default=after.loss)
        notes = _notes(self.trainable, self.tables, self.varied, improved, self.before, best)
        if self.fixed is not None:
            notes.append(
                f"batch_size was not used: the model computes {counted(self.fixed, 'sample')} at a time and no other number"
            )
        if self.stopped:
            notes.append(
                f"what is in front of {counted(len(self.stopped), 'quantised value')} learns from other paths alone, because more than a "
                f"dequantisation reads the integers: {', '.join(self.stopped[:3])}{', ...' if len(self.stopped) > 3 else ''}"
            )
        if given["feature_weight"] is None and self.features and not self.feature_weight:
            notes.insert(
                0,
                "trials were better when outputs alone were compared, not values at ends of blocks",
            )
        if self.plain:
            notes.insert(
                0,
                "trials were better without random variants of the samples, so that there were none",
            )
        graph = trained if improved else self.student
        return RecoveredFile(
            graph, improved, self.before, after, keeper.history, interrupted, notes
        )

    def _prepare(self) -> None:
        """Make the modules, read the samples, and judge the student as it is."""
        given = self.options
        own = callable(given["measure"])
        samples = read_unlabelled(self.student, given["data"], given["labels"], targets=own)
        _check_floats(self.student)
        self.trainable = Trainable(self.student, HostReaders())
        self.tables = _freeze_tables(self.trainable, self.teacher)
        _check_trained(self.trainable)
        self.kept: dict[str, torch.Tensor] = {}
        self.stopped: list[str] = []
        if is_quantised(self.student):
            masks = {} if self.floats is None else zeros_of(self.floats, self.trainable)
            rounded = make_differentiable(self.trainable)
            self.kept = {rounded.names.get(name, name): mask for name, mask in masks.items()}
            self.stopped = rounded.stopped
        written = written_anew(self.teacher, HostReaders())
        self.module, self.guide = self.trainable.module, written.assembled()
        if given["feature_weight"] is not None:
            self.feature_weight = given["feature_weight"]
        compared = self.feature_weight > 0
        self.features = (
            _features(self.trainable, self.teacher, written, self.guide) if compared else {}
        )
        self.judge = Judge(self.teacher, samples, samples.fixed or 8, given["measure"])
        if not any(output.dtype.kind == "f" for output in self.judge.scorer.reference):
            raise UsageError(
                "the outputs are no numbers of floating point, whose differences training could lower: recover the model "
                "that gives what these are computed from, such as the scores in front of an ArgMax"
            )
        check_varied(self.judge.batches, len(samples.training) + len(samples.held))
        self.before = self.judge.model(self.student)
        if not np.isfinite(self.before.loss):
            raise ModelError(
                "the student's outputs on the samples have numbers that are not finite"
            )
        example = samples.sample(int(samples.training[0]))
        size = samples.fixed or given["batch_size"] or BATCH_SIZE
        if samples.fixed and _takes_batches(self.module, self.guide, example):
            size = given["batch_size"] or max(BATCH_SIZE, samples.fixed)
        self.fixed = size if given["batch_size"] not in (None, size) else None
        if any(a.ndim == 3 for a in example):
            for each in (self.module, self.guide):
                each.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        labelled = samples.classes is not None and given["label_weight"] > 0
        if labelled and isinstance(given["augment"], TokenAugmentation):
            raise UsageError(
                "variants of tokens are other texts, whose labels are not known: leave out the labels, or give label_weight=0 to use them for the "
                "accuracy alone"
            )
        classes = classes_of(self.judge, given["measure"]) if labelled else None
        sized = bool(samples.fixed or given["batch_size"])
        varied, self.varied = variants(given["augment"], samples, self.student, sized), ""
        if varied is not None:
            self.varied = varied.note
        elif given["augment"]:
            self.varied = "the samples are no images, so that they were not varied at random"
            if any(a.dtype.kind in "iu" for a in example):
                self.varied += "; texts are with augment-tokens (TokenAugmentation), which names the input of their tokens"
        self.batches = SampleBatches(samples, size, varied, classes)

    def _train(self, lr: float, keeper: Keeper, **options: Any) -> None:
        """Train the module from its present state."""
        given, judge = self.options, self.judge
        variances = [spread_of(r) for r in judge.scorer.reference]
        trained = [p for p in self.module.parameters() if p.requires_grad]
        recover(
            self.module,
            self.batches,
            unpack=lambda batch: (tuple(_formatted(x) for x in batch[0]), batch[1]),
            teacher=self.guide,
            distill_weight=1 - given["label_weight"],
            features=self.features if self.feature_weight else {},
            feature_weight=self.feature_weight,
            distill_loss=distill_loss(judge.kinds, judge.axes, variances, given["temperature"]),
            optimizer=RelativeAdam(trained, lr),
            lr=lr,
            clip=given["clip"],
            warmup=given["warmup"],
            precision=given["precision"],
            device=given["device"],
            training_mode=False,
            callbacks=[keeper],
            seed=given["seed"],
            **options,
        )

    def _rate(self) -> float:
        """The learning rate: the given one, that of the checkpoint, or what trials on the held-out samples favour.

        Trials also choose whether inner values are compared, and whether samples are varied, if that is not given.

        Raises:
            ModelError: If the checkpoint is damaged.
        """
        given, steps = self.options, len(self.batches) * self.options["epochs"]
        kept = None if given["checkpoint"] is None else Checkpoints(given["checkpoint"]).load()
        if kept is not None:
            return self._resumed(kept)
        rates = (given["lr"],) if given["lr"] else RATES
        trial = min(len(self.batches), TRIAL, steps // len(RATES))
        undecided = given["feature_weight"] is None and self.features
        if trial < _LEAST_TRIAL or (given["lr"] and not undecided):
            return float(given["lr"] or LR)
        losses, varied = self._trials(rates, trial), self.batches.variants
        if undecided and min(losses.values()) >= self.before.loss:
            # Networks trained with stochastic depth do better without a block than with one that is half right.
            self.feature_weight = 0.0
            alone = self._trials(rates, trial)
            if min(alone.values()) < min(losses.values()):
                losses = alone
            else:
                self.feature_weight = FEATURE_WEIGHT
        if given["lr"]:
            return float(given["lr"])
        if min(losses.values()) >= self.before.loss and given["augment"] is True and varied:
            # A small student may not have the capacity for variants beside the samples.
            self.batches.variants = None
            plain = self._trials(rates, trial)
            self.plain = min(plain.values()) < min(losses.values())
            losses, self.batches.variants = (plain, None) if self.plain else (losses, varied)
        # Short trainings favour small rates: the largest is taken that does no harm worth mentioning.
        limit = _HARM * max(self.before.loss, min(losses.values()))
        return max(lr for lr, loss in losses.items() if loss <= limit)

    def _resumed(self, kept: Mapping[str, Any]) -> float:
        """The learning rate of a checkpoint, after what else trials had chosen is chosen again."""
        given = self.options
        try:
            plain, lr = kept["callbacks"][0]["plain"], float(kept["settings"]["lr"])
            weight = float(kept["settings"]["feature_weight"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelError(
                f"the checkpoint in {given['checkpoint']} is damaged, or not of an ONNX file: choose another folder"
            ) from error
        if given["feature_weight"] is None:
            self.feature_weight = weight
        if given["lr"]:
            return float(given["lr"])
        if plain:
            self.batches.variants = None
        return lr

    def _digest(self) -> str:
        """What a checkpoint belongs to: the tensors of student and teacher, and the held-out samples."""
        digest, measure = hashlib.sha256(), self.options["measure"]
        digest.update(str(getattr(measure, "__qualname__", measure)).encode())
        for module in (self.module, self.guide):
            for name, tensor in module.state_dict().items():
                digest.update(name.encode())
                numbers = tensor.detach().cpu().contiguous().reshape(-1)
                digest.update(numbers.view(torch.uint8).numpy().tobytes())
        for batch in self.judge.batches:
            for array in batch:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _trials(self, rates: Sequence[float], steps: int) -> dict[float, float]:
        """The held-out loss after a short training with each learning rate."""
        losses = {}
        for lr in rates:
            keeper = Keeper(self.module, self.before, kept=self.kept)
            try:
                self._train(lr, keeper, epochs=1, steps_per_epoch=steps, progress=False)
                losses[lr] = _measured(self.judge, self.module)["held-out loss"]
            except TrainingError:
                losses[lr] = float("inf")
            keeper.restore()
        if self.options["progress"] and os.environ.get("RANK", "0") == "0":
            shown = ", ".join(f"{loss:.4g} at {lr:g}" for lr, loss in losses.items())
            how = "" if self.batches.variants else ", samples not varied"
            how += "" if self.feature_weight else ", outputs alone"
            sys.stderr.write(f"trials of {steps} steps{how}: held-out loss {shown}\n")
        return losses


class Keeper(Zeros):
    """A callback that keeps zeros of weights zero, and the tensors of the best epoch.

    Args:
        module: The module in training.
        before: The module on the held-out samples before the training.
        run: What student, teacher and samples are, which a checkpoint must agree with.
        kept: Which numbers of some parameters are not zero; of all others, those that are zero now.
    """

    def __init__(
        self,
        module: nn.Module,
        before: HeldOut,
        run: str = "",
        kept: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__(module, kept)
        self.run = run
        self.best_loss = before.loss
        self.history: list[dict[str, float]] = []
        self.plain = False
        self.best = {name: t.detach().clone() for name, t in module.named_parameters()}

    def end_epoch(self, record: Mapping[str, float]) -> None:
        """Keep the tensors if no epoch was better; epochs that were not judged do not count."""
        if "held-out loss" not in record:
            return
        self.history.append(dict(record))
        if record["held-out loss"] < self.best_loss:
            self.best_loss = record["held-out loss"]
            self.best = {name: t.detach().clone() for name, t in self.module.named_parameters()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best tensors into the module."""
        for name, parameter in self.module.named_parameters():
            parameter.copy_(self.best[name])

    def state_dict(self) -> dict[str, Any]:
        """The best tensors, and how good they are."""
        return {
            "loss": self.best_loss, "best": self.best, "history": self.history, "plain": self.plain,
            "run": self.run,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            UsageError: If it is of another student or teacher, or of other samples.
        """
        if state["run"] != self.run:
            raise UsageError(
                "the checkpoint is of another student or teacher, or of other samples: give those of that run, or choose another folder"
            )
        self.best_loss, self.best = state["loss"], dict(state["best"])
        self.history[:] = state["history"]


def _measured(judge: Judge, module: nn.Module) -> dict[str, float]:
    """The module on the held-out samples, as numbers for the history."""
    device = next(module.parameters()).device
    outputs = []
    with torch.no_grad():
        for batch in judge.batches:
            made = module(*(_formatted(torch.from_numpy(a).to(device)) for a in batch))
            made = made if isinstance(made, tuple | list) else [made]
            outputs.append([x.cpu().numpy() for x in made])
    found = judge.of(outputs)
    record = {"held-out loss": found.loss}
    if found.agreement is not None:
        record["agreement"] = found.agreement
    if found.accuracy is not None:
        record["accuracy"] = found.accuracy
    return record


def _features(trainable: Trainable, teacher: Graph, written: Anew, guide: Any) -> dict[str, str]:
    """The FX nodes of the student whose values are compared, each with the teacher's."""
    mine = {node.name: node for node in trainable.module.graph.nodes}
    theirs = {named(v): node for v, node in written.nodes.items()}
    found = {}
    for own, other in feature_pairs(trainable.graph, teacher):
        node, goal = mine.get(trainable.values.get(named(own), "")), theirs.get(named(other))
        if node is not None and goal is not None:
            found[_unambiguous(node, trainable.module)] = _unambiguous(goal, guide)
    return found


def _freeze_tables(trainable: Trainable, teacher: Graph) -> list[str]:
    """Freeze the tables of embeddings that the teacher has too, unless nothing else is trained; returns their names.

    They are right as they are, and a step sees so few of their rows that the mean of gradients of Adam moves these long afterwards.
    """
    names = {named(value) for value in same_tables(trainable.graph, teacher)}
    found = {place.name: tensor for tensor, place in trainable.places if place.name in names}
    kept = {id(tensor) for tensor in found.values()}
    if all(id(p) in kept for p in trainable.module.parameters() if p.requires_grad):
        return []
    for tensor in found.values():
        tensor.requires_grad_(False)
    return list(found)


def _unambiguous(node: torch.fx.Node, module: nn.Module) -> str:
    """The name of a node; the node is renamed if a module has this name, and something else calls it."""
    taken = {name for name, _ in module.named_modules()}
    calls = [n for n in node.graph.nodes if n.op == "call_module" and n.target == node.name]
    if node.name in taken and calls != [node]:
        node._rename(f"{node.name}_value")
    return node.name


def _formatted(tensor: torch.Tensor) -> torch.Tensor:
    """Images with their channels innermost in memory, where convolutions are fastest."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _check_trained(trainable: Trainable) -> None:
    trained = [p for p in trainable.module.parameters() if p.requires_grad]
    if not trained:
        raise UsageError("the student has no weights of floating point that could be trained")
    for parameter in trained:
        if parameter.dtype not in (torch.float32, torch.float64):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise UsageError(
                f"the student's weights are {kind}, which loses what small steps change: recover the float32 model, then convert it"
            )


def _check_floats(graph: Graph) -> None:
    integers = [n for n in graph.nodes if _computes_integers(n)]
    if integers:
        raise UsageError(
            f"the student computes with integers in {integers[0].name} ({integers[0].op_name}): recover the model of floating point and quantise it, "
            "or its form with QuantizeLinear and DequantizeLinear in front of ordinary operators"
        )


def _computes_integers(node: Node) -> bool:
    name = node.op_name.rpartition(".")[2].rpartition(":")[2]
    return not isinstance(node.op, Quantize | Dequantize) and bool(
        re.search(r"Quantize|Integer|^Q[A-Z]", name)
    )


def _takes_batches(module: nn.Module, guide: nn.Module, example: tuple[Any, ...]) -> bool:
    """Whether modules of a model that fixes its batch size take other sizes, and compute each sample alone."""
    one = [torch.tensor(a)[None] for a in example]
    two = [torch.cat([x, x.flip(-1) if x.is_floating_point() else x]) for x in one]
    with torch.no_grad():
        for each in (module, guide):
            try:
                alone, both = each(*one), each(*two)
            except (RuntimeError, IndexError):
                return False
            pairs = zip(
                *(x if isinstance(x, tuple | list) else [x] for x in (alone, both)), strict=True
            )
            for single, joint in pairs:
                if joint.shape != (2, *single.shape[1:]):
                    return False
                if not torch.allclose(single[0], joint[0], rtol=1e-3, atol=1e-4):
                    return False
    return True


def classes_of(judge: Judge, measure: str | Score) -> int:
    """The number of classes of the output that labels are for.

    Raises:
        UsageError: If no output has classes, or there are more labels than classes.
    """
    (reference, *more), kinds = judge.scorer.reference, judge.kinds
    rank = judge.scorer.graph.outputs[0].type.rank
    if not callable(measure) and measure not in ("auto", "kl"):
        raise UsageError(
            f"labels need outputs that are compared as classes: measure kl or auto, not {measure}"
        )
    if more or kinds[0] not in DISTRIBUTIONS or reference.ndim != 2 or rank not in (None, 2):
        raise UsageError("labels need a model with one output of classes, (N, classes)")
    if kinds[0] != "logits":
        raise UsageError(
            "labels need logits as the output, and this model ends in a softmax: leave out labels, or give label_weight=0 to use them "
            "for the accuracy alone"
        )
    count = int(reference.shape[1])
    if judge.labels is not None and len(judge.labels) and int(judge.labels.max()) >= count:
        raise UsageError(
            f"label {int(judge.labels.max())} is beyond the {count} classes of the model"
        )
    return count


def _notes(
    trainable: Trainable,
    tables: list[str],
    varied: str,
    improved: bool,
    before: HeldOut,
    best: float,
) -> list[str]:
    notes = []
    if trainable.frozen:
        shown = ", ".join(trainable.frozen[:3]) + (", ..." if len(trainable.frozen) > 3 else "")
        notes.append(
            f"{len(trainable.frozen)} weights were not trained, because nodes compute them or several share them: {shown}"
        )
    if tables:
        notes.append(
            f"tables of embeddings were not trained, because the teacher has the same: {', '.join(tables)}"
        )
    if varied:
        notes.append(varied)
    if not improved:
        notes.append(
            f"training did not improve the held-out samples (loss {before.loss:.4g}, after the best epoch {best:.4g}): the model is the given one; "
            "more samples, a lower lr or more epochs may help"
        )
    return notes


__all__ = ["FileRun", "Keeper"]

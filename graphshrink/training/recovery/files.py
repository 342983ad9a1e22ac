"""Recovery of ONNX files: what shrinking cost is repaired from samples without labels.

Student and teacher become torch modules (:mod:`graphshrink.targets.torch.trainable`); the student learns the teacher's outputs on random variants of
the samples (:mod:`.augmentation`), and its weights are put back into the initializers of its model. Numbers that are zero stay zero, so that
sparse and block-wise weights keep their pattern. Some samples are held out: they choose the epoch, and whether the result is kept at all; both
are judged by the models as they are written, in onnxruntime.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...ir import Graph, MissingExtra, ModelError, UsageError

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

    from ...data.unlabelled import Sample, UnlabelledSamples
    from ...passes import Pass, PassRecord
    from ...planning.quality import Score, Scorer
    from .augmentation import Augmentation
    from .token_augmentation import TokenAugmentation

BATCH_SIZE = 16
"""The number of samples in a batch, where the model does not fix it."""

LR = 3e-4
"""The learning rate if none is given and there are too few steps to try some: the part by which a step changes a weight, at most."""

TEMPERATURE = 1.0

FEATURE_WEIGHT = 10.0
"""The weight of values at the ends of blocks, if none is given and trials do not favour outputs alone."""


@dataclass(frozen=True)
class HeldOut:
    """How a model does on the samples that were held out.

    Attributes:
        loss: The difference of its outputs from the teacher's, as the planner measures it: Kullback-Leibler divergence in nats for
            classes, else the squared error relative to the variance of the teacher's outputs, or what ``measure`` says.
        agreement: The part of the samples for which it finds the teacher's class; ``None`` if the outputs are no classes.
        accuracy: The part for which it finds the labelled class; ``None`` without labels.
    """

    loss: float
    agreement: float | None = None
    accuracy: float | None = None

    def __str__(self) -> str:
        parts = [f"loss {self.loss:.4g}"]
        if self.agreement is not None:
            parts.append(f"agreement {self.agreement:.1%}")
        if self.accuracy is not None:
            parts.append(f"accuracy {self.accuracy:.1%}")
        return ", ".join(parts)


@dataclass
class RecoveredFile:
    """The result of :func:`recover_file`.

    Attributes:
        graph: The graph of the recovered model, or of the given student if training did not improve it.
        improved: Whether it is the recovered one.
        before: The student on the held-out samples.
        after: The trained model on them, kept or not.
        history: As in :class:`graphshrink.Recovered`.
        interrupted: Whether Ctrl-C ended the training; the best epoch so far was judged.
        notes: What the user should know, one sentence each.
    """

    graph: Graph
    improved: bool
    before: HeldOut
    after: HeldOut
    history: list[dict[str, float]] = field(default_factory=list)
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> ModelProto:
        """The model in memory."""
        from ...targets.onnx.emitter import to_onnx

        return to_onnx(self.graph)

    def reread(self) -> Graph:
        """The graph of the model as it is written, whose constants have the new numbers too."""
        return reread(self.graph)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, whole or not at all.

        Raises:
            UsageError: If the file cannot be written.
        """
        from ...targets.onnx.emitter import save_onnx

        save_onnx(self.graph, path)


def recover_file(
    student: Any,
    teacher: Any,
    data: Any,
    *,
    epochs: int = 3,
    quantize: bool | str = False,
    labels: Any = None,
    label_weight: float = 0.5,
    augment: bool | Augmentation | TokenAugmentation = True,
    batch_size: int | None = None,
    lr: float | None = None,
    temperature: float = TEMPERATURE,
    feature_weight: float | None = None,
    clip: float | None = 5.0,
    warmup: float = 0.1,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    device: str | torch.device | None = None,
    measure: str | Score = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> RecoveredFile:
    """Train a shrunk ONNX model to give the outputs of the original, on samples without labels.

    Only the numbers of its initializers change: nodes, names and types stay. Under ``torchrun``, all processes train, and
    all return the same model.

    Args:
        student: The shrunk model: the path of an ONNX file, a ``ModelProto``, or a graph from one.
        teacher: The original model, with the same inputs and outputs.
        data: Samples, as ``calibration`` of :func:`graphshrink.shrink`; some hundreds or more. Every eighth is held out.
        epochs: The number of times to go through the samples.
        quantize: Quantise the student first, by the pass ``quantize`` or a text of passes such as ``"quantize{method=mse}"``, with ``data``
            for its ranges: the training then learns what the integers compute. A student in Q/DQ form is trained in this way
            without the option; there, what rounding made zero stays zero.
        labels: The classes of the samples, if they are known: an array, an ``.npy`` file, or ``"folders"`` for images in
            a folder for each class, in alphabetical order. Other numbers are for a function ``measure`` alone.
        label_weight: The weight of the cross-entropy to the labels, from 0 to 1; the rest is distillation.
        augment: Whether images are varied at random (crops, reflections, mixtures): models of one float input ``(N, C, H, W)`` with 1, 3 or 4
            channels. Crops of a folder of images are taken from the whole images, in front of the crop of ``preprocess``.
            A :class:`graphshrink.TokenAugmentation` varies texts instead: integers are never varied without it.
        batch_size: The number of samples in a batch; 16 if not given, or what the model fixes. Variants of texts fill batches up to 512 tokens
            or more if it is not given.
        lr: The largest learning rate: the part of its size by which a step changes a weight. If not given, a few steps with
            each of several rates are tried, and the held-out samples choose.
        temperature: The divisor of the logits in distillation.
        feature_weight: The weight of the relative squared error of values at the ends of blocks that both models have; 0 compares outputs alone.
            If not given, it is 10, or 0 if trials with 10 improve nothing and others do better.
        clip: The largest norm of the gradient.
        warmup: The share of all steps in which the learning rate rises.
        precision: As for :func:`graphshrink.recover`.
        device: The device to train on.
        measure: How outputs are compared, in training and on the held-out samples: ``auto``, ``kl`` (distributions), ``error`` (squared error relative to the
            variance, 1 - R2), ``mse`` or ``cosine``, as for plans. Or a function ``measure(outputs, reference)``, or ``measure(outputs,
            reference, labels)`` with ``labels``, of the outputs of a model and of the teacher on all held-out samples, lists of arrays, and
            the labels of these samples, which may then be any numbers, such as the targets of a regression. It returns a number, at least 0, and less is
            better. It chooses the learning rate and the epoch, and decides whether the result is kept; training compares outputs as ``auto`` does.
        checkpoint: A folder for checkpoints; the same call resumes from there.
        checkpoint_every: Write a checkpoint after this number of steps too.
        seed: The seed of all random numbers.
        progress: Show progress on standard error.

    Raises:
        UsageError: If options or samples do not fit, or the two models.
        ModelError: If a model cannot be read, or torch cannot express it.
        TrainingError: If a loss is not finite.
        MissingExtra: If torch or onnxruntime is not installed.
    """
    given = dict(locals())
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtra("recovery", "torch", "torch") from error
    if not 0 <= label_weight <= 1:
        raise UsageError(f"label_weight must be between 0 and 1, not {label_weight}")
    if not (temperature > 0 and np.isfinite(temperature)):
        raise UsageError(f"temperature must be above 0, not {temperature}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, not {batch_size}")
    own, goal = _graph(student, "the student"), _graph(teacher, "the teacher")
    _check_alike(own, goal)
    from .file_run import FileRun

    if quantize is False:
        return FileRun(own, goal, given).run()
    made, floats, notes = quantised(own, "quantize" if quantize is True else quantize, data)
    done = FileRun(made, goal, given, floats=floats).run()
    return replace(done, notes=[*notes, *done.notes])


def check_recovery(
    teacher: Any, data: Any, *, labels: Any = None, measure: str | Score = "auto"
) -> None:
    """Refuse samples and labels that :func:`recover_file` would refuse, before a student is made.

    Raises:
        UsageError: If they do not fit the teacher.
        ModelError: If the teacher cannot be read, or does not run.
    """
    from ...data.unlabelled import read_unlabelled
    from .file_run import classes_of

    goal = _graph(teacher, "the teacher")
    samples = read_unlabelled(goal, data, labels, targets=callable(measure))
    judge = Judge(goal, samples, samples.fixed or 8, measure)
    if judge.labels is not None:
        classes_of(judge, measure)


def quantised(graph: Graph, passes: str, data: Any) -> tuple[Graph, Graph, list[str]]:
    """Run passes that quantise on the graph of an ONNX model.

    Args:
        graph: The graph.
        passes: The text of the passes.
        data: The samples that ranges are measured on.

    Returns:
        The quantised graph, the one in floats in front of the first pass that quantises, and the notes of the passes.

    Raises:
        UsageError: If the graph is quantised, or the passes do not quantise.
    """
    from ...api import shrink
    from ...hosts.onnx.tensors import embed, tensors_in
    from ...targets.onnx.emitter import to_onnx
    from .fake_quantization import is_quantised

    if is_quantised(graph):
        raise UsageError("the student is quantised already: leave out quantize")
    model, base = to_onnx(graph), getattr(graph.host, "base_dir", None)
    if base is not None:
        embed(tensors_in(model), base)
    before = _BeforeQuantize()
    result = shrink(model, passes, calibration=data, observers=[before])
    if not is_quantised(result.graph):
        raise UsageError(f"the passes {passes!r} quantise nothing: quantize must be one of them")
    floats = graph if before.graph is None else before.graph
    return _graph(result.graph, "the student"), floats, list(result.report.notes)


class _BeforeQuantize:
    """An observer that keeps the graph in front of the pass ``quantize``."""

    def __init__(self) -> None:
        self.graph: Graph | None = None

    def before(self, step: Pass, graph: Graph) -> None:
        if step.name == "quantize":
            self.graph = graph.clone()

    def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        pass


def reread(graph: Graph) -> Graph:
    """The graph of a model as it is written, whose constants have the trained numbers too."""
    return _graph(graph, "the model")


def _graph(model: Any, what: str) -> Graph:
    from ...api import load
    from ...hosts.onnx.origins import OnnxHost

    if isinstance(model, Graph):
        if not isinstance(model.host, OnnxHost):
            raise UsageError(f"{what} must be an ONNX model; for torch modules there is recover")
        from ...targets.onnx.emitter import to_onnx

        base = model.host.base_dir
        model = to_onnx(model)
        return _read(model, base)
    graph, kind = load(model)
    if kind != "onnx":
        raise UsageError(f"{what} must be an ONNX model; for torch modules there is recover")
    return graph


def _read(model: ModelProto, base: Path | None) -> Graph:
    """The graph of a model in memory; external data stay where they are."""
    from ...frontends.onnx.importer import from_onnx
    from ...hosts.onnx.tensors import embed, tensors_in

    if base is not None:
        embed(tensors_in(model), base)
    return from_onnx(model)


def _check_alike(student: Graph, teacher: Graph) -> None:
    for what, one, other in (
        ("inputs", [named(v) for v in student.inputs], [named(v) for v in teacher.inputs]),
        ("outputs", list(student.output_names), list(teacher.output_names)),
    ):
        if one != other:
            raise UsageError(
                f"the {what} of student and teacher differ: {', '.join(one) or 'none'} and {', '.join(other) or 'none'}"
            )
    for a, b in zip(student.inputs, teacher.inputs, strict=True):
        if a.type.dtype != b.type.dtype or a.type.rank != b.type.rank:
            raise UsageError(
                f"input {named(a)!r} is {a.type} in the student, {b.type} in the teacher"
            )


def named(value: Any) -> str:
    """The name of a value in its model."""
    return value.host if isinstance(value.host, str) else str(value.name)


class Judge:
    """Compares outputs on the held-out samples with those of the teacher.

    Args:
        teacher: The teacher's graph.
        samples: The samples.
        size: The number of samples in a batch.
        measure: As for :func:`recover_file`.

    Attributes:
        batches: The held-out samples.
        kinds: How each output is compared.
        axes: The axes along which they are; see :class:`graphshrink.planning.quality.Scorer`.
    """

    def __init__(
        self, teacher: Graph, samples: UnlabelledSamples, size: int, measure: str | Score
    ) -> None:
        from ...planning.quality import Scorer

        self.batches: list[Sample] = samples.held_batches(size)
        score = measure
        if samples.labels is not None and callable(measure) and _takes_labels(measure):
            score = partial(_with_labels, measure, samples.labels[samples.held])
        self.scorer: Scorer = Scorer(teacher, self.batches, score)
        self.kinds, self.axes = self.scorer.kinds, self.scorer.axes
        self.labels = None if samples.classes is None else samples.classes[samples.held]
        for name, output in zip(teacher.output_names, self.scorer.reference, strict=True):
            if output.dtype.kind == "f" and not np.isfinite(output).all():
                raise ModelError(
                    f"output {name!r} of the teacher has numbers that are not finite on the samples"
                )

    def of(self, outputs: list[list[Any]]) -> HeldOut:
        """Judge the outputs of a model, one list for each batch."""
        from ...planning.quality import DISTRIBUTIONS

        loss = self.scorer.of(outputs)
        place = next((i for i, kind in enumerate(self.kinds) if kind in DISTRIBUTIONS), None)
        if place is None:
            return HeldOut(loss)
        found = self.scorer.joined(outputs)[place].argmax(-1)
        agreement = float((found == self.scorer.reference[place].argmax(-1)).mean())
        accuracy = None
        if self.labels is not None and found.shape == self.labels.shape:
            accuracy = float((found == self.labels).mean())
        return HeldOut(loss, agreement, accuracy)

    def model(self, graph: Graph) -> HeldOut:
        """Judge a model as it is written, in onnxruntime."""
        from ...planning.quality import model_runner
        from ...targets.onnx.emitter import to_onnx

        feeds = [named(v) for v in graph.inputs]
        base = getattr(graph.host, "base_dir", None)
        run = model_runner(to_onnx(graph), feeds, graph.output_names, base)
        return self.of([run(batch) for batch in self.batches])


def _takes_labels(measure: Score) -> bool:
    """Whether a function takes three arguments."""
    try:
        inspect.signature(measure).bind(0, 0, 0)
    except (TypeError, ValueError):  # Functions of C have no signature.
        return False
    return True


def _with_labels(measure: Score, labels: Any, outputs: Any, reference: Any) -> float:
    return measure(outputs, reference, labels)


def distill_loss(
    kinds: Sequence[str], axes: Sequence[int], variances: Sequence[float], temperature: float
) -> Callable[[Any, Any], torch.Tensor]:
    """The loss between the outputs of student and teacher: a mean over outputs, each compared by its kind.

    Args:
        kinds: As :attr:`graphshrink.planning.quality.Scorer.kinds`.
        axes: As :attr:`graphshrink.planning.quality.Scorer.axes`.
        variances: The variance of each of the teacher's outputs, by which squared errors are divided.
        temperature: The divisor of logits.
    """
    import torch
    import torch.nn.functional as F

    def one(
        kind: str, axis: int, variance: float, made: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        made, wanted = made.float(), wanted.float()
        if kind == "error":
            return F.mse_loss(made, wanted) / variance
        if kind == "mse":
            return F.mse_loss(made, wanted)
        if kind == "cosine":
            return 1 - F.cosine_similarity(made, wanted, dim=-1).mean()
        if kind == "softmax":
            made, wanted = made.clamp(min=1e-12).log(), wanted.clamp(min=1e-12).log()
        made, wanted = (x / temperature for x in (made, wanted))
        each = F.kl_div(
            made.log_softmax(axis), wanted.log_softmax(axis), reduction="none", log_target=True
        )
        return each.sum(axis).mean() * temperature**2

    def loss(outputs: Any, wanted: Any) -> torch.Tensor:
        pairs = zip(_listed(outputs), _listed(wanted), strict=True)
        parts = [
            one(kind, axis, variance, *pair)
            for kind, axis, variance, pair in zip(kinds, axes, variances, pairs, strict=True)
            if pair[0].is_floating_point()
        ]
        return torch.stack(parts).mean()

    return loss


def _listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


__all__ = [
    "HeldOut", "Judge", "RecoveredFile", "distill_loss", "named", "quantised", "recover_file", "reread",
]  # fmt: skip

"""Recovery: a plain training loop that restores the accuracy of a shrunk network.

It learns from labels, a teacher, or both (:mod:`.distillation`), with a warm-up and a cosine schedule, mixed precision, in one
process or those of ``torchrun`` (:mod:`..processes`). After a kill, the same call resumes from the last checkpoint
(:mod:`.checkpoints`).

A resumed run has the same result to the last bit, because random numbers do not depend on earlier steps: the
generators of torch, NumPy and Python are seeded for every step from the seed, the number of the step and the rank. All
other state is in the checkpoint: parameters and buffers, the optimizer, the loss scale, callbacks, and the loader's generator
at the start of the epoch. Batches from before the kill are loaded again and skipped. Not covered are datasets with a
generator of their own, workers that persist and augment at random, and GPU kernels that are not deterministic.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from ...ir import Graph, MissingExtra, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from ...targets.emitted import Emitted
    from .distillation import Loss
    from .loop import Callback, Unpack


@dataclass
class Recovered:
    """The result of :func:`recover`.

    Attributes:
        model: The given module, trained, in evaluation mode; with ``quantize``, a new module that computes what the integers do.
        history: For each epoch ``epoch``, ``loss`` and its parts, ``lr``, ``seconds``, and the numbers of ``evaluate``.
        graph: With ``quantize``, the graph of the network with its weights as integers.
        notes: What the user should know about the quantisation, one sentence each.
    """

    model: nn.Module
    history: list[dict[str, float]]
    graph: Graph | None = None
    notes: list[str] = field(default_factory=list)

    def save(
        self, path: str | os.PathLike[str], target: str | None = None, **options: Any
    ) -> Emitted:
        """Write a network that was trained with ``quantize``, whole or not at all.

        Args:
            path: The file to write.
            target: As for ``save`` of the result of ``shrink``.
            options: The target's own options.

        Raises:
            UsageError: If it was trained without ``quantize``, or the file cannot be written.
            ModelError: If the target cannot express it.
        """
        from ...emission import emission

        if self.graph is None:
            raise UsageError(
                "only a network that was trained with quantize is saved here: for others, shrink(model, ...).save(path)"
            )
        return emission(path, target, options).run(self.graph)


def recover(
    module: nn.Module,
    loader: Iterable[Any],
    *,
    epochs: int = 1,
    lr: float | None = None,
    loss: Loss | None = None,
    quantize: bool | str = False,
    calibration: Any = None,
    unpack: Unpack | None = None,
    teacher: nn.Module | None = None,
    temperature: float = 4.0,
    distill_weight: float = 0.5,
    distill_loss: Loss | None = None,
    features: Mapping[str, str] | Sequence[str] = (),
    feature_weight: float = 1.0,
    penalty: Callable[[nn.Module], torch.Tensor] | None = None,
    optimizer: Literal["adamw", "sgd"] | Optimizer = "adamw",
    weight_decay: float = 0.01,
    momentum: float = 0.9,
    clip: float | None = None,
    warmup: float = 0.05,
    schedule: Literal["cosine", "constant"] = "cosine",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    training_mode: bool = True,
    device: str | torch.device | None = None,
    steps_per_epoch: int | None = None,
    callbacks: Sequence[Callback] = (),
    evaluate: Callable[[nn.Module], float | Mapping[str, float]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Recovered:
    """Train a module from labels, from a teacher, or from both.

    Under ``torchrun``, each process trains on its own share of the batches (the loader's batch size is that of one
    process), and all processes end with the same module.

    Args:
        module: The module. It is trained in place, in training mode (batch norms update their statistics), and left in
            evaluation mode. Frozen parameters do not change (but see ``quantize``). A module of ``shrink_graph`` shares parameters with the one that
            was shrunk, which then changes too.
        loader: A ``DataLoader`` or any iterable of batches that can be iterated once in each epoch: pairs
            ``(inputs, labels)``, or inputs alone for pure distillation.
        epochs: The number of times to iterate the loader.
        lr: The largest learning rate; if not given, 1e-3 for AdamW, 0.05 for SGD, the present rates of a given optimizer.
        loss: A function of outputs and labels; cross-entropy if not given.
        quantize: Train what 8-bit integers compute: ``True`` merges layers and quantises them by the pass ``quantize``; a text of passes is
            run in place of that, such as ``"default,quantize{method=mse}"``. Then a new module is trained, in which weights and
            activations are rounded as the integers of its file round them, and the given one does not change; :meth:`Recovered.save` writes the
            file. Weights that are zero stay zero. All weights are trained, also those made of frozen parameters, which a note names. Gates are fixed
            at their values, and dropout is off.
        calibration: With ``quantize``, samples for the ranges of activations, as for :func:`graphshrink.shrink`; if not given, the first
            batches of the loader, up to 512 samples.
        unpack: A function that converts a batch of another form to ``(inputs, labels)``: a tuple of the module's arguments,
            and the labels or ``None``.
        teacher: A module with outputs of the same shape, such as the network before it was shrunk. It is in evaluation
            mode during the training, and copied if it shares parameters with ``module``.
        temperature: The divisor of the logits in distillation.
        distill_weight: The weight ``w`` of ``(1 - w) * loss + w * distillation``; without labels the loss is distillation alone.
        distill_loss: A function of the outputs of both, in place of the Kullback-Leibler divergence.
        features: Inner values to compare too: names of modules (or nodes of a ``GraphModule``), with the
            teacher's names if these differ.
        feature_weight: The factor of the relative square error of features.
        penalty: A function of the module whose result is added to the loss, such as ``lambda m: 0.1 * gate_penalty(m)``.
        optimizer: ``"adamw"``, ``"sgd"`` (with Nesterov momentum), or an optimizer.
        weight_decay: The weight decay of weights with two axes or more: not of biases, norms and the scores of gates.
        momentum: The momentum of SGD.
        clip: The largest norm of the gradient.
        warmup: The share of all steps in which the learning rate rises to ``lr``.
        schedule: After the warm-up, ``"cosine"`` lowers the learning rate to 0 along half a cosine.
        precision: ``"bf16"`` and ``"fp16"`` (CUDA only, with a loss scale) compute in mixed precision.
        training_mode: False trains in evaluation mode: batch norms keep their running statistics, and dropout is off.
        device: The device to train on; if not given, that of the module, under ``torchrun`` the process's own GPU.
        steps_per_epoch: The largest number of batches in an epoch; required for loaders without a length.
        callbacks: Objects whose method ``step`` is called after each step and ``end_epoch``, if they have it, with each record of the
            history, or functions that are called with a :class:`Step`.
            The state of those with ``state_dict`` and ``load_state_dict`` is part of checkpoints.
        evaluate: Called with the module in evaluation mode after each epoch, on rank 0; returns numbers for the history.
        checkpoint: A folder for checkpoints, written after each epoch. If it has one, the run resumes from there.
        checkpoint_every: Write a checkpoint after this number of steps too.
        seed: The seed of all random numbers.
        progress: Show progress on standard error.

    Raises:
        UsageError: If an option is out of range, there are no parameters to train, the loader yields no batches or batches of
            another form, the teacher does not fit, the passes of ``quantize`` do not quantise, or the checkpoint is of another run.
        ModelError: If the checkpoint is damaged, or the module cannot be written as ONNX to be quantised.
        PassError: If a pass of ``quantize`` fails.
        TrainingError: If a loss or weight is not finite; the last checkpoint is kept.
    """
    given = locals()
    try:
        from torch.nn.functional import cross_entropy
    except ImportError as missing:
        raise MissingExtra("recovery", "torch", "torch") from missing
    from ...cli.progress import Training
    from ..gating import GateSchedule, unwrapped
    from ..processes import join, shard
    from .checkpoints import Checkpoints
    from .distillation import Tapped, Teacher
    from .loop import Run
    from .optimizers import make_optimizer
    from .randomness import own_randomness

    _check_numbers(given)
    student = None
    if quantize or quantize == "":
        fixed = next((type(c).__name__ for c in callbacks if isinstance(c, GateSchedule)), None)
        if fixed is not None:
            raise UsageError(
                f"quantize trains a new module, whose gates are fixed at their present values: train with the {fixed} first, then quantise"
            )
        if not isinstance(optimizer, str):
            raise UsageError(
                "quantize trains a new module, whose parameters the given optimizer does not have: give its name, 'adamw' or 'sgd'"
            )
        from .quantized import quantized_student

        own = unwrapped(module)
        _trained(own)
        processes = join(device, own)
        own = processes.first_module(own)
        batches, seen = loader, list[Any]()
        if isinstance(loader, Iterator):
            # It yields each batch once: those that ranges are measured on are kept for the training.
            batches, loader = _recorded(loader, seen), chain(seen, loader)
        student = quantized_student(own, quantize, batches, unpack, calibration, seed)
        processes.agree(
            student.digest,
            "the processes measured different ranges for quantize: give each of them the same first batches, or calibration=",
        )
        module = student.module.to(processes.device)
        callbacks = [student.zeros, *callbacks]
    elif calibration is not None:
        raise UsageError("calibration is for the ranges of quantize: give quantize=True")
    kind = optimizer if isinstance(optimizer, str) else type(optimizer).__name__
    if lr is None and isinstance(optimizer, str):
        lr = 1e-3 if optimizer == "adamw" else 0.05
    processes = join(device, unwrapped(module))
    if precision == "fp16" and processes.device.type != "cuda":
        raise UsageError("precision='fp16' needs a CUDA device; use 'bf16' on a CPU")
    plain = unwrapped(module)
    trained = _trained(plain)
    batches = shard(loader, processes)
    per_epoch = _steps(batches, steps_per_epoch)
    settings = {
        **{name: given[name] for name in _SETTINGS},
        "features": dict(features) if isinstance(features, Mapping) else list(features),
        "lr": lr, "optimizer": kind, "steps_per_epoch": per_epoch, "teacher": teacher is not None,
        "processes": processes.world,
        **({"quantize": f"{quantize}, with ranges {student.digest[:16]}"} if student is not None else {}),
    }  # fmt: skip
    guide = None
    if teacher is not None:
        guide = Teacher(
            teacher, plain, features, temperature=temperature, loss=distill_loss,
            device=processes.device,
        )  # fmt: skip
    elif features:
        raise UsageError("features are compared with those of a teacher: give teacher=")
    plain.to(processes.device)
    if isinstance(optimizer, str):
        optimizer = make_optimizer(optimizer, trained, float(lr or 0), weight_decay, momentum)
    elif lr is not None:
        for group in optimizer.param_groups:
            group["lr"] = lr
    tapped = Tapped(module, list(guide.names) if guide else [], "module")
    run = Run(
        module=plain, tapped=tapped, teacher=guide, batches=batches, per_epoch=per_epoch, epochs=epochs,
        loss=loss or cross_entropy, unpack=unpack, weights=(distill_weight, feature_weight), penalty=penalty,
        optimizer=optimizer, clip=clip, warmup=warmup, schedule=schedule, precision=precision,
        training_mode=training_mode,
        callbacks=list(callbacks), evaluate=evaluate, every=checkpoint_every, seed=seed, processes=processes,
        checkpoints=None if checkpoint is None else Checkpoints(checkpoint), settings=settings,
        progress=Training(epochs * per_epoch, quiet=not progress or processes.rank > 0),
    )  # fmt: skip
    try:
        with run.progress, own_randomness(processes.device):
            run.start()
            run.train()
    finally:
        tapped.close()
        if guide is not None:
            guide.close()
        module.eval()
    if student is None:
        return Recovered(module, run.history)
    return Recovered(module, run.history, student.graph(), student.notes)


_SETTINGS = (
    "epochs", "weight_decay", "momentum", "clip", "warmup", "schedule", "precision", "temperature", "distill_weight",
    "feature_weight", "seed", "training_mode",
)  # fmt: skip
"""Arguments of :func:`recover` that must be the same when a run is resumed."""


def _trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen.

    Raises:
        UsageError: If there are none.
    """
    found = [p for p in module.parameters() if p.requires_grad]
    if not found:
        raise UsageError(
            "there are no parameters to train: the module has none that are not frozen; call "
            "requires_grad_(True) on some"
        )
    return found


def _recorded(batches: Iterator[Any], seen: list[Any]) -> Iterator[Any]:
    """The batches, each of which is added to ``seen``."""
    for batch in batches:
        seen.append(batch)
        yield batch


def _check_numbers(given: Mapping[str, Any]) -> None:
    positive = ("epochs", "lr", "temperature", "clip", "steps_per_epoch", "checkpoint_every")
    for name in positive:
        value = given[name]
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UsageError(f"{name} must be above 0, not {value}")
    for name in ("epochs", "steps_per_epoch", "checkpoint_every"):
        if given[name] is not None and int(given[name]) != given[name]:
            raise UsageError(f"{name} must be a whole number, not {given[name]}")
    for name in ("distill_weight", "warmup", "momentum"):
        if not 0 <= given[name] <= 1:
            raise UsageError(f"{name} must be between 0 and 1, not {given[name]}")
    for name in ("feature_weight", "weight_decay"):
        if not (given[name] >= 0 and math.isfinite(given[name])):
            raise UsageError(f"{name} must be at least 0, not {given[name]}")
    words = {
        "optimizer": ("adamw", "sgd"),
        "schedule": ("cosine", "constant"),
        "precision": ("fp32", "bf16", "fp16"),
    }
    from torch.optim import Optimizer

    for name, known in words.items():
        if given[name] not in known and not isinstance(given[name], Optimizer):
            raise UsageError(f"{name} is one of {', '.join(known)}, not {given[name]!r}")


def _steps(batches: Iterable[Any], most: int | None) -> int:
    """The largest number of steps of an epoch."""
    try:
        count = len(batches)  # type: ignore[arg-type]
    except TypeError as error:
        if most is None:
            raise UsageError(
                "the loader has no length, which the learning rate depends on: give steps_per_epoch"
            ) from error
        return most
    if not count:
        raise UsageError(
            "the loader yields nothing: it has no batches, or fewer than there are processes"
        )
    return count if most is None else min(count, most)

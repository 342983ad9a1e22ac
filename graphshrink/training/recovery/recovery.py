"""Recovery: a plain training loop that gives a shrunk network back what it lost.

Labels, a teacher, or both (:mod:`.distillation`); cosine schedule with a warm-up; mixed precision; one process or those of
``torchrun`` (:mod:`..processes`); checkpoints (:mod:`.checkpoints`) from which the same call goes on after a kill.

The result after a kill is the same to the last bit because nothing random depends on what ran before: the
generators of torch, NumPy and Python are seeded for every step from the seed, the number of the step and the rank. What
else a run depends on is in the checkpoint: parameters and buffers, the optimizer's state, the loss scale, the states of
callbacks, and the generator of the loader as it was when the epoch began. Batches that were seen before the kill are
loaded again and passed over. Left to the caller: a dataset with a generator of its own, or workers that persist and
augment at random, know nothing of this; nor are all of a GPU's kernels deterministic.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...ir import MissingExtra, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from .distillation import Loss
    from .loop import Callback


@dataclass
class Recovered:
    """What :func:`recover` gives back.

    Attributes:
        model: The module that was given, trained, in evaluation mode.
        history: For each epoch ``epoch``, ``loss`` and its parts, ``lr``, ``seconds``, and what ``evaluate`` gave.
    """

    model: nn.Module
    history: list[dict[str, float]]


def recover(
    module: nn.Module,
    loader: Iterable[Any],
    *,
    epochs: int = 1,
    lr: float | None = None,
    loss: Loss | None = None,
    unpack: Callable[[Any], tuple[tuple[Any, ...], Any]] | None = None,
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
    device: str | torch.device | None = None,
    steps_per_epoch: int | None = None,
    callbacks: Sequence[Callback] = (),
    evaluate: Callable[[nn.Module], float | Mapping[str, float]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Recovered:
    """Train a module, from labels, from a teacher, or from both.

    Started by ``torchrun``, each process trains on its own share of the batches (so that the loader's batch
    size is that of one process) and all end with the same module.

    Args:
        module: The module. It is trained in place, in training mode (batch norms follow the data), and left in
            evaluation mode. Frozen parameters stay as they are.
        loader: A ``DataLoader`` or any iterable of batches that can be gone through once an epoch: pairs
            ``(inputs, labels)``, or inputs alone for pure distillation.
        epochs: How many times to go through the loader.
        lr: The largest learning rate; not given: 1e-3 for AdamW, 0.05 for SGD, the caller's optimizer's own.
        loss: A function of outputs and labels; cross-entropy when not given.
        unpack: Turns a batch of another form into ``(inputs, labels)``: a tuple of what the module is called
            with, and the labels or ``None``.
        teacher: A module with outputs of the same shape, such as the network before it was shrunk. It is put into
            evaluation mode for the time, and copied if it shares parameters with ``module``.
        temperature: What logits are divided by for distillation.
        distill_weight: The loss is ``(1 - w) * loss + w * distillation``; without labels it is distillation.
        distill_loss: In place of the Kullback-Leibler divergence: a function of the outputs of both.
        features: What is compared inside besides: names of modules (or nodes of a ``GraphModule``), and the
            teacher's names for them where these differ.
        feature_weight: What the relative square error of features is multiplied by.
        penalty: Something to add to the loss, such as ``lambda m: 0.1 * gate_penalty(m)``.
        optimizer: ``"adamw"``, ``"sgd"`` (with Nesterov momentum), or an optimizer.
        weight_decay: Of the weights with two axes or more: not of biases, norms and the scores of gates.
        momentum: For SGD.
        clip: The largest norm of the gradient.
        warmup: The part of all steps in which the learning rate rises to ``lr``.
        schedule: How it falls from there: along half a cosine to 0, or not.
        precision: ``"bf16"`` and ``"fp16"`` (CUDA only, with a loss scale) compute in mixed precision.
        device: Where to train; not given: where the module is, under ``torchrun`` on the process's own GPU.
        steps_per_epoch: The most batches to take in an epoch; needed for loaders without a length.
        callbacks: Called after each step with a :class:`Step`, or stepped, if they have a method ``step``. What has
            ``state_dict`` and ``load_state_dict`` goes on where it was after a kill.
        evaluate: Called with the module in evaluation mode after each epoch, on rank 0; gives numbers for the history.
        checkpoint: A folder for checkpoints: one at the end of each epoch. If it has one, the run goes on from there.
        checkpoint_every: Also one every so many steps.
        seed: What every random number is derived from.
        progress: Say on standard error how it goes.

    Raises:
        UsageError: If an option is out of range, nothing can be trained, the loader yields nothing or batches of
            another form, the teacher does not fit, or the checkpoint is of another run.
        ModelError: If the checkpoint is damaged.
        TrainingError: If a loss or weight is not finite; the last checkpoint is kept.
    """
    given = locals()
    try:
        from torch.nn.functional import cross_entropy
    except ImportError as missing:
        raise MissingExtra("recovery", "torch", "torch") from missing
    from ...cli.progress import Training
    from ..gating import unwrapped
    from ..processes import join, shard
    from .checkpoints import Checkpoints
    from .distillation import Tapped, Teacher
    from .loop import Run
    from .optimizers import make_optimizer
    from .randomness import own_randomness

    _check_numbers(given)
    kind = optimizer if isinstance(optimizer, str) else type(optimizer).__name__
    if lr is None and isinstance(optimizer, str):
        lr = 1e-3 if optimizer == "adamw" else 0.05
    processes = join(device, unwrapped(module))
    if precision == "fp16" and processes.device.type != "cuda":
        raise UsageError("precision='fp16' needs a CUDA device; on a CPU take 'bf16'")
    plain = unwrapped(module)
    trained = [p for p in plain.parameters() if p.requires_grad]
    if not trained:
        raise UsageError(
            "there is nothing to train: the module has no parameters that are not frozen; call "
            "requires_grad_(True) on those that should learn"
        )
    batches = shard(loader, processes)
    per_epoch = _steps(batches, steps_per_epoch)
    settings = {
        "epochs": epochs, "steps_per_epoch": per_epoch, "lr": lr, "optimizer": kind, "weight_decay": weight_decay,
        "momentum": momentum, "clip": clip, "warmup": warmup, "schedule": schedule, "precision": precision,
        "temperature": temperature, "distill_weight": distill_weight, "feature_weight": feature_weight,
        "features": dict(features) if isinstance(features, Mapping) else list(features),
        "teacher": teacher is not None, "seed": seed, "processes": processes.world,
    }  # fmt: skip
    guide = None
    if teacher is not None:
        guide = Teacher(
            teacher, plain, features, temperature=temperature, loss=distill_loss,
            device=processes.device,
        )  # fmt: skip
    elif features:
        raise UsageError("features are compared with a teacher's: give teacher=")
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
        callbacks=list(callbacks), evaluate=evaluate, every=checkpoint_every, seed=seed, processes=processes,
        checkpoints=None if checkpoint is None else Checkpoints(checkpoint), settings=settings,
        said=Training(epochs * per_epoch, quiet=not progress or processes.rank > 0),
    )  # fmt: skip
    try:
        with run.said, own_randomness(processes.device):
            run.start()
            run.train()
    finally:
        tapped.close()
        if guide is not None:
            guide.close()
        module.eval()
    return Recovered(module, run.history)


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
    """How many steps an epoch has at most."""
    try:
        count = len(batches)  # type: ignore[arg-type]
    except TypeError as error:
        if most is None:
            raise UsageError(
                "the loader has no length, and the learning rate depends on it: give steps_per_epoch"
            ) from error
        return most
    if not count:
        raise UsageError(
            "the loader yields nothing: it has no batches, or fewer than there are processes"
        )
    return count if most is None else min(count, most)

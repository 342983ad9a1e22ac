"""Recovery: a plain training loop that gives a shrunk network back what it lost.

Labels, a teacher, or both (:mod:`.distillation`); cosine schedule with a warm-up; mixed precision; one process or those of
``torchrun`` (:mod:`.processes`); checkpoints (:mod:`.checkpoints`) from which the same call goes on after a kill.

The result after a kill is the same to the last bit because nothing random depends on what ran before: the
generators of torch, NumPy and Python are seeded for every step from the seed, the number of the step and the rank. What
else a run depends on is in the checkpoint: parameters and buffers, the optimizer's state, the loss scale, the states of
callbacks, and the generator of the loader as it was when the epoch began. Batches that were seen before the kill are
loaded again and passed over. Left to the caller: a dataset with a generator of its own, or workers that persist and
augment at random, know nothing of this; nor are all of a GPU's kernels deterministic.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from .ir import MissingExtra, TrainingError, UsageError

try:
    import torch
except ImportError as missing:
    raise MissingExtra("recovery", "torch", "torch") from missing

import numpy as np
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from .checkpoints import Checkpoints
from .distillation import Loss, Tapped, Teacher
from .gating import unwrapped
from .processes import Processes, join, shard, start_epoch
from .progress import Training

_END = object()


@dataclass(frozen=True)
class Step:
    """What a callback is told after each step.

    Attributes:
        number: How many steps are done, from 1 on.
        total: How many there will be.
        epoch: The epoch, from 1 on.
        loss: The loss of the step.
        model: The module that is trained.
    """

    number: int
    total: int
    epoch: int
    loss: float
    model: nn.Module


class Stepped(Protocol):
    """What is stepped along, such as a :class:`graphshrink.GateSchedule`."""

    def step(self) -> object:
        """Go one step on."""


Callback = Callable[[Step], object] | Stepped


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
    loss: Loss = F.cross_entropy,
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
    _check_numbers(locals())
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
        optimizer = _optimizer(optimizer, trained, lr, weight_decay, momentum)
    elif lr is not None:
        for group in optimizer.param_groups:
            group["lr"] = lr
    tapped = Tapped(module, list(guide.names) if guide else [], "module")
    run = _Run(
        module=plain, tapped=tapped, teacher=guide, batches=batches, per_epoch=per_epoch, epochs=epochs,
        loss=loss, unpack=unpack, weights=(distill_weight, feature_weight), penalty=penalty,
        optimizer=optimizer, clip=clip, warmup=warmup, schedule=schedule, precision=precision,
        callbacks=list(callbacks), evaluate=evaluate, every=checkpoint_every, seed=seed, processes=processes,
        checkpoints=None if checkpoint is None else Checkpoints(checkpoint), settings=settings,
        said=Training(epochs * per_epoch, quiet=not progress or processes.rank > 0),
    )  # fmt: skip
    try:
        with run.said, _own_randomness(processes.device):
            run.start()
            run.train()
    finally:
        tapped.close()
        if guide is not None:
            guide.close()
        module.eval()
    return Recovered(module, run.history)


@dataclass
class _Run:
    """One recovery; the fields are the arguments of :func:`recover`."""

    module: nn.Module
    tapped: nn.Module
    teacher: Teacher | None
    batches: Iterable[Any]
    per_epoch: int
    epochs: int
    loss: Loss
    unpack: Callable[[Any], tuple[tuple[Any, ...], Any]] | None
    weights: tuple[float, float]
    penalty: Callable[[nn.Module], torch.Tensor] | None
    optimizer: Optimizer
    clip: float | None
    warmup: float
    schedule: str
    precision: str
    callbacks: Sequence[Any]
    evaluate: Callable[[nn.Module], float | Mapping[str, float]] | None
    every: int | None
    seed: int
    processes: Processes
    checkpoints: Checkpoints | None
    settings: dict[str, Any]
    said: Training
    history: list[dict[str, float]] = field(default_factory=list)
    epoch: int = 0  # Epochs that are done.
    index: int = 0  # Steps of the present one that are done.
    sums: dict[str, float] = field(default_factory=dict)
    loader_state: torch.Tensor | None = None

    def start(self) -> None:
        """Bring all processes to the same point: the beginning, or the last checkpoint."""
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        scaled = self.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.processes.device.type, enabled=scaled)
        shapes = {name: list(tensor.shape) for name, tensor in self._tensors().items()}
        self.processes.agree(
            shapes,
            "the processes have different modules: decide what is removed on rank 0 and share it by "
            "graphshrink.processes.from_rank_0",
        )
        self.processes.agree(
            self.settings, "the processes were started with different options; give all the same"
        )
        self._resume(shapes)
        self.processes.agree(
            [self.epoch, self.index],
            "the processes see different checkpoints: give a folder that all of them share",
        )
        self.processes.spread(self._tensors().values())
        self.parallel = self.tapped
        if self.processes.world > 1 and not isinstance(self.tapped.module, DistributedDataParallel):
            self.parallel = DistributedDataParallel(self.tapped)

    def train(self) -> None:
        """All epochs that are left."""
        while self.epoch < self.epochs:
            began = time.perf_counter()
            lr = self._one_epoch()
            means = {name: total / self.index for name, total in self.sums.items()}
            means = dict(zip(means, self.processes.mean(list(means.values())), strict=True))
            self.processes.spread(b for _, b in self.module.named_buffers())
            record = {"epoch": self.epoch + 1, **means, "lr": lr, **self._evaluated()}
            record["seconds"] = time.perf_counter() - began
            self.history.append(record)
            self.said.line(_line(record, self.epochs))
            self.epoch, self.index, self.sums = self.epoch + 1, 0, {}
            generator = getattr(self.batches, "generator", None)
            self.loader_state = None if generator is None else generator.get_state()
            self._save()

    def _one_epoch(self) -> float:
        """The steps that are left of an epoch; returns the last learning rate."""
        self.parallel.train()
        generator = getattr(self.batches, "generator", None)
        if isinstance(generator, torch.Generator):
            if self.loader_state is not None:
                generator.set_state(self.loader_state)
            self.loader_state = generator.get_state()
        common = _seed(self.seed, "order", self.epoch)
        start_epoch(self.batches, self.epoch, common)
        _seed_all(common)
        batches, seen, lr = iter(self.batches), self.index, 0.0
        for index in range(self.per_epoch):
            # What all processes go through must come in the same order in all of them.
            _seed_all(_seed(self.seed, "batch", self.epoch, index))
            batch = next(batches, _END)
            if batch is _END:
                break
            if index < seen:
                continue
            _seed_all(_seed(self.seed, "step", self.epoch, index, self.processes.rank))
            lr = self._step(batch)
            self.index = index + 1
            if self.every and self.index % self.every == 0 and self.index < self.per_epoch:
                self._save()
        if not self.index:
            raise UsageError(
                f"the loader yields nothing in epoch {self.epoch + 1}; give a DataLoader, a list, or something "
                "else that can be gone through once an epoch, with at least a batch for each process"
            )
        return lr

    def _step(self, batch: Any) -> float:
        done = self.epoch * self.per_epoch + self.index
        factor = _factor(done, self.epochs * self.per_epoch, self.warmup, self.schedule)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        inputs, labels = self._unpacked(batch)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self._losses(inputs, labels)
        values = {name: float(value.detach()) for name, value in parts.items()}
        if not self.processes.all(all(map(math.isfinite, values.values()))):
            self._diverged(f"the loss is {values['loss']}")
        self.scaler.scale(parts["loss"]).backward()  # type: ignore[no-untyped-call]
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            trained = [p for g in self.optimizer.param_groups for p in g["params"]]
            nn.utils.clip_grad_norm_(trained, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        total = self.epochs * self.per_epoch
        step = Step(done + 1, total, self.epoch + 1, values["loss"], self.module)
        for callback in self.callbacks:
            callback.step() if hasattr(callback, "step") else callback(step)
        text = f"epoch {self.epoch + 1}/{self.epochs}, loss {values['loss']:.4g}"
        self.said.step(done + 1, text)
        return float(self.optimizer.param_groups[0]["lr"])

    def _losses(self, inputs: tuple[Any, ...], labels: Any) -> dict[str, torch.Tensor]:
        """The loss and, where it has several, its parts."""
        device = self.processes.device.type
        kind = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(device, dtype=kind, enabled=self.precision != "fp32"):
            outputs, features = self.parallel(*inputs)
            parts: dict[str, torch.Tensor] = {}
            if labels is not None:
                parts["task"] = self.loss(outputs, labels)
            if self.teacher is not None:
                parts.update(self.teacher.losses(inputs, outputs, features))
            elif labels is None:
                raise UsageError("the batches have no labels: give a teacher to learn from")
            if self.penalty is not None:
                parts["penalty"] = self.penalty(self.module)
        weight, feature_weight = self.weights
        share = {"distillation": 1.0 if labels is None else weight, "features": feature_weight}
        if self.teacher is not None:
            share["task"] = 1 - weight
        total = torch.stack([part * share.get(name, 1.0) for name, part in parts.items()]).sum()
        return {"loss": total, **(parts if len(parts) > 1 else {})}

    def _unpacked(self, batch: Any) -> tuple[tuple[Any, ...], Any]:
        if self.unpack is not None:
            inputs, labels = self.unpack(batch)
        elif isinstance(batch, torch.Tensor):
            inputs, labels = (batch,), None
        elif isinstance(batch, tuple | list) and len(batch) in (1, 2):
            inputs, labels = (batch[0],), batch[1] if len(batch) == 2 else None
        else:
            size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise UsageError(
                f"a batch is a {type(batch).__name__}{size}: give unpack, a function that makes "
                "(inputs, labels) of it"
            )
        device = self.processes.device
        return tuple(_to(x, device) for x in inputs), _to(labels, device)

    def _evaluated(self) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        self.module.eval()
        found: dict[str, float] = {}
        if self.processes.rank == 0:
            with torch.no_grad():
                given = self.evaluate(self.module)
            pairs = given.items() if isinstance(given, Mapping) else [("accuracy", given)]
            found = {name: float(value) for name, value in pairs}
        return dict(self.processes.from_first(found))

    # Checkpoints.

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers, the masks of parametrizations and the state of gates among them."""
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def _save(self) -> None:
        tensors = self._tensors()
        finite = all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())
        if not self.processes.all(finite):
            self._diverged("a weight is not finite")
        if self.checkpoints is None or self.processes.rank:
            self.processes.wait()
            return
        self.checkpoints.save(
            self.epoch * self.per_epoch + self.index,
            {
                "settings": self.settings,
                "epoch": self.epoch,
                "index": self.index,
                "sums": self.sums,
                "history": self.history,
                "module": tensors,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "callbacks": [
                    c.state_dict() if hasattr(c, "state_dict") else None for c in self.callbacks
                ],
                "loader": self.loader_state,
            },
        )
        self.processes.wait()

    def _resume(self, shapes: dict[str, list[int]]) -> None:
        state = None if self.checkpoints is None else self.checkpoints.load()
        if state is None:
            return
        assert self.checkpoints is not None
        self._fits(state, shapes, self.checkpoints)
        self.epoch, self.index, self.sums = state["epoch"], state["index"], state["sums"]
        self.history, self.loader_state = state["history"], state["loader"]
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(state["module"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for callback, kept in zip(self.callbacks, state["callbacks"], strict=True):
            if kept is not None:
                callback.load_state_dict(kept)
        where = f"epoch {self.epoch + 1}, after {self.index} steps"
        self.said.line(f"going on from {self.checkpoints.folder}: {where}")

    def _fits(self, state: Any, shapes: dict[str, list[int]], kept: Checkpoints) -> None:
        """Check that a checkpoint is of this run."""
        remedy = "go on with what it was started with, or give another folder"
        for name, value in self.settings.items():
            if state["settings"].get(name) != value:
                raise UsageError(
                    f"the checkpoint in {kept.folder} is of another run: {name} was "
                    f"{state['settings'].get(name)}, now it is {value}; {remedy}"
                )
        was = {name: list(tensor.shape) for name, tensor in state["module"].items()}
        for name in [*shapes, *was]:
            if shapes.get(name) != was.get(name):
                raise UsageError(
                    f"the checkpoint in {kept.folder} is of another module: {name} was "
                    f"{was.get(name, 'not there')}, now it is {shapes.get(name, 'not there')}; {remedy}"
                )
        if len(state["callbacks"]) != len(self.callbacks):
            raise UsageError(f"the checkpoint in {kept.folder} is of other callbacks; {remedy}")

    def _diverged(self, what: str) -> None:
        kept = "no checkpoint was kept"
        if self.checkpoints is not None and self.checkpoints.exists:
            kept = f"the last good checkpoint is in {self.checkpoints.folder}"
        raise TrainingError(
            f"{what} in epoch {self.epoch + 1}, step {self.index + 1}: lower lr, clip the gradient, or look "
            f"for bad data; {kept}"
        )


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


def _optimizer(
    kind: str, trained: Sequence[nn.Parameter], lr: float | None, decay: float, momentum: float
) -> Optimizer:
    assert lr is not None
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def _factor(step: int, total: int, warmup: float, schedule: str) -> float:
    """What the learning rate is multiplied by at a step, from 0 on."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - rising) / max(1, total - rising))) / 2


def _to(data: Any, device: torch.device) -> Any:
    """Tensors, also in lists and dicts, on a device."""
    if isinstance(data, torch.Tensor):
        return data.to(device, non_blocking=True)
    if isinstance(data, Mapping):
        return {key: _to(value, device) for key, value in data.items()}
    if isinstance(data, tuple | list):
        return type(data)(_to(value, device) for value in data)
    return data


def _seed(*parts: object) -> int:
    """A seed of 63 bits."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Leave the caller's generators as they were."""
    states = (np.random.get_state(), random.getstate())
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])


def _line(record: Mapping[str, float], epochs: int) -> str:
    """An epoch in words."""
    hidden = ("epoch", "seconds", "lr")
    parts = [f"{name} {value:.4g}" for name, value in record.items() if name not in hidden]
    return (
        f"epoch {record['epoch']}/{epochs}: {', '.join(parts)}, lr {record['lr']:.2e}, "
        f"{record['seconds']:.1f} s"
    )

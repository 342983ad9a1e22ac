"""The loop of :func:`graphshrink.recover`: epochs, steps, losses, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ...cli.progress import Training
from ...ir import ModelError, TrainingError, UsageError
from ...ir.errors import one_line
from ..processes import Processes, start_epoch, tensors_of
from .checkpoints import Checkpoints
from .distillation import Loss, Teacher
from .optimizers import rate_factor
from .randomness import seed_all, seed_of

_END = object()


@dataclass(frozen=True)
class Step:
    """The argument of a callback after each step.

    Attributes:
        number: The number of steps done, from 1 on.
        total: The number of all steps.
        epoch: The epoch, from 1 on.
        loss: The loss of the step.
        model: The module in training.
    """

    number: int
    total: int
    epoch: int
    loss: float
    model: nn.Module


class Stepped(Protocol):
    """An object with a method ``step``, such as a :class:`graphshrink.GateSchedule`."""

    def step(self) -> object:
        """Called after each step of the optimizer."""


Callback = Callable[[Step], object] | Stepped

Unpack = Callable[[Any], tuple[tuple[Any, ...], Any]]
"""Converts a batch to the arguments of the module and the labels, or ``None`` without labels."""


@dataclass
class Run:
    """One recovery; the fields are the checked arguments of :func:`graphshrink.recover`."""

    module: nn.Module
    tapped: nn.Module
    teacher: Teacher | None
    batches: Iterable[Any]
    per_epoch: int
    epochs: int
    loss: Loss
    unpack: Unpack | None
    weights: tuple[float, float]
    penalty: Callable[[nn.Module], torch.Tensor] | None
    optimizer: Optimizer
    clip: float | None
    warmup: float
    schedule: str
    precision: str
    training_mode: bool
    callbacks: Sequence[Any]
    evaluate: Callable[[nn.Module], float | Mapping[str, float]] | None
    every: int | None
    seed: int
    processes: Processes
    checkpoints: Checkpoints | None
    settings: dict[str, Any]
    progress: Training
    history: list[dict[str, float]] = field(default_factory=list)
    epoch: int = 0  # Completed epochs.
    index: int = 0  # Completed steps of the present epoch.
    sums: dict[str, float] = field(default_factory=dict)
    loader_state: torch.Tensor | None = None

    def start(self) -> None:
        """Set all processes to the same state: the initial one, or the last checkpoint."""
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        scaled = self.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.processes.device.type, enabled=scaled)
        tensors = tensors_of(self.module)
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        self.processes.agree_on_shapes(tensors)
        self.processes.agree(
            self.settings,
            "the processes were started with different options; give all of them the same",
        )
        self._resume(shapes)
        self.processes.agree(
            [self.epoch, self.index],
            "the processes see different checkpoints: give a folder that all of them share",
        )
        self.processes.spread(tensors_of(self.module).values())
        self.parallel = self.tapped
        if self.processes.world > 1 and not isinstance(self.tapped.module, DistributedDataParallel):
            self.parallel = DistributedDataParallel(self.tapped)

    def train(self) -> None:
        """Train the remaining epochs."""
        while self.epoch < self.epochs:
            began = time.perf_counter()
            lr = self._one_epoch()
            means = {name: total / self.index for name, total in self.sums.items()}
            means = dict(zip(means, self.processes.mean(list(means.values())), strict=True))
            self.processes.spread(b for _, b in self.module.named_buffers())
            record = {"epoch": self.epoch + 1, **means, "lr": lr, **self._evaluated()}
            record["seconds"] = time.perf_counter() - began
            self.history.append(record)
            for callback in self.callbacks:
                if hasattr(callback, "end_epoch"):
                    callback.end_epoch(record)
            self.progress.line(_line(record, self.epochs))
            self.epoch, self.index, self.sums = self.epoch + 1, 0, {}
            generator = self._generator()
            self.loader_state = None if generator is None else generator.get_state()
            self._save()

    def _one_epoch(self) -> float:
        """Train the remaining steps of an epoch; returns the last learning rate."""
        self.parallel.train(self.training_mode)
        for each in self.module.modules():
            # cuDNN has gradients of recurrent layers in training mode only; without dropout, it changes nothing.
            if isinstance(each, nn.RNNBase) and not each.dropout:
                each.train()
        generator = self._generator()
        if generator is not None:
            if self.loader_state is not None:
                generator.set_state(self.loader_state)
            self.loader_state = generator.get_state()
        common = seed_of(self.seed, "order", self.epoch)
        start_epoch(self.batches, self.epoch, common)
        seed_all(common)
        batches, seen, lr = iter(self.batches), self.index, 0.0
        for index in range(self.per_epoch):
            # All processes must draw the batches in the same order.
            seed_all(seed_of(self.seed, "batch", self.epoch, index))
            batch = next(batches, _END)
            if batch is _END:
                break
            if index < seen:
                continue
            seed_all(seed_of(self.seed, "step", self.epoch, index, self.processes.rank))
            lr = self._step(batch)
            self.index = index + 1
            if self.every and self.index % self.every == 0 and self.index < self.per_epoch:
                self._save()
        if not self.index:
            raise UsageError(
                f"the loader yields nothing in epoch {self.epoch + 1}; give a DataLoader, a list, or something "
                "else that can be iterated once in each epoch, with at least one batch for each process"
            )
        return lr

    def _generator(self) -> torch.Generator | None:
        """The loader's own generator, if it has one."""
        found = getattr(self.batches, "generator", None)
        return found if isinstance(found, torch.Generator) else None

    def _step(self, batch: Any) -> float:
        done = self.epoch * self.per_epoch + self.index
        factor = rate_factor(done, self.epochs * self.per_epoch, self.warmup, self.schedule)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        inputs, labels = unpacked(batch, self.unpack, self.processes.device)
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
        self.progress.step(done + 1, text)
        return float(self.optimizer.param_groups[0]["lr"])

    def _losses(self, inputs: tuple[Any, ...], labels: Any) -> dict[str, torch.Tensor]:
        """The loss and, if it has several parts, these by name."""
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
                raise UsageError("the batches have no labels: give a teacher")
            if self.penalty is not None:
                parts["penalty"] = self.penalty(self.module)
        weight, feature_weight = self.weights
        share = {"distillation": 1.0 if labels is None else weight, "features": feature_weight}
        if self.teacher is not None:
            share["task"] = 1 - weight
        total = torch.stack([part * share.get(name, 1.0) for name, part in parts.items()]).sum()
        return {"loss": total, **(parts if len(parts) > 1 else {})}

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

    def _save(self) -> None:
        tensors = tensors_of(self.module)
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
        try:
            self._check_same_run(state, shapes, self.checkpoints)
            self._restore(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"the checkpoint in {self.checkpoints.folder} is damaged, or of another optimizer or "
                f"callback ({one_line(error)}); delete the folder, or choose another one"
            ) from error
        where = f"epoch {self.epoch + 1}, after {self.index} steps"
        self.progress.line(f"resuming from {self.checkpoints.folder}: {where}")

    def _restore(self, state: Any) -> None:
        """Set the state of a checkpoint."""
        self.epoch, self.index, self.sums = state["epoch"], state["index"], state["sums"]
        self.history, self.loader_state = state["history"], state["loader"]
        with torch.no_grad():
            for name, tensor in tensors_of(self.module).items():
                tensor.copy_(state["module"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for callback, kept in zip(self.callbacks, state["callbacks"], strict=True):
            if kept is not None:
                callback.load_state_dict(kept)

    def _check_same_run(self, state: Any, shapes: dict[str, list[int]], kept: Checkpoints) -> None:
        """Check that a checkpoint belongs to this run.

        Raises:
            UsageError: If it does not; the message names the first difference.
        """
        remedy = "resume with the arguments of that run, or choose another folder"
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
                    f"{was.get(name, 'absent')}, now it is {shapes.get(name, 'absent')}; {remedy}"
                )
        if len(state["callbacks"]) != len(self.callbacks):
            raise UsageError(f"the checkpoint in {kept.folder} is of other callbacks; {remedy}")

    def _diverged(self, what: str) -> None:
        kept = "there is no checkpoint"
        if self.checkpoints is not None and self.checkpoints.exists:
            kept = f"the last good checkpoint is in {self.checkpoints.folder}"
        raise TrainingError(
            f"{what} in epoch {self.epoch + 1}, step {self.index + 1}: lower lr, clip the gradient, or look "
            f"for invalid data; {kept}"
        )


def unpacked(
    batch: Any, unpack: Unpack | None, device: torch.device
) -> tuple[tuple[Any, ...], Any]:
    """The arguments of the module and the labels of a batch, on a device.

    Raises:
        UsageError: If a batch is of a form that needs ``unpack``.
    """
    if unpack is not None:
        inputs, labels = unpack(batch)
    elif isinstance(batch, torch.Tensor):
        inputs, labels = (batch,), None
    elif isinstance(batch, tuple | list) and len(batch) in (1, 2):
        inputs, labels = (batch[0],), batch[1] if len(batch) == 2 else None
    else:
        size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise UsageError(
            f"a batch is a {type(batch).__name__}{size}: give unpack, a function that converts it to "
            "(inputs, labels)"
        )
    return tuple(_to(x, device) for x in inputs), _to(labels, device)


def _to(data: Any, device: torch.device) -> Any:
    """Move tensors, also those in lists and dicts, to a device."""
    if isinstance(data, torch.Tensor):
        return data.to(device, non_blocking=True)
    if isinstance(data, Mapping):
        return {key: _to(value, device) for key, value in data.items()}
    if isinstance(data, tuple | list):
        return type(data)(_to(value, device) for value in data)
    return data


def _line(record: Mapping[str, float], epochs: int) -> str:
    """The line that is printed for an epoch."""
    hidden = ("epoch", "seconds", "lr")
    parts = [f"{name} {value:.4g}" for name, value in record.items() if name not in hidden]
    left = (epochs - record["epoch"]) * record["seconds"]
    soon = f", about {left / 60:.0f} min left" if left >= 60 else ""
    return (
        f"epoch {record['epoch']}/{epochs}: {', '.join(parts)}, lr {record['lr']:.2e}, "
        f"{record['seconds']:.1f} s{soon}"
    )

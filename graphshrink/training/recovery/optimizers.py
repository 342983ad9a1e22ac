"""Optimizers and learning rates of :func:`graphshrink.recover`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer


def make_optimizer(
    kind: str, trained: Sequence[nn.Parameter], lr: float, decay: float, momentum: float
) -> Optimizer:
    """``"adamw"`` or ``"sgd"``, without weight decay for biases, norms and the scores of gates.

    Args:
        kind: The name of the optimizer.
        trained: The parameters to train.
        lr: The learning rate.
        decay: The weight decay of parameters with two axes or more.
        momentum: The Nesterov momentum of SGD.
    """
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def rate_factor(step: int, total: int, warmup: float, schedule: str) -> float:
    """The factor of the learning rate at a step, counted from 0."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - rising) / max(1, total - rising))) / 2

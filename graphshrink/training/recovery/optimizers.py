"""Optimizers and learning rates of :func:`graphshrink.recover`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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


class RelativeAdam(Optimizer):
    """Adam with steps relative to the size of what they change: for networks whose batch norms are folded into their weights.

    Folding leaves the channels of a layer with very different sizes, so that one learning rate is too large for some and too small for
    others. Here the step of a weight is multiplied by the root mean square of its output channel, that of a vector by the
    vector's own, both as they were at the start. (Adam is from Kingma and Ba, 2015; relative steps are as in Adafactor, Shazeer and Stern, 2018.)

    Args:
        trained: The parameters.
        lr: The largest part by which a step changes a weight.
        betas: The decays of the means of gradients and of their squares.
    """

    def __init__(
        self, trained: Sequence[nn.Parameter], lr: float, betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        super().__init__(list(trained), {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change the parameters once."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(
                        step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter),
                        size=_size(parameter),
                    )  # fmt: skip
                state["step"] += 1
                state["mean"].lerp_(gradient, 1 - first)
                state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                root = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(1e-12)
                change = state["mean"] / root * state["size"]
                parameter.sub_(change, alpha=group["lr"] / (1 - first ** state["step"]))


def _size(parameter: torch.Tensor) -> torch.Tensor:
    """The root mean square of each output channel, but at least a tenth of their mean; of a vector one for all."""
    if parameter.dim() < 2:
        return parameter.square().mean().sqrt().clamp(min=1e-3)
    found = parameter.square().mean(tuple(range(1, parameter.dim())), keepdim=True).sqrt()
    return found.clamp(min=max(0.1 * float(found.mean()), 1e-12))


def rate_factor(step: int, total: int, warmup: float, schedule: str) -> float:
    """The factor of the learning rate at a step, counted from 0."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - rising) / max(1, total - rising))) / 2

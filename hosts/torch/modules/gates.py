"""Modules that gated and shrunk networks are made of; ordinary ``torch.nn`` modules.

:class:`Scale` is a constant scale and shift, where torch has no module. Masks of pruned weights are in
:mod:`.masks`, sparse kernels in :mod:`....training.sparse_kernels`; both stand here too. A gate lets a network learn which of its
activations it can do without: ``y = g * act(x) + (1 - g) * line(x)``. At ``g = 1`` it is the activation, at ``g = 0`` the line, which is the identity unless one
is given, and then what lies before and behind it can be merged. The number ``g`` comes from a :class:`Switch`; gates that share a switch are tied. Modes:

``soft``
    ``g = clamp(score, 0, 1)``. Between 0 and 1 the gradient is the true one. At the ends it passes straight
    through (``dg/dscore = 1``), so that a closed gate can open again; only a score that is more than
    :data:`MARGIN` beyond an end is not driven further out.
``top-k``
    ``g`` is 1 for the gates that :func:`graphshrink.keep_top` keeps and 0 for the others, over the whole network.
    The gradient passes straight through: ``dL/dscore = dL/dg = sum(dL/dy * (act(x) - line(x)))``, for kept and
    removed gates alike, so that a removed one can come back (Fu et al., "DepthShrinker", ICML 2022).
``hard-concrete``
    The stretched concrete variable of Louizos et al., "Learning sparse neural networks through L0
    regularization", ICLR 2018: ``g = clamp(s * (ZETA - GAMMA) + GAMMA, 0, 1)`` with
    ``s = sigmoid((score + log u - log(1 - u)) / BETA)`` and ``u`` uniform while it trains; in evaluation mode
    ``s = sigmoid(score)``. The chance that ``g`` is not 0 is ``sigmoid(score - BETA * log(-GAMMA / ZETA))``. Gates that
    share a switch draw their noise each for itself.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from ....ir import UsageError, check_gate
from .scale import Scale

RANDOM = "hard-concrete"
"""The mode whose gates draw random numbers while they train."""

MARGIN = 0.5
"""How far beyond 0 or 1 the score of a soft gate may be driven."""

BETA = 2 / 3
"""The temperature of hard-concrete gates."""

GAMMA, ZETA = -0.1, 1.1
"""The ends that hard-concrete gates are stretched to."""

LIMIT = math.log(100.0)
"""How far from 0 the score of a hard-concrete gate may be driven."""

_OPEN = 3.0
"""The score of a hard-concrete gate that starts open; 2.4 is where it is exactly 1 when evaluated."""


class _Clamp(torch.autograd.Function):
    """``clamp(score, low, high)``; the gradient passes, but not further out than ``margin`` beyond an end."""

    @staticmethod
    def forward(score: torch.Tensor, low: float, high: float, margin: float) -> torch.Tensor:
        return score.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        score, low, high, margin = inputs
        ctx.save_for_backward(score)
        ctx.ends = (low - margin, high + margin)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (score,), (grad,), (low, high) = ctx.saved_tensors, grads, ctx.ends
        outwards = ((score <= low) & (grad > 0)) | ((score >= high) & (grad < 0))
        return torch.where(outwards, torch.zeros_like(grad), grad), None, None, None


def _clamp(score: torch.Tensor, low: float, high: float, margin: float) -> torch.Tensor:
    # Exporters see plain tensor operations.
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return score.clamp(low, high)
    clamped: torch.Tensor = _Clamp.apply(score, low, high, margin)  # type: ignore[no-untyped-call]
    return clamped


class Switch(nn.Module):
    """The number of a gate, learned as the parameter ``score``; several gates may share one.

    Args:
        mode: How it learns: ``"soft"``, ``"top-k"`` or ``"hard-concrete"``; see the module's docstring.
        value: The number to start from, between 0 and 1 (0 or 1 for top-k).

    Raises:
        UsageError: If the mode is not known or the value out of range.
    """

    score: nn.Parameter
    open: torch.Tensor | None

    def __init__(self, mode: str = "soft", value: float = 1.0) -> None:
        super().__init__()
        try:
            check_gate(mode, value)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self.mode = mode
        start = value
        if mode == RANDOM:
            inner = (value - GAMMA) / (ZETA - GAMMA)
            start = math.log(inner / (1 - inner)) if 0 < value < 1 else _OPEN * (2 * value - 1)
        self.score = nn.Parameter(torch.tensor(float(start)))
        self.register_buffer("open", torch.tensor(float(value)) if mode == "top-k" else None)

    def forward(self) -> torch.Tensor:
        """The number as a tensor without dimensions."""
        if self.mode == "soft":
            return _clamp(self.score, 0.0, 1.0, MARGIN)
        if self.mode == "top-k":
            # The bracket is exactly zero and carries the gradient.
            assert self.open is not None
            return self.open + (self.score - self.score.detach())
        score = _clamp(self.score, -LIMIT, LIMIT, 0.0)
        if self.training:
            u = torch.rand_like(score).clamp(1e-6, 1 - 1e-6)
            score = (score + u.log() - (-u).log1p()) / BETA
        return (score.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)

    def expected(self) -> torch.Tensor:
        """What a penalty counts, without dimensions and with a gradient: ``g``, or the chance that it is not 0."""
        if self.mode != RANDOM:
            return self()  # type: ignore[no-any-return]
        score = _clamp(self.score, -LIMIT, LIMIT, 0.0)
        return (score - BETA * math.log(-GAMMA / ZETA)).sigmoid()

    @torch.no_grad()
    def number(self) -> torch.Tensor:
        """The number that evaluation mode uses, without a gradient."""
        score = self.score.detach()
        if self.mode == "soft":
            return score.clamp(0.0, 1.0)
        if self.mode == "top-k":
            assert self.open is not None
            return self.open.detach()
        score = score.clamp(-LIMIT, LIMIT)
        return (score.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)

    def extra_repr(self) -> str:
        """The mode."""
        return self.mode


class Gate(nn.Module):
    """``g * activation(x) + (1 - g) * line(x)``, where ``g`` is learned; for finite ``x`` exact at both ends.

    Args:
        activation: The activation; one that works in place is copied, so that it does not.
        switch: Where ``g`` comes from; a switch of its own when not given.
        mode: The mode of the gate's own switch.
        value: Where the gate's own switch starts.
        line: A straight line for each channel, which is trained with the network; the identity when not given.
    """

    def __init__(
        self,
        activation: nn.Module,
        switch: Switch | None = None,
        *,
        mode: str = "soft",
        value: float = 1.0,
        line: Scale | None = None,
    ) -> None:
        super().__init__()
        if getattr(activation, "inplace", False):
            activation = copy.copy(activation)
            activation.inplace = False  # type: ignore[assignment]
        self.activation = activation
        self.switch = Switch(mode, value) if switch is None else switch
        self.line = line

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # Gates that were pickled by a version that had no lines close to the identity.
        if not hasattr(self, "line"):
            self.line = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The gated activation of ``x``, of the same shape."""
        g = self.switch()
        if g.dtype != x.dtype:
            g = g.to(x.dtype)
        y: torch.Tensor = g * self.activation(x) + (1 - g) * (
            x if self.line is None else self.line(x)
        )
        return y

    @property
    def mode(self) -> str:
        """How the gate learns."""
        return self.switch.mode

    @property
    def value(self) -> float:
        """The number that evaluation mode uses: 1 is the activation, 0 the line."""
        return float(self.switch.number())

    @property
    def kept(self) -> bool:
        """Whether the activation stays when gates are removed at the threshold 1/2."""
        return self.value >= 0.5

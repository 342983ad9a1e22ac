"""Pieces of networks trained in torch, for the pass ``reconstruct``.

The weights are inputs of the piece's graph, so that they are trained in the form in which the graph has them, whichever host it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..ir import TrainingError
from ..passes.statistics.im2col import Array
from ..passes.statistics.training import Piece, Trainer, Training
from ..targets.torch.anew import written_anew
from .recovery.optimizers import RelativeAdam, rate_factor

WARMUP = 0.1
"""The share of all steps in which the learning rate rises."""


class PieceTrainer(Trainer):
    """Trains pieces by Adam on the squared error, on a GPU if there is one."""

    def train(self, piece: Piece, how: Training) -> list[Array]:
        """Train a piece; see :class:`graphshrink.passes.statistics.training.Trainer`."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module = written_anew(piece.graph).assembled().to(device)
        for own in module.parameters():
            own.requires_grad_(False)
        weights = [nn.Parameter(_tensor(w, device)) for w in piece.weights]
        masks = [None if k is None else _tensor(k, device) for k in piece.kept]
        groups = _groups(piece, device)
        shares = np.array([g.rows for g in groups], float)
        variance = _variance(piece.goals)
        optimizer = RelativeAdam(weights, how.lr)
        rng = np.random.default_rng(how.seed)
        with torch.enable_grad():
            for step in range(how.steps):
                rate = how.lr * rate_factor(step, how.steps, WARMUP, "cosine")
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.zero_grad()
                seen = 0
                losses: list[torch.Tensor] = []
                while seen < how.batch:
                    chosen = groups[rng.choice(len(groups), p=shares / shares.sum())]
                    inputs, goal, rows = chosen.drawn(how.batch - seen, rng)
                    made = module(*inputs, *_masked(weights, masks))
                    losses.append((made.float() - goal.float()).square().mean() * rows)
                    seen += rows
                loss = torch.stack(losses).sum() / seen / variance
                if not bool(torch.isfinite(loss)):
                    raise TrainingError(
                        f"the loss is not finite after {step} steps: try a smaller lr than {how.lr:g}"
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                how.progress(step + 1, how.steps)
        with torch.no_grad():
            return [w.cpu().numpy() for w in _masked(weights, masks)]


class _Group:
    """Samples that can be run together.

    Args:
        inputs: What the piece reads.
        goal: What it should compute.
        rows: The number of samples.
        divisible: Whether any of them may be drawn.
    """

    def __init__(
        self, inputs: Sequence[torch.Tensor], goal: torch.Tensor, rows: int, divisible: bool
    ) -> None:
        self.inputs, self.goal, self.rows, self.divisible = list(inputs), goal, rows, divisible

    def drawn(
        self, count: int, rng: np.random.Generator
    ) -> tuple[list[torch.Tensor], torch.Tensor, int]:
        """At most ``count`` random samples; all of them if they cannot be divided."""
        if not self.divisible or count >= self.rows:
            return self.inputs, self.goal, self.rows
        chosen = torch.from_numpy(rng.permutation(self.rows)[:count]).to(self.goal.device)
        return [x[chosen] for x in self.inputs], self.goal[chosen], count


def _groups(piece: Piece, device: torch.device) -> list[_Group]:
    """The batches of a piece; those whose samples have the same shapes are joined.

    An array that holds no samples, such as a shape of four numbers, may be as long as one of the batches by chance, so that
    all batches decide together whether any is divided.
    """
    batches = list(zip(piece.inputs, piece.goals, piece.samples, strict=True))
    divisible = all(
        size and all(a.ndim and len(a) == size for a in (*inputs, goal))
        for inputs, goal, size in batches
    )
    alike: dict[Any, list[tuple[Array, ...]]] = {}
    found: list[_Group] = []
    for inputs, goal, size in batches:
        arrays = (*inputs, goal)
        if divisible:
            alike.setdefault(tuple((a.dtype, a.shape[1:]) for a in arrays), []).append(arrays)
        else:
            tensors = [_tensor(a, device) for a in arrays]
            found.append(_Group(tensors[:-1], tensors[-1], max(size, 1), False))
    for joined in alike.values():
        tensors = [_tensor(np.concatenate(parts), device) for parts in zip(*joined, strict=True)]
        found.append(_Group(tensors[:-1], tensors[-1], len(tensors[-1]), True))
    return found


def _masked(
    weights: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None]
) -> list[torch.Tensor]:
    return [w if m is None else w * m for w, m in zip(weights, masks, strict=True)]


def _variance(goals: Sequence[Array]) -> float:
    count = sum(g.size for g in goals)
    total = sum(float(g.sum(dtype=np.float64)) for g in goals)
    squares = sum(float(np.square(g, dtype=np.float64).sum()) for g in goals)
    return max(squares / count - (total / count) ** 2, 1e-12 * squares / count, 1e-30)


def _tensor(array: Array, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C")).to(device)


__all__ = ["PieceTrainer"]

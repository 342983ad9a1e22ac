"""Amounts of many small moves, found together from what each does to the outputs of the whole network.

The outputs are linear in small moves. With a column for each move and the outputs in coordinates in which half of the squared distance
is about the loss (for distributions those of the Fisher information), the best amounts are one least-squares problem, as in a
Gauss-Newton step. Columns are finite differences, so no op needs a derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...passes.merge.algebra.tensors import Array64
from ..quality import Outputs, directions

MOST_ENTRIES = 1 << 25
"""The largest number of entries of all columns; beyond it, the same random part of the outputs is taken of all."""

RIDGES = (0.03, 0.3, 3.0)
"""The strengths of the ridge on amounts, relative to what each move does alone."""


class Coordinates:
    """Outputs as one vector each.

    Args:
        kinds: How each output is compared; see :class:`..quality.Scorer`.
        reference: The outputs of the original.
        columns: The number of moves.
    """

    def __init__(self, kinds: Sequence[str], reference: Outputs, columns: int) -> None:
        self.kinds, self.reference = kinds, reference
        size = sum(a.size for a in reference)
        share = MOST_ENTRIES // max(columns, 1)
        self.chosen = None
        if size > share:
            rng = np.random.default_rng(0)
            self.chosen = np.sort(rng.choice(size, share, replace=False))
        self.target = self(reference)

    def __call__(self, outputs: Outputs) -> Array64:
        """The vector of some outputs."""
        parts = [
            _coordinates(kind, made, wanted).reshape(-1) / len(self.kinds) ** 0.5
            for kind, made, wanted in zip(self.kinds, outputs, self.reference, strict=True)
        ]
        whole = np.concatenate(parts)
        return whole if self.chosen is None else whole[self.chosen]


def _coordinates(kind: str, made: Array64, wanted: Array64) -> Array64:
    made, wanted = np.asarray(made, np.float64), np.asarray(wanted, np.float64)
    if kind == "error":
        return np.asarray(made * (2 / (wanted.var() or 1.0) / max(made.size, 1)) ** 0.5)
    if kind == "mse":
        return np.asarray(made * (2 / max(made.size, 1)) ** 0.5)
    rows = max(made.size // max(made.shape[-1], 1), 1)
    if kind == "cosine":
        return np.asarray(directions(made) / rows**0.5)
    if kind == "softmax":
        made, wanted = (np.log(np.maximum(a, 1e-30)) for a in (made, wanted))
    if kind == "logits":
        from scipy.special import log_softmax

        made, wanted = log_softmax(made, -1), log_softmax(wanted, -1)
    part = np.exp(wanted)
    centred = made - (part * made).sum(-1, keepdims=True)
    return np.asarray(np.sqrt(part / rows) * centred, np.float64)


def amounts(columns: Array64, left: Array64, ridge: float) -> Array64:
    """The amounts of moves whose sum is closest to what is left, with a ridge.

    Args:
        columns: ``(moves, entries)``: what an amount of 1 of each move does.
        left: ``(entries,)``: what the moves should do together.
        ridge: The strength, relative to the squared length of each column.
    """
    gram = columns @ columns.T
    own = np.diag(gram).copy()
    alive = own > 1e-12 * max(own.max(initial=0.0), 1e-30)
    made = np.zeros(len(columns))
    if alive.any():
        part = gram[np.ix_(alive, alive)] + ridge * np.diag(own[alive])
        made[alive] = np.linalg.solve(part, columns[alive] @ left)
    return made

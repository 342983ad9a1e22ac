"""The contract between passes and what trains pieces of a network; the driver implements it with torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...ir import Graph
from .im2col import Array


@dataclass(frozen=True)
class Piece:
    """A piece of a network, and the data to train it with.

    Attributes:
        graph: The piece as a graph of its own: its inputs are what it reads, then the constants that are trained; it has one output.
        weights: The numbers of these constants now.
        kept: For each of them, where it may be nonzero; ``None`` where it may be everywhere.
        inputs: For each batch, the arrays that the piece reads.
        goals: For each batch, what it should compute.
        samples: For each batch, the number of samples along the first axes; 0 where a batch cannot be divided.
    """

    graph: Graph
    weights: tuple[Array, ...]
    kept: tuple[npt.NDArray[np.bool_] | None, ...]
    inputs: Sequence[tuple[Array, ...]]
    goals: Sequence[Array]
    samples: Sequence[int]


@dataclass(frozen=True)
class Training:
    """How a piece is trained.

    Attributes:
        steps: The number of steps.
        lr: The largest part of its size by which a step changes a number.
        batch: The number of samples of a step.
        seed: The seed of their choice.
        progress: Called with (done, total) after a step.
    """

    steps: int
    lr: float
    batch: int
    seed: int
    progress: Callable[[int, int], None] = lambda done, total: None


class Trainer(ABC):
    """Trains pieces of networks."""

    @abstractmethod
    def train(self, piece: Piece, how: Training) -> list[Array]:
        """The new numbers of the trained constants; those that are not kept are 0.

        Raises:
            ModelError: If the piece cannot be expressed.
            TrainingError: If the loss is not finite.
        """

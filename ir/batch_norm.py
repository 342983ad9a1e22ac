"""The batch norm that a Scale is the evaluated form of: targets that train write a batch norm again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .tensor import Array64, DerivedTensor, Tensor
from .types import DType


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """The numbers of a batch norm, each a vector with a number for each channel.

    Attributes:
        gamma: The scale; ``None`` for 1.
        beta: The shift; ``None`` for 0.
        mean: The running mean.
        var: The running variance.
        epsilon: What is added to the variance.
        host: The host's own module, if it is one.
    """

    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor
    var: Tensor
    epsilon: float
    host: object | None = None

    def evaluated(self, dtype: DType) -> tuple[Tensor, Tensor]:
        """Scale and shift of this element type, computed in float64 when they are needed; both remember the batch norm."""

        def scale() -> Array64:
            root = np.sqrt(self.var.float64() + self.epsilon)
            return np.asarray((1.0 if self.gamma is None else self.gamma.float64()) / root)

        def shift() -> Array64:
            moved = self.mean.float64() * scale()
            return np.asarray((0.0 if self.beta is None else self.beta.float64()) - moved)

        shape = self.mean.shape
        made = (
            DerivedTensor(shape, dtype, scale, sources=(self.var, self.gamma)),
            DerivedTensor(
                shape, dtype, shift, sources=(self.mean, self.var, self.beta, self.gamma)
            ),
        )
        made[0].host, made[1].host = BatchNormPart(self, "scale"), BatchNormPart(self, "shift")
        return made


@dataclass(frozen=True, eq=False)
class BatchNormPart:
    """The batch norm that a constant of a Scale came from (stored as the tensor's ``host``).

    Attributes:
        norm: The batch norm.
        part: Whether the constant is the scale or the shift.
    """

    norm: BatchNorm
    part: Literal["scale", "shift"]


__all__ = ["BatchNorm", "BatchNormPart"]

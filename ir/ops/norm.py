"""Normalisation within groups of channels, and by neighbouring ones."""

from __future__ import annotations

from dataclasses import dataclass

from ..types import TensorType
from .base import InferenceError, InputTypes, Op, Tie, optional, required, same_dtype, ties


@dataclass(frozen=True)
class GroupNorm(Op):
    """Group normalisation of ``(N, C, *positions)``: ``(x, scale?, shift?)``, the vectors have one number per channel.

    Mean and variance are taken over the channels of a group and all positions.

    Attributes:
        groups: The number of groups; 0 when every channel is one (instance normalisation).
        epsilon: Added to the variance.
    """

    groups: int = 0
    epsilon: float = 1e-5
    arity = (1, 3)

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x, scale, shift = required(inputs, 0), optional(inputs, 1), optional(inputs, 2)
        same_dtype(self, x, scale, shift)
        if self.groups < 0 or (x.rank is not None and x.rank < 2):
            raise InferenceError(f"GroupNorm with {self.groups} groups of {x}")
        channels = x.dim(1)
        if channels is not None and self.groups and channels % self.groups:
            raise InferenceError(f"{channels} channels do not divide into {self.groups} groups")
        for vector in (scale, shift):
            if vector is not None and (
                vector.rank not in (None, 1) or _differ(vector.dim(0), channels)
            ):
                raise InferenceError(f"GroupNorm of {x} with {vector}")
        return (x,)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        x = required(inputs, 0)
        if x.rank is None:
            return None
        # A mean does not depend on the order of its elements; channels of different groups cannot be exchanged.
        free = self.groups in (0, 1) or self.groups == x.dim(1)
        others = [[(0, a), (-1, a)] for a in range(x.rank) if a != 1]
        return ties(*others, self.channel_axes(inputs) if free else ())

    @staticmethod
    def channel_axes(inputs: InputTypes) -> list[tuple[int, int]]:
        """The axes of channels: (operand, axis)."""
        vectors = [(i, 0) for i in (1, 2) if optional(inputs, i) is not None]
        return [(0, 1), *vectors, (-1, 1)]


def _differ(a: int | None, b: int | None) -> bool:
    return a is not None and b is not None and a != b


@dataclass(frozen=True)
class LocalResponseNorm(Op):
    """``x / (bias + alpha / size * s) ** beta`` of ``(N, C, *positions)``; s is the sum of the squares of ``size`` channels around it.

    Channels that do not exist count as zeros.

    Attributes:
        size: The number of channels, which is odd.
        alpha: The factor of the mean square.
        beta: The exponent.
        bias: Added to the mean square.
    """

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0

    def infer(self, inputs: InputTypes) -> tuple[TensorType, ...]:
        x = required(inputs, 0)
        if self.size < 1 or self.size % 2 == 0 or x.rank in (0, 1):
            raise InferenceError(f"LocalResponseNorm of {x} over {self.size} channels")
        return (x,)

    def channels(self, inputs: InputTypes) -> tuple[Tie, ...] | None:
        rank = required(inputs, 0).rank
        if rank is None:
            return None
        return ties(*([(0, a), (-1, a)] for a in range(rank) if a != 1))


__all__ = ["GroupNorm", "LocalResponseNorm"]

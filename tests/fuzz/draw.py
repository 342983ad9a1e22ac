"""Random choices that are determined by one seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


class Draw:
    """A source of choices: the same seed gives the same ones on every machine."""

    def __init__(self, seed: int | str) -> None:
        self._choices = random.Random(str(seed))
        self._numbers = np.random.default_rng(self._choices.getrandbits(64))

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self._choices.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of several, with equal probability."""
        return self._choices.choice(items)

    def weighted(self, items: Mapping[T, float]) -> T:
        """One of several by weight."""
        return self._choices.choices(list(items), list(items.values()))[0]

    def some(self, items: Sequence[T], at_least: int = 1) -> list[T]:
        """A random subset, in the given order."""
        count = self.whole(min(at_least, len(items)), len(items))
        chosen = set(self._choices.sample(range(len(items)), count))
        return [item for i, item in enumerate(items) if i in chosen]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All of them in random order."""
        return self._choices.sample(list(items), len(items))

    def whole(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return self._choices.randint(low, high)

    def real(self, low: float, high: float) -> float:
        """A number with few decimals."""
        return round(self._choices.uniform(low, high), 3)

    def normal(self, *shape: int, scale: float = 1.0) -> npt.NDArray[Any]:
        """Standard normal float32 numbers."""
        return (self._numbers.standard_normal(shape) * scale).astype(np.float32)

    def uniform(self, low: float, high: float, *shape: int) -> npt.NDArray[Any]:
        """Uniform float32 numbers."""
        return self._numbers.uniform(low, high, shape).astype(np.float32)

    def integers(self, low: int, high: int, *shape: int) -> npt.NDArray[Any]:
        """Whole numbers from ``low`` to ``high``, exclusive."""
        return self._numbers.integers(low, high, shape)

"""Exactness classes of rewrites."""

from __future__ import annotations

from enum import IntEnum


class Exactness(IntEnum):
    """The exactness class of a rewrite; a larger value is a weaker promise."""

    EXACT = 0
    """Equal for every input, up to rounding."""
    BORDER = 1
    """Equal except near the spatial border."""
    APPROXIMATE = 2
    """Not equal; calibration or training must recover the accuracy."""

    def __str__(self) -> str:
        return self.name.lower()

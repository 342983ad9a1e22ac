"""How exact a rewrite is."""

from __future__ import annotations

from enum import IntEnum


class Exactness(IntEnum):
    """The exactness class of a rewrite; a larger value is a weaker promise."""

    EXACT = 0
    """Equal for every input, up to rounding."""
    BORDER = 1
    """Equal but for a rim of the spatial border."""
    APPROXIMATE = 2
    """Must be recovered by calibration or training."""

    def __str__(self) -> str:
        return self.name.lower()

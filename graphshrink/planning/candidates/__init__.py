"""The menu: the kinds of candidates, one file each. A new kind is a subclass of :class:`.base.Kind` and an entry of ``MENU``.

Keeping a region as it is needs no candidate: it costs and loses nothing.
"""

from __future__ import annotations

from .base import Candidate, Kind, Names, at_strength
from .linear import LinearKind
from .low_rank import LowRank
from .narrow import Narrow
from .skip import Skip

MENU: dict[str, Kind] = {kind.name: kind for kind in (Skip(), LinearKind(), Narrow(), LowRank())}
"""All kinds by name."""

__all__ = ["MENU", "Candidate", "Kind", "Names", "at_strength"]

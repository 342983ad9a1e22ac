"""Structural analyses of graphs."""

from .dominators import DominatorTree
from .regions import Region, regions

__all__ = ["DominatorTree", "Region", "regions"]

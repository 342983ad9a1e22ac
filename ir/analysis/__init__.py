"""Structural analyses of graphs."""

from .channels.groups import (
    REORDERED,
    ChannelGroup,
    ChannelGroups,
    FixedChannels,
    Placement,
    channel_groups,
)
from .channels.reshapes import axis_runs
from .dominators import DominatorTree
from .regions import Region, regions

__all__ = [
    "REORDERED", "ChannelGroup", "ChannelGroups", "DominatorTree", "FixedChannels", "Placement", "Region",
    "axis_runs", "channel_groups", "regions",
]  # fmt: skip

"""Structural analyses of graphs."""

from .channels.groups import (
    REORDERED,
    ChannelGroup,
    ChannelGroups,
    FixedChannels,
    Placement,
    channel_groups,
)
from .dominators import DominatorTree
from .regions import Region, regions

__all__ = [
    "REORDERED", "ChannelGroup", "ChannelGroups", "DominatorTree", "FixedChannels", "Placement", "Region",
    "channel_groups", "regions",
]  # fmt: skip

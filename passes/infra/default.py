"""The default pipeline, which pipeline texts call ``default``."""

from __future__ import annotations

DEFAULT = "default"
"""The name of the default pipeline in a pipeline text."""

DEFAULT_PIPELINE = "fold-constants,prune-dead,repeat{deduplicate,remove-noops,fuse-moves},push-pads,move-scales,merge-linear,fuse-dense,fuse-patterns,deduplicate,prune-dead"
"""The passes that run if none are given; all are exact."""

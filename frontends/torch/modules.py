"""Which modules compute what their class says."""

from __future__ import annotations

from torch import nn

from ...hosts.torch.modules.masks import only_masked


def hooked(module: nn.Module) -> bool:
    """Whether hooks or parametrizations other than masks may change what a module computes."""
    if not only_masked(module):
        return True
    return bool(module._forward_hooks or module._forward_pre_hooks)

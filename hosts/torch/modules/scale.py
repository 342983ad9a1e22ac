"""A constant scale and shift, where torch has no module."""

from __future__ import annotations

import torch
from torch import nn


class Scale(nn.Module):
    """``x * scale + shift`` along one axis.

    Args:
        scale: The factors, a vector of the axis's size or of size 1; ``None`` for none.
        shift: What is added, likewise.
        trailing: The number of axes behind the scaled one.
    """

    scale: torch.Tensor | None
    shift: torch.Tensor | None

    def __init__(
        self, scale: torch.Tensor | None, shift: torch.Tensor | None, trailing: int
    ) -> None:
        super().__init__()
        self.trailing = trailing
        for name, vector in (("scale", scale), ("shift", shift)):
            shaped = None if vector is None else nn.Parameter(vector.reshape(-1, *[1] * trailing))
            self.register_parameter(name, shaped)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale ``x``."""
        if self.scale is not None:
            x = x * self.scale
        if self.shift is not None:
            x = x + self.shift
        return x

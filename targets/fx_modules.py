"""Modules that emitted graphs use where torch has none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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


_ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "clip": nn.Hardtanh, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU,
    "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "hard_swish": nn.Hardswish, "tanh": nn.Tanh, "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"), "softsign": nn.Softsign, "mish": nn.Mish,
}  # fmt: skip


def activation_module(kind: str, params: Sequence[float]) -> nn.Module | None:
    """The module of an activation; ``None`` where torch has none that the frontend reads back."""
    if kind == "hard_sigmoid" and math.isclose(params[0], 1 / 6, abs_tol=1e-9) and params[1] == 0.5:
        return nn.Hardsigmoid()
    made = _ACTIVATIONS.get(kind)
    if made is None or (kind == "clip" and not params[0] < params[1]):
        return None
    return made(*params)

"""Which torch modules activations are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

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

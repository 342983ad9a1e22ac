"""Zeros of weights that stay zero while a module is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class Zeros:
    """A callback that keeps zeros of weights zero, so that sparse weights and dense blocks keep their form.

    Args:
        module: The module in training.
        kept: Which numbers of some parameters are not zero; of all other weights, those that are zero now.
    """

    def __init__(self, module: nn.Module, kept: Mapping[str, torch.Tensor] | None = None) -> None:
        self.module = module
        masks = {
            name: (kept or {}).get(name, t != 0)
            for name, t in module.named_parameters()
            if t.requires_grad and t.dim() > 1
        }
        self.kept = {name: mask for name, mask in masks.items() if not bool(mask.all())}

    @torch.no_grad()
    def step(self) -> None:
        """Set again what was zero."""
        for name, parameter in self.module.named_parameters():
            if name in self.kept:
                kept = self.kept[name] = self.kept[name].to(parameter.device)
                parameter.mul_(kept)


__all__ = ["Zeros"]

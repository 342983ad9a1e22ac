"""Networks with ImageNet weights from packages, made ready for CIFAR-10 at 64x64 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from package_networks import lite0, mobilenetv2
from torch import nn

from graphshrink.datasets import Batches, LabelledImages

SIZE = 64
"""The side of the images to which CIFAR's 32x32 pixels are scaled."""

SHIFT = 0.498
SCALE = 0.502
"""The networks take pixels from 0 to 1 less the shift, divided by the scale."""


class Images64:
    """CIFAR-10 as the networks take it.

    Args:
        images: The images at 32x32 pixels.
    """

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def batches(self, size: int, *, train: bool) -> Batches:
        """Batches at 32x32 pixels, for training shifted by up to 4 pixels and mirrored; :meth:`unpack` scales them."""
        made = Batches(self.images, size, train=train, shift=4, mirror=True)
        self.mean, self.std = made.mean, made.std
        return made

    def unpack(self, batch: Any) -> tuple[tuple[torch.Tensor], torch.Tensor]:
        """A batch scaled to 64x64 pixels and to the range of the networks, channels last, and its labels."""
        x, y = batch
        x = (x * self.std + self.mean - SHIFT) / SCALE
        x = nn.functional.interpolate(x, size=SIZE, mode="bilinear", align_corners=False)
        return (x.to(memory_format=torch.channels_last),), y


def base_network(name: str, site: Path, classes: int) -> nn.Module:
    """A network with ImageNet weights and a new last layer.

    Args:
        name: ``lite0`` or ``mobilenetv2``.
        site: The folder into which the packages were installed.
        classes: The number of classes.
    """
    torch.manual_seed(0)
    made = _lite0(site, classes) if name == "lite0" else _mobilenetv2(site, classes)
    traced = torch.fx.symbolic_trace(made.eval())
    return traced.to(memory_format=torch.channels_last)


def _lite0(site: Path, classes: int) -> nn.Module:
    made = lite0(site)
    made._fc = nn.Linear(made._fc.in_features, classes)
    return made  # type: ignore[no-any-return]


def _mobilenetv2(site: Path, classes: int) -> nn.Module:
    made = mobilenetv2(site)
    body = nn.Sequential(*made.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return nn.Sequential(body, nn.Dropout(0.2), nn.Linear(made.last_channel, classes))

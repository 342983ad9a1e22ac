"""Random variants of images, so that a network does not learn a few photographs by heart: crops, reflections and mixtures.

Images are tensors ``(C, H, W)`` in the network's own scale. Labels are not needed: teacher and student see the same variant. Mixtures are those of
Zhang et al., "mixup: beyond empirical risk minimization", 2018; that a teacher should judge exactly what the student sees, and for long, is from
Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SMALL = 64
"""Images with a shorter side than this are shifted, not scaled."""

_SHIFT = 16
"""Small images are shifted by up to this part of their side."""


@dataclass(frozen=True)
class Augmentation:
    """Random variants of images; random numbers come from torch's global generator.

    Attributes:
        varied: The part of the batches that are varied; the others are the samples as they are.
        area: The smallest part of an image's area that a crop takes.
        aspect: The largest ratio by which a crop is wider or higher than the result.
        flip: The part of the images that is reflected from left to right.
        mixup: The part of the batches whose images are mixed in pairs.
        alpha: The parameter of the Beta distribution of the weights of a mixture.
    """

    varied: float = 0.5
    area: float = 0.35
    aspect: float = 4 / 3
    flip: float = 0.5
    mixup: float = 0.5
    alpha: float = 0.8

    def applies(self) -> bool:
        """Draw whether the next batch is varied."""
        return _uniform() < self.varied

    def image(self, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """A random part of an image, scaled to a size; small images are shifted instead."""
        small = min(*size, *image.shape[1:]) < SMALL
        made = _shifted(image, size) if small else self._part(image, size)
        return made.flip(2) if _uniform() < self.flip else made

    def _part(self, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        from torch.nn.functional import interpolate

        height, width = image.shape[1:]
        aspect = size[1] / size[0] * math.exp((2 * _uniform() - 1) * math.log(self.aspect))
        area = (self.area + (1 - self.area) * _uniform()) * min(
            height * width, height * height * aspect, width * width / aspect
        )
        high = min(height, max(1, round(math.sqrt(area / aspect))))
        wide = min(width, max(1, round(math.sqrt(area * aspect))))
        top, left = _below(height - high + 1), _below(width - wide + 1)
        part = image[None, :, top : top + high, left : left + wide]
        shrinks = high > size[0] or wide > size[1]
        return interpolate(part, size, mode="bilinear", antialias=shrinks)[0]

    def mixed(
        self, images: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A batch with its images, and the probabilities of their classes, mixed in pairs."""
        import torch

        if len(images) < 2 or _uniform() >= self.mixup:
            return images, labels
        one, other = torch._standard_gamma(torch.full((2,), self.alpha)).tolist()
        share = one / (one + other) if one + other else 0.5
        order = torch.randperm(len(images))
        images = torch.lerp(images[order], images, share)
        return images, None if labels is None else torch.lerp(labels[order], labels, share)


def _shifted(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A crop of an image whose edges are repeated around it."""
    from torch.nn.functional import pad

    pads = [max(-(-side // _SHIFT), size[i] - side) for i, side in enumerate(image.shape[1:])]
    around = pad(image[None], (pads[1], pads[1], pads[0], pads[0]), mode="replicate")[0]
    top, left = (_below(around.shape[1 + i] - size[i] + 1) for i in range(2))
    return around[:, top : top + size[0], left : left + size[1]]


def _uniform() -> float:
    import torch

    return float(torch.rand(()))


def _below(count: int) -> int:
    import torch

    return int(torch.randint(0, count, ()))


__all__ = ["Augmentation"]

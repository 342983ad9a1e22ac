"""Batches of unlabelled samples for :func:`graphshrink.recover`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from ...data.unlabelled import UnlabelledSamples
from .augmentation import Augmentation

CHANNELS = (1, 3, 4)
"""The numbers of channels of images."""

_LEAST_SIDE = 8

Batch = tuple[tuple[torch.Tensor, ...], torch.Tensor | None]
"""The inputs of a network, and the probabilities of the classes if labels are known."""


class SampleBatches:
    """The training samples in random order; one iteration is an epoch.

    Args:
        samples: The samples.
        size: The number of samples in a batch; a smaller last batch is dropped. All samples of a batch have the same shape; where too few have one for
            a batch, there is a smaller one.
        augmentation: Random variants of images; ``None`` for the samples as they are.
        classes: The number of classes, if labels are used.
    """

    def __init__(
        self,
        samples: UnlabelledSamples,
        size: int,
        augmentation: Augmentation | None,
        classes: int | None,
    ) -> None:
        self.samples, self.size = samples, min(size, len(samples.training))
        self.augmentation, self.classes = augmentation, classes
        self.groups = samples.of_equal_shape(samples.training)
        self.image_size = _image_size(samples) if len(self.groups) == 1 else None

    def __len__(self) -> int:
        return sum(max(1, len(group) // self.size) for group in self.groups)

    def _numbers(self) -> Iterator[npt.NDArray[np.int64]]:
        """The samples of each batch of an epoch, in random order."""
        made = []
        for group in self.groups:
            order = group[torch.randperm(len(group)).numpy()]
            size = min(self.size, len(group))
            made += [order[i : i + size] for i in range(0, len(group) // size * size, size)]
        if len(self.groups) == 1:
            return iter(made)
        return (made[i] for i in torch.randperm(len(made)).tolist())

    def __iter__(self) -> Iterator[Batch]:
        for numbers in self._numbers():
            labels = None
            if self.samples.classes is not None and self.classes is not None:
                found = torch.from_numpy(self.samples.classes[numbers])
                labels = torch.nn.functional.one_hot(found, self.classes).float()
            if (
                self.augmentation is None
                or self.image_size is None
                or not self.augmentation.applies()
            ):
                inputs = tuple(torch.from_numpy(a) for a in self.samples.batch(numbers))
                yield inputs, labels
                continue
            size = self.image_size
            wide = (torch.tensor(self.samples.wide(int(i))) for i in numbers)
            images = torch.stack([self.augmentation.image(image, size) for image in wide])
            images, labels = self.augmentation.mixed(images, labels)
            yield (images,), labels


def _image_size(samples: UnlabelledSamples) -> tuple[int, int] | None:
    """Height and width of the samples if they are images: one float input with a few channels in front of two larger axes."""
    first = samples.sample(int(samples.training[0]))
    shape = first[0].shape
    images = len(first) == 1 and len(shape) == 3 and first[0].dtype.kind == "f"
    if not images or shape[0] not in CHANNELS or min(shape[1:]) < _LEAST_SIDE:
        return None
    return int(shape[1]), int(shape[2])


__all__ = ["SampleBatches"]

"""Batches of unlabelled samples for :func:`graphshrink.recover`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from ...data.unlabelled import UnlabelledSamples
from .variants import Batch, Variants


class SampleBatches:
    """The training samples in random order; one iteration is an epoch.

    Args:
        samples: The samples.
        size: The number of samples in a batch; a smaller last batch is dropped. All samples of a batch have the same shape; where too few have one for
            a batch, there is a smaller one.
        variants: Random variants of the samples; ``None`` for the samples as they are.
        classes: The number of classes, if labels are used.
    """

    def __init__(
        self,
        samples: UnlabelledSamples,
        size: int,
        variants: Variants | None,
        classes: int | None,
    ) -> None:
        self.samples, self.size = samples, min(size, len(samples.training))
        self.variants, self.classes = variants, classes
        self.groups = samples.of_equal_shape(samples.training)

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
            if self.variants is not None and self.variants.applies():
                yield self.variants.batch(numbers, self.size, labels)
            else:
                yield tuple(torch.from_numpy(a) for a in self.samples.batch(numbers)), labels


__all__ = ["SampleBatches"]

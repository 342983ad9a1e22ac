"""Batches of random variants of samples: images and texts."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...data.unlabelled import UnlabelledSamples
from ...ir import Graph, UsageError
from .augmentation import Augmentation
from .token_augmentation import TokenAugmentation, token_input, vocabulary_of

CHANNELS = (1, 3, 4)
"""The numbers of channels of images."""

_LEAST_SIDE = 8

BATCH_TOKENS = 512
"""Batches of variants of texts have this number of tokens or more, if no size is given: steps on fewer are noisy, and take nearly as long."""

Numbers = npt.NDArray[np.int64]
Batch = tuple[tuple[torch.Tensor, ...], torch.Tensor | None]
"""The inputs of a network, and the probabilities of the classes if labels are known."""


class Variants(Protocol):
    """Random variants of the samples of a batch.

    Attributes:
        note: What the user should know about them; empty for nothing.
    """

    note: str

    def applies(self) -> bool:
        """Draw whether the next batch is varied."""

    def batch(self, numbers: Numbers, size: int, labels: torch.Tensor | None) -> Batch:
        """Variants of some samples of equal shape.

        Args:
            numbers: The samples.
            size: The least number of samples of a full batch.
            labels: The probabilities of their classes.
        """


def variants(
    augment: bool | Augmentation | TokenAugmentation,
    samples: UnlabelledSamples,
    graph: Graph,
    sized: bool,
) -> Variants | None:
    """The variants that an option asks for; ``None`` if there are none, or the samples are no images.

    Args:
        augment: As for :func:`graphshrink.recover_file`.
        samples: The samples.
        graph: The graph that takes them.
        sized: Whether the number of samples of a batch is given.

    Raises:
        UsageError: If variants of tokens are wanted that the samples do not have.
    """
    if isinstance(augment, TokenAugmentation):
        return TokenVariants(augment, samples, graph, 0 if sized else BATCH_TOKENS)
    size = _image_size(samples)
    if augment is False or size is None:
        return None
    return ImageVariants(Augmentation() if augment is True else augment, samples, size)


class ImageVariants:
    """Crops, reflections and mixtures of images; see :class:`.augmentation.Augmentation`."""

    note = ""

    def __init__(
        self, augmentation: Augmentation, samples: UnlabelledSamples, size: tuple[int, int]
    ) -> None:
        self.augmentation, self.samples, self.size = augmentation, samples, size

    def applies(self) -> bool:
        """Draw whether the next batch is varied."""
        return self.augmentation.applies()

    def batch(self, numbers: Numbers, size: int, labels: torch.Tensor | None) -> Batch:
        """Variants of some images; see :class:`Variants`."""
        wide = (torch.tensor(self.samples.wide(int(i))) for i in numbers)
        images = torch.stack([self.augmentation.image(image, self.size) for image in wide])
        images, labels = self.augmentation.mixed(images, labels)
        return (images,), labels


class TokenVariants:
    """Spans of joined texts with some tokens replaced; see :class:`.token_augmentation.TokenAugmentation`.

    Batches are filled up: texts of a rare length are taken several times, because each variant is another text.

    Args:
        augmentation: What is varied.
        samples: The samples.
        graph: The graph that takes them.
        tokens: The least number of tokens of a batch.

    Attributes:
        place: The place of the input with the ids.
        kept: The ids that stay where they are.
        vocabulary: Random tokens are ids below this number.
    """

    def __init__(
        self,
        augmentation: TokenAugmentation,
        samples: UnlabelledSamples,
        graph: Graph,
        tokens: int = 0,
    ) -> None:
        self.augmentation, self.samples, self.tokens = augmentation, samples, tokens
        self.place = token_input(graph, samples.names, augmentation.input)
        self.vocabulary = self._vocabulary(graph)
        texts = [samples.sample(int(i))[self.place] for i in samples.training]
        self.kept = _fillers(texts) | _equally_often(texts)
        self.free = [text[~self._stay(text)] for text in texts]
        if not any(map(len, self.free)):
            raise UsageError(
                f"all tokens of input {samples.names[self.place]!r} are the same in all samples: there is nothing to vary"
            )
        kept = sorted(self.kept)
        self.replacements = np.setdiff1d(np.arange(self.vocabulary), np.array(kept, np.int64))
        shown = ", ".join(map(str, kept[:8])) + (", ..." if len(kept) > 8 else "")
        self.note = (
            f"the tokens of input {samples.names[self.place]!r} were varied at random, with ids below {self.vocabulary}; "
            + (f"the ids {shown} stayed where they are" if kept else "none stayed where it is")
        )

    def _vocabulary(self, graph: Graph) -> int:
        rows = vocabulary_of(graph.inputs[self.place])
        given = self.augmentation.vocabulary
        if given is not None and rows is not None and given > rows:
            raise UsageError(
                f"TokenAugmentation: vocabulary is {given}, but the model looks ids up in a table of {rows} rows"
            )
        found = given or rows
        if found is None:
            raise UsageError(
                f"input {self.samples.names[self.place]!r} is not looked up in a table, so that the ids of its tokens are not known: give "
                "TokenAugmentation(vocabulary=...), or another input"
            )
        return found

    def _stay(self, text: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.isin(text, list(self.kept))

    def applies(self) -> bool:
        """Draw whether the next batch is varied."""
        return float(torch.rand(())) < self.augmentation.varied

    def batch(self, numbers: Numbers, size: int, labels: torch.Tensor | None) -> Batch:
        """Variants of some texts, as many as fill a batch; see :class:`Variants`."""
        length = len(self.samples.sample(int(numbers[0]))[self.place])
        rows = max(size, -(-self.tokens // length))
        arrays = list(self.samples.batch(np.resize(numbers, rows)))
        arrays[self.place] = np.stack([self._variant(text) for text in arrays[self.place]])
        return tuple(torch.from_numpy(a) for a in arrays), labels

    def _variant(self, text: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        places = np.flatnonzero(~self._stay(text))
        share, joins = torch.rand(2).tolist()
        free = self._span(len(places)) if joins < self.augmentation.joined else text[places]
        hit = torch.rand(len(places)).numpy() < share * self.augmentation.replaced
        drawn = torch.randint(len(self.replacements), (len(places),)).numpy()
        made = text.copy()
        made[places] = np.where(hit, self.replacements[drawn], free)
        return made

    def _span(self, count: int) -> npt.NDArray[np.int64]:
        """A random span of the samples in a random order."""
        first = self._drawn()
        parts = [first[int(torch.randint(len(first) + 1, ())) :]]
        while sum(map(len, parts)) < count:
            parts.append(self._drawn())
        return np.concatenate(parts)[:count]

    def _drawn(self) -> npt.NDArray[np.int64]:
        return self.free[int(torch.randint(len(self.free), ()))]


def _fillers(texts: list[npt.NDArray[np.int64]]) -> set[int]:
    """The tokens that stand at an end of some sample more than once in a row."""
    ends = [side for text in texts for side in (text[:2], text[-2:]) if len(text) > 2]
    return {int(side[0]) for side in ends if side[0] == side[1]}


def _equally_often(texts: list[npt.NDArray[np.int64]]) -> set[int]:
    """The tokens that all samples have, and have equally often."""
    counts = [dict(zip(*np.unique(text, return_counts=True), strict=True)) for text in texts]
    return {
        int(token)
        for token, count in counts[0].items()
        if all(c.get(token) == count for c in counts)
    }


def _image_size(samples: UnlabelledSamples) -> tuple[int, int] | None:
    """Height and width of the samples if they are images: one float input with a few channels in front of two larger axes."""
    if len(samples.of_equal_shape(samples.training)) > 1:
        return None
    first = samples.sample(int(samples.training[0]))
    shape = first[0].shape
    images = len(first) == 1 and len(shape) == 3 and first[0].dtype.kind == "f"
    if not images or shape[0] not in CHANNELS or min(shape[1:]) < _LEAST_SIDE:
        return None
    return int(shape[1]), int(shape[2])


__all__ = ["Batch", "ImageVariants", "TokenVariants", "Variants", "variants"]

"""Samples that a network learns from without labels: some for training, some held out to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ir import Graph, UsageError
from ..ir.errors import counted
from .calibration import CalibrationData, GraphCalibration
from .images import Preprocess
from .sources import Array, ImageFolder, samples_of, some_samples

Sample = tuple[Array, ...]
"""One array for each input of the model, in order, without the axis of samples."""

LEAST = 16
"""The smallest number of samples."""

_HELD = 8
"""One sample of this number is held out."""

_MOST_HELD = 256


@dataclass(frozen=True)
class UnlabelledSamples:
    """Samples for the inputs of a model.

    Attributes:
        names: The names of the inputs.
        training: The numbers of the samples to train on.
        held: The numbers of those that are held out, spread evenly over all; samples of equal shape are next to each other.
        labels: The class of each sample, ``(N,)`` int64, or other targets ``(N, ...)``; ``None`` if not known.
        fixed: The batch size that the model fixes, if it does.
    """

    names: tuple[str, ...]
    training: npt.NDArray[np.int64]
    held: npt.NDArray[np.int64]
    labels: Array | None
    fixed: int | None
    _samples: _Arrays | _Files

    @property
    def classes(self) -> npt.NDArray[np.int64] | None:
        """The labels if they are classes."""
        return None if self.labels is None or not _are_classes(self.labels) else self.labels

    def sample(self, number: int) -> Sample:
        """A sample as the model takes it."""
        return self._samples.sample(number)

    def wide(self, number: int) -> Array:
        """The only input of a sample, an image in front of its crop where there is one."""
        return self._samples.wide(number)

    def batch(self, numbers: Sequence[int] | npt.NDArray[np.int64]) -> Sample:
        """Some samples as a batch, as the model takes it."""
        return self._samples.batch([self.sample(int(i)) for i in numbers])

    def held_batches(self, size: int) -> list[Sample]:
        """The samples that are held out, in batches of equal shapes and in their order."""
        return [
            self.batch(same[i : i + size])
            for same in self.of_equal_shape(self.held)
            for i in range(0, len(same), size)
        ]

    def of_equal_shape(
        self, numbers: Sequence[int] | npt.NDArray[np.int64]
    ) -> list[npt.NDArray[np.int64]]:
        """Samples in groups whose inputs have the same shapes, such as texts of equal length; the order inside a group stays."""
        return _of_equal_shape(self._samples, numbers)


def read_unlabelled(
    graph: Graph, data: Any, labels: Any = None, *, targets: bool = False
) -> UnlabelledSamples:
    """Read samples for a graph from ONNX and hold some of them out.

    Args:
        graph: The graph.
        data: As ``calibration`` of :func:`graphshrink.shrink`.
        labels: The classes of the samples, in their order: an array or an ``.npy`` file; ``"folders"`` for images in one folder
            for each class, which are numbered in alphabetical order.
        targets: Labels may be any numbers, with the first axis of the samples.

    Raises:
        UsageError: If there are too few samples, they do not fit the model, or labels do not fit them.
    """
    given = data if isinstance(data, CalibrationData) else CalibrationData(data)
    bound = GraphCalibration(graph, "onnx", given, None)
    if isinstance(bound.source, ImageFolder):
        found: _Arrays | _Files = _Files(bound.source)
    else:
        found = _arrays(bound)
    count, fixed = len(found), bound.fixed
    if count < LEAST:
        raise UsageError(
            f"{bound.source.name} has {counted(count, 'sample')}; recovery needs at least {LEAST}, and some hundreds are better"
        )
    step = max(_HELD, -(-count // _MOST_HELD))
    held = np.arange(step // 2, count, step)
    if fixed and fixed > 1:
        if count < 2 * fixed:
            raise UsageError(
                f"{bound.source.name} has {counted(count, 'sample')}, and the model takes batches of {fixed}: recovery needs two batches"
            )
        if len(_of_equal_shape(found, np.arange(count))) > 1:
            raise UsageError(
                f"the model takes batches of {fixed}, and the samples of {bound.source.name} have different shapes: give samples of one shape"
            )
        wanted = max(1, len(held) // fixed) * fixed
        held = np.linspace(0, count - 1, wanted).round().astype(np.int64)
    training = np.setdiff1d(np.arange(count), held)
    held = np.concatenate(_of_equal_shape(found, held))
    names = tuple(bound.inputs.names)
    known = _labels(labels, found, count, targets)
    return UnlabelledSamples(names, training, held, known, fixed, found)


class _Arrays:
    """Samples in memory.

    Args:
        samples: The samples.
        shared: For each input, whether it has no axis of samples, so that a batch has one of it.
    """

    def __init__(self, samples: list[Sample], shared: Sequence[bool]) -> None:
        self.samples, self.shared = samples, shared

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, number: int) -> Sample:
        return self.samples[number]

    def wide(self, number: int) -> Array:
        return self.samples[number][0]

    def batch(self, samples: Sequence[Sample]) -> Sample:
        columns = zip(zip(*samples, strict=True), self.shared, strict=True)
        return tuple(
            np.array(column[0]) if for_all else np.stack(column) for column, for_all in columns
        )

    def shapes(self, number: int) -> tuple[Any, ...]:
        # What holds for all samples of a batch must be the same for them.
        pairs = zip(self.samples[number], self.shared, strict=True)
        return tuple(array.tobytes() if for_all else array.shape for array, for_all in pairs)


class _Files:
    """Image files, which are read each time."""

    def __init__(self, source: ImageFolder) -> None:
        self.files, self.type, self.recipe = source.files, source.type, source.recipe
        self.uncropped: Preprocess = replace(self.recipe, crop=None)

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, number: int) -> Sample:
        return (self.recipe.sample(self.files[number], self.type),)

    def wide(self, number: int) -> Array:
        return self.uncropped.sample(self.files[number], self.type)

    def batch(self, samples: Sequence[Sample]) -> Sample:
        return tuple(np.stack(column) for column in zip(*samples, strict=True))

    def shapes(self, number: int) -> tuple[Any, ...]:
        return ()  # The recipe gives all images one size.


def _of_equal_shape(
    samples: _Arrays | _Files, numbers: Sequence[int] | npt.NDArray[np.int64]
) -> list[npt.NDArray[np.int64]]:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number in numbers:
        groups.setdefault(samples.shapes(int(number)), []).append(int(number))
    return [np.array(group, np.int64) for group in groups.values()]


def _arrays(bound: GraphCalibration) -> _Arrays:
    """All samples of calibration data, in memory."""
    samples: list[Sample] = []
    shared: tuple[bool, ...] = ()
    for batch in bound.batches():
        shared = bound.source.shared(batch)
        count = bound.source.divisible(batch) if bound.fixed is None else samples_of(batch, shared)
        if not count:
            shapes = ("x".join(map(str, array.shape)) or "a scalar" for array in batch)
            raise UsageError(
                f"{bound.source.name}: recovery needs inputs whose first axes are the samples; the inputs "
                f"{', '.join(bound.inputs.names)} have the shapes {', '.join(shapes)}"
            )
        samples += [tuple(some_samples(batch, shared, i)) for i in range(count)]
    return _Arrays(samples, shared)


def _labels(given: Any, samples: _Arrays | _Files, count: int, targets: bool) -> Array | None:
    if given is None:
        return None
    if isinstance(given, str) and given == "folders":
        if not isinstance(samples, _Files):
            raise UsageError("labels 'folders' are for a folder of images")
        names = [path.parent.name for path in samples.files]
        classes = {name: i for i, name in enumerate(sorted(set(names)))}
        return np.array([classes[name] for name in names])
    found = _loaded(Path(given)) if isinstance(given, str | Path) else np.asarray(given)
    if targets and found.shape[:1] == (count,) and found.dtype.kind in "biuf":
        return found.astype(np.int64) if _are_classes(found) else found
    if found.shape != (count,) or not _are_classes(found):
        what = "numbers" if targets else "whole numbers from 0 on"
        raise UsageError(
            f"labels are {what}, one for each of the {count} samples, not "
            f"{found.dtype} of shape {'x'.join(map(str, found.shape)) or 'a scalar'}"
        )
    return found.astype(np.int64)


def _are_classes(labels: Array) -> bool:
    return labels.ndim == 1 and labels.dtype.kind in "iu" and bool((labels >= 0).all())


def _loaded(path: Path) -> Array:
    if not path.exists():
        raise UsageError(f"{path}: no such file of labels")
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} is not an .npy file of labels") from error
    if not isinstance(found, np.ndarray):
        raise UsageError(f"{path} is not an .npy file of labels")
    return found


__all__ = ["LEAST", "Sample", "UnlabelledSamples", "read_unlabelled"]

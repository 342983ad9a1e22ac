"""Calibration data for a model: open them, check them against its inputs, make batches, run graphs on these."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..ir import DType, Graph, TensorType, UsageError, Value
from ..ir.errors import counted
from ..passes import Calibration
from ..running.inner_values import fx_values, onnx_values
from .images import SUFFIXES, Preprocess
from .sources import (
    Array,
    ArraySource,
    Block,
    ImageFolder,
    Inputs,
    IterableSource,
    NpyFolder,
    NpzSource,
    Source,
    files_of,
    limited,
    rebatch,
    some_samples,
)

BATCH_SIZE = 32
"""The number of samples in a batch if the model does not fix it."""

CACHE_BYTES = 1 << 30
"""The largest size of all batches that are cached in memory, so that images are decoded once."""


@dataclass(frozen=True)
class CalibrationData:
    """Data on which a model is run to collect statistics of its values, with options for reading them.

    Attributes:
        data: An ``.npz`` file with arrays by input name; a folder of ``.npy`` files or images; a dict of arrays by
            input name, or one array (samples along the first axis); or any iterable of batches, each a
            tuple, a dict by name, or one tensor or array.
        samples: The largest number of samples to use; evenly spaced files of a folder of samples, else the first samples.
        batch_size: The number of samples in a batch; if not given, the model's fixed batch size, or 32. Batches of
            an iterable are used unchanged.
        preprocess: The conversion of images to samples: a :class:`graphshrink.data.images.Preprocess` or its text.
    """

    data: Any
    samples: int | None = None
    batch_size: int | None = None
    preprocess: Preprocess | str | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"calibration: {name} must be at least 1, not {value}")


def calibrated(
    graph: Graph,
    kind: str,
    data: Any,
    progress: Callable[[int, int, str], None] | None = None,
) -> Calibration:
    """Calibration data in the form that passes use, for a graph that was just imported.

    The first batch is read and checked immediately.

    Args:
        graph: The graph.
        kind: ``"onnx"`` or ``"fx"``.
        data: A :class:`CalibrationData`, or any value of its attribute ``data``.
        progress: Called with (done, total, what).

    Raises:
        UsageError: If there are no samples, or they do not fit the inputs of the graph.
    """
    if isinstance(data, Calibration):
        return data
    given = data if isinstance(data, CalibrationData) else CalibrationData(data)
    return GraphCalibration(graph, kind, given, progress)


def named_batches(graph: Graph, data: Any) -> Iterator[dict[str, Array]]:
    """The batches of calibration data as arrays by input name, for a graph from ONNX.

    Args:
        graph: The graph; its inputs must be those of the model.
        data: As for :func:`calibrated`.

    Raises:
        UsageError: If there are no samples, or they do not fit the inputs of the graph.
    """
    given = data if isinstance(data, CalibrationData) else CalibrationData(data)
    bound = GraphCalibration(graph, "onnx", given, None)
    names = [v.host if isinstance(v.host, str) else v.name for v in graph.inputs]
    for batch in bound.batches():
        yield dict(zip(names, batch, strict=True))


def check_varied(batches: Iterable[Sequence[Array]], count: int) -> None:
    """Check that samples differ.

    Args:
        batches: The samples that a network is judged by, in batches of one array for each input.
        count: The number of all samples.

    Raises:
        UsageError: If all of them are the same, so that every network whose output fits that one sample seems to be as good as the original.
    """
    first: list[Array] | None = None
    size = 0
    for batch in batches:
        arrays = [array if array.ndim else array[None] for array in batch]
        if first is None:
            first = [array[:1] for array in arrays]
        if any(
            one.shape[1:] != array.shape[1:] or not (array == one).all()
            for one, array in zip(first, arrays, strict=True)
        ):
            return
        size += len(arrays[0]) if arrays else 0
    if size > 1:
        raise UsageError(
            f"the {counted(count, 'sample')} are all the same, so that a loss says nothing: give different ones, "
            "or look at how they are made (a folder of images may need other --preprocess)"
        )


class GraphCalibration(Calibration):
    """Calibration data that are checked against the inputs of one graph; the first batch is read immediately.

    Attributes:
        inputs: Names and types of the inputs.
        source: The data before they are divided into batches.
        fixed: The batch size that the model fixes, if it does.
    """

    def __init__(
        self,
        graph: Graph,
        kind: str,
        given: CalibrationData,
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        if progress is not None:
            self.progress = progress  # type: ignore[method-assign]
        self.run = fx_values if kind == "fx" else onnx_values
        taken = [v for v in graph.inputs if kind == "onnx" or not graph.host.order[v.host].args]
        if not taken:
            raise UsageError("the model has no inputs for calibration data")
        self.inputs = Inputs(tuple(v.name for v in taken), tuple(v.type for v in taken))
        self.given = given
        # A module that was traced with examples accepts other sizes too.
        self.any_size = kind == "fx" and graph.host.inputs is not None
        self.source = source = _opened(given, self.inputs)
        self.fixed = source.shared_batch if self.any_size else source.batch_size
        if self.fixed and given.batch_size not in (None, self.fixed):
            raise UsageError(
                f"the model, or an array for all samples, takes batches of {self.fixed}, so batch_size cannot be {given.batch_size}"
            )
        self.size = self.fixed or given.batch_size or BATCH_SIZE
        self.cached: list[Block] | None = None
        if isinstance(given.data, Iterator):
            self.cached = _collected(self._read())
        if next(iter(self.batches()), None) is None:
            few = (
                f" enough for a batch of {self.fixed}" if self.fixed and self.source.samples else ""
            )
            raise UsageError(f"{self.source.name}: there are no samples{few}")

    @property
    def batch_count(self) -> int:
        """The number of batches; 0 if it is not known."""
        if self.cached is not None:
            return len(self.cached)
        samples = self.source.samples
        if samples is None:
            return 0
        samples = samples if self.given.samples is None else min(samples, self.given.samples)
        return samples // self.size if self.fixed else -(-samples // self.size)

    def stream(self, graph: Graph, values: Sequence[Value]) -> Iterator[tuple[Array, ...]]:
        """The wanted values of a graph for each batch."""
        yield from self.run(graph, values, self.batches())

    def split(self, every: int) -> tuple[Calibration, Calibration]:
        """Two parts: what is fitted to, and every ``every``-th sample (or batch, where the model fixes its size) to judge with.

        Raises:
            UsageError: If there are too few samples for two parts, or all of those to judge with are the same.
        """
        sizes = [
            self.source.divisible(batch) if self.fixed is None else 0 for batch in self.batches()
        ]
        count, place = sum(size or 1 for size in sizes), every // 2
        if count <= place:
            batches = "1 batch" if count == 1 else f"{count} batches"
            had = counted(count, "sample") if all(sizes) else batches
            raise UsageError(
                f"{self.source.name}: {had} {'is' if count == 1 else 'are'} too few to judge with some of them; "
                f"at least {place + 1} are needed, some hundreds are better"
            )
        held = _Part(self, sizes, every, place, True)
        # One sample to judge with says nothing about others; all of them do.
        check_varied(
            held.batches() if len(range(place, count, every)) > 1 else self.batches(), count
        )
        return _Part(self, sizes, every, place, False), held

    def batches(self) -> Iterator[Block]:
        """The batches, with an array for each input."""
        if self.cached is not None:
            yield from self.cached
            return
        cached: list[Block] | None = []
        size = 0
        for batch in self._read():
            size += sum(array.nbytes for array in batch)
            if cached is not None and size <= CACHE_BYTES:
                cached.append(batch)
            else:
                cached = None
            yield batch
        self.cached = cached

    def _read(self) -> Iterator[Block]:
        exact = self.fixed is not None
        blocks = limited(self.source, self.source.blocks(self.size), self.given.samples, exact)
        if not self.source.whole:
            blocks = rebatch(self.source, blocks, self.size, exact)
        for batch in blocks:
            for name, type_, array in zip(*vars(self.inputs).values(), batch, strict=True):
                self._check(name, type_, array)
            yield batch

    def _check(self, name: str, type_: TensorType, array: Array) -> None:
        where = f"{self.source.name}: input {name!r}"
        wanted = type_.dtype
        if wanted not in (None, DType.STRING) and array.dtype != wanted.numpy:
            raise UsageError(
                f"{where} takes {wanted.numpy}, not {array.dtype}; convert it with "
                f".astype('{wanted.numpy}')"
            )
        shape = type_.shape
        if self.any_size and shape is not None:
            shape = (None,) * len(shape)
        if not type_.with_shape(shape).accepts(TensorType(wanted, array.shape)):
            shown = "x".join(map(str, array.shape)) or "a scalar"
            hint = (
                ' (give --preprocess "resize=...,crop=...")'
                if isinstance(self.source, ImageFolder)
                else ""
            )
            raise UsageError(f"{where} takes {type_}, not {shown}{hint}")
        if not array.size:
            raise UsageError(f"{where} has a batch without elements")
        wide = array.astype(np.float32) if array.dtype.kind == "V" else array
        if wide.dtype.kind in "fc" and not np.isfinite(wide).all():
            raise UsageError(f"{where} contains NaN or infinite numbers")


class _Part(Calibration):
    """Every n-th sample of calibration data, or all others.

    Args:
        whole: The data.
        sizes: The number of samples of each batch; 0 for a batch that cannot be divided.
        every: The number n.
        place: The first sample of those.
        held: Whether it is every n-th sample.
    """

    def __init__(
        self, whole: GraphCalibration, sizes: Sequence[int], every: int, place: int, held: bool
    ) -> None:
        self.whole = whole
        self.chosen: list[list[int]] = []
        start = 0
        for size in sizes:
            places = range(start, start + max(size, 1))
            chosen = [i - start for i in places if (i % every == place) == held]
            self.chosen.append(chosen)
            start += max(size, 1)
        self.sizes = list(sizes)

    @property
    def batch_count(self) -> int:
        """The number of batches with some samples."""
        return sum(map(bool, self.chosen))

    @property
    def samples(self) -> list[int]:
        """The number of samples of each batch; 0 for a batch that cannot be divided."""
        parts = zip(self.sizes, self.chosen, strict=True)
        return [len(chosen) if size else 0 for size, chosen in parts if chosen]

    def stream(self, graph: Graph, values: Sequence[Value]) -> Iterator[tuple[Array, ...]]:
        """The wanted values of a graph for each batch."""
        yield from self.whole.run(graph, values, self.batches())

    def batches(self) -> Iterator[Block]:
        """The batches of this part."""
        parts = zip(self.whole.batches(), self.sizes, self.chosen, strict=True)
        for batch, size, chosen in parts:
            if chosen:
                shared = self.whole.source.shared(batch)
                yield some_samples(batch, shared, chosen) if size else list(batch)


def _opened(given: CalibrationData, inputs: Inputs) -> Source:
    data, recipe = given.data, given.preprocess
    if isinstance(recipe, str):
        recipe = Preprocess.parse(recipe)
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        if not path.exists():
            raise UsageError(f"{path}: No such file or directory")
        images = files_of(path, SUFFIXES) if path.is_dir() else []
        arrays = files_of(path, {".npy"}) if path.is_dir() else []
        if images and arrays:
            raise UsageError(f"{path} has both images and .npy files: {images[0]}, {arrays[0]}")
        if images:
            return ImageFolder(path, inputs, recipe or Preprocess(), given.samples)
        if recipe is not None:
            raise UsageError(f"{path}: preprocess is for a folder of images, and there are none")
        if arrays:
            return NpyFolder(path, inputs, given.samples)
        if path.is_dir():
            raise UsageError(f"{path} has neither .npy files nor images")
        if path.suffix != ".npz":
            raise UsageError(
                f"{path}: calibration data are an .npz file, or a folder of .npy files or images"
            )
        return NpzSource(path, inputs)
    if recipe is not None:
        raise UsageError("preprocess is for a folder of images")
    if isinstance(data, Mapping):
        return ArraySource(data, inputs)
    if hasattr(data, "shape") and hasattr(data, "dtype"):
        if len(inputs.names) != 1:
            names = ", ".join(inputs.names)
            raise UsageError(f"one array was given for calibration, the model has inputs {names}")
        return ArraySource({inputs.names[0]: data}, inputs)
    if isinstance(data, Iterable):
        return IterableSource(data, inputs)
    raise UsageError(
        f"a {type(data).__name__} cannot be calibration data: give a path, arrays, or an iterable of batches"
    )


def _collected(batches: Iterator[Block]) -> list[Block]:
    """The batches of an iterator, which can be iterated only once, as a list.

    Raises:
        UsageError: If they are larger than the cache.
    """
    found, size = [], 0
    for batch in batches:
        size += sum(array.nbytes for array in batch)
        if size > CACHE_BYTES:
            raise UsageError(
                f"the calibration data can be read only once and take more than {CACHE_BYTES >> 20} MiB: "
                "give an iterable that can be iterated again (a list, a DataLoader), or fewer samples"
            )
        found.append(batch)
    return found

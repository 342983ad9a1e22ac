"""Sources of calibration data: arrays, ``.npz`` files, folders of ``.npy`` files or images, iterables of batches.

Every source yields *blocks*: lists with one array for each input of the model, all with the same number of samples
along their first axis, but for those that hold for all samples (:func:`shared_arrays`). Data are read when they are needed, and pickles are never loaded.
"""

from __future__ import annotations

import itertools
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from zipfile import BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from ..ir import TensorType, UsageError
from ..ir.errors import check_readable, counted
from .images import SUFFIXES, Preprocess

Array = npt.NDArray[Any]
Block = list[Array]
T = TypeVar("T")

_UNREADABLE = (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class Inputs:
    """The names and types of a model's inputs, in order."""

    names: tuple[str, ...]
    types: tuple[TensorType, ...]


def shared_arrays(
    types: Sequence[TensorType], shapes: Sequence[tuple[int, ...]]
) -> tuple[bool, ...]:
    """For each input, whether its array holds for all samples, such as a sampling rate: it has no axis of samples.

    These are scalars, and arrays whose first size is the one that the model fixes for this input, while that of another array is
    not: the model leaves it open, or there are more rows. Where all first sizes are the fixed ones, and they differ, the arrays are one batch.
    An array whose fixed first size, other than 1, is also that of an input with more rows is not shared: rows are missing.

    Args:
        types: The types of the inputs.
        shapes: The shapes of their arrays.
    """
    pairs = list(zip(types, shapes, strict=True))
    firsts = [(t.dim(0), shape[0]) for t, shape in pairs if t.rank and shape]
    others = {fixed for fixed, size in firsts if fixed != size}
    apart = others or len(set(firsts)) > 1
    own = {fixed for fixed, size in firsts if fixed == size and (fixed == 1 or fixed not in others)}
    return tuple(
        not shape
        if t.rank == 0
        else bool(apart and t.rank and shape and shape[0] == t.dim(0) and shape[0] in own)
        for t, shape in pairs
    )


def samples_of(block: Sequence[Array], shared: Sequence[bool]) -> int:
    """The number of samples of a block; 0 if its arrays have different numbers, or none has an axis of samples."""
    pairs = zip(block, shared, strict=True)
    sizes = {len(array) if array.ndim else 0 for array, for_all in pairs if not for_all}
    return sizes.pop() if len(sizes) == 1 else 0


def some_samples(block: Sequence[Array], shared: Sequence[bool], which: Any) -> Block:
    """Some samples of a block, by a slice or their numbers; arrays that hold for all samples stay whole."""
    return [a if for_all else a[which] for a, for_all in zip(block, shared, strict=True)]


class Source(ABC):
    """Calibration data before they are divided into batches.

    Attributes:
        name: The name of the source in errors.
        samples: The number of samples; ``None`` if unknown.
        whole: Whether each block is a batch, which must not be divided.
        inputs: The inputs of the model.
        shapes: The shapes of whole arrays, or of those of the first files, where they are known.
    """

    name = "the calibration data"
    samples: int | None = None
    whole = False
    inputs: Inputs
    shapes: Sequence[tuple[int, ...]] = ()

    @property
    def batch_size(self) -> int | None:
        """The batch size that the model fixes, or else :attr:`shared_batch`; ``None`` if any fits."""
        if not self.shapes:
            sizes = {t.dim(0) for t in self.inputs.types if t.rank}
        else:
            pairs = zip(self.inputs.types, self.shared(()), strict=True)
            sizes = {t.dim(0) for t, for_all in pairs if t.shape and not for_all}
        return (sizes.pop() or self.shared_batch) if len(sizes) == 1 else self.shared_batch

    @property
    def shared_batch(self) -> int | None:
        """The batch size of the arrays that hold for all samples, such as the first state of a recurrent layer; ``None`` if they have none."""
        shared = self.shared(()) if self.shapes else ()
        batch = self._batch_dims(shared)
        sizes = {
            size
            for t, shape, for_all in zip(self.inputs.types, self.shapes, shared, strict=False)
            if for_all
            for dim, size in zip((t.shape or ())[1:], shape[1:], strict=False)
            if dim is not None and dim in batch and (isinstance(dim, str) or size > 1)
        }
        return (sizes.pop() or None) if len(sizes) == 1 else None

    def _batch_dims(self, shared: Sequence[bool]) -> set[Any]:
        """The first sizes, or their symbols, of the inputs with an axis of samples."""
        pairs = zip(self.inputs.types, shared, strict=False)
        return {t.shape[0] for t, for_all in pairs if t.shape and not for_all}

    def shared(self, block: Sequence[Array]) -> tuple[bool, ...]:
        """For each array of a block, whether it holds for all samples."""
        shapes = self.shapes or [array.shape for array in block]
        return shared_arrays(self.inputs.types, shapes)

    def divisible(self, block: Sequence[Array]) -> int:
        """The number of samples of a block of which some can be taken; 0 if none can: first sizes differ, or a shared array is for this batch size."""
        shared = self.shared(block)
        count, batch = samples_of(block, shared), self._batch_dims(shared)
        for t, array, for_all in zip(self.inputs.types, block, shared, strict=True):
            for dim, size in zip(t.shape or (), array.shape, strict=False):
                open_ = dim is None or (None in batch and not isinstance(dim, int))
                if for_all and size == count > 1 and (open_ or dim in batch):
                    return 0
        return count

    def count(self, block: Sequence[Array]) -> int:
        """The number of samples of a block; that of its first array with axes if first sizes differ."""
        found = samples_of(block, self.shared(block))
        return found or next((len(array) for array in block if array.ndim), 1)

    @abstractmethod
    def blocks(self, size: int) -> Iterator[Block]:
        """The data in order, in blocks of about ``size`` samples."""


class ArraySource(Source):
    """Arrays by input name, or one array for the only input, with samples along the first axis."""

    def __init__(self, arrays: Mapping[str, Any], inputs: Inputs) -> None:
        _check_names(self.name, arrays, inputs)
        self.inputs = inputs
        self.arrays = [array_of(arrays[name]) for name in inputs.names]
        self.shapes = [a.shape for a in self.arrays]
        self.samples = _same_count(self.name, inputs, self.shapes, self.shared(()))

    def blocks(self, size: int) -> Iterator[Block]:
        """Slices of the arrays."""
        assert self.samples is not None
        shared = self.shared(self.arrays)
        for lo in range(0, self.samples, size):
            yield some_samples(self.arrays, shared, slice(lo, lo + size))


class NpzSource(Source):
    """An ``.npz`` file with an array for each input; a block of samples is read at a time."""

    def __init__(self, path: Path, inputs: Inputs) -> None:
        self.name, self.path, self.inputs = str(path), path, inputs
        check_readable(path)
        try:
            with ZipFile(path) as file:
                names = [n.removesuffix(".npy") for n in file.namelist()]
                _check_names(self.name, names, inputs)
                self.shapes = [_Member(file, n, self.name).shape for n in inputs.names]
        except _UNREADABLE as error:
            raise _unreadable(path, "an .npz file of arrays", error) from error
        self.samples = _same_count(self.name, inputs, self.shapes, self.shared(()))

    def blocks(self, size: int) -> Iterator[Block]:
        """The next rows of every array."""
        try:
            with ZipFile(self.path) as file:
                members = [_Member(file, n, self.name) for n in self.inputs.names]
                shared = self.shared(())
                whole = {m: m.rest() for m, for_all in zip(members, shared, strict=True) if for_all}
                for _ in range(0, self.samples or 0, size):
                    yield [whole[m] if m in whole else m.read(size) for m in members]
        except _UNREADABLE as error:
            raise _unreadable(self.path, "an .npz file of arrays", error) from error


class _Member:
    """An array in an open ``.npz`` file; its rows are read in order."""

    def __init__(self, file: ZipFile, name: str, where: str) -> None:
        self.left = 0
        stored = name if name in file.namelist() else f"{name}.npy"
        self.stream: IO[bytes] = file.open(stored)
        version = np.lib.format.read_magic(self.stream)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise UsageError(f"{where}: array {name!r} has a header of version {version}")
        self.shape, fortran, self.dtype = readers[version](self.stream)
        if self.dtype.hasobject:
            raise UsageError(
                f"{where}: array {name!r} contains Python objects, which are not loaded"
            )
        if fortran and len(self.shape) > 1:
            raise UsageError(
                f"{where}: array {name!r} is in Fortran order; save np.ascontiguousarray of it"
            )
        self.left = self.shape[0] if self.shape else 0
        size = self.dtype.itemsize * math.prod(self.shape)
        if file.getinfo(stored).file_size < size:
            raise UsageError(f"{where}: array {name!r} is truncated")

    def read(self, rows: int) -> Array:
        """The next rows."""
        rows = min(rows, self.left)
        self.left -= rows
        return self._array((rows, *self.shape[1:]))

    def rest(self) -> Array:
        """The whole array; it may be a scalar."""
        self.left = 0
        return self._array(self.shape)

    def _array(self, shape: tuple[int, ...]) -> Array:
        size = self.dtype.itemsize * math.prod(shape)
        data = self.stream.read(size)
        if len(data) < size:
            raise EOFError
        return np.frombuffer(data, self.dtype).reshape(shape)


class NpyFolder(Source):
    """A folder of ``.npy`` files; for several inputs, a folder with one such folder for each, matched by file name.

    A file is a batch if it has as many axes as the input, and one sample if it has one axis less.
    """

    def __init__(self, folder: Path, inputs: Inputs, limit: int | None) -> None:
        self.name, self.inputs = str(folder), inputs
        apart = len(inputs.names) > 1 or (folder / inputs.names[0]).is_dir()
        folders = {n: folder / n if apart else folder for n in inputs.names}
        for name, place in folders.items():
            if not place.is_dir():
                raise UsageError(
                    f"{folder}: the model has {len(inputs.names)} inputs, and there is no folder "
                    f"{name!r} of .npy files for one of them"
                )
        found = {n: {p.name: p for p in files_of(f, {".npy"})} for n, f in folders.items()}
        first = next(iter(found.values()))
        for name, files in found.items():
            odd = sorted(files.keys() ^ first.keys())
            if odd:
                raise UsageError(f"{folders[name]}: {odd[0]} does not exist for every input")
        rows = [[found[n][word] for n in inputs.names] for word in sorted(first)]
        if rows:
            block = self._block(rows[0])
            self.shapes = [array.shape for array in block]
            shared = self.shared(block)
            if any(
                self._single(i, self._read(path), path)
                for i, (path, for_all) in enumerate(zip(rows[0], shared, strict=True))
                if not for_all or all(shared)
            ):
                rows = evenly_spaced(rows, limit)
                self.samples = len(rows)
        self.rows = rows

    def blocks(self, size: int) -> Iterator[Block]:
        """Every file; large ones are divided."""
        for row in self.rows:
            block = self._block(row)
            shared = self.shared(block)
            count = _same_count(str(row[0]), self.inputs, [a.shape for a in block], shared)
            for lo in range(0, count, size):
                part = some_samples(block, shared, slice(lo, lo + size))
                yield [np.asarray(array) for array in part]

    def _block(self, row: Sequence[Path]) -> Block:
        """The arrays of some files, one for each input; a sample gets an axis of samples."""
        block = []
        for i, path in enumerate(row):
            array = self._read(path)
            block.append(array[None] if self._single(i, array, path) else array)
        return block

    @staticmethod
    def _read(path: Path) -> Array:
        check_readable(path)
        try:
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except _UNREADABLE as error:
            raise _unreadable(path, "an .npy file of an array", error) from error
        return array

    def _single(self, i: int, array: Array, path: Path) -> bool:
        rank = self.inputs.types[i].rank
        if rank is not None and array.ndim not in (rank, rank - 1):
            raise UsageError(
                f"{path} has {array.ndim} axes; for input {self.inputs.names[i]!r} a batch has {rank}, "
                f"a sample {rank - 1}"
            )
        return rank is not None and rank > 0 and array.ndim == rank - 1


class ImageFolder(Source):
    """A folder of images, including its subfolders."""

    def __init__(self, folder: Path, inputs: Inputs, recipe: Preprocess, limit: int | None) -> None:
        if len(inputs.names) != 1:
            raise UsageError(
                f"{folder}: images are for models of one input, this one has {len(inputs.names)}"
            )
        self.name, self.type, self.recipe = str(folder), inputs.types[0], recipe
        self.inputs = inputs
        self.files = evenly_spaced(files_of(folder, SUFFIXES), limit)
        self.samples = len(self.files)

    def blocks(self, size: int) -> Iterator[Block]:
        """One block for each image."""
        for path in self.files:
            yield [self.recipe.sample(path, self.type)[None]]


class IterableSource(Source):
    """An iterable of batches; each has all inputs, as a tuple, a dict by name, or one tensor or array."""

    whole = True

    def __init__(self, data: Any, inputs: Inputs) -> None:
        self.data, self.inputs = data, inputs

    def blocks(self, size: int) -> Iterator[Block]:
        """One block for each batch."""
        for number, item in enumerate(self.data):
            where = f"calibration batch {number}"
            if isinstance(item, Mapping):
                _check_names(where, item, self.inputs)
                leaves = [item[name] for name in self.inputs.names]
            else:
                leaves = list(_leaves(item))
            if len(leaves) != len(self.inputs.names):
                raise UsageError(
                    f"{where} has {counted(len(leaves), 'array')}, the model takes {len(self.inputs.names)}; "
                    "leave labels out, such as by (x for x, _ in loader)"
                )
            yield [array_of(leaf) for leaf in leaves]


def array_of(found: Any) -> Array:
    """An array from an array, a tensor, or nested lists of numbers.

    Raises:
        UsageError: If it is none of these.
    """
    if type(found).__module__.split(".")[0] == "torch" and hasattr(found, "detach"):
        from ..frontends.torch.importer import tensor_of

        handle = tensor_of(found)
        if handle is not None:
            return handle.numpy()
    try:
        array = np.asarray(found)
    except (ValueError, TypeError) as error:
        raise UsageError(f"a {type(found).__name__} cannot be a calibration array") from error
    if array.dtype.kind not in "biufcVSU":
        raise UsageError(f"a {type(found).__name__} is not an array of numbers")
    return array


def _leaves(item: Any) -> Iterator[Any]:
    if isinstance(item, tuple | list):
        for part in item:
            yield from _leaves(part)
    else:
        yield item


def files_of(folder: Path, suffixes: frozenset[str] | set[str]) -> list[Path]:
    """The sorted files in a folder and its subfolders with one of these suffixes, without hidden files."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def evenly_spaced(items: list[T], limit: int | None) -> list[T]:
    """At most ``limit`` of the items, evenly spaced, because folders are often sorted by class."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def rebatch(source: Source, blocks: Iterator[Block], size: int, exact: bool) -> Iterator[Block]:
    """Join and divide blocks to batches.

    Args:
        source: Where they are from.
        blocks: The blocks.
        size: The number of samples in a batch.
        exact: Drop samples that do not fill a batch.
    """
    held: list[Block] = []
    count = 0

    def shapes(block: Block) -> list[Any]:
        pairs = zip(block, source.shared(block), strict=True)
        return [(a.dtype, a.tobytes() if for_all else a.shape[1:]) for a, for_all in pairs]

    def joined() -> Block:
        if len(held) == 1:
            return held[0]
        columns = zip(zip(*held, strict=True), source.shared(held[0]), strict=True)
        return [column[0] if for_all else np.concatenate(column) for column, for_all in columns]

    for block in blocks:
        # Samples of another shape start a new batch.
        if held and shapes(block) != shapes(held[0]):
            if not exact:
                yield joined()
            held, count = [], 0
        held.append(block)
        shared = source.shared(block)
        count += samples_of(block, shared)
        while count >= size:
            whole = joined()
            yield some_samples(whole, shared, slice(size))
            held, count = [some_samples(whole, shared, slice(size, None))], count - size
            if not count:
                held = []
    if held and not exact:
        yield joined()


def limited(
    source: Source, blocks: Iterator[Block], samples: int | None, exact: bool
) -> Iterator[Block]:
    """Blocks up to a number of samples; all blocks if it is ``None``. Batches that cannot be divided stay whole.

    Args:
        source: Where they are from.
        blocks: The blocks.
        samples: The number of samples.
        exact: The size of batches is fixed.
    """
    if samples is None:
        yield from blocks
        return
    for block in blocks:
        shared = source.shared(block)
        cut = not exact and source.divisible(block) if source.whole else samples_of(block, shared)
        yield some_samples(block, shared, slice(samples)) if cut else block
        samples -= source.count(block)
        if samples <= 0:
            return


def _check_names(where: str, names: Mapping[str, Any] | Sequence[str], inputs: Inputs) -> None:
    known = ", ".join(inputs.names)
    for name in inputs.names:
        if name not in names:
            held = ", ".join(itertools.islice(names, 5)) or "nothing"
            raise UsageError(f"{where}: there is no array for input {name!r}, only {held}")
    for name in names:
        if name not in inputs.names:
            raise UsageError(f"{where}: {name!r} is not an input of the model; inputs are {known}")


def _same_count(
    where: str, inputs: Inputs, shapes: Sequence[tuple[int, ...]], shared: Sequence[bool]
) -> int:
    """The number of samples.

    Raises:
        UsageError: If arrays have different numbers of samples, or none has an axis of samples.
    """
    counts = {}
    for name, shape, for_all in zip(inputs.names, shapes, shared, strict=True):
        if for_all:
            continue
        if not shape:
            raise UsageError(
                f"{where}: {name!r} is a scalar; arrays need an axis of samples, the first"
            )
        counts[name] = shape[0]
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} for {name!r}" for name, count in counts.items())
        raise UsageError(
            f"{where}: the numbers of samples differ: {shown}; where an input has no axis of samples, give "
            "whole batches: .npy files, or an iterable in Python"
        )
    if not counts and any(shapes):
        return 1  # One batch.
    if not counts:
        raise UsageError(f"{where}: no array has an axis of samples, the first")
    return next(iter(counts.values()))


def _unreadable(path: Path, what: str, error: BaseException) -> UsageError:
    if isinstance(error, OSError) and error.strerror:
        return UsageError(f"{path}: {error.strerror}")
    return UsageError(f"{path} is damaged, or not {what}")

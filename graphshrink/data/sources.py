"""Sources of calibration data: arrays, ``.npz`` files, folders of ``.npy`` files or images, iterables of batches.

Every source yields *blocks*: lists with one array for each input of the model, all with the same number of samples
along their first axis. Data are read when they are needed, and pickles are never loaded.
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


class Source(ABC):
    """Calibration data before they are divided into batches.

    Attributes:
        name: The name of the source in errors.
        samples: The number of samples; ``None`` if unknown.
        whole: Whether each block is a batch, which must not be divided.
    """

    name = "the calibration data"
    samples: int | None = None
    whole = False

    @abstractmethod
    def blocks(self, size: int) -> Iterator[Block]:
        """The data in order, in blocks of about ``size`` samples."""


class ArraySource(Source):
    """Arrays by input name, or one array for the only input, with samples along the first axis."""

    def __init__(self, arrays: Mapping[str, Any], inputs: Inputs) -> None:
        _check_names(self.name, arrays, inputs)
        self.arrays = [array_of(arrays[name]) for name in inputs.names]
        self.samples = _same_count(
            self.name, {n: a.shape for n, a in zip(inputs.names, self.arrays, strict=True)}
        )

    def blocks(self, size: int) -> Iterator[Block]:
        """Slices of the arrays."""
        assert self.samples is not None
        for lo in range(0, self.samples, size):
            yield [array[lo : lo + size] for array in self.arrays]


class NpzSource(Source):
    """An ``.npz`` file with an array for each input; a block of samples is read at a time."""

    def __init__(self, path: Path, inputs: Inputs) -> None:
        self.name, self.path, self.inputs = str(path), path, inputs
        check_readable(path)
        try:
            with ZipFile(path) as file:
                names = [n.removesuffix(".npy") for n in file.namelist()]
                _check_names(self.name, names, inputs)
                shapes = {n: _Member(file, n, self.name).shape for n in inputs.names}
        except _UNREADABLE as error:
            raise _unreadable(path, "an .npz file of arrays", error) from error
        self.samples = _same_count(self.name, shapes)

    def blocks(self, size: int) -> Iterator[Block]:
        """The next rows of every array."""
        try:
            with ZipFile(self.path) as file:
                members = [_Member(file, n, self.name) for n in self.inputs.names]
                for _ in range(0, self.samples or 0, size):
                    yield [member.read(size) for member in members]
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
        shape = (rows, *self.shape[1:])
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
        if rows and self._single(0, self._read(rows[0][0]), rows[0][0]):
            rows = evenly_spaced(rows, limit)
            self.samples = len(rows)
        self.rows = rows

    def blocks(self, size: int) -> Iterator[Block]:
        """Every file; large ones are divided."""
        for row in self.rows:
            block = []
            for i, path in enumerate(row):
                array = self._read(path)
                block.append(array[None] if self._single(i, array, path) else array)
            _same_count(
                str(row[0]), dict(zip(self.inputs.names, (a.shape for a in block), strict=True))
            )
            for lo in range(0, len(block[0]), size):
                yield [np.asarray(array[lo : lo + size]) for array in block]

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
        return rank is not None and array.ndim == rank - 1


class ImageFolder(Source):
    """A folder of images, including its subfolders."""

    def __init__(self, folder: Path, inputs: Inputs, recipe: Preprocess, limit: int | None) -> None:
        if len(inputs.names) != 1:
            raise UsageError(
                f"{folder}: images are for models of one input, this one has {len(inputs.names)}"
            )
        self.name, self.type, self.recipe = str(folder), inputs.types[0], recipe
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


def rebatch(blocks: Iterator[Block], size: int, exact: bool) -> Iterator[Block]:
    """Join and divide blocks to batches.

    Args:
        blocks: The blocks.
        size: The number of samples in a batch.
        exact: Drop samples that do not fill a batch.
    """
    held: list[Block] = []
    count = 0

    def shapes(block: Block) -> list[Any]:
        return [(a.dtype, a.shape[1:]) for a in block]

    def joined() -> Block:
        return held[0] if len(held) == 1 else [np.concatenate(p) for p in zip(*held, strict=True)]

    for block in blocks:
        # Samples of another shape start a new batch.
        if held and shapes(block) != shapes(held[0]):
            if not exact:
                yield joined()
            held, count = [], 0
        held.append(block)
        count += len(block[0])
        while count >= size:
            whole = joined()
            yield [array[:size] for array in whole]
            held, count = [[array[size:] for array in whole]], count - size
            if not count:
                held = []
    if held and not exact:
        yield joined()


def limited(blocks: Iterator[Block], samples: int | None) -> Iterator[Block]:
    """Blocks up to a number of samples; all blocks if it is ``None``."""
    if samples is None:
        yield from blocks
        return
    for block in blocks:
        if not block[0].ndim:
            yield block
            continue
        yield [array[:samples] if array.ndim else array for array in block]
        samples -= len(block[0])
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


def _same_count(where: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    counts = {}
    for name, shape in shapes.items():
        if not shape:
            raise UsageError(
                f"{where}: {name!r} is a scalar; arrays need an axis of samples, the first"
            )
        counts[name] = shape[0]
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} for {name!r}" for name, count in counts.items())
        raise UsageError(f"{where}: the numbers of samples differ: {shown}")
    return next(iter(counts.values()), 0)


def _unreadable(path: Path, what: str, error: BaseException) -> UsageError:
    if isinstance(error, OSError) and error.strerror:
        return UsageError(f"{path}: {error.strerror}")
    return UsageError(f"{path} is damaged, or not {what}")

"""Labelled images for training and testing: folders, CIFAR-10 in its usual formats, ``.npz`` files.

============================  =====================================================================================
``train/CLASS/*``, ``test/``  a folder of images as for torchvision (``val`` is accepted for ``test``); without
                              these folders ``CLASS/*``, of which every fifth image is for testing
``data_batch_*.bin``          CIFAR-10's binary version
``data_batch_1`` ...          CIFAR-10's Python version: pickles, which are loaded only on request, and may contain only
                              dicts, lists, text, numbers and NumPy arrays
``.npz``                      ``x_train, y_train, x_test, y_test`` (images ``(N, H, W)`` or ``(N, H, W, C)``), or concatenated
                              encoded images: ``train_jpeg`` (bytes), ``train_offsets`` (N+1), ``train_labels``,
                              the same for ``test``, and ``classes``
============================  =====================================================================================
"""

from __future__ import annotations

import io
import itertools
import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..ir import MissingExtra, UsageError
from ..ir.errors import check_readable
from ..ir.processors import usable_cores
from .images import SUFFIXES

try:
    import torch
except ImportError as missing:
    raise MissingExtra("training on images", "torch", "torch") from missing

Array = npt.NDArray[Any]

_SIDE = 32
"""The side of CIFAR's images in pixels."""


class Images(Protocol):
    """A sequence of images that are read when they are used."""

    def __len__(self) -> int: ...

    def take(self, places: Array) -> Array:
        """The images at these indices, ``(n, H, W, C)``, uint8."""
        ...


@dataclass(frozen=True)
class LabelledImages:
    """Images for training and for testing.

    Attributes:
        train: The training images.
        train_labels: Their classes, ``(N,)``, from 0 on.
        test: The test images.
        test_labels: Their classes.
        classes: The names of the classes.
    """

    train: Images
    train_labels: Array
    test: Images
    test_labels: Array
    classes: tuple[str, ...]

    def statistics(self) -> tuple[Array, Array]:
        """Mean and standard deviation of each channel for pixels from 0 to 1, from up to 2,000 training images."""
        some = np.linspace(0, len(self.train) - 1, min(2000, len(self.train))).astype(np.int64)
        pixels = self.train.take(some) / 255.0
        return pixels.mean((0, 1, 2)), np.maximum(pixels.std((0, 1, 2)), 1e-3)


class ArrayImages:
    """Images in memory, ``(N, H, W)`` or ``(N, H, W, C)``, uint8."""

    def __init__(self, pixels: Array) -> None:
        self.pixels = pixels[..., None] if pixels.ndim == 3 else pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, places: Array) -> Array:
        """The images at these indices."""
        return np.asarray(self.pixels[places])


class FileImages:
    """Image files, in RGB.

    Args:
        paths: The files.
        size: The side of the square to which the centre of each image is cropped and scaled; if not given, all images must have
            the same size.
    """

    def __init__(self, paths: Sequence[Path], size: int | None) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, places: Array) -> Array:
        """The images at these indices."""
        with ThreadPoolExecutor(usable_cores()) as pool:
            found = list(pool.map(self._read, places))
        for place, image in zip(places, found, strict=True):
            if image.shape != found[0].shape:
                raise UsageError(
                    f"{self.paths[place]} is {image.shape[1]}x{image.shape[0]}, others are "
                    f"{found[0].shape[1]}x{found[0].shape[0]}: give a size to scale all of them to"
                )
        return np.stack(found)

    def _read(self, place: int) -> Array:
        path = self.paths[place]
        return decoded(path.read_bytes(), str(path), self.size)


def decoded(data: bytes, name: str, size: int | None = None) -> Array:
    """Decode an image to ``(H, W, 3)`` uint8.

    Args:
        data: The file's content.
        name: The image's name in errors.
        size: The side of the square to which the centre of the image is cropped and scaled.

    Raises:
        UsageError: If it is not an image.
        MissingExtra: If Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtra("reading images", "images", "pillow") from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{name} cannot be read as an image: {error}") from error
    if size is not None and pixels.size != (size, size):
        pixels = ImageOps.fit(pixels, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(pixels)


def read_images(
    path: str | os.PathLike[str], *, size: int | None = None, pickles: bool = False
) -> LabelledImages:
    """Read labelled images in any of the formats above.

    Args:
        path: A folder or an ``.npz`` file.
        size: For folders of images, the side to which they are scaled.
        pickles: Load CIFAR-10's Python version, which consists of pickles.

    Raises:
        UsageError: If the format is unknown, or a file is damaged.
        MissingExtra: If Pillow is needed and not installed.
    """
    place = Path(path)
    if place.is_file() and place.suffix == ".npz":
        return _npz(place)
    if not place.is_dir():
        raise UsageError(f"{path} is neither a folder nor an .npz file of images")
    if list(place.glob("data_batch_*.bin")):
        return _cifar(place, ".bin", _binary)
    if (place / "data_batch_1").exists():
        if not pickles:
            raise UsageError(
                f"{path} contains pickles, which are loaded only on request (pickles=True); or use the binary "
                "version, data_batch_*.bin"
            )
        return _cifar(place, "", _pickled)
    return _folder(place, size)


class Batches:
    """Batches ``(images, labels)`` for training or testing; one iteration is an epoch.

    Args:
        data: The images.
        size: The number of images in a batch. In training, a smaller last batch is dropped.
        train: True for the training images in random order, shifted and mirrored; false for the unchanged test images.
        shift: The largest shift in pixels.
        mirror: Whether a random half of the images is mirrored.

    Yields:
        float32 ``(n, C, H, W)`` of mean 0 and standard deviation 1, and int64 ``(n,)``. Random numbers come from torch's global
        generator.

    Raises:
        UsageError: If there are fewer training images than a batch takes.
    """

    def __init__(
        self, data: LabelledImages, size: int, *, train: bool, shift: int = 0, mirror: bool = False
    ) -> None:
        self.images = data.train if train else data.test
        if train and len(self.images) < size:
            raise UsageError(
                f"a batch takes {size} training images, and there are {len(self.images)}: give more images, or smaller batches"
            )
        self.labels = torch.from_numpy(
            np.asarray(data.train_labels if train else data.test_labels, np.int64)
        )
        mean, std = (torch.from_numpy(x).float()[:, None, None] for x in data.statistics())
        self.mean, self.std = mean, std
        self.size, self.train = size, train
        self.shift, self.mirror = (shift, mirror) if train else (0, False)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.size)
        return whole + (rest > 0 and not self.train)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        count = len(self.images)
        order = torch.randperm(count) if self.train else torch.arange(count)
        for i in range(len(self)):
            places = order[i * self.size : (i + 1) * self.size]
            pixels = torch.from_numpy(self.images.take(places.numpy())).permute(0, 3, 1, 2)
            x = (pixels.float() / 255 - self.mean) / self.std
            yield self._changed(x), self.labels[places]

    def _changed(self, x: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        if self.mirror:
            x = torch.where((torch.rand(n) < 0.5)[:, None, None, None], x.flip(3), x)
        if self.shift:
            x = torch.nn.functional.pad(x, [self.shift] * 4)
            tops, lefts = torch.randint(0, 2 * self.shift + 1, (2, n)).tolist()
            x = torch.stack(
                [x[i, :, tops[i] : tops[i] + height, lefts[i] : lefts[i] + width] for i in range(n)]
            )
        return x.contiguous()


# The formats.


def _folder(place: Path, size: int | None) -> LabelledImages:
    train = place / "train" if (place / "train").is_dir() else place
    test = next((place / n for n in ("test", "val") if (place / n).is_dir()), None)
    classes = sorted(d.name for d in train.iterdir() if d.is_dir() and not d.name.startswith("."))
    if train == place and test is not None:
        raise UsageError(f"{place} has a folder {test.name} but no folder train")
    found = _files(train, classes)
    if test is not None:
        extra = sorted(d.name for d in test.iterdir() if d.is_dir() and d.name not in classes)
        if extra:
            raise UsageError(f"{test} has a class {extra[0]!r} that {train} does not have")
        tests = _files(test, classes)
    else:
        tests = [file for i, file in enumerate(found) if i % 5 == 4]
        found = [file for i, file in enumerate(found) if i % 5 != 4]
    for name, files in ((train, found), (test or place, tests)):
        if not files:
            raise UsageError(f"{name} has no folders of images, one for each class")
    (a, la), (b, lb) = (
        (FileImages([p for p, _ in files], size), np.array([c for _, c in files]))
        for files in (found, tests)
    )
    return LabelledImages(a, la, b, lb, tuple(classes))


def _files(place: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    return [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((place / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]


def _cifar(place: Path, suffix: str, read: Any) -> LabelledImages:
    names = [f"data_batch_{i}{suffix}" for i in range(1, 6)]
    parts = [read(place / name) for name in names if (place / name).exists()]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    test, test_labels = read(place / f"test_batch{suffix}")
    meta = place / "batches.meta.txt"
    count = int(max(labels.max(), test_labels.max())) + 1
    text = meta.read_text().split() if meta.exists() else []
    classes = text if len(text) == count else [str(i) for i in range(count)]
    return LabelledImages(
        ArrayImages(pixels), labels, ArrayImages(test), test_labels, tuple(classes)
    )


def _binary(path: Path) -> tuple[Array, Array]:
    width = 1 + 3 * _SIDE * _SIDE
    check_readable(path)
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if not len(data) or len(data) % width:
        raise UsageError(f"{path} is damaged: its size is no multiple of {width} bytes")
    rows = data.reshape(-1, width)
    return _planes(rows[:, 1:]), rows[:, 0].astype(np.int64)


def _planes(rows: Array) -> Array:
    return np.ascontiguousarray(rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))


class _ArraysOnly(pickle.Unpickler):
    """Loads arrays, and refuses classes and functions, which could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy.core", "numpy._core"), name) in {
            ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"),
            ("_codecs", "encode"),
        }:  # fmt: skip
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _pickled(path: Path) -> tuple[Array, Array]:
    check_readable(path)
    try:
        with path.open("rb") as file:
            data = _ArraysOnly(file, encoding="bytes").load()
        pixels, labels = np.asarray(data[b"data"], np.uint8), np.asarray(data[b"labels"], np.int64)
        return _planes(pixels), labels
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # A damaged pickle may raise any exception.
        raise UsageError(f"{path} is not a batch of CIFAR-10: {error}") from error


def _npz(path: Path) -> LabelledImages:
    check_readable(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise UsageError(f"{path} is not an .npz file of arrays") from error
    plain = {"x_train", "y_train", "x_test", "y_test"}
    encoded = {f"{p}_{n}" for p in ("train", "test") for n in ("jpeg", "offsets", "labels")}
    if plain <= arrays.keys():
        images = [_checked(arrays[f"x_{part}"], path) for part in ("train", "test")]
        labels = [arrays[f"y_{part}"].reshape(-1).astype(np.int64) for part in ("train", "test")]
    elif encoded <= arrays.keys():
        images = [_decoded(arrays, part, path) for part in ("train", "test")]
        labels = [arrays[f"{part}_labels"].astype(np.int64) for part in ("train", "test")]
    else:
        raise UsageError(
            f"{path} has neither {', '.join(sorted(plain))} nor {', '.join(sorted(encoded))}"
        )
    for part, pixels, found in zip(("train", "test"), images, labels, strict=True):
        if len(pixels) != len(found) or not len(found) or found.min() < 0:
            raise UsageError(
                f"{path}: there are {len(pixels)} {part} images, but {len(found)} labels, or a negative label"
            )
    count = int(max(found.max() for found in labels)) + 1
    names = [str(name) for name in arrays.get("classes", ())]
    classes = names if len(names) >= count else [str(i) for i in range(count)]
    return LabelledImages(
        ArrayImages(images[0]), labels[0], ArrayImages(images[1]), labels[1], tuple(classes)
    )


def _checked(pixels: Array, path: Path) -> Array:
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise UsageError(f"{path}: images must be uint8, (N, H, W) or (N, H, W, C)")
    return pixels


def _decoded(arrays: dict[str, Array], part: str, path: Path) -> Array:
    data, offsets = arrays[f"{part}_jpeg"], arrays[f"{part}_offsets"]
    if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] < 0 or (np.diff(offsets) < 0).any() or (
        offsets[-1] > len(data)
    ):  # fmt: skip
        raise UsageError(f"{path}: {part}_offsets are not positions in {part}_jpeg")
    names = (f"image {i} of {part} in {path}" for i in range(len(offsets)))
    with ThreadPoolExecutor(usable_cores()) as pool:
        pieces = (data[a:b].tobytes() for a, b in itertools.pairwise(offsets))
        return np.stack(list(pool.map(decoded, pieces, names)))

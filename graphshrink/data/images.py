"""Images as calibration data: the preprocessing that a network was trained with."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ..ir import DType, MissingExtra, TensorType, UsageError
from ..ir.errors import check_readable, read_number

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""The suffixes of image files."""

_LARGEST = 1 << 14
"""The largest side in pixels to which images are resized or cropped."""
PRESETS = {"imagenet": "resize=256,crop=224,mean=[0.485,0.456,0.406],std=[0.229,0.224,0.225]"}
"""Recipes by name."""

Layout = Literal["", "nchw", "nhwc"]
Channels = Literal["", "rgb", "bgr", "gray"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]


@dataclass(frozen=True)
class Preprocess:
    """The conversion of an image to a sample: resize, crop, scale, subtract the mean, divide by std; in this order.

    Attributes:
        resize: The length of the shorter side, or (height, width); not resized if not given.
        crop: The size of the centre crop: one length for both sides, or (height, width).
        interpolation: The interpolation of the resizing.
        scale: The factor of pixels from 0 to 255; if not given, 1/255, or 1 for integer inputs.
        mean: The mean of each channel after scaling, in the order of ``channels``.
        std: The standard deviation of each channel.
        layout: ``nchw`` or ``nhwc``; from the input's shape if not given.
        channels: ``rgb``, ``bgr`` or ``gray``; from the input's shape if not given.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Layout = ""
    channels: Channels = ""

    def __post_init__(self) -> None:
        for name, kinds in (
            ("layout", Layout), ("channels", Channels), ("interpolation", Interpolation),
        ):  # fmt: skip
            value, known = getattr(self, name), get_args(kinds)
            if value not in known:
                shown = ", ".join(k for k in known if k)
                raise UsageError(f"preprocess: {name} is one of {shown}, not {value!r}")
        for name in ("resize", "crop"):
            size = getattr(self, name)
            if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
                raise UsageError(f"preprocess: {name} must be at least 1, not {size}")
            if size is not None and max(size if isinstance(size, tuple) else (size,)) > _LARGEST:
                raise UsageError(f"preprocess: {name} must be at most {_LARGEST}, not {size}")
        for name in ("mean", "std", "scale"):
            numbers = getattr(self, name)
            for number in numbers if isinstance(numbers, tuple) else (numbers,):
                if number is not None and not math.isfinite(number):
                    raise UsageError(f"preprocess: {name} must be finite, not {number}")
        if 0 in self.std or self.scale == 0:
            raise UsageError("preprocess: neither std nor scale may be 0")

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """A recipe from text: ``"resize=256,crop=224,mean=[0.5,0.5,0.5]"`` (sizes ``256`` or ``256x192``), or ``"imagenet"``.

        Raises:
            UsageError: If the text is malformed.
        """
        values: dict[str, Any] = {}
        known = [f.name for f in fields(cls)]
        for item in _items(PRESETS.get(text.strip(), text)):
            key, equals, word = (part.strip() for part in item.partition("="))
            if key not in known or not equals:
                presets = ", ".join(PRESETS)
                raise UsageError(
                    f"preprocess: {item!r} is not one of {'=, '.join(known)}= (or, alone, {presets})"
                )
            if key in values:
                raise UsageError(f"preprocess: {key} is given twice")
            try:
                values[key] = _value(key, word)
            except ValueError:
                raise UsageError(f"preprocess: {key} does not take {word!r}") from None
        return cls(**values)

    def sample(self, path: Path, type_: TensorType) -> npt.NDArray[Any]:
        """One image as a sample, without the batch axis.

        Args:
            path: The image.
            type_: The type of the input, including the batch axis.

        Raises:
            UsageError: If the image cannot be read, or the recipe does not fit the input.
            MissingExtra: If Pillow is not installed.
        """
        layout, channels = self._form(type_)
        pixels = self._pixels(path, "L" if channels == "gray" else "RGB")
        count = pixels.shape[2]
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, 1, count):
                raise UsageError(
                    f"preprocess: {name} has {len(getattr(self, name))} numbers, "
                    f"the image {count} channels"
                )
        if channels == "bgr":
            pixels = pixels[:, :, ::-1]
        whole = type_.dtype is not None and not type_.dtype.is_float
        if whole and (self.mean or self.std or self.scale not in (None, 1)):
            raise UsageError("preprocess: scale, mean and std are for inputs of floating point")
        if not whole:
            numbers = pixels * (1 / 255 if self.scale is None else self.scale)
            numbers = (numbers - np.array(self.mean or 0.0)) / np.array(self.std or 1.0)
            dtype = type_.dtype or DType.F32
            pixels = numbers.astype(dtype.numpy)
        elif type_.dtype is not None:
            pixels = pixels.astype(type_.dtype.numpy)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1) if layout == "nchw" else pixels)

    def _form(self, type_: TensorType) -> tuple[str, str]:
        if type_.rank not in (None, 4):
            raise UsageError(f"images need an input with four axes, and this one is {type_}")
        layout = self.layout
        if not layout:
            last = type_.dim(3) in (1, 3) and type_.dim(1) not in (1, 3)
            layout = "nhwc" if last else "nchw"
        channels = self.channels
        if not channels:
            channels = "gray" if type_.dim(1 if layout == "nchw" else 3) == 1 else "rgb"
        return layout, channels

    def _pixels(self, path: Path, mode: str) -> npt.NDArray[Any]:
        """The pixels of an image, ``(height, width, channels)`` from 0 to 255, resized and cropped."""
        try:
            from PIL import Image, ImageOps, UnidentifiedImageError
        except ImportError as error:
            raise MissingExtra("reading images", "images", "Pillow") from error
        try:
            with warnings.catch_warnings():
                # A small file whose header states a huge image is refused, not decoded.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                check_readable(path)
                with Image.open(path) as file:
                    # Apply the rotation in the camera's metadata, as image viewers do.
                    image = ImageOps.exif_transpose(file).convert(mode)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UsageError(f"{path}: the image is too large to be read") from error
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as an image") from error
        if self.resize is not None:
            height, width = _resized(self.resize, image.height, image.width)
            image = image.resize(
                (width, height), getattr(Image.Resampling, self.interpolation.upper())
            )
        pixels = np.asarray(image)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if self.crop is None:
            return pixels
        size = self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)
        top, left = (have - want for have, want in zip(pixels.shape, size, strict=False))
        if top < 0 or left < 0:
            raise UsageError(
                f"{path} is {pixels.shape[0]}x{pixels.shape[1]}, smaller than the crop "
                f"{size[0]}x{size[1]}: give a larger resize="
            )
        top, left = round(top / 2), round(left / 2)
        return pixels[top : top + size[0], left : left + size[1]]


def _resized(size: int | tuple[int, int], height: int, width: int) -> tuple[int, int]:
    if isinstance(size, tuple):
        return size
    short = min(height, width)
    return size * height // short, size * width // short


def _items(text: str) -> list[str]:
    """Split at commas outside brackets."""
    items, depth = [""], 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            items.append("")
        else:
            items[-1] += char
    return [item for item in items if item.strip()]


def _value(key: str, word: str) -> Any:
    if key in ("resize", "crop"):
        height, cross, width = word.partition("x")
        sides = [int(read_number(side, int)) for side in ((height, width) if cross else (height,))]
        return tuple(sides) if cross else sides[0]
    if key == "scale":
        above, slash, below = word.partition("/")
        part = read_number(above.strip(), float)
        divisor = read_number(below.strip(), float) if slash else 1.0
        if divisor == 0:
            raise ValueError(word)
        return part / divisor
    if key in ("mean", "std"):
        bare = word[1:-1] if word.startswith("[") and word.endswith("]") else word
        return tuple(read_number(w.strip(), float) for w in bare.split(","))
    return word

"""Labelled images for training and testing: folders, CIFAR-10 in its usual formats, ``.npz`` files."""

from .data.datasets import (
    ArrayImages,
    Batches,
    FileImages,
    Images,
    LabelledImages,
    decoded,
    read_images,
)

__all__ = [
    "ArrayImages",
    "Batches",
    "FileImages",
    "Images",
    "LabelledImages",
    "decoded",
    "read_images",
]

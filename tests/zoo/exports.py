"""The small networks as ONNX files, each written once a session."""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import nn

from .mobile_models import MOBILE, make_mobile, mobile_input
from .models import SMALL, image_size, make
from .more_models import make_more, more_inputs


@cache
def small(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A small network from a fixed seed."""
    if name in MOBILE:
        return make_mobile(name).to(dtype)
    return make(name, dtype, small=True) if name in SMALL else make_more(name, dtype)


def example(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Its example input."""
    if name in MOBILE:
        return mobile_input(name).to(dtype)
    if name not in SMALL:
        return more_inputs(name, dtype)
    size = image_size(name)
    seeded = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, size, size, dtype=dtype, generator=seeded)


def exported(name: str, folder: Path) -> Path:
    """The network as torch.onnx writes it; with nothing folded where it is convolutional."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        # Another process may be at it too: whoever comes last puts the same file there.
        made = folder / f"{name}-{os.getpid()}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(small(name), (example(name),), made, dynamo=True, verbose=False,
                              external_data=False, optimize=name not in SMALL)  # fmt: skip
        made.replace(path)
    return path

"""The accuracy of an ONNX file, in onnxruntime: of what ships, and not of what was trained."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..ir import UsageError
from .sessions import run_session, session


def onnx_accuracy(
    path: str | os.PathLike[str], batches: Iterable[tuple[Any, Any]], *, threads: int = 0
) -> float:
    """The share of the images whose largest output is that of their class.

    Args:
        path: A file with one input ``(N, ...)`` and the scores ``(N, classes)`` as its first output.
        batches: Pairs of inputs and classes, arrays or tensors. A batch that is smaller than a fixed batch size
            of the file is filled up, and what was filled up is not counted.
        threads: Threads of onnxruntime; 0 takes all.

    Raises:
        ModelError: If onnxruntime does not run the file.
        UsageError: If there are no batches, or one is larger than the file takes.
    """
    run = session(Path(path), threads)
    (slot,) = run.get_inputs()
    size = slot.shape[0] if slot.shape and isinstance(slot.shape[0], int) else None
    right = count = 0
    for inputs, classes in batches:
        x, y = np.asarray(inputs), np.asarray(classes)
        if size is not None and len(x) > size:
            raise UsageError(f"{path} takes batches of {size}, not of {len(x)}")
        whole = x if size is None else np.resize(x, (size, *x.shape[1:]))
        scores = run_session(run, {slot.name: whole}, str(path))[0][: len(x)]
        right += int((scores.argmax(1) == y).sum())
        count += len(y)
    if not count:
        raise UsageError("there are no batches to find the accuracy on")
    return right / count

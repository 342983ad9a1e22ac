"""The accuracy of an ONNX file in onnxruntime: of the file that is deployed, not of the module that was trained."""

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
    """The share of the samples whose class has the largest score.

    Args:
        path: A file with one input ``(N, ...)`` and the scores ``(N, classes)`` as its first output.
        batches: Pairs of inputs and classes, arrays or tensors. If the file fixes the batch size, a smaller batch
            is padded, and the padding is not counted.
        threads: The number of threads of onnxruntime; 0 uses all cores.

    Raises:
        ModelError: If onnxruntime cannot run the file.
        UsageError: If there are no batches, or one is larger than the file accepts.
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
        raise UsageError("there are no batches to measure the accuracy on")
    return right / count

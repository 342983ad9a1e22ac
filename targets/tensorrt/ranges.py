"""Measures the largest magnitude of activations on calibration data, with onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from ...ir import DType, ModelError, UsageError
from ...ir.errors import check_readable
from ...ir.processors import session_threads
from ..onnx.save import save_model
from .draft import Draft

_AT_ONCE = 32
"""The number of values that one run returns; the model is run again for the next ones."""

Feeds = Mapping[str, Any]


def feeds_of(calibration: Any) -> Iterable[Feeds]:
    """Return the batches of calibration data, each a mapping from input names to arrays.

    Args:
        calibration: The path of an .npz file with one array for each input, a dict of arrays, or an iterable of dicts.

    Raises:
        UsageError: If it is none of these.
    """
    if isinstance(calibration, str | Path):
        check_readable(calibration)
        try:
            with np.load(calibration, allow_pickle=False) as found:
                return [{name: found[name] for name in found.files}]
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(f"calibration {calibration} is not an .npz file: {error}") from error
    if isinstance(calibration, Mapping):
        return [calibration]
    if not isinstance(calibration, Iterable):
        raise UsageError(
            "calibration must be an .npz file, a dict of arrays, or an iterable of dicts"
        )
    return calibration


def measure_ranges(draft: Draft, calibration: Any) -> dict[str, float]:
    """Return the largest magnitude of each float32 value, by name.

    Raises:
        UsageError: If there is no data, or the model does not run on it.
        ModelError: If onnxruntime cannot load the model.
    """
    types = draft.types()
    wanted = [
        name
        for node in draft.model.graph.node
        for name in node.output
        if name and (known := types.get(name)) is not None and known.dtype is DType.F32
    ]
    inputs = [v.name for v in draft.model.graph.input]
    found = dict.fromkeys([*inputs, *wanted], 0.0)
    with tempfile.TemporaryDirectory(prefix="graphshrink-") as folder:
        session = _session(draft, wanted, Path(folder))
        batches = 0
        for feeds in feeds_of(calibration):
            batches += 1
            _check_feeds(feeds, inputs)
            for name in inputs:
                _add_maximum(found, name, np.asarray(feeds[name]))
            for start in range(0, len(wanted), _AT_ONCE):
                names = wanted[start : start + _AT_ONCE]
                try:
                    values = session.run(names, dict(feeds))
                except Exception as error:
                    message = " ".join(str(error).split())[:300]
                    raise UsageError(
                        f"calibration: the model does not run on it: {message}"
                    ) from error
                for name, value in zip(names, values, strict=True):
                    _add_maximum(found, name, value)
    if not batches:
        raise UsageError("calibration: there is no data")
    return found


def _check_feeds(feeds: Feeds, inputs: list[str]) -> None:
    for name in inputs:
        if name not in feeds:
            raise UsageError(
                f"calibration lacks input {name!r}; it has {', '.join(feeds) or 'none'}"
            )
    for name in feeds:
        if name not in inputs:
            raise UsageError(
                f"calibration has {name!r}, which is no input of the model; its inputs are {', '.join(inputs)}"
            )
        array = np.asarray(feeds[name])
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"calibration: input {name!r} contains NaN or infinity")


def _add_maximum(found: dict[str, float], name: str, value: Any) -> None:
    """Raise the magnitude of a value to the largest of an array."""
    if value.size and value.dtype.kind == "f":
        # NaN counts as infinity.
        largest = float(np.nan_to_num(np.abs(value), nan=np.inf).max())
        found[name] = max(found[name], largest)


def _session(draft: Draft, wanted: list[str], folder: Path) -> Any:
    import onnxruntime

    model = ModelProto()
    model.CopyFrom(draft.model)
    given = {v.name for v in model.graph.output}
    model.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in wanted if name not in given
    )
    path = folder / "model.onnx"
    save_model(model, path, draft.tensors, draft.base_dir, draft.external)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = session_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise ModelError(f"onnxruntime cannot load the model: {message}") from error

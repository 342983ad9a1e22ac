"""How large activations get on calibration data, in onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from ...ir import DType, ModelError, UsageError
from ...ir.errors import check_readable
from ..onnx.save import save_model
from .draft import Draft

_AT_ONCE = 32
"""How many values are fetched in one run; a network is run again for the next ones."""

Feeds = Mapping[str, Any]


def feeds_of(calibration: Any) -> Iterable[Feeds]:
    """Inputs by name, batch for batch.

    Args:
        calibration: The path of an .npz file with one array for each input, a dict of arrays, or an iterable of dicts.

    Raises:
        UsageError: If it is nothing of these.
    """
    if isinstance(calibration, str | Path):
        check_readable(calibration)
        try:
            with np.load(calibration, allow_pickle=False) as found:
                return [{name: found[name] for name in found.files}]
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(f"calibration {calibration} is no .npz file: {error}") from error
    if isinstance(calibration, Mapping):
        return [calibration]
    if not isinstance(calibration, Iterable):
        raise UsageError("calibration is an .npz file, a dict of arrays, or an iterable of dicts")
    return calibration


def activation_ranges(draft: Draft, calibration: Any) -> dict[str, float]:
    """The largest magnitude of every float32 value, by name.

    Raises:
        UsageError: If there is no data, or it does not fit the model.
        ModelError: If the model does not run.
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
            _check(feeds, inputs)
            for name in inputs:
                _update(found, name, np.asarray(feeds[name]))
            for start in range(0, len(wanted), _AT_ONCE):
                names = wanted[start : start + _AT_ONCE]
                try:
                    values = session.run(names, dict(feeds))
                except Exception as error:
                    said = " ".join(str(error).split())[:300]
                    raise UsageError(
                        f"calibration: the model does not run on it: {said}"
                    ) from error
                for name, value in zip(names, values, strict=True):
                    _update(found, name, value)
    if not batches:
        raise UsageError("calibration: there is no data")
    return found


def _check(feeds: Feeds, inputs: list[str]) -> None:
    for name in inputs:
        if name not in feeds:
            raise UsageError(
                f"calibration lacks input {name!r}; it has {', '.join(feeds) or 'none'}"
            )
    for name in feeds:
        if name not in inputs:
            raise UsageError(
                f"calibration has {name!r}, the model's inputs are {', '.join(inputs)}"
            )
        array = np.asarray(feeds[name])
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"calibration: input {name!r} holds NaN or infinity")


def _update(found: dict[str, float], name: str, value: Any) -> None:
    if value.size and value.dtype.kind == "f":
        # NaN counts as beyond everything.
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
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise ModelError(f"onnxruntime does not take the model: {said}") from error

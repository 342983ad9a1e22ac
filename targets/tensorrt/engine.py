"""Builds the engine, times it and reads back its layers; needs TensorRT and a GPU.

Polygraphy does the work. The network is strongly typed: the file decides precision.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ...ir import MissingExtra, ModelError, UsageError
from ...ir.files import write_bytes
from .profiles import Profile
from .trtexec_log import parse_layers, with_engine_results

ENGINE = ".engine"
"""The suffix of the engine, in place of ``.onnx``."""

_WARM_UP = 10
_RUNS = 50


def require() -> Any:
    """Return the module ``tensorrt``.

    Raises:
        UsageError: If it is not installed.
        MissingExtra: If polygraphy is not installed.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise UsageError(
            "building an engine needs NVIDIA's tensorrt, which is not installed: "
            "pip install tensorrt, on a machine with an NVIDIA GPU; or build with the trtexec line of the side-car"
        ) from error
    try:
        import polygraphy  # noqa: F401
    except ImportError as error:
        raise MissingExtra("building an engine", "tensorrt", "polygraphy") from error
    return tensorrt


def build(
    path: Path, profiles: Sequence[Profile], weights: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Build the engine of an ONNX file, write it beside the file, and time it.

    Args:
        path: The ONNX file.
        profiles: The profiles of its inputs.
        weights: The weights as the side-car lists them.

    Returns:
        Plain data: TensorRT's version, the engine's file, the median time of a run in milliseconds at the profile's usual sizes,
        with the copies of its inputs, the layers, and the weights with the kernels that TensorRT chose.

    Raises:
        ModelError: If TensorRT cannot build the engine.
    """
    trt = require()
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineFromNetwork,
        NetworkFromOnnxPath,
        TrtRunner,
    )
    from polygraphy.backend.trt import Profile as TrtProfile

    profile = TrtProfile()
    for known in profiles:
        profile.add(known.name, min=known.min, opt=known.opt, max=known.max)
    config = CreateConfig(
        profiles=[profile],
        sparse_weights=any(w["eligible"] for w in weights),
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
    )
    try:
        engine = EngineFromNetwork(NetworkFromOnnxPath(str(path), strongly_typed=True), config)()
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise ModelError(f"TensorRT {trt.__version__} does not build {path}: {message}") from error
    target = path.with_suffix(ENGINE)
    write_bytes(target, bytes(engine.serialize()))
    inspector = engine.create_engine_inspector()
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    report = parse_layers(layers)
    times = []
    with TrtRunner(engine) as runner:
        feeds = _feeds(
            runner.get_input_metadata(use_numpy_dtypes=False), {p.name: p.opt for p in profiles}
        )
        for _ in range(_WARM_UP + _RUNS):
            runner.infer(feeds, copy_outputs_to_host=False)
            times.append(runner.last_inference_time() * 1e3)
    return {
        "version": trt.__version__,
        "file": target.name,
        "milliseconds": median(times[_WARM_UP:]),
        **{k: v for k, v in report.to_dict().items() if k != "milliseconds"},
        "weights": with_engine_results(weights, report),
    }


def _feeds(inputs: Any, sizes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return random inputs at the usual sizes: standard normal numbers, or zeros and ones for integers."""
    rng = np.random.default_rng(0)
    feeds = {}
    for name, (dtype, shape) in inputs.items():
        kind = np.dtype(dtype.numpy())
        given = sizes.get(name, tuple(shape))
        is_integer = kind.kind in "iub"
        made = rng.integers(0, 2, given) if is_integer else rng.standard_normal(given)
        feeds[name] = np.asarray(made).astype(kind)
    return feeds

"""The target ``tensorrt``: an ONNX file that NVIDIA's parser accepts without changes, and a side-car with the command that builds it.

The steps, in order: an old opset becomes a newer one (:mod:`.opsets`), clean-up by onnx-graphsurgeon (:mod:`.cleanup`, which starts
with :mod:`.formalities`), pools over one axis (:mod:`.pools`), float64 (:mod:`.doubles`), a check for everything that TensorRT would refuse (:mod:`.lint`), shape profiles (:mod:`.profiles`), precision
in the graph (:mod:`.precision`), onnx's checker, the file, the side-car (:mod:`.sidecar`) and, if ``build`` is set, the engine
(:mod:`.engine`).
"""

from __future__ import annotations

import json
from pathlib import Path

from ...ir import Graph
from ...ir.files import resolve_output, write_bytes
from ..emitted import Emitted, Readers
from ..onnx.save import save_model
from ..options import TensorRTOptions
from .cleanup import clean, require
from .doubles import convert_float64
from .draft import Draft
from .lint import check_opset, lint
from .operators import operators_of
from .opsets import raise_opset
from .pools import widen_pools
from .precision import Lowered, lower
from .profiles import parse_profiles
from .ranges import measure_ranges
from .sidecar import sidecar

SIDECAR = ".trt.json"
"""The suffix of the side-car, in place of ``.onnx``."""


Options = TensorRTOptions


def ready(options: TensorRTOptions) -> None:
    """Check that the packages that the options need are installed.

    Raises:
        MissingExtra: If one is missing.
        UsageError: If an engine is to be built and TensorRT is not installed.
    """
    require()
    if options.build:
        from .engine import require as require_tensorrt

        require_tensorrt()


def save(graph: Graph, path: Path, options: TensorRTOptions, readers: Readers) -> Emitted:
    """Write a graph for TensorRT: the model, and its side-car beside it.

    Raises:
        ModelError: If TensorRT would refuse the model; one error lists everything.
        UsageError: If a profile is missing or wrong, or a file cannot be written.
    """
    operators = operators_of(options.trt_version)
    allowed = frozenset(options.allow_op)
    # Without a profile, a torch model keeps the batch size of its example inputs.
    draft = Draft.from_graph(graph, readers, operators.opsets[1], any_batch=bool(options.profile))
    raise_opset(draft)
    check_opset(draft, operators)
    clean(draft, operators, allowed)
    widen_pools(draft)
    convert_float64(draft, options.float64)
    lint(draft, operators, allowed)
    profiles = parse_profiles(draft, options.profile)
    ranges = None if options.ranges is None else measure_ranges(draft, options.ranges)
    lowered = lower(draft, options.precision, operators, options.keep_float32, ranges)
    if options.precision != "fp32":
        draft.notes += _precision_notes(lowered)
    draft.name_nodes()
    draft.checked()
    beside = path.with_suffix(SIDECAR)
    resolve_output(beside)
    # An old side-car is deleted before the model is written, the new one is written last: it always describes the model beside it.
    saved = save_model(
        draft.model, path, draft.tensors, draft.base_dir, draft.external, stale=[beside]
    )
    data = sidecar(draft, operators, profiles, lowered, path, readers.file(path))
    write_bytes(beside, (json.dumps(data, indent=1) + "\n").encode())
    if options.build:
        from .engine import build

        data["engine"] = build(path, profiles, data["sparsity"]["layers"])
    return Emitted((path, beside), (*draft.notes, *saved.notes(path)), {"tensorrt": data})


def _precision_notes(lowered: Lowered) -> list[str]:
    """Return the notes for the user on precision."""
    kept = len(lowered.kept)
    notes = [
        f"{lowered.low} nodes compute in {lowered.precision}, {kept} stay in float32"
        + ("; the side-car says why" if kept else "")
    ]
    if not lowered.calibrated and lowered.precision == "fp16":
        notes.append("activations may exceed the range of fp16: measure them with --calibration")
    return notes

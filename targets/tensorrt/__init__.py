"""The target ``tensorrt``: an ONNX file that NVIDIA's parser takes as it stands, and a side-car that says how to build it.

The steps, in order: clean-up by onnx-graphsurgeon (:mod:`.cleanup`, which starts with :mod:`.formalities`), float64
(:mod:`.doubles`), what TensorRT would refuse (:mod:`.lint`), shape profiles (:mod:`.profiles`), precision in the graph (:mod:`.precision`), onnx's checker, the file, the side-car
(:mod:`.sidecar`) and, where TensorRT is installed and it is asked for, the engine (:mod:`.engine`).
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
from .doubles import narrow
from .draft import Draft
from .lint import check_opset, lint
from .operators import operators_of
from .precision import Lowered, lower
from .profiles import profiles_for
from .ranges import activation_ranges
from .sidecar import sidecar

SIDECAR = ".trt.json"
"""The suffix of the side-car, in place of ``.onnx``."""


Options = TensorRTOptions


def ready(options: TensorRTOptions) -> None:
    """Raise ``MissingExtra`` when a package is missing."""
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
    draft = Draft.of(graph, readers)
    check_opset(draft, operators)
    clean(draft, operators, allowed)
    narrow(draft, options.float64)
    lint(draft, operators, allowed)
    profiles = profiles_for(draft, options.profile)
    ranges = None if options.ranges is None else activation_ranges(draft, options.ranges)
    lowered = lower(draft, options.precision, operators, options.keep_float32, ranges)
    if options.precision != "fp32":
        draft.notes += _said(lowered)
    draft.name_nodes()
    draft.checked()
    beside = path.with_suffix(SIDECAR)
    resolve_output(beside)
    # The side-car never speaks of another model: it goes first and comes last.
    saved = save_model(
        draft.model, path, draft.tensors, draft.base_dir, draft.external, stale=[beside]
    )
    data = sidecar(draft, operators, profiles, lowered, path, readers.file(path))
    write_bytes(beside, (json.dumps(data, indent=1) + "\n").encode())
    if options.build:
        from .engine import build

        data["engine"] = build(path, profiles, data["sparsity"]["layers"])
    return Emitted((path, beside), (*draft.notes, *saved.notes(path)), {"tensorrt": data})


def _said(lowered: Lowered) -> list[str]:
    kept = len(lowered.kept)
    notes = [
        f"{lowered.low} nodes compute in {lowered.precision}, {kept} stay in float32"
        + ("; the side-car says why" if kept else "")
    ]
    if not lowered.calibrated and lowered.precision == "fp16":
        notes.append(
            "nobody looked how large activations get: --calibration does, for they may leave the range of fp16"
        )
    return notes

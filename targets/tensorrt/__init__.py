"""The target ``tensorrt``: an ONNX file that NVIDIA's parser takes as it stands, and a side-car that says how to build it.

The steps, in order: clean-up by onnx-graphsurgeon (:mod:`.cleanup`), float64 (:mod:`.doubles`), what TensorRT would refuse
(:mod:`.lint`), shape profiles (:mod:`.profiles`), precision in the graph (:mod:`.precision`), onnx's checker, the file, the side-car
(:mod:`.sidecar`) and, where TensorRT is installed and it is asked for, the engine (:mod:`.engine`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ...ir import Graph, UsageError
from ...ir.files import resolve_output, write_bytes
from ...ir.options import PythonOnly
from ..emitted import Emitted, Readers
from ..onnx.save import save_model
from .cleanup import clean, require
from .doubles import narrow
from .draft import Draft
from .lint import check_opset, lint
from .operators import newest, operators_of
from .precision import Lowered, lower
from .profiles import Profile, profiles_for
from .ranges import activation_ranges
from .sidecar import sidecar

SIDECAR = ".trt.json"
"""The suffix of the side-car, in place of ``.onnx``."""


@dataclass(frozen=True)
class Options:
    """What can be asked of the target.

    Attributes:
        trt_version: The TensorRT version, such as ``"10.13"``; the newest that is known when not given.
        profile: Sizes of inputs with free dimensions, ``NAME:min:opt:max``, or one shape for all three.
        fp16: Compute in float16 where that is safe.
        bf16: Compute in bfloat16 where that is safe.
        keep_float32: Operators and nodes that stay in float32 all the same, by name or pattern.
        ranges: Data to see how large activations get: an .npz file, a dict of arrays or an iterable of dicts.
        float64: Refuse float64, or cast it to float32.
        allow_op: Operators that are let pass although TensorRT lacks them: plugins.
        build: Build the engine, time it and read back its layers; needs TensorRT and a GPU.
    """

    trt_version: str = ""
    profile: tuple[str, ...] = ()
    fp16: bool = False
    bf16: bool = False
    keep_float32: tuple[str, ...] = ()
    ranges: Annotated[Any, PythonOnly()] = None
    float64: Literal["refuse", "cast"] = "refuse"
    allow_op: tuple[str, ...] = ()
    build: bool = False

    def __post_init__(self) -> None:
        for name in ("profile", "keep_float32", "allow_op"):
            given = getattr(self, name)
            words: Iterable[str] = (given,) if isinstance(given, str) else given
            object.__setattr__(self, name, tuple(words))
        if not self.trt_version:
            object.__setattr__(self, "trt_version", newest())
        operators_of(self.trt_version)
        for text in self.profile:
            Profile.parse(text)
        if self.fp16 and self.bf16:
            raise UsageError("fp16 and bf16 exclude each other")
        if not (self.fp16 or self.bf16):
            for name in ("keep_float32", "ranges"):
                if getattr(self, name):
                    raise UsageError(f"{name.replace('_', '-')} needs fp16 or bf16")

    @property
    def beside(self) -> tuple[str, ...]:
        """Suffixes of files that these options add beside the model."""
        from .engine import ENGINE

        return (ENGINE,) if self.build else ()

    @property
    def precision(self) -> str:
        """``"fp32"``, ``"fp16"`` or ``"bf16"``."""
        return "fp16" if self.fp16 else "bf16" if self.bf16 else "fp32"


def ready(options: Options) -> None:
    """Raise ``MissingExtra`` when a package is missing."""
    require()
    if options.build:
        from .engine import require as require_tensorrt

        require_tensorrt()


def save(graph: Graph, path: Path, options: Options, readers: Readers) -> Emitted:
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

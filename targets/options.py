"""The options of our targets, one dataclass for each.

They are apart from the targets themselves so that the command line can list its options without importing what writes files.
:mod:`graphshrink.ir.options` says how a field declares an option.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..ir.errors import UsageError
from ..ir.options import Metavar, PythonOnly

OLDEST_OPSET, NEWEST_OPSET = 7, 23
"""The opsets of ONNX files that are written from nothing; onnxruntime has run the newest since version 1.23."""


@dataclass(frozen=True)
class OnnxOptions:
    """The options of the target ``onnx``; they are for torch models: an ONNX model keeps its opset.

    Attributes:
        opset: The version of ONNX's operators; 23 if not given.
        via: What writes the file: ``torch`` is torch's own exporter.
    """

    opset: Annotated[int | None, PythonOnly()] = None
    via: Annotated[Literal["graphshrink", "torch"], PythonOnly()] = "graphshrink"

    def __post_init__(self) -> None:
        if self.opset is not None and not OLDEST_OPSET <= self.opset <= NEWEST_OPSET:
            raise UsageError(
                f"opset={self.opset} cannot be written: choose one from {OLDEST_OPSET} to {NEWEST_OPSET}"
            )


@dataclass(frozen=True)
class TensorRTOptions:
    """The options of the target ``tensorrt``.

    Attributes:
        trt_version: The TensorRT version to write for; the newest known version if not given.
        profile: The sizes of an input with free dimensions, such as ``x:1x3x224x224:8x3x224x224:32x3x224x224``, or one shape
            for all three.
        fp16: Compute in float16 where that is safe.
        bf16: Compute in bfloat16 where that is safe.
        keep_float32: An operator or a node that stays in float32, by name or pattern.
        ranges: Data to measure how large activations get: an .npz file, a dict of arrays or an iterable of dicts.
        float64: Refuse float64, or cast it to float32.
        allow_op: An operator that TensorRT lacks and a plugin of yours provides.
        build: Build the engine, time it and read back its layers; needs TensorRT and a GPU.
    """

    trt_version: Annotated[str, Metavar("N.N")] = ""
    profile: Annotated[tuple[str, ...], Metavar("NAME:min:opt:max")] = ()
    fp16: bool = False
    bf16: bool = False
    keep_float32: Annotated[tuple[str, ...], Metavar("NAME")] = ()
    ranges: Annotated[Any, PythonOnly()] = None
    float64: Literal["refuse", "cast"] = "refuse"
    allow_op: Annotated[tuple[str, ...], Metavar("NAME")] = ()
    build: bool = False

    def __post_init__(self) -> None:
        from .tensorrt.operators import newest, operators_of
        from .tensorrt.profiles import Profile

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
        if self.precision == "fp32":
            for name in ("keep_float32", "ranges"):
                if getattr(self, name):
                    raise UsageError(f"{name.replace('_', '-')} needs fp16 or bf16")

    @property
    def beside(self) -> tuple[str, ...]:
        """Suffixes of files that these options add beside the model."""
        from .tensorrt.engine import ENGINE

        return (ENGINE,) if self.build else ()

    @property
    def precision(self) -> str:
        """``"fp32"``, ``"fp16"`` or ``"bf16"``."""
        return "fp16" if self.fp16 else "bf16" if self.bf16 else "fp32"

    @property
    def needs_ranges(self) -> bool:
        """Whether calibration data, if there are any, should be given as ``ranges``."""
        return self.precision != "fp32" and self.ranges is None


@dataclass(frozen=True)
class TFLiteOptions:
    """The options of the target ``tflite``.

    Attributes:
        keep_nchw_io: Inputs and outputs keep the model's own order of axes, at the price of a TRANSPOSE each.
        weights: Store weights as float32 or as float16.
        via: The converter that writes the file; ``litert-torch`` takes torch models only.
    """

    keep_nchw_io: bool = False
    weights: Literal["float32", "float16"] = "float32"
    via: Annotated[Literal["graphshrink", "litert-torch"], PythonOnly()] = "graphshrink"


@dataclass(frozen=True)
class TorchOptions:
    """Exported programs of torch have no options."""


OPTIONS: dict[str, type] = {
    "onnx": OnnxOptions,
    "tensorrt": TensorRTOptions,
    "tflite": TFLiteOptions,
    "torch": TorchOptions,
}
"""The options of our targets by the target's name."""

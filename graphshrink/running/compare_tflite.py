"""A .tflite file as one side of a comparison, in LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..ir import DType, TensorType, UsageError
from ..passes.infra.tolerance import TOLERANCE, UNITS
from ..report import Size
from ..targets.tflite.layout import Layout, channels_last
from .compare_onnx import OnnxSide
from .inputs import Arrays
from .litert import LiteModel, Port
from .matching import paired_names

_ALLOWED = {DType.F32: TOLERANCE[DType.F32], DType.F16: TOLERANCE[DType.F16], DType.I8: 0.1}
"""The error allowed for the type of a file's weights; int8 models round after every op."""


class LiteSide:
    """A .tflite file in LiteRT; its arrays have the order of axes of the original model.

    If the file does not record the order of its axes, it is inferred from the sizes of the other side: the same order, else
    channels last. If the other side has floats of another size, arrays are converted, because TFLite computes in float32.

    Attributes: as for :class:`OnnxSide`.
    """

    types: dict[str, TensorType]
    outputs: list[str]
    output_types: list[TensorType]

    optional: frozenset[str] = frozenset()

    def __init__(self, path: Path, threads: int, like: OnnxSide | LiteSide | None) -> None:
        self.path = path
        self.model = LiteModel(path, threads)
        inputs, outputs = self.model.inputs, self.model.outputs
        names = [p.name for p in inputs]
        wished: dict[str, TensorType] = {}
        if like is not None:
            left_out = like.optional - set(names)
            wished = {name: t for name, t in like.types.items() if name not in left_out}
        others = _partners(names, wished)
        self._inputs = [
            (port, _order(path, port, t)) for port, t in zip(inputs, others, strict=True)
        ]
        self.types = {
            port.name: _float_of(_logical(port.type, order), other)
            for (port, order), other in zip(self._inputs, others, strict=True)
        }
        wanted = {}
        if like is not None:
            wanted = dict(zip(like.outputs, like.output_types, strict=True))
        results = _partners([p.name for p in outputs], wanted)
        self._outputs = [(p, _order(path, p, t)) for p, t in zip(outputs, results, strict=True)]
        self.outputs = [p.name for p in outputs]
        self.output_types = [
            _float_of(_logical(port.type, order), other)
            for (port, order), other in zip(self._outputs, results, strict=True)
        ]
        self.size: Size | None = None
        self.tolerance = _ALLOWED[self.model.coarsest]
        self.unit = UNITS[DType.F16 if self.model.coarsest is DType.F16 else DType.F32]
        self.notes: list[str] = []

    def run(self, feeds: Arrays) -> list[Any]:
        """Set the inputs, run, and return the outputs."""
        arrays = {}
        for port, order in self._inputs:
            assert port.type.dtype is not None
            arrays[port.name] = feeds[port.name].transpose(order).astype(port.type.dtype.numpy)
        self.model.feed(arrays)
        self.model.invoke()
        places = {p.name: i for i, p in enumerate(self.model.outputs)}
        made = self.model.results()
        results = []
        for (port, order), type_ in zip(self._outputs, self.output_types, strict=True):
            assert type_.dtype is not None
            array = made[places[port.name]].transpose(np.argsort(order))
            results.append(array.astype(type_.dtype.numpy, copy=False))
        return results

    def again(self) -> None:
        """Run again on the same inputs, for timing."""
        self.model.invoke()

    @property
    def file_bytes(self) -> int:
        """The bytes of the file."""
        return self.model.file_bytes


def _partners(names: list[str], others: dict[str, TensorType]) -> list[TensorType | None]:
    """For each input or output of the file, the type of its partner on the other side; none if there are not as many."""
    if len(names) != len(others):
        return [None] * len(names)
    types = list(others.values())
    places = paired_names(names, list(others))
    return [None if place is None else types[place] for place in places]


def _logical(type_: TensorType, order: tuple[int, ...]) -> TensorType:
    assert type_.shape is not None
    return type_.with_shape(tuple(type_.shape[place] for place in np.argsort(order)))


def _float_of(type_: TensorType, like: TensorType | None) -> TensorType:
    """A type; if it and that of the other side are floating-point, with the other's element type."""
    mine, other = type_.dtype, None if like is None else like.dtype
    if mine is None or other is None or not (mine.is_float and other.is_float):
        return type_
    return TensorType(other, type_.shape)


def _order(path: Path, port: Port, like: TensorType | None) -> tuple[int, ...]:
    """For each stored axis of an input or output, the axis of the original model.

    Raises:
        UsageError: If the sizes do not fit those of the other side.
    """
    rank = len(port.type.shape or ())
    plain = tuple(range(rank))
    if port.order is not None:
        return port.order
    if like is None or like.shape is None:
        return plain
    if len(like.shape) != rank:
        raise UsageError(f"{port.name!r} of {path} is {port.type}, the other file has {like}")
    for order in (plain, channels_last(rank).perm):
        stored = TensorType(None, Layout(order).stored_shape(like.shape))
        if stored.accepts(TensorType(None, port.type.shape)):
            return order
    raise UsageError(f"{port.name!r} of {path} is {port.type}, the other file has {like}")

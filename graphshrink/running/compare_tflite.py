"""A .tflite file as one side of a comparison, in LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..ir import DType, TensorType, UsageError
from ..passes.infra.tolerance import TOLERANCE
from ..report import Size
from ..targets.tflite.layout import Layout, channels_last
from .compare_onnx import OnnxSide
from .inputs import Arrays
from .litert import LiteModel, Port

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
        others: list[TensorType | None] = [None] * len(inputs)
        wished: dict[str, TensorType] = {}
        if like is not None:
            left_out = like.optional - set(names)
            wished = {name: t for name, t in like.types.items() if name not in left_out}
        if like is not None and len(names) == len(wished):
            if set(names) == set(wished):
                place = {name: i for i, name in enumerate(wished)}
                inputs = sorted(inputs, key=lambda port: place[port.name])
            names, others = list(wished), list(wished.values())
        self._inputs = [
            (port, _order(path, port, t)) for port, t in zip(inputs, others, strict=True)
        ]
        self.types = {
            name: _float_of(_logical(port.type, order), other)
            for name, (port, order), other in zip(names, self._inputs, others, strict=True)
        }
        self.named = self.model.written_by is not None
        results = {p.name: p for p in outputs}
        wanted: list[TensorType | None] = [None] * len(outputs)
        if like is not None and len(like.outputs) == len(outputs):
            wanted = list(like.output_types)
            if set(results) == set(like.outputs):
                outputs = [results[name] for name in like.outputs]
        self._outputs = [(p, _order(path, p, t)) for p, t in zip(outputs, wanted, strict=True)]
        self.outputs = [p.name for p in outputs]
        self.output_types = [
            _float_of(_logical(port.type, order), other)
            for (port, order), other in zip(self._outputs, wanted, strict=True)
        ]
        self.size: Size | None = None
        self.tolerance = _ALLOWED[self.model.coarsest]

    def run(self, feeds: Arrays) -> list[Any]:
        """Set the inputs, run, and return the outputs."""
        arrays = {}
        for (port, order), array in zip(self._inputs, feeds.values(), strict=True):
            assert port.type.dtype is not None
            arrays[port.name] = array.transpose(order).astype(port.type.dtype.numpy)
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

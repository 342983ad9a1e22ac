"""Copies where LiteRT's own kernels would overwrite a tensor that is still needed.

LiteRT computes some operations in the memory of an input that has no other reader, and lets the result of a RESHAPE share the memory of
its input. Its planner counts the readers of the first tensor in a piece of memory only. Where that tensor was overwritten by a second one, and
the second one is reshaped and read elsewhere as well, an operation on the reshaped tensor overwrites what the other reader needs. A copy
in front of the RESHAPE gives its result memory of its own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np

from .flat import NUMPY_TYPES, FlatModel, FlatOperation, FlatTensor

_NEVER_IN_PLACE = frozenset({
    "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "GATHER", "MAX_POOL_2D",
    "PAD", "PADV2", "QUANTIZE", "TRANSPOSE", "TRANSPOSE_CONV",
})  # fmt: skip
"""Operators that LiteRT never computes in place; any other one might be."""

_MAX_RANK = 6
"""TRANSPOSE has kernels up to this rank."""


def copy_overwritten(model: FlatModel) -> None:
    """Insert copies where LiteRT would overwrite a tensor before its last reader."""
    place = {id(operation): i for i, operation in enumerate(model.operations)}
    readers: dict[int, list[FlatOperation]] = defaultdict(list)
    for operation in model.operations:
        for tensor in operation.inputs:
            if tensor is not None:
                readers[id(tensor)].append(operation)
    results = {id(tensor) for _, tensor in model.outputs}

    def overwriter(tensor: FlatTensor) -> FlatOperation | None:
        """The operation that may be computed in the memory of a reshaped tensor."""
        while len(readers[id(tensor)]) == 1 and id(tensor) not in results:
            reader = readers[id(tensor)][0]
            if reader.code != "RESHAPE":
                made = reader.outputs[0]
                return reader if _may_overwrite(reader) and id(made) not in results else None
            tensor = reader.outputs[0]
        return None

    copied: list[FlatOperation] = []
    for operation in model.operations:
        copied.append(operation)
        source = operation.inputs[0] if operation.code == "RESHAPE" else None
        if source is None or source.producer is None or not _may_share(source.producer):
            continue
        writer = overwriter(operation.outputs[0])
        if writer is None:
            continue
        others = [other for other in readers[id(source)] if other is not operation]
        late = any(place[id(other)] >= place[id(writer)] for other in others)
        if late or id(source) in results:
            copied[-1:] = _copied(operation, source)
    model.operations = copied


def _may_overwrite(operation: FlatOperation) -> bool:
    """Whether LiteRT may compute an operation in the memory of one of its inputs, which then has as many bytes as the result."""
    made = operation.outputs[0]
    fitting = any(read is not None and _fits(read, made) for read in operation.inputs)
    return fitting and operation.code not in _NEVER_IN_PLACE


def _fits(one: FlatTensor, other: FlatTensor) -> bool:
    if not one.is_static or not other.is_static:
        return True
    sizes = [math.prod(t.shape) * np.dtype(NUMPY_TYPES[t.dtype]).itemsize for t in (one, other)]
    return bool(sizes[0] == sizes[1])


def _may_share(operation: FlatOperation) -> bool:
    """Whether the result of an operation may have the memory of an input."""
    return operation.code == "RESHAPE" or _may_overwrite(operation)


def _copied(operation: FlatOperation, source: FlatTensor) -> list[FlatOperation]:
    """Return a RESHAPE and a TRANSPOSE that moves nothing, which LiteRT computes in new memory."""
    result = operation.outputs[0]
    first = source.rank <= result.rank
    like = source if first else result
    if like.rank > _MAX_RANK:
        return [operation]
    middle = FlatTensor(
        f"{result.name}_copy", like.shape, like.dtype, quantization=like.quantization
    )
    order = FlatTensor(
        f"{result.name}_order", (like.rank,), "INT32", np.arange(like.rank, dtype=np.int32)
    )
    options: tuple[str, dict[str, Any]] = ("TransposeOptions", {})
    if first:
        copy = FlatOperation("TRANSPOSE", (source, order), (middle,), options, operation.source)
        moved = FlatOperation(
            "RESHAPE", (middle, *operation.inputs[1:]), (result,), operation.options, operation.source
        )  # fmt: skip
        middle.producer, result.producer = copy, moved
        return [copy, moved]
    moved = FlatOperation(
        "RESHAPE", operation.inputs, (middle,), operation.options, operation.source
    )
    copy = FlatOperation("TRANSPOSE", (middle, order), (result,), options, operation.source)
    middle.producer, result.producer = moved, copy
    return [moved, copy]

"""A unit as a graph of its own whose weights are inputs, so that they can be trained in the form that the graph has them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...ir import Graph, LazyTensor, MaskedTensor, Tensor, Value
from ..statistics.im2col import Array
from ..statistics.training import Piece
from .units import Unit


def piece_graph(unit: Unit) -> Graph:
    """The nodes of a unit, with its inputs and its tuned constants as inputs, and its exit as the output."""
    made = Graph("unit")
    twins: dict[Value, Value] = {}
    for value in (*unit.inputs, *(t.value for t in unit.tuned)):
        twins[value] = made.add_input(value.name, value.type)
    for node in unit.nodes:
        inputs: list[Value | None] = []
        for read in node.inputs:
            if read is not None and read not in twins:
                assert read.data is not None
                twins[read] = made.add_constant(read.data, read.name)
            inputs.append(None if read is None else twins[read])
        known = [None if v is None else v.type for v in inputs]
        inferred = node.op.infer(known) is not None
        types = None if inferred else [v.type for v in node.outputs]
        names = [v.name for v in node.outputs]
        twin = made.append(node.op, inputs, name=node.name, types=types, output_names=names)
        twins.update(zip(node.outputs, twin.outputs, strict=True))
    made.add_output(twins[unit.exit], unit.exit.name)
    return made


def kept_of(unit: Unit) -> dict[Value, Any]:
    """Where weights with zeros may be nonzero: by their mask, else where they are nonzero now."""
    found: dict[Value, Any] = {}
    for tuned in unit.tuned:
        data = tuned.value.data
        assert data is not None
        if isinstance(data, MaskedTensor):
            found[tuned.value] = data.mask
        elif len(data.shape) > 1 and tuned.linear:
            nonzero = data.numpy() != 0
            if not nonzero.all():
                found[tuned.value] = nonzero
    return found


def as_piece(
    unit: Unit,
    numbers: Mapping[Value, Array],
    kept: Mapping[Value, Any],
    inputs: Sequence[tuple[Array, ...]],
    goals: Sequence[Array],
    sizes: Sequence[int],
) -> Piece:
    """The data of a unit for a trainer.

    Args:
        unit: The unit.
        numbers: Numbers to start from, where they are not those of the graph.
        kept: As :func:`kept_of` gives it.
        inputs: The arrays that it reads, for each batch.
        goals: What it should compute.
        sizes: The number of samples of each batch; 0 if it cannot be divided.
    """
    weights = []
    for tuned in unit.tuned:
        data = tuned.value.data
        assert data is not None
        array = numbers.get(tuned.value)
        weights.append(data.numpy() if array is None else array.astype(data.dtype.numpy))
    return Piece(
        piece_graph(unit),
        tuple(weights),
        tuple(kept.get(t.value) for t in unit.tuned),
        inputs,
        goals,
        sizes,
    )


def with_numbers(data: Tensor, array: Array) -> Tensor:
    """A constant with other numbers; it keeps its mask, and a parameter stays trainable."""
    if isinstance(data, MaskedTensor):
        return MaskedTensor(
            with_numbers(data.weight, array), data.mask, data.pattern, data.reduction, data.lasting
        )
    stored = np.ascontiguousarray(array.astype(data.dtype.numpy))
    return LazyTensor(data.shape, data.dtype, lambda: stored, source=data)

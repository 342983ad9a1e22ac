"""Inner values of a student that should be what values of its teacher are: found by the names of nodes that shrinking left alone.

Candidates are the student's values through which everything passes (:mod:`graphshrink.ir.analysis.cuts`), such as the ends of blocks. A candidate is paired with the value that
the same reader takes in the teacher: if a block in front of the reader is gone, what is left is to give what the block gave.
"""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np

from ...ir import Graph, Node, Value
from ...ir.analysis.cuts import stretches
from ...ir.ops import Embedding

MOST = 16
"""The largest number of pairs; they are spread evenly."""


def feature_pairs(student: Graph, teacher: Graph) -> list[tuple[Value, Value]]:
    """Values of the student, each with the teacher's value that it should equal.

    Args:
        student: The shrunk graph.
        teacher: The original graph.

    Returns:
        The pairs in the order of the graph; empty if names do not match. Values that are the same in both are left out.
    """
    known = {node.name: node for node in teacher.nodes}
    found = []
    for value in _cuts(student):
        other = _counterpart(value, known)
        if other is not None and other.type.dtype == value.type.dtype:
            found.append((value, other))
    found = _narrowest(found)
    same = _same(student, teacher, known)
    found = [pair for pair in found if same.get(pair[0]) is not pair[1]]
    if len(found) > MOST:
        found = [found[-1 - i * (len(found) - 1) // (MOST - 1)] for i in range(MOST)][::-1]
    return found


def same_tables(student: Graph, teacher: Graph) -> list[Value]:
    """The tables of embeddings that both models have with the same numbers, and that nothing but lookups reads in the student."""
    known = {node.name: node for node in teacher.nodes}
    found: dict[Value, None] = {}
    for node in student.nodes:
        table, twin = node.input(1), known.get(node.name)
        if not isinstance(node.op, Embedding) or table is None or twin is None:
            continue
        lookups = all(isinstance(user.op, Embedding) for user in table.users)
        if lookups and isinstance(twin.op, Embedding) and _equal(table, twin.input(1), {}):
            found[table] = None
    return list(found)


def _cuts(graph: Graph) -> list[Value]:
    """The floats that everything computed with weights flows through; not outputs of the graph."""
    exits = (stretch.exit for stretch in stretches(graph))
    return [v for v in exits if v is not None and _is_float(v) and not v.is_output]


def _is_float(value: Value) -> bool:
    dtype = value.type.dtype
    return value.type.shape is not None and dtype is not None and dtype.is_float


def _counterpart(value: Value, known: dict[str, Node]) -> Value | None:
    """The teacher's value that the readers of a value take there, if they agree on one of the same shape."""
    found: set[Value] = set()
    for reader, place in value.uses:
        twin = known.get(reader.name)
        if twin is None or type(twin.op) is not type(reader.op) or place >= len(twin.inputs):
            continue
        other = twin.input(place)
        if other is not None and other.data is None:
            found.add(other)
    if len(found) != 1:
        return None
    (other,) = found
    return other if other.producer is not None and other.type.shape == value.type.shape else None


def _narrowest(pairs: list[tuple[Value, Value]]) -> list[tuple[Value, Value]]:
    """The pairs whose values are not larger than those on both sides: the ends of blocks, not what is wide inside."""
    sizes = [math.prod(d for d in v.type.shape or () if isinstance(d, int)) for v, _ in pairs]
    runs = [list(run) for _, run in groupby(range(len(pairs)), lambda i: sizes[i])]
    around = [math.inf, *(sizes[run[0]] for run in runs), math.inf]
    return [
        pairs[i]
        for place, run in enumerate(runs)
        if around[place + 1] <= max(around[place], around[place + 2])
        for i in run
    ]


def _same(student: Graph, teacher: Graph, known: dict[str, Node]) -> dict[Value, Value]:
    """The values of the student that are what values of the teacher are, from the inputs on."""
    same: dict[Value, Value] = dict(zip(student.inputs, teacher.inputs, strict=False))
    for node in student.nodes:
        twin = known.get(node.name)
        if twin is None or twin.op != node.op or len(twin.inputs) != len(node.inputs):
            continue
        if all(_equal(*each, same) for each in zip(node.inputs, twin.inputs, strict=True)):
            same.update(zip(node.outputs, twin.outputs, strict=True))
    return same


def _equal(own: Value | None, other: Value | None, same: dict[Value, Value]) -> bool:
    """Whether a node reads the same there: the same value, or a constant with the same numbers."""
    if own is None or other is None:
        return own is other
    if own.data is None or other.data is None:
        return own.data is other.data and same.get(own) is other
    return own.data.type == other.data.type and bool(
        np.array_equal(own.data.numpy(), other.data.numpy(), equal_nan=own.data.dtype.is_float)
    )


__all__ = ["feature_pairs", "same_tables"]

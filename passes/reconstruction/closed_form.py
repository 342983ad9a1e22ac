"""Units in closed form: each layer is refitted to what it computed in the original network, from what it reads now.

Layers whose inputs do not depend on each other are fitted together, and what follows reads the results of the new weights. The target
of a layer that is added to a skip is the original's sum minus what the skip carries now, so that it makes up for errors of the skip too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from ...ir import Add, Graph, Linear, MatMul, Node, Value
from ..merge.algebra.tensors import Array64
from ..sparsity.layer_waves import layer_waves
from ..statistics.gram import GRAM_BYTES
from ..statistics.im2col import (
    Array,
    columns,
    columns_problem,
    columns_size,
    weight_from_rows,
    weight_rows,
)
from ..statistics.least_squares import GroupSums, refit
from ..statistics.requests import Calibration
from .targets import Target, target_of
from .units import Tuned, Unit

POSITIONS = 1 << 16
"""About the largest number of columns that a layer is fitted to; of more, a random part is taken."""

Numbers = dict[Value, Array64]
"""New numbers of constants."""


def fits(
    unit: Unit, graph: Graph, original: Mapping[str, Value]
) -> tuple[list[list[tuple[Node, Target]]], list[tuple[Node, str]]]:
    """The layers of a unit that can be fitted, in groups that do not depend on each other; and the others, each with the reason."""
    found: dict[Node, Target] = {}
    refused: list[tuple[Node, str]] = []
    for node in unit.layers:
        problem = columns_problem(node)
        if not problem:
            groups, size = columns_size(node)
            large = 8 * groups * (size + 1) ** 2 > GRAM_BYTES
            problem = f"the sums over its {size} inputs would be too large" if large else ""
        target = None if problem else target_of(_last(node), original, {})
        if target is None or target.value.producer is None:
            problem = problem or f"the original has no %{node.output.name} of its shape"
            refused.append((node, f"only training could reconstruct it, without torch: {problem}"))
        else:
            found[node] = target
    waves = layer_waves(graph, {node: (node,) for node in found})
    return [[(node, found[node]) for node in wave] for wave in waves if wave], refused


def fitted(
    node: Node,
    target: Target,
    tuned: Mapping[Value, Tuned],
    kept: Mapping[Value, npt.NDArray[np.bool_]],
    sums: GroupSums,
    strength: float,
) -> Numbers:
    """The new weight of a layer, and its bias if that may change too.

    Args:
        node: The layer.
        target: What it should compute.
        tuned: The constants that may change.
        kept: For a weight with zeros that stay: where it may be nonzero.
        sums: The sums over what it reads and should compute.
        strength: The strength of the ridge; see :func:`.least_squares.refit`.
    """
    weight, bias = node.required(1), _bias(node)
    assert weight.data is not None
    rows = weight_rows(node, weight.data.float64())
    column = np.zeros(rows.shape[:2])
    if bias is not None and bias.data is not None:
        column = bias.data.float64().reshape(rows.shape[:2])
    mask = np.ones((*rows.shape[:2], rows.shape[2] + 1), bool)
    if weight in kept:
        mask[:, :, :-1] = weight_rows(node, kept[weight])
    mask[:, :, -1] = bias in tuned
    made = refit(sums, np.concatenate([rows, column[:, :, None]], 2), strength, mask)
    found = {weight: weight_from_rows(node, made[:, :, :-1])}
    if bias is not None and bias in tuned:
        assert bias.data is not None
        found[bias] = made[:, :, -1].reshape(bias.data.shape)
    return found


def sums_of(
    graph: Graph,
    original: Graph,
    wave: list[tuple[Node, Target]],
    calibration: Calibration,
) -> list[GroupSums]:
    """The sums for layers that do not depend on each other, in one run over the data."""
    found: list[GroupSums] = []
    reads: list[Value] = []
    wanted: list[Value] = []
    for node, target in wave:
        groups, size = columns_size(node)
        weight = node.required(1).data
        assert weight is not None
        outputs = weight_rows(node, np.empty(weight.shape, bool)).shape[1]
        found.append(GroupSums.zeros(groups, size, outputs))
        reads += [node.required(0), target.minus or node.required(0)]
        wanted.append(target.value)
    rng = np.random.default_rng(0)
    limit = max(1, POSITIONS // max(1, calibration.batch_count))
    both = zip(calibration.stream(graph, reads), calibration.stream(original, wanted), strict=True)
    for given, goals in both:
        for i, (node, target) in enumerate(wave):
            goal = goals[i] if target.minus is None else goals[i] - given[2 * i + 1]
            for part, rows in _pairs(node, given[2 * i], goal, limit, rng):
                found[i].add(part.transpose(2, 0, 1), rows.transpose(2, 0, 1))
    return found


def _pairs(
    node: Node, read: Array, goal: Array, limit: int, rng: np.random.Generator
) -> Iterator[tuple[Array64, Array64]]:
    """Columns ``(groups, K, n)`` and targets ``(groups, O, n)`` of a batch, at random positions if there are more than the limit."""
    groups = columns_size(node)[0]
    if isinstance(node.op, Linear | MatMul):
        rows = goal.reshape(-1, goal.shape[-1]).T[None]
    else:
        rows = np.moveaxis(goal, 1, 0).reshape(groups, goal.shape[1] // groups, -1)
    total, done = rows.shape[2], 0
    for part in columns(node, read):
        n = part.shape[2]
        chosen = np.arange(n)
        if total > limit:
            count = max(1, round(limit * n / total))
            chosen = np.sort(rng.choice(n, min(count, n), replace=False))
        yield part[:, :, chosen], rows[:, :, done + chosen].astype(np.float64)
        done += n


def _last(node: Node) -> Node:
    """The addition of the bias behind a product, or the layer itself."""
    if isinstance(node.op, MatMul) and len(node.output.uses) == 1 and not node.output.is_output:
        reader = node.output.users[0]
        other = next((v for v in reader.inputs if v is not node.output), None)
        if isinstance(reader.op, Add) and other is not None and other.data is not None:
            width = node.required(1).type.dim(-1)
            if other.data.shape and other.data.size == other.data.shape[-1] == width:
                return reader
    return node


def _bias(node: Node) -> Value | None:
    """The bias of a layer, also one that is added behind it."""
    last = _last(node)
    if last is not node:
        return next(v for v in last.inputs if v is not node.output)
    return None if isinstance(node.op, MatMul) else node.input(2)

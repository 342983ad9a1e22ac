"""Which weights of a graph can have an N:M pattern, and why the others cannot.

Only shapes are read, never numbers. A weight that can have the pattern does not always run faster with it:
:meth:`NmWeight.likely` tells this for TensorRT, whose developers found sparse kernels faster than dense ones from
about 256 input and 256 output channels on (https://github.com/NVIDIA/TensorRT/issues/3849 and 4065); a kernel of several
taps reads more for each output, so that smaller ones may be picked too. TensorRT times both and takes the faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import (
    Conv,
    ConvTranspose,
    DType,
    Embedding,
    Graph,
    Linear,
    MatMul,
    Node,
    Value,
)
from ..masks.nm_pattern import Pattern, Reduction
from ..ops.recurrent import _Recurrent
from .dequantized import dequantized_from

LIKELY_CHANNELS = 256
"""The smallest number of input and output channels for which TensorRT is likely to choose a sparse kernel."""

_LOOKED_UP = "it is an embedding table, which is looked up and not multiplied"
NO_RECURRENT_KERNELS = "it belongs to a recurrent layer, for which runtimes have no sparse kernels"
"""The reason why a sparse weight of a recurrent layer is not faster."""


@dataclass(frozen=True, eq=False)
class NmWeight:
    """A weight that is multiplied with activations.

    Attributes:
        value: The constant; ``None`` for a weight that the graph computes.
        readers: The nodes that read it as a weight.
        reduction: The axis that it is summed over; ``None`` if its readers differ.
        problem: Why it cannot have any pattern; ``None`` if it can.
    """

    value: Value | None
    readers: tuple[Node, ...]
    reduction: Reduction | None
    problem: str | None = None

    @property
    def node(self) -> Node:
        """The first reader."""
        return self.readers[0]

    @property
    def name(self) -> str:
        """The name of the first reader."""
        return self.node.name

    @property
    def uses(self) -> tuple[tuple[Node, int], ...]:
        """The readers, each with the index of the input that is the weight; a node that reads it twice occurs twice."""
        if self.value is None:
            return tuple((node, 1) for node in self.readers)
        return tuple(
            (node, index)
            for node, index in self.value.uses
            if node in self.readers and (index, self.value) in _weights(node)
        )

    @property
    def is_recurrent(self) -> bool:
        """Whether a recurrent layer reads it."""
        return any(isinstance(node.op, _Recurrent) for node in self.readers)

    @property
    def groups(self) -> int:
        """The groups of the convolution; 1 for other ops."""
        op = self.node.op
        return op.groups if isinstance(op, Conv | ConvTranspose) else 1

    @property
    def outputs(self) -> int:
        """The number of output channels, or of columns of a constant matrix on the left."""
        if self.reduction is None:
            return 0
        shape, axis = self.reduction.shape, self.reduction.axis
        match self.node.op:
            case ConvTranspose(groups=groups):
                return shape[1] * groups
            case Conv() | Linear():
                return shape[0]
            case _:
                return shape[-1] if axis != len(shape) - 1 else (shape[-2] if len(shape) > 1 else 1)

    def reason(self, pattern: Pattern, min_size: int = 0) -> str | None:
        """Why the weight cannot have this pattern; ``None`` if it can.

        Args:
            pattern: The pattern.
            min_size: Weights with fewer numbers are too small.
        """
        if self.problem is not None or self.reduction is None:
            return self.problem
        length, m = self.reduction.length, pattern.m
        if length % m:
            many = self.groups > 1
            what = f"each of its {self.groups} groups sums" if many else "it sums"
            channels = "1 channel" if length == 1 else f"{length} channels"
            return f"{what} over {channels}, which is no multiple of {m}"
        size = self.reduction.count * length
        if size < min_size:
            return f"it has {size} numbers, fewer than {min_size}"
        return None

    def likely(self) -> bool:
        """Whether TensorRT is likely to pick a sparse kernel, by sizes alone; see the module's docstring.

        It has none for recurrent layers.
        """
        if self.reduction is None or self.groups > 1 or self.is_recurrent:
            return False
        return min(self.reduction.length, self.outputs) >= LIKELY_CHANNELS


def reduction_of(node: Node, index: int) -> Reduction | None:
    """How ``node`` sums over its input ``index``; ``None`` if that input is not the weight of a product."""
    value = node.input(index)
    shape = None if value is None else value.type.static_shape
    if not shape:
        return None
    match node.op:
        case Conv() | Linear() if index == 1:
            return Reduction(shape, 1)
        case ConvTranspose(groups=groups) if index == 1:
            return Reduction(shape, 0, groups)
        case _Recurrent() if index in (1, 2):
            return Reduction(shape, 2)
        case MatMul():
            left = index == 0 or len(shape) == 1
            return Reduction(shape, len(shape) - 1 if left else len(shape) - 2)
    return None


def nm_weights(graph: Graph) -> tuple[NmWeight, ...]:
    """All weights of products, embeddings and recurrent layers, in the order of the graph.

    A constant that several nodes read is listed once, with all of them. Weights that are computed
    from the graph's inputs are listed with that as their problem.
    """
    found: dict[Value, NmWeight] = {}
    computed: list[tuple[Node, NmWeight]] = []
    places = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if all(v.data is not None for v in node.outputs):
            continue  # It computes a constant.
        weights = [(i, v) for i, v in _weights(node) if v.data is not None]
        for _, value in weights:
            if value not in found:
                found[value] = _weight(value)
        if not weights and isinstance(node.op, Conv | ConvTranspose | Linear):
            problem = "the graph computes it from its inputs"
            computed.append((node, NmWeight(None, (node,), reduction_of(node, 1), problem)))
    known = [(w.node, w) for w in found.values()] + computed
    return tuple(w for _, w in sorted(known, key=lambda pair: places[pair[0]]))


def _weights(node: Node) -> list[tuple[int, Value]]:
    """The inputs of a node that may be weights, with their indices."""
    match node.op:
        case Conv() | ConvTranspose() | Linear() | Embedding():
            indices: Sequence[int] = (1,)
        case MatMul():
            indices = (0, 1)
        case _Recurrent():
            indices = (1, 2)
        case _:
            return []
    return [(i, v) for i in indices if (v := node.input(i)) is not None]


def _weight(value: Value) -> NmWeight:
    uses = [(n, i) for n, i in value.uses if any(v.data is None for v in n.outputs)]
    reading = [(n, i) for n, i in uses if (i, value) in _weights(n)]
    readers = tuple(dict.fromkeys(n for n, _ in reading))
    others = [n for n, i in uses if (i, value) not in _weights(n)]
    reductions = {reduction_of(n, i) for n, i in reading}
    first = next(iter(reductions)) if len(reductions) == 1 else None
    assert value.data is not None
    problem: str | None = None
    special = [n for n in readers if isinstance(n.op, Embedding)]
    if special:
        problem = _LOOKED_UP
        if len(special) < len(readers):
            problem = f"{special[0].op.name} {special[0].name} reads it too: {problem}"
    elif others:
        problem = f"{others[0].op.name} {others[0].name} reads it too, and not as a weight"
    elif value.is_output:
        problem = "it is an output of the graph"
    elif first is None:
        names = " and ".join(n.name for n in readers)
        problem = f"{names} sum over different axes of it"
    else:
        problem = _type_problem(value, value.data.dtype)
    return NmWeight(value, readers, first, problem)


def _type_problem(value: Value, dtype: DType) -> str | None:
    if not dtype.is_wide_float:
        return f"its numbers are {dtype.value}: make it sparse before it is quantized"
    source = dequantized_from(value)
    if source is not None:
        return f"it is dequantized from {source}: make it sparse before it is quantized"
    return None


__all__ = ["LIKELY_CHANNELS", "NO_RECURRENT_KERNELS", "NmWeight", "nm_weights", "reduction_of"]

"""Placement: which nodes compute in integers, and which values are quantised for that.

Layers (convolutions, dense layers, products of matrices) compute in integers unless they are kept in float32. Other ops join
if all that they read comes quantised and something that computes in integers reads their result: a residual sum
between convolutions, a pool in front of the classifier, a concatenation. An activation that the quantisation of the result can do (ReLU,
ReLU6, Clip) is *folded*: its result is quantised, not that of the layer.

A value that is quantised is read as ``Dequantize(Quantize(value))`` by the nodes that compute in integers. If an integer kernel computes
it, there are only the integers, so all other readers read them too.

The rules are those that onnxruntime's selectors of QLinear kernels, TensorRT's explicit quantisation and LiteRT's kernels share; where
they differ, :class:`Scheme` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...ir import (
    Activation,
    Add,
    AveragePool,
    Concat,
    Conv,
    ConvTranspose,
    DType,
    Flatten,
    GlobalAveragePool,
    Graph,
    Gru,
    Identity,
    Linear,
    Lstm,
    MatMul,
    MaxPool,
    Mul,
    Node,
    Reshape,
    Resize,
    Rnn,
    Slice,
    Squeeze,
    Transpose,
    Unsqueeze,
    Value,
)
from ...ir.analysis.dequantized import is_dequantized
from .ranges import Extent, Levels

MOVES = (Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Slice, MaxPool, Identity, Resize, Concat)
"""Ops that only move or choose numbers: their results have the scale of what they read."""

JOINING = (Add, Mul, AveragePool, GlobalAveragePool, *MOVES)
"""Ops that compute in integers between layers that do."""


@dataclass(frozen=True)
class Scheme:
    """What the runtime of a target wants.

    Attributes:
        levels: The integers of activations.
        integer_bias: Biases of convolutions are int32; otherwise they stay float32.
        float_results: A dense layer can give float32, so that its result is quantised only for integer readers.
        fused_sums: A convolution and the sum behind it are one kernel, so that the value between them stays float32.
    """

    levels: Levels
    integer_bias: bool = True
    float_results: bool = True
    fused_sums: bool = False


SCHEMES = {
    "tensorrt": Scheme(Levels("i8", symmetric=True), integer_bias=False, fused_sums=True),
    "tflite": Scheme(Levels("i8"), float_results=False),
}
"""The schemes of targets; others have :data:`DEFAULT_SCHEME`."""

DEFAULT_SCHEME = Scheme(Levels("u8"))
"""uint8 activations and int8 weights, for which onnxruntime has kernels on all processors."""


@dataclass
class Placement:
    """The nodes that compute in integers.

    Attributes:
        layers: Convolutions, dense layers and products of matrices, in order.
        others: The other nodes, in order.
        points: The values that are quantised, in order, each with the set of values that share its scale.
    """

    layers: list[Node] = field(default_factory=list)
    others: list[Node] = field(default_factory=list)
    points: dict[Value, int] = field(default_factory=dict)
    raw: set[Value] = field(default_factory=set)
    """Values that integer kernels read in float32, since they are computed inside the same kernel."""

    @property
    def nodes(self) -> set[Node]:
        """All nodes that compute in integers."""
        return {*self.layers, *self.others}


def layer_problem(node: Node) -> str | None:
    """Why a node is no layer that can compute in integers; ``None`` if it is one, an empty text if it is no layer at all."""
    if isinstance(node.op, ConvTranspose):
        return "there is no integer kernel for transposed convolutions"
    if isinstance(node.op, Lstm | Gru | Rnn):
        return "runtimes have no integer kernel for a recurrent layer in this form"
    if not isinstance(node.op, Conv | Linear | MatMul):
        return ""
    if node.output.data is not None:
        return ""
    x, w = node.required(0), node.required(1)
    if x.type.dtype is not DType.F32:
        known = "unknown" if x.type.dtype is None else x.type.dtype.value
        return f"its element type is {known}, and only f32 is quantized: give the model in float32"
    if any(v is not None and v.data is not None and is_dequantized(v) for v in node.inputs):
        return "its weight is quantized already"
    if isinstance(node.op, MatMul):
        if x.data is not None:
            return "its left operand is a constant"
        if w.data is not None and w.type.rank != 2:
            return "its constant operand is no matrix"
        return None
    if x.data is not None or w.data is None:
        return "the model computes its weight"
    bias = node.input(2)
    if bias is not None and bias.data is None:
        return "the model computes its bias"
    return None


def folded(node: Node) -> Node | None:
    """The activation behind a node that the quantisation of the result can do."""
    if not node.output.has_one_use:
        return None
    user = node.output.users[0]
    return user if isinstance(user.op, Activation) and bounds(user.op) is not None else None


def bounds(op: Activation) -> tuple[float, float] | None:
    """The bounds of an activation that only clips, if they include 0."""
    match op.kind:
        case "relu":
            return 0.0, float("inf")
        case "relu6":
            return 0.0, 6.0
        case "clip" if op.params[0] <= 0 <= op.params[1]:
            return op.params[0], op.params[1]
    return None


def result_of(node: Node) -> Value:
    """The value that is quantised for a node: its result, or that of the activation behind it."""
    act = folded(node)
    return node.output if act is None else act.output


def clip_of(value: Value) -> tuple[float, float] | None:
    """The bounds of the activation that computes a value, if it is folded into the layer before it."""
    node = value.producer
    if node is None or not isinstance(node.op, Activation):
        return None
    before = node.required(0).producer
    return bounds(node.op) if before is not None and folded(before) is node else None


def activations(node: Node) -> list[Value]:
    """What a node reads that is not constant."""
    return [v for v in node.inputs if v is not None and v.data is None]


def _joins(node: Node) -> bool:
    """Whether a node has an integer kernel between layers that compute in integers."""
    if not isinstance(node.op, JOINING) or node.output.data is not None:
        return False
    if any(v.type.dtype is not DType.F32 for v in (*activations(node), *node.outputs)):
        return False
    if isinstance(node.op, Add | Mul):
        return len(activations(node)) == 2
    if isinstance(node.op, Resize):
        return node.op.mode == "nearest"
    return len(node.outputs) == 1


def place(graph: Graph, layers: Iterable[Node], scheme: Scheme) -> Placement:
    """Choose what computes in integers.

    Args:
        graph: The graph.
        layers: The layers that do.
        scheme: What the target wants.
    """
    found = Placement(list(layers))
    own = set(found.layers)
    # Forwards: ops all of whose operands come quantised.
    ready: set[Value] = {v for node in own for v in activations(node)}
    ready |= {result_of(node) for node in own}
    candidates: list[Node] = []
    for node in graph.nodes:
        if node not in own and _joins(node) and all(v in ready for v in activations(node)):
            candidates.append(node)
            ready.add(result_of(node))
    # Backwards: those whose results something in integers reads.
    for node in reversed(candidates):
        if any(user in own for user in result_of(node).users):
            own.add(node)
    found.others = [node for node in candidates if node in own]
    points: set[Value] = set()
    for node in own:
        points.update(activations(node))
        if not (scheme.float_results and isinstance(node.op, Linear | MatMul)):
            points.add(result_of(node))
    if scheme.fused_sums:
        for node in found.others:
            found.raw.update(_inside(node, points) if isinstance(node.op, Add) else ())
    points -= found.raw
    order = [v for v in graph.values() if v in points]
    found.points = dict(zip(order, range(len(order)), strict=True))
    return found


def _inside(node: Node, points: set[Value]) -> list[Value]:
    """The operand of a sum that a convolution in front of it computes in the same kernel."""
    for value in reversed(activations(node)):
        maker = value.producer
        if maker is not None and isinstance(maker.op, Conv) and value.has_one_use:
            return [value]
    return []


def share_scales(found: Placement, extents: dict[Value, Extent]) -> dict[Value, Extent]:
    """The ranges of values, where those that only move numbers share one.

    A concatenation's operands share its range, unless an activation that is folded into a layer would no longer be implied by it.

    Args:
        found: The placement; its points are numbered anew, by shared scale.
        extents: The range of each value by itself.
    """
    parent = {v: v for v in found.points}

    def root(value: Value) -> Value:
        while parent[value] is not value:
            value = parent[value]
        return value

    for node in found.others:
        if not isinstance(node.op, MOVES):
            continue
        values = [v for v in (*activations(node), result_of(node)) if v in parent]
        roots = list(dict.fromkeys(map(root, values)))
        members = [v for v in parent if root(v) in roots]
        whole = extents[members[0]]
        for value in members[1:]:
            whole = whole.union(extents[value])
        if isinstance(node.op, Concat) and not all(_within(v, whole) for v in members):
            continue
        for other in roots[1:]:
            parent[other] = roots[0]
    shared: dict[Value, Extent] = {}
    for value in found.points:
        top = root(value)
        shared[top] = extents[value].union(shared[top]) if top in shared else extents[value]
    numbers = {top: i for i, top in enumerate(shared)}
    found.points = {v: numbers[root(v)] for v in found.points}
    return {v: shared[root(v)] for v in found.points}


def _within(value: Value, extent: Extent) -> bool:
    """Whether a range implies the activation that is folded into the layer of a value."""
    limits = clip_of(value)
    return limits is None or (limits[0] <= extent.low and extent.high <= limits[1])

"""Puts a composed map back into the graph, after the checks that need its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...ir import (
    Add,
    Conv,
    ConvTranspose,
    DType,
    Identity,
    Linear,
    Node,
    Op,
    Pad,
    Rewriter,
    Scale,
    Tensor,
    Value,
    sketch,
)
from .algebra.affine import Affine
from .algebra.nodes import op_of
from .algebra.tensors import EAGER_BYTES, Array64, Derived, exact, is_ones, read_vector

Form = Literal["kernel", "scale", "pad"]

_EXTREME = 50.0
"""Factors beyond two to this power (or its inverse) may leave the range of float32."""

_HEADROOM = 2.0**24
"""How large, or how small, the numbers may be that factors are applied to, where the type has room for it."""

_CHUNK = 1 << 22


def form_of(nodes: Iterable[Node], affine: Affine) -> Form | None:
    """What kind of node a composed map becomes; ``None`` when that is no gain."""
    kinds = {type(n.op) for n in nodes} - {Identity}
    if kinds & {Conv, ConvTranspose, Linear}:
        return "kernel"
    if kinds == {Pad}:
        return "pad"
    if Scale in kinds and affine.is_diagonal and affine.is_pointwise and not affine.has_map:
        return "scale"
    return None


@dataclass(frozen=True)
class Merge:
    """A composed map that is to replace nodes.

    Attributes:
        nodes: The nodes it replaces, in topological order; the last one's result becomes its own.
        source: The value it is applied to.
        affine: The map.
    """

    nodes: Sequence[Node]
    source: Value
    affine: Affine

    def problem(self) -> str | None:
        """What the numbers have against it."""
        affine, dtype = self.affine, self.affine.dtype
        for vector in _vectors(self.nodes):
            if vector.dtype.is_float and not _in_range(vector, dtype):
                return f"a factor or bias beyond the range of {dtype.value} takes part"
        if not _between_in_range(list(_factors(self.nodes)), dtype):
            return f"numbers between the scales may leave the range of {dtype.value}"
        heavy = [n for n in self.nodes if isinstance(n.op, Conv | ConvTranspose | Linear)]
        if not self._only_scales(heavy):
            for node in heavy:
                weight = node.inputs[1]
                if weight is not None and weight.data is not None and not _finite(weight.data):
                    return f"the weight of {node.name} has numbers that are not finite"
        small = affine.weight.size * 8 <= EAGER_BYTES
        if dtype is DType.F16 or (len(heavy) > 1 and small) or not heavy or self._extreme():
            return _storage_problem(affine)
        return None

    def _only_scales(self, heavy: Sequence[Node]) -> bool:
        """Whether weights are only scaled, which is exact for infinity and NaN too: no need to read them."""
        if len(heavy) != 1:
            return not heavy
        place = list(self.nodes).index(heavy[0])
        for i, node in enumerate(self.nodes):
            shift = node.input(2) is not None if isinstance(node.op, Scale) else False
            if node is not heavy[0] and not isinstance(node.op, Scale | Identity | Pad):
                return False
            if shift and i < place:
                return False
        return True

    def _extreme(self) -> bool:
        """Whether the scales together may leave the range of float32."""
        high = low = 0.0
        for factors in _factors(self.nodes):
            array = read_vector(factors)
            size = np.abs(array[array != 0]) if array is not None else np.ones(1)
            if size.size:
                high += max(0.0, float(np.log2(size.max())))
                low += min(0.0, float(np.log2(size.min())))
        return high > _EXTREME or low < -_EXTREME

    def sketch(self) -> Node:
        """The node that the merge would make, outside the graph."""
        affine, form = self.affine, form_of(self.nodes, self.affine)
        constants = [affine.weight] if affine.const is None else [affine.weight, affine.const]
        if form == "pad":
            half = affine.rank
            op: Op = Pad((0, 0, *affine.pads[:half], 0, 0, *affine.pads[half:]))
            constants = []
        elif form == "scale":
            op = Scale(self._scale_axis())
            constants = [_flat(affine.weight), *constants[1:]]
        else:
            op = op_of(affine)
            constants = constants[:1] if affine.has_map else constants
        inputs = [self.source, *(Value(f"c{i}", c.type, c) for i, c in enumerate(constants))]
        return sketch(op, inputs, self.nodes[-1].name)

    def _scale_axis(self) -> int:
        scales = [n for n in self.nodes if isinstance(n.op, Scale)]
        wide = [
            n for n in scales if any(v is not None and v.type.dim(0) != 1 for v in n.inputs[1:])
        ]
        return next((n.op.axis for n in wide or scales if isinstance(n.op, Scale)), 1)

    def emit(self, rw: Rewriter, temporary: set[Value]) -> Node:
        """Replace the nodes; returns the node that makes the result.

        Args:
            rw: The rewriter.
            temporary: The constants that the pass has made so far. Those that nobody reads any more go,
                new ones join.
        """
        read = dict.fromkeys(v for n in self.nodes for v in n.inputs if v is not None)
        affine, last = self.affine, self.nodes[-1]
        names = [n for n in self.nodes if isinstance(n.op, Conv | ConvTranspose | Linear)]
        name = (names or list(self.nodes))[0].name
        form = form_of(self.nodes, affine)
        what = _describe(self.nodes, form)
        with rw.rewrite(what, *self.nodes, exactness=affine.exactness):
            match form:
                case "scale":
                    made = self._emit_scale(rw, name)
                case "pad":
                    half = affine.rank
                    pads = (0, 0, *affine.pads[:half], 0, 0, *affine.pads[half:])
                    op = Pad(pads) if any(pads) else Identity()
                    made = rw.replace(last, op, [self.source], name=name)
                case _:
                    made = self._emit_kernel(rw, name)
            for node in reversed(self.nodes[:-1]):
                rw.erase(node)
            for value in read:
                if value in temporary and not value.use_count:
                    rw.erase_constant(value)
                    temporary.discard(value)
        temporary.update(v for v in _constants_of(made) if v not in read)
        return made

    def _emit_kernel(self, rw: Rewriter, name: str) -> Node:
        affine, last = self.affine, self.nodes[-1]
        inputs: list[Value | None] = [
            self.source,
            _constant(rw, self.nodes, affine.weight, f"{name}.weight"),
        ]
        if affine.const is not None and not affine.has_map:
            inputs.append(_constant(rw, self.nodes, affine.const, f"{name}.bias"))
        if not affine.has_map:
            return rw.replace(last, op_of(affine), inputs, name=name)
        assert affine.const is not None
        kernel = rw.insert(op_of(affine), inputs, before=last, name=name)
        shift = _constant(rw, self.nodes, affine.const, f"{name}.bias_map")
        return rw.replace(last, Add(), [kernel.output, shift], name=f"{name}.bias_map")

    def _emit_scale(self, rw: Rewriter, name: str) -> Node:
        affine, last = self.affine, self.nodes[-1]
        factors, shift = affine.weight, affine.const
        inputs: list[Value | None] = [self.source, None]
        array = None if is_ones(factors) else read_vector(factors)
        if not is_ones(factors) and (array is None or not (array == 1.0).all()):
            inputs[1] = rw.constant(_flat(factors), f"{name}.scale")
        if shift is not None:
            inputs.append(rw.constant(shift, f"{name}.shift"))
        if inputs == [self.source, None]:
            return rw.replace(last, Identity(), [self.source], name=name)
        return rw.replace(last, Scale(self._scale_axis()), inputs, name=name)


def _constants_of(node: Node) -> Iterator[Value]:
    for value in node.inputs:
        if value is None:
            continue
        if value.data is not None:
            yield value
        elif isinstance(node.op, Add) and value.producer is not None:
            # The convolution in front of a bias map.
            yield from (v for v in value.producer.inputs if v is not None and v.data is not None)


def _constant(rw: Rewriter, nodes: Sequence[Node], tensor: Tensor, name: str) -> Value:
    """A constant of this tensor: the one that a node reads already, or a new one."""
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.data is tensor:
                return value
    return rw.constant(tensor, name)


def _flat(tensor: Tensor) -> Tensor:
    array = read_vector(tensor)
    if array is not None:
        return exact(array.reshape(-1), tensor.dtype, tensor)
    return Derived((tensor.size,), tensor.dtype, lambda: tensor.float64().reshape(-1), (tensor,))


def _describe(nodes: Sequence[Node], form: Form | None) -> str:
    names = [n.op.name for n in nodes]
    ending = {"scale": "Scale", "pad": "Pad"}.get(form or "", "")
    if not ending:
        kinds = (Conv, ConvTranspose, Linear)
        ending = next(n.op.name for n in nodes if isinstance(n.op, kinds))
        if any(isinstance(n.op, ConvTranspose) for n in nodes):
            ending = "ConvTranspose"
    shown = names if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"]
    return f"merge {', '.join(shown)} into one {ending}"


def _factors(nodes: Sequence[Node]) -> Iterable[Tensor]:
    for node in nodes:
        if isinstance(node.op, Scale):
            factors = node.input(1)
            if factors is not None and factors.data is not None:
                yield factors.data


def _vectors(nodes: Sequence[Node]) -> Iterable[Tensor]:
    yield from _factors(nodes)
    for node in nodes:
        if isinstance(node.op, Scale | Conv | ConvTranspose | Linear):
            bias = node.input(2)
            if bias is not None and bias.data is not None:
                yield bias.data


def _in_range(vector: Tensor, dtype: DType) -> bool:
    array = read_vector(vector)
    if array is None:
        return True
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(dtype.numpy)).all())


def _between_in_range(factors: Sequence[Tensor], dtype: DType) -> bool:
    """Whether what a run of scales makes of ordinary numbers on the way neither overflows nor loses digits.

    What the last scale makes is the result itself, which overflows and underflows in a merged node as well; so does
    what stays too small to the end.
    """
    headroom = 1.0 if dtype is DType.F16 else _HEADROOM
    low, high = dtype.smallest_normal * headroom, dtype.largest / headroom
    total: Array64 = np.ones(1)
    lost: npt.NDArray[np.bool_] = np.zeros(1, bool)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, factor in enumerate(factors):
            array = read_vector(factor)
            size = np.ones(1) if array is None else np.abs(array).reshape(-1)
            if 1 not in (total.size, size.size) and total.size != size.size:
                # Other channels: only what holds for all of them is known.
                total, size = total.max(keepdims=True), size.max(keepdims=True)
                lost = np.array([lost.all()])
            total = total * size
            if i < len(factors) - 1 and (total > high).any():
                return False
            if (lost & (total >= low)).any():
                return False
            lost = lost | ((total > 0) & (total < low))
    return True


def _finite(tensor: Tensor) -> bool:
    try:
        flat = tensor.numpy().reshape(-1)
    except ValueError:
        return True
    return all(bool(np.isfinite(flat[i : i + _CHUNK]).all()) for i in range(0, flat.size, _CHUNK))


def _storage_problem(affine: Affine) -> str | None:
    """Whether the rounded numbers stand for the composed ones."""
    dtype = affine.dtype
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            weight = affine.weight.float64()
            const = None if affine.const is None else affine.const.float64()
        except ValueError:
            return None
        for array in (weight, const):
            if array is not None and not np.isfinite(array.astype(dtype.numpy)).all():
                return f"the merged numbers would overflow {dtype.value}"
    # A kernel whose largest number is subnormal has lost digits; each output counts for itself.
    rows = np.abs(weight.reshape(weight.shape[0], -1)).max(axis=1, initial=0.0)
    if ((rows > 0) & (rows < dtype.smallest_normal)).any():
        return f"the merged numbers would underflow {dtype.value}"
    return None

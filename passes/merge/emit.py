"""Write a composed map into the graph, after the checks that need its numbers."""

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
from .algebra.tensors import EAGER_BYTES, Array64, Derived, from_float64, is_ones, read_vector

Form = Literal["kernel", "scale", "pad"]

_EXTREME = 50.0
"""Products of scales beyond two to this power (or its inverse) may leave the range of float32."""

_HEADROOM = 2.0**24
"""The scaled numbers are assumed to lie between the inverse of this and this, unless the type is too narrow."""

_CHUNK = 1 << 22


def form_of(nodes: Iterable[Node], affine: Affine) -> Form | None:
    """The kind of node that a composed map becomes; ``None`` if a merge gains nothing."""
    kinds = {type(n.op) for n in nodes} - {Identity}
    if kinds & {Conv, ConvTranspose, Linear}:
        return "kernel"
    if kinds == {Pad}:
        return "pad"
    if Scale in kinds and affine.is_diagonal and affine.is_pointwise and not affine.has_bias_map:
        return "scale"
    return None


@dataclass(frozen=True)
class Merge:
    """Nodes and the composed map that is to replace them.

    Attributes:
        nodes: The nodes in topological order; the map gets the result of the last one.
        source: The value that the map is applied to.
        affine: The map.
    """

    nodes: Sequence[Node]
    source: Value
    affine: Affine

    def problem(self) -> str | None:
        """The reason why the numbers forbid the merge; ``None`` if nothing does."""
        affine, dtype = self.affine, self.affine.dtype
        for vector in _scales_and_biases(self.nodes):
            if vector.dtype.is_float and not _in_range(vector, dtype):
                return f"a factor or bias is beyond the range of {dtype.value}"
        if not _intermediates_in_range(list(_scale_factors(self.nodes)), dtype):
            return f"intermediate results between the scales may leave the range of {dtype.value}"
        heavy = [n for n in self.nodes if isinstance(n.op, Conv | ConvTranspose | Linear)]
        if not self._only_scales_weights(heavy):
            for node in heavy:
                weight = node.inputs[1]
                if weight is not None and weight.data is not None and not _all_finite(weight.data):
                    return f"the weight of {node.name} has numbers that are not finite"
        small = affine.weight.size * 8 <= EAGER_BYTES
        if dtype is DType.F16 or (len(heavy) > 1 and small) or not heavy or self._is_extreme():
            return _storage_problem(affine)
        return None

    def _only_scales_weights(self, heavy: Sequence[Node]) -> bool:
        """Whether the merge only scales one weight: this keeps infinity and NaN, so the weight need not be read."""
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

    def _is_extreme(self) -> bool:
        """Whether the product of the scales may leave the range of float32."""
        high = low = 0.0
        for factors in _scale_factors(self.nodes):
            array = read_vector(factors)
            size = np.abs(array[array != 0]) if array is not None else np.ones(1)
            if size.size:
                high += max(0.0, float(np.log2(size.max())))
                low += min(0.0, float(np.log2(size.min())))
        return high > _EXTREME or low < -_EXTREME

    def sketch(self) -> Node:
        """The node that the merge would make, outside any graph."""
        affine, form = self.affine, form_of(self.nodes, self.affine)
        constants = [affine.weight] if affine.const is None else [affine.weight, affine.const]
        if form == "pad":
            half = affine.rank
            op: Op = Pad((0, 0, *affine.pads[:half], 0, 0, *affine.pads[half:]))
            constants = []
        elif form == "scale":
            op = Scale(self._scale_axis())
            constants = [_flattened(affine.weight), *constants[1:]]
        else:
            op = op_of(affine)
            constants = constants[:1] if affine.has_bias_map else constants
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
            temporary: The constants that the pass has made so far. Unread ones are removed, new ones are added.
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
            _constant_for(rw, self.nodes, affine.weight, f"{name}.weight"),
        ]
        if affine.const is not None and not affine.has_bias_map:
            inputs.append(_constant_for(rw, self.nodes, affine.const, f"{name}.bias"))
        if not affine.has_bias_map:
            return rw.replace(last, op_of(affine), inputs, name=name)
        assert affine.const is not None
        kernel = rw.insert(op_of(affine), inputs, before=last, name=name)
        shift = _constant_for(rw, self.nodes, affine.const, f"{name}.bias_map")
        return rw.replace(last, Add(), [kernel.output, shift], name=f"{name}.bias_map")

    def _emit_scale(self, rw: Rewriter, name: str) -> Node:
        affine, last = self.affine, self.nodes[-1]
        factors, shift = affine.weight, affine.const
        inputs: list[Value | None] = [self.source, None]
        array = None if is_ones(factors) else read_vector(factors)
        if not is_ones(factors) and (array is None or not (array == 1.0).all()):
            inputs[1] = rw.constant(_flattened(factors), f"{name}.scale")
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
            # The constants of the convolution before a bias map.
            yield from (v for v in value.producer.inputs if v is not None and v.data is not None)


def _constant_for(rw: Rewriter, nodes: Sequence[Node], tensor: Tensor, name: str) -> Value:
    """A constant with this tensor: the one that a node already reads, or a new one."""
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.data is tensor:
                return value
    return rw.constant(tensor, name)


def _flattened(tensor: Tensor) -> Tensor:
    array = read_vector(tensor)
    if array is not None:
        return from_float64(array.reshape(-1), tensor.dtype, tensor)
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


def _scale_factors(nodes: Sequence[Node]) -> Iterable[Tensor]:
    for node in nodes:
        if isinstance(node.op, Scale):
            factors = node.input(1)
            if factors is not None and factors.data is not None:
                yield factors.data


def _scales_and_biases(nodes: Sequence[Node]) -> Iterable[Tensor]:
    yield from _scale_factors(nodes)
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


def _intermediates_in_range(factors: Sequence[Tensor], dtype: DType) -> bool:
    """Whether the intermediate results of consecutive scales neither overflow nor lose digits.

    The result of the last scale is not checked: it overflows or underflows in the merged node as well. Nor is a result
    that becomes too small and stays so to the end.
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
                # Vectors of different lengths cannot be aligned: use the largest number of each.
                total, size = total.max(keepdims=True), size.max(keepdims=True)
                lost = np.array([lost.all()])
            total = total * size
            if i < len(factors) - 1 and (total > high).any():
                return False
            if (lost & (total >= low)).any():
                return False
            lost = lost | ((total > 0) & (total < low))
    return True


def _all_finite(tensor: Tensor) -> bool:
    try:
        flat = tensor.numpy().reshape(-1)
    except ValueError:
        return True
    return all(bool(np.isfinite(flat[i : i + _CHUNK]).all()) for i in range(0, flat.size, _CHUNK))


def _storage_problem(affine: Affine) -> str | None:
    """The reason why rounding to the storage type would change the composed numbers too much; else ``None``."""
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
    # A row whose largest number is subnormal has lost digits.
    rows = np.abs(weight.reshape(weight.shape[0], -1)).max(axis=1, initial=0.0)
    if ((rows > 0) & (rows < dtype.smallest_normal)).any():
        return f"the merged numbers would underflow {dtype.value}"
    return None

"""From an IR graph to a flat TFLite model, one node after another.

Every value gets one tensor in the layout that its node found best, and others in other layouts when somebody asks for
them; these are the only TRANSPOSE operations that appear beside what the model's own arithmetic needs. What cannot be
written is collected, so that one error names it all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import Activation, DType, Graph, Node, Opaque, Value
from ...ir.types import Dim, Shape
from ..support import Spellings
from .flat import DYNAMIC, NUMPY_TYPES, Array, FlatModel, FlatOperation, FlatTensor, Quantization
from .layout import Inner, Layout, channels_last, plain
from .wishes import wishes

Rule = Callable[["Emitter", Node], None]

spells: Spellings[Rule] = Spellings("TFLite")
"""The rules of all ops; the files in ``spell/`` fill it."""

_TYPES = {
    DType.F32: "FLOAT32", DType.F16: "FLOAT32", DType.BF16: "FLOAT32", DType.F64: "FLOAT32",
    DType.I32: "INT32", DType.I64: "INT64", DType.U8: "UINT8", DType.I8: "INT8", DType.I16: "INT16",
    DType.U16: "UINT16", DType.U32: "UINT32", DType.BOOL: "BOOL",
}  # fmt: skip
"""What element types become. Floats of other sizes are computed in float32, which the result says."""

FUSED = {
    Activation("relu"): "RELU",
    Activation("relu6"): "RELU6",
    Activation("clip", (0.0, float("inf"))): "RELU",
    Activation("clip", (0.0, 6.0)): "RELU6",
    Activation("clip", (-1.0, 1.0)): "RELU_N1_TO_1",
}
"""The activations that TFLite fuses into the operation in front."""

FUSED_CODES = {None: 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
"""The schema's ActivationFunctionType."""

HALF_FROM = 256
"""Weights of fewer elements stay float32 when weights are written as float16: they would save nothing."""


class Unsupported(Exception):
    """A node cannot be written; the text says why."""


@dataclass(frozen=True)
class Problem:
    """What cannot be written, and why."""

    op: str
    node: str
    reason: str


def _reason(node: Node, registered: str) -> str:
    """Why a node without a rule cannot be written: the frontend's reason for an opaque node, else the registered one."""
    return node.op.reason if isinstance(node.op, Opaque) else registered


class Emitter:
    """Writes one graph.

    Attributes:
        graph: The graph.
        keep_nchw: Inputs and outputs keep the model's own order of axes.
        half: Weights are stored as float16.
        halved: The number of weights that are stored as float16.
        model: What is written so far.
        integers: For values that are dequantised: the int8 tensor that they are read from.
        problems: What could not be written.
        notes: What the user should know.
    """

    def __init__(self, graph: Graph, *, keep_nchw: bool = False, half: bool = False) -> None:
        self.graph, self.keep_nchw, self.half = graph, keep_nchw, half
        self.halved = 0
        self.model = FlatModel(graph.name)
        self.problems: list[Problem] = []
        self.notes: dict[str, None] = {}
        self.nodes = live_nodes(graph)
        self.wishes = wishes(graph, self.nodes)
        self.placed: dict[Value, tuple[FlatTensor, Layout]] = {}
        self.copies: dict[tuple[Value, Layout], FlatTensor] = {}
        self.integers: dict[Value, tuple[FlatTensor, Layout]] = {}
        self.done: set[Node] = set()
        self._names: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], FlatTensor] = {}
        self._source = ""

    # The whole graph.

    def run(self) -> FlatModel:
        """Write every node; ``problems`` holds what could not be written."""
        for value in self.graph.inputs:
            self._input(value)
        for node in self.nodes:
            if node not in self.done:
                self._node(node)
        if not self.problems:
            for value, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
                try:
                    self._output(value, name)
                except Unsupported as reason:
                    self.problems.append(Problem("output", name, str(reason)))
            self.model.drop_dead()
        return self.model

    def _input(self, value: Value) -> None:
        try:
            rank = len(self.shape(value))
            layout = plain(rank)
            if not self.keep_nchw and self.wishes.get(value) == channels_last(rank).perm:
                layout = channels_last(rank)
            name = value.host if isinstance(value.host, str) else value.name
            tensor = self.tensor(name, self.stored(value, layout), self.dtype(value))
            self.widened(value)
            self.model.inputs.append((name, tensor))
            self.put(value, tensor, layout)
        except Unsupported as reason:
            self.problems.append(Problem("input", value.name, str(reason)))

    def _node(self, node: Node) -> None:
        self._source = node.name
        found = spells.find(node.op)
        read = [v for v in node.inputs if v is not None]
        if any(v.data is None and v not in self.placed for v in read):
            if found.rule is None:
                reason = _reason(node, found.reason)
                self.problems.append(Problem(kind_of(node), node.name, reason))
            return  # What comes before it is the problem.
        try:
            self.spell(node)
        except Unsupported as reason:
            self.problems.append(Problem(kind_of(node), node.name, str(reason)))
        self.done.add(node)

    def spell(self, node: Node) -> None:
        """Write a node by its rule.

        Raises:
            Unsupported: If there is none, or it cannot write the node.
        """
        found = spells.find(node.op)
        if found.rule is None:
            raise Unsupported(_reason(node, found.reason))
        found.rule(self, node)

    def _output(self, value: Value, name: str) -> None:
        if value.data is None:
            _, layout = self.placed[value]
            if self.keep_nchw or layout != channels_last(layout.rank):
                layout = plain(layout.rank)
        else:
            layout = plain(len(self.shape(value)))
        tensor = self.get(value, layout)
        if 0 in tensor.shape:
            self.problems.append(Problem("output", name, "it has no elements"))
        taken = [*self.model.inputs, *self.model.outputs]
        if tensor.dtype == "INT8" and self.dtype(value) == "UINT8":
            # Quantised activations are int8 inside.
            scheme = tensor.quantization
            assert scheme is not None
            tensor = self.op("QUANTIZE", [tensor], tensor.shape, "UINT8", ("QuantizeOptions", {}))
            tensor.quantization = Quantization(scheme.scales, (scheme.zero_points[0] + 128,))
        if tensor.data is not None or any(tensor is other for _, other in taken):
            # What is given back is a tensor of its own.
            shape = self.constant(_sizes(tensor.shape), "INT32")
            tensor = self.op("RESHAPE", [tensor, shape], tensor.shape, tensor.dtype,
                             ("ReshapeOptions", {"newShape": list(tensor.shape)}))  # fmt: skip
        tensor.name = self._free(name)
        self.model.outputs.append((name, tensor))
        self.placed[value] = (tensor, layout)

    # What rules read.

    def shape(self, value: Value) -> Shape:
        """The logical shape.

        Raises:
            Unsupported: If not even the rank is known.
        """
        if value.type.shape is None:
            raise Unsupported(f"the shape of {value.name} is not known")
        return value.type.shape

    def dtype(self, value: Value) -> str:
        """The schema's name of the element type that the value is stored in.

        Raises:
            Unsupported: If TFLite has none.
        """
        dtype = value.type.dtype
        if dtype is None:
            raise Unsupported(f"the element type of {value.name} is not known")
        if dtype not in _TYPES:
            raise Unsupported(f"TFLite has no kernels for {dtype.value}")
        return _TYPES[dtype]

    def widened(self, value: Value) -> None:
        """Note when a value is computed in another float type than the model has."""
        dtype = value.type.dtype
        if dtype in (DType.F16, DType.BF16, DType.F64):
            name = dtype.numpy.name
            self.notes[f"{name} is computed in float32, inputs and outputs too"] = None

    def sizes(self, value: Value, axes: Sequence[int], what: str = "size") -> tuple[int, ...]:
        """The sizes along axes.

        Raises:
            Unsupported: If one is not known.
        """
        shape = self.shape(value)
        found = [shape[axis] for axis in axes]
        if not all(isinstance(d, int) for d in found):
            shown = "x".join("?" if d is None else str(d) for d in shape)
            raise Unsupported(
                f"its {what} is not known ({shown}): fix it with --fix-shape or fixed_shapes"
            )
        return tuple(d for d in found if isinstance(d, int))

    def stored(self, value: Value, layout: Layout) -> tuple[int, ...]:
        """The stored sizes in a layout, -1 where unknown."""
        return _known(layout.stored(self.shape(value)))

    def numbers(self, value: Value) -> Array:
        """The numbers of a constant, in the type that they are stored in."""
        assert value.data is not None
        dtype = NUMPY_TYPES[self.dtype(value)]
        data = value.data
        if data.dtype.numpy == dtype:
            return data.numpy()
        if data.dtype.is_float:
            # From before rounding: what the type of the model would round is kept.
            return data.float64().astype(dtype)
        return data.numpy().astype(dtype)

    def at(self, value: Value) -> Layout:
        """The layout that a value has; a constant has any, and says the plain one."""
        return plain(len(self.shape(value))) if value.data is not None else self.placed[value][1]

    def get(self, value: Value, layout: Layout) -> FlatTensor:
        """The value in a layout."""
        if value.data is None:
            tensor, found = self.placed[value]
            if found == layout:
                return tensor
        key = (value, layout)
        if key not in self.copies:
            if value.data is not None:
                array = arranged(self.numbers(value), layout)
                self.copies[key] = self.constant(array, self.dtype(value), value.name)
            else:
                self.copies[key] = self.convert(tensor, self.shape(value), found, layout)
        return self.copies[key]

    def first(self, value: Value) -> FlatTensor:
        """The value as it is stored."""
        return self.get(value, self.at(value))

    # What rules write.

    def put(self, value: Value, tensor: FlatTensor, layout: Layout) -> None:
        """Say which tensor holds a value."""
        assert len(tensor.shape) == layout.rank == len(self.shape(value)), (value, tensor, layout)
        self.placed[value] = (tensor, layout)

    def tensor(
        self, name: str, shape: Sequence[int], dtype: str, data: Array | None = None
    ) -> FlatTensor:
        """A new tensor."""
        _check_sizes(shape)
        return FlatTensor(self._free(name), tuple(shape), dtype, data)

    def constant(self, array: Any, dtype: str = "FLOAT32", name: str = "") -> FlatTensor:
        """A constant; small ones that are alike are one."""
        data = np.asarray(array, NUMPY_TYPES[dtype])
        if data.nbytes > 1024:
            return self.tensor(name or "constant", data.shape, dtype, data)
        key = (dtype, data.shape, data.tobytes())
        if key not in self._constants:
            self._constants[key] = self.tensor(name or "constant", data.shape, dtype, data)
        return self._constants[key]

    def weight(self, array: Array, name: str) -> FlatTensor:
        """A weight: float32, or float16 that the runtime widens once."""
        if not self.half or array.size < HALF_FROM or array.dtype != np.float32:
            return self.constant(array, str(_names(array)), name)
        if float(np.abs(array).max(initial=0)) > float(np.finfo(np.float16).max):
            self.notes[f"{name} stays float32: its numbers are too large for float16"] = None
            return self.constant(array, name=name)
        narrow = self.constant(array.astype(np.float16), "FLOAT16", f"{name}_f16")
        self.halved += 1
        return self.op("DEQUANTIZE", [narrow], array.shape, "FLOAT32", ("DequantizeOptions", {}),
                       name=name)  # fmt: skip

    def op(
        self,
        code: str,
        inputs: Sequence[FlatTensor | None],
        shape: Sequence[int],
        dtype: str,
        options: tuple[str, dict[str, Any]] | None = None,
        *,
        name: str = "",
    ) -> FlatTensor:
        """An operation with one result."""
        out = self.tensor(name or self._source or code.lower(), shape, dtype)
        self.ops(code, inputs, [out], options)
        return out

    def ops(
        self,
        code: str,
        inputs: Sequence[FlatTensor | None],
        outputs: Sequence[FlatTensor],
        options: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        """An operation with any number of results.

        Raises:
            Unsupported: If an operand has no elements.
        """
        # The sizes of a RESHAPE to a scalar are an empty vector.
        read = inputs[:1] if code == "RESHAPE" else inputs
        if any(tensor is not None and 0 in tensor.shape for tensor in read):
            raise Unsupported("an operand has no elements")
        made = FlatOperation(code, tuple(inputs), tuple(outputs), options, self._source)
        for tensor in outputs:
            tensor.maker = made
        self.model.operations.append(made)

    def fused(self, node: Node) -> tuple[int, Value]:
        """The activation behind a node when it can be part of it: the schema's number, and whose value comes out."""
        value = node.output
        if value.has_one_use:
            user = value.users[0]
            if isinstance(user.op, Activation) and user.op in FUSED and user not in self.done:
                self.done.add(user)
                return FUSED_CODES[FUSED[user.op]], user.output
        return 0, value

    def is_shared(self, tensor: FlatTensor) -> bool:
        """Whether an operation that was written reads the tensor already."""
        return any(tensor in operation.inputs for operation in self.model.operations)

    @contextmanager
    def reading_integers(
        self, values: Sequence[Value], scheme: Quantization | None = None
    ) -> Iterator[None]:
        """Rules that are called inside read the int8 tensors of these values, brought to one scheme if one is given."""
        kept, copies, done = dict(self.placed), self.copies, set(self.done)
        self.copies = {}
        for value in values:
            tensor, layout = self.integers[value]
            if scheme is not None and tensor.quantization != scheme:
                tensor = self.op(
                    "QUANTIZE", [tensor], tensor.shape, "INT8", ("QuantizeOptions", {})
                )
                tensor.quantization = scheme
            self.placed[value] = (tensor, layout)
        try:
            yield
        finally:
            self.placed, self.copies, self.done = kept, copies, done

    # Moving data.

    def reshape(self, tensor: FlatTensor, shape: Sequence[int]) -> FlatTensor:
        """The same elements in another shape.

        Raises:
            Unsupported: If more than one size is unknown.
        """
        shape = tuple(shape)
        if shape == tensor.shape:
            return tensor
        if tensor.data is not None:
            return self.constant(tensor.data.reshape(shape), tensor.dtype, tensor.name)
        if shape.count(DYNAMIC) > 1:
            raise Unsupported("more than one size of a reshape is not known")
        before = tensor.maker
        if before is not None and before.code == "RESHAPE":
            source = before.inputs[0]
            assert source is not None
            return self.reshape(source, shape)
        made = self.op(
            "RESHAPE", [tensor, self.constant(_sizes(shape), "INT32")], shape, tensor.dtype,
            ("ReshapeOptions", {"newShape": list(shape)}),
        )  # fmt: skip
        made.quantization = tensor.quantization
        return made

    def transpose(self, tensor: FlatTensor, perm: Sequence[int]) -> FlatTensor:
        """The axes permuted, by moving the data."""
        if tuple(perm) == tuple(range(len(perm))):
            return tensor
        made = self.op(
            "TRANSPOSE", [tensor, self.constant(_sizes(perm), "INT32")],
            [tensor.shape[p] for p in perm], tensor.dtype, ("TransposeOptions", {}),
        )  # fmt: skip
        made.quantization = tensor.quantization
        return made

    def convert(
        self, tensor: FlatTensor, shape: Shape, source: Layout, target: Layout
    ) -> FlatTensor:
        """A stored tensor in another layout: a RESHAPE where only axes of size 1 move, else a TRANSPOSE."""
        if source.inner and target.inner and source.inner != target.inner:
            middle = Layout(source.perm)
            tensor = self.convert(tensor, shape, source, middle)
            source = middle
        have, want = _factors(source, target, shape), _factors(target, source, shape)
        move = [f for f in have if f[2] != 1]
        moved = [f for f in want if f[2] != 1]
        if move == moved:
            return self.reshape(tensor, _known(target.stored(shape)))
        if source.inner is None and target.inner is None:
            return self.transpose(tensor, [source.place(axis) for axis in target.perm])
        wide = self.reshape(tensor, _known(size for *_, size in move))
        made = self.transpose(wide, [move.index(f) for f in moved])
        return self.reshape(made, _known(target.stored(shape)))

    def _free(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if not count else self._free(f"{name}_{count}")


def live_nodes(graph: Graph) -> list[Node]:
    """The nodes whose results are needed, constants being there already; in order."""
    wanted = {id(v) for v in graph.outputs if v.data is None}
    found = []
    for node in reversed(list(graph.nodes)):
        if any(id(v) in wanted for v in node.outputs):
            found.append(node)
            wanted.update(id(v) for v in node.inputs if v is not None and v.data is None)
    return found[::-1]


def kind_of(node: Node) -> str:
    """What to call a node's op: the host's name where the IR has none."""
    return str(getattr(node.op, "kind", node.op.name)) if node.op.name == "Opaque" else node.op.name


def arranged(array: Array, layout: Layout) -> Array:
    """An array of the model's own order as it is stored; axes of size 1 need no order inside."""
    inner = layout.inner
    if inner is not None and array.shape[inner.axis] != 1:
        array = reordered(array, inner)
    return array.transpose(layout.perm)


def reordered(array: Array, inner: Inner) -> Array:
    """An array whose elements along one axis are put into the stored order."""
    axis = inner.axis
    wide = array.reshape(*array.shape[:axis], *inner.sizes, *array.shape[axis + 1 :])
    order = [
        *range(axis),
        *(axis + i for i in inner.order),
        *range(axis + len(inner.sizes), wide.ndim),
    ]
    return wide.transpose(order).reshape(array.shape)


_LARGEST_SIZE = 2**31 - 1

Factor = tuple[int, int, Dim]


def _factors(layout: Layout, other: Layout, shape: Shape) -> list[Factor]:
    """The stored order of (axis, part, size), with axes cut as either of two layouts cuts them."""
    found: list[Factor] = []
    for axis in layout.perm:
        own = layout.inner if layout.inner and layout.inner.axis == axis else None
        theirs = other.inner if other.inner and other.inner.axis == axis else None
        cut = own or theirs
        if cut is None:
            found.append((axis, 0, shape[axis]))
        else:
            order = own.order if own else range(len(cut.sizes))
            found += [(axis, part, cut.sizes[part]) for part in order]
    return found


def _known(dims: Any) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else DYNAMIC for d in dims)


def _check_sizes(dims: Sequence[int]) -> None:
    large = [d for d in dims if d > _LARGEST_SIZE]
    if large:
        raise Unsupported(f"a size of {large[0]:,}, and TFLite stores sizes as int32")


def _sizes(dims: Sequence[int]) -> Array:
    _check_sizes(dims)
    return np.asarray(dims, np.int32).reshape(len(dims))


def _names(array: Array) -> str:
    return next(name for name, dtype in NUMPY_TYPES.items() if array.dtype == dtype)

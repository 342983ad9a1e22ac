"""Writes an IR graph as a flat TFLite model, node by node.

The rule of a node chooses the layout of its results. A value gets further tensors in other layouts when rules ask for them
(:meth:`Emitter.get`), the only place where a TRANSPOSE is added to the model's own operations. Refusals are collected, so that one
error lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...hosts.torch import is_from_torch
from ...ir import Activation, DType, Graph, Node, Value
from ...ir.types import Dim, Shape
from ..refusals import Refusal, live_nodes, op_name, reason_of
from ..support import Spellings
from .flat import DYNAMIC, NUMPY_TYPES, Array, FlatModel, FlatOperation, FlatTensor, Quantization
from .layout import InnerOrder, Layout, channels_last, model_order
from .memory import copy_overwritten
from .preferred_orders import preferred_orders

Rule = Callable[["Emitter", Node, Any], None]

spells: Spellings[Rule] = Spellings("TFLite")
"""The rules of all ops; the files in ``spell/`` fill it."""

_TYPES = {
    DType.F32: "FLOAT32", DType.F16: "FLOAT32", DType.BF16: "FLOAT32", DType.F64: "FLOAT32",
    DType.I32: "INT32", DType.I64: "INT64", DType.U8: "UINT8", DType.I8: "INT8", DType.I16: "INT16",
    DType.U16: "UINT16", DType.U32: "UINT32", DType.BOOL: "BOOL",
}  # fmt: skip
"""The schema's names of element types. Floats of other sizes are computed in float32; a note says so."""

FUSED = {
    Activation("relu"): "RELU",
    Activation("relu6"): "RELU6",
    Activation("clip", (0.0, float("inf"))): "RELU",
    Activation("clip", (0.0, 6.0)): "RELU6",
    Activation("clip", (-1.0, 1.0)): "RELU_N1_TO_1",
}
"""The activations that TFLite can fuse into the operation before them."""

FUSED_CODES = {None: 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
"""The schema's ActivationFunctionType."""

HALF_FROM = 256
"""Weights with fewer elements stay float32 when weights are written as float16: float16 would save nothing."""


class Unsupported(Exception):
    """A node cannot be written; the message is the reason."""


class Emitter:
    """Writes one graph into a :class:`FlatModel`.

    Attributes:
        graph: The graph.
        keep_nchw: Inputs and outputs keep the model's own order of axes.
        float16: Weights are stored as float16.
        names: The names of inputs and outputs in the signature.
        halved: The number of weights that are stored as float16.
        model: The operations written so far.
        preferred: The order of axes that the readers of values prefer.
        placed: For values that are written: the tensor, and its layout.
        int8: For values that are dequantised: the int8 tensor before DEQUANTIZE, and its layout.
        refusals: The nodes, inputs and outputs that cannot be written.
        notes: Notes for the user, as keys.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        keep_nchw: bool = False,
        float16: bool = False,
        names: tuple[list[str], list[str]] | None = None,
    ) -> None:
        self.graph, self.keep_nchw, self.float16 = graph, keep_nchw, float16
        self.names = names or signature_names(graph)
        self.halved = 0
        self.model = FlatModel(graph.name)
        self.refusals: list[Refusal] = []
        self.notes: dict[str, None] = {}
        self.nodes = live_nodes(graph)
        self.preferred = preferred_orders(graph, self.nodes)
        self.placed: dict[Value, tuple[FlatTensor, Layout]] = {}
        self.copies: dict[tuple[Value, Layout], FlatTensor] = {}
        self.int8: dict[Value, tuple[FlatTensor, Layout]] = {}
        self.done: set[Node] = set()
        self._names: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], FlatTensor] = {}
        self._source = ""

    # The whole graph.

    def run(self) -> FlatModel:
        """Write every node and return the model; ``refusals`` lists the nodes that cannot be written."""
        inputs, outputs = self.names
        for value, name in zip(self.graph.inputs, inputs, strict=True):
            self._input(value, name)
        for node in self.nodes:
            if node not in self.done:
                self._node(node)
        if not self.refusals:
            for value, name in zip(self.graph.outputs, outputs, strict=True):
                try:
                    self._output(value, name)
                except Unsupported as reason:
                    self.refusals.append(Refusal("output", name, str(reason)))
            self.model.drop_dead()
            copy_overwritten(self.model)
        return self.model

    def _input(self, value: Value, name: str) -> None:
        try:
            rank = len(self.shape(value))
            layout = model_order(rank)
            if not self.keep_nchw and self.preferred.get(value) == channels_last(rank).perm:
                layout = channels_last(rank)
            tensor = self.tensor(name, self.stored_shape(value, layout), self.dtype(value))
            self.note_widened(value)
            self.model.inputs.append((name, tensor))
            self.put(value, tensor, layout)
        except Unsupported as reason:
            self.refusals.append(Refusal("input", value.name, str(reason)))

    def _node(self, node: Node) -> None:
        self._source = node.name
        read = [v for v in node.inputs if v is not None]
        if any(v.data is None and v not in self.placed for v in read):
            found = spells.find(node.op)
            if found.rule is None:
                self._refuse(node, reason_of(node, found.reason))
            return  # An input is missing: a node before this one was refused, and its shape is not known.
        try:
            self.spell(node)
        except Unsupported as reason:
            self._refuse(node, str(reason))
        except Exception:
            # Behind a refused node, tensors are only placeholders.
            if not self.refusals:
                raise
        self.done.add(node)

    def _refuse(self, node: Node, reason: str) -> None:
        """Record a refusal; placeholders of known shape stand in for its results, so that nodes behind it are tried too."""
        self.refusals.append(Refusal(op_name(node), node.name, reason))
        for value in node.outputs:
            try:
                layout = model_order(len(self.shape(value)))
                shape = self.stored_shape(value, layout)
                self.placed.setdefault(
                    value, (self.tensor(value.name, shape, self.dtype(value)), layout)
                )
            except Unsupported:
                continue

    def spell(self, node: Node) -> None:
        """Write a node by its rule.

        Raises:
            Unsupported: If there is none, or it cannot write the node.
        """
        found = spells.find(node.op)
        if found.rule is None:
            raise Unsupported(reason_of(node, found.reason))
        found.rule(self, node, node.op)

    def _output(self, value: Value, name: str) -> None:
        if value.data is None:
            _, layout = self.placed[value]
            if self.keep_nchw or layout != channels_last(layout.rank):
                layout = model_order(layout.rank)
        else:
            layout = model_order(len(self.shape(value)))
        tensor = self.get(value, layout)
        if 0 in tensor.shape:
            self.refusals.append(Refusal("output", name, "it has no elements"))
        taken = [*self.model.inputs, *self.model.outputs]
        if tensor.dtype == "INT8" and self.dtype(value) == "UINT8":
            # Quantised uint8 activations are stored as int8 inside the model.
            quantization = tensor.quantization
            assert quantization is not None
            tensor = self.op("QUANTIZE", [tensor], tensor.shape, "UINT8", ("QuantizeOptions", {}))
            tensor.quantization = Quantization(
                quantization.scales, (quantization.zero_points[0] + 128,)
            )
        if tensor.data is not None or any(tensor is other for _, other in taken):
            # An output must not be a constant, an input or another output.
            shape = self.constant(_shape_array(tensor.shape), "INT32")
            tensor = self.op("RESHAPE", [tensor, shape], tensor.shape, tensor.dtype,
                             ("ReshapeOptions", {"newShape": list(tensor.shape)}))  # fmt: skip
        tensor.name = self._unique_name(name)
        self.model.outputs.append((name, tensor))
        self.placed[value] = (tensor, layout)

    # For rules: reading values.

    def shape(self, value: Value) -> Shape:
        """Return the logical shape of a value.

        Raises:
            Unsupported: If the rank is not known.
        """
        if value.type.shape is None:
            raise Unsupported(f"the shape of {value.name} is not known")
        return value.type.shape

    def dtype(self, value: Value) -> str:
        """Return the schema's name of the element type that the value is stored in.

        Raises:
            Unsupported: If TFLite has none.
        """
        dtype = value.type.dtype
        if dtype is None:
            raise Unsupported(f"the element type of {value.name} is not known")
        if dtype not in _TYPES:
            raise Unsupported(f"TFLite has no kernels for {dtype.value}")
        return _TYPES[dtype]

    def note_widened(self, value: Value) -> None:
        """Add a note if a value is computed in float32 although the model has another float type."""
        dtype = value.type.dtype
        if dtype in (DType.F16, DType.BF16, DType.F64):
            name = dtype.numpy.name
            self.notes[f"{name} is computed in float32, inputs and outputs too"] = None

    def known_sizes(self, value: Value, axes: Sequence[int], what: str = "size") -> tuple[int, ...]:
        """Return the sizes along axes.

        Raises:
            Unsupported: If one is not known; the message calls it ``what``.
        """
        shape = self.shape(value)
        found = [shape[axis] for axis in axes]
        if not all(isinstance(d, int) for d in found):
            shown = "x".join("?" if d is None else str(d) for d in shape)
            raise Unsupported(
                f"its {what} is not known ({shown}): fix it with --fix-shape or fixed_shapes"
            )
        return tuple(d for d in found if isinstance(d, int))

    def stored_shape(self, value: Value, layout: Layout) -> tuple[int, ...]:
        """Return the stored sizes of a value in a layout, -1 where unknown."""
        return _with_dynamic(layout.stored_shape(self.shape(value)))

    def numbers(self, value: Value) -> Array:
        """Return the numbers of a constant in the type that it is stored in."""
        data = value.data
        if data is None:
            raise Unsupported(f"%{value.name} is not constant")
        dtype = NUMPY_TYPES[self.dtype(value)]
        if data.dtype.numpy == dtype:
            return data.numpy()
        if data.dtype.is_float:
            # Rounded once, from float64, and not to the model's type first.
            return data.float64().astype(dtype)
        return data.numpy().astype(dtype)

    def layout_of(self, value: Value) -> Layout:
        """Return the layout that a value was written in; a constant has the model's order."""
        return (
            model_order(len(self.shape(value))) if value.data is not None else self.placed[value][1]
        )

    def get(self, value: Value, layout: Layout) -> FlatTensor:
        """Return the tensor of a value in a layout; it is written if no rule asked for it before."""
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

    def as_stored(self, value: Value) -> FlatTensor:
        """Return the tensor of a value in the layout that it was written in."""
        return self.get(value, self.layout_of(value))

    # For rules: writing results.

    def put(self, value: Value, tensor: FlatTensor, layout: Layout) -> None:
        """Record which tensor holds a value, and in which layout."""
        assert len(tensor.shape) == layout.rank == len(self.shape(value)), (value, tensor, layout)
        self.placed[value] = (tensor, layout)

    def tensor(
        self, name: str, shape: Sequence[int], dtype: str, data: Array | None = None
    ) -> FlatTensor:
        """Return a new tensor with a unique name."""
        _check_sizes(shape)
        return FlatTensor(self._unique_name(name), tuple(shape), dtype, data)

    def constant(self, array: Any, dtype: str = "FLOAT32", name: str = "") -> FlatTensor:
        """Return a constant tensor; small constants that are equal share one tensor."""
        data = np.asarray(array, NUMPY_TYPES[dtype])
        if data.nbytes > 1024:
            return self.tensor(name or "constant", data.shape, dtype, data)
        key = (dtype, data.shape, data.tobytes())
        if key not in self._constants:
            self._constants[key] = self.tensor(name or "constant", data.shape, dtype, data)
        return self._constants[key]

    def weight(self, array: Array, name: str) -> FlatTensor:
        """Return a weight: float32, or float16 behind a DEQUANTIZE that the runtime computes once."""
        if not self.float16 or array.size < HALF_FROM or array.dtype != np.float32:
            return self.constant(array, _type_name(array), name)
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
        """Write an operation with one result, and return the result."""
        out = self.tensor(name or self._source or code.lower(), shape, dtype)
        self.add_operation(code, inputs, [out], options)
        return out

    def add_operation(
        self,
        code: str,
        inputs: Sequence[FlatTensor | None],
        outputs: Sequence[FlatTensor],
        options: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        """Write an operation whose result tensors are given.

        Raises:
            Unsupported: If an operand has no elements.
        """
        # The second input of a RESHAPE to a scalar is an empty vector of sizes.
        read = inputs[:1] if code == "RESHAPE" else inputs
        if any(tensor is not None and 0 in tensor.shape for tensor in read):
            raise Unsupported("an operand has no elements")
        made = FlatOperation(code, tuple(inputs), tuple(outputs), options, self._source)
        for tensor in outputs:
            tensor.producer = made
        self.model.operations.append(made)

    def fuse_activation(self, node: Node) -> tuple[int, Value]:
        """Return the fused activation of a node (the schema's number) and the value that the operation then computes.

        An activation that is the only reader of the node is fused and needs no operation of its own; without one, the result is
        0 and the node's own output.
        """
        value = node.output
        if value.has_one_use:
            user = value.users[0]
            if isinstance(user.op, Activation) and user.op in FUSED and user not in self.done:
                self.done.add(user)
                return FUSED_CODES[FUSED[user.op]], user.output
        return 0, value

    def is_read(self, tensor: FlatTensor) -> bool:
        """Whether an operation that is already written reads the tensor."""
        return any(tensor in operation.inputs for operation in self.model.operations)

    @contextmanager
    def reading_int8(
        self, values: Sequence[Value], quantization: Quantization | None = None
    ) -> Iterator[None]:
        """Inside this context, rules read the int8 tensors of these values, requantised if ``quantization`` is given."""
        placed, copies, done = dict(self.placed), self.copies, set(self.done)
        self.copies = {}
        for value in values:
            tensor, layout = self.int8[value]
            if quantization is not None and tensor.quantization != quantization:
                tensor = self.op(
                    "QUANTIZE", [tensor], tensor.shape, "INT8", ("QuantizeOptions", {})
                )
                tensor.quantization = quantization
            self.placed[value] = (tensor, layout)
        try:
            yield
        finally:
            self.placed, self.copies, self.done = placed, copies, done

    # Moving data.

    def reshape(self, tensor: FlatTensor, shape: Sequence[int]) -> FlatTensor:
        """Return a tensor with the same elements in another shape.

        Raises:
            Unsupported: If more than one size is unknown.
        """
        shape = tuple(shape)
        if shape == tensor.shape:
            return tensor
        if tensor.data is not None:
            return self.constant(tensor.data.reshape(shape), tensor.dtype, tensor.name)
        if shape.count(DYNAMIC) > 1:
            raise Unsupported("more than one size of the reshaped tensor is not known")
        before = tensor.producer
        if before is not None and before.code == "RESHAPE":
            return self.reshape(before.required(0), shape)
        made = self.op(
            "RESHAPE", [tensor, self.constant(_shape_array(shape), "INT32")], shape, tensor.dtype,
            ("ReshapeOptions", {"newShape": list(shape)}),
        )  # fmt: skip
        made.quantization = tensor.quantization
        return made

    def transpose(self, tensor: FlatTensor, perm: Sequence[int]) -> FlatTensor:
        """Return a tensor with its axes permuted by a TRANSPOSE."""
        if tuple(perm) == tuple(range(len(perm))):
            return tensor
        made = self.op(
            "TRANSPOSE", [tensor, self.constant(_shape_array(perm), "INT32")],
            [tensor.shape[p] for p in perm], tensor.dtype, ("TransposeOptions", {}),
        )  # fmt: skip
        made.quantization = tensor.quantization
        return made

    def convert(
        self, tensor: FlatTensor, shape: Shape, source: Layout, target: Layout
    ) -> FlatTensor:
        """Return a tensor in another layout, by a RESHAPE if only axes of size 1 move, else by a TRANSPOSE.

        Args:
            tensor: The tensor.
            shape: The logical shape of its value.
            source: Its layout.
            target: The layout to return.
        """
        if source.inner and target.inner and source.inner != target.inner:
            middle = Layout(source.perm)
            tensor = self.convert(tensor, shape, source, middle)
            source = middle
        before = [a for a in _split_axes(source, target, shape) if a[2] != 1]
        after = [a for a in _split_axes(target, source, shape) if a[2] != 1]
        if before == after:
            return self.reshape(tensor, _with_dynamic(target.stored_shape(shape)))
        if source.inner is None and target.inner is None:
            return self.transpose(tensor, [source.place(axis) for axis in target.perm])
        wide = self.reshape(tensor, _with_dynamic(size for *_, size in before))
        made = self.transpose(wide, [before.index(a) for a in after])
        return self.reshape(made, _with_dynamic(target.stored_shape(shape)))

    def _unique_name(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if not count else self._unique_name(f"{name}_{count}")


def signature_names(graph: Graph) -> tuple[list[str], list[str]]:
    """The names of inputs and outputs that the author of the model knows."""
    if is_from_torch(graph):
        from ...hosts.torch.signature import input_names, output_names

        return input_names(graph), output_names(graph)
    inputs = [v.host if isinstance(v.host, str) else v.name for v in graph.inputs]
    return inputs, list(graph.output_names)


def arranged(array: Array, layout: Layout) -> Array:
    """Return an array, given in the model's order, in the order of a layout."""
    inner = layout.inner
    if inner is not None and array.shape[inner.axis] != 1:
        array = reordered(array, inner)
    return array.transpose(layout.perm)


def reordered(array: Array, inner: InnerOrder) -> Array:
    """Return an array with the elements along one axis in the stored order."""
    axis = inner.axis
    wide = array.reshape(*array.shape[:axis], *inner.sizes, *array.shape[axis + 1 :])
    order = [
        *range(axis),
        *(axis + i for i in inner.order),
        *range(axis + len(inner.sizes), wide.ndim),
    ]
    return wide.transpose(order).reshape(array.shape)


_LARGEST_SIZE = 2**31 - 1

SplitAxis = tuple[int, int, Dim]
"""Axis, number of the part of the axis, size of the part."""


def _split_axes(layout: Layout, other: Layout, shape: Shape) -> list[SplitAxis]:
    """Return the stored axes of a layout, an axis with an inner order in either layout split into its parts."""
    found: list[SplitAxis] = []
    for axis in layout.perm:
        own = layout.inner if layout.inner and layout.inner.axis == axis else None
        theirs = other.inner if other.inner and other.inner.axis == axis else None
        split = own or theirs
        if split is None:
            found.append((axis, 0, shape[axis]))
        else:
            order = own.order if own else range(len(split.sizes))
            found += [(axis, part, split.sizes[part]) for part in order]
    return found


def _with_dynamic(dims: Any) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else DYNAMIC for d in dims)


def _check_sizes(dims: Sequence[int]) -> None:
    large = [d for d in dims if d > _LARGEST_SIZE]
    if large:
        raise Unsupported(f"TFLite stores sizes as int32, and one is {large[0]:,}")


def _shape_array(dims: Sequence[int]) -> Array:
    _check_sizes(dims)
    return np.asarray(dims, np.int32).reshape(len(dims))


def _type_name(array: Array) -> str:
    return next(name for name, dtype in NUMPY_TYPES.items() if array.dtype == dtype)

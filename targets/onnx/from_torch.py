"""Graphs from torch as graphs without a host, from which ONNX files are written natively.

Nodes get the dotted names of modules, weights their names in the ``state_dict``, inputs and outputs the names of ``forward``. Sizes
that follow the batch are the symbol ``batch``: a run on fake tensors of another batch size tells which do. All other sizes are those of
the example inputs, or the symbols of an exported program. A batch norm is one node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from ...hosts.onnx.origins import OnnxForm
from ...hosts.torch.calls import by_name, call_name
from ...hosts.torch.origins import FxOrigin
from ...hosts.torch.signature import input_names, output_names, unique
from ...ir import (
    ArrayTensor,
    Conv,
    ConvTranspose,
    Dequantize,
    Dim,
    DType,
    Flatten,
    Graph,
    GroupNorm,
    InferenceError,
    LayerNorm,
    Linear,
    Node,
    Op,
    Opaque,
    Reshape,
    Rewriter,
    Scale,
    SplatTensor,
    Squeeze,
    Tensor,
    TensorType,
    UsageError,
    Value,
)
from ...ir.analysis.dequantized import is_dequantized
from ...ir.batch_norm import BatchNorm
from ...ir.errors import listed
from ..torch.batch_norms import norm_of
from .torch_calls import CALLS, Call, NotWritten, Writer, squeezed_axes

BATCH = "batch"
"""The symbol of the batch size."""

_ASSERTIONS = frozenset({
    "_assert", "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_check", "_check_is_size", "_guards_fn",
    "sym_constrain_range", "sym_constrain_range_for_size",
})  # fmt: skip
"""Calls that check something and compute nothing."""

_RESHAPING = frozenset({"reshape", "view", "_unsafe_view", "flatten", "unflatten"})
"""Calls that reshape their first argument to the sizes of the others."""

_ROLES = {1: "weight", 2: "bias"}
"""What the constant operands of layers are called in torch."""

_VECTORS = ("weight", "bias", "running_mean", "running_var")
"""The tensors of a batch norm, in ONNX's order."""

_LAYERS = (Conv, ConvTranspose, Linear, LayerNorm, GroupNorm)


@dataclass(frozen=True)
class Needed:
    """What a file needs of a graph from torch.

    Attributes:
        nodes: The nodes, in order; assertions and what only they read is left out.
        ops: Ops in place of calls that shape their first input by computed sizes.
        calls: The calls without an op that have a rule in :mod:`.torch_calls`.
    """

    nodes: list[Node]
    ops: dict[Node, Op]
    calls: dict[Node, fx.Node] = field(default_factory=dict)

    def unknown(self) -> dict[tuple[str, str], list[str]]:
        """The calls that cannot be written: the names of their nodes by what is called and the reason."""
        found: dict[tuple[str, str], list[str]] = {}
        for node in self.nodes:
            if isinstance(node.op, Opaque) and node not in self.ops and node not in self.calls:
                kind = node.op.kind.partition(":")[2]
                found.setdefault((kind, node.op.reason), []).append(node.name)
        return found

    def inputs(self, node: Node) -> tuple[Value | None, ...]:
        """The values that a node of the file reads."""
        return node.inputs[:1] if node in self.ops else node.inputs


def needed(graph: Graph, any_batch: bool = True, *, calls: bool = False) -> Needed:
    """What a file needs of a graph from torch.

    Args:
        graph: The graph.
        any_batch: The file takes batches of any size that the module takes.
        calls: Calls without an op are written by the rules of :mod:`.torch_calls`, as far as they have one.
    """
    found = Needed([], _shaped(graph, any_batch))
    wanted = set(graph.outputs)
    for node in reversed(list(graph.nodes)):
        used = not wanted.isdisjoint(node.outputs)
        if not used and (_is_pure(node) or _is_assertion(graph, node)):
            continue
        found.nodes.append(node)
        call = _with_rule(graph, node) if calls and node not in found.ops else None
        if call is not None:
            found.calls[node] = call
        wanted.update(v for v in found.inputs(node) if v is not None and v.data is None)
    found.nodes.reverse()
    return found


def _with_rule(graph: Graph, node: Node) -> fx.Node | None:
    """The call of a node without an op, if it has a rule."""
    found = _host_node(graph, node) if isinstance(node.op, Opaque) and node.op.pure else None
    if found is None or not isinstance(node.origin, FxOrigin):
        return None
    if found.op == "call_module":
        known = type(graph.host.module.get_submodule(str(found.target))).__name__
        return found if f"nn.{known}" in CALLS else None
    return found if found.op.startswith("call_") and _plain_name(found) in CALLS else None


def _plain_name(found: fx.Node) -> str:
    """The plain name of a call; that of a function of Python itself too."""
    own = getattr(found.target, "__module__", "") == "builtins"
    return str(getattr(found.target, "__name__", "")) if own else call_name(found.target)


def _shaped(graph: Graph, any_batch: bool) -> dict[Node, Op]:
    """Reshapes to sizes that the module computes, as far as the example inputs and another batch tell what these are."""
    calls = [
        n for n in graph.nodes if isinstance(n.op, Opaque) and n.op.pure and _reshapes(graph, n)
    ]
    if not calls or graph.host.inputs is None:
        return {}
    run = graph.host.other_batch() if any_batch else None
    found: dict[Node, Op] = {}
    for node in calls:
        x, y = node.required(0), node.outputs[0]
        now, made = x.type, y.type
        if run is not None and isinstance(x.host, str) and isinstance(y.host, str):
            now, made = run.get(x.host, now), run.get(y.host, made)
        op = _reshape((x.type, y.type), (now, made)) if x.type.size == y.type.size else None
        if op is not None:
            found[node] = op
    return found


def _reshapes(graph: Graph, node: Node) -> bool:
    """Whether a call does nothing but reshape its first argument."""
    found = _host_node(graph, node)
    if found is None or found.op not in ("call_function", "call_method") or not found.args:
        return False
    if any(isinstance(a, torch.dtype) for a in (*found.args, *found.kwargs.values())):
        return False  # The same bytes as other numbers.
    first = found.args[0]
    whole = isinstance(first, fx.Node) and node.required(0).host == first.name
    return whole and call_name(found.target) in _RESHAPING


def hostless(
    graph: Graph, wanted: Needed, any_batch: bool = True, opset: int = 0
) -> tuple[Graph, list[str]]:
    """A copy of a graph from torch without its host, under the names that the author of the module knows.

    Args:
        graph: The graph.
        wanted: What to copy; all calls in it are known.
        any_batch: Leave the batch size open, where the module takes batches of any size.
        opset: The version of ONNX's operators, for calls without an op.

    Returns:
        The copy, and notes for the user.

    Raises:
        UsageError: If the types of inputs are not known.
        NotWritten: If a call without an op cannot be written; the text names all of them.
    """
    for value, name in zip(graph.inputs, input_names(graph), strict=True):
        if value.type.dtype is None or value.type.shape is None:
            if graph.host.inputs is not None:
                raise NotWritten(f"the input {name!r}, which is no tensor")
            raise UsageError(f"the shape of input {name!r} is not known: give example_inputs")
    why = ", as the module does"
    for found in _other_batches(graph, wanted) if any_batch else ():
        open_ = replace(wanted, ops=found.ops)
        try:
            copy = _Copy(graph, _Sizes(graph, found.types), open_, opset)
            return copy.run(), copy.writer.notes()
        except InferenceError:
            continue  # A constant has numbers for one batch size alone.
        except NotWritten as error:
            why = f": others are not expressed by {error}"
    notes = []
    if any_batch and graph.host.inputs is not None and any(v.type.rank for v in graph.inputs):
        sizes = listed(list(dict.fromkeys(str(v.type.dim(0)) for v in graph.inputs if v.type.rank)))
        if any(not v.type.is_static for n in wanted.calls for v in n.outputs if v.type.dtype):
            why = ": sizes inside depend on numbers"
        notes.append(f"the file takes batches of {sizes} only{why}")
    return _Copy(graph, _Sizes(graph, {}), wanted, opset).run(), notes


@dataclass(frozen=True)
class _Other:
    """A graph for a batch of another size.

    Attributes:
        types: The types of values.
        ops: Ops in place of calls, and of reshapes to numbers that fit the batch of the example inputs alone.
    """

    types: dict[Value, TensorType]
    ops: dict[Node, Op]


def _other_batches(graph: Graph, wanted: Needed) -> Iterator[_Other]:
    """The graph for a batch of another size: as the ops infer it or, where they cannot, from a run on fake tensors."""
    if graph.host.inputs is None or _is_one_batch_alone(graph):
        return
    inputs = [v for v in graph.inputs if v.type.rank]
    first = [v for v in inputs if v.type.dim(0) == inputs[0].type.dim(0)]
    # Inputs with another first axis than the first one may be no batches.
    for some in (inputs, first) if len(first) < len(inputs) else (inputs,):
        longer = {v: _longer(v.type) for v in some if v.type.dim(0)}
        found = _inferred(graph, wanted, longer, None) if longer else None
        if found is not None:
            yield found
    run = graph.host.other_batch()
    if run is not None:
        given = {v: run[v.host] for v in graph.inputs if v.host in run}
        found = _inferred(graph, wanted, given, run)
        if found is not None:
            yield found


def _is_one_batch_alone(graph: Graph) -> bool:
    """Whether checks of the module refuse another batch: an export may have taken a branch that depends on the size."""
    checked = any(map(_checks, graph.host.order.values()))
    return checked and graph.host.other_batch() is None


def _longer(kind: TensorType) -> TensorType:
    return kind.with_shape((2 * (kind.dim(0) or 0) + 1, *(kind.shape or ())[1:]))


def _inferred(
    graph: Graph,
    wanted: Needed,
    given: Mapping[Value, TensorType],
    run: Mapping[str, TensorType] | None,
) -> _Other | None:
    """The types of values for other inputs; ``None`` if they are not certain, or ops have numbers that fit the example inputs alone.

    Args:
        graph: The graph.
        wanted: What a file needs of it.
        given: The types of inputs that are larger.
        run: The types of the host's values in a run on such inputs.
    """
    found = {v: v.type for v in graph.inputs} | dict(given)
    ops = dict(wanted.ops)
    for node in wanted.nodes:
        own = wanted.inputs(node)
        read = [None if v is None else v.type if v.data is not None else found[v] for v in own]
        stated = [
            run.get(v.host) if run and isinstance(v.host, str) else None for v in node.outputs
        ]
        if node in wanted.calls:
            if run is None or None in stated:
                return None
            found.update((v, t) for v, t in zip(node.outputs, stated, strict=True) if t is not None)
            continue
        kinds: Sequence[TensorType | None]
        try:
            kinds = ops.get(node, node.op).infer(read) or ()
        except InferenceError:
            kinds = [None] * len(node.outputs)
        for value, kind, told in zip(node.outputs, kinds, stated, strict=True):
            if kind is not None and (told is None or kind.accepts(told)):
                found[value] = kind if told is None else kind.refined(told)
                continue
            first = read[0] if isinstance(node.op, Reshape) else None
            if told is None or first is None:
                return None
            op = _reshape((node.required(0).type, value.type), (first, told))
            if op is None:
                return None
            ops[node], found[value] = op, told
        if None not in stated:
            continue
        changed = any(v is not None and found.get(v, v.type) != v.type for v in own)
        if any(not found[v].is_static for v in node.outputs) or (
            # It may be a reshape to numbers that fit one batch size alone.
            changed and all(found[v] == v.type for v in node.outputs)
        ):
            return None
    return _Other(found, ops)


def _reshape(
    example: tuple[TensorType, TensorType], other: tuple[TensorType, TensorType]
) -> Op | None:
    """A Reshape whose sizes follow the batch, as two runs show; ``None`` where a Reshape cannot.

    Args:
        example: The types of its input and its result for the example inputs.
        other: Their types for another batch.
    """
    before, own, now, made = (kind.shape for kind in (*example, *other))
    if not own or not made or before is None or now is None or len(before) != len(now):
        return None
    target: list[int | None] = []
    for axis, (size, changed) in enumerate(zip(own, made, strict=True)):
        copied = axis < len(before) and (before[axis], now[axis]) == (size, changed)
        same = size == changed and isinstance(size, int)
        target.append(size if same and isinstance(size, int) else None if copied else -1)
    return Reshape(tuple(target)) if target.count(-1) < 2 and 0 not in target else None


def _is_pure(node: Node) -> bool:
    return node.op.pure if isinstance(node.op, Opaque) else True


def _host_node(graph: Graph, node: Node) -> fx.Node | None:
    """The call that a node came from, if it still has its name."""
    order: Mapping[str, fx.Node] = graph.host.order
    names = getattr(node.origin, "nodes", ())
    return order.get(names[-1] if names else node.name)


def _is_assertion(graph: Graph, node: Node) -> bool:
    found = _host_node(graph, node)
    return found is not None and _checks(found)


def _checks(node: fx.Node) -> bool:
    """Whether a host node checks something and computes nothing."""
    if node.op == "call_module":
        return str(node.target) in _ASSERTIONS
    return node.op.startswith("call_") and call_name(node.target) in _ASSERTIONS


class _Sizes:
    """The types of values, with a symbol for sizes that follow the batch."""

    def __init__(self, graph: Graph, other: Mapping[Value, TensorType]) -> None:
        self.other = other
        self.symbols: dict[tuple[Dim, Dim], str] = {}
        self.renamed: dict[str, str] = {}
        for value in graph.inputs:
            shape = value.type.shape or ()
            changed = other[value].shape if value in other else None
            for size, now in zip(shape, changed or shape, strict=True):
                if size != now and (size, now) not in self.symbols:
                    count = len(self.symbols) + 1
                    self.symbols[size, now] = BATCH if count == 1 else f"{BATCH}_{count}"
        first = next((v.type.shape[0] for v in graph.inputs if v.type.shape), None)
        if isinstance(first, str) and re.fullmatch(r"\w+", first):
            self.renamed[first] = BATCH  # What torch.export calls s77.

    def __call__(self, value: Value) -> TensorType | None:
        """The type of a value, or ``None`` if no run tells it."""
        kind = value.type
        if not self.other:
            shape = kind.shape and tuple(self._symbol(d) for d in kind.shape)
            return kind.with_shape(shape)
        changed = self.other.get(value)
        if changed is None or kind.rank is None or changed.rank != kind.rank:
            return None
        pairs = zip(kind.shape or (), changed.shape or (), strict=True)
        return kind.with_shape(tuple(a if a == b else self.symbols.get((a, b)) for a, b in pairs))

    def _symbol(self, size: Dim) -> Dim:
        if not isinstance(size, str):
            return size
        return re.sub(r"[A-Za-z_]\w*", lambda m: self.renamed.get(m[0], m[0]), size)


class _Copy:
    """Builds the copy of a graph."""

    def __init__(self, graph: Graph, sizes: _Sizes, wanted: Needed, opset: int = 0) -> None:
        self.graph, self.sizes, self.wanted = graph, sizes, wanted
        self.made = Graph(graph.name)
        self.writer = Writer(self.made, opset)
        self.objects: dict[Value, Any] = {}
        """What calls give that is no tensor: numbers, lists, types."""
        self.refused: dict[tuple[str, str], list[str]] = {}
        self.stubs: set[Value] = set()
        self.values: dict[Value, Value] = {}
        self.results: dict[Value, str] = {}
        self.reserved: set[str] = set()
        self.norms: dict[tuple[int, bytes], list[Value]] = {}
        self.filled: dict[tuple[tuple[int, ...], DType, float], Value] = {}

    def run(self) -> Graph:
        """Copy the nodes, with all that they read."""
        graph = self.graph
        inputs = input_names(graph)
        outputs = unique([*inputs, *output_names(graph)])[len(inputs) :]
        for value, name in zip(graph.inputs, inputs, strict=True):
            kind = self.sizes(value) or value.type
            self.values[value] = self.made.add_input(name, kind)
        named = dict(zip(graph.outputs[::-1], outputs[::-1], strict=True))
        self.results = {v: n for v, n in named.items() if v.producer is not None}
        self.reserved = set(outputs)
        self._own_tensors()
        for node in self.wanted.nodes:
            self._node(node)
        if self.refused:
            texts = (f"{kind} ({listed(n)}: {why})" for (kind, why), n in self.refused.items())
            raise NotWritten("; ".join(texts))
        returned: list[tuple[Value, str]] = []
        for value, name in zip(graph.outputs, outputs, strict=True):
            if value in self.objects:
                returned += _parts(self.objects[value], name)
            else:
                returned.append((self._value(value), name))
        names = unique([name for _, name in returned])
        for (value, _), name in zip(returned, names, strict=True):
            self.made.add_output(value, name)
        self._drop_unread()
        return self.made

    def _drop_unread(self) -> None:
        """Remove what rules of calls wrote and nothing reads, such as the places of the largest numbers."""
        rewriter = Rewriter(self.made)
        for node in reversed(list(self.made.nodes)):
            written = isinstance(node.op, Opaque) and isinstance(node.origin, OnnxForm)
            if written and not any(v.use_count for v in node.outputs):
                read = {v for v in node.inputs if v is not None}
                rewriter.erase(node)
                for value in read:
                    if value.data is not None and value.producer is None and not value.use_count:
                        rewriter.erase_constant(value)

    def _free(self, name: str) -> str:
        """A name that is not kept for an output."""
        return f"{name}_value" if name in self.reserved else name

    def _own_tensors(self) -> None:
        """The module's own tensors, under their names."""
        read = (v for node in self.wanted.nodes for v in self.wanted.inputs(node) if v is not None)
        for value in dict.fromkeys((*read, *self.graph.outputs)):
            own = isinstance(value.host, tuple) and value.host[0] in ("tensor", "masked")
            if value.data is not None and value.producer is None and own:
                name = self._free(str(value.host[1]))
                self.values[value] = self.made.add_constant(value.data, name)

    def _value(self, value: Value, hint: str = "") -> Value:
        if value not in self.values:
            self.values[value] = self._constant(value, hint)
        return self.values[value]

    def _constant(self, value: Value, hint: str) -> Value:
        """A constant; one that is dequantised, perhaps in another form, stays integers."""
        assert value.data is not None
        maker = value.producer
        if maker is not None and isinstance(maker.op, Dequantize):
            inputs = [None if v is None else self._value(v) for v in maker.inputs]
            node = self.made.append(maker.op, inputs, name=maker.name)
            node.output.data = value.data
            return node.output
        made = self.made.add_constant(value.data, self._free(hint or value.name))
        if maker is None and len(value.bases) == 1 and is_dequantized(value):
            made.bases = (self._value(value.bases[0]),)
        return made

    def _node(self, node: Node) -> None:
        if node.outputs and all(v.data is not None for v in node.outputs):
            return  # It computes constants, which their readers store.
        name = self._name(node)
        if node in self.wanted.calls:
            self._call(node, self.wanted.calls[node], name)
            return
        if self._is_needless(node):
            self.values[node.output] = self._value(node.required(0))
            return
        self._check_squeezed(node)
        form = self._norm(node, name)
        types = [self._type(v) for v in node.outputs]
        names = [self.results.get(v) or self._free(v.name) for v in node.outputs]
        made = self.made.append(
            self.wanted.ops.get(node, node.op),
            self._inputs(node, name),
            name=name,
            types=types,
            output_names=names,
        )
        made.origin = form
        self.values.update(zip(node.outputs, made.outputs, strict=True))

    def _check_squeezed(self, node: Node) -> None:
        """Note a call that drops an axis if it has size 1, where the size is open in the file, which keeps the axis."""
        found = _host_node(self.graph, node)
        if not isinstance(node.op, Squeeze) or found is None or found.op == "call_module":
            return
        x = self.sizes(node.required(0))
        if x is None or x.shape is None or call_name(found.target) != "squeeze":
            return
        dim = found.args[1] if len(found.args) > 1 else by_name(found.kwargs, "dim")
        for axis in squeezed_axes(dim, len(x.shape)):
            if axis not in node.op.axes and not isinstance(x.shape[axis], int):
                self.writer.keeps_axis(node.name)

    def _is_needless(self, node: Node) -> bool:
        """Whether a node reshapes to the shape that its input has in the file; in the module, other inputs might have other sizes."""
        if not isinstance(node.op, Reshape | Flatten) or node.output in self.results:
            return False
        before, after = self.sizes(node.required(0)), self.sizes(node.output)
        if before is None or after is None or after.shape is None:
            return False
        return before.shape == after.shape and None not in after.shape

    def _type(self, value: Value) -> TensorType:
        """The type of a value; without a run that tells it, only the number of axes."""
        kind = value.type
        return self.sizes(value) or kind.with_shape(
            None if kind.rank is None else (None,) * kind.rank
        )

    # Calls without an op.

    def _call(self, node: Node, found: fx.Node, name: str) -> None:
        """Write a call without an op by its rule; a placeholder stands in for what is refused."""
        self.writer.name = name
        kind, (result,) = self._type(node.output), node.outputs
        try:
            made = self._written(node, found, kind)
        except NotWritten as error:
            if self.stubs.isdisjoint(node.inputs):
                own = self.refused.setdefault((_plain_name(found), str(error)), [])
                own.append(node.name)
            self.stubs.add(result)
            made = self.writer.op("Identity", type=kind)
        if not isinstance(made, Value):
            self.objects[result] = made
            return
        self.values[result] = made
        made.type = kind.refined(made.type) if made.data is None else made.type

    def _written(self, node: Node, found: fx.Node, kind: TensorType) -> Any:
        sources = found.all_input_nodes
        if len(sources) != len(node.inputs):
            raise NotWritten("a pass changed what it reads")
        names = {source.name: v for source, v in zip(sources, node.inputs, strict=True)}

        def lookup(source: fx.Node) -> Any:
            value = names.get(source.name)
            if value is None:
                raise NotWritten(f"what became of {source.name} is not known")
            return self.objects[value] if value in self.objects else self._value(value)

        args: Any = fx.map_arg(found.args, lookup)
        kwargs: Any = fx.map_arg(found.kwargs, lookup)  # type: ignore[call-overload]
        call, module = _plain_name(found), None
        if found.op == "call_module":
            module = self.graph.host.module.get_submodule(str(found.target))
            call = f"nn.{type(module).__name__}"
        made = CALLS[call](Call(self.writer, call, tuple(args), kwargs, kind, module))
        if isinstance(made, Value) and not kind.accepts(made.type):
            raise NotWritten(f"it gives {kind}, and its rule {made.type}")
        return made

    def _inputs(self, node: Node, name: str) -> list[Value | None]:
        layer = isinstance(node.op, _LAYERS)
        return [
            None if v is None
            else self._value(v, f"{name}.{_ROLES[i]}" if layer and i in _ROLES else _behind(v, node, name))
            for i, v in enumerate(self.wanted.inputs(node))
        ]  # fmt: skip

    def _name(self, node: Node) -> str:
        """The name of a node: that of its module, or of its function behind that of the module that calls it."""
        found = _host_node(self.graph, node)
        if found is None or found.op not in ("call_function", "call_method"):
            return node.name
        path = _path(found)
        if not path or node.name == path or node.name.startswith(f"{path}."):
            return node.name
        return f"{path}.{re.sub(r'_[0-9]+$', '', node.name)}"

    # Batch norms.

    def _norm(self, node: Node, name: str) -> OnnxForm | None:
        """A Scale of channels as BatchNormalization: with the tensors of its module, or with a mean of 0 and a variance of 1."""
        op, x = node.op, node.required(0)
        scale, shift = node.input(1), node.input(2)
        if not isinstance(op, Scale) or scale is None or shift is None:
            return None
        rank, dtype, channels = x.type.rank, x.type.dtype, x.type.dim(1)
        plain = rank is not None and rank > 1 and op.axis % rank == 1 and channels is not None
        whole = all(v.data is not None and v.data.shape == (channels,) for v in (scale, shift))
        if not plain or not whole or dtype is None or not dtype.is_wide_float:
            return None
        found = norm_of(node)
        vectors = None if found is None else self._own_vectors(*found, dtype, name)
        epsilon = 0.0 if found is None or vectors is None else found[0].epsilon
        if vectors is None:
            vectors = [self._value(scale, f"{name}.weight"), self._value(shift, f"{name}.bias")]
            vectors += [self._splat(scale, dtype, number) for number in (0.0, 1.0)]
        form = (self._value(x), *vectors)
        return OnnxForm("BatchNormalization", form, (("epsilon", epsilon),))

    def _own_vectors(
        self, norm: BatchNorm, order: npt.NDArray[np.int64], dtype: DType, name: str
    ) -> list[Value] | None:
        """The tensors of a batch norm; ``None`` where ONNX's float32 attribute would round its epsilon too much."""
        tensors = (norm.gamma, norm.beta, norm.mean, norm.var)
        own = all(t is None or t.dtype is dtype for t in tensors)
        if dtype not in (DType.F32, DType.F16) or not own:
            return None
        # Calls of one module share its tensors.
        key = (id(norm.host or norm), order.tobytes())
        if key not in self.norms:
            made = []
            for field, tensor in zip(_VECTORS, tensors, strict=True):
                if tensor is None:
                    data: Tensor = SplatTensor((len(order),), dtype, float(field == "weight"))
                else:
                    data = ArrayTensor(tensor.numpy()[order])
                made.append(self.made.add_constant(data, self._free(f"{name}.{field}")))
            self.norms[key] = made
        return self.norms[key]

    def _splat(self, like: Value, dtype: DType, number: float) -> Value:
        """A vector of zeros or ones, which all nodes share."""
        assert like.data is not None
        key = (like.data.shape, dtype, number)
        if key not in self.filled:
            name = self._free("ones" if number else "zeros")
            self.filled[key] = self.made.add_constant(SplatTensor(*key), name)
        return self.filled[key]


def _parts(found: Any, name: str) -> Iterator[tuple[Value, str]]:
    """The tensors of what a call returns, with names.

    Raises:
        NotWritten: If it has something else than tensors.
    """
    if isinstance(found, Value):
        yield found, name
    elif isinstance(found, list | tuple):
        for i, part in enumerate(found):
            yield from _parts(part, f"{name}_{i}")
    else:
        raise NotWritten(f"output {name} is no tensor")


def _behind(value: Value, node: Node, name: str) -> str:
    """The name of a constant of a node, behind the node's new name."""
    own = value.name.startswith(f"{node.name}_")
    return name + value.name.removeprefix(node.name) if own else value.name


def _path(node: fx.Node) -> str:
    """The module whose ``forward`` makes a call, by its dotted name; empty for that of the whole model."""
    stack = node.meta.get("nn_module_stack") or {}
    found = list(stack.values())[-1] if stack else None
    path = str(found[0]) if isinstance(found, tuple) else ""
    return path.removeprefix("L['self']").removeprefix(".")


__all__ = ["BATCH", "Needed", "hostless", "needed"]

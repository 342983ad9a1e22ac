"""ONNX models to IR graphs.

Every host node becomes one or several IR nodes: canonical ops if a rule can read it, otherwise one ``Opaque`` node. Then
patterns of several nodes are raised to one op (see :mod:`..raising.patterns`). Values keep their ONNX names as ``host``, and
nodes keep the indices of their host nodes as ``origin``, so that the emitter can copy unchanged nodes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper

from ...hosts.onnx.operators import DOMAINS
from ...hosts.onnx.origins import OnnxHost, OnnxOrigin
from ...hosts.onnx.scopes import captures, has_bodies
from ...hosts.onnx.tensors import (
    constant_of,
    is_external,
    proto_of,
    read_model,
    tensor_of,
    tensors_of_nodes,
    text_of,
)
from ...hosts.onnx.types import NodeTypes, proto_of_type, stated_types, type_of
from ...ir import (
    UNKNOWN,
    ArrayTensor,
    DType,
    Graph,
    GraphError,
    InferenceError,
    LazyTensor,
    ModelError,
    Node,
    Opaque,
    Reshape,
    Tensor,
    TensorType,
    Value,
)
from ...ir.analysis.sizes import SizeRoots
from ...ir.errors import listed
from ..lowering import Step, Steps
from ..raising.patterns import raise_patterns
from ..support import LeftAlone, limit
from .bounds import check_bounds
from .constants import SHAPE_LIKE, Constants
from .defaults import defaults, held_note, hold_defaults
from .fixed_sizes import Fixed, fix_shapes, state_outputs
from .inlining import first_result, inline_branches, inline_functions
from .newer_opset import in_newer_opset
from .node import OnnxNode
from .order import ordered
from .registry import Entry
from .rules import RULES
from .sizes import KnownSizes


def from_onnx(
    model: ModelProto | str | os.PathLike[str],
    fixed_shapes: Fixed | None = None,
    *,
    overridable_initializers: bool = False,
    remedy: str = "",
    inline: bool = False,
    opset: int | None = None,
) -> Graph:
    """Import an ONNX model.

    Args:
        model: The model, or the path of a file; external data is mapped, not read.
        fixed_shapes: Sizes of inputs to fix before anything else, by input name.
        overridable_initializers: Keep initializers that are also listed as inputs as inputs.
            Otherwise they become weights, and a note names them; they stay inputs if the model has no other input.
        remedy: Text for that note: how the user can keep them as inputs.
        inline: Inline local functions that contain linear layers, and replace each If with a known condition by its branch;
            notes name them. Without it, an unchanged graph is emitted as an equal model.
        opset: Convert the model to this version of ONNX's operators first; a note says so.

    Raises:
        ModelError: If the file cannot be read, or reading it is not allowed, or it cannot be converted.
        UsageError: If fixed shapes do not fit the inputs, or there is no such opset.
    """
    given = isinstance(model, ModelProto)
    proto, folder = (model, None) if isinstance(model, ModelProto) else read_model(model)
    name = "the model" if isinstance(model, ModelProto) else os.fspath(model)
    # The model may be larger than its file: read_model reads small external data of bodies and attributes into it.
    size = None if isinstance(model, ModelProto) else max(os.path.getsize(model), proto.ByteSize())
    check_bounds(proto, name, size)
    raised = ""
    if opset is not None:
        proto, raised = in_newer_opset(proto, opset, folder, name)
        given = given and not raised
    overridable = defaults(proto)
    only = len(overridable) == len(proto.graph.input)
    held = () if overridable_initializers or only else overridable
    if given and (fixed_shapes or held):
        proto = ModelProto.FromString(proto.SerializeToString())
        given = False  # A copy, which may be changed further.
    if held:
        hold_defaults(proto)
    stated: dict[str, dict[int, int]] = {}
    if fixed_shapes:
        stated = fix_shapes(proto, fixed_shapes)
    functions = ""
    if inline:
        inlined, functions = inline_functions(proto)
        given = given and inlined is proto
        proto = inlined
    proto, was_sorted = ordered(proto, name, copy=given)
    if inline:
        graph = _inlined(proto, folder, copy=given and not was_sorted)
    else:
        graph = _Importer(proto, folder).run()
    if fixed_shapes:
        state_outputs(graph, stated)
    graph.notes += [note for note in (raised, functions) if note]
    if held:
        graph.notes.append(held_note(held, remedy))
    elif overridable and only and not overridable_initializers:
        graph.notes.append(
            "every input of the model has a default: all stay inputs, since none would be left"
        )
    if was_sorted:
        graph.notes.append("the model's nodes were not in topological order: they were sorted")
    return graph


def _inlined(
    proto: ModelProto,
    folder: Path | None,
    copy: bool,
    tensors: Mapping[str, Tensor] | None = None,
    reserved: frozenset[str] = frozenset(),
) -> Graph:
    """Import a model in which each If with a known condition is replaced by the branch that it takes."""
    resolved: list[str] = []
    for _ in range(_MOST_NESTED):
        importer = _Importer(proto, folder, tensors, reserved)
        importer.read_graph()
        if not importer.decided:
            break
        if copy and not resolved:
            proto = ModelProto.FromString(proto.SerializeToString())
        resolved += importer.decided
        inline_branches(proto, importer.decided, reserved)
    undecided = not importer.decided
    graph = importer.raised() if undecided else _Importer(proto, folder, tensors, reserved).run()
    if resolved:
        graph.notes.append(
            f"{len(resolved)} Ifs have a known condition and are the branch that they take: {listed(resolved)}"
        )
    return graph


_MOST_NESTED = 16
"""Ifs that are nested deeper than this are not inlined."""


def from_body(
    model: ModelProto,
    base_dir: Path | None,
    tensors: Mapping[str, Tensor],
    reserved: frozenset[str],
) -> Graph:
    """Import the body of a node that was made a model of its own; Ifs with a known condition are replaced by their branch.

    Args:
        model: The model, which may be changed. What the body captures is an input or an initializer.
        base_dir: The folder of its external data.
        tensors: The numbers of initializers that are placeholders.
        reserved: Names of the scopes around it, which new values must not take.
    """
    return _inlined(model, base_dir, False, tensors, reserved)


def with_constant_defaults(graph: Graph, model: ModelProto) -> Graph:
    """Turn the inputs of an ONNX-born graph that have a default into constants.

    Args:
        graph: The graph.
        model: The graph, emitted as an ONNX model. It is changed.
    """
    hold_defaults(model)
    return _Importer(model, graph.host.base_dir).run()


def value_types(
    model: ModelProto, tensors: Mapping[str, Tensor], base_dir: Path | None = None
) -> dict[str, TensorType]:
    """The types of all values of a model's graph, if they are stated or can be inferred.

    Args:
        model: The model, with nodes in topological order; initializers may be placeholders without numbers.
        tensors: The numbers of these placeholders.
        base_dir: The folder of its external data.
    """
    importer = _Importer(model, base_dir, tensors)
    importer.read_graph()
    return {name: value.type for name, value in importer.values.items()}


class _Importer:
    def __init__(
        self,
        model: ModelProto,
        base_dir: Path | None,
        tensors: Mapping[str, Tensor] | None = None,
        reserved: frozenset[str] = frozenset(),
    ) -> None:
        self.model, self.base_dir, self.reserved = model, base_dir, reserved
        self.graph = Graph(text_of(model.graph.name) or "graph")
        versions = {o.domain: o.version for o in model.opset_import}
        self.opset = versions.get("", versions.get("ai.onnx", 1))
        self.functions = {(f.domain, f.name) for f in model.functions}
        self.tensors = tensors or {}
        self.values: dict[str, Value] = {}
        self.types: dict[str, TensorType] = {}
        self.constant_nodes: dict[str, int] = {}
        self.constants = Constants(model)
        self.read = self._read_names()
        self.sizes = KnownSizes(SizeRoots())
        self.node_types = NodeTypes(model)
        self.doubtful: set[str] = set()
        """Values whose stated type contradicts what an operator infers, and values computed from them."""
        self.others: dict[str, TypeProto] = {}
        """The types of inputs and results that are not tensors."""
        self.decided: dict[str, bool] = {}
        """The known conditions of Ifs, by the name of the If's first result."""

    def run(self) -> Graph:
        """The graph, with patterns of several nodes raised."""
        self.read_graph()
        return self.raised()

    def raised(self) -> Graph:
        """The graph that was read, with patterns of several nodes raised."""
        raise_patterns(self.graph, _combine)
        return self.graph

    def read_graph(self) -> None:
        """Read inputs, constants, nodes and outputs of the host graph into the IR."""
        host = self.model.graph
        self.types = stated_types(self.model)
        given = {v.name for v in host.input}
        initial = {t.name: t for t in host.initializer}
        for item in host.input:
            # Before IR version 4 every initializer had to be listed as an input as well.
            if item.name in initial and self.model.ir_version < 4:
                continue
            self._define(self.graph.add_input(item.name, type_of(item.type)), item.name)
            if item.type.WhichOneof("value") not in (None, "tensor_type"):
                self.others[item.name] = item.type
        for name, proto in initial.items():
            if name in given and self.model.ir_version >= 4:
                continue  # The caller may override it: an input with a default, not a constant.
            data = self.tensors.get(name) or tensor_of(proto, self.base_dir)
            if data is not None:
                self._define(self.graph.add_constant(data, name), name)
            else:
                self._barrier_value(name)
        for sparse in host.sparse_initializer:
            self._barrier_value(sparse.values.name)
        for index, node in enumerate(host.node):
            self._node(index, node)
        for item in host.output:
            self.graph.add_output(self.values[item.name], item.name)
        idle = frozenset(set(initial) | set(self.constant_nodes)) - self.read
        self.graph.host = OnnxHost(
            self.model,
            self.base_dir,
            self.opset,
            self.constant_nodes,
            idle,
            reserved=self.reserved,
        )

    # Names and types.

    def _read_names(self) -> set[str]:
        host = self.model.graph
        read = {name for node in host.node for name in node.input}
        read.update(v.name for v in host.output)
        for node in host.node:
            if has_bodies(node):
                read.update(captures(node))
        return read

    def _infer(self, node: NodeProto, read: Mapping[str, Value]) -> None:
        """Ask onnx for the types of results that the model does not state."""
        if all(name in self.types for name in node.output if name):
            return
        known: dict[str, TypeProto] = {}
        numbers: dict[str, TensorProto] = {}
        for name, value in read.items():
            data = value.data
            if data is not None and data.dtype.is_int and data.size <= SHAPE_LIKE:
                numbers[name] = proto_of(data, name)
            known[name] = self.others.get(name) or proto_of_type(value.type)
        for name, type_ in self.node_types.of(node, known, numbers).items():
            self.types.setdefault(name, type_of(type_))
            if type_.WhichOneof("value") not in (None, "tensor_type"):
                self.others[name] = type_

    def _define(self, value: Value, name: str) -> None:
        value.host = name
        self.values[name] = value

    def _barrier_value(self, name: str) -> None:
        """Add an opaque node for a host constant that the IR cannot represent as a tensor (text, sparse tensors)."""
        node = self.graph.append(
            Opaque("onnx:initializer", pure=False, reason="it is text or a sparse tensor"),
            [],
            name=name,
            types=[self.types.get(name, UNKNOWN)],
            output_names=[name],
        )
        node.origin = OnnxOrigin((), (), (name,))
        self._define(node.output, name)

    # Nodes.

    def _node(self, index: int, node: NodeProto) -> None:
        domain = node.domain in DOMAINS
        if domain and node.op_type == "Constant" and self._constant(index, node):
            return
        self._doubt_behind(node)
        if domain and node.op_type == "If":
            self._decide(node)
        inputs = [self.values[n] if n else None for n in node.input]
        lowered: tuple[Steps, int] | None = None
        reason = ""
        known = (node.domain, node.op_type) not in self.functions and domain
        # onnx and onnxruntime would look for the file in another folder if they are given this node alone.
        known = known and not any(map(is_external, tensors_of_nodes([node])))
        own = known or (node.domain, node.op_type) not in self.functions
        key = node.op_type if known else f"{node.domain}.{node.op_type}"
        entry = RULES.get(key) if own and any(node.output) else None
        if entry is not None and self.opset < entry.since:
            reason = (
                f"it meant something else before opset {entry.since}, and the file has {self.opset}"
            )
        elif entry is not None:
            try:
                lowered = self._lower(entry, node, inputs)
            except LeftAlone as error:
                reason = str(error)
        if lowered is None:
            captured = captures(node)
            self._infer(node, {n: self.values[n] for n in (*node.input, *captured) if n})
            inputs += [self.values[name] for name in captured]
            pure = known and not node.op_type.startswith(("Random", "Bernoulli", "Multinomial"))
            pure = pure and not has_bodies(node)
            kind = f"onnx:{node.domain + '.' if not domain else ''}{node.op_type}"
            made = self.graph.append(
                Opaque(kind, pure, reason, _signature(node) if pure else ""),
                inputs,
                name=text_of(node.name),
                types=[self.types.get(o, UNKNOWN) for o in node.output],
                output_names=_names(node),
            )
            parts = [made]
        else:
            parts = self._append(node, *lowered, inputs)
            made = parts[-1]
        for value, name in zip(made.outputs, node.output, strict=False):
            if name:
                self._define(value, name)
        for part in parts:
            part.origin = OnnxOrigin(
                (index,),
                tuple(v.host if v is not None else None for v in part.inputs),
                tuple(v.host for v in part.outputs),
                len(parts),
            )
        if known:
            self._fold(node, made)
            self.sizes.see(made, node)

    def _decide(self, node: NodeProto) -> None:
        """Record which branch an If takes, if its condition is known."""
        condition = self.values[node.input[0]].data
        if condition is not None and condition.size == 1 and first_result(node):
            self.decided[first_result(node)] = bool(condition.numpy().reshape(-1)[0])

    def _append(
        self, node: NodeProto, steps: Steps, results: int, inputs: list[Value | None]
    ) -> list[Node]:
        """Append one or several IR nodes for a host node; the last one computes its results, of which the first ones are read."""
        made: list[Node] = []
        last = len(steps.parts) - 1
        place = 0
        for number, (op, operands) in enumerate(steps.parts):
            arguments: list[Value | None] = []
            for operand in operands:
                if isinstance(operand, Step):
                    arguments.append(made[operand.number].outputs[operand.result])
                elif isinstance(operand, Tensor):
                    arguments.append(self._derived(operand, node, place, inputs))
                else:
                    arguments.append(operand)
                place += 1
            if number == last:
                name = text_of(node.name)
                types, names = self._stated(node)[:results], _names(node)[:results]
            else:
                step = f"{op.name.lower()}_{number}"
                name = f"{text_of(node.name) or node.output[0]}_{step}"
                types, names = [UNKNOWN], [f"{node.output[0]}_{step}"]
            made.append(
                self.graph.append(op, arguments, name=name, types=types, output_names=names)
            )
            if number != last:
                made[-1].output.host = ("inner", node.output[0], number)
        return made

    def _stated(self, node: NodeProto) -> list[TensorType]:
        return [self.types.get(o, UNKNOWN) for o in node.output]

    def _lower(
        self, entry: Entry, node: NodeProto, inputs: list[Value | None]
    ) -> tuple[Steps, int]:
        """What the rule of a node makes of it, and how many of its results are read.

        Raises:
            LeftAlone: If the node must stay opaque; the text says why.
        """
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        results = len(node.output)
        if entry.idle_results and not any(o and o in self.read for o in node.output[1:]):
            results = min(results, 1)
        found = OnnxNode(node.op_type, inputs, results, attributes, self.opset, self.sizes)
        try:
            lowered = entry.rule(found)
            if lowered is None:
                raise LeftAlone(limit(entry.note))
            if found.unread:
                raise LeftAlone(f"its rule does not read {listed(found.unread)}")
            steps = lowered if isinstance(lowered, Steps) else Steps((lowered,))
            if not node.output[0] and _makes_values(steps):
                # Steps and their constants are named after the first result.
                raise LeftAlone("its first result is left out, and several ops would stand for it")
            inferred = steps.infer()[-1]
        except (InferenceError, GraphError, ModelError, ValueError) as error:
            raise LeftAlone(f"{limit(entry.note)} ({error})") from error
        stated = self._stated(node)[:results]
        if len(inferred) != results or len(stated) != results:
            raise LeftAlone(
                f"{len(stated)} of its results are read, the IR's op has {len(inferred)}"
            )
        # If the types that the model states disagree with the op's, either may be wrong: the rule misreads this node, or the
        # types were inferred wrongly (onnx rounds the size of some pools up where a runtime does not).
        ranks = (inferred[0].rank, stated[0].rank)
        reshape = isinstance(steps.parts[-1][0], Reshape) and None not in ranks
        if reshape and ranks[0] != ranks[1]:
            # A target of known length decides the rank, so that it is the stated type that is wrong.
            self.types[node.output[0]] = inferred[0]
            self.doubtful.add(node.output[0])
        elif not all(i.accepts(t) for i, t in zip(inferred, stated, strict=True)):
            for name, own in zip(node.output, inferred, strict=False):
                if not name:
                    continue
                self.types[name] = _agreed(self.types.get(name, UNKNOWN), own)
                self.doubtful.add(name)
            raise LeftAlone(
                "the types that the file states for its results are not those that it computes"
            )
        return steps, results

    def _doubt_behind(self, node: NodeProto) -> None:
        """Forget the stated types of results that are computed from values whose stated type may be wrong."""
        if not self.doubtful:
            return
        read = {*node.input, *captures(node)} if has_bodies(node) else set(node.input)
        if not self.doubtful.isdisjoint(read):
            for name in filter(None, node.output):
                self.types.pop(name, None)
                self.doubtful.add(name)

    def _derived(
        self, data: Tensor, node: NodeProto, place: int, inputs: list[Value | None]
    ) -> Value:
        value = self.graph.add_constant(data, f"{node.output[0]}_c{place}")
        value.host = ("derived", node.output[0], place)
        value.bases = tuple(v for v in inputs if v is not None and v.data is not None)
        return value

    def _constant(self, index: int, node: NodeProto) -> bool:
        data = constant_of(node, self.base_dir)
        if data is None:
            return False
        self._define(self.graph.add_constant(data, node.output[0]), node.output[0])
        self.constant_nodes[node.output[0]] = index
        return True

    # Constants that are computed from constants.

    def _fold(self, node: NodeProto, made: Node) -> None:
        outputs = made.outputs
        if node.op_type == "Shape" and node.input[0]:
            shape = self.values[node.input[0]].type.static_shape
            if shape is not None:
                cut = {a.name: a.i for a in node.attribute}
                part = shape[cut.get("start", 0) : cut.get("end", len(shape))]
                outputs[0].data = ArrayTensor(np.array(part, np.int64))
                outputs[0].type = outputs[0].data.type
            return
        if node.op_type == "CastLike":
            # Only the element type of the second input matters; its numbers may be unknown.
            data, like = self.values[node.input[0]].data, self.values[node.input[1]].type.dtype
            if data is not None and data.dtype is like:
                outputs[0].data, outputs[0].type = LazyTensor(*_same(data)), data.type
                return
            if data is not None and data.dtype.is_int and like is not None and like.is_wide_float:
                cast = LazyTensor(data.shape, like, partial(_as_floats, data, like))
                outputs[0].data, outputs[0].type = cast, cast.type
                return
        feeds: dict[str, Tensor] = {}
        for name in filter(None, node.input):
            data = self.values[name].data
            if data is None:
                return
            feeds[name] = data
        # Stated types of results may be wrong; types inferred by ops are not.
        certain = [UNKNOWN if isinstance(made.op, Opaque) else v.type for v in outputs]
        results = self.constants.results(node, feeds, certain)
        if results is None or len(results) != len(outputs):
            return
        for value, tensor in zip(outputs, results, strict=True):
            if value.type.accepts(tensor.type):
                value.data, value.type = tensor, tensor.type


def _names(node: NodeProto) -> list[str]:
    """The names of the results of a node; those that it leaves out get one too."""
    return [name or f"{node.op_type}_unused" for name in node.output]


def _makes_values(steps: Steps) -> bool:
    """Whether steps have inner results or tensors of their own."""
    operands = (operand for _, operands in steps.parts for operand in operands)
    return len(steps.parts) > 1 or any(isinstance(operand, Tensor) for operand in operands)


def _agreed(one: TensorType, other: TensorType) -> TensorType:
    """The parts of two contradicting types that agree."""
    dtype = one.dtype if one.dtype is other.dtype else None
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return TensorType(dtype)
    pairs = zip(one.shape, other.shape, strict=True)
    return TensorType(dtype, tuple(a if a == b else None for a, b in pairs))


def _signature(node: NodeProto) -> str:
    """The attributes of an operator as text; empty where equal attributes do not give equal results."""
    # Dropout draws numbers when it is in training mode.
    if node.op_type == "Dropout" or any(map(is_external, tensors_of_nodes([node]))):
        return ""
    given = sorted((a.name, a.SerializeToString(deterministic=True)) for a in node.attribute)
    return hashlib.sha256(repr((node.op_type, given)).encode()).hexdigest()


def _same(data: Tensor) -> tuple[tuple[int, ...], DType, Callable[[], Any]]:
    """Shape, element type and loader of a tensor: the arguments of a ``LazyTensor`` without its host object."""
    return data.shape, data.dtype, data.numpy


def _as_floats(data: Tensor, like: DType) -> Any:
    return data.numpy().astype(like.numpy)


def _combine(origins: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """The origin of a pattern that is made of several nodes."""
    nodes = sorted(index for origin in origins for index in origin.nodes)
    return OnnxOrigin(tuple(nodes), tuple(inputs), tuple(outputs))


__all__ = [
    "OnnxHost",
    "OnnxOrigin",
    "from_body",
    "from_onnx",
    "value_types",
    "with_constant_defaults",
]

"""IR graphs to ONNX.

For a graph from ONNX, the host model is edited: unchanged nodes are copied verbatim with remapped names, changed nodes
are written in the model's own opset, and everything else in the model (metadata, functions, doc strings, custom domains)
is kept. If nothing was changed, the result equals the host model. For a graph that was parsed from text, or came from torch
(:mod:`.from_torch`), all nodes are written new. torch's own exporter (:mod:`.torch_exporter`) writes graphs from torch that have
calls which the IR does not know.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import (
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
    helper,
)

from ...hosts.onnx.operators import DOMAINS
from ...hosts.onnx.origins import OnnxForm, OnnxHost, OnnxOrigin
from ...hosts.onnx.scopes import all_names, bodies, captures, has_bodies, rename
from ...hosts.onnx.tensors import code_of, is_external, proto_of, tensors_in
from ...hosts.torch import is_from_torch
from ...ir import (
    DType,
    Graph,
    ModelError,
    Node,
    Opaque,
    Tensor,
    TensorType,
    UsageError,
    Value,
    check_masks,
)
from ...ir.errors import listed
from ...ir.files import resolve_output
from ..emitted import Emitted, Readers
from ..options import NEWEST_OPSET, OnnxOptions
from .save import Saved, save_model
from .spell import operators, problem, spell

INLINE_BYTES = 1 << 10
"""New tensors up to this size are put into the model immediately, larger ones when it is saved."""

SHAPE_BYTES = 128
"""New tensors of integers up to this size are stored once if they are equal."""


@dataclass(frozen=True)
class Written:
    """A model that is ready to be stored.

    Attributes:
        model: The model, with large new initializers as empty placeholders.
        tensors: The tensors of the placeholders by name.
        notes: What the user should know, one sentence each.
    """

    model: ModelProto
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def to_onnx(graph: Graph, options: OnnxOptions = OnnxOptions()) -> ModelProto:  # noqa: B008 - it is frozen
    """Emit a graph as an ONNX model in memory.

    Unchanged external data of the host model stays external, at its old location.

    Raises:
        ModelError: If a node cannot be written in the model's opset.
        UsageError: If options do not fit the model.
    """
    written = emit(graph, options)
    _fill(written.model, written.tensors)
    return written.model


def _fill(model: ModelProto, tensors: dict[str, Tensor]) -> None:
    """Put the numbers of new tensors into their placeholders."""
    for proto in model.graph.initializer:
        if proto.name in tensors:
            proto.CopyFrom(proto_of(tensors[proto.name], proto.name))


def save_onnx(graph: Graph, path: str | os.PathLike[str]) -> Saved:
    """Emit a graph into a file, atomically; large tensors are streamed.

    Returns:
        Data files of the replaced model that are still there.

    Raises:
        ModelError: If a node cannot be written in the model's opset.
        UsageError: If the file cannot be written.
    """
    return _store(graph, emit(graph), path)


def _store(graph: Graph, written: Written, path: str | os.PathLike[str]) -> Saved:
    if not isinstance(graph.host, OnnxHost):
        return save_model(written.model, path, written.tensors)
    # A model that was read with external data is also written with external data, which is streamed.
    split = any(map(is_external, tensors_in(graph.host.model)))
    return save_model(written.model, path, written.tensors, graph.host.base_dir, split)


def save(graph: Graph, path: Path, options: OnnxOptions, readers: Readers | None = None) -> Emitted:
    """The target ``onnx``: see :func:`save_onnx`."""
    resolve_output(path)  # Fail before the work if the file cannot be written.
    written = emit(graph, options, readers)
    saved = _store(graph, written, path)
    return Emitted((path,), (*written.notes, *saved.notes(path)))


def save_values(graph: Graph, values: Sequence[Value], path: str | os.PathLike[str]) -> list[str]:
    """Write a model whose outputs are these values instead of the graph's outputs, and that computes nothing else.

    bfloat16 values are cast to float32, because NumPy has no bfloat16.

    Args:
        graph: A graph that did not come from torch.
        values: Inputs, and results of nodes.
        path: The file to write.

    Returns:
        The names of the outputs, one for each value.

    Raises:
        ModelError: If a node cannot be written in the model's opset.
    """
    emitter = _emitter(graph, values)
    model, tensors = emitter.run()
    names = []
    for i, value in enumerate(values):
        name = emitter.names[value]
        if value.producer is None or value.type.dtype is DType.BF16:
            to = TensorProto.FLOAT if value.type.dtype is DType.BF16 else None
            made = f"{name}/value_{i}"
            kind = helper.make_node("Identity", [name], [made])
            model.graph.node.append(
                kind if to is None else helper.make_node("Cast", [name], [made], to=to)
            )
            name = made
        names.append(name)
    _keep_only(model, names)
    infos = [ValueInfoProto(name=name) for name in dict.fromkeys(names)]
    del model.graph.output[:]
    model.graph.output.extend(infos)
    kept = {t.name for t in model.graph.initializer}
    tensors = {name: t for name, t in tensors.items() if name in kept}
    base = graph.host.base_dir if isinstance(graph.host, OnnxHost) else None
    save_model(model, path, tensors, base)
    return names


def part_model(
    graph: Graph, inputs: Sequence[Value], outputs: Sequence[Value]
) -> tuple[ModelProto, list[str], list[str]]:
    """The part of a graph that computes some values from others, as a model in memory.

    Args:
        graph: A graph that did not come from torch.
        inputs: The values that are fed. They need not suffice: the model keeps the inputs of the graph that it also depends on.
        outputs: Results of nodes, which are not among ``inputs``.

    Returns:
        The model, and the names of its inputs and outputs.

    Raises:
        ModelError: If a node cannot be written in the model's opset.
    """
    emitter = _emitter(graph, [*inputs, *outputs])
    model, tensors = emitter.run()
    feeds = [emitter.names[value] for value in inputs]
    names = [emitter.names[value] for value in outputs]
    _keep_only(model, names, feeds)
    _fill(model, tensors)
    read = {name for node in model.graph.node for name in (*node.input, *captures(node))}
    given = {value.name: value for value in model.graph.input}
    infos = [
        given.get(name) or _value_info(name, value.type)
        for name, value in zip(feeds, inputs, strict=True)
    ]
    infos += [info for name, info in given.items() if name in read and name not in feeds]
    del model.graph.input[:]
    model.graph.input.extend(infos)
    del model.graph.output[:]
    model.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return model, feeds, names


def _keep_only(model: ModelProto, names: Sequence[str], given: Sequence[str] = ()) -> None:
    """Drop nodes and initializers that these values do not depend on, or only through given ones."""
    fed = set(given)
    wanted, nodes = set(names) - fed, []
    for node in reversed(model.graph.node):
        if wanted.isdisjoint(node.output):
            continue
        nodes.append(node)
        wanted.update({*node.input, *captures(node)} - fed)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in reversed(nodes)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    listed = {v.name for v in model.graph.input}
    for field in (model.graph.initializer, model.graph.sparse_initializer):
        for i in reversed(range(len(field))):
            own = field[i]
            name = own.values.name if isinstance(own, SparseTensorProto) else own.name
            if name not in wanted and name not in listed:
                del field[i]


def _emitter(graph: Graph, wanted: Sequence[Value]) -> _Emitter:
    """An emitter that writes these values, also where they lie within a host node."""
    host = graph.host
    if not isinstance(host, OnnxHost):
        host = OnnxHost(_empty_model(graph), None, NEWEST_OPSET)
    emitter = _Emitter(graph, host)
    emitter.open_groups(wanted)
    return emitter


def unwritable(graph: Graph) -> Callable[[Node], str | None]:
    """A function that returns the reason why a changed node cannot be written, or ``None`` if it can."""
    opset = graph.host.opset if isinstance(graph.host, OnnxHost) else NEWEST_OPSET

    def why(node: Node) -> str | None:
        if isinstance(node.op, Opaque):
            return f"{node.op.kind} was changed and cannot be written again"
        return problem(node, opset)

    return why


def node_count(graph: Graph) -> Callable[[Node], int]:
    """A function that returns the number of ONNX nodes that a node would be written with, if it can be written."""
    opset = graph.host.opset if isinstance(graph.host, OnnxHost) else NEWEST_OPSET
    return lambda node: len(operators(node, opset))


def emit(
    graph: Graph,
    options: OnnxOptions = OnnxOptions(),  # noqa: B008 - it is frozen
    readers: Readers | None = None,
    any_batch: bool = True,
) -> Written:
    """The model of a graph.

    Args:
        graph: The graph.
        options: The target's options.
        readers: Reads a torch model again if it has calls that cannot be written because of their sizes; without it, torch's exporter
            writes it.
        any_batch: Leave the batch size of a torch model open, where it takes batches of any size.

    Raises:
        ModelError: If a node cannot be written in the model's opset.
        UsageError: If options do not fit the model, or the types of a torch model's inputs are not known.
    """
    check_masks(graph)
    if not is_from_torch(graph):
        opset = graph.host.opset if isinstance(graph.host, OnnxHost) else NEWEST_OPSET
        if options.via != "graphshrink" or options.opset not in (None, opset):
            raise UsageError(
                f"opset and via are options for torch models: this one is ONNX already and keeps its opset {opset}"
            )
        return Written(*_emitter(graph, ()).run())
    return _from_torch(graph, options, readers, any_batch)


class _NotNative(Exception):
    """The reason why a graph from torch cannot be written from its ops."""


def _from_torch(
    graph: Graph, options: OnnxOptions, readers: Readers | None, any_batch: bool
) -> Written:
    """Write a graph from torch: from its ops, or by torch's exporter."""
    from .torch_exporter import exported

    if options.via == "torch":
        return Written(exported(graph, options.opset), {})
    opset = options.opset or NEWEST_OPSET
    try:
        return _native(graph, opset, any_batch)
    except _NotNative as error:
        reason = str(error)
    for export in (False, True):
        # Without sizes, another reading of the module itself is the same.
        again = readers if export or graph.host.sizes else None
        for how, other in () if again is None else again.sized(graph, export=export):
            with suppress(_NotNative):
                found = _native(other, opset, any_batch)
                return replace(found, notes=(f"{how}: {reason}", *found.notes))
        if not export:
            # Only now by the rules of calls, which passes know nothing of.
            try:
                return _native(graph, opset, any_batch, calls=True)
            except _NotNative as error:
                reason = str(error)
    note = f"written by torch's exporter, for one batch size and under its own names: {reason}"
    try:
        return Written(exported(graph, options.opset), {}, (note,))
    except ModelError as error:
        raise ModelError(f"{error}; graphshrink itself cannot write it: {reason}") from error


def _native(graph: Graph, opset: int, any_batch: bool, *, calls: bool = False) -> Written:
    """Write a graph from torch from its ops; with ``calls``, calls without an op are written by rules of their own.

    Raises:
        _NotNative: If it has calls or ops that no opset expresses.
        ModelError: If a newer opset would do.
        UsageError: If the types of inputs are not known.
    """
    from .from_torch import hostless, needed
    from .torch_calls import NotWritten

    wanted = needed(graph, any_batch, calls=calls)
    unknown = wanted.unknown()
    if unknown:
        texts = [
            f"{kind} ({listed(names)}{': ' + why if why else ''})"
            for (kind, why), names in unknown.items()
        ]
        raise _NotNative(f"the IR does not express {'; '.join(texts)}")
    try:
        made, notes = hostless(graph, wanted, any_batch, opset)
    except NotWritten as error:
        raise _NotNative(f"ONNX does not express {error}") from error
    refused = [(n, why) for n in made.nodes if n.origin is None and (why := problem(n, opset))]
    if refused:
        reasons = "; ".join(
            f"{node.name}: {why.partition(' in opset')[0]}" for node, why in refused[:5]
        )
        for newer in range(opset + 1, NEWEST_OPSET + 1):
            if not any(problem(node, newer) for node, _ in refused):
                raise ModelError(
                    f"opset {opset} cannot express it: save with opset={newer} or newer ({reasons})"
                )
        raise _NotNative(reasons)
    host = OnnxHost(_empty_model(made, opset), None, opset)
    return Written(*_Emitter(made, host).run(), tuple(notes))


def _empty_model(graph: Graph, opset: int = NEWEST_OPSET) -> ModelProto:
    made = helper.make_graph(
        [],
        graph.name,
        [_value_info(v.name, v.type) for v in graph.inputs],
        [_value_info(n, v.type) for n, v in zip(graph.output_names, graph.outputs, strict=True)],
    )
    opsets = [helper.make_opsetid("", opset)]
    # Before IR version 4, weights were inputs too; onnxruntime reads version 10 since it reads opset 21.
    version = min(10, max(4, helper.find_min_ir_version_for(opsets)))
    return helper.make_model(
        made, opset_imports=opsets, ir_version=version, producer_name="graphshrink"
    )


def _value_info(name: str, type_: TensorType) -> Any:
    code = code_of(type_.dtype) if type_.dtype is not None else TensorProto.UNDEFINED
    return helper.make_tensor_value_info(name, code, type_.shape)


class _Emitter:
    def __init__(self, graph: Graph, host: OnnxHost) -> None:
        self.graph, self.host = graph, host
        self.source = host.model.graph
        self.nodes: list[NodeProto] = []
        self.spelled: list[NodeProto] = []
        self.added: list[TensorProto] = []
        self.tensors: dict[str, Tensor] = {}
        self.shared: dict[tuple[TensorType, bytes], str] = {}
        self.names: dict[Value, str] = {}
        self.forms: dict[Value, str] = {}
        self.computed: dict[tuple[Hashable, ...], str] = {}
        self.taken = self._host_names()
        self.fresh = 0
        self.verbatim: list[int] = []
        self.copied: dict[int, NodeProto] = {}
        self.kept_constants = {t.name for t in [*self.source.initializer]} | set(
            host.constant_nodes
        )
        self.kept_constants |= {t.values.name for t in self.source.sparse_initializer}
        self.made: set[str] = set()
        self.groups = _whole(graph)
        self.copies = _copies(self.source)
        # Other forms of these are read by nodes that are spelled anew.
        self.bases = {base for v in graph.constants if v.use_count for base in v.bases}

    def _host_names(self) -> set[str]:
        taken = {v.name for v in [*self.source.input, *self.source.output]}
        taken |= {t.name for t in self.source.initializer} | self.host.reserved
        for node in (*self.source.node, *self.host.rewritten.values()):
            taken.update(node.output)
            taken.update(node.input)
            for body in bodies(node):
                taken |= all_names(body)
        return taken

    def open_groups(self, wanted: Sequence[Value]) -> None:
        """Write the nodes of a group one by one where a value between them is wanted."""
        self.groups = {
            indices: group
            for indices, group in self.groups.items()
            if _inner(group).isdisjoint(wanted)
        }

    def run(self) -> tuple[ModelProto, dict[str, Tensor]]:
        self._name_outputs()
        for value in self.graph.inputs:
            self.names[value] = value.host if isinstance(value.host, str) else value.name
            self.made.add(self.names[value])
        for node in self.graph.nodes:
            self._node(node)
        for value, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
            if self._name(value) != name:
                self.nodes.append(helper.make_node("Identity", [self._name(value)], [name]))
        self._name_nodes()
        model = ModelProto()
        if self._unchanged():
            model.CopyFrom(self.host.model)
            return model, {}
        self._assemble(model)
        return model, self.tensors

    # Names.

    def _name_outputs(self) -> None:
        """Give results that are outputs the name of the output, and other results their name in the host."""
        outputs = set(self.graph.output_names)
        for value, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
            own = self.names.get(value)
            if value.producer is not None and (own is None or own != value.host):
                self.names[value] = name
        used = set(self.names.values())
        for node in self.graph.nodes:
            for value in node.outputs:
                if value in self.names or not isinstance(value.host, str):
                    continue
                if value.host not in used and value.host not in outputs:
                    self.names[value] = value.host

    def _name_nodes(self) -> None:
        """Make the names of new nodes unique: onnxruntime refuses a model in which two nodes share a name."""
        new = {id(node) for node in self.spelled}
        used = {node.name for node in self.nodes if id(node) not in new}
        last: dict[str, int] = {}
        for node in self.spelled:
            hint = node.name
            while node.name and node.name in used:
                last[hint] = last.get(hint, 0) + 1
                node.name = f"{hint}_{last[hint]}"
            used.add(node.name)

    def _new_name(self, hint: str) -> str:
        name, count = hint, 0
        while name in self.taken:
            count += 1
            name = f"{hint}_{count}"
        self.taken.add(name)
        return name

    def _name(self, value: Value) -> str:
        name = self.names.get(value)
        if name is not None:
            return name
        if value.producer is None and value.data is not None:
            if isinstance(value.host, str) and value.host in self.kept_constants:
                name = value.host
            else:
                name = self._add_constant(value.data, value.name)
        else:
            name = self._new_name(value.name)
        self.names[value] = name
        return name

    def _existing(self, value: Value) -> str:
        """The name of a constant that the host stores, or that nodes written before compute; else an empty text."""
        if value.producer is None:
            name = value.host
            return name if isinstance(name, str) and name in self.kept_constants else ""
        name = self.names.get(value, "")
        return name if name in self.made else ""

    def _operand(self, data: Tensor, hint: str) -> str:
        """A constant of a spelling. Scalars are shared, such as the bounds of all clips."""
        if data.shape or not data.dtype.is_wide_float:
            return self._add_constant(data, hint)
        key = (data.type, data.numpy().tobytes())
        if key not in self.shared:
            self.shared[key] = self._add_constant(data, hint)
        return self.shared[key]

    def _add_constant(self, data: Tensor, hint: str) -> str:
        # Starts, axes and shapes are often the same: one tensor serves all nodes that are spelled anew.
        key = None
        if data.dtype.is_int and data.dtype.bits >= 8 and data.nbytes <= SHAPE_BYTES:
            key = (data.type, data.numpy().tobytes())
            if key in self.shared:
                return self.shared[key]
        name = self._new_name(hint)
        if key is not None:
            self.shared[key] = name
        if data.nbytes <= INLINE_BYTES or data.dtype is DType.STRING or data.dtype.bits < 8:
            self.added.append(proto_of(data, name))
            return name
        self.added.append(TensorProto(name=name, data_type=code_of(data.dtype), dims=data.shape))
        self.tensors[name] = data
        return name

    # Nodes.

    def _node(self, node: Node) -> None:
        origin = node.origin
        if isinstance(origin, OnnxOrigin) and self._copied(node, origin):
            pass
        elif isinstance(origin, OnnxForm):
            inputs = ["" if v is None else self._name(v) for v in origin.inputs]
            results = [self._name(v) for v in node.outputs]
            attrs = dict(origin.attributes)
            made = [helper.make_node(origin.kind, inputs, results, node.name, **attrs)]
            self.nodes += made
            self.spelled += made
        elif isinstance(node.op, Opaque):
            raise ModelError(f"{node.name}: {node.op.kind} was changed and cannot be written again")
        else:
            made = spell(
                node,
                [self._name(v) if v is not None else "" for v in node.inputs],
                [self._name(v) for v in node.outputs],
                opset=self.host.opset,
                new_constant=self._operand,
                new_name=self._new_name,
                existing=self._existing,
                forms=self.forms,
                computed=self.computed,
            )
            self.nodes += made
            self.spelled += made
        self.made.update(
            self._name(v) for v in node.outputs if v.host or v in self.names or v in self.bases
        )

    def _copied(self, node: Node, origin: OnnxOrigin) -> bool:
        """Copy the host nodes of an IR node. If several IR nodes came from one host node, it is copied at the first of them."""
        if origin.parts == 1:
            return self._copy([node], origin.nodes)
        group = self.groups.get(origin.nodes)
        if group is None:
            return False
        if node is not group[0]:
            return True
        read = {v for part in group for v in part.inputs if v is not None}
        early = all(
            v.data is not None or self.names.get(v) in self.made for v in read - _inner(group)
        )
        if early and self._copy(group, origin.nodes):
            return True
        del self.groups[origin.nodes]
        return False

    def _copy(self, parts: Sequence[Node], indices: Sequence[int]) -> bool:
        """Copy host nodes with remapped names; ``False`` if they no longer compute the same as the IR nodes."""
        if any(v.host is None for node in parts for v in node.outputs) and any(
            a.name == "auto_pad" for i in indices for a in self.host.node(i).attribute
        ):
            return False  # The sizes changed, and the pads of auto_pad depend on them.
        mapping: dict[str, str] = {}
        for node in parts:
            if not self._map(node, mapping):
                return False
        inner = {name for i in indices for name in self.host.node(i).output}
        for name in dict.fromkeys(n for i in indices for n in self.host.node(i).input if n):
            if name in mapping or name in inner or name in self.made:
                continue
            # The node reads a constant of which the IR has another form.
            constant = self.copies.get(name, name)
            if constant not in self.kept_constants:
                return False
            mapping[name] = constant
        changed = {a: b for a, b in mapping.items() if a != b}
        made: dict[int, NodeProto] = {}
        for index in indices:
            copied = NodeProto()
            copied.CopyFrom(self.host.node(index))
            if changed:
                rename(copied, changed)
            before = self.copied.get(index)
            if before is None:
                made[index] = copied
            elif before != copied:
                return False  # Another IR node came from the same host node, and now needs other names.
        self.copied.update(made)
        self.nodes += made.values()
        self.verbatim += [] if changed else made
        return True

    def _map(self, node: Node, mapping: dict[str, str]) -> bool:
        """Map the host's names of a node's inputs and results to their new names; ``False`` if the node reads something else now."""
        origin: OnnxOrigin = node.origin
        for value, was in zip(node.inputs, origin.inputs, strict=True):
            if value is None and isinstance(was, str) and isinstance(node.op, Opaque):
                # A pass dropped an optional input.
                if mapping.get(was, ""):
                    return False
                mapping[was] = ""
                continue
            if value is None or was is None:
                if value is not None or was is not None:
                    return False
                continue
            if not isinstance(was, str):
                # A constant that the frontend derived, or a result inside the host node, must still be the same.
                if value.host != was:
                    return False
                continue
            if mapping.get(was, self._name(value)) != self._name(value):
                return False
            mapping[was] = self._name(value)
        for value, was in zip(node.outputs, origin.outputs, strict=True):
            if isinstance(was, str):
                mapping[was] = self._name(value)
        return True

    # The model.

    def _unchanged(self) -> bool:
        total = len(self.source.node) - len(self.host.constant_nodes)
        if (
            self.added
            or self.host.numbers
            or self.host.rewritten
            or len(self.nodes) != total
            or sorted(self.verbatim)
            != sorted(set(range(len(self.source.node))) - set(self.host.constant_nodes.values()))
        ):
            return False
        return self.host.idle <= self._live_constants()

    def _live_constants(self) -> set[str]:
        return {v.host for v in self.graph.constants if isinstance(v.host, str)}

    def _assemble(self, model: ModelProto) -> None:
        host = self.host.model
        _copy_fields(host, model, skip={"graph"})
        _copy_fields(
            self.source,
            model.graph,
            skip={"node", "initializer", "value_info", "sparse_initializer"},
        )
        read = {name for node in self.nodes for name in node.input}
        for node in self.nodes:
            if has_bodies(node):
                read.update(captures(node))
        read.update(v.name for v in self.source.output)
        wanted = read | (self.host.idle & self._live_constants())
        listed = {v.name for v in self.source.input}
        if model.ir_version < 4:
            # Every initializer is listed as an input there, and goes together with it.
            own = {name for value, name in self.names.items() if value in self.graph.inputs}
            listed &= own
            stays = [v for v in model.graph.input if v.name in wanted | listed]
            del model.graph.input[:]
            model.graph.input.extend(stays)
        renewed = self._renewed(wanted)
        for name, index in sorted(self.host.constant_nodes.items(), key=lambda item: item[1]):
            if name in wanted and name not in renewed:
                model.graph.node.append(self.source.node[index])
        model.graph.node.extend(self.nodes)
        for proto in self.source.initializer:
            if proto.name in wanted or proto.name in listed:
                model.graph.initializer.append(renewed.pop(proto.name, proto))
        for sparse in self.source.sparse_initializer:
            if sparse.values.name in wanted and sparse.values.name not in renewed:
                model.graph.sparse_initializer.append(sparse)
        self.added += renewed.values()  # They were nodes, or sparse.
        # Some added tensors are unused: a written node may read another form of them, such as a transposed weight.
        added = [t for t in self.added if t.name in wanted]
        model.graph.initializer.extend(added)
        self.tensors = {name: t for name, t in self.tensors.items() if name in wanted}
        if model.ir_version < 4:
            # Before IR version 4, every initializer must be listed as an input as well.
            model.graph.input.extend(
                helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in added
            )
        made = {name for node in model.graph.node for name in node.output}
        # A name keeps its stated type only if it still belongs to the same value.
        same = {
            name: value
            for value, name in self.names.items()
            if value.producer is not None and value.host == name
        }
        interior = {
            name
            for node in self.graph.nodes
            if isinstance(node.origin, OnnxOrigin)
            # If the results of a node were resized, values between its host nodes may have other sizes too.
            and tuple(v.host for v in node.outputs) == tuple(node.origin.outputs)
            for index in node.origin.nodes
            for name in self.source.node[index].output
        }
        # Constants that are copied unchanged.
        copied = {p.name for p in self.source.initializer} & {
            p.name for p in model.graph.initializer
        }
        copied |= made & set(self.host.constant_nodes)
        for info in self.source.value_info:
            if info.name in copied or (
                info.name in made and (info.name in same or info.name in interior)
            ):
                model.graph.value_info.append(info)

    def _renewed(self, wanted: set[str]) -> dict[str, TensorProto]:
        """Initializers for the host's constants that have new numbers."""
        made = {}
        for name, data in self.host.numbers.items():
            if name in wanted:
                if data.nbytes <= INLINE_BYTES:
                    made[name] = proto_of(data, name)
                else:
                    kind = code_of(data.dtype)
                    made[name] = TensorProto(name=name, data_type=kind, dims=data.shape)
                    self.tensors[name] = data
        return made


def _copies(source: Any) -> dict[str, str]:
    """For each result of an ``Identity``, the value at the other end of the chain of them."""
    found: dict[str, str] = {}
    for node in source.node:
        if node.op_type == "Identity" and node.domain in DOMAINS and len(node.input) == 1:
            found[node.output[0]] = found.get(node.input[0], node.input[0])
    return found


def _whole(graph: Graph) -> dict[tuple[int, ...], list[Node]]:
    """IR nodes by host node, for host nodes that became several IR nodes of which none was removed and no inner result is read elsewhere."""
    groups: dict[tuple[int, ...], list[Node]] = {}
    for node in graph.nodes:
        if isinstance(node.origin, OnnxOrigin) and node.origin.parts > 1:
            groups.setdefault(node.origin.nodes, []).append(node)
    return {
        indices: found
        for indices, found in groups.items()
        if len(found) == found[0].origin.parts
        and all(not v.is_output and set(v.users) <= set(found) for v in _inner(found))
    }


def _inner(group: Sequence[Node]) -> set[Value]:
    """The results between a group's nodes, which are not results of the host node."""
    return {v for node in group for v in node.outputs if not isinstance(v.host, str)}


def _copy_fields(source: Any, target: Any, skip: set[str]) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name in skip:
            continue
        if isinstance(value, (int, float, str, bytes)):
            setattr(target, descriptor.name, value)
        elif hasattr(value, "extend"):
            getattr(target, descriptor.name).extend(value)
        else:
            getattr(target, descriptor.name).CopyFrom(value)

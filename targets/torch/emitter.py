"""IR graphs to torch.fx.

What was not changed keeps its module and its parameters; new linear ops become ordinary ``nn`` modules under
the dotted name of what they replace, so that the result trains, pickles, exports and can be quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from ...hosts.torch.buffers import keep_temporary, temporary
from ...hosts.torch.calls import call_name, shape_of_other
from ...hosts.torch.modules.gates import Switch
from ...hosts.torch.modules.masks import OTHER_ORDER
from ...hosts.torch.origins import FxHost, FxOrigin
from ...hosts.torch.pickled import ShrunkModule
from ...ir import (
    Conv,
    Graph,
    Linear,
    MaskedTensor,
    ModelError,
    Node,
    Opaque,
    Tensor,
    UsageError,
    Value,
    check_masks,
)
from ...ir.analysis import REORDERED
from .memory import Memory, keeps_memory
from .modules import ModuleTree, get
from .parameters import Parameters
from .spell import spell
from .speller import TORCH_DTYPES
from .writer import GraphWriter


def to_fx(graph: Graph) -> fx.GraphModule:
    """Emit an FX-born graph as a module; the host module is not changed.

    Raises:
        UsageError: If the graph did not come from FX.
        ModelError: If a changed node cannot be written in torch.
    """
    if not isinstance(graph.host, FxHost):
        raise UsageError("only graphs that came from torch can be emitted as a GraphModule")
    check_masks(graph)
    return _Emitter(graph, graph.host).run()


def to_fx_values(graph: Graph, values: Sequence[Value]) -> tuple[fx.GraphModule, list[str]]:
    """Emit a graph as a module, with the names of the FX nodes that make these values.

    Raises:
        UsageError: If the graph did not come from FX.
        ModelError: If a changed node cannot be written in torch, or the module does not compute a value.
    """
    if not isinstance(graph.host, FxHost):
        raise UsageError("only graphs that came from torch can be emitted as a GraphModule")
    emitter = _Emitter(graph, graph.host)
    emitter.open_groups(values)
    module = emitter.run()
    for value in values:
        if value not in emitter.nodes:
            raise ModelError(f"%{value.name} is not computed by the module")
    return module, [emitter.nodes[value].name for value in values]


def example_inputs_of(graph: Graph) -> tuple[Any, ...]:
    """The example inputs that an FX-born graph was imported with, or zeros of their known shapes.

    Raises:
        UsageError: If shapes are not known.
    """
    host = graph.host
    if isinstance(host, FxHost) and host.inputs is not None:
        return host.inputs
    made = []
    for value in graph.inputs:
        shape, dtype = value.type.static_shape, value.type.dtype
        if shape is None or dtype not in TORCH_DTYPES:
            raise UsageError(f"the shape of input {value.name!r} is not known: give example_inputs")
        made.append(torch.zeros(shape, dtype=TORCH_DTYPES[dtype]))
    return tuple(made)


def problem(node: Node) -> str | None:
    """Why a node cannot be written in torch; ``None`` if it can. Makes no module or call."""
    if isinstance(node.op, Linear) or (isinstance(node.op, Conv) and node.op.spatial_rank <= 3):
        return None  # The most frequent ones, whose modules take time to make.
    try:
        spell(node, _DRY)
    except ModelError as error:
        return str(error).removeprefix(f"{node.name}: ")
    return None


class _Emitter(GraphWriter):
    """Writes one graph that came from torch: copies the calls that are unchanged, and spells the others."""

    def __init__(self, graph: Graph, host: FxHost) -> None:
        self.graph, self.host = graph, host
        self.temporary = temporary(host.module)
        tree = ModuleTree(host.module, self.temporary)
        parameters = Parameters(host.module, self.temporary)
        super().__init__(tree, parameters, bool(host.module.training))
        self.host_nodes: dict[str, fx.Node] = {}
        self.by_name: dict[str, fx.Node] = {}
        self.places = {name: i for i, name in enumerate(host.order)}
        stated = {n for node in graph.nodes for n in getattr(node.origin, "nodes", ())}
        self.sizes = [name for name in host.sizes if name not in stated]
        self.host_sizes = frozenset(host.sizes)
        self.computed: list[tuple[fx.Node, fx.Node]] = []
        self.whole = _whole(graph)
        self.memory = Memory(graph, host, self.out, self.host_nodes)
        self.read = {
            str(v.host[1])
            for v in graph.constants
            if v.use_count and isinstance(v.host, tuple) and v.host[0] == "tensor"
        }

    def open_groups(self, wanted: Sequence[Value]) -> None:
        """Write the nodes of a group one by one where a value between them is wanted."""
        inner = {v for v in wanted if not isinstance(v.host, str)}
        self.whole = {
            names: group
            for names, group in self.whole.items()
            if inner.isdisjoint(v for node in group for v in node.outputs)
        }

    def run(self) -> fx.GraphModule:
        """The module."""
        source = self.host.module
        values = {v.host: v for v in self.graph.inputs}
        for node in source.graph.nodes:
            if node.op == "placeholder":
                made = _typeless(self.out.node_copy(node))
                self.nodes[values[node.name]] = self.by_name[node.name] = made
        for node in self.graph.nodes:
            self._node(node)
        final = next(n for n in source.graph.nodes if n.op == "output")
        # A value that is returned more than once is an output for each time, the first under its own name.
        own_names = {n.name for n in final.all_input_nodes}
        returned = {
            name: self.memory.returned(self.host.order[name], value, self.value(value))
            for name, value in zip(self.graph.output_names, self.graph.outputs, strict=True)
            if name in own_names
        }
        copied = _typeless(self.out.node_copy(final, lambda n: returned[n.name]))
        copied.meta = dict(final.meta)
        for made, was in reversed(self.computed):
            if was.users and not made.users:
                self.out.erase_node(made)
        self.out.set_codegen(source.graph._codegen)
        self.out.lint()
        return self._assembled()

    def _assembled(self) -> fx.GraphModule:
        """The module of the finished FX graph, with what the host module has beside its graph."""
        source = self.host.module
        module = ShrunkModule(self.tree.root, self.out, type(source).__name__)
        own = set(source.modules())
        for part in module.modules():
            if part not in own:  # The others are the caller's.
                part.training = source.training
        keep_temporary(module, self.temporary)
        # Only what the emitted graph uses is carried over; nn.Module gives no other account of it.
        module.meta = dict(getattr(source, "meta", {}))
        if REORDERED in self.graph.notes:
            module.meta[OTHER_ORDER] = True
        return module

    def _held(self, value: Value, data: Tensor) -> tuple[str, torch.Tensor]:
        if isinstance(data.host, torch.Tensor) and isinstance(value.host, tuple):
            return str(value.host[1]), data.host
        name = self._own_name(value) or self.tree.free(value.name.replace("/", "."))
        known = data.hosts is not None
        return name, self.tensor(data) if known else self.parameters.made(data)

    def _own_name(self, value: Value) -> str | None:
        """The host's name of the parameter that a new constant replaces, where nothing reads that parameter any more."""
        name = None if value.data is None else self.parameters.place(value.data)
        if name is None or name in self.read or self.tree.within(name):
            return None
        self.read.add(name)
        return name

    def bare(self, value: Value | None) -> bool:
        """Whether a weight is the ``in_proj_weight`` of a module, say, and no layer's own ``weight``."""
        if value is None or value.data is None:
            return False
        if isinstance(value.data, MaskedTensor) and value.data.lasting:
            return False
        name = self.parameters.place(value.data)
        return name is not None and name.rpartition(".")[2] != "weight"

    # Nodes.

    def _node(self, node: Node) -> None:
        origin = node.origin
        if isinstance(origin, FxOrigin) and origin.nodes:
            self._write_sizes(self.places[origin.nodes[0]])
        if not (isinstance(origin, FxOrigin) and self._copy(node, origin)):
            self._spell(node)
        for value in node.outputs:
            if isinstance(value.host, str) and value in self.nodes:
                self.by_name[value.host] = self.nodes[value]

    def _write_sizes(self, place: int) -> None:
        """Write the calls that compute sizes, which are no nodes of the IR, up to a place in the host's order."""
        while self.sizes and self.places[self.sizes[0]] < place:
            found = self.host.order[self.sizes.pop(0)]
            sources = found.all_input_nodes
            if all(s.name in self.by_name or s.op == "get_attr" for s in sources):
                copied = self.out.node_copy(found, self._by_name)
                self.host_nodes[found.name] = self.by_name[found.name] = copied
                self.memory.as_before.add(found.name)
                self.computed.append((copied, found))

    def _has_size(self, source: fx.Node) -> bool:
        """Whether a size is written; one that was asked of a value that is gone is asked of another one with the same size."""
        if source.name in self.host_nodes:
            return True
        pending = [source]
        while pending:
            last = pending[-1]
            if last.name in self.host_nodes:
                pending.pop()
                continue
            found = next((p for p in self.host.alike(last.name) if p[0] in self.by_name), None)
            if found is not None:
                value, axis = self.by_name[found[0]], found[1]
                args = (value,) if axis is None else (value, axis)
                self._sized(pending.pop(), self.out.call_method("size", args))
                continue
            if last.name not in self.host_sizes:
                return False
            missing = [s for s in last.all_input_nodes if s.name not in self.host_nodes]
            if any(s.name not in self.host_sizes for s in missing):
                return False
            if missing:
                pending += missing
            else:
                self._sized(last, self.out.node_copy(last, lambda s: self.host_nodes[s.name]))
        return True

    def _sized(self, source: fx.Node, made: fx.Node) -> None:
        self.host_nodes[source.name] = self.by_name[source.name] = made
        self.computed.append((made, source))

    def _by_name(self, source: fx.Node) -> fx.Node:
        return self.by_name[source.name] if source.name in self.by_name else self._get_attr(source)

    def _spell(self, node: Node) -> None:
        """Write a node anew."""
        self.written(node, spell(node, self))

    def _copy(self, node: Node, origin: FxOrigin) -> bool:
        """Copy the host nodes that an IR node came from; ``False`` where they no longer compute the same."""
        names = self._arguments(node, origin)
        if names is None:
            return False
        group = self.whole[origin.nodes] if origin.parts > 1 else [node]
        if node is group[0] and not self._may_copy(group, names):
            self.whole.pop(origin.nodes, None)  # All of its nodes are spelled.
            return False
        if node is not group[-1]:
            return True  # Written with the last one.
        hosts = [self.host.order[name] for name in origin.nodes]
        inner = {h.name for h in hosts}
        as_large = {
            s.name: other
            for h in hosts
            for s in h.all_input_nodes
            if (other := self._as_large(h, s))
        }

        def mapped(source: fx.Node) -> fx.Node:
            if source.name in names:
                return self.value(names[source.name])
            if source.name in inner or source.name in self.host_nodes:
                return self.host_nodes[source.name]
            if source.name in as_large:
                return as_large[source.name]
            return self._get_attr(source)

        resized = all(v.host is None for v in node.outputs)
        for found in hosts:
            if found.op == "get_attr":
                self._get_attr(found)
            elif len(hosts) == 1 or not self._is_written(found, mapped):
                self._copy_call(found, mapped, names, resized)
        for part in group:
            for value, name in zip(part.outputs, part.origin.outputs, strict=True):
                if isinstance(name, str):
                    self.nodes[value] = self.by_name[name] = self.host_nodes[name]
        return True

    def _may_copy(self, group: list[Node], names: dict[str, Value]) -> bool:
        """Whether all that the host nodes of a group read is written, or can be."""
        origin = group[0].origin
        if not all(self._keeps_memory(n, group[-1]) for n in origin.nodes):
            return False
        bases = {b.host for part in group for v in part.inputs if v is not None for b in v.bases}
        bases.update(self.host.sizes)
        for found in (self.host.order[name] for name in origin.nodes):
            for source in found.all_input_nodes:
                known = (
                    source.name in names or source.name in origin.nodes or source.op == "get_attr"
                )
                # A state of zeros is read by the host alone.
                known = known or (origin.parts > 1 and self._has_zeros(source))
                known = known or self._as_large(found, source) is not None
                if not known and not (source.name in bases and self._has_size(source)):
                    return False
        return True

    def _has_zeros(self, source: fx.Node) -> bool:
        """Whether a state is written, which the host alone reads; zeros that no node makes any more are written again."""
        if source.name in self.host_nodes:
            return True
        if source.op != "call_function" or call_name(source.target) != "zeros":
            return False
        if not all(self._has_size(s) for s in source.all_input_nodes):
            return False
        copied = self.out.node_copy(source, lambda s: self.host_nodes[s.name])
        self.host_nodes[source.name] = copied
        self.computed.append((copied, source))
        return True

    def _as_large(self, found: fx.Node, source: fx.Node) -> fx.Node | None:
        """A written value as large as one of which a call takes nothing but the shape."""
        if shape_of_other(found) is not source:
            return None
        places = self.host.alike(source.name)
        return next(
            (self.by_name[n] for n, axis in places if axis is None and n in self.by_name), None
        )

    def _arguments(self, node: Node, origin: FxOrigin) -> dict[str, Value] | None:
        """The values that the host nodes of an IR node are to read now, by the names of what they read before."""
        if origin.parts == 1:
            return _names(node, origin)
        group = self.whole.get(origin.nodes)
        if group is None:
            return None
        names: dict[str, Value] = {}
        for part in group:
            names.update(_names(part, part.origin) or {})
        return names

    def _copy_call(
        self,
        found: fx.Node,
        mapped: Callable[[fx.Node], fx.Node],
        names: dict[str, Value],
        resized: bool,
    ) -> None:
        copied = self.memory.copied(found, mapped, names)
        if resized:
            # What the host knew of its results is no longer so.
            copied.meta = {k: v for k, v in copied.meta.items() if k not in _STATED}
        if found.op == "call_module":
            target = str(found.target)
            copied.target = self.tree.place(target, self.host.module.get_submodule(target))
        self.host_nodes[found.name] = copied

    def _is_written(self, found: fx.Node, mapped: Callable[[fx.Node], fx.Node]) -> bool:
        """Whether a host node that several IR nodes came from was copied already, with the same arguments."""
        made = self.host_nodes.get(found.name)
        if made is None or found.op == "call_module":
            return False
        return bool(
            made.args == fx.map_arg(found.args, mapped)
            and made.kwargs == fx.map_arg(found.kwargs, mapped)  # type: ignore[call-overload]
        )

    def _get_attr(self, source: fx.Node) -> fx.Node:
        if source.name not in self.host_nodes:
            target = str(source.target)
            name = self.tree.place(target, get(self.host.module, target))
            self.host_nodes[source.name] = self.out.get_attr(name)
        return self.host_nodes[source.name]

    def _keeps_memory(self, name: str, node: Node) -> bool:
        in_place = name in self.host.inplace and not isinstance(node.op, Opaque)
        return not in_place or keeps_memory(node)


class _DryWriter:
    """Makes nothing that stays: only what a rule refuses counts."""

    training = False

    def __init__(self) -> None:
        self.stub = fx.Graph().placeholder("x")

    def value(self, value: Value) -> fx.Node:
        return self.stub

    def call(self, function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        return self.stub

    def module(self, name: str, made: nn.Module, *args: Any) -> fx.Node:
        return self.stub

    def as_sizes(self, value: Value) -> None:
        return None

    def tensor(self, data: Tensor) -> torch.Tensor:
        return torch.empty(data.shape, device="meta")

    def constant(self, value: Value) -> torch.Tensor:
        assert value.data is not None
        return self.tensor(value.data)

    def fill(self, made: nn.Module, name: str, data: Tensor) -> None:
        return

    def buffer(self, name: str, made: torch.Tensor) -> fx.Node:
        return self.stub

    def bare(self, value: Value | None) -> bool:
        return False

    def switch(self, number: Value, mode: str) -> Switch:
        return Switch(mode, 0.0)


def _names(node: Node, origin: FxOrigin) -> dict[str, Value] | None:
    """The values that a node reads now, by the host's names of those it was made with.

    ``None`` where an input came or went, or a constant is another one.
    """
    names: dict[str, Value] = {}
    for value, was in zip(node.inputs, origin.inputs, strict=True):
        if isinstance(was, str):
            if value is None:
                return None
            names[was] = value
        elif (value.host if value is not None else None) != was:
            return None
    return names


def _whole(graph: Graph) -> dict[tuple[str, ...], list[Node]]:
    """Groups of nodes that came from one host call, where none of them changed."""
    groups: dict[tuple[str, ...], list[Node]] = {}
    for node in graph.nodes:
        if isinstance(node.origin, FxOrigin) and node.origin.parts > 1:
            groups.setdefault(node.origin.nodes, []).append(node)
    return {name: found for name, found in groups.items() if _is_whole(found)}


def _is_whole(found: list[Node]) -> bool:
    names: dict[str, Value] = {}
    for node in found:
        own = _names(node, node.origin)
        if own is None or any(names.setdefault(k, v) is not v for k, v in own.items()):
            return False
    # Values with a host's name are results of the call, which others read.
    inner = [v for node in found[:-1] for v in node.outputs if not isinstance(v.host, str)]
    alone = all(not v.is_output and set(v.users) <= set(found) for v in inner)
    return alone and len(found) == found[-1].origin.parts


_STATED = ("val", "tensor_meta", "example_value")
"""What torch notes about the result of a call."""


def _typeless(node: fx.Node) -> fx.Node:
    """Postponed annotations are plain strings, which torch cannot pickle."""
    if isinstance(node.type, str):
        node.type = None
    return node


_DRY = _DryWriter()

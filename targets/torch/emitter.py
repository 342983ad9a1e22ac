"""IR graphs to torch.fx.

What was not changed keeps its module and its parameters; new linear ops become ordinary ``nn`` modules under
the dotted name of what they replace, so that the result trains, pickles, exports and can be quantised.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ... import ir
from ...hosts.torch import layouts as layout
from ...hosts.torch.buffers import keep_temporary, temporary
from ...hosts.torch.modules.gates import Gate, Switch
from ...hosts.torch.modules.masks import OTHER_ORDER, Constant, Mask, mask_weight
from ...hosts.torch.modules.scale import Scale
from ...hosts.torch.origins import FxHost, FxOrigin
from ...ir import (
    DType,
    Graph,
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
from .spell.activations import activation_module
from .spell.functions import MATH_RULES
from .spell.norms import reordered_norm

_DTYPES = {
    DType.F16: torch.float16, DType.BF16: torch.bfloat16, DType.F32: torch.float32,
    DType.F64: torch.float64, DType.I8: torch.int8, DType.U8: torch.uint8, DType.I16: torch.int16,
    DType.I32: torch.int32, DType.I64: torch.int64, DType.BOOL: torch.bool,
}  # fmt: skip


def to_fx(graph: Graph) -> fx.GraphModule:
    """Emit an FX-born graph as a module; the host module is not changed.

    Raises:
        UsageError: If the graph did not come from FX.
        ModelError: If a changed node cannot be said in torch.
    """
    if not isinstance(graph.host, FxHost):
        raise UsageError("only graphs that came from torch can be emitted as a GraphModule")
    check_masks(graph)
    return _Emitter(graph, graph.host).run()


def to_fx_values(graph: Graph, values: Sequence[Value]) -> tuple[fx.GraphModule, list[str]]:
    """Emit a graph as a module, and say which of its nodes make these values.

    Raises:
        UsageError: If the graph did not come from FX.
        ModelError: If a changed node cannot be said in torch, or a value is none of the module's.
    """
    if not isinstance(graph.host, FxHost):
        raise UsageError("only graphs that came from torch can be emitted as a GraphModule")
    emitter = _Emitter(graph, graph.host)
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
        if shape is None or dtype not in _DTYPES:
            raise UsageError(f"the shape of input {value.name!r} is not known: give example_inputs")
        made.append(torch.zeros(shape, dtype=_DTYPES[dtype]))
    return tuple(made)


def problem(node: Node) -> str | None:
    """Why a node cannot be said in torch; ``None`` if it can. No module or call is made for the answer."""
    if isinstance(node.op, ir.Conv | ir.Linear):
        return None
    try:
        _rule(node)(_DRY, node, node.op)
    except ModelError as error:
        return str(error).removeprefix(f"{node.name}: ")
    return None


def _rule(node: Node) -> Callable[[_Emitter, Node, Any], fx.Node]:
    if isinstance(node.op, Opaque):
        raise ModelError(f"{node.name}: {node.op.kind} was changed and cannot be written again")
    rule = _RULES.get(type(node.op))
    if rule is None:
        raise ModelError(f"{node.name}: {node.op.name} has no spelling in torch")
    return rule


class _Emitter:
    def __init__(self, graph: Graph, host: FxHost) -> None:
        self.graph, self.host = graph, host
        self.out = fx.Graph()
        self.root = nn.Module()
        self.nodes: dict[Value, fx.Node] = {}
        self.constants: dict[Value, fx.Node] = {}
        self.host_nodes: dict[str, fx.Node] = {}
        self.switches: dict[Value, Switch] = {}
        self.tensors: dict[int, tuple[Tensor, torch.Tensor]] = {}
        self.temporary = temporary(host.module)
        self.masks: dict[int, Mask] = {}
        self.reserved = _reserved(host.module)
        self.by_name: dict[str, fx.Node] = {}
        self.places = {name: i for i, name in enumerate(host.order)}
        stated = {n for node in graph.nodes for n in getattr(node.origin, "nodes", ())}
        self.sizes = [name for name in host.sizes if name not in stated]
        self.computed: list[tuple[fx.Node, fx.Node]] = []
        self.whole = _whole(graph)
        self.modules = dict(host.module.named_modules(remove_duplicate=False))
        self.as_before: set[str] = set()
        self.laid: dict[fx.Node, fx.Node] = {}
        self.moved = self._moved(stated)

    def run(self) -> fx.GraphModule:
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
            name: self._returned(name, value)
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
        module = fx.GraphModule(self.root, self.out, type(source).__name__)
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

    # Values.

    def _value(self, value: Value) -> fx.Node:
        if value in self.nodes:
            return self.nodes[value]
        if value.data is None:
            raise ModelError(f"%{value.name} is used before it is made")
        if value not in self.constants:
            self.constants[value] = self._constant(value)
        return self.constants[value]

    def _constant(self, value: Value) -> fx.Node:
        assert value.data is not None
        if isinstance(value.data, MaskedTensor) and value.data.lasting:
            held = Constant(nn.Parameter(torch.empty(0), requires_grad=False))
            hold(held, "weight", self.tensor(value.data))
            self.masked(held, value.data)
            return self.out.call_module(self._place(self._free(value.name), held))
        if isinstance(value.data.host, torch.Tensor) and isinstance(value.host, tuple):
            name = self._place(str(value.host[1]), value.data.host)
        else:
            name = self._free(value.name.replace("/", "."))
            known = value.data.hosts is not None
            name = self._place(name, self.tensor(value.data) if known else self._made(value.data))
        return self.out.get_attr(name)

    def _like(self) -> torch.Tensor | None:
        module = self.host.module
        return next(itertools.chain(module.parameters(), module.buffers()), None)

    def _place(self, name: str, found: Any) -> str:
        """Register a module, parameter or buffer under a dotted name, or a free one like it."""
        if _has(self.root, name) and _get(self.root, name) is not found:
            name = self._free(name)
        owner, _, leaf = name.rpartition(".")
        holder: Any = self.root
        for part in owner.split(".") if owner else ():
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        if getattr(holder, leaf, None) is found:
            return name
        if isinstance(found, nn.Module):
            holder.add_module(leaf, found)
        elif isinstance(found, nn.Parameter):
            holder.register_parameter(leaf, found)
        else:
            holder.register_buffer(leaf, found, persistent=id(found) not in self.temporary)
        return name

    def _free(self, hint: str) -> str:
        """A dotted name that the result does not use, nor the host for something that may stay."""
        hint = ".".join(p if p.isidentifier() or p.isdigit() else _word(p) for p in hint.split("."))
        hint = name = self._outside(hint)
        count = 0
        while name in self.reserved or _has(self.root, name):
            count += 1
            name = f"{hint}_{count}"
        return name

    def _outside(self, name: str) -> str:
        """The name, beside a module that it would otherwise become a part of: that may be the host's own."""
        parts = name.split(".")
        for i in range(1, len(parts)):
            prefix = ".".join(parts[:i])
            if not _has(self.root, prefix):
                break
            if type(_get(self.root, prefix)) is not nn.Module:
                return "_".join([prefix, *parts[i:]])
        return name

    # Nodes.

    def _node(self, node: Node) -> None:
        origin = node.origin
        if isinstance(origin, FxOrigin) and origin.nodes:
            self._sizes(self.places[origin.nodes[0]])
        self._emit(node, origin)
        for value in node.outputs:
            if isinstance(value.host, str) and value in self.nodes:
                self.by_name[value.host] = self.nodes[value]

    def _sizes(self, place: int) -> None:
        """Write the calls that compute sizes, which the IR does not have, up to a place in the host's order."""
        while self.sizes and self.places[self.sizes[0]] < place:
            found = self.host.order[self.sizes.pop(0)]
            sources = found.all_input_nodes
            if all(s.name in self.by_name or s.op == "get_attr" for s in sources):
                copied = self.out.node_copy(found, self._by_name)
                self.host_nodes[found.name] = self.by_name[found.name] = copied
                self.as_before.add(found.name)
                self.computed.append((copied, found))

    def _by_name(self, source: fx.Node) -> fx.Node:
        return self.by_name[source.name] if source.name in self.by_name else self._get_attr(source)

    def _emit(self, node: Node, origin: object) -> None:
        if isinstance(origin, FxOrigin) and self._copy(node, origin):
            return
        made = _rule(node)(self, node, node.op)
        if len(node.outputs) == 1:
            self.nodes[node.output] = made
        else:
            for i, value in enumerate(node.outputs):
                if value.use_count:
                    self.nodes[value] = self.call(operator.getitem, made, i)

    def _copy(self, node: Node, origin: FxOrigin) -> bool:
        names: dict[str, Value] = {}
        if origin.parts > 1:
            group = self.whole.get(origin.nodes)
            if group is None:
                return False
            if group[-1] is not node:
                return True  # Written with the last one.
            for part in group:
                names.update(_names(part, part.origin) or {})
        else:
            found_names = _names(node, origin)
            if found_names is None:
                return False
            names = found_names
        bases = {b.host for v in node.inputs if v is not None for b in v.bases}
        bases.update(self.host.sizes)
        if not all(self._keeps_memory(n, node) for n in origin.nodes):
            return False
        hosts = [self.host.order[name] for name in origin.nodes]
        inner = {h.name for h in hosts}
        for found in hosts:
            for source in found.all_input_nodes:
                known = source.name in names or source.name in inner or source.op == "get_attr"
                if not known and not (source.name in bases and source.name in self.host_nodes):
                    return False

        def mapped(source: fx.Node) -> fx.Node:
            if source.name in names:
                return self._value(names[source.name])
            if source.name in inner or source.op != "get_attr":
                return self.host_nodes[source.name]
            return self._get_attr(source)

        for found in hosts:
            if found.op == "get_attr":
                self._get_attr(found)
                continue
            if len(hosts) > 1 and self._written(found, mapped):
                continue
            copied = self._copied(found, mapped, names)
            if all(v.host is None for v in node.outputs):
                # It was resized: what the host knew of its results is no longer so.
                copied.meta = {k: v for k, v in copied.meta.items() if k not in _STATED}
            if found.op == "call_module":
                target = str(found.target)
                copied.target = self._place(target, self.host.module.get_submodule(target))
            self.host_nodes[found.name] = copied
        for value, name in zip(node.outputs, origin.outputs, strict=True):
            if isinstance(name, str):
                self.nodes[value] = self.host_nodes[name]
        return True

    # How tensors lie in memory, of which the IR knows nothing.

    def _moved(self, stated: set[str]) -> bool:
        """Whether anything that decides about layouts went, or came."""
        gone = any(n.name not in stated for n in self.host.order.values() if layout.decides(n))
        return gone or any(
            isinstance(n.op, (ir.Transpose, ir.Identity)) and n.origin is None
            for n in self.graph.nodes
        )

    def _copied(
        self,
        found: fx.Node,
        mapped: Callable[[fx.Node], fx.Node],
        names: Mapping[str, Value],
    ) -> fx.Node:
        """A host call once more; one that depends on layouts as it must be called now."""
        changed = [s for s in found.all_input_nodes if not self._is_as_before(s, mapped(s))]
        if not changed:
            self.as_before.add(found.name)
            return self.out.node_copy(found, mapped)
        reshaping = layout.reshaping(found)
        if reshaping is not None:
            kind, target, given = reshaping
            args: Any = fx.map_arg(found.args, mapped)
            kwargs: Any = fx.map_arg(given, mapped)
            made = self.out.create_node(kind, target, args, kwargs, found.name)
            made.meta = dict(found.meta)
            return made
        if not self.moved or not layout.may_want_rows(found, self.modules):
            return self.out.node_copy(found, mapped)
        rows = {s.name for s in changed if self._wants_rows(s, names.get(s.name))}
        return self.out.node_copy(
            found, lambda s: self._in_rows(mapped(s)) if s.name in rows else mapped(s)
        )

    def _is_as_before(self, source: fx.Node, made: fx.Node) -> bool:
        """Whether what stands for a host node is that node, with everything in front of it."""
        if source.op in ("placeholder", "get_attr"):
            return source.op == made.op
        return source.name in self.as_before and self.host_nodes.get(source.name) is made

    def _wants_rows(self, source: fx.Node, value: Value | None) -> bool:
        """Whether an argument that may have lain in order must be put in order, now that it may not."""
        if source.name in self.host.strided or value is None or value.producer is None:
            return False
        is_tensor = source.name in self.host.in_rows or not isinstance(value.producer.op, Opaque)
        return is_tensor and not _lies_in_rows(value)

    def _in_rows(self, made: fx.Node) -> fx.Node:
        if made not in self.laid:
            self.laid[made] = self.call("contiguous", made)
        return self.laid[made]

    def _returned(self, name: str, value: Value) -> fx.Node:
        """What the module returns; whoever reads it may count on its layout."""
        made, source = self._value(value), self.host.order[name]
        if not self.moved or self._is_as_before(source, made):
            return made
        # Without example inputs nobody knows for certain.
        lay = name in self.host.in_rows or layout.is_put_in_rows(source)
        return self._in_rows(made) if lay and self._wants_rows(source, value) else made

    def _written(self, found: fx.Node, mapped: Callable[[fx.Node], fx.Node]) -> bool:
        """Whether a host node that several of ours stand for is there already, with the same arguments."""
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
            name = self._place(target, _get(self.host.module, target))
            self.host_nodes[source.name] = self.out.get_attr(name)
        return self.host_nodes[source.name]

    def _keeps_memory(self, name: str, node: Node) -> bool:
        """An in-place call stays in place only where nobody else reads what it overwrites."""
        if name not in self.host.inplace or isinstance(node.op, Opaque):
            return True
        value = node.inputs[0]
        while value is not None:
            if value.use_count != 1 or value.producer is None:
                return False
            if isinstance(value.producer.op, _ALLOCATING):
                return True
            value = value.producer.inputs[0] if value.producer.inputs else None
        return False

    def call(self, function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function, or of a method by name."""
        if isinstance(function, str):
            return self.out.call_method(function, args, kwargs)
        return self.out.call_function(function, args, kwargs)

    def module(self, node: Node, made: nn.Module, *args: fx.Node) -> fx.Node:
        """A call of a new module under the node's dotted name."""
        made.train(self.host.module.training)
        name = self._place(self._free(node.name), made)
        return self.out.call_module(name, args)

    def weights(self, node: Node) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias when both are constants."""
        weight, bias = node.input(1), node.input(2)
        if weight is None or weight.data is None or (bias is not None and bias.data is None):
            return None
        return weight.data, bias.data if bias is not None else None

    def switch(self, node: Node, mode: str) -> Switch:
        """The switch of a gate: one for all gates that read the same number."""
        value = node.inputs[1]
        if value is None or value.data is None:
            raise ModelError(f"{node.name}: a gate of a computed number has no spelling in torch")
        if value not in self.switches:
            found, like = value.data.host, self._like()
            if not isinstance(found, Switch) or found.mode != mode:
                found = Switch(mode, float(value.data.float64()[0]))
                wide = like is not None and like.dtype in (torch.float32, torch.float64)
                device = like.device if like is not None and like.device.type != "meta" else None
                found.to(device, like.dtype if like is not None and wide else torch.float32)
            self.switches[value] = found
        return self.switches[value]

    def fill(self, made: Any, weight: Tensor, bias: Tensor | None) -> None:
        """Give a new module its numbers, on the device of the host's parameters."""
        hold(made, "weight", self.tensor(weight))
        self.masked(made, weight)
        if bias is not None:
            hold(made, "bias", self.tensor(bias))

    def masked(self, made: nn.Module, weight: Tensor) -> None:
        """Let the mask of a new module's weight last; modules that share a weight share its mask."""
        if not isinstance(weight, MaskedTensor) or not weight.lasting:
            return
        if id(weight) not in self.masks:
            mask = torch.from_numpy(weight.mask)
            self.masks[id(weight)] = Mask(mask, weight.pattern, weight.reduction)
        mask_weight(made, self.masks[id(weight)])

    def tensor(self, data: Tensor) -> torch.Tensor:
        """The numbers of a constant, one tensor for all that read the same: tied weights stay tied.

        What is the host's own stays that. What is made of parameters is a parameter, and learns if one of them does;
        what is made of buffers and numbers is a buffer.
        """
        if isinstance(data.host, torch.Tensor):
            return data.host
        if id(data) not in self.tensors:
            made = self._made(data)
            hosts = data.hosts
            sources = self.host.module.parameters() if hosts is None else hosts
            found = [p for p in sources if isinstance(p, nn.Parameter)]
            if (found or hosts is None) and made.is_floating_point():
                made = nn.Parameter(made, any(p.requires_grad for p in found))
            # The constant is kept, so that its id stays its own.
            self.tensors[id(data)] = data, made
        return self.tensors[id(data)][1]

    def _made(self, data: Tensor) -> torch.Tensor:
        """The numbers on the device, and in the memory format, of what they are made from."""
        sources = [h for h in data.hosts or () if isinstance(h, torch.Tensor)]
        made = _torch(data, next((h for h in sources if h.device.type != "meta"), self._like()))
        form = next(
            (f for h in sources if (f := _last(h)) is not None and h.ndim == made.ndim), None
        )
        if form is None:
            return made
        return torch.empty_like(made, memory_format=form).copy_(made)


def hold(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Give a new module a parameter or a buffer in the place of a tensor of its own."""
    module._parameters.pop(name, None)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def _last(tensor: torch.Tensor) -> torch.memory_format | None:
    """The format of a tensor whose channels are its innermost axis."""
    forms = {4: torch.channels_last, 5: torch.channels_last_3d}
    form = forms.get(tensor.ndim)
    if form is None or not tensor.is_contiguous(memory_format=form):
        return None
    # Axes of size 1 leave it open; torch then goes by the strides.
    rows = torch.empty(tensor.shape, device="meta").stride()
    return form if tensor.stride() != rows else None


class _DryEmitter(_Emitter):
    """Goes through a rule and makes nothing that stays: only what the rule refuses counts."""

    def __init__(self) -> None:
        self.stub = fx.Graph().placeholder("x")
        self.host = FxHost(fx.GraphModule(nn.Module(), fx.Graph()), None, {}, frozenset())

    def _value(self, value: Value) -> fx.Node:
        return self.stub

    def call(self, function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        return self.stub

    def module(self, node: Node, made: nn.Module, *args: fx.Node) -> fx.Node:
        return self.stub

    def tensor(self, data: Tensor) -> torch.Tensor:
        return torch.empty(data.shape, device="meta")

    def switch(self, node: Node, mode: str) -> Switch:
        value = node.inputs[1]
        if value is None or value.data is None:
            raise ModelError(f"{node.name}: a gate of a computed number has no spelling in torch")
        return Switch(mode, 0.0)

    def fill(self, made: Any, weight: Tensor, bias: Tensor | None) -> None:
        return


def _names(node: Node, origin: FxOrigin) -> dict[str, Value] | None:
    """The values that stand where the host read others, by the host's names; ``None`` if that cannot be said."""
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
    """The nodes that are one host call together, where all of them are still as they were."""
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
    inner = [v for node in found[:-1] for v in node.outputs]
    alone = all(not v.is_output and set(v.users) <= set(found) for v in inner)
    return alone and len(found) == found[-1].origin.parts


def _lies_in_rows(value: Value) -> bool:
    """Whether a value lies in order whatever it was made from."""
    while value.producer is not None and value.producer.inputs:
        node, source = value.producer, value.producer.inputs[0]
        if isinstance(node.op, ir.Linear | ir.MatMul):
            return True
        if not isinstance(node.op, ir.Activation | ir.Softmax | ir.Unary) or source is None:
            return False
        value = source
    return False


_STATED = ("val", "tensor_meta", "example_value")
"""What torch notes about the result of a call."""

_ALLOCATING = (
    ir.Conv, ir.ConvTranspose, ir.Linear, ir.Scale, ir.Add, ir.Sub, ir.Mul, ir.Div, ir.MatMul,
    ir.Activation, ir.PRelu, ir.Gate, ir.LayerNorm, ir.GroupNorm, ir.Softmax, ir.Concat, ir.AveragePool, ir.MaxPool,
    ir.GlobalAveragePool, ir.Unary, ir.Pow, ir.Max, ir.Min, ir.Compare, ir.Logical, ir.Where, ir.LogSoftmax, ir.Resize,
)  # fmt: skip


def _word(text: str) -> str:
    word = "".join(c if c.isalnum() or c == "_" else "_" for c in text)
    return word if word and (word.isdigit() or not word[0].isdigit()) else f"m_{word}"


def _typeless(node: fx.Node) -> fx.Node:
    """Postponed annotations are plain strings, which torch cannot pickle."""
    if isinstance(node.type, str):
        node.type = None
    return node


def _has(root: nn.Module, name: str) -> bool:
    found: Any = root
    for part in name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def _get(root: nn.Module, name: str) -> Any:
    found: Any = root
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _reserved(module: fx.GraphModule) -> set[str]:
    """Names of the host that a new module must not take: containers, and modules called twice."""
    seen: set[str] = set()
    kept: set[str] = set()
    for node in module.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            parts = target.split(".")
            kept.update(".".join(parts[:i]) for i in range(1, len(parts)))
            if target in seen or node.op == "get_attr":
                kept.add(target)
            seen.add(target)
    return kept


def _torch(data: Tensor, like: torch.Tensor | None) -> torch.Tensor:
    if data.dtype not in _DTYPES:
        raise ModelError(f"torch has no element type {data.dtype.value}")
    array = data.numpy()
    if data.dtype is DType.BF16:
        made = torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    else:
        made = torch.from_numpy(array.copy())
    return made if like is None or like.device.type == "meta" else made.to(like.device)


_CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _conv(e: _Emitter, node: Node, op: ir.Conv) -> fx.Node:
    x, n = e._value(node.required(0)), op.spatial_rank
    pads, given = op.pads, e.weights(node)
    if pads[:n] != pads[n:]:
        x = e.call(F.pad, x, [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])])
        pads = (0,) * (2 * n)
    if given is None:
        function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[n]
        rest = [e._value(v) if v is not None else None for v in (node.input(1), node.input(2))]
        return e.call(function, x, *rest, op.strides, pads[:n], op.dilations, op.groups)
    weight, bias = given
    shape = weight.shape
    made = _CONVS[n](
        shape[1] * op.groups,
        shape[0],
        shape[2:],
        op.strides,
        pads[:n],
        op.dilations,
        op.groups,
        bias is not None,
        device="meta",
        dtype=_DTYPES[weight.dtype],
    )
    e.fill(made, weight, bias)
    return e.module(node, made, x)


def _conv_transpose(e: _Emitter, node: Node, op: ir.ConvTranspose) -> fx.Node:
    x, n, given = e._value(node.required(0)), op.spatial_rank, e.weights(node)
    if given is None or op.pads[:n] != op.pads[n:]:
        raise ModelError(f"{node.name}: this ConvTranspose has no spelling in torch")
    weight, bias = given
    shape = weight.shape
    made = _TRANSPOSED[n](
        shape[0],
        shape[1] * op.groups,
        shape[2:],
        op.strides,
        op.pads[:n],
        op.output_padding or (0,) * n,
        op.groups,
        bias is not None,
        op.dilations,
        device="meta",
        dtype=_DTYPES[weight.dtype],
    )
    e.fill(made, weight, bias)
    return e.module(node, made, x)


def _linear(e: _Emitter, node: Node, op: ir.Linear) -> fx.Node:
    x, given = e._value(node.required(0)), e.weights(node)
    if given is None:
        rest = [e._value(v) if v is not None else None for v in (node.input(1), node.input(2))]
        return e.call(F.linear, x, *rest)
    weight, bias = given
    out, fan_in = weight.shape
    made = nn.Linear(fan_in, out, bias is not None, device="meta", dtype=_DTYPES[weight.dtype])
    e.fill(made, weight, bias)
    return e.module(node, made, x)


def _embedding(e: _Emitter, node: Node, op: ir.Embedding) -> fx.Node:
    ids, given = e._value(node.required(0)), e.weights(node)
    if given is None:
        raise ModelError(f"{node.name}: an Embedding of a computed table has no spelling in torch")
    rows, features = given[0].shape
    made = nn.Embedding(rows, features, device="meta", dtype=_DTYPES[given[0].dtype])
    e.fill(made, given[0], None)
    return e.module(node, made, ids)


def _scale(e: _Emitter, node: Node, op: ir.Scale) -> fx.Node:
    x = node.required(0)
    norm = reordered_norm(node)
    if norm is not None:
        return e.module(node, norm, e._value(x))
    vectors: list[torch.Tensor | None] = []
    operands = [node.input(1), node.input(2)]
    for value in operands:
        if value is not None and value.data is None:
            raise ModelError(f"{node.name}: a Scale by a computed vector has no spelling in torch")
        vectors.append(None if value is None or value.data is None else e.tensor(value.data))
    if x.type.rank is None and any(v is not None and v.type.dim(0) != 1 for v in operands):
        raise ModelError(f"{node.name}: a Scale of unknown rank has no spelling in torch")
    trailing = x.type.rank - op.axis % x.type.rank - 1 if x.type.rank else 0
    made = Scale(None, None, trailing)
    for name, vector in zip(("scale", "shift"), vectors, strict=True):
        if vector is not None:
            shaped = vector.detach().clone().reshape(-1, *[1] * trailing)
            learned = isinstance(vector, nn.Parameter)
            hold(made, name, nn.Parameter(shaped, vector.requires_grad) if learned else shaped)
    return e.module(node, made, e._value(x))


def _activation(e: _Emitter, node: Node, op: ir.Activation) -> fx.Node:
    x, p = e._value(node.required(0)), op.params
    made = activation_module(op.kind, p)
    if made is not None:
        return e.module(node, made, x)
    if op.kind == "clip":
        low, high = (None if math.isinf(v) else v for v in p)
        return e.call(torch.clamp, x, low, high)
    functions: dict[str, Any] = {"softplus": F.softplus, "celu": F.celu}
    if op.kind not in functions:
        raise ModelError(f"{node.name}: this {op.kind} has no spelling in torch")
    return e.call(functions[op.kind], x, *p)


def _prelu(e: _Emitter, node: Node, op: ir.PRelu) -> fx.Node:
    return e.module(
        node, _prelu_module(e, node, op.axis, node.input(1)), e._value(node.required(0))
    )


def _prelu_module(e: _Emitter, node: Node, axis: int, slope: Value | None) -> nn.Module:
    rank = node.required(0).type.rank
    if slope is None or slope.data is None:
        raise ModelError(f"{node.name}: a PRelu of a computed slope has no spelling in torch")
    if slope.data.size != 1 and axis != 1 and (rank is None or axis % rank != 1):
        raise ModelError(f"{node.name}: a PRelu along axis {axis} has no spelling in torch")
    made = nn.PReLU(slope.data.size, device="meta", dtype=_DTYPES[slope.data.dtype])
    e.fill(made, slope.data, None)
    return made


def _gate(e: _Emitter, node: Node, op: ir.Gate) -> fx.Node:
    if op.kind == "prelu":
        inner: nn.Module | None = _prelu_module(e, node, op.axis, node.input(2))
    else:
        inner = activation_module(op.kind, op.params)
    if inner is None:
        raise ModelError(f"{node.name}: a gate of {op.kind} has no spelling in torch")
    inner.train(e.host.module.training)
    return e.module(node, Gate(inner, e.switch(node, op.mode)), e._value(node.required(0)))


def _pool(e: _Emitter, node: Node, op: Any) -> fx.Node:
    x, n = e._value(node.required(0)), op.spatial_rank
    if op.pads[:n] != op.pads[n:]:
        raise ModelError(f"{node.name}: an asymmetric pool has no spelling in torch")
    head = (x, op.kernel, op.strides, op.pads[:n])
    if isinstance(op, ir.MaxPool):
        function: Any = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[n]
        return e.call(function, *head, op.dilations, op.ceil_mode)
    function = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[n]
    return e.call(function, *head, op.ceil_mode, op.count_include_pad)


def _pad(e: _Emitter, node: Node, op: ir.Pad) -> fx.Node:
    rank = len(op.pads) // 2
    amounts = [p for i in reversed(range(rank)) for p in (op.pads[i], op.pads[rank + i])]
    return e.call(F.pad, e._value(node.required(0)), amounts, op.mode, op.value)


def _reduce(e: _Emitter, node: Node, op: ir.Reduce) -> fx.Node:
    kinds: dict[str, Callable[..., Any]]
    kinds = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin}
    function = kinds.get(op.kind)
    if function is None:
        raise ModelError(f"{node.name}: Reduce {op.kind} has no spelling in torch")
    return e.call(function, e._value(node.required(0)), op.axes, op.keepdims)


def _reshape(e: _Emitter, node: Node, op: ir.Reshape) -> fx.Node:
    made = e._value(node.required(0))
    sizes = [e.call("size", made, i) if d is None else d for i, d in enumerate(op.shape)]
    return e.call(torch.reshape, made, tuple(sizes))


def _global(e: _Emitter, node: Node, op: ir.GlobalAveragePool) -> fx.Node:
    rank = node.required(0).type.rank
    if rank is None:
        pools = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
        if op.spatial not in pools:
            raise ModelError(
                f"{node.name}: how many axes a global pool averages is not known: give example_inputs"
            )
        return e.call(pools[op.spatial], e._value(node.required(0)), 1)
    return e.call(torch.mean, e._value(node.required(0)), tuple(range(2, rank)), True)


def _binary(function: Callable[..., Any]) -> Callable[[_Emitter, Node, Any], fx.Node]:
    def rule(e: _Emitter, node: Node, op: Any) -> fx.Node:
        return e.call(function, *(e._value(v) for v in node.inputs if v is not None))

    return rule


def _unary(function: Any, *fields: str) -> Callable[[_Emitter, Node, Any], fx.Node]:
    def rule(e: _Emitter, node: Node, op: Any) -> fx.Node:
        return e.call(function, e._value(node.required(0)), *(getattr(op, f) for f in fields))

    return rule


def _identity(e: _Emitter, node: Node, op: Any) -> fx.Node:
    return e.module(node, nn.Identity(), e._value(node.required(0)))


def _layer_norm(e: _Emitter, node: Node, op: ir.LayerNorm) -> fx.Node:
    x = node.required(0)
    shape = x.type.shape[op.axis :] if x.type.shape is not None else ()
    if not shape or not all(isinstance(d, int) for d in shape):
        raise ModelError(f"{node.name}: a LayerNorm of unknown size has no spelling in torch")
    given = e.weights(node)
    if given is not None and all(t is None or t.shape == shape for t in given):
        weight, bias = given
        rest: dict[str, Any] = {
            "bias": bias is not None,
            "device": "meta",
            "dtype": _DTYPES[weight.dtype],
        }
        made = nn.LayerNorm(weight.shape, op.epsilon, **rest)
        e.fill(made, weight, bias)
        return e.module(node, made, e._value(x))
    vectors = [e._value(v) if v is not None else None for v in (node.input(1), node.input(2))]
    return e.call(F.layer_norm, e._value(x), shape, *vectors, op.epsilon)


def _group_norm(e: _Emitter, node: Node, op: ir.GroupNorm) -> fx.Node:
    x, given = node.required(0), e.weights(node)
    n = (x.type.rank or 0) - 2
    if given is not None and given[1] is not None and (op.groups or n in _INSTANCE_NORMS):
        size = given[0].shape[0]
        rest: dict[str, Any] = {"device": "meta", "dtype": _DTYPES[given[0].dtype]}
        made: nn.Module
        if op.groups:
            made = nn.GroupNorm(op.groups, size, op.epsilon, **rest)
        else:
            made = _INSTANCE_NORMS[n](size, op.epsilon, affine=True, **rest)
        e.fill(made, *given)
        return e.module(node, made, e._value(x))
    weight, bias = (e._value(v) if v is not None else None for v in (node.input(1), node.input(2)))
    if op.groups:
        return e.call(F.group_norm, e._value(x), op.groups, weight, bias, op.epsilon)
    return e.call(F.instance_norm, e._value(x), weight=weight, bias=bias, eps=op.epsilon)


_INSTANCE_NORMS: dict[int, Any] = {
    1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d,
}  # fmt: skip


def _concat(e: _Emitter, node: Node, op: ir.Concat) -> fx.Node:
    return e.call(torch.cat, [e._value(v) for v in node.inputs if v is not None], op.axis)


def _split(e: _Emitter, node: Node, op: ir.Split) -> fx.Node:
    made = e.call(torch.split, e._value(node.required(0)), list(op.sizes), op.axis)
    return e.call(operator.getitem, made, 0) if len(op.sizes) == 1 else made


def _slice(e: _Emitter, node: Node, op: ir.Slice) -> fx.Node:
    rank = node.required(0).type.rank
    if rank is None and min(op.axes) < 0:
        raise ModelError(f"{node.name}: a Slice counted from the last axis needs the rank")
    axes = [a % rank if rank else a for a in op.axes]
    parts = [slice(None)] * (max(axes) + 1)
    for axis, start, end, step in zip(axes, op.starts, op.ends, op.steps, strict=True):
        parts[axis] = slice(
            start or None, None if end >= 2**31 - 1 else end, None if step == 1 else step
        )
    return e.call(operator.getitem, e._value(node.required(0)), tuple(parts))


def _new_axes(e: _Emitter, node: Node, op: ir.Unsqueeze) -> fx.Node:
    made, rank = e._value(node.required(0)), node.required(0).type.rank
    if rank is None and min(op.axes) < 0:
        raise ModelError(f"{node.name}: an Unsqueeze counted from the last axis needs the rank")
    for axis in sorted(a % (rank + len(op.axes)) if rank is not None else a for a in op.axes):
        made = e.call(torch.unsqueeze, made, axis)
    return made


def _cast(e: _Emitter, node: Node, op: ir.Cast) -> fx.Node:
    dtype = _DTYPES.get(ir.DType(op.to))
    if dtype is None:
        raise ModelError(f"{node.name}: torch has no element type {op.to}")
    return e.call("to", e._value(node.required(0)), dtype)


_RULES: dict[type[ir.Op], Callable[[_Emitter, Node, Any], fx.Node]] = {
    **MATH_RULES,
    ir.Activation: _activation, ir.Add: _binary(torch.add), ir.AveragePool: _pool,
    ir.Concat: _concat, ir.Conv: _conv, ir.ConvTranspose: _conv_transpose, ir.Div: _binary(torch.div),
    ir.Embedding: _embedding, ir.Flatten: _unary(torch.flatten, "axis"), ir.Gate: _gate, ir.GlobalAveragePool: _global, ir.GroupNorm: _group_norm, ir.Identity: _identity,
    ir.LayerNorm: _layer_norm, ir.Linear: _linear, ir.MatMul: _binary(torch.matmul),
    ir.MaxPool: _pool, ir.Mul: _binary(torch.mul), ir.PRelu: _prelu, ir.Pad: _pad, ir.Reduce: _reduce,
    ir.Reshape: _reshape, ir.Scale: _scale, ir.Softmax: _unary(torch.softmax, "axis"),
    ir.Cast: _cast, ir.Select: lambda e, n, op: e.call(torch.select, e._value(n.required(0)), op.axis, op.index),
    ir.Slice: _slice, ir.Split: _split, ir.Squeeze: _unary(torch.squeeze, "axes"), ir.Unsqueeze: _new_axes,
    ir.Sub: _binary(torch.sub), ir.Transpose: _unary(torch.permute, "perm"),
}  # fmt: skip

_DRY = _DryEmitter()

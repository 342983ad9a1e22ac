"""torch.fx graphs to IR graphs.

Every call becomes one IR node, canonical where the IR knows it and ``Opaque`` elsewhere. Weights stay the
caller's own parameters behind lazy handles. In-place calls are followed through views: where another
reader could see the change, everything that touches that memory becomes a barrier.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from ... import ir
from ...hosts.torch import layouts as fx_layout
from ...hosts.torch.calls import call_name, is_aten
from ...hosts.torch.dtypes import DTYPES
from ...hosts.torch.modules.gates import RANDOM, Gate
from ...hosts.torch.modules.masks import Constant, mask_of, plain_type
from ...hosts.torch.origins import FxHost, FxOrigin
from ...ir import (
    Graph,
    InferenceError,
    LazyTensor,
    MaskedTensor,
    ModelError,
    Opaque,
    Tensor,
    TensorType,
    Value,
)
from ...ir.analysis.sizes import SizeRoots
from ..lowering import Lowered, Operand, Path, Step, Steps
from ..raising.patterns import raise_patterns
from ..support import LeftAlone, limit
from .alike import Alike
from .call import Call
from .computed import Computed
from .constants import fold_view
from .fake_run import DoesNotRun, fake_run, shapes_of, type_of
from .memory import find_writes, is_inplace
from .modules import hooked
from .pieces import pieces_taken_once
from .ranks import told_ranks, two_axes
from .registry import Entry, ModuleEntry
from .resized_runs import OtherBatch, resized_runs
from .rules import CALLS, MODULES, PIECES, REFUSED
from .runs import Runs
from .sizes import asks_sizes, cuts_nothing, is_plain, known_sizes, placed
from .trace import StateError, trace


def from_fx(
    module: fx.GraphModule,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    fixed_sizes: bool = False,
) -> Graph:
    """Import a traced module; neither the module nor its graph is changed.

    Args:
        module: The module, in evaluation mode.
        example_inputs: Inputs from which shapes are found; nothing is computed on them.
        fixed_sizes: Read the module for inputs as large as these, with batches of any size.

    Raises:
        ModelError: If a module is in training mode and would behave differently.
        DoesNotRun: If it does not run on the inputs.
        StateError: If it writes to its own tensors.
    """
    return _Importer(module, example_inputs, fixed_sizes).run()


def tensor_of(found: torch.Tensor) -> Tensor | None:
    """A lazy handle on a torch tensor, which becomes its ``host``."""
    dtype = DTYPES.get(found.dtype)
    if dtype is None:
        return None

    def load() -> Any:
        plain = found.detach().cpu().contiguous()
        if found.dtype is torch.bfloat16:
            return plain.view(torch.int16).numpy().view(ir.DType.BF16.numpy)
        return plain.numpy()

    return LazyTensor(tuple(found.shape), dtype, load, found)


class _Importer:
    def __init__(
        self, module: fx.GraphModule, inputs: tuple[Any, ...] | None, fixed: bool = False
    ) -> None:
        self.module, self.inputs, self.fixed = module, inputs, fixed
        self.graph = Graph(type(module).__name__.lower())
        self.values: dict[str, Value] = {}
        self.parameters: dict[int, Value] = {}
        self.shared: dict[int, Value] = {}
        self.masked: dict[tuple[int, int], Value] = {}
        self.modules = dict(module.named_modules())
        self.nodes = list(module.graph.nodes)
        self.types: dict[str, TensorType] = {}
        self.taken: set[str] = set()
        self.sizes: dict[str, Any] = {}
        self.roots = SizeRoots()
        self.barrier: set[str] = set()
        self.in_rows: dict[str, bool] = {}
        self.lengths: dict[str, int] = {}
        self.named: set[str] = set()
        self.runs = Runs()
        self.baked: dict[str, str] = {}
        self.computed = Computed(module, [], ())
        self.folded: list[str] = []

    def run(self) -> Graph:
        self._check_mode()
        if self.inputs is not None:
            ran = fake_run(self.module, self.inputs)
            self.types, results, self.in_rows = ran.found, ran.results, ran.in_rows
            self.lengths = ran.lengths
            asks = asks_sizes(self.nodes) or cuts_nothing(self.nodes, self.types)
            if asks and not ran.by_numbers:  # Else there is no run on fake tensors.
                self.runs = resized_runs(self.module, self.inputs, self.types, self.fixed)
        else:
            stated = {n.name: n.meta["val"] for n in self.nodes if "val" in n.meta}
            self.types = {name: type_of(found) for name, found in stated.items()}
            results = {name: found for name, found in stated.items() if is_plain(found)}
            if not self.types:
                results = told_ranks(self.module)
                self.types = dict.fromkeys(two_axes(self.module), TensorType(None, (None, None)))
                self.graph.notes.append(
                    "no shapes are known: give example_inputs for bias maps, skips and exact costs"
                )
        self.module = pieces_taken_once(self.module, self.lengths)
        self.nodes = list(self.module.graph.nodes)
        self.sizes = known_sizes(self.nodes, results, self.runs)
        writes = find_writes(self.nodes, self.modules, self.sizes)
        self.barrier = writes.barriers
        self.graph.notes += writes.notes
        self._hold_layouts()
        self.computed = Computed(self.module, self.nodes, self.barrier)
        for node in self.nodes:
            if node.name not in self.taken and node.name not in self.sizes:
                self._node(node, node.name in self.barrier)
        self._note_computed()
        order = {n.name: n for n in self.nodes}
        self.in_rows |= {n.name: True for n in self.nodes if fx_layout.in_rows(n)}
        self.graph.host = FxHost(
            self.module,
            self.inputs,
            order,
            frozenset(writes.inplace),
            tuple(self.sizes),
            in_rows=frozenset(name for name, known in self.in_rows.items() if known),
            strided=frozenset(name for name, known in self.in_rows.items() if not known),
            alike=Alike(self.nodes, self.sizes, self.runs),
            baked=self.baked,
        )
        if self.inputs is not None:
            other = OtherBatch(self.module, self.inputs, self.runs)
            self.graph.host = replace(self.graph.host, other_batch=other)
        raise_patterns(self.graph, _combine)
        return self.graph

    def _note_computed(self) -> None:
        """Note which weights are computed at every call."""
        if not self.folded:
            return
        shown = ", ".join(self.folded[:3]) + (", ..." if len(self.folded) > 3 else "")
        self.graph.notes.append(
            f"computed from parameters at every call, plain weights where passes write them: {shown}"
        )

    def _check_mode(self) -> None:
        for node in self.nodes:
            if node.op == "call_module":
                found = self.modules[str(node.target)]
                batch = isinstance(found, nn.modules.batchnorm._BatchNorm)
                drop = isinstance(found, nn.modules.dropout._DropoutNd) and found.p > 0
                if found.training and (batch or drop):
                    raise ModelError(
                        f"module {node.target} ({type(found).__name__}) is in training mode: "
                        "call model.eval() first"
                    )
                if isinstance(found, Gate) and found.switch.training and found.mode == RANDOM:
                    raise ModelError(
                        f"gate {node.target} draws random numbers in training mode: "
                        "call model.eval() first"
                    )
            elif node.op == "call_function":
                name = call_name(node.target)
                place = 2 if name == "dropout" else 5
                given = node.args[place] if len(node.args) > place else None
                mean = 3 if name == "aten.batch_norm" else 1
                found = node.args[mean] if len(node.args) > mean else None
                if name != "dropout" and node.kwargs.get("running_mean", found) is None:
                    continue  # Of the batch's own statistics in either mode.
                if name in ("dropout", "batch_norm", "aten.batch_norm") and (
                    node.kwargs.get("training", node.kwargs.get("train", given)) is True
                ):
                    raise ModelError(
                        f"{node.name} calls {name} in training mode: call model.eval() "
                        "before it is traced"
                    )

    def _hold_layouts(self) -> None:
        """Make barriers of calls that decide on a memory layout which a later call depends on."""
        readers = [n for n in self.nodes if fx_layout.reads(n)]
        views = [n for n in self.nodes if n.name in self.barrier and fx_layout.views(n)]
        held = fx_layout.held([*readers, *views])
        if readers and held:
            self.graph.notes.append(
                f"{readers[0].name} depends on how its argument lies in memory: everything in front of it is left alone"
            )
        self.barrier |= held

    # Nodes.

    def _node(self, node: fx.Node, barrier: bool) -> None:
        if node.op == "placeholder":
            value = self.graph.add_input(node.name, self.types.get(node.name, ir.UNKNOWN))
            self._define(node, value)
        elif node.op == "get_attr":
            found = operator.attrgetter(str(node.target))(self.module)
            if isinstance(found, torch.Tensor) and not barrier:
                value = self._parameter(found, str(node.target))
                self.values[node.name] = value
            else:
                self._opaque(node)
        elif node.op == "call_module" and self._is_constant(node) and not barrier:
            prefix = str(node.target)
            held = self._own(self.modules[prefix], "weight", prefix)
            assert held is not None
            self.values[node.name] = held
        elif node.op == "output":
            leaves: list[fx.Node] = []
            fx.map_arg(node.args, leaves.append)
            taken = {leaf.name for leaf in leaves}
            for i, leaf in enumerate(leaves):
                # A value that is returned several times becomes several outputs.
                name = f"{leaf.name}_{i}" if leaf in leaves[:i] else leaf.name
                while name != leaf.name and name in taken:
                    name = f"{name}_"
                taken.add(name)
                self.graph.add_output(self._value(leaf), name)
        elif barrier:
            self._opaque(node, barrier)
        else:
            self._call_node(node)
            self._fold(node)

    def _call_node(self, node: fx.Node) -> None:
        """Import a call: as its rule says, or opaque with the reason."""
        try:
            if self._pieces(node):
                return
            lowered = self._lower(node)
        except LeftAlone as error:
            self._opaque(node, reason=str(error))
            return
        if isinstance(lowered, Steps):
            self._steps(node, lowered)
        else:
            self._canonical(node, *lowered)

    def _fold(self, node: fx.Node) -> None:
        """Give a weight that is computed from the module's tensors its numbers; the calls stay, and still compute it."""
        value, data = self.values.get(node.name), self.computed.weight(node)
        if value is not None and value.data is None and data is not None:
            value.data, value.type = data, data.type
            self.folded.append(self.computed.owner(node.name) or node.name)

    def _is_constant(self, node: fx.Node) -> bool:
        found = self.modules[str(node.target)]
        return plain_type(found) is Constant and not hooked(found)

    def _value(self, node: fx.Node) -> Value:
        """The value of a host node; sizes that an opaque call reads are opaque themselves."""
        pending = [node]
        while pending:
            last = pending[-1]
            missing = [s for s in last.all_input_nodes if s.name not in self.values]
            if last.name in self.values:
                pending.pop()
            elif missing:
                pending += missing
            else:
                self._opaque(pending.pop())
        return self.values[node.name]

    def _define(self, node: fx.Node, value: Value) -> None:
        value.host = node.name
        self.values[node.name] = value

    def _parameter(self, found: torch.Tensor, name: str) -> Value:
        """One value for one tensor, however many names it has."""
        if id(found) not in self.parameters:
            data = tensor_of(found)
            if data is None:
                raise ModelError(f"{name} has the element type {found.dtype}, which is not known")
            value = self.graph.add_constant(data, name)
            value.host = ("tensor", name)
            self.parameters[id(found)] = value
        return self.parameters[id(found)]

    def _own(self, module: nn.Module, name: str, prefix: str) -> Value | None:
        """A tensor of a module; a masked one is one value for its original and its mask."""
        mask = mask_of(module, name)
        if mask is None:
            tensor = operator.attrgetter(name)(module)
            return None if tensor is None else self._parameter(tensor, f"{prefix}.{name}")
        original = operator.attrgetter(f"parametrizations.{name}.original")(module)
        key = (id(original), id(mask.mask))
        if key not in self.masked:
            data = tensor_of(original)
            if data is None:
                raise ModelError(f"{prefix}.{name} has the element type {original.dtype}")
            kept = mask.mask.cpu().numpy()
            masked = MaskedTensor(data, kept, mask.pattern, mask.reduction, lasting=True)
            value = self.graph.add_constant(masked, f"{prefix}.{name}")
            value.host = ("masked", f"{prefix}.{name}")
            self.masked[key] = value
        return self.masked[key]

    def _call(self, node: fx.Node) -> Call:
        """A host call with our values in place of the host's nodes."""

        def lookup(source: fx.Node) -> Any:
            if source.name in self.sizes:
                return placed(self.sizes[source.name], self.values, self.roots)
            return self.values[source.name]

        arguments: Any = fx.map_arg(node.args, lookup)
        keywords: Any = fx.map_arg(node.kwargs, lookup)  # type: ignore[call-overload]
        call = Call(
            tuple(arguments), dict(keywords), self.roots, self.inputs is not None, runs=self.runs
        )
        if node.op == "call_module":
            prefix, module = str(node.target), self.modules[str(node.target)]
            return replace(
                call, module=module, tensors=lambda name: self._own(module, name, prefix)
            )
        call.kwargs.pop("inplace", None)
        return replace(call, name=call_name(node.target), aten=is_aten(node.target))

    def _known_as(self, node: fx.Node) -> str | type[nn.Module] | None:
        """What rules know a call by: the plain name of its function, or the class of its module."""
        if node.op != "call_module":
            return call_name(node.target)
        module = self.modules[str(node.target)]
        return None if hooked(module) else plain_type(module)

    def _lower(self, node: fx.Node) -> Lowered | Steps:
        """What the rule of a call makes of it.

        Raises:
            LeftAlone: If there is no rule, or the IR cannot express the call; says why where that is known.
        """
        known = self._known_as(node)
        entry: Entry | ModuleEntry | None
        entry = MODULES.get(known) if isinstance(known, type) else CALLS.get(known or "")
        if entry is None or entry.rule is None:
            if known in PIECES:
                raise LeftAlone("its results are used or returned together, not one by one")
            name = known.__name__ if isinstance(known, type) else known
            raise LeftAlone(REFUSED.get(name or "", ""))
        try:
            call = self._call(node)
            if isinstance(entry, ModuleEntry):
                if len(call.args) != 1 or call.kwargs:
                    raise LeftAlone("it is not called with one input")
                call = entry.call(call)
            lowered = entry.rule(call)
            if lowered is None:
                raise LeftAlone(limit(entry.note))
            steps = lowered if isinstance(lowered, Steps) else Steps((lowered,))
            made = steps.infer()
        except _NOT_READ as error:
            raise LeftAlone(limit(entry.note)) from error
        stated = self.types.get(node.name, ir.UNKNOWN)
        if not made[-1][0].accepts(stated):
            raise LeftAlone(
                f"it gives {stated}, where the IR's {_last(steps).name} gives {made[-1][0]}"
            )
        if call.baked:
            self.baked[node.name] = " and ".join(dict.fromkeys(f"{b.value}" for b in call.baked))
        return lowered

    def _pieces(self, node: fx.Node) -> bool:
        """Import a call that returns several tensors together with the calls that take them."""
        known = self._known_as(node)
        entry = PIECES.get(known) if known else None
        if entry is None:
            return False
        found = _taken(node, entry.nested, self.lengths.get(node.name))
        # A step that nobody reads would go, and all steps of the call would have to be written anew.
        read = {path for path, user in found.items() if user.users}
        taken = {path: user for path, user in found.items() if path in read or not entry.several}
        if not taken or any(user.name in self.barrier for user in found.values()):
            return False
        try:
            steps = entry.rule(self._call(node), list(taken))
            if steps is None or steps.results is None or not read <= steps.results.keys():
                raise LeftAlone(limit(entry.note))
            taken = {path: user for path, user in taken.items() if path in steps.results}
            steps.infer()
        except _NOT_READ as error:
            raise LeftAlone(limit(entry.note)) from error
        between = [n for user in found.values() for n in _between(user, node)]
        self._results(node, steps, taken, [n.name for n in between])
        return True

    def _results(
        self, node: fx.Node, steps: Steps, taken: Mapping[Path, fx.Node], between: Sequence[str]
    ) -> None:
        """Append the steps of a call.

        Args:
            node: The call.
            steps: What its rule makes of it.
            taken: The calls that take its results, by place: their values are the results of the steps.
            between: All calls that take anything of what it returns, in order.
        """
        assert steps.results is not None
        names = {steps.results[path]: user.name for path, user in taken.items()}
        made: list[ir.Node] = []
        for number, (op, operands) in enumerate(steps.parts):
            inputs = self._operands(node, number, operands, made)
            inferred = op.infer([v.type if v is not None else None for v in inputs]) or ()
            mine = [names.get(Step(number, i), "") for i in range(len(inferred))]
            single = len(steps.parts) == 1
            own = node.name if single else f"{node.name}_{op.name.lower()}_{number}"
            if node.op == "call_module":
                own = str(node.target) if single else f"{node.target}_{op.name.lower()}_{number}"
                own = f"{node.target}.{named}" if (named := steps.names.get(number)) else own
            elif mine[0] and not single:
                own = mine[0]
            made.append(
                self.graph.append(
                    op,
                    inputs,
                    name=own,
                    types=[
                        self.types.get(n, ir.UNKNOWN) if n else t
                        for n, t in zip(mine, inferred, strict=True)
                    ],
                    output_names=[n or f"{own}_{i}" for i, n in enumerate(mine)],
                )
            )
            fold_view(made[-1])
            for i, (value, name) in enumerate(zip(made[-1].outputs, mine, strict=True)):
                if name:
                    value.host = name
                    self.values[name] = value
                elif not single:
                    value.host = ("inner", node.name, number, i)
        self.taken.update(between)
        if all(len(n.outputs) == 1 and isinstance(n.output.host, str) for n in made):
            # Each node comes from the call and one getitem; the call is copied once.
            for part in made:
                part.origin = _origin(part, (node.name, part.output.host))
            return
        for part in made:
            origin = _origin(part, (node.name, *dict.fromkeys(between)))
            part.origin = replace(origin, parts=len(made)) if len(made) > 1 else origin

    def _operands(
        self, node: fx.Node, number: int, operands: Sequence[Operand | Step], made: list[ir.Node]
    ) -> list[Value | None]:
        """The values that a step reads."""
        return [
            made[o.number].outputs[o.result] if isinstance(o, Step)
            else self._derived(o, node, 8 * number + i) if isinstance(o, Tensor) else o
            for i, o in enumerate(operands)
        ]  # fmt: skip

    def _canonical(self, node: fx.Node, op: ir.Op, operands: Sequence[Operand]) -> None:
        inputs = self._operands(node, 0, operands, [])
        name = str(node.target) if node.op == "call_module" else self._named(node, inputs)
        made = self.graph.append(
            op,
            inputs,
            name=name,
            types=[self.types.get(node.name, ir.UNKNOWN)],
            output_names=[node.name],
        )
        self._define(node, made.output)
        made.origin = _origin(made, (node.name,))
        fold_view(made)

    def _named(self, node: fx.Node, inputs: Sequence[Value | None]) -> str:
        """The name of a call: that of the module whose weight it reads, where an export has no modules."""
        weight = inputs[1] if len(inputs) > 1 and node.op == "call_function" else None
        held = weight.host if weight is not None else None
        if isinstance(held, str):
            held = ("tensor", self.computed.owner(held) or "")
        if not (isinstance(held, tuple) and held[0] == "tensor"):
            return node.name
        prefix, _, last = str(held[1]).rpartition(".")
        if last != "weight" or not prefix or prefix in self.named:
            return node.name
        self.named.add(prefix)
        return prefix

    def _steps(self, node: fx.Node, steps: Steps) -> None:
        """Append one host call as several nodes; the call is copied if all of them are unchanged."""
        made: list[ir.Node] = []
        last = len(steps.parts) - 1
        own = str(node.target) if node.op == "call_module" else node.name
        for number, (op, operands) in enumerate(steps.parts):
            final = number == last
            inputs = self._operands(node, number, operands, made)
            name = f"{own}_{op.name.lower()}_{number}"
            result = node.name if final else f"{node.name}_{op.name.lower()}_{number}"
            types = [self.types.get(node.name, ir.UNKNOWN)] if final else None
            names = [result, *(f"{result}_{i}" for i in range(1, _count(op, inputs)))]
            made.append(
                self.graph.append(
                    op, inputs, name=own if final else name, types=types, output_names=names
                )
            )
            if not final:
                for i, value in enumerate(made[-1].outputs):
                    value.host = ("inner", node.name, number, i)
        self._define(node, made[-1].output)
        for part in made:
            origin = _origin(part, (node.name,))
            part.origin = replace(origin, parts=len(made)) if len(made) > 1 else origin

    def _derived(self, data: Tensor, node: fx.Node, place: int) -> Value:
        """A constant for a tensor of a rule. Tensors with one host object share one value."""
        if data.host is not None and id(data.host) in self.shared:
            return self.shared[id(data.host)]
        value = self.graph.add_constant(data, f"{node.name}_c{place}")
        value.host = ("derived", node.name, place)
        sources = (self.values[n.name] for n in node.all_input_nodes if n.name in self.values)
        value.bases = tuple(v for v in sources if v.data is not None and v.producer is not None)
        if data.host is not None:
            self.shared[id(data.host)] = value
        return value

    def _opaque(self, node: fx.Node, barrier: bool = False, reason: str = "") -> None:
        target = node.target if isinstance(node.target, str) else _qualified(node.target)
        pure = not barrier and not node.is_impure() and not is_inplace(node, self.modules)
        made = self.graph.append(
            Opaque(f"fx:{target}", pure, reason),
            [self._value(n) for n in node.all_input_nodes],
            name=node.name,
            types=[self.types.get(node.name, ir.UNKNOWN)],
            output_names=[node.name],
        )
        self._define(node, made.output)
        made.origin = _origin(made, (node.name,))


_NOT_READ = (TypeError, ValueError, KeyError, AttributeError, IndexError, InferenceError)
"""What rules raise for arguments of a kind that they do not expect."""


def _last(steps: Steps) -> ir.Op:
    return steps.parts[-1][0]


def _count(op: ir.Op, inputs: Sequence[Value | None]) -> int:
    return len(op.infer([v.type if v is not None else None for v in inputs]) or (None,))


def _taken(node: fx.Node, nested: Sequence[int], length: int | None) -> dict[Path, fx.Node]:
    """The calls that take the tensors of a result, by place; empty if anything else reads it.

    Args:
        node: The call that makes the result.
        nested: Which of its results are tuples themselves.
        length: The number of its results, if known: negative places count from there.
    """
    found: dict[Path, fx.Node] = {}
    pending: list[tuple[Path, fx.Node]] = [((), node)]
    while pending:
        path, source = pending.pop()
        for user in source.users:
            plain = user.op == "call_function" and user.target is operator.getitem
            index = user.args[1] if plain else None
            if type(index) is int and index < 0 and not path and length is not None:
                index += length
            if type(index) is not int or index < 0 or user.args[0] is not source:
                return {}
            place = (*path, index)
            if place in found:
                return {}
            if not path and index in nested:
                pending.append((place, user))
            else:
                found[place] = user
    return found


def _between(user: fx.Node, call: fx.Node) -> list[fx.Node]:
    """A call that takes a tensor, behind those that took the tuples around it."""
    found = [user]
    while (source := found[-1].args[0]) is not call:
        assert isinstance(source, fx.Node)
        found.append(source)
    return found[::-1]


def _origin(made: ir.Node, nodes: tuple[str, ...]) -> FxOrigin:
    return FxOrigin(
        nodes,
        tuple(v.host if v is not None else None for v in made.inputs),
        tuple(v.host for v in made.outputs),
    )


def _qualified(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.replace("::", ".")
    module = getattr(target, "__module__", None) or "torch"
    name = getattr(target, "__name__", str(target))
    return f"torch.{name}" if module.startswith("torch") else f"{module}.{name}"


def _combine(origins: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> FxOrigin:
    nodes = tuple(name for origin in origins for name in origin.nodes)
    return FxOrigin(nodes, tuple(inputs), tuple(outputs))


__all__ = [
    "DoesNotRun",
    "FxHost",
    "FxOrigin",
    "StateError",
    "from_fx",
    "shapes_of",
    "tensor_of",
    "trace",
]

"""torch.fx graphs to IR graphs.

Every call becomes one IR node, canonical where the IR knows it and ``Opaque`` elsewhere. Weights stay the
caller's own parameters behind lazy handles. In-place calls are followed through views: where another
reader could see the change, everything that touches that memory becomes a barrier.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from ... import ir
from ...hosts.torch import layouts as fx_layout
from ...hosts.torch.copies import ModuleCopy, containers_kept
from ...hosts.torch.dtypes import DTYPES
from ...hosts.torch.modules.gates import RANDOM, Gate
from ...hosts.torch.modules.masks import Constant, mask_of, plain_type
from ...hosts.torch.modules.scale import Scale
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
from ..norms import LeftAlone
from ..raising.patterns import raise_patterns
from .call import Call, Step, Steps
from .constants import fold_view
from .rules.composite import COMPOSITE_CALLS
from .rules.layers import (
    ALLOCATES,
    CALLS,
    SHARES_MEMORY,
    call_name,
    hooked,
    module_call,
    type_of,
)
from .rules.shape import PIECES, split_sizes, unbind_axis
from .sizes import is_plain, known_sizes, placed
from .trace import StateError, trace, version_of, writes_tensors


def from_fx(module: fx.GraphModule, example_inputs: tuple[Any, ...] | None = None) -> Graph:
    """Import a traced module; neither the module nor its graph is changed.

    Args:
        module: The module, in evaluation mode.
        example_inputs: Inputs from which shapes are found; nothing is computed on them.

    Raises:
        ModelError: If a module is in training mode and would behave differently.
        DoesNotRun: If it does not run on the inputs.
        StateError: If it writes to its own tensors.
    """
    return _Importer(module, example_inputs).run()


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


class DoesNotRun(ModelError):
    """A traced module does not run on its inputs."""


class _Shapes(fx.Interpreter):
    """Runs the graph on fake tensors and keeps the type of every result.

    The module's own tensors are fakes too, and modules that could change themselves are copies.
    """

    def __init__(self, module: fx.GraphModule, mode: Any) -> None:
        super().__init__(module)
        self.mode = mode
        self.found: dict[str, TensorType] = {}
        self.results: dict[str, Any] = {}
        self.copies: dict[int, nn.Module] = {}
        self.fakes: dict[int, tuple[str, Any, int]] = {}
        self.in_rows: dict[str, bool] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op.startswith("call_") and call_name(n.target) in ("embedding", "embedding_bag"):
            # With max_norm they write to their table, wherever they are called: the result does it too.
            self.fakes = {k: (name, f, version_of(f)) for k, (name, f, _) in self.fakes.items()}
        if is_plain(result):
            self.results[n.name] = result
        # In-place views may change a tensor's shape later: keep the type, not the tensor.
        self.found[n.name] = type_of(result)
        if isinstance(result, torch.Tensor):
            self.in_rows[n.name] = result.is_contiguous()
        return result

    def fetch_attr(self, target: str) -> Any:
        found = super().fetch_attr(target)
        if isinstance(found, torch.Tensor):
            return self._fake(found, target)
        known = type(found).__module__.startswith("torch.nn.modules.") and not hooked(found)
        if known or not isinstance(found, nn.Module):
            return found
        if id(found) not in self.copies:
            shared = ModuleCopy(found)
            names = {id(t): f"{target}.{name}" for name, t in shared.tensors.items()}
            made = ModuleCopy(found, lambda t: self._fake(t, names[id(t)]))
            self.copies[id(found)] = made.module
        return self.copies[id(found)]

    def _fake(self, found: torch.Tensor, name: str) -> Any:
        if id(found) not in self.fakes:
            fake = self.mode.from_tensor(found)
            self.fakes[id(found)] = name, fake, version_of(fake)
        return self.fakes[id(found)][1]

    def written(self) -> list[str]:
        """The module's tensors that were written to."""
        return [name for name, fake, version in self.fakes.values() if version_of(fake) != version]


def shapes_of(module: fx.GraphModule, inputs: Sequence[Any]) -> dict[str, TensorType]:
    """The types of all results, from a run on fake tensors.

    Raises:
        DoesNotRun: If it does not run.
        StateError: If it writes to its own tensors.
    """
    return _fake_run(module, inputs).found


def _fake_run(module: fx.GraphModule, inputs: Sequence[Any]) -> _Shapes:
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs]
    interpreter = _Shapes(module, mode)
    try:
        with containers_kept(module), mode, torch.no_grad():
            interpreter.run(*fakes)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DoesNotRun(f"the module does not run on example_inputs: {first}") from error
    if interpreter.written():
        raise StateError(writes_tensors(interpreter.written()))
    return interpreter


class _Importer:
    def __init__(self, module: fx.GraphModule, inputs: tuple[Any, ...] | None) -> None:
        self.module, self.inputs = module, inputs
        self.graph = Graph(type(module).__name__.lower())
        self.values: dict[str, Value] = {}
        self.parameters: dict[int, Value] = {}
        self.shared: dict[int, Value] = {}
        self.masked: dict[tuple[int, int], Value] = {}
        self.modules = dict(module.named_modules())
        self.nodes = list(module.graph.nodes)
        self.types: dict[str, TensorType] = {}
        self.pieces: set[str] = set()
        self.sizes: dict[str, Any] = {}
        self.roots = SizeRoots()
        self.barrier: set[str] = set()
        self.in_rows: dict[str, bool] = {}

    def run(self) -> Graph:
        self._check_mode()
        if self.inputs is not None:
            ran = _fake_run(self.module, self.inputs)
            self.types, results, self.in_rows = ran.found, ran.results, ran.in_rows
        else:
            stated = {n.name: n.meta["val"] for n in self.nodes if "val" in n.meta}
            self.types = {name: type_of(found) for name, found in stated.items()}
            results = {name: found for name, found in stated.items() if is_plain(found)}
            if not self.types:
                self.graph.notes.append(
                    "no shapes are known: give example_inputs for bias maps, skips and exact costs"
                )
        self.sizes = known_sizes(self.nodes, results)
        inplace, self.barrier = self._aliases()
        self._hold_layouts()
        for node in self.nodes:
            if node.name not in self.pieces and node.name not in self.sizes:
                self._node(node, node.name in self.barrier)
        order = {n.name: n for n in self.nodes}
        self.in_rows |= {n.name: True for n in self.nodes if fx_layout.in_rows(n)}
        self.graph.host = FxHost(
            self.module,
            self.inputs,
            order,
            frozenset(inplace),
            tuple(self.sizes),
            in_rows=frozenset(name for name, known in self.in_rows.items() if known),
            strided=frozenset(name for name, known in self.in_rows.items() if not known),
        )
        raise_patterns(self.graph, _combine)
        return self.graph

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

    # Memory.

    def _inplace(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.modules[str(node.target)], "inplace", False))
        if node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None:
            return True
        if isinstance(node.target, torch._ops.OpOverload):
            return node.target._schema.is_mutable
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        special = name.startswith("__") and name.endswith("__")  # Of a tensor of the module's own.
        if special:
            name = name.strip("_")
        operator_call = getattr(node.target, "__module__", "") == "_operator"
        if node.op.startswith("call") and (special or operator_call):
            return name in ("setitem", "delitem") or (name.startswith("i") and name in _AUGMENTED)
        if len(node.args) > 1 and name in _INPLACE_PLACE and len(node.args) > _INPLACE_PLACE[name]:
            return node.args[_INPLACE_PLACE[name]] is True
        return node.op.startswith("call") and name.endswith("_")

    def _fresh(self, node: fx.Node) -> bool:
        """Whether the result is new memory."""
        if node.op == "call_module":
            found = self.modules[str(node.target)]
            kind = plain_type(found)
            known = kind.__module__.startswith("torch.nn.modules") or kind in (Gate, Scale)
            return known and not isinstance(found, (*SHARES_MEMORY, fx.GraphModule))
        if node.op in ("call_function", "call_method"):
            return call_name(node.target).removeprefix("aten.") in ALLOCATES
        return False

    def _shares(self, node: fx.Node, inplace: bool) -> list[fx.Node]:
        """The arguments whose memory a result may be: of an in-place call that is understood, the one that it writes."""
        first = node.args[0] if node.args else None
        known = node.op != "call_module" and call_name(node.target) in CALLS
        if inplace and known and node.kwargs.get("out") is None and isinstance(first, fx.Node):
            return [first]
        return node.all_input_nodes

    def _aliases(self) -> tuple[set[str], set[str]]:
        """The nodes that work in place, and those that must be barriers because of it."""
        inplace = {n.name for n in self.nodes if self._inplace(n)}
        if not inplace:
            return inplace, set()
        written = [_state(n) for n in self.nodes if n.name in inplace]
        if any(written):
            raise StateError(writes_tensors([name for name in written if name]))
        position = {n.name: i for i, n in enumerate(self.nodes)}
        group: dict[str, str] = {}

        def find(name: str) -> str:
            while group.setdefault(name, name) != name:
                group[name] = group[group[name]]
                name = group[name]
            return name

        for node in self.nodes:
            # The output reads, and is no memory of its own.
            if node.name in self.sizes or node.op == "output":
                continue
            if node.name in inplace or not self._fresh(node):
                for source in self._shares(node, node.name in inplace):
                    group[find(node.name)] = find(source.name)
        members: dict[str, list[fx.Node]] = {}
        for node in self.nodes:
            if node.name in self.sizes:
                continue
            members.setdefault(find(node.name), []).append(node)
        barrier: set[str] = set()
        for found in members.values():
            acting = [n for n in found if n.name in inplace]
            if acting and not all(self._private(n, found, position) for n in acting):
                barrier.update(n.name for n in found)
                barrier.update(user.name for n in found for user in n.users)
                self.graph.notes.append(
                    f"{acting[0].name} changes memory in place that others read: "
                    "everything that touches it is left alone"
                )
        return inplace, barrier

    def _private(self, node: fx.Node, shared: list[fx.Node], position: dict[str, int]) -> bool:
        """Whether nobody else can see what an in-place call writes.

        The call must write its first argument, and only the call's own result may be read afterwards.
        """
        sources = node.all_input_nodes
        if not sources or node.kwargs.get("out") is not None or not node.args:
            return False
        if call_name(node.target) not in CALLS and node.op != "call_module":
            return False
        here = position[node.name]
        later = {n.name for n in shared if position[n.name] >= here}
        for member in shared:
            if member.op in ("placeholder", "get_attr"):
                return False
            if member.name in later:
                continue
            readers = (user.name for user in member.users if user.name not in self.sizes)
            if any(position[name] > here for name in readers):
                return False
        return True

    def _hold_layouts(self) -> None:
        """Leave alone what decides about strides that are read, or about what a written view can be a view of."""
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
            found = _attribute(self.module, str(node.target))
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
                # A value that is returned more than once is that many outputs.
                name = f"{leaf.name}_{i}" if leaf in leaves[:i] else leaf.name
                while name != leaf.name and name in taken:
                    name = f"{name}_"
                taken.add(name)
                self.graph.add_output(self._value(leaf), name)
        elif barrier or not self._cut(node):
            lowered, reason = None, ""
            try:
                lowered = None if barrier else self._lower(node)
            except LeftAlone as error:
                reason = str(error)
            if lowered is None:
                self._opaque(node, barrier, reason)
            elif isinstance(lowered, Steps):
                self._steps(node, lowered)
            else:
                self._canonical(node, *lowered)

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
            tensor = _attribute(module, name)
            return None if tensor is None else self._parameter(tensor, f"{prefix}.{name}")
        original = _attribute(module, f"parametrizations.{name}.original")
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
        return Call(tuple(arguments), dict(keywords), self.roots, self.inputs is not None)

    def _lower(self, node: fx.Node) -> tuple[ir.Op, Sequence[Any]] | Steps | None:
        try:
            call = self._call(node)
            if node.op == "call_module":
                prefix, found = str(node.target), self.modules[str(node.target)]
                if len(call.args) != 1 or call.kwargs or hooked(found):
                    return None

                def parameter(name: str) -> Value | None:
                    return self._own(found, name, prefix)

                lowered = module_call(found, call.args[0], parameter)
            else:
                name = call_name(node.target)
                rule: Any = CALLS.get(name) or COMPOSITE_CALLS.get(name)
                call.kwargs.pop("inplace", None)
                lowered = rule(call) if rule else None
            if lowered is None:
                return None
            parts = lowered.parts if isinstance(lowered, Steps) else (lowered,)
            made: list[TensorType] = []
            for op, operands in parts:
                types = [
                    made[o.number] if isinstance(o, Step) else o.type if o is not None else None
                    for o in operands
                ]
                inferred = op.infer(types)
                if inferred is None:
                    return None
                made.append(inferred[0])
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, InferenceError):
            return None
        known = self.types.get(node.name, ir.UNKNOWN)
        return lowered if made[-1].accepts(known) else None

    def _cut(self, node: fx.Node) -> bool:
        """Import a call that cuts a tensor together with the calls that take the pieces."""
        name = call_name(node.target) if node.op in ("call_function", "call_method") else ""
        if name not in PIECES and name != "unbind":
            return False
        taken = {int(user.args[1]): user for user in node.users if _takes_piece(user, node)}  # type: ignore[arg-type]
        if not taken or len(taken) != len(node.users) or min(taken) < 0:
            return False
        if any(user.name in self.barrier for user in taken.values()):
            return False
        try:
            call = self._call(node)
            if name == "unbind":
                return self._unbind(node, taken, *unbind_axis(call))
            found = split_sizes(name, call)
            if found is None or max(taken) >= len(found[0]):
                return False
            op, x = ir.Split(*found), call.value(0)
            inferred = op.infer([x.type])
        except (TypeError, ValueError, InferenceError):
            return False
        names = [taken[i].name if i in taken else "" for i in range(len(found[0]))]
        types = [
            self.types.get(n, ir.UNKNOWN) if n else t for n, t in zip(names, inferred, strict=True)
        ]
        shown = [n or f"{node.name}_{i}" for i, n in enumerate(names)]
        made = self.graph.append(op, [x], name=node.name, types=types, output_names=shown)
        for value, n in zip(made.outputs, names, strict=True):
            if n:
                value.host = n
                self.values[n] = value
        made.origin = _origin(made, (node.name, *(user.name for user in node.users)))
        self.pieces.update(filter(None, names))
        return True

    def _unbind(self, node: fx.Node, taken: dict[int, fx.Node], x: Value, axis: int) -> bool:
        size = x.type.dim(axis)
        if isinstance(size, int) and max(taken) >= size:
            return False
        for index, user in taken.items():
            made = self.graph.append(
                ir.Select(axis, index),
                [x],
                name=user.name,
                types=[self.types.get(user.name, ir.UNKNOWN)],
                output_names=[user.name],
            )
            self._define(user, made.output)
            # All of them stand for the call that cuts; it is written once.
            made.origin = _origin(made, (node.name, user.name))
            self.pieces.add(user.name)
        return True

    def _canonical(self, node: fx.Node, op: ir.Op, operands: Sequence[Any]) -> None:
        inputs = [
            self._derived(o, node, i) if isinstance(o, Tensor) else o
            for i, o in enumerate(operands)
        ]
        name = str(node.target) if node.op == "call_module" else node.name
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

    def _steps(self, node: fx.Node, steps: Steps) -> None:
        """One host call as several nodes, which stand for it together."""
        made: list[ir.Node] = []
        last = len(steps.parts) - 1
        for number, (op, operands) in enumerate(steps.parts):
            inputs = [
                made[o.number].output if isinstance(o, Step)
                else self._derived(o, node, 8 * number + i) if isinstance(o, Tensor) else o
                for i, o in enumerate(operands)
            ]  # fmt: skip
            final = number == last
            name = node.name if final else f"{node.name}_{op.name.lower()}_{number}"
            types = [self.types.get(node.name, ir.UNKNOWN)] if final else None
            made.append(self.graph.append(op, inputs, name=name, types=types, output_names=[name]))
            if not final:
                made[-1].output.host = ("inner", node.name, number)
        self._define(node, made[-1].output)
        for part in made:
            part.origin = replace(_origin(part, (node.name,)), parts=len(made))

    def _derived(self, data: Tensor, node: fx.Node, place: int) -> Value:
        """One value for one host object; tensors that are computed here have none."""
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
        pure = not barrier and not node.is_impure() and not self._inplace(node)
        made = self.graph.append(
            Opaque(f"fx:{target}", pure, reason),
            [self._value(n) for n in node.all_input_nodes],
            name=node.name,
            types=[self.types.get(node.name, ir.UNKNOWN)],
            output_names=[node.name],
        )
        self._define(node, made.output)
        made.origin = _origin(made, (node.name,))


_AUGMENTED = {
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor",
    "ilshift", "irshift", "iconcat",
}  # fmt: skip
_INPLACE_PLACE = {
    "relu": 1, "relu6": 1, "silu": 1, "hardswish": 1, "mish": 1, "hardsigmoid": 1, "selu": 1,
    "leaky_relu": 2, "elu": 2, "celu": 2, "dropout": 3, "dropout1d": 3, "dropout2d": 3, "dropout3d": 3,
    "alpha_dropout": 3, "feature_alpha_dropout": 3, "hardtanh": 3, "threshold": 3, "rrelu": 4,
}  # fmt: skip
"""Where functions take ``inplace`` as a positional argument."""


_VIEWS = {
    "view", "reshape", "transpose", "permute", "t", "narrow", "select", "squeeze", "unsqueeze", "expand", "flatten",
    "detach", "slice", "alias", "view_as",
}  # fmt: skip
"""Calls whose result is certainly the memory of a whole tensor's argument, or may be where that is contiguous."""


def _state(node: fx.Node) -> str | None:
    """The module's own tensor that an in-place call writes, through views or not."""
    written = node.kwargs.get("out", node.args[0] if node.args else None)
    while isinstance(written, fx.Node) and written.op != "get_attr":
        if not written.op.startswith("call_") or not _is_view(written):
            return None
        written = written.args[0]
    return str(written.target) if isinstance(written, fx.Node) else None


def _is_view(node: fx.Node) -> bool:
    if node.target is getattr:
        return node.args[1] in ("data", "T", "mT")
    if node.target in (operator.getitem, "__getitem__"):
        index = node.args[1]
        return all(map(_basic, index if isinstance(index, tuple) else (index,)))
    return bool(node.args) and call_name(node.target).removeprefix("aten.") in _VIEWS


def _basic(index: Any) -> bool:
    """Whether an index gives a view."""
    return index is None or index is Ellipsis or isinstance(index, (int, slice))


def _takes_piece(user: fx.Node, cut: fx.Node) -> bool:
    plain = user.op == "call_function" and user.target is operator.getitem
    return plain and user.args[0] is cut and type(user.args[1]) is int


def _origin(made: ir.Node, nodes: tuple[str, ...]) -> FxOrigin:
    return FxOrigin(
        nodes,
        tuple(v.host if v is not None else None for v in made.inputs),
        tuple(v.host for v in made.outputs),
    )


def _attribute(module: nn.Module, target: str) -> Any:
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part)
    return found


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

"""Tracing: an FX graph is recorded from a call of a module, which is left unchanged.

A copy of the module that shares its tensors is called with the example inputs; hooks run too. What a graph cannot record is refused:
writes to the module's tensors, and state that the next call would read.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ...hosts.torch.buffers import keep_temporary, temporary
from ...hosts.torch.copies import ModuleCopy, containers_kept
from ...hosts.torch.modules.gates import Gate
from ...hosts.torch.modules.masks import Constant
from ...ir import ModelError
from .proxies import EXAMPLE, TensorProxy, taken_for_tensors
from .transformers import PARTS, written_out


class StateError(ModelError):
    """A module changes its own state when it is called."""


class NotTraceable(Exception):
    """A trace would not record what the module computes."""


@dataclass
class Traced:
    """A traced module, and notes for the user."""

    module: fx.GraphModule
    notes: list[str] = field(default_factory=list)


def trace(module: nn.Module, inputs: Sequence[Any] | None = None) -> fx.GraphModule:
    """The module of :func:`traced`."""
    return traced(module, inputs).module


def traced(module: nn.Module, inputs: Sequence[Any] | None = None) -> Traced:
    """Trace a module as it is called with ``inputs``; it stays as it was.

    Arguments that the inputs leave out, or all that have defaults where no inputs are given, are what they are by default, and no
    inputs of the result. Hooks of the module itself are traced like those of its parts. Gates stay modules.

    Args:
        module: The module.
        inputs: Positional inputs. Their numbers are not read, but which are ``None``, ``True``, ``False`` or text is.

    Raises:
        StateError: If the module writes to its tensors, or keeps values that its next call reads.
        Exception: Whatever tracing raises where it cannot go on.
    """
    shared = ModuleCopy(module)
    tracer = _Tracer(module)
    with containers_kept(module) as around, tensors_kept(shared), random_kept() as draws:
        graph = tracer.traced(shared.module, inputs)
        changed = shared.changed() | around()
        if changed:
            changed = _read_again(tracer, graph, shared.module, inputs, changed)
    if draws.any:
        raise NotTraceable("it draws random numbers that would be constants")
    found = {n.target: n for n in graph.nodes if n.op in ("get_attr", "call_module")}
    parts = {name: shared.original(_member(shared.module, tracer, name)) for name in found}
    made = fx.GraphModule(parts, graph, type(module).__name__)
    made.training = module.training
    keep_temporary(made, temporary(module))
    if changed and not acts_alike(module, made, inputs):
        raise StateError(keeps_state(module, changed))
    return Traced(made, [*tracer.notes, *_lost_hooks(module, set(parts))])


def keeps_state(module: nn.Module, changed: Mapping[str, Any]) -> str:
    """The reason to refuse a module that sets attributes which its next call reads."""
    names = ", ".join(list(changed)[:3]) + (", ..." if len(changed) > 3 else "")
    return (
        f"forward of {type(module).__name__} sets {names} and reads it in its next call, which the shrunk module could not: "
        "make this state an input and an output of forward"
    )


_NO_GRADIENTS = "parts of it compute without gradients (torch.no_grad): in the result, gradients go through them"


class _Tracer(fx.Tracer):
    def __init__(self, given: nn.Module) -> None:
        super().__init__()
        self.given = given
        self.own: dict[str, Any] = {}
        self.notes: list[str] = []
        self.examples: dict[str, Any] = {}
        self.autocast, self.gradients = _autocast(), torch.is_grad_enabled()
        # A GraphModule is traced again to record its hooks; its modules stay leaves.
        graph = given.graph if isinstance(given, fx.GraphModule) else None
        self.leaves = (
            {str(n.target) for n in graph.nodes if n.op == "call_module"} if graph else set()
        )

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (Gate, Constant)) or module_qualified_name in self.leaves:
            return True
        return type(m) not in PARTS and super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _autocast() != self.autocast:
            raise NotTraceable("parts of it compute under autocast")
        if self.gradients and not torch.is_grad_enabled():
            self.note(_NO_GRADIENTS)
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return TensorProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, dict) and dataclasses.is_dataclass(a):
            # torch.fx would make a plain dict of it, transformers' class of results.
            fields = {f.name: getattr(a, f.name) for f in dataclasses.fields(a)}
            given = {name: self.create_arg(v) for name, v in fields.items() if v is not None}
            return self.create_node("call_function", type(a), (), given)
        return super().create_arg(a)

    def get_fresh_qualname(self, prefix: str) -> str:
        name = super().get_fresh_qualname(prefix)
        self.own[name] = None
        return name

    def traced(self, module: nn.Module, inputs: Sequence[Any] | None) -> fx.Graph:
        """The graph of one call. Constants that the call makes are stored in ``self.own``, not in the module."""
        self.inputs, self.own, self.notes, self.examples = inputs, {}, [], {}
        self.num_calls.clear()
        try:
            with written_out(self), taken_for_tensors():
                graph = self.trace(module)
        finally:
            for name in self.own:
                self.own[name] = module.__dict__.pop(name, None)
        return graph

    def note(self, text: str) -> None:
        """Add a note for the user, once."""
        if text not in self.notes:
            self.notes.append(text)

    def example(self, value: Any) -> Any:
        """The example input that a value is; ``None`` if it is none."""
        node = getattr(value, "node", None)
        return self.examples.get(node.name) if isinstance(node, fx.Node) else None

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The placeholders, and a call of the module with them: that runs its hooks."""
        call = arguments(self.root, self.inputs)
        if call.left_out:
            self.notes.append(
                f"arguments that {'example_inputs leave out' if self.inputs is not None else 'have defaults'} are no inputs of "
                f"the result: {', '.join(call.left_out)}"
            )
        args = [self._given(*one) for one in call.positional]
        keywords = {name: self.create_proxy("placeholder", name, (), {}) for name in call.keywords}
        root = self.root

        def called() -> Any:
            return root._call_impl(*args, **keywords)  # type: ignore[no-untyped-call]

        result = inspect.get_annotations(inspect.unwrap(root_fn)).get("return")
        called.__annotations__ = {} if result is None else {"return": result}
        return called, []

    def _given(self, name: str, default: Any, annotation: Any, value: Any) -> Any:
        made = self.create_proxy("placeholder", name, default, {}, type_expr=annotation)
        if value is not _UNKNOWN:
            made.node.meta[EXAMPLE] = type(value)
            self.examples[made.node.name] = value
        if _decides(value):
            # The result checks that its caller passes the same value.
            test = operator.eq if isinstance(value, str) else operator.is_
            same = self.create_proxy("call_function", test, (made, value), {})
            reason = f"{name} was {value!r} in example_inputs, which the module was shrunk for"
            self.create_proxy("call_function", torch._assert, (same, reason), {})
            return value
        if any(_decides(x) for x in tree_leaves(value, is_leaf=lambda x: x is None)):
            raise NotTraceable(f"{name} holds what is no number")
        return made


def _decides(value: Any) -> bool:
    """Whether an argument chooses what is computed (``None``, a flag, text), rather than being a number to compute with."""
    return value is None or isinstance(value, (bool, str))


def _autocast() -> tuple[bool, ...]:
    return tuple(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))


@dataclass
class Arguments:
    """How a module is called.

    Attributes:
        positional: Name, default (as FX takes it), annotation and example of each positional argument.
        keywords: Arguments that have to be given by keyword.
        left_out: Arguments that stay as they are by default, as ``name=default``.
    """

    positional: list[tuple[str, tuple[Any, ...], Any, Any]] = field(default_factory=list)
    keywords: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def arguments(module: nn.Module, inputs: Sequence[Any] | None) -> Arguments:
    """How ``inputs`` call a module; without them, with all that has no default.

    Raises:
        ModelError: If they are too few or too many, or an argument can only be given by keyword.
    """
    found = Arguments()
    rest = [_UNKNOWN] if inputs is None else list(inputs)
    for name, p in inspect.signature(module.forward).parameters.items():
        if p.kind is p.VAR_KEYWORD:
            continue
        if p.kind is p.VAR_POSITIONAL:
            more = [] if inputs is None else rest
            found.positional += [(f"{name}_{i}", (), None, x) for i, x in enumerate(more)]
            rest = []
            continue
        optional = p.default is not p.empty
        by_place = p.kind is not p.KEYWORD_ONLY
        if by_place and (rest if inputs is not None else not optional):
            value = rest.pop(0) if inputs is not None else _UNKNOWN
            kept = (p.default,) if optional and _number(p.default) and _number(value) else ()
            note = p.annotation if p.annotation is not p.empty else None
            found.positional.append((name, kept, note, value))
        elif optional:
            found.left_out.append(f"{name}={_shown(p.default)}")
        elif by_place:
            raise ModelError(
                f"the module does not run on example_inputs: forward of {type(module).__name__} also needs {name}"
            )
        elif inputs is None:
            found.keywords.append(name)
        else:
            raise ModelError(
                f"the module does not run on example_inputs: forward of {type(module).__name__} takes {name} by "
                "keyword alone; give it a default, or wrap the module in one that passes it"
            )
    _keep_defaults(module, found)
    if inputs is not None and rest and module._forward_pre_hooks:
        # The pre-hooks turn the inputs into the arguments of forward.
        found.positional += [(f"input_{i}", (), None, x) for i, x in enumerate(rest)]
    elif inputs is not None and rest:
        raise ModelError(
            f"the module does not run on example_inputs: forward of {type(module).__name__} takes "
            f"{len(inputs) - len(rest)} of the {len(inputs)}"
        )
    if inputs is None and not found.positional and not found.keywords and found.left_out:
        raise NotTraceable("all arguments have defaults")
    return found


def _keep_defaults(module: nn.Module, found: Arguments) -> None:
    """Let arguments that were given as they are by default, and those behind them, be left out by callers of the result."""
    defaults = {
        name: p.default
        for name, p in inspect.signature(module.forward).parameters.items()
        if p.default is None or isinstance(p.default, (bool, int, float, str))
    }
    idle = [
        name in defaults and _decides(value) and value is defaults[name]
        for name, _, _, value in found.positional
    ]
    if True not in idle:
        return
    behind = found.positional[idle.index(True) :]
    if all(name in defaults for name, *_ in behind):
        found.positional[idle.index(True) :] = [
            (name, (defaults[name],), note, value) for name, _, note, value in behind
        ]


_UNKNOWN = object()


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 30 else text[:27] + "..."


# What may not happen while a module is called.


class _NoWrites(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stops a call that would write to one of the module's tensors."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # It would import the compiler.

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: dict[int | None, str] = {
            place: name for name, t in tensors.items() if (place := _storage(t)) is not None
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
            for a in schema.arguments:
                written = given.get(a.name) if a.alias_info and a.alias_info.is_write else None
                for t in written if isinstance(written, (list, tuple)) else (written,):
                    if isinstance(t, torch.Tensor) and _storage(t) in self.names:
                        raise StateError(writes_tensors([self.names[_storage(t)]]))
        return func(*args, **kwargs)


def writes_tensors(names: Sequence[str]) -> str:
    """The reason to refuse a module that writes to its own tensors."""
    return (
        f"the module writes to its own {', '.join(names[:3])} when it is called, and the result would not: make this "
        "state an input and an output of forward (or call model.eval(), if it is only written in training)"
    )


def _storage(tensor: torch.Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # Sparse tensors have none.
        return None


@contextmanager
def tensors_kept(shared: ModuleCopy) -> Iterator[None]:
    """Refuse writes to the module's tensors before they happen; writes that bypass torch's dispatcher are undone."""
    before = [(name, t, t.detach(), version_of(t)) for name, t in shared.tensors.items()]
    try:
        with _NoWrites(shared.tensors):
            yield
    finally:
        written = [name for name, t, _, version in before if version_of(t) != version]
        for name, t, was, _ in before:
            if _storage(t) != _storage(was):
                t.data = was
                written.append(name)
    if written:
        raise StateError(writes_tensors(written))


def version_of(tensor: torch.Tensor) -> int:
    """The number of writes to a tensor, where torch counts them."""
    return 0 if tensor.is_inference() else tensor._version


@dataclass
class Draws:
    """Whether random numbers were drawn."""

    any: bool = False


@contextmanager
def random_kept() -> Iterator[Draws]:
    """Restore the random states of torch, Python and NumPy."""
    draws, before = Draws(), _random_states()
    try:
        yield draws
    finally:
        draws.any = not all(map(_equal_states, before, _random_states()))
        torch.set_rng_state(before[0])
        if before[1]:
            torch.cuda.set_rng_state_all(before[1])
        random.setstate(before[2])
        np.random.set_state(before[3])


def _random_states() -> tuple[Any, ...]:
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    on_gpu = torch.cuda.get_rng_state_all() if started else []
    return torch.get_rng_state(), on_gpu, random.getstate(), np.random.get_state()


def _equal_states(first: Any, second: Any) -> bool:
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(_equal_states, first, second))
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))


# State that outlasts a call.


def _read_again(
    tracer: _Tracer,
    graph: fx.Graph,
    module: nn.Module,
    inputs: Sequence[Any] | None,
    changed: dict[str, Any],
) -> dict[str, Any]:
    """The changed attributes that may change the result of the next call.

    Values that are kept only to be looked at do not matter, nor caches of what does not depend on the inputs' numbers.
    """
    if all(_fixed(value) for value in changed.values()):
        return {}
    own, notes = tracer.own, tracer.notes
    try:
        again = tracer.traced(module, inputs)
        same = _same_graph(graph, again) and _same_constants(own, tracer.own)
    except Exception:
        same = False
    tracer.own, tracer.notes = own, notes
    return {} if same else changed


def acts_alike(module: nn.Module, made: nn.Module, inputs: Sequence[Any] | None) -> bool:
    """Whether the second call of a stateful module, on other numbers, gives the same result as ``made``.

    A cache that is filled once and holds the same for all inputs passes.
    """
    if inputs is None:
        return False
    generator = torch.Generator().manual_seed(0)

    def other(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.numel():
            return x
        mixed = x.flatten()[torch.randperm(x.numel(), generator=generator).to(x.device)]
        return mixed.reshape(x.shape) * 0.75 if x.is_floating_point() else mixed.reshape(x.shape)

    shared = ModuleCopy(module)
    try:
        with containers_kept(module), random_kept(), tensors_kept(shared), torch.no_grad():
            shared.module(*tree_map(other, tuple(inputs)))
            torch.manual_seed(0)
            want = shared.module(*_fresh(inputs))
            torch.manual_seed(0)
            got = made(*_fresh(inputs))
            if type(got) is not type(want):
                return False
            torch.testing.assert_close(_held(got), _held(want), equal_nan=True)
    except Exception:
        return False
    return True


def _held(result: Any) -> Any:
    """A result in the form that torch compares: dataclasses as dicts of their fields."""
    if dataclasses.is_dataclass(result) and not isinstance(result, Mapping):
        return {f.name: _held(getattr(result, f.name)) for f in dataclasses.fields(result)}
    if isinstance(result, Mapping):
        return {key: _held(value) for key, value in result.items()}
    return [_held(x) for x in result] if isinstance(result, (list, tuple)) else result


def _fresh(inputs: Sequence[Any]) -> Any:
    return tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, tuple(inputs))


def _same_graph(first: fx.Graph, second: fx.Graph) -> bool:
    foreign = any(s.graph is not second for n in second.nodes for s in n.all_input_nodes)
    return not foreign and first.python_code("self").src == second.python_code("self").src


def _same_constants(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    if first.keys() != second.keys():
        return False
    for name, a in first.items():
        b = second[name]
        tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        if a is not b and not (tensors and a.dtype == b.dtype and torch.equal(a, b)):
            return False
    return True


def _fixed(value: Any) -> bool:
    """Whether a value that a trace left in the module is computed only from constants and sizes."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_fixed, value))
    if isinstance(value, dict):
        return bool(value) and all(map(_fixed, value.values()))
    if not isinstance(value, fx.Proxy):
        return False
    pending, seen = [value.node], set()
    while pending:
        node = pending.pop()
        if node in seen or _asks_size(node):
            continue
        seen.add(node)
        if node.op == "placeholder":
            return False
        pending += node.all_input_nodes
    return True


def _asks_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZES
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _SIZES
    return node.target in (torch.zeros_like, torch.ones_like, torch.full_like)


_SIZES = {
    "size", "dim", "ndimension", "numel", "new_zeros", "new_ones", "new_full", "shape", "ndim", "dtype", "device",
}  # fmt: skip


def _member(module: nn.Module, tracer: _Tracer, name: str) -> Any:
    if name in tracer.own:
        return tracer.own[name]
    return operator.attrgetter(name)(module)


def _lost_hooks(module: nn.Module, kept: set[str]) -> list[str]:
    """A note where modules that are not in the result have hooks on gradients."""
    lost = [
        name or "the model"
        for name, part in module.named_modules()
        if (part._backward_hooks or part._backward_pre_hooks)
        and not any(name == k or name.startswith(f"{k}.") for k in kept)
    ]
    if not lost:
        return []
    return [f"hooks on gradients are not in the result: those of {', '.join(lost[:3])}"]


__all__ = [
    "NotTraceable", "StateError", "Traced", "acts_alike", "arguments", "keeps_state", "random_kept", "tensors_kept", "trace",
    "traced", "version_of", "writes_tensors",
]  # fmt: skip

"""torch.export programs to IR graphs: the unlifted module is read as an FX graph of ATen calls."""

from __future__ import annotations

import ast
import dataclasses
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from typing import Any

import torch
from sympy import preorder_traversal
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import SUPPORTED_NODES, tree_leaves, tree_map, tree_unflatten

from ...hosts.torch.arguments import name_arguments
from ...hosts.torch.copies import ModuleCopy, containers_kept
from ...ir import Graph, ModelError
from .fake_run import shapes_of, unlogged
from .importer import from_fx
from .inlined import inline_regions
from .trace import StateError, acts_alike, keeps_state, random_kept


def from_export(
    program: torch.export.ExportedProgram,
    inputs: tuple[Any, ...] | None = None,
    forward: Callable[..., Any] | None = None,
    *,
    fixed_sizes: bool = False,
) -> Graph:
    """Import an exported program.

    Args:
        program: The program.
        inputs: Inputs from which shapes are found, where those of the program are open.
        forward: What was exported with these inputs; the result is called like it.
        fixed_sizes: Read it for inputs as large as these, with batches of any size.

    Raises:
        ModelError: If the program writes to its buffers or inputs.
    """
    kinds = {spec.kind.name for spec in program.graph_signature.output_specs}
    if not kinds.isdisjoint(_MUTATIONS):
        raise ModelError(
            "the exported program writes to its buffers or inputs (a batch norm in training mode?): "
            "call model.eval() before torch.export.export"
        )
    module = program.module()
    if not isinstance(module, torch.fx.GraphModule):
        raise ModelError("the exported program has no graph module")
    if forward is not None and inputs is not None:
        name_arguments(module, forward, inputs)
    _record_guards(module)
    notes = inline_regions(module)
    graph = from_fx(module, inputs, fixed_sizes=fixed_sizes)
    graph.notes += notes
    args, keywords = program.example_inputs or ((), {})
    if inputs is None and args and not keywords:
        graph.host = replace(graph.host, exported=tuple(args))
    return graph


def _record_guards(module: torch.fx.GraphModule) -> None:
    """Make a graph of the function that checks the inputs, which cannot be pickled as torch makes it."""
    guards = getattr(module, _GUARDS, None)
    node = next((n for n in module.graph.nodes if n.target == _GUARDS), None)
    if guards is None or node is None:
        return
    for checks in (_called_guards, _written_guards):
        tracer, root = torch.fx.Tracer(), nn.Module()
        tracer.root, tracer.graph = root, torch.fx.Graph()
        arguments = [
            tracer.create_proxy("placeholder", f"arg{i}", (), {}) for i in range(len(node.args))
        ]
        try:
            checks(module, guards.forward, arguments)
        except Exception:  # A check that no graph shows; the second form shows most of them.
            continue
        tracer.graph.output(None)
        made = torch.fx.GraphModule(root, tracer.graph, "Guards")
        made._is_impure = True  # type: ignore[assignment]
        setattr(module, _GUARDS, made)
        return


def _called_guards(module: torch.fx.GraphModule, forward: Any, arguments: list[Any]) -> None:
    """Record the checks by a call of the function that makes them."""
    names = _names(forward)
    names.update(_OF_PROXIES)
    try:
        forward(*arguments)
    finally:
        for name in _OF_PROXIES:
            names.pop(name, None)


def _written_guards(module: torch.fx.GraphModule, forward: Any, arguments: list[Any]) -> None:
    """Record the checks from their messages, which have the conditions as code: those with several parts too.

    Raises:
        Exception: Whatever code raises that cannot be recorded.
    """
    info: Any = module.graph._codegen.pytree_info  # type: ignore[attr-defined]
    given, named = tree_unflatten(arguments, info.in_spec)
    names = dict(zip(info.orig_args, [*given, *named.values()], strict=True))
    for message in _messages(forward):
        condition = _Joined().visit(ast.parse(message.removeprefix(_FAILED), mode="eval"))
        code = compile(ast.fix_missing_locations(condition), "guard", "eval")
        known = {**_names(forward), **_OF_PROXIES, **_JOINING, **names}
        torch._assert(eval(code, known), message)  # type: ignore[no-untyped-call]


def _messages(forward: Any) -> list[str]:
    """The messages of the checks of a compiled function, each of which has one.

    Raises:
        ValueError: If there are none.
    """
    found = [c for c in _compiled(forward).__code__.co_consts if isinstance(c, str)]
    found = [c for c in found if c.startswith(_FAILED)]
    if not found:
        raise ValueError("checks without messages")
    return found


class _Joined(ast.NodeTransformer):
    """Writes ``and``, ``or``, ``not`` and chains of comparisons as calls, which a graph records."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        """``a and b`` is a call of both."""
        self.generic_visit(node)
        return _call("_all" if isinstance(node.op, ast.And) else "_any", node.values)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        """``not a`` is a call."""
        self.generic_visit(node)
        return _call("_not", [node.operand]) if isinstance(node.op, ast.Not) else node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """``a < b < c`` is a call of two comparisons."""
        self.generic_visit(node)
        if len(node.ops) == 1:
            return node
        values = [node.left, *node.comparators]
        pairs: list[ast.expr] = [
            ast.Compare(values[i], [op], [values[i + 1]]) for i, op in enumerate(node.ops)
        ]
        return _call("_all", pairs)


def _call(name: str, values: list[ast.expr]) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), values, [])


def _names(function: Any) -> dict[str, Any]:
    """The global names of the function that torch compiled from the checks."""
    compiled = _compiled(function)
    return {} if compiled is None else compiled.__globals__


def _compiled(function: Any) -> Any:
    """The function that torch compiled from the checks, behind the wrapper around it."""
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    compiled = [f for f in (function, *cells) if getattr(f, "__name__", "") == "_"]
    return compiled[0] if compiled else None


def _extreme(of_two: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *numbers: reduce(of_two, numbers)


_OF_PROXIES = {"max": _extreme(torch.sym_max), "min": _extreme(torch.sym_min)}
"""What replaces Python's functions while a check is recorded, which compare their arguments."""

_JOINING = {
    "_all": lambda *found: reduce(operator.and_, found),
    "_any": lambda *found: reduce(operator.or_, found),
    "_not": torch.sym_not,
}
"""What ``and``, ``or`` and ``not`` are in a graph."""

_FAILED = "Guard failed: "
"""How the messages of checks begin; the condition follows."""

_GUARDS = "_guards_fn"
"""The name that torch.export gives to the check of inputs."""

_MUTATIONS = {"BUFFER_MUTATION", "USER_INPUT_MUTATION", "PARAMETER_MUTATION"}


@dataclass(frozen=True)
class Exported:
    """An exported module.

    Attributes:
        program: The program.
        note: A note for the user, if sizes are fixed.
    """

    program: torch.export.ExportedProgram
    note: str = ""


def exported(model: nn.Module, inputs: tuple[Any, ...]) -> Exported:
    """``torch.export.export`` of a module, which is left unchanged, with all sizes open that the module leaves open.

    Raises:
        StateError: If the module keeps values that its next call reads.
        Exception: Whatever torch raises where it cannot export.
    """
    shared = ModuleCopy(model)
    with containers_kept(model), random_kept(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Warnings about torch's internals, which users cannot act on.
        program, note = _of_any_size(shared.module, inputs)
        if program is None and _register_results(model, inputs):
            program, note = _of_any_size(shared.module, inputs)
        if program is None:
            program = torch.export.export(shared.module, inputs)
        kept = _left_behind(model, inputs)
        if kept and not acts_alike(model, program.module(), inputs):
            raise StateError(keeps_state(model, kept))
    return Exported(program, note)


def _of_any_size(
    module: nn.Module, inputs: tuple[Any, ...]
) -> tuple[torch.export.ExportedProgram | None, str]:
    """An export with open sizes, all or those of batches, and a note on what is fixed; ``None`` where that fails.

    torch takes a size of 1 for fixed, and checks no branch that a batch of 1 alone takes: one sample is given as two, and the program
    is held against the module on one sample too. Where the formulas of sizes grow, as where each of several layers cuts an image into patches
    and puts them together again, sympy would simplify them for hours; such sizes cannot be open either.
    """
    sizes = {x.shape[0] for x in tree_leaves(inputs) if isinstance(x, torch.Tensor) and x.ndim}
    given = tree_map(_doubled, inputs) if sizes == {1} else inputs
    single = tree_map(_first, inputs) if len(sizes) == 1 else None
    for axes, note in ((None, ""), (1, _BATCH_ALONE)):
        shapes = tree_map(lambda x, axes=axes: _open(x, axes), given)
        try:
            with unlogged(), _ShortFormulas():
                program = torch.export.export(module, given, dynamic_shapes=shapes)
                made = program.module()
                if not isinstance(made, torch.fx.GraphModule):
                    continue
                shapes_of(made, inputs)
                alone = single is None or acts_alike(module, made, single)
        except Exception:  # Whatever torch raises where sizes cannot be open.
            continue
        # Text of an open size, say its length, is that of a symbol.
        if alone and acts_alike(module, made, inputs):
            return program, note
    return None, _FIXED


class _ShortFormulas(TorchFunctionMode):
    """Stops an export when the formula of a size has become too long."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            for size in x.shape if isinstance(x, torch.Tensor) else ():
                if isinstance(size, torch.SymInt):
                    parts = preorder_traversal(size.node.expr)
                    if next(islice(parts, _LONGEST, None), None) is not None:
                        raise RuntimeError(f"the formula of a size is too long: {func}")
        return found


_LONGEST = 64
"""The largest number of parts of a formula: timm's mobilevit_xxs comes to 50 within minutes, mobilevitv2_050 to more than 400."""

_FIXED = "torch.export fails with open sizes: the result takes inputs of the sizes of example_inputs only"
_BATCH_ALONE = (
    "torch.export fails with open sizes but for batches: the others are those of example_inputs"
)


def _doubled(x: Any) -> Any:
    return torch.cat([x, x]) if isinstance(x, torch.Tensor) and x.ndim else x


def _first(x: Any) -> Any:
    return x[:1] if isinstance(x, torch.Tensor) and x.ndim else x


def _open(x: Any, axes: int | None) -> Any:
    """The axes of an input that may have any size, from the first on."""
    if not isinstance(x, torch.Tensor):
        return None
    return dict.fromkeys(range(x.ndim if axes is None else axes), torch.export.Dim.AUTO)


def _left_behind(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """The attributes that a call changes, found by a call on fake tensors: torch.export itself restores most of them."""
    return _faked(model, inputs)[1]


def _register_results(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Tell torch of dataclasses that a module returns, which it does not export otherwise; whether there are any."""
    pending, found = [_faked(model, inputs)[0]], dict[type, None]()
    while pending:
        value = pending.pop()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            if type(value) not in SUPPORTED_NODES:
                found[type(value)] = None
            pending += [getattr(value, f.name) for f in dataclasses.fields(value)]
        elif isinstance(value, (tuple, list)):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()
    for kind in found:
        torch.export.register_dataclass(kind)
    return bool(found)


def _faked(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    """What a call on fake tensors returns, and the attributes that it changes."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shared = ModuleCopy(model, mode.from_tensor)
    fakes = tree_map(lambda x: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x, inputs)
    try:
        with mode, torch.no_grad():
            returned = shared.module(*fakes)
    except Exception:
        return None, {"what a run on example_inputs alone can tell": None}
    return returned, shared.changed()

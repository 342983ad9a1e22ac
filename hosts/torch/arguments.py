"""Modules that torch.export made, called as the given ones: arguments by name, and left out where they have a default."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx
from torch.fx.graph import CodeGen, _PyTreeCodeGen


class ArgumentsCodeGen(_PyTreeCodeGen):
    """Writes ``forward`` with the arguments of another function, and checks those that the graph does not read.

    Args:
        pytree_info: How the graph takes its arguments, and what it returns.
        defaults: The defaults of the last arguments, by name; further ones are only accepted as they are by default.
        fixed: Arguments that chose what is computed, each with the value that it had.
        needed: Arguments with a default that cannot be left out.
    """

    def __init__(
        self,
        pytree_info: Any,
        defaults: Mapping[str, Any],
        fixed: Mapping[str, Any],
        needed: Sequence[str],
    ) -> None:
        super().__init__(pytree_info)
        self.defaults, self.fixed, self.needed = dict(defaults), dict(fixed), tuple(needed)

    def gen_fn_def(
        self, free_vars: list[str], maybe_return_annotation: str, *, expanded_def: bool = False
    ) -> str:
        """The head of ``forward``, its checks, and the inputs of the graph taken from the arguments."""
        own = list(self.pytree_info.orig_args)
        names = [*own, *(name for name in self.defaults if name not in own)]
        shown = [
            f"{name}={self.defaults[name]!r}" if name in self.defaults else name for name in names
        ]
        # Not the form that torch's class has for the same head: that one knows no defaults.
        head = CodeGen.gen_fn_def(self, shown, maybe_return_annotation, expanded_def=expanded_def)
        head += "".join(f"\n    {line}" for line in self._checks())
        return head + (self.gen_var_bindings(own, free_vars, expanded_def) if free_vars else "")

    def _checks(self) -> list[str]:
        lines = []
        for name in self.needed:
            message = f"{name} was given in example_inputs, and cannot be left out"
            lines.append(f"assert {name} is not None, {message!r}")
        for name, value in self.fixed.items():
            message = f"{name} was {value!r} in example_inputs, which the module was shrunk for"
            test = f"{name} is {value!r}" if value is None else f"{name} == {value!r}"
            lines.append(f"assert {test}, {message!r}")
        return lines


def name_arguments(
    module: fx.GraphModule, forward: Callable[..., Any], inputs: Sequence[Any]
) -> None:
    """Let an exported module be called as ``forward``, with which it was exported.

    Args:
        module: The module of the exported program, whose graph is changed.
        forward: The function whose arguments it is to have.
        inputs: The positional inputs that it was exported with.
    """
    info = getattr(module.graph._codegen, "pytree_info", None)
    parameters = {
        name: p
        for name, p in inspect.signature(forward).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    if info is None or list(info.orig_args) != list(parameters)[: len(inputs)]:
        return  # Arguments without names of their own.
    if len(info.orig_args) != len(inputs):
        return
    given = dict(zip(info.orig_args, inputs, strict=True))
    defaults: dict[str, Any] = {}
    for name, p in reversed(parameters.items()):
        if p.default is p.empty or not _is_literal(p.default):
            if name in given:
                break
            continue  # It can only be left out.
        defaults[name] = p.default
    defaults = dict(reversed(defaults.items()))
    known = {n: v for n, v in given.items() if _is_literal(v) and not isinstance(v, (tuple, list))}
    fixed = known | {n: v for n, v in defaults.items() if n not in given}
    needed = [n for n in defaults if n in given and n not in known and defaults[n] is None]
    module.graph.set_codegen(ArgumentsCodeGen(info, defaults, fixed, needed))
    module.recompile()


def _is_literal(value: Any) -> bool:
    """Whether the text of a value is code that makes it again."""
    if isinstance(value, (tuple, list)):
        return type(value) in (tuple, list) and all(map(_is_literal, value))
    if isinstance(value, float):
        return type(value) is float and math.isfinite(value)
    return value is None or type(value) in (bool, int, str)


__all__ = ["ArgumentsCodeGen", "name_arguments"]

"""``@reads``: the rules of torch's calls and modules, each registered next to its function.

A call is known by its plain name: ``conv2d`` is the name of ``F.conv2d``, ``torch.conv2d`` and ``aten.conv2d``; ``relu_`` has the
name ``relu``. Rules take arguments in the order of ``torch.nn.functional``, by place or by name. A module of ``torch.nn`` is read as the call of its
function, with the module's attributes as arguments.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from ..lowering import Lowered, Path, Steps
from ..support import Key, Makes, Reading, keys, record
from .call import Call

Rule = Callable[[Call], Lowered | Steps | None]
"""Returns the op and its operands, or several ops, or ``None`` to leave the call opaque."""


RankRule = Callable[[Call, int], Lowered | Steps | None]
"""A rule that takes the number of spatial axes too."""

_R = TypeVar("_R", bound=Rule)
_N = TypeVar("_N", bound=RankRule)

PieceRule = Callable[[Call, Sequence[Path]], Steps | None]
"""A rule of a call that returns several tensors: takes which of them are read, and returns steps with at least these results."""


class Memory(Enum):
    """Whose memory the result of a call is, where the call does not work in place."""

    NEW = "new memory"
    VIEW = "the argument's, at least where that is contiguous"
    SHARED = "perhaps the argument's"


@dataclass(frozen=True)
class Entry:
    """What is registered of a call.

    Attributes:
        rule: Its rule; ``None`` for calls of which only the memory is known.
        memory: Whose memory the result is.
        inplace: The place of the argument ``inplace``, if there is one.
        note: The limit of the rule.
        makes: The rows of the table of ops that the rule can fill.
    """

    rule: Rule | None
    memory: Memory = Memory.SHARED
    inplace: int | None = None
    note: str = ""
    makes: tuple[Key, ...] = ()


@dataclass(frozen=True)
class PieceEntry:
    """What is registered of a call, or a module, that returns several tensors.

    Attributes:
        rule: Its rule.
        nested: Which of its results are tuples themselves.
        several: Whether one call becomes several nodes, none of which may be unread.
        note: The limit of the rule.
    """

    rule: PieceRule
    nested: tuple[int, ...] = ()
    several: bool = False
    note: str = ""


@dataclass(frozen=True)
class ModuleEntry:
    """How a module is read.

    Attributes:
        rule: The rule of its function.
        fields: Its arguments behind the input: names of the function's arguments, each with the module's attribute.
        memory: Whose memory the result is.
        note: The limit of the rule.
        constants: Arguments that are the same for every such module.
    """

    rule: Rule
    fields: tuple[tuple[str, str], ...]
    memory: Memory
    note: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)

    def call(self, call: Call) -> Call:
        """The call of the function: the module's own arguments, then its attributes by name."""
        given = {
            name: call.tensor(attribute)
            if attribute in _TENSORS
            else getattr(call.module, attribute)
            for name, attribute in self.fields
        }
        return call.again(*call.args, **call.kwargs, **self.constants, **given)


_TENSORS = ("weight", "bias", "running_mean", "running_var", "scale", "shift")
"""The attributes of modules that are tensors, or ``None`` in their place."""

CALLS: dict[str, Entry] = {}
"""The rules by plain name of the call; ``rules/`` fills it."""

MODULES: dict[type[nn.Module], ModuleEntry] = {}
"""The rules by class of the module; ``rules/`` fills it."""

PIECES: dict[str | type[nn.Module], PieceEntry] = {}
"""The rules of calls by plain name, and of modules by class, that return several tensors."""

REFUSED: dict[str, str] = {}
"""Why calls, and modules by the name of their class, that the IR has no ops for are left alone."""


def reads(
    *calls: str,
    makes: Makes | Sequence[Makes],
    note: str = "",
    memory: Memory = Memory.NEW,
    inplace: int | None = None,
    several: bool = False,
) -> Callable[[_R], _R]:
    """Register a rule for calls of torch.

    Args:
        calls: Their plain names.
        makes: The op that the rule makes, with its kind if it has kinds; or a list of them.
        note: The limit of the rule, for the table of ops and for calls that are left alone.
        memory: Whose memory the result is, where the call does not work in place.
        inplace: The place of the argument ``inplace``.
        several: Whether one call becomes several nodes.
    """

    def register(rule: _R) -> _R:
        for name in calls:
            if name in CALLS:
                raise ValueError(f"call {name} has two rules")
            CALLS[name] = Entry(rule, memory, inplace, note, keys(makes))
            record(Reading(name, keys(makes), note, several), *_hosts(name))
        return rule

    return register


def reads_ranks(
    call: str,
    *,
    makes: Makes | Sequence[Makes],
    note: str = "",
    memory: Memory = Memory.NEW,
) -> Callable[[_N], _N]:
    """Register one rule for 1 to 3 spatial axes: ``reads_ranks("conv{}d", ...)``; it takes their number too."""

    def register(rule: _N) -> _N:
        for n in (1, 2, 3):
            reads(call.format(n), makes=makes, note=note, memory=memory)(_of_rank(rule, n))
        return rule

    return register


def _of_rank(rule: RankRule, n: int) -> Rule:
    return lambda call: rule(call, n)


def reads_module(
    *classes: type[nn.Module],
    call: str,
    fields: str = "",
    note: str = "",
    constants: Mapping[str, Any] | None = None,
    **renamed: str,
) -> None:
    """Register modules that compute what a function does, which is registered already.

    Args:
        classes: The modules. Of a ``call`` with ``{}`` in its name, they are those of 1, 2 and 3 spatial axes.
        call: The plain name of the function.
        fields: Attributes of the modules that are arguments of the same name.
        note: A limit beside that of the function.
        constants: Arguments that are the same for every such module.
        renamed: Arguments whose attribute has another name.
    """
    pairs = (*((name, name) for name in fields.split()), *renamed.items())
    for n, module in enumerate(classes, 1):
        entry = CALLS[call.format(n)]
        if entry.rule is None:
            raise ValueError(f"call {call} has no rule")
        limit = note or entry.note
        MODULES[module] = ModuleEntry(entry.rule, pairs, entry.memory, limit, constants or {})
        record(Reading(f"nn.{module.__name__}", entry.makes, limit), "torch")


def reads_own_module(module: type[nn.Module], makes: Makes) -> Callable[[Rule], Rule]:
    """Register a rule for a module of ours, which has no function: the rule looks at ``call.module``."""

    def register(rule: Rule) -> Rule:
        MODULES[module] = ModuleEntry(rule, (), Memory.NEW)
        record(Reading(f"graphshrink.nn.{module.__name__}", keys(makes)), "torch")
        return rule

    return register


def reads_pieces(
    *calls: str | type[nn.Module],
    makes: Makes | Sequence[Makes],
    note: str = "",
    nested: tuple[int, ...] = (),
    several: bool = False,
) -> Callable[[PieceRule], PieceRule]:
    """Register a rule for calls, or classes of modules, that return several tensors.

    Args:
        calls: Their plain names, or classes.
        makes: See :func:`reads`.
        note: See :func:`reads`.
        nested: Which of the results are tuples themselves.
        several: Whether one call becomes several nodes.
    """

    def register(rule: PieceRule) -> PieceRule:
        for call in calls:
            if call in PIECES:
                raise ValueError(f"call {call} has two rules")
            PIECES[call] = PieceEntry(rule, nested, several, note)
            name = call if isinstance(call, str) else f"nn.{call.__name__}"
            hosts = _hosts(call) if isinstance(call, str) else ["torch"]
            record(Reading(name, keys(makes), note, several), *hosts)
        return rule

    return register


def knows_memory(*calls: str, memory: Memory = Memory.SHARED, inplace: int | None = None) -> None:
    """Register the memory facts of calls that have no rule."""
    for name in calls:
        CALLS.setdefault(name, Entry(None, memory, inplace))


def refuses(*names: str, reason: str) -> None:
    """Register why calls, or modules by the name of their class, are left alone whatever their arguments."""
    REFUSED.update(dict.fromkeys(names, reason))


def _hosts(name: str) -> list[str]:
    """The hosts that can have a call of a plain name: a traced module as a function, a method or an operator; ATen."""
    traced = any(_has(home, name) for home in (F, torch, torch.Tensor, operator))
    return [*(["torch"] if traced else []), *(["export"] if _has(torch.ops.aten, name) else [])]


def _has(home: Any, name: str) -> bool:
    name = name.removeprefix("aten.")
    return any(hasattr(home, f"{name}{end}") for end in ("", "_", "__"))

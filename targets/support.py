"""One way for a target to register how it writes ops: ``@spells(ir.Conv)``.

A target has one registry, and each function that writes an op registers itself in it::

    spells: Spellings[Rule] = Spellings("ONNX")

    @spells(ir.Conv, writes="Conv")
    def conv(s: Speller, op: ir.Conv) -> None: ...

An op whose field ``kind`` chooses a function (``ir.Unary``, ``ir.Activation``) is registered for the kinds that the target has.
What a target cannot write is registered too, with the reason. The registry says what the target writes without running
anything; :mod:`graphshrink.op_table` makes the table of ops from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..ir import ModelError, Node, Op
from ..ir.ops.rows import Key, key_of, title

F = TypeVar("F", bound=Callable[..., Any])
G = TypeVar("G", bound=Callable[..., Any])


@dataclass(frozen=True)
class Spelling(Generic[F]):
    """How a target writes an op, or why it cannot.

    Attributes:
        rule: The function that writes it; ``None`` if the target cannot.
        note: The limits of the rule, in a few words.
        reason: Why there is no rule.
        writes: The host's operators that the rule writes, in the newest version of the host, where the target tells.
    """

    rule: F | None
    note: str = ""
    reason: str = ""
    writes: tuple[str, ...] = ()


class Spellings(Generic[F]):
    """The registry of a target.

    Attributes:
        host: What errors call the target.
        table: What is registered, by op and kind.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self.table: dict[Key, Spelling[F]] = {}

    def __call__(
        self,
        *ops: type[Op],
        kinds: Iterable[str] | None = None,
        note: str = "",
        writes: str | Mapping[str, str] = "",
    ) -> Callable[[G], G]:
        """Register a function as the rule of ops.

        Args:
            ops: The ops.
            kinds: The kinds that the rule writes, for ops that have kinds.
            note: The limits of the rule, for the table of ops.
            writes: The host's operators that it writes, separated by blanks; by kind for ops that have kinds, which
                then says the kinds too.
        """
        by_kind = writes if isinstance(writes, Mapping) else {}
        chosen = tuple(by_kind if kinds is None else kinds)

        def register(rule: G) -> G:
            for op in ops:
                for key in _keys(op, chosen):
                    written = by_kind.get(key[1] or "", "") if by_kind else str(writes)
                    made: Any = rule
                    self._add(key, Spelling(made, note, writes=tuple(written.split())))
            return rule

        return register

    def cannot(self, op: type[Op], reason: str, *, kinds: Iterable[str] = ()) -> None:
        """Register that a target cannot write an op, and why."""
        for key in _keys(op, tuple(kinds)):
            self._add(key, Spelling(None, reason=reason))

    def _add(self, key: Key, spelling: Spelling[F]) -> None:
        if key in self.table:
            raise ValueError(f"{title(key)} is registered twice for {self.host}")
        self.table[key] = spelling

    def find(self, op: Op) -> Spelling[F]:
        """How an op is written; a spelling without a rule if nothing is registered."""
        return self.table.get(key_of(op), _MISSING)

    def rule_of(self, node: Node) -> F:
        """The function that writes the op of a node.

        Raises:
            ModelError: If there is none; it has the reason.
        """
        found = self.find(node.op)
        if found.rule is not None:
            return found.rule
        reason = f": {found.reason}" if found.reason else ""
        named = title(key_of(node.op))
        raise ModelError(f"{node.name}: {named} has no {self.host} spelling{reason}")


def _keys(op: type[Op], kinds: tuple[str, ...]) -> list[Key]:
    if bool(op.kinds) != bool(kinds) or not set(kinds) <= set(op.kinds):
        known = ", ".join(op.kinds) or "none"
        raise ValueError(f"{op.__name__} is registered for the kinds {kinds}; it has {known}")
    return [(op, kind) for kind in kinds] if kinds else [(op, None)]


_MISSING: Spelling[Any] = Spelling(None)

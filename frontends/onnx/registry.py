"""``@reads``: the rules of ONNX operators, each registered next to its function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..lowering import Lowered, Steps
from ..support import Makes, Reading, keys, record
from .node import OnnxNode

Rule = Callable[[OnnxNode], Lowered | Steps | None]
"""Returns the op and its operands (values, or tensors that it computed), several ops in order where no single one
means the same, or ``None`` to leave the node opaque: an input that must be known is not, or the attributes ask for
something that the op cannot express."""


@dataclass(frozen=True)
class Entry:
    """A registered rule.

    Attributes:
        rule: The rule.
        since: The first opset in which the operator means what the rule reads; in older ones it stays opaque.
        idle_results: Whether further results change nothing about the first, so that unread ones do not matter.
        note: The limit of the rule in a few words.
    """

    rule: Rule
    since: int = 1
    idle_results: bool = False
    note: str = ""


RULES: dict[str, Entry] = {}
"""The rules by operator; ``rules/`` fills it."""


def reads(
    *operators: str,
    makes: Makes | Sequence[Makes],
    note: str = "",
    since: int = 1,
    idle_results: bool = False,
    several: bool = False,
) -> Callable[[Rule], Rule]:
    """Register a rule for ONNX operators.

    Args:
        operators: The operators' names.
        makes: The op that the rule makes, with its kind if it has kinds; or a list of them.
        note: The limit of the rule, for the table of ops.
        since: See :class:`Entry`.
        idle_results: See :class:`Entry`.
        several: Whether one operator can become several nodes.
    """

    def register(rule: Rule) -> Rule:
        for name in operators:
            if name in RULES:
                raise ValueError(f"operator {name} has two rules")
            RULES[name] = Entry(rule, since, idle_results, note)
            record(Reading(name, keys(makes), note, several), "onnx")
        return rule

    return register

"""The registry of reading rules: what each host's operators become in the IR.

A rule stands next to its registration, and nothing else needs to know it::

    @reads("Conv", makes=ir.Conv)                      # frontends/onnx/registry.py: an operator
    @reads("prelu", makes=ir.PRelu)                    # frontends/torch/registry.py: F., torch., Tensor. and ATen calls
    reads_module(nn.PReLU, call="prelu", fields="weight")   # a module is read as the call of its function
    cannot_read((ir.Unary, "rsqrt"), "ONNX has no such operator", "onnx")

``makes`` names the rows of the table of ops that a rule can fill: an op class, or the class with its kind. From these
registrations :func:`table` and :func:`holes` tell, without running anything, what can be read from where. A new op
is one registration a host; ``tests/frontends/test_readings.py`` fails until it is there, or until ``cannot_read`` says why not.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from ..ir import Op
from ..ir.ops.rows import Key, rows

HOSTS = ("onnx", "torch", "export")
"""ONNX operators; calls and modules of a traced torch module; ATen calls of an exported program."""

Makes = type[Op] | tuple[type[Op], str]
"""How a registration names a row."""


@dataclass(frozen=True)
class Reading:
    """One rule, as the table of ops shows it.

    Attributes:
        name: The host's name: ``"Conv"``, ``"conv2d"``, ``"nn.Conv2d"``; the form of a pattern.
        makes: The rows that the rule can fill.
        note: The limit of the rule in a few words.
        several: Whether one call becomes several nodes, of which the row is one.
        pattern: Whether several nodes of the host become this one op, after the import.
    """

    name: str
    makes: tuple[Key, ...]
    note: str = ""
    several: bool = False
    pattern: bool = False


class LeftAlone(Exception):
    """A known operator in a form that the IR cannot express; the text says why, and stays in ``Opaque.reason``."""


_readings: dict[str, list[Reading]] = {host: [] for host in HOSTS}
_holes: dict[str, dict[Key, str]] = {host: {} for host in HOSTS}

_RULES = {
    "onnx": ("onnx.rules", "raising.patterns"),
    "torch": ("torch.rules", "raising.patterns"),
    "export": ("torch.rules", "raising.patterns"),
}
"""The modules whose import registers the rules of a host."""


def keys(makes: Makes | Sequence[Makes]) -> tuple[Key, ...]:
    """The rows that a registration names: one, or a list of them.

    Raises:
        ValueError: If a row has no kind where the op has kinds, or an unknown one.
    """
    found: list[Key] = []
    for row in makes if isinstance(makes, list) else [makes]:
        op, kind = row if isinstance(row, tuple) else (row, None)
        if kind not in (op.kinds or (None,)):
            raise ValueError(f"{op.__name__} has no kind {kind!r}")
        found.append((op, kind))
    return tuple(found)


def record(reading: Reading, *hosts: str) -> None:
    """Add a rule to the tables of hosts."""
    for host in hosts:
        _readings[host].append(reading)


def reads_pattern(form: str, makes: Makes | Sequence[Makes], *hosts: str) -> None:
    """Register several nodes that become one op after the import, for every host or for those named."""
    record(Reading(form, keys(makes), pattern=True), *(hosts or HOSTS))


def cannot_read(makes: Makes | Sequence[Makes], reason: str, *hosts: str) -> None:
    """Register why no rule of these hosts makes an op."""
    for host in hosts:
        _holes[host].update(dict.fromkeys(keys(makes), reason))


def limit(note: str) -> str:
    """The reason to leave a call alone that its rule returned nothing for; ``note`` is the limit of the rule."""
    return f"the limit of its rule: {note}" if note else "its rule does not read these arguments"


def table(host: str) -> dict[Key, list[Reading]]:
    """The rules that fill each row, for one of :data:`HOSTS`; rows that no rule fills are not in it."""
    _load(host)
    found: dict[Key, list[Reading]] = {}
    for reading in _readings[host]:
        for key in reading.makes:
            found.setdefault(key, []).append(reading)
    return found


def holes(host: str) -> dict[Key, str]:
    """The rows that cannot be read from a host, each with the reason."""
    _load(host)
    return dict(_holes[host])


def _load(host: str) -> None:
    for name in _RULES[host]:
        importlib.import_module(f".{name}", __package__)


__all__ = [
    "HOSTS",
    "Key",
    "LeftAlone",
    "Makes",
    "Reading",
    "cannot_read",
    "holes",
    "keys",
    "limit",
    "reads_pattern",
    "record",
    "rows",
    "table",
]

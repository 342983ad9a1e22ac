"""The rows of the table of ops: one for each class and, where a field ``kind`` chooses a function, one for each kind."""

from __future__ import annotations

from .base import Op
from .opaque import Opaque

Key = tuple[type[Op], str | None]
"""A row: a class, and its kind if it has :attr:`Op.kinds`."""


def key_of(op: Op) -> Key:
    """The row that an op belongs to."""
    kinds = type(op).kinds
    return type(op), str(vars(op)["kind"]) if kinds else None


def keys_of(op: type[Op]) -> list[Key]:
    """The rows of a class, in the order of its kinds."""
    return [(op, kind) for kind in op.kinds] if op.kinds else [(op, None)]


def rows() -> list[Key]:
    """All rows of the ops of this package, by the name of the class, then in the order of its kinds."""
    own = [op for op in Op.names.values() if op.__module__.startswith(f"{__package__}.")]
    own.sort(key=lambda op: op.__name__)
    return [key for op in own if op is not Opaque for key in keys_of(op)]


def title(key: Key) -> str:
    """How messages and tables name a row: ``Conv``, ``Unary exp``."""
    op, kind = key
    return op.__name__ if kind is None else f"{op.__name__} {kind}"

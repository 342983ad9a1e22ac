"""The value of the original network that the result of a layer corresponds to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...ir import Add, Conv, Node, Value


@dataclass(frozen=True)
class Target:
    """What a layer should compute.

    Attributes:
        value: A value of the original graph.
        minus: A value of the changed graph that is subtracted from it: what a skip carries.
        channels: The channels of the value that are still there; all if ``None``.
    """

    value: Value
    minus: Value | None = None
    channels: tuple[int, ...] | None = None


def target_of(
    node: Node, original: Mapping[str, Value], kept: Mapping[str, tuple[int, ...]]
) -> Target | None:
    """What a layer of a changed graph should compute, or ``None`` if nothing in the original corresponds to it.

    Args:
        node: The layer.
        original: The values of the original graph, by name; a changed graph keeps the names.
        kept: The channels that are left, by the name of a value that was narrowed.
    """
    value = node.output
    if len(value.uses) == 1 and not value.is_output:
        reader = value.users[0]
        other = next((v for v in reader.inputs if v is not value), None)
        if isinstance(reader.op, Add) and other is not None and other.data is None:
            found = original.get(reader.output.name)
            alike = value.type == other.type == reader.output.type
            if found is not None and found.type == reader.output.type and alike:
                return Target(found, other)
    found = original.get(value.name)
    if found is None or found.type.dtype != value.type.dtype:
        return None
    if found.type.shape == value.type.shape:
        return Target(found)
    channels = kept.get(value.name)
    axis = 1 if isinstance(node.op, Conv) else -1
    if channels is None or value.type.dim(axis) != len(channels):
        return None
    return Target(found, None, channels)

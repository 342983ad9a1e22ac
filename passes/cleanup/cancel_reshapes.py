"""Reshapes that undo each other, also across functions of single elements."""

from __future__ import annotations

from collections.abc import Iterable

from ...ir import (
    Activation,
    Exactness,
    Flatten,
    Node,
    Reshape,
    Rewriter,
    Squeeze,
    Unary,
    Unsqueeze,
    Value,
)

_RESHAPES = (Reshape, Flatten, Squeeze, Unsqueeze)
"""Ops that give the same elements another shape."""


def cancel_reshapes(rw: Rewriter, nodes: Iterable[Node]) -> None:
    """Let each of these reshapes read what another reshape before it reads; exact.

    Activations between the two then work in the shape before the first one. A reshape to the shape that its input has
    already is removed, and so is the first one where nobody reads it any more. Shapes must be known.

    Args:
        rw: Changes the graph.
        nodes: Nodes of the graph in topological order; those that are no reshapes are passed over.
    """
    for node in nodes:
        while isinstance(node.op, _RESHAPES) and node.outputs[0].type.is_static:
            between, first = _before(node)
            if first is None or not _cancel(rw, node, between, first):
                break


def _before(node: Node) -> tuple[list[Node], Node | None]:
    """The reshape before a node, and the activations between them in the order in which they run."""
    between: list[Node] = []
    while (value := node.inputs[0]) is not None and (producer := value.producer) is not None:
        if isinstance(producer.op, _RESHAPES):
            return between[::-1], producer
        if not isinstance(producer.op, (Activation, Unary)) or not value.has_one_use:
            break
        between.append(producer)
        node = producer
    return between, None


def _cancel(rw: Rewriter, node: Node, between: list[Node], first: Node) -> bool:
    """Do it; whether the node is still there, and may find another reshape before it."""
    source, result = first.inputs[0], node.output
    assert source is not None
    shape = result.type.static_shape
    if shape is None or not source.type.is_static:
        return False
    with rw.rewrite("cancel reshapes", node, exactness=Exactness.EXACT):
        value = source
        for step in between:
            value = rw.resize(step, step.op, [value, *step.inputs[1:]]).output
        is_needless = source.type.static_shape == shape and not result.is_output
        if is_needless:
            rw.replace_uses(result, value)
            rw.erase(node)
        else:
            rw.replace(node, Reshape(_copying(node, source, shape)), [value])
        if not first.output.use_count:
            rw.erase(first)
    return not is_needless


def _copying(node: Node, source: Value, shape: tuple[int, ...]) -> tuple[int | None, ...]:
    """A shape that copies those sizes of its input that the reshape copied before."""
    known = source.type.shape or ()
    told = node.op.shape if isinstance(node.op, Reshape) else shape
    return tuple(
        None if want is None and i < len(known) and known[i] == size else size
        for i, (want, size) in enumerate(zip(told, shape, strict=True))
    )


__all__ = ["cancel_reshapes"]

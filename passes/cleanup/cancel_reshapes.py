"""Cancel consecutive reshapes, also across elementwise ops."""

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

RESHAPES = (Reshape, Flatten, Squeeze, Unsqueeze)
"""Ops that change the shape and keep the elements in order."""


def cancel_reshapes(rw: Rewriter, nodes: Iterable[Node], *, fixed: bool = True) -> None:
    """Let each reshape read the input of the reshape before it; exact.

    Activations between the two then work in the shape before the first one. A reshape that no longer changes the shape
    is removed, and so is the first one if nothing reads it any more. Reshapes of unknown shape stay.

    Args:
        rw: The rewriter of the graph.
        nodes: Nodes of the graph in topological order; nodes that are not reshapes are ignored.
        fixed: Whether known sizes hold for every run; torch knows only those of the example inputs, and a size that a reshape
            copies from its input must then not become a number.
    """
    for node in nodes:
        while isinstance(node.op, RESHAPES) and node.outputs[0].type.is_static:
            between, first = _previous_reshape(node)
            if first is None or not _cancel(rw, node, between, first, fixed):
                break


def _previous_reshape(node: Node) -> tuple[list[Node], Node | None]:
    """The activations between a node and the reshape before it, in order, and that reshape."""
    between: list[Node] = []
    while (value := node.inputs[0]) is not None and (producer := value.producer) is not None:
        if isinstance(producer.op, RESHAPES):
            return between[::-1], producer
        if not isinstance(producer.op, (Activation, Unary)) or not value.has_one_use:
            break
        between.append(producer)
        node = producer
    return between, None


def _cancel(rw: Rewriter, node: Node, between: list[Node], first: Node, fixed: bool) -> bool:
    """Cancel two reshapes; returns whether ``node`` still exists, and may cancel with another reshape."""
    source, result = first.required(0), node.output
    shape = result.type.static_shape
    if shape is None or not source.type.is_static:
        return False
    is_needless = source.type.static_shape == shape and not result.is_output
    target = _target_shape(node, source, shape, fixed)
    if target is None and not is_needless:
        return False
    with rw.rewrite("cancel reshapes", node, exactness=Exactness.EXACT):
        value = source
        for step in between:
            value = rw.resize(step, step.op, [value, *step.inputs[1:]]).output
        if target is None or is_needless:
            rw.replace_uses(result, value)
            rw.erase(node)
        else:
            rw.replace(node, Reshape(target), [value])
        if not first.output.use_count:
            rw.erase(first)
    return not is_needless


def _target_shape(
    node: Node, source: Value, shape: tuple[int, ...], fixed: bool
) -> tuple[int | None, ...] | None:
    """The shape of a Reshape; ``None`` for the sizes that ``node`` copies from its input, if ``source`` has them too.

    If known sizes are not fixed, one other open size is left to the number of elements; with more of them there is no such shape.
    """
    known = source.type.shape or ()
    given = node.op.shape if isinstance(node.op, Reshape) else shape
    made = [
        None if want is None and i < len(known) and known[i] == size else size
        for i, (want, size) in enumerate(zip(given, shape, strict=True))
    ]
    open_sizes = [i for i, want in enumerate(given) if want in (None, -1) and made[i] is not None]
    if open_sizes and not fixed:
        if len(open_sizes) > 1:
            return None
        made[open_sizes[0]] = -1
    return tuple(made)

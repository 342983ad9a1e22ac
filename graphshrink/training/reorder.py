"""The same order of channels for several networks with the same layers: a trained network and its earlier checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..api import load
from ..ir import Rewriter, UsageError
from ..ir.analysis import ChannelGroup, channel_groups
from ..passes import Context, PermuteChannels
from ..passes.channels.apply import apply_permutations
from ..passes.channels.permute_channels import group_key
from ..running.sessions import running_module


def reorder_alike(
    model: Any,
    others: Sequence[Any],
    *,
    order: PermuteChannels | None = None,
    example_inputs: Any = None,
) -> list[Any]:
    """Reorder the channels of a network for N:M sparsity, and those of other networks in the same way.

    Masks of the pruned first network then fit the others, such as an early checkpoint to which the remaining weights are
    rewound. None of the given models is changed.

    Args:
        model: The module or ``ModelProto`` whose weights determine the order.
        others: Networks with the same layers and other weights.
        order: The search and its options; ``PermuteChannels()`` if not given.
        example_inputs: As for :func:`graphshrink.shrink_graph`.

    Returns:
        The reordered networks, the first one first.

    Raises:
        UsageError: If another network has different channels.
    """
    graph, kind = load(model, example_inputs)
    found = (order or PermuteChannels()).orders(graph, Rewriter(graph), Context(target=kind))
    made = []
    for i, other in enumerate([model, *others]):
        own, target = (graph, kind) if i == 0 else load(other, example_inputs)
        groups = {str(group_key(g)): g for g in channel_groups(own)}
        orders = []
        for group, permutation, _ in found:
            same: ChannelGroup | None = groups.get(str(group_key(group)))
            if same is None:
                raise UsageError(
                    f"network {i} of others has no channel group like {group.name}: "
                    "it must have the same layers, under the same names"
                )
            orders.append((same, permutation))
        apply_permutations(own, Rewriter(own), orders)
        made.append(_emitted(own, target))
    return made


def _emitted(graph: Any, target: str) -> Any:
    if target == "onnx":
        from ..targets.onnx.emitter import to_onnx

        return to_onnx(graph)
    return running_module(graph)


__all__ = ["reorder_alike"]

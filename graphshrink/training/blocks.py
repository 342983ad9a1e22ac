"""Masks of permuted blocks, for training in the caller's own loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ..ir import UsageError


def insert_blocks(
    model: Any,
    blocks: int = 4,
    *,
    example_inputs: Any = None,
    layers: str | Sequence[str] = (),
    draw: Literal["random", "weights"] = "random",
    divide: Literal["refuse", "pad"] = "refuse",
    seed: int = 0,
) -> Any:
    """Put masks of permuted blocks on the weights of a torch model, so that it can be trained with them.

    Train the result in your own loop; then the pass ``pivot{blocks=...}`` turns the layers into dense blocks, exactly.

    Args:
        model: A ``GraphModule``, ``nn.Module`` or ``ExportedProgram`` in evaluation mode. It is not changed, but it shares
            its parameters without a mask with the result, so that training changes both.
        blocks: The number of blocks; a masked layer keeps 1/blocks of its weights.
        example_inputs: A tuple of inputs, for the shapes.
        layers: Names of layers, or patterns with ``*`` and ``?``; all dense layers, convolutions and recurrent layers if not given.
        draw: ``"random"`` draws the blocks, for training from the start; ``"weights"`` chooses the blocks that keep most of the
            present weights, for fine-tuning.
        divide: ``"pad"`` allows a smaller last block where the number of channels is not a multiple of ``blocks``.
        seed: The seed of the random draw.

    Returns:
        A ``GraphModule`` in evaluation mode, whose masks are parametrizations (:func:`graphshrink.nn.masks`).

    Raises:
        UsageError: If the model is not a torch model, or an option is wrong.
        PassError: If no layer can be masked; the message has the reasons.
    """
    from ..api import is_torch, shrink
    from ..passes import MaskBlocks, PassError

    if not is_torch(model):
        raise UsageError(
            f"blocks are trained in torch: give a torch model, not a {type(model).__name__}"
        )
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    try:
        step = MaskBlocks(blocks=blocks, draw=draw, layers=names, divide=divide)
    except ValueError as error:
        raise UsageError(f"insert_blocks: {error}") from error
    result = shrink(model, [step, "prune-dead"], example_inputs=example_inputs, seed=seed)
    record = result.report.passes[0]
    if not record.rewrites:
        reasons = "; ".join(f"{r.node}: {r.reason}" for r in record.refusals[:5])
        raise PassError(f"insert_blocks: no layer can be masked ({reasons or 'there are none'})")
    return result.model


__all__ = ["insert_blocks"]

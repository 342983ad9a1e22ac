"""Views of a torch module's own tensors: constants too, whose numbers are only moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ir
from ..ir import LazyTensor, Node, Op

_Move = Callable[[Any], Any]


def fold_view(node: Node) -> None:
    """Let the result of a view of a constant be known; the node stays and computes it."""
    x = node.inputs[0] if node.inputs else None
    if x is None or x.data is None or len(node.outputs) != 1:
        return
    result, move, data = node.output.type.static_shape, _move(node.op), x.data
    if result is None or move is None or any(v is not None for v in node.inputs[1:]):
        return

    def load() -> Any:
        return move(data.numpy()).reshape(result)

    node.output.data = LazyTensor(result, data.dtype, load, source=data)


def _move(op: Op) -> _Move | None:
    match op:
        case ir.Unsqueeze() | ir.Squeeze() | ir.Reshape() | ir.Flatten() | ir.Identity():
            return lambda array: array
        case ir.Transpose(perm):
            return lambda array: np.transpose(array, perm)
    return None

"""``push-pads``: a padding that several convolutions read becomes part of each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...ir import Conv, Graph, Node, Pad, Rewriter, Value, sketch
from ..infra.contract import Context, Pass
from ..infra.registry import register


@register
@dataclass(frozen=True)
class PushPads(Pass):
    """Let convolutions pad by themselves where all readers of a padding by zeros are convolutions; exact."""

    name = "push-pads"
    asks_first = True

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        for node in graph.nodes:
            if isinstance(node.op, Pad) and node.output.data is None and node.output.use_count > 1:
                _push(node, node.op, rw)


def _push(node: Node, op: Pad, rw: Rewriter) -> None:
    half = len(op.pads) // 2
    outer = (*op.pads[:2], *op.pads[half : half + 2])
    if op.mode != "constant" or op.value != 0 or min(op.pads) < 0 or any(outer):
        return None
    added = (*op.pads[2:half], *op.pads[half + 2 :])
    made: list[tuple[Node, Conv, list[Value | None]]] = []
    for user, index in node.output.uses:
        is_conv = isinstance(user.op, Conv) and index == 0 and len(user.op.pads) == len(added)
        if not is_conv or node.output.is_output:
            return rw.skip(node, "not all that read the padding are convolutions")
        assert isinstance(user.op, Conv)
        if min(user.op.pads) < 0:
            return rw.skip(node, "a convolution that reads the padding crops its input")
        both = tuple(a + b for a, b in zip(user.op.pads, added, strict=True))
        inputs = [node.required(0), *user.inputs[1:]]
        conv = replace(user.op, pads=both)
        reason = rw.unwritable(sketch(conv, inputs))
        if reason is not None:
            return rw.skip(user, reason)
        made.append((user, conv, inputs))
    with rw.rewrite("pad in each convolution", node, *(user for user, _, _ in made)):
        for user, conv, inputs in made:
            rw.replace(user, conv, inputs)
        rw.erase(node)
    return None

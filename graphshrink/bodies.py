"""Bodies of If, Loop, Scan and SequenceMap: each is shrunk as a graph of its own, inner ones first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from .hosts.onnx import is_from_onnx
from .ir import Exactness, Graph, Node, Rewriter
from .passes import Context, Pass, PassError, PassRecord, Pipeline

if TYPE_CHECKING:
    from .frontends.onnx.bodies import Body


@dataclass(frozen=True)
class ShrinkBodies(Pass):
    """Run the exact ones of some passes on the bodies of If, Loop, Scan and SequenceMap; exact.

    Args:
        passes: The passes; those that are not exact are left out, with the reason.
    """

    name: ClassVar[str] = "bodies"
    asks_first: ClassVar[bool] = True
    passes: tuple[Pass, ...] = field(default=())

    def __str__(self) -> str:
        return self.name

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        """Shrink the bodies of each node, and let the node have them."""
        from .frontends.onnx.bodies import nodes_with_bodies, read_bodies, scope_names

        reserved: frozenset[str] | None = None
        for node in list(nodes_with_bodies(graph)):
            for step in self.passes:
                if step.exactness is not Exactness.EXACT:
                    rw.skip(node, f"{step.name} is not exact: it does not run on bodies")
            reserved = scope_names(graph) if reserved is None else reserved
            changed: dict[str, tuple[Graph, frozenset[str]]] = {}
            for body in read_bodies(graph, node, reserved):
                if self._shrink(body, node, rw, ctx):
                    changed[body.name] = (body.graph, body.captured)
            if changed:
                _write(graph, node, changed, rw)

    def _shrink(self, body: Body, node: Node, rw: Rewriter, ctx: Context) -> bool:
        """Run the passes on a body; returns whether it changed."""
        from .targets.onnx.emitter import node_count, unwritable

        steps = [step for step in self.passes if step.exactness is Exactness.EXACT]
        inner = Context(
            seed=ctx.seed,
            target=ctx.target,
            unwritable=unwritable(body.graph),
            host_nodes=node_count(body.graph),
        )
        where = f" in {body.name} of {node.name}"
        try:
            records = body_pipeline(Pipeline(steps), body.graph).run(body.graph, inner)
        except PassError as error:
            if error.__cause__ is not None:
                raise
            # Options and conditions of the passes may fit the graph and not the body.
            rw.skip(node, f"{body.name} stays as it is: {error}")
            return False
        _record(records, where, rw)
        rw.graph.notes += [f"{note}{where}" for note in body.graph.notes]
        return body.resolved or any(r.rewrites and not r.rolled_back for r in records)


def body_pipeline(pipeline: Pipeline, graph: Graph) -> Pipeline:
    """A pipeline that starts with the bodies of a graph from ONNX; the given one if there are none."""
    if not pipeline.passes or not is_from_onnx(graph):
        return pipeline
    from .frontends.onnx.bodies import nodes_with_bodies

    if next(nodes_with_bodies(graph), None) is None:
        return pipeline
    return Pipeline([ShrinkBodies(pipeline.passes), *pipeline.passes])


def bodies_of(graph: Graph) -> Iterator[Body]:
    """All bodies in a graph, each before those that are nested in it."""
    if not is_from_onnx(graph):
        return
    from .frontends.onnx.bodies import nodes_with_bodies, read_bodies

    for node in nodes_with_bodies(graph):
        for body in read_bodies(graph, node, frozenset()):
            yield body
            yield from bodies_of(body.graph)


def _record(records: list[PassRecord], where: str, rw: Rewriter) -> None:
    for record in records:
        own = "" if record.text == ShrinkBodies.name else where
        rw.include(record.rewrites, record.refusals, own)


def _write(
    graph: Graph, node: Node, changed: dict[str, tuple[Graph, frozenset[str]]], rw: Rewriter
) -> None:
    """Give a node other bodies; what they capture are inputs of the node."""
    from .hosts.onnx.origins import OnnxHost, OnnxOrigin
    from .hosts.onnx.scopes import captures
    from .targets.onnx.bodies import with_bodies

    host: OnnxHost = graph.host
    origin: OnnxOrigin = node.origin
    (index,) = origin.nodes
    made, tensors = with_bodies(host.node(index), changed)
    count = len(made.input)
    outer = dict(zip(origin.inputs, node.inputs, strict=True))
    names = captures(made)
    with rw.rewrite("smaller bodies", node):
        for name in names:
            if name in tensors:
                outer[name] = rw.constant(tensors[name], name)
        inputs = [*node.inputs[:count], *(outer[name] for name in names)]
        rw.replace(node, node.op, inputs)
        node.origin = replace(origin, inputs=(*origin.inputs[:count], *names))
        graph.host = replace(host, rewritten={**host.rewritten, index: made})


__all__ = ["ShrinkBodies", "bodies_of", "body_pipeline"]

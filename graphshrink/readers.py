"""Reading models for targets, which do not import frontends themselves.

A torch model can be read in several ways. A traced module computes shapes in Python (``x.shape[0]``) and contains modules
that are one call (``nn.LSTM``), and both may be opaque to the IR. ``torch.export`` resolves the former, ``torch.onnx``
decomposes the latter. Both start from the module of the graph after all passes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .hosts.torch import is_from_torch
from .ir import Graph, Opaque, Tensor, TensorType
from .ir.errors import listed


class HostReaders:
    """Reads files and torch models; see :class:`graphshrink.targets.emitted.Readers`."""

    def file(self, path: Path) -> Graph:
        """The graph of an ONNX file."""
        from .frontends.onnx import from_onnx

        return from_onnx(path)

    def types(
        self, model: Any, tensors: Mapping[str, Tensor], base_dir: Path | None
    ) -> dict[str, TensorType]:
        """The types of all values of an ONNX model."""
        from .frontends.onnx.importer import value_types

        return value_types(model, tensors, base_dir)

    def again(self, graph: Graph) -> Iterator[tuple[str, Graph]]:
        """Other readings of a graph, each with the words for it: a torch model by other exporters, an ONNX model with operators written out."""
        if is_from_torch(graph):
            return readings(graph)
        return _written_out(graph)

    def sized(self, graph: Graph, *, export: bool = False) -> Iterator[tuple[str, Graph]]:
        """Another reading of a torch model for inputs as large as the example inputs: of the module as it is, or by ``torch.export``."""
        from .hosts.torch.calls import is_aten

        inputs = graph.host.inputs or graph.host.exported
        exported = any(is_aten(node.target) for node in graph.host.order.values())
        if inputs is None or (export and exported):
            return
        name, read = (" by torch.export", _sized_export) if export else ("", _sized)
        try:
            with _quiet():
                found = read(graph, inputs)
        except Exception as error:  # torch.export may raise anything.
            logging.getLogger(__name__).info("the model cannot be read again%s: %s", name, error)
            return
        yield f"read again{name} for the sizes of example_inputs", found


_MOST_BYTES = 1 << 30
"""Operators of larger ONNX models are not written out, because that takes copies of the whole model."""


def _written_out(graph: Graph) -> Iterator[tuple[str, Graph]]:
    """Read an ONNX model again, with opaque operators written as several others; yields nothing if there are none."""
    import onnx
    from onnx import inliner

    from .frontends.onnx.importer import from_onnx
    from .frontends.onnx.written_out import OPERATORS, written_out
    from .hosts.onnx.tensors import embed, tensors_in
    from .passes import Pipeline
    from .targets.onnx import to_onnx

    opaque = {n.op.kind.partition(":")[2] for n in graph.nodes if isinstance(n.op, Opaque)}
    known = {name for name in opaque if onnx.defs.has(name)}
    model = to_onnx(graph)
    known |= OPERATORS & {node.op_type for node in model.graph.node}
    if not known and not model.functions:
        return
    base_dir = getattr(graph.host, "base_dir", None)
    if model.ByteSize() > _MOST_BYTES:
        return
    if base_dir is not None:
        embed(tensors_in(model), base_dir)
    functions = [f.name for f in model.functions]
    if functions:
        model = inliner.inline_local_functions(model)
        known |= {n.op_type for n in model.graph.node if onnx.defs.has(n.op_type)} & OPERATORS
    model, found = written_out(model, known)
    found = [*functions, *found]
    if found:
        made = from_onnx(model, inline=True)
        Pipeline("fold-constants,prune-dead").run(made)
        yield f"with {listed(found)} written out", made


def readings(graph: Graph) -> Iterator[tuple[str, Graph]]:
    """Read the model again by ``torch.export``, then through ONNX; yields the words for it and the graph of each that works."""
    for name, read in (("torch.export", _exported), ("torch.onnx", _through_onnx)):
        try:
            with _quiet():
                found = read(graph)
        except (
            Exception
        ) as error:  # The exporters may raise anything; the error of the first reading is kept.
            logging.getLogger(__name__).info("%s cannot read the model: %s", name, error)
            continue
        yield f"by {name}", found


def _exported(graph: Graph) -> Graph:
    import torch

    from .frontends.torch.export import from_export
    from .targets.torch.emitter import example_inputs_of, to_fx

    program: Any = torch.export.export(to_fx(graph), example_inputs_of(graph))
    return _folded(from_export(program), graph)


def _sized(graph: Graph, inputs: tuple[Any, ...]) -> Graph:
    from .frontends.torch.importer import from_fx
    from .targets.torch.emitter import to_fx

    return from_fx(to_fx(graph), inputs, fixed_sizes=True)


def _sized_export(graph: Graph, inputs: tuple[Any, ...]) -> Graph:
    from .frontends.torch.export import exported, from_export
    from .targets.torch.emitter import to_fx

    program = exported(to_fx(graph), inputs).program
    return _folded(from_export(program, inputs, fixed_sizes=True), graph)


def _through_onnx(graph: Graph) -> Graph:
    from .frontends.onnx import from_onnx
    from .targets.onnx.torch_exporter import exported

    return _folded(from_onnx(exported(graph)), graph)


def _folded(found: Graph, graph: Graph) -> Graph:
    """The graph with constants folded, and with the names of inputs and outputs of the first reading."""
    from .passes import Pipeline

    Pipeline("fold-constants,prune-dead").run(found)
    if len(found.inputs) == len(graph.inputs):
        for ours, theirs in zip(found.inputs, graph.inputs, strict=True):
            ours.host = theirs.name
    if len(found.outputs) == len(graph.outputs):
        found.output_names[:] = graph.output_names
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide torch's messages about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

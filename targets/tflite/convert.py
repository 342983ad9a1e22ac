"""From a graph to a flat model: emission, the error that lists all refusals, and the file's description and metadata."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from ...hosts.torch import is_from_torch
from ...ir import Graph, ModelError
from ..emitted import Readers
from ..refusals import refusal_text
from ..version import __version__
from .emitter import HALF_FROM, Emitter, signature_names
from .flat import FlatModel, FlatTensor
from .layout import Layout, channels_last

if TYPE_CHECKING:
    from ..options import TFLiteOptions

METADATA = "graphshrink"
"""The name of our entry in the file's metadata: JSON with the version and the layout of every input and output."""


def flat_model(
    graph: Graph, options: TFLiteOptions, readers: Readers | None = None
) -> tuple[FlatModel, list[str], dict[str, Any]]:
    """Return the flat model, notes for the user, and data for the report.

    Args:
        graph: The graph.
        options: The target's options.
        readers: Reads a torch model again if the graph has calls that cannot be written; without it, they are an error.

    Raises:
        ModelError: If there are ops that cannot be written; it names all of them.
    """
    emitter, reading = _written_emitter(graph, options, readers)
    model = emitter.model
    described = _signature(emitter)
    summary = ", ".join(described[kind] for kind in ("inputs_text", "outputs_text"))
    model.description = f"graphshrink {__version__}; {summary}"
    content = {
        "version": __version__,
        "inputs": described["inputs"],
        "outputs": described["outputs"],
    }
    model.metadata[METADATA] = json.dumps(content, sort_keys=True).encode()
    codes = Counter(operation.code for operation in model.operations)
    data = {
        "inputs": described["inputs"], "outputs": described["outputs"],
        "operations": dict(sorted(codes.items())),
    }  # fmt: skip
    notes = [summary, *reading, *emitter.notes]
    if options.weights == "float16" and not emitter.halved:
        notes.append(
            f"no weight became float16: only float32 weights of {HALF_FROM} numbers or more do"
        )
    return model, notes, data


def _written_emitter(
    graph: Graph, options: TFLiteOptions, readers: Readers | None
) -> tuple[Emitter, list[str]]:
    """Return an emitter that has written the whole graph, or another reading of its torch model, and notes on the reading."""
    names = signature_names(graph)

    def emit(read: Graph) -> Emitter:
        read = _under_own_names(read)
        kept = len(read.inputs) == len(names[0]) and len(read.outputs) == len(names[1])
        made = Emitter(
            read,
            keep_nchw=options.keep_nchw_io,
            float16=options.weights == "float16",
            names=names if kept else None,
        )
        made.run()
        return made

    first = emit(graph)
    if not first.refusals:
        return first, []
    refused = first.refusals
    for how, other in () if readers is None else readers.again(graph):
        second = emit(other)
        if not second.refusals:
            return second, [
                f"read again {how}: the first reading has calls that cannot be written as TFLite"
            ]
        # The error names what is left in the reading that comes closest.
        refused = min(refused, second.refusals, key=len)
    advice = "; try via='litert-torch', which needs its own extra" if is_from_torch(graph) else ""
    raise ModelError(f"{refusal_text(refused, 'TFLite')}{advice}")


def _under_own_names(graph: Graph) -> Graph:
    """A graph from torch under the names of its module, as ONNX files have them; another graph, or one that cannot be written, as it is."""
    if not is_from_torch(graph):
        return graph
    from ..onnx.from_torch import hostless, needed

    wanted = needed(graph, any_batch=False)
    typed = all(v.type.is_static and v.type.dtype for v in graph.inputs)
    if wanted.unknown() or not typed:
        return graph
    return hostless(graph, wanted, any_batch=False)[0]


def _signature(e: Emitter) -> dict[str, Any]:
    """Return the stored order of axes of each input and output, and a text for people of both."""
    found: dict[str, Any] = {}
    pairs = {
        "inputs": [(name, tensor, e.placed[v][1]) for (name, tensor), v in zip(e.model.inputs, e.graph.inputs, strict=True)],
        "outputs": [(name, tensor, e.placed[v][1]) for (name, tensor), v in zip(e.model.outputs, e.graph.outputs, strict=True)],
    }  # fmt: skip
    for kind, entries in pairs.items():
        found[kind] = {name: list(layout.perm) for name, _, layout in entries}
        shown = ", ".join(_shown(*entry) for entry in entries)
        found[f"{kind}_text"] = f"{kind} {shown}"
    return found


def _shown(name: str, tensor: FlatTensor, layout: Layout) -> str:
    sizes = "x".join("?" if d < 0 else str(d) for d in tensor.shape)
    order = ""
    if layout.rank > 2 and layout == channels_last(layout.rank):
        order = " channels last"
    return f"{name} {tensor.dtype.lower()}[{sizes}]{order}"

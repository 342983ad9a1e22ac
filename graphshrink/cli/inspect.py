"""The command ``inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..ir.errors import UsageError
from .parameters import Json
from .terminal import Name, console, show

if TYPE_CHECKING:
    from ..ir import Graph


def inspect(
    source: Annotated[
        str, typer.Argument(metavar="MODEL", help="The ONNX or .tflite file to read.")
    ],
    as_json: Json = False,
    text: Annotated[bool, typer.Option("--text", help="Print the whole graph.")] = False,
    trt_log: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Show which weights got sparse kernels, from a log or layer information of trtexec.",
        ),
    ] = None,
    sparsity: Annotated[
        bool,
        typer.Option("--sparsity", help="Show instead what N:M sparsity would do to each weight."),
    ] = False,
    pattern: Annotated[
        str | None, typer.Option(metavar="N:M", help="The pattern of --sparsity; 2:4 if not given.")
    ] = None,
) -> None:
    """Show what a model consists of."""
    if source.endswith(".tflite"):
        _inspect_tflite(source, as_json, text)
        return
    if trt_log is not None:
        _inspect_sparse_kernels(source, trt_log, as_json)
        return
    if pattern is not None and not sparsity:
        raise UsageError("--pattern goes with --sparsity")
    if sparsity:
        _inspect_sparsity(source, pattern, as_json)
        return
    from ..api import load

    graph, _ = load(source)
    if text and not as_json:
        typer.echo(str(graph), nl=False)
        return
    _show_graph(graph, as_json)


def _show_graph(graph: Graph, as_json: bool) -> None:
    """Signature, size and structure of a graph."""
    from ..not_understood import not_understood
    from ..report import size_table, size_with_bodies

    opaque = not_understood(graph)
    size = size_with_bodies(graph)
    notes = [*graph.notes, *size.notes]
    count, depth = _count_regions(graph)
    inputs = {v.name: str(v.type) for v in graph.inputs}
    outputs = {n: str(v.type) for n, v in zip(graph.output_names, graph.outputs, strict=True)}
    if as_json:
        signature = {"inputs": inputs, "outputs": outputs}
        structure = {"regions": {"count": count, "depth": depth}, "notes": notes}
        listed = {"not_understood": [entry.to_dict() for entry in opaque]}
        typer.echo(json.dumps({**signature, **vars(size), **structure, **listed}, indent=1))
        return
    for name, type_ in inputs.items():
        typer.echo(f"input  {name}: {type_}")
    for name, type_ in outputs.items():
        typer.echo(f"output {name}: {type_}")
    out = console()
    show(out, size_table(size))
    out.print(f"{count:,} single-entry single-exit regions, nested {depth} deep", highlight=False)
    for entry in opaque:
        out.print(f"not understood: {entry}", markup=False, highlight=False, soft_wrap=True)
    for note in notes:
        out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _count_regions(graph: Graph) -> tuple[int, int]:
    """The number of single-entry single-exit regions of a graph, and how deep they are nested."""
    from ..ir.analysis import regions

    root = regions(graph)
    depths = {root: 0}
    for region in root.walk():
        for child in region.children:
            depths[child] = depths[region] + 1
    return len(depths) - 1, max(depths.values())


def _inspect_sparse_kernels(source: str, log: str, as_json: bool) -> None:
    """Show which weights of a model have the 2:4 pattern, and which of them got sparse kernels from TensorRT."""
    from ..api import load
    from ..targets.tensorrt.sidecar import sparse_layers
    from ..targets.tensorrt.trtexec_log import read_report, with_engine_results

    report = read_report(log)
    rows = with_engine_results(sparse_layers(load(source)[0]), report)
    if as_json:
        found = {key: value for key, value in report.to_dict().items() if key != "layers"}
        typer.echo(json.dumps({**found, "weights": rows}, indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("layer", "shape", "2:4 holds", "eligible", "likely", "engine", "kernel")
    for row in rows:
        marks = ["yes" if row[key] else "no" for key in ("valid", "eligible", "likely")]
        shape = "x".join(map(str, row["shape"]))
        name = Name(", ".join(row["nodes"]))
        kernel = escape(row["kernel"] or "-")
        table.add_row(name, shape, *marks, row["engine"] or "not named", kernel)
    out = console()
    show(out, table)
    time = "" if report.milliseconds is None else f"; {report.milliseconds} ms (median)"
    out.print(
        f"{report.eligible} layers with the pattern in the engine, {report.sparse} of them with sparse "
        f"kernels{time}",
        highlight=False,
        soft_wrap=True,
    )
    if rows and not any(row["engine"] for row in rows):
        typer.echo(f"note: {log} names no node of {source}: is it the log of this model?")


def _inspect_sparsity(source: str, text: str | None, as_json: bool) -> None:
    """Show what an N:M pattern would do to each weight; ``text`` is the pattern, 2:4 if ``None``."""
    from ..api import load
    from ..ir import Pattern
    from ..sparsity import narrow_table, sparsity, sparsity_dict, sparsity_table

    try:
        pattern = Pattern.of(text) if text is not None else Pattern()
    except ValueError as error:
        raise UsageError(f"--pattern: {error}") from error
    rows = sparsity(load(source)[0], pattern)
    if as_json:
        typer.echo(json.dumps(sparsity_dict(rows, pattern), indent=1))
        return
    out = console()
    if not out.is_terminal:
        show(out, sparsity_table(rows, pattern))
        return
    table, reasons = narrow_table(rows, pattern)
    show(out, table)
    for number, reason in enumerate(reasons, 1):
        out.print(f"({number}) {reason}", markup=False, highlight=False)


def _inspect_tflite(source: str, as_json: bool, text: bool) -> None:
    from ..running.litert import LiteModel

    if text:
        raise UsageError(f"--text prints graphs of the IR, and {source} does not become one")
    model = LiteModel(Path(source))
    if as_json:
        typer.echo(json.dumps(model.to_dict(), indent=1))
    else:
        model.render(console())

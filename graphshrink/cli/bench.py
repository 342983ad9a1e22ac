"""The command ``bench``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..ir.errors import ModelError, UsageError
from .parameters import Json, whole_number
from .progress import count_done
from .terminal import console, fixed_shapes_of, show

if TYPE_CHECKING:
    from ..ir import Graph
    from ..planning.latency.network import Piece
    from ..planning.latency.store import Store
    from ..planning.latency.table import Latency, LatencyTable

_DEVICE = "ort-cpu"


def bench(
    source: Annotated[
        str | None, typer.Argument(metavar="[MODEL.onnx]", help="The model whose ops are timed.")
    ] = None,
    device_name: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="ort-cpu (the default), litert-cpu, torch-cpu, torch-cuda or tensorrt.",
        ),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            parser=whole_number(0, 256), metavar="N", help="Threads of the runtime; 0 uses all."
        ),
    ] = 1,
    fix_shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:1x3x224x224",
            help="The shape of an input, as for shrink; may be given several times.",
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The file of the tables; by default GRAPHSHRINK_LATENCY_DB, or one in the user's cache folder.",
        ),
    ] = None,
    shown: Annotated[bool, typer.Option("--show", help="Show what the tables hold.")] = False,
    cleared: Annotated[
        bool, typer.Option("--clear", help="Remove the measurements, or those of --device.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Time each op of a model on a device, and keep the figures in a table."""
    if (source is not None) + shown + cleared != 1:
        raise UsageError("give one of MODEL.onnx, --show and --clear")
    from ..planning.latency.store import Store
    from ..planning.latency.table import default_path

    store = Store(default_path() if table is None else Path(table))
    if source is not None:
        _bench_model(source, device_name or _DEVICE, threads, fix_shape, store, as_json)
        return
    if device_name is not None:
        from ..planning.latency.devices import DEVICES

        if device_name not in DEVICES:
            raise UsageError(
                f"there is no device {device_name!r}; devices are {', '.join(DEVICES)}"
            )
    if cleared:
        count = store.clear(device_name)
        typer.echo(json.dumps({"removed": count}) if as_json else f"{count:,} measurements removed")
    else:
        _show_rows(store, device_name, as_json)


def _show_rows(store: Store, device: str | None, as_json: bool) -> None:
    rows = [row for row in store.rows() if device in (None, row.device)]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    found = Table("device", "ops", "ms", "spread", "rounds", "measured", "signature")
    for row in rows:
        # The first line of the text is the device, the last one the results.
        ops = [line.partition(" = ")[2].partition("(")[0] for line in row.text.splitlines()]
        kind = ", ".join(op for op in ops if op)
        if len(kind) > 60:
            kind = f"{kind[:57]}..."
        found.add_row(
            row.device, escape(kind), f"{row.milliseconds:.4f}", f"{row.spread:.4f}",
            str(row.rounds), row.measured_at, row.signature[:12],
        )  # fmt: skip
    show(console(), found)
    typer.echo(f"{len(rows):,} measurements in {store.path}")


@dataclass(frozen=True)
class _Line:
    """The pieces of a model that have one signature.

    Attributes:
        kind: The names of the ops.
        shapes: The types that it reads and gives.
        count: How many pieces there are.
        latency: The latency of one.
    """

    kind: str
    shapes: str
    count: int
    latency: Latency

    @property
    def total(self) -> float:
        """The milliseconds of all of them."""
        return self.count * self.latency.milliseconds


def _bench_model(
    source: str, name: str, threads: int, fix_shape: list[str] | None, store: Store, as_json: bool
) -> None:
    """Time the ops of a model and the whole of it."""
    from ..api import load
    from ..planning.latency.devices import device
    from ..planning.latency.network import pieces
    from ..planning.latency.table import LatencyTable

    where = device(name, threads)
    graph, _ = load(source, None, fixed_shapes_of(fix_shape))
    found, notes = pieces(graph)
    if not found:
        raise UsageError(
            f"{source} has no op that can be timed: {notes[0] if notes else 'it is empty'}"
        )
    table = LatencyTable(where, store.path)
    lines = _measured(table, found, notes)
    if not lines:
        raise UsageError(f"no op of {source} runs on {name}: {notes[0]}")
    whole = None
    if notes:
        notes.append("the whole network was not timed, because some of its ops cannot be")
    else:
        whole = _measured_graphs(table, [graph], "whole network")[0]
    total = sum(line.total for line in lines)
    if as_json:
        typer.echo(json.dumps(_as_dict(where.identity, lines, total, whole, notes), indent=1))
    else:
        _render(where.identity, lines, total, whole, notes)


def _measured(table: LatencyTable, found: list[Piece], notes: list[str]) -> list[_Line]:
    """Measure the pieces; those of one signature are one line, the slowest lines first.

    For pieces that the device refuses there are notes instead.
    """
    from ..planning.latency.signature import signature

    try:
        latencies = _measured_graphs(table, [piece.graph for piece in found], "ops")
    except ModelError:
        found, latencies = _measured_singly(table, found, notes)
    groups: dict[str, list[int]] = {}
    for i, piece in enumerate(found):
        groups.setdefault(signature(piece.graph, table.device), []).append(i)
    lines = [
        _Line(found[at[0]].kind, _shapes(found[at[0]].graph), len(at), latencies[at[0]])
        for at in groups.values()
    ]
    return sorted(lines, key=lambda line: -line.total)


def _measured_singly(
    table: LatencyTable, found: list[Piece], notes: list[str]
) -> tuple[list[Piece], list[Latency]]:
    """Measure one piece after the other; returns those that run, and their latencies."""
    run: list[Piece] = []
    latencies: list[Latency] = []
    for piece in found:
        try:
            latencies += _measured_graphs(table, [piece.graph], piece.kind)
            run.append(piece)
        except ModelError as error:
            notes.append(f"{piece.graph.name}: {error}")
    return run, latencies


def _measured_graphs(table: LatencyTable, graphs: list[Graph], what: str) -> list[Latency]:
    """Measure graphs under a bar; an interrupt says what is kept."""
    done, total = 0, 0

    def note(now: int, of: int) -> None:
        nonlocal done, total
        done, total = now, of
        bar(now, of)

    try:
        with count_done(what) as bar:
            return table.measure(graphs, progress=note)
    except KeyboardInterrupt:
        typer.echo(
            f"graphshrink: {done} of {total} measurements ({what}) are kept in {table.store.path}; "
            "the same command goes on with the others",
            err=True,
        )
        raise


def _shapes(graph: Graph) -> str:
    read = [str(v.type) for v in graph.inputs]
    weights = [str(v.type) for v in graph.constants if (v.type.rank or 0) > 1]
    made = [str(v.type) for v in graph.outputs]
    return f"{', '.join([*read, *weights])} -> {', '.join(made)}"


def _as_dict(
    device: str, lines: list[_Line], total: float, whole: Latency | None, notes: list[str]
) -> dict[str, Any]:
    ops = [
        {
            "op": line.kind, "shapes": line.shapes, "count": line.count, **asdict(line.latency),
            "share": line.total / total,
        }
        for line in lines
    ]  # fmt: skip
    return {
        "device": device,
        "ops": ops,
        "sum": total,
        "whole": None if whole is None else asdict(whole),
        "additivity": None if whole is None else whole.milliseconds / total,
        "notes": notes,
    }


def _render(
    device: str, lines: list[_Line], total: float, whole: Latency | None, notes: list[str]
) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("op", "shapes", "count", "ms each", "spread", "share")
    for line in lines:
        each, spread = line.latency.milliseconds, line.latency.spread
        table.add_row(
            escape(line.kind), escape(line.shapes), f"{line.count:,}", f"{each:.4f}",
            f"{spread:.4f}", f"{line.total / total:.1%}",
        )  # fmt: skip
    out = console()
    out.print(device, markup=False, highlight=False)
    show(out, table)
    text = f"sum {total:.3f} ms"
    if whole is not None:
        factor = whole.milliseconds / total
        text += f"; whole network {whole.milliseconds:.3f} ms, {factor:.2f} of the sum (additivity factor)"
    out.print(text, highlight=False)
    for note in notes:
        out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)

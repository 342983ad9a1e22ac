"""The command ``ops``: which hosts each op of the IR is read from, and which targets it is written to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import console, show

if TYPE_CHECKING:
    from ..op_table import Cell, Row


def ops(
    name: Annotated[
        str | None, typer.Argument(metavar="OP", help="An op, or a kind of one, to show in detail.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """List the ops: where each is read from and written to."""
    from ..op_table import op_rows, op_table

    table = op_table() if name is None else op_rows(name)
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in table], indent=1))
    elif name is None:
        _overview(table)
    else:
        _details(table)


def _overview(table: list[Row]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from ..op_table import columns, numbered

    lines, notes = numbered(table)
    shown = Table(*columns())
    for line in lines:
        shown.add_row(*map(escape, line))
    out = console()
    show(out, shown)
    for number, note in enumerate(notes, 1):
        out.print(f"{number:3} {escape(note)}")


def _details(table: list[Row]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from ..op_table import READ, WRITTEN, doc_of, files_of

    out = console()
    last = None
    for row in table:
        if row.key[0] is not last:
            last = row.key[0]
            out.print(escape(f"{last.__name__}: {doc_of(last)}\n"))
        shown = Table(row.name, "", "how", "limits, or why not")
        for label, names, cells in (("from", READ, row.read), ("to", WRITTEN, row.written)):
            for column, cell in cells.items():
                how = "\n".join(cell.rules)
                shown.add_row(
                    f"{label} {names[column]}", _word(cell), escape(how), escape(cell.note)
                )
        show(out, shown)
        places = files_of(row.key)
        for what, files in places.items():
            out.print(escape(f"  {what}: {', '.join(files)}"))


def _word(cell: Cell) -> str:
    return "?" if cell.has is None else "yes" if cell.has else "no"

"""The command ``passes``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from .parameters import Json
from .terminal import console, show


def passes(
    name: Annotated[
        str | None, typer.Argument(metavar="PASS", help="A pass to show alone, with its options.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the passes: ours and those of installed packages; or show one with its options."""
    from ..pass_table import row_of
    from ..passes import known_passes
    from ..passes.infra.registry import pass_class

    found = known_passes() if name is None else {name: pass_class(name)}
    rows = [row_of(each, cls) for each, cls in found.items()]
    data = [row.to_dict() for row in rows]
    if as_json:
        typer.echo(json.dumps(data, indent=1))
    elif name is None:
        _show_all(data)
    else:
        _show_one(data[0], rows[0].doc)


def _show_all(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("pass, option=default", "exactness", "what it does")
    for row in rows:
        table.add_row(row["name"], row["exactness"], escape(_plain(row["doc"])))
        for option in row["options"]:
            setting = escape(f"  {option['name']}={option['default']}")
            table.add_row(setting, "", escape(_plain(option["doc"])))
    show(console(), table)


def _show_one(row: dict[str, Any], doc: str) -> None:
    """One pass: what it does, its options with what they take, and how a pipeline names it."""
    from rich.markup import escape
    from rich.table import Table

    out = console()
    text = _plain(doc)
    out.print(f"{row['name']} ({row['exactness']})\n", markup=False, highlight=False)
    out.print(text, markup=False, highlight=False)
    options = row["options"]
    setting = ""
    if options:
        out.print()
        table = Table("option=default", "takes", "what it does")
        for option in options:
            default = escape(f"{option['name']}={option['default']}")
            table.add_row(default, escape(option["takes"]), escape(_plain(option["doc"])))
        show(out, table)
        given = next((o for o in options if o["default"] not in ("None", "[]")), options[0])
        setting = f"{{{given['name']}={given['default']}}}"
    line = f'graphshrink in.onnx out.onnx --passes "{row["name"]}{setting}"'
    out.print(f"\n{line}", markup=False, highlight=False, soft_wrap=True)


def _plain(doc: str) -> str:
    """A docstring without the marks of literals."""
    return doc.replace("``", "")

"""The command ``passes``."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .parameters import Json
from .terminal import console, show

if TYPE_CHECKING:
    from ..passes import Pass


def passes(
    name: Annotated[
        str | None, typer.Argument(metavar="PASS", help="A pass to show alone, with its options.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the passes: ours and those of installed packages; or show one with its options."""
    from ..passes import known_passes
    from ..passes.infra.registry import pass_class

    found = known_passes() if name is None else {name: pass_class(name)}
    rows = [_row(each, cls) for each, cls in found.items()]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif name is None:
        _show_all(rows)
    else:
        _show_one(rows[0], inspect.getdoc(found[name]) or "")


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
    text = _plain(doc.partition("\nAttributes:\n")[0]).strip()
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


def _row(name: str, cls: type[Pass]) -> dict[str, Any]:
    """A pass with its options, as plain data."""
    from ..ir.options import option_text, options_of

    doc = inspect.getdoc(cls) or ""
    options = [
        {
            "name": option.name,
            "takes": option.takes,
            "default": option_text(option.default),
            "doc": option.help,
        }
        for option in options_of(cls)
    ]
    first = doc.splitlines()[0] if doc else ""
    return {"name": name, "exactness": str(cls.exactness), "doc": first, "options": options}

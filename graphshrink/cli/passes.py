"""The command ``passes``."""

from __future__ import annotations

import inspect
import json
from typing import Any

import typer

from .parameters import Json
from .terminal import console, show


def passes(as_json: Json = False) -> None:
    """List the passes: ours and those of installed packages."""
    rows = _rows()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("pass, option=default", "exactness", "what it does")
    for row in rows:
        table.add_row(row["name"], row["exactness"], escape(_plain(row["doc"])))
        for option in row["options"]:
            setting = escape(f"  {option['name']}={option['default']}")
            table.add_row(setting, "", escape(_plain(option["doc"])))
    show(console(), table)


def _plain(doc: str) -> str:
    """A docstring without the marks of literals."""
    return doc.replace("``", "")


def _rows() -> list[dict[str, Any]]:
    """Every pass with its options, as plain data."""
    from ..ir.options import option_text, options_of
    from ..passes import known_passes

    rows: list[dict[str, Any]] = []
    for name, cls in known_passes().items():
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
        rows.append(
            {"name": name, "exactness": str(cls.exactness), "doc": first, "options": options}
        )
    return rows

"""The table of built-in passes as a document.

``python -m graphshrink.pass_table > docs/passes.md`` writes it; ``tests/contract/test_pass_table.py`` fails if it is out of date.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from typing import Any

from .ir.options import Option, option_text, options_of
from .passes import Pass
from .passes.infra.registry import BUILT_IN, pass_class

_HEAD = """# Passes

The built-in passes, in the order of their names. `make docs/passes.md` generates this file from the registry; `graphshrink passes` prints the same on the command line,
with the passes of installed packages, and `graphshrink passes pivot` shows one pass. The classes of exactness are in the
[README](../README.md#what-is-exact-and-what-is-not). *Default* marks the passes of the default pipeline.
"""


@dataclass(frozen=True)
class Row:
    """One pass.

    Attributes:
        name: Its name in pipelines.
        exactness: Its class: ``exact``, ``border`` or ``approximate``.
        doc: The docstring of the class, without its list of attributes.
        options: Its options, in the order of the fields.
    """

    name: str
    exactness: str
    doc: str
    options: tuple[Option, ...]

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0]

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data for JSON."""
        options = [
            {
                "name": option.name,
                "takes": option.takes,
                "default": option_text(option.default),
                "doc": option.help,
            }
            for option in self.options
        ]
        return {
            "name": self.name,
            "exactness": self.exactness,
            "doc": self.summary,
            "options": options,
        }


def row_of(name: str, cls: type[Pass]) -> Row:
    """The row of a pass."""
    doc = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")[0].strip()
    return Row(name, str(cls.exactness), doc, tuple(options_of(cls)))


def pass_table() -> list[Row]:
    """The rows of the built-in passes, by name."""
    return [row_of(name, pass_class(name)) for name in sorted(BUILT_IN)]


def markdown(table: list[Row]) -> str:
    """The table as a document: all passes, then the options of each pass that has some."""
    parts = [_HEAD, "| pass | exactness | default | what it does |", "| --- | --- | --- | --- |"]
    in_default = _default_passes()
    for row in table:
        link = f"[{row.name}](#{row.name})" if row.options else row.name
        default = "yes" if row.name in in_default else ""
        parts.append(_line([link, row.exactness, default, _code(row.summary)]))
    for row in table:
        if not row.options:
            continue
        parts += ["", f"## {row.name}", "", _code(row.doc), ""]
        parts += ["| option | takes | default | what it does |", "| --- | --- | --- | --- |"]
        for option in row.options:
            cells = [f"`{option.name}`", option.takes, f"`{option_text(option.default)}`"]
            parts.append(_line([*cells, _code(option.help)]))
    return "\n".join(parts) + "\n"


def _default_passes() -> set[str]:
    """The names of the passes in the default pipeline."""
    from .passes.infra.default import DEFAULT_PIPELINE

    return set(re.findall(r"[a-z][a-z-]*", DEFAULT_PIPELINE)) & set(BUILT_IN)


def _code(text: str) -> str:
    """A docstring as Markdown: literals in backticks, and stars elsewhere as they are."""
    parts = text.split("``")
    parts[::2] = [part.replace("*", r"\*") for part in parts[::2]]
    return "`".join(parts)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    sys.stdout.write(markdown(pass_table()))

"""Helpers of the commands: the console and its tables, shapes from text, output files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import UsageError, read_number
from ..ir.files import resolve_output, write_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

STDOUT = "-"
"""Standard output as the name of an output file for text."""


def console() -> Console:
    """The console on standard output: with colours on a terminal (unless ``NO_COLOR`` is set), plain elsewhere."""
    from rich.console import Console

    # Without a terminal there is no width to respect, and wrapped lines are hard to search.
    return Console() if sys.stdout.isatty() else Console(width=200, highlight=False)


def show(out: Console, table: Table) -> None:
    """Print a table: with rules on a terminal, as plain columns elsewhere."""
    if not out.is_terminal:
        table.box = None
        table.pad_edge = False
        for column in table.columns:
            # Elsewhere names are whole for as long as other columns can be wrapped.
            column.no_wrap = any(isinstance(c, Name) for c in (column.header, *column.cells))
    out.print(table)


LEAST = 16
"""The width that a name takes at least, if it is as long."""


class Name:
    """A name in a table, which is shortened in the middle where it does not fit."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        yield Text(shortened(self.text, options.max_width))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.cells import cell_len
        from rich.measure import Measurement

        size = cell_len(self.text)
        return Measurement(min(size, LEAST), size)


def shortened(text: str, width: int) -> str:
    """A text that takes at most ``width`` characters, with an ellipsis in the middle if some are left out."""
    if len(text) <= width:
        return text
    if width < 2:
        return "\N{HORIZONTAL ELLIPSIS}"[:width]
    end = width // 2  # The end of a name or path says more than its start.
    return f"{text[: width - end - 1]}\N{HORIZONTAL ELLIPSIS}{text[-end:]}"


def shapes_of(texts: Iterable[str] | None) -> dict[str, tuple[int, ...]]:
    """Shapes by input name, from texts such as ``"x:1x3x224x224"``; ``"x:"`` is a scalar.

    Raises:
        UsageError: If a text is malformed or a name is given twice.
    """
    found = _shapes(texts, "--input", _size)
    return {name: tuple(d for d in shape if d is not None) for name, shape in found.items()}


def fixed_shapes_of(texts: Iterable[str] | None) -> dict[str, tuple[int | None, ...]]:
    """Like :func:`shapes_of`; a size of ``?`` is not changed (``None``).

    Raises:
        UsageError: If a text is malformed or a name is given twice.
    """
    return _shapes(texts, "--fix-shape", lambda d: None if d == "?" else _size(d))


def _size(text: str) -> int:
    """One size; ONNX and the runtimes keep sizes in 64 bits.

    Raises:
        ValueError: If it is not a number, or larger.
    """
    size = int(read_number(text, int))
    if size >= 1 << 63:
        raise ValueError(text)
    return size


def _shapes(
    texts: Iterable[str] | None, option: str, read: Callable[[str], int | None]
) -> dict[str, tuple[int | None, ...]]:
    found: dict[str, tuple[int | None, ...]] = {}
    for text in texts or ():
        name, colon, sizes = text.rpartition(":")
        try:
            shape = tuple(read(d) for d in sizes.split("x")) if sizes else ()
        except ValueError:
            colon = ""
        if not colon or not name or any(d is not None and d < 0 for d in shape):
            raise UsageError(f"{option} {text!r} is not NAME:SIZES, such as x:1x3x224x224")
        if name in found:
            raise UsageError(f"{option} gives the shape of {name!r} twice")
        found[name] = shape
    return found


def writable(path: str, suffix: str | None = None, text: bool = False) -> None:
    """Check that a file can be written, without opening it.

    Args:
        path: The file.
        suffix: The suffix that it must have.
        text: Whether it may also be a standard stream or the null device.

    Raises:
        UsageError: If its suffix is wrong, or nothing can be written there.
    """
    if "\0" in path:
        raise UsageError(f"cannot write {path!r}: a path cannot contain a NUL character")
    if suffix is not None and Path(path).suffix != suffix:
        raise UsageError(f"cannot write {path}: only {suffix} files can be written")
    resolve_output(path, text)


def write_json(path: str, data: Any) -> None:
    """Write JSON, whole or not at all; ``/dev/stdout`` is standard output.

    Raises:
        UsageError: If the file cannot be written.
    """
    write_text(path, json.dumps(data, indent=1) + "\n")

"""The table of ops: which hosts each op of the IR is read from, and which targets it is written to.

It has one row for each class of ops or, for a class like ``Unary`` whose ``kind`` chooses a function, one for each kind. The cells come
from the registered reading rules (:mod:`.frontends.support`) and spellings (:mod:`.targets.support`). The column of TensorRT compares
the operators of the ONNX spelling with NVIDIA's tables. Every *no* has a reason.

``python -m graphshrink.op_table > docs/ops.md`` writes the document; ``tests/contract/test_op_table.py`` fails if it is out of date.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .ir import Op, UsageError
from .ir.ops.rows import Key, rows, title

READ = {"onnx": "ONNX", "torch": "torch trace", "export": "torch.export"}
"""The columns of frontends, by the frontends' names of hosts."""

WRITTEN = {"onnx": "ONNX", "torch": "torch", "tflite": "TFLite", "tensorrt": "TensorRT"}
"""The columns of targets, by name."""

FORGOTTEN = "not registered"
"""The reason in a cell without a registration; a test fails if there is one."""


@dataclass(frozen=True)
class Cell:
    """Whether a host has an op.

    Attributes:
        has: ``True`` or ``False``; ``None`` if that is unknown because a package is missing.
        note: The limits, or the reason why not.
        rules: The rules that read or write it, one line each.
    """

    has: bool | None
    note: str = ""
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One op, or one kind of it.

    Attributes:
        key: The class and the kind.
        read: Cells by column of :data:`READ`.
        written: Cells by column of :data:`WRITTEN`.
    """

    key: Key
    read: dict[str, Cell]
    written: dict[str, Cell]

    @property
    def name(self) -> str:
        """``Conv``, ``Unary exp``."""
        return title(self.key)

    @property
    def cells(self) -> list[Cell]:
        """All cells in the order of the columns."""
        return [*self.read.values(), *self.written.values()]

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data for JSON."""
        op, kind = self.key

        def plain(cells: Mapping[str, Cell]) -> dict[str, Any]:
            return {
                c: {"has": v.has, "note": v.note, "rules": list(v.rules)} for c, v in cells.items()
            }

        return {
            "op": op.__name__,
            "kind": kind,
            "read": plain(self.read),
            "written": plain(self.written),
        }


def op_table() -> list[Row]:
    """The table, by the names of ops."""
    read = {host: _column(_readings, host) for host in READ}
    written = {
        "onnx": _column(_spellings, "onnx"),
        "torch": _column(_spellings, "torch"),
        "tflite": _column(_spellings, "tflite"),
        "tensorrt": _column(lambda _: _tensorrt(), "tensorrt"),
    }
    return [
        Row(key, {h: read[h](key) for h in read}, {t: written[t](key) for t in written})
        for key in rows()
    ]


def op_rows(name: str) -> list[Row]:
    """The rows of one op.

    Args:
        name: The name of a class of ops, or a kind (``"erf"``), in any case.

    Raises:
        UsageError: If there is none.
    """
    wanted = name.lower()
    found = [
        row
        for row in op_table()
        if wanted in (row.key[0].__name__.lower(), row.key[1], row.name.lower())
    ]
    if found:
        return found
    from .ir.options import suggestion

    names = sorted({part for key in rows() for part in (key[0].__name__, key[1]) if part})
    raise UsageError(f"there is no op {name!r}{suggestion(name, names)}")


def files_of(key: Key) -> dict[str, list[str]]:
    """Where an op is defined and written: the files of its class and of its spellings, relative to the package."""
    found = {"class": [_file(key[0])]}
    for target in ("onnx", "torch", "tflite"):
        try:
            spelling = _registry(target).table.get(key)
        except ImportError:
            continue
        if spelling is not None and spelling.rule is not None:
            found[target] = [_file(spelling.rule)]
    return found


_Column = Callable[[Key], Cell]


def _column(make: Callable[[str], _Column], name: str) -> _Column:
    """A column; if a package is missing, one whose cells name the extra."""
    try:
        return make(name)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package == __package__:
            raise
        extra = {"torch": "torch", "flatbuffers": "tflite", "ai_edge_litert": "tflite"}.get(package)
        text = f"needs the extra {extra!r}" if extra else f"needs the package {package!r}"
        return lambda key: Cell(None, text)


def _readings(host: str) -> _Column:
    from .frontends.support import holes, table

    readings, reasons = table(host), holes(host)

    def cell(key: Key) -> Cell:
        found = readings.get(key, [])
        if not found:
            return Cell(False, reasons.get(key, FORGOTTEN))
        rules = tuple(
            dict.fromkeys(
                f"{reading.name}{' (a pattern of nodes)' if reading.pattern else ''}"
                f"{': ' + reading.note if reading.note else ''}"
                for reading in found
            )
        )
        notes = [reading.note for reading in found]
        limits = "; ".join(dict.fromkeys(notes)) if all(notes) else ""
        if all(reading.pattern for reading in found):
            limits = "; ".join(("as a pattern of nodes", *([limits] if limits else ())))
        return Cell(True, limits, rules)

    return cell


def _registry(target: str) -> Any:
    """The registry of a target, after the import of its rules."""
    import_module(f".targets.{target}.spell", __package__)
    place = "emitter" if target == "tflite" else "speller"
    return import_module(f".targets.{target}.{place}", __package__).spells


def _spellings(target: str) -> _Column:
    table = _registry(target).table

    def cell(key: Key) -> Cell:
        spelling = table.get(key)
        if spelling is None or spelling.rule is None:
            return Cell(False, spelling.reason if spelling is not None else FORGOTTEN)
        doc = (inspect.getdoc(spelling.rule) or "").splitlines()
        rules = [" ".join(spelling.writes)] if spelling.writes else doc[:1]
        return Cell(True, spelling.note, tuple(rules))

    return cell


_LIMITS = {
    "pool-2d-3d": "2 or 3 spatial axes",
    "no-dilations": "no dilations",
    "zero-point": "zero points of 0",
    "resize": "not all modes",
}
"""Restrictions of TensorRT (:mod:`.targets.tensorrt.restrictions`) as notes."""

_HELD = {
    "constant-axis", "constant-axes", "first-output", "no-indices", "same-activations", "no-input-forget", "no-layout",
}  # fmt: skip
"""Restrictions that the ONNX spellings always satisfy."""


def _tensorrt() -> _Column:
    from .targets.tensorrt.lint import ALTERNATIVES
    from .targets.tensorrt.operators import newest, operators_of

    table, taken = _registry("onnx").table, operators_of(newest()).taken

    def cell(key: Key) -> Cell:
        spelling = table.get(key)
        if spelling is None or spelling.rule is None:
            return Cell(False, "it has no ONNX spelling")
        lacking = [name for name in spelling.writes if name not in taken]
        if lacking:
            said = [
                f"{n} (nearest: {ALTERNATIVES[n]})" if n in ALTERNATIVES else n for n in lacking
            ]
            return Cell(False, f"TensorRT {newest()} lacks {', '.join(said)}")
        rules = [rule for n in spelling.writes for rule in taken[n].rules]
        limits = dict.fromkeys(_LIMITS.get(rule, rule) for rule in rules if rule not in _HELD)
        types = [taken[n].types for n in spelling.writes]
        floats = all(not {"INT32", "INT64", "BOOL", "INT8"} & t for t in types)
        notes = (["of floats"] if floats else []) + list(limits)
        return Cell(True, ", ".join(notes), (" ".join(spelling.writes),))

    return cell


def _file(thing: Any) -> str:
    """The source file of a class or a function, relative to the root of the repository."""
    parts = thing.__module__.split(".")[1:]
    return f"{Path(*parts).as_posix()}.py"


# The document.

_HEAD = """# Ops

This table shows which hosts each op of the IR is read from, and which targets it is written to. `make docs/ops.md` generates this file;
`graphshrink ops` prints the table, `graphshrink ops Conv` the details of one op.

A cell is *yes* or *no*. A number in it refers to the notes below: the limits of a *yes*, or the reason of a *no*. A node that
cannot be read stays `Opaque`: passes do not change it, and targets copy it. If model and target are of the same kind
(ONNX to ONNX, torch to torch), only nodes that a pass made or changed need a spelling. The column of TensorRT is for the newest
version that has a table.
"""


def numbered(table: list[Row]) -> tuple[list[list[str]], list[str]]:
    """The cells of a table as short texts, and the notes that the numbers in them refer to.

    Returns:
        A list of texts for each row, the name first; and the notes, the first of number 1.
    """
    notes: dict[str, int] = {}

    def text(cell: Cell) -> str:
        word = "?" if cell.has is None else "yes" if cell.has else "no"
        return f"{word} {notes.setdefault(cell.note, len(notes) + 1)}" if cell.note else word

    return [[row.name, *map(text, row.cells)] for row in table], list(notes)


def columns() -> list[str]:
    """The heads of the columns."""
    return [
        "op",
        *(f"from {name}" for name in READ.values()),
        *(f"to {name}" for name in WRITTEN.values()),
    ]


def markdown(table: list[Row]) -> str:
    """The table as a document."""
    lines, notes = numbered(table)
    heads = columns()
    parts = [_HEAD, _line(heads), _line(["---"] * len(heads)), *map(_line, lines), ""]
    parts += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(parts) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def doc_of(op: type[Op]) -> str:
    """The docstring of an op."""
    return inspect.getdoc(op) or ""


if __name__ == "__main__":
    sys.stdout.write(markdown(op_table()))

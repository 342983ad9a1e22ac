"""The errors that are meant for the user: one line that names the thing and the remedy."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection


class GraphshrinkError(Exception):
    """The base of all errors that the user can do something about."""


class ModelError(GraphshrinkError):
    """A model cannot be read, or must not be (damaged, hostile, or of a kind that is not supported)."""


class UsageError(GraphshrinkError):
    """A call or an option is wrong; the message names it and the remedy."""


class TrainingError(GraphshrinkError):
    """Training has diverged: a loss or a weight is not finite."""


class MissingExtra(GraphshrinkError):
    """An optional package is needed and not installed."""

    def __init__(self, what: str, extra: str, package: str) -> None:
        super().__init__(
            f'{what} needs {package}, which is not installed: pip install "graphshrink[{extra}]"'
        )
        self.extra = extra
        self.package = package


def check_readable(path: str | os.PathLike[str], most: int | None = None) -> None:
    """Check that reading a file will end. Whether it is there, and what it holds, is for the reader.

    Args:
        path: The file.
        most: The most bytes that a file of its kind has.

    Raises:
        UsageError: If it is a device, a pipe or a socket, or larger.
    """
    try:
        found = os.stat(path)
    except OSError:
        return
    except ValueError as error:
        raise UsageError(f"{os.fspath(path)!r} is no path: {error}") from error
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{path} is a device or a pipe: give a regular file")
    if most is not None and found.st_size > most:
        raise UsageError(f"{path} has {found.st_size:,} bytes, such a file has at most {most:,}")


def read_number(text: str, kind: type[int] | type[float]) -> int | float:
    """A number as it is written in options: ASCII digits, finite, and of a sensible length.

    Args:
        text: What was written.
        kind: ``int`` or ``float``.

    Raises:
        ValueError: If it is none. Python itself also reads digits of other scripts, ``1_000``, ``inf`` and ``nan``.
    """
    form = _INT if kind is int else _FLOAT
    if len(text) > _LONGEST or not form.fullmatch(text):
        raise ValueError(text)
    number = kind(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(text)
    return number


_LONGEST = 40
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def check_input_name(name: str, known: Collection[str]) -> None:
    """Check that a model has an input of this name.

    Raises:
        UsageError: If it has not; the nearest name, or all names, are said.
    """
    if name not in known:
        import difflib  # Start-up counts.

        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"inputs are {', '.join(known)}"
        raise UsageError(f"the model has no input {name!r}; {hint}")

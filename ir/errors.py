"""Errors for the user (each one line that names the cause and the remedy), and checks of what the user gives."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Sequence
from pathlib import Path


class GraphshrinkError(Exception):
    """The base class of all errors that the user can remedy."""


class ModelError(GraphshrinkError):
    """A model is damaged, hostile or of an unsupported kind."""


class UsageError(GraphshrinkError):
    """A call or an option is wrong."""


class TrainingError(GraphshrinkError):
    """Training diverged: a loss or a weight is not finite."""


class MissingExtra(GraphshrinkError):
    """An optional package is needed but not installed."""

    def __init__(self, what: str, extra: str, package: str) -> None:
        super().__init__(
            f"{what} needs {package}, which is not installed: {install_command(extra)}"
        )
        self.extra = extra
        self.package = package


def install_command(extra: str) -> str:
    """The command that installs an extra: for a checkout with its folder, else by the name of the package."""
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file():
        return f'pip install -e "{_folder(root)}[{extra}]"'
    source = _installed_from()
    return f'pip install "{_folder(source) if source else "graphshrink"}[{extra}]"'


def _folder(path: Path) -> str:
    return "." if path == Path.cwd() else str(path)


def _installed_from() -> Path | None:
    """The folder that this package was installed from by pip; ``None`` if it is not known or gone."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlparse
    from urllib.request import url2pathname

    try:
        # PEP 610: where pip got the package from.
        origin = json.loads(distribution("graphshrink").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    url = urlparse(str(origin.get("url", "")))
    folder = Path(url2pathname(url.path))
    return folder if url.scheme == "file" and (folder / "pyproject.toml").is_file() else None


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are: ``"a, b and 3 more"``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def enumeration(words: Sequence[str]) -> str:
    """All words of a list, with *and* in front of the last: ``"a, b and c"``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``"1 node"``, ``"2,000 nodes"``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, cut after ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_readable(path: str | os.PathLike[str], most: int | None = None) -> None:
    """Check that a read of this file will end; whether it exists and what it holds is not checked.

    Args:
        path: The file.
        most: The largest size in bytes that is accepted.

    Raises:
        UsageError: If it is a device, a pipe or a socket, or is larger.
    """
    try:
        found = os.stat(path)
    except OSError:
        return
    except ValueError as error:
        raise UsageError(f"{os.fspath(path)!r} is not a path: {error}") from error
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{path} is a device or a pipe: give a regular file")
    if most is not None and found.st_size > most:
        raise UsageError(f"{path} has {found.st_size:,} bytes; at most {most:,} are read")


def read_number(text: str, kind: type[int] | type[float]) -> int | float:
    """Parse a finite number in ASCII digits, as options take it.

    Stricter than Python, which also reads digits of other scripts, ``1_000``, ``inf`` and ``nan``.

    Args:
        text: The text, of at most 40 characters.
        kind: ``int`` or ``float``.

    Raises:
        ValueError: If the text is not such a number.
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
        UsageError: If it has none; the message gives the most similar name, or all names.
    """
    if name not in known:
        import difflib  # Start-up counts.

        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"inputs are {', '.join(known)}"
        raise UsageError(f"the model has no input {name!r}; {hint}")

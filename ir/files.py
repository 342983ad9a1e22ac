"""Output files: written whole or not at all, through links, never onto a device, a pipe or an input.

A file is written under a temporary name in its folder, given the permissions of the file that it replaces, and renamed.
Killed at any moment, the old file or the new one is there. A link is followed to the regular file behind it, and that file is
replaced; the link stays. Only text may go to the standard streams and to the null device.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from .errors import UsageError

AnyPath = str | os.PathLike[str]

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def place(path: AnyPath, text: bool = False) -> Path:
    """Find the regular file that will be written for a path; nothing is touched.

    Args:
        path: The path that the user gave.
        text: Whether text is written, which may also go to a standard stream or the null device.

    Returns:
        The path, or the end of its links; there may be no file yet.

    Raises:
        UsageError: If the file cannot be written: no folder, a folder itself, a device, a pipe, or read-only.
    """
    target = Path(path)
    try:
        # Through the links of the last name only, so that messages name what was given.
        if target.is_symlink():
            target = Path(os.path.realpath(target))
        found = _status(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {path}: {_reason(error)}") from error
    if found is not None and text and _sink(found) is not None:
        return Path(path)
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {path}: the folder {target.parent} does not exist")
    if found is not None:
        for is_kind, kind in _KINDS:
            if is_kind(found.st_mode):
                raise UsageError(f"cannot write {path}: it is {kind}")
        if _stream(found) is not None:
            raise UsageError(f"cannot write {path}: standard output or error goes there")
        if not os.access(target, os.W_OK):
            raise UsageError(f"cannot write {path}: it is read-only")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: the folder {target.parent} is read-only")
    return target


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        UsageError: If it cannot be written.
    """
    target = place(path)
    with said(path), temporary(target.parent) as name:
        with create(name) as file:
            file.write(content)
            settle(file)
        settle_permissions(name, target)
        os.replace(name, target)


def write_text(path: AnyPath, text: str, errors: str = "strict") -> None:
    """Write a text file whole or not at all, or to a standard stream or the null device.

    Args:
        path: Where to write.
        text: The text.
        errors: What is done about characters that UTF-8 lacks, as in ``str.encode``.

    Raises:
        UsageError: If it cannot be written.
    """
    place(path, text=True)
    found = _status(path)
    sink = None if found is None else _sink(found)
    if sink is None:
        write_bytes(path, text.encode("utf-8", errors))
        return
    sink.write(text)
    sink.flush()


@contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """A new name in a folder; a file of this name that is still there at the end is deleted."""
    name = folder / f".graphshrink-{os.urandom(8).hex()}.tmp"
    try:
        yield name
    finally:
        with suppress(OSError):
            os.unlink(name)


def create(name: Path) -> BinaryIO:
    """Open a file that must not exist yet, for this user alone: it gets its permissions when it is whole."""
    return open(name, "xb", opener=lambda path, flags: os.open(path, flags, 0o600))


def settle(file: BinaryIO) -> None:
    """Have what was written on the disk before the file is renamed."""
    file.flush()
    os.fsync(file.fileno())


def settle_permissions(name: Path, replaced: Path) -> None:
    """Give a new file the permissions and the owner of the one that it replaces, or those of any new file."""
    try:
        old = replaced.stat()
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        name.chmod(0o666 & ~mask)
        return
    own = name.stat()
    if (own.st_uid, own.st_gid) != (old.st_uid, old.st_gid) and hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(name, old.st_uid, old.st_gid)
    name.chmod(stat.S_IMODE(old.st_mode))


@contextmanager
def said(path: AnyPath) -> Iterator[None]:
    """Turn what the system has against a file into an error for the user."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {_reason(error)}") from error


def same_file(first: AnyPath, second: AnyPath) -> bool:
    """Whether two paths are one file, by links and hard links too; of files that are not there yet, one place."""
    one, other = _quiet_status(first), _quiet_status(second)
    if one is not None and other is not None:
        return os.path.samestat(one, other)
    if one is not None or other is not None:
        return False
    return os.path.realpath(first) == os.path.realpath(second)


def keep_inputs(outputs: Iterable[AnyPath], inputs: Iterable[tuple[str, AnyPath]]) -> None:
    """Check that no output is one of the inputs.

    Args:
        outputs: The files that will be written.
        inputs: What each input is, in words, and its path.

    Raises:
        UsageError: If one would be overwritten.
    """
    # A file that is not there yet is no input.
    existing = [(path, found) for path in outputs if (found := _quiet_status(path)) is not None]
    if not existing:
        return
    for what, path in inputs:
        status = _quiet_status(path)
        for output, found in existing:
            if status is not None and os.path.samestat(status, found):
                shown = "" if os.fspath(path) == os.fspath(output) else f" {path}"
                raise UsageError(f"cannot write {output}: it would overwrite {what}{shown}")


def plain_name(name: str) -> str:
    """A file name that is one part of a path on every system and valid UTF-8, as model files can state it."""
    return re.sub(r"[\\/:\x00-\x1f\x7f\ud800-\udfff]", "_", name)


def _status(path: AnyPath) -> os.stat_result | None:
    """What a path leads to; ``None`` if there is nothing."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _quiet_status(path: AnyPath) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _stream(found: os.stat_result) -> TextIO | None:
    """The standard stream that a file is, however it was named."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with suppress(OSError):
            if stream is not None and os.path.samestat(found, os.fstat(number)):
                return stream
    return None


class _Nowhere:
    def write(self, text: str) -> None:
        pass

    def flush(self) -> None:
        pass


def _sink(found: os.stat_result) -> TextIO | _Nowhere | None:
    """The open stream that text for this file goes to; ``None`` if it is written as a file."""
    stream = _stream(found)
    if stream is None and stat.S_ISCHR(found.st_mode):
        null = _quiet_status(os.devnull)
        return _Nowhere() if null is not None and null.st_rdev == found.st_rdev else None
    return stream


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

"""Output files: written atomically, through symbolic links, never onto a device, a pipe or an input.

A file is written under a temporary name in its folder, gets the permissions of the file that it replaces, and is renamed.
If the process is killed, the old file or the new one is there, never a part. A symbolic link stays, and the regular file
that it points to is replaced. Only text may be written to the standard streams and to the null device.
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


def resolve_output(path: AnyPath, text: bool = False) -> Path:
    """Return the regular file that a path leads to, after checks that it can be written; nothing is changed.

    Args:
        path: The path that the user gave.
        text: Whether text is written, which may also go to a standard stream or the null device.

    Returns:
        The path, or the file that its links point to; the file need not exist yet.

    Raises:
        UsageError: If the file cannot be written: its folder does not exist, or it is a folder, a device, a pipe or
            read-only.
    """
    target = Path(path)
    try:
        # Only a link as the last part is resolved, so that messages name the folder that the user gave.
        if target.is_symlink():
            target = Path(os.path.realpath(target))
        found = _status(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {path}: {_reason(error)}") from error
    if found is not None and text and _text_stream(found) is not None:
        return Path(path)
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {path}: the folder {target.parent} does not exist")
    if found is not None:
        for is_kind, kind in _KINDS:
            if is_kind(found.st_mode):
                raise UsageError(f"cannot write {path}: it is {kind}")
        if _standard_stream(found) is not None:
            raise UsageError(f"cannot write {path}: standard output or error goes there")
        if not os.access(target, os.W_OK):
            raise UsageError(f"cannot write {path}: it is read-only")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: the folder {target.parent} is read-only")
    return target


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        UsageError: If it cannot be written.
    """
    target = resolve_output(path)
    with as_usage_error(path), temporary_path(target.parent) as name:
        with create(name) as file:
            file.write(content)
            flush_to_disk(file)
        copy_permissions(name, target)
        os.replace(name, target)


def write_text(path: AnyPath, text: str, errors: str = "strict") -> None:
    """Write a text file atomically, or write to a standard stream or the null device.

    Args:
        path: The path that the user gave.
        text: The text.
        errors: How characters that UTF-8 lacks are handled, as in ``str.encode``.

    Raises:
        UsageError: If it cannot be written.
    """
    resolve_output(path, text=True)
    found = _status(path)
    stream = None if found is None else _text_stream(found)
    if stream is None:
        write_bytes(path, text.encode("utf-8", errors))
        return
    stream.write(text)
    stream.flush()


@contextmanager
def temporary_path(folder: Path) -> Iterator[Path]:
    """Give a new path in a folder, and delete the file there, if any, at the end of the ``with`` block."""
    name = folder / f".graphshrink-{os.urandom(8).hex()}.tmp"
    try:
        yield name
    finally:
        with suppress(OSError):
            os.unlink(name)


def create(name: Path) -> BinaryIO:
    """Create a file that must not exist yet, with permissions for this user only until it is complete."""
    return open(name, "xb", opener=lambda path, flags: os.open(path, flags, 0o600))


def flush_to_disk(file: BinaryIO) -> None:
    """Wait until the written bytes are on the disk, so that the file can be renamed."""
    file.flush()
    os.fsync(file.fileno())


def copy_permissions(name: Path, replaced: Path) -> None:
    """Give a file the permissions and the owner of the one that it will replace, or the default ones if there is none."""
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
def as_usage_error(path: AnyPath) -> Iterator[None]:
    """Raise errors of the operating system as a :class:`UsageError` that names the file."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {_reason(error)}") from error


def same_file(first: AnyPath, second: AnyPath) -> bool:
    """Whether two paths lead to one file, also by symbolic or hard links; files need not exist yet."""
    one, other = _status_or_none(first), _status_or_none(second)
    if one is not None and other is not None:
        return os.path.samestat(one, other)
    if one is not None or other is not None:
        return False
    return os.path.realpath(first) == os.path.realpath(second)


def check_overwrites(outputs: Iterable[AnyPath], inputs: Iterable[tuple[str, AnyPath]]) -> None:
    """Check that no output file is one of the input files.

    Args:
        outputs: The files that will be written.
        inputs: A description and the path of each input.

    Raises:
        UsageError: If an input would be overwritten.
    """
    # A file that does not exist yet cannot be an input.
    existing = [(path, found) for path in outputs if (found := _status_or_none(path)) is not None]
    if not existing:
        return
    for what, path in inputs:
        status = _status_or_none(path)
        for output, found in existing:
            if status is not None and os.path.samestat(status, found):
                shown = "" if os.fspath(path) == os.fspath(output) else f" {path}"
                raise UsageError(f"cannot write {output}: it would overwrite {what}{shown}")


def plain_name(name: str) -> str:
    """The name without characters that a file name cannot have on some system or that are not valid UTF-8."""
    return re.sub(r"[\\/:\x00-\x1f\x7f\ud800-\udfff]", "_", name)


def _status(path: AnyPath) -> os.stat_result | None:
    """The status of the file that a path leads to; ``None`` if there is none."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _status_or_none(path: AnyPath) -> os.stat_result | None:
    """The same, but ``None`` for any error."""
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _standard_stream(found: os.stat_result) -> TextIO | None:
    """The standard stream that writes to this file, whatever path led to it."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with suppress(OSError):
            if stream is not None and os.path.samestat(found, os.fstat(number)):
                return stream
    return None


class _NullStream:
    def write(self, text: str) -> None:
        pass

    def flush(self) -> None:
        pass


def _text_stream(found: os.stat_result) -> TextIO | _NullStream | None:
    """The open stream to write text to; ``None`` if text for this path is written as a file."""
    stream = _standard_stream(found)
    if stream is None and stat.S_ISCHR(found.st_mode):
        null = _status_or_none(os.devnull)
        return _NullStream() if null is not None and null.st_rdev == found.st_rdev else None
    return stream


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

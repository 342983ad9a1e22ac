"""Writing ONNX files: atomic, streamed, in one file up to 2 GB and with external data beyond.

A model and its data file must fit together whatever happens in between. The data file is therefore named by a digest of
what it holds and where: a new model never overwrites the data that an old model refers to. The model is renamed into place
last. Killed before that, the old pair is as it was, and a stray file is left beside it.

An old data file is removed only if the model that was replaced names it, it bears that model's name and a digest, and no
other file in the folder mentions it. Whoever copies or renames a model keeps its numbers. Runs that write into one folder
at the same time take turns from the moment that the data file gets its name.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from onnx import ModelProto, TensorProto

from ...hosts.onnx.tensors import (
    external_location,
    external_names,
    inner_tensors,
    is_external,
    proto_of,
    tensors_in,
)
from ...ir import ModelError, Tensor, UsageError
from ...ir.files import (
    as_usage_error,
    copy_permissions,
    create,
    flush_to_disk,
    plain_name,
    resolve_output,
    temporary_path,
)

_LIMIT = 2**31 - 2**20
"""What one protobuf file may hold, with room for what grows while it is written."""
_ALIGN = 4096
_CHUNK = 1 << 24
_EXTERNAL_BYTES = 1024
_STEM = 200
"""So many bytes of the model's name go into the name of its data file."""
_OLD_MODEL = 1 << 26
"""An old model of more bytes is not searched for its data: it has its numbers inside."""
_SEARCHED = 1 << 30
"""So many bytes of other files are searched for the name of an old data file; if there are more, it stays."""
_PATIENCE = 10.0
"""Seconds to wait for other runs that write into the folder."""
_DATA = re.compile(r"(.*)\.([0-9a-f]{12})(-\d+)?\.data", re.DOTALL)
"""Our data files: the model's name, the digest, and a number when the name was taken by something else."""


@dataclass(frozen=True)
class Saved:
    """What writing a model left behind.

    Attributes:
        left: Data files of the replaced model that the new one does not use and that are still there.
    """

    left: tuple[Path, ...] = ()

    def notes(self, path: Path) -> list[str]:
        """What the user should know, one sentence each."""
        if not self.left:
            return []
        names = ", ".join(map(str, self.left))
        verb = "is" if len(self.left) == 1 else "are"
        return [f"{names} {verb} left: the old {path.name} read it, the new one does not"]


def save_model(
    model: ModelProto,
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor] | None = None,
    base_dir: Path | None = None,
    keep_external: bool = False,
    stale: Sequence[Path] = (),
) -> Saved:
    """Write a model.

    Args:
        model: The model; it is not changed. Initializers named in ``tensors`` are placeholders.
        path: The file to write.
        tensors: The numbers of the placeholders.
        base_dir: The folder that the model's external data lies in.
        keep_external: Write external data however small the model is.
        stale: Files that speak of the old model; they are removed right before it is replaced.

    Returns:
        What was left of the model that was replaced.

    Raises:
        UsageError: If the file cannot be written.
        ModelError: If external data is missing or not allowed.
    """
    tensors = tensors or {}
    target = resolve_output(path)
    with as_usage_error(target):
        return _write(model, Path(path), target, tensors, base_dir, keep_external, stale)


def _write(
    model: ModelProto,
    given: Path,
    target: Path,
    tensors: Mapping[str, Tensor],
    base_dir: Path | None,
    keep_external: bool,
    stale: Sequence[Path],
) -> Saved:
    slots = [t for t in model.graph.initializer if t.name in tensors]
    external = keep_external or any(map(is_external, tensors_in(model)))
    size = model.ByteSize() + sum(tensors[t.name].nbytes for t in slots)
    out = ModelProto()
    out.CopyFrom(model)
    if external or size >= _LIMIT:
        moved = _moved(out, tensors)
        if moved:
            return _write_two(out, given, target, moved, base_dir, stale)
    for proto in out.graph.initializer:
        if proto.name in tensors:
            proto.CopyFrom(proto_of(tensors[proto.name], proto.name))
    with temporary_path(target.parent) as whole:
        _write_whole(out, whole, target)
        with _turn(target.parent) as alone:
            return _replace(whole, target, "", stale, alone)


def _write_two(
    out: ModelProto,
    given: Path,
    target: Path,
    moved: Sequence[tuple[TensorProto, Tensor | None]],
    base_dir: Path | None,
    stale: Sequence[Path],
) -> Saved:
    """Write a model and its data file."""
    folder = target.parent
    if given.is_symlink() and not os.path.samefile(given.parent, folder):
        raise UsageError(
            f"cannot write {given}: it is a link into another folder, and the model has a data file beside it; "
            f"give {target} itself"
        )
    with temporary_path(folder) as whole, temporary_path(folder) as data:
        with create(data) as file:
            digest = _write_data(moved, file, base_dir)
            flush_to_disk(file)
        copy_permissions(data, target)
        made = data.stat()
        with _turn(folder) as alone, _undone_on_failure(whole, made) as progress:
            final = _named(data, target, digest, alone, progress.tried)
            for proto, _ in moved:
                proto.external_data[0].value = final.name
            _write_whole(out, whole, target)
            progress.written = True
            return _replace(whole, target, final.name, stale, alone)


@dataclass
class _Progress:
    """How far writing a model and its data file has got.

    Attributes:
        tried: The names that the data file may have.
        written: Whether the model is complete under its temporary name.
    """

    tried: list[Path] = field(default_factory=list)
    written: bool = False


@contextmanager
def _undone_on_failure(whole: Path, made: os.stat_result) -> Iterator[_Progress]:
    """Remove the new data file after an error, unless the new model is already in its place.

    Args:
        whole: The temporary name of the model.
        made: Identifies the data file: a file of another run under one of its names is never removed.
    """
    progress = _Progress()
    try:
        yield progress
    except BaseException:
        if not progress.written or os.path.lexists(whole):  # Else the new model is in its place.
            for path in progress.tried:
                _unlink_if_same(path, made)
        raise


def _unlink_if_same(path: Path, made: os.stat_result) -> None:
    with suppress(OSError):
        if os.path.samestat(path.lstat(), made):
            path.unlink()


def _write_whole(model: ModelProto, name: Path, target: Path) -> None:
    with create(name) as file:
        file.write(model.SerializeToString(deterministic=True))
        flush_to_disk(file)
    copy_permissions(name, target)


def _named(data: Path, target: Path, digest: str, alone: bool, tried: list[Path]) -> Path:
    """Give a data file its name; a file of that name is used if it holds the same, and is never changed.

    Args:
        data: The file under its temporary name.
        target: The model.
        digest: The digest of the data.
        alone: Whether no other run of ours may remove a file meanwhile.
        tried: Gets the names that were tried.
    """
    while True:
        mark = f"-{len(tried) + 1}" if tried else ""
        final = target.with_name(f"{_stem(target)}.{digest}{mark}.data")
        tried.append(final)
        try:
            _rename_new(data, final)
        except FileExistsError:
            usable = alone and final.is_file() and not final.is_symlink()
            if usable and filecmp.cmp(data, final, shallow=False):
                return final
        else:
            return final


def _rename_new(name: Path, final: Path) -> None:
    """Rename a file, unless there is a file of the new name.

    Raises:
        FileExistsError: If there is.
    """
    try:
        os.link(name, final)
    except FileExistsError:
        raise
    except OSError:  # A file system without hard links: the name is reserved first.
        with create(final):
            pass
        os.replace(name, final)
    else:
        os.unlink(name)


def _stem(target: Path) -> str:
    """The model's name as data files bear it: what a model file can state, and not too long."""
    return plain_name(target.name).encode()[:_STEM].decode(errors="ignore")


def _replace(whole: Path, target: Path, data: str, stale: Sequence[Path], alone: bool) -> Saved:
    """Put the new model in the place of the old one, and remove the data that only the old one named."""
    folder = target.parent
    old = _old_names(target) - {data}
    for path in stale:
        with suppress(FileNotFoundError):
            resolve_output(path).unlink()
    os.replace(whole, target)
    # From here on the new model counts, whatever happens to the old data.
    _settle_folder(folder)
    own = [name for name in old if _is_own(name, target)] if alone else []
    for name in _unmentioned(folder, own) if own else ():
        with suppress(OSError):
            (folder / name).unlink()
    inside = [Path(name) for name in sorted(old) if ".." not in Path(name).parts]
    left = [folder / name for name in inside if not name.is_absolute()]
    return Saved(tuple(path for path in left if path.is_file()))


def _old_names(target: Path) -> set[str]:
    """The data files that the model at a path names, before it is replaced."""
    try:
        if target.stat().st_size > _OLD_MODEL:
            return set()
        return {name for name in external_names(ModelProto.FromString(target.read_bytes())) if name}
    except Exception:
        return set()  # None, or no model: nothing is known of its data, and nothing is removed.


def is_data_file(path: Path, model: Path) -> bool:
    """Whether a path is one that a data file of a model may get."""
    match = _DATA.fullmatch(path.name)
    if match is None or match[1] != _stem(model):
        return False
    return os.path.realpath(path.parent) == os.path.realpath(model.parent)


def _is_own(name: str, target: Path) -> bool:
    """Whether a data file was written for a model of this name, as a plain file in its folder."""
    path = target.parent / name
    plain = plain_name(name) == name and path.is_file() and not path.is_symlink()
    return plain and is_data_file(path, target)


def _unmentioned(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of our data files whose digest is in no file of the folder; what cannot be searched may mention all."""
    wanted = {name: match[2].encode() for name in names if (match := _DATA.fullmatch(name))}
    left = _SEARCHED
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _DATA.fullmatch(entry.name) or not entry.is_file():
                    continue
                left -= entry.stat().st_size
                if left < 0:
                    return []
                found = _mentioned(Path(entry.path), set(wanted.values()))
                wanted = {name: word for name, word in wanted.items() if word not in found}
                if not wanted:
                    return []
    except OSError:
        return []
    return list(wanted)


def _mentioned(path: Path, words: set[bytes]) -> set[bytes]:
    """Those of the words that are in a file."""
    found: set[bytes] = set()
    longest = max(map(len, words))
    tail = b""
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            part = tail + part
            found |= {word for word in words if word in part}
            tail = part[-longest:]
    return found


def _settle_folder(folder: Path) -> None:
    """Have a rename on the disk before what it replaced is removed."""
    with suppress(OSError):  # Not every system opens folders.
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _turn(folder: Path) -> Iterator[bool]:
    """Wait until no other run names and removes data files in a folder; the lock ends with the process.

    Yields:
        Whether this run is alone; ``True`` where folders cannot be locked.
    """
    handle = None
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        end = time.monotonic() + _PATIENCE
        alone = False
        while not alone and time.monotonic() < end:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except BlockingIOError:
                time.sleep(0.01)
    except (ImportError, OSError):
        alone = True
    try:
        yield alone
    finally:
        if handle is not None:
            os.close(handle)


def _moved(
    out: ModelProto, tensors: Mapping[str, Tensor]
) -> list[tuple[TensorProto, Tensor | None]]:
    """The tensors that go into the data file, each with its numbers if the model is only a placeholder for them."""
    found = [
        (proto, tensor)
        for proto in out.graph.initializer
        if (tensor := tensors.get(proto.name)) is not None
        or is_external(proto)
        or len(proto.raw_data) >= _EXTERNAL_BYTES
    ]
    # What is inside attributes and bodies stays there: some readers look for those numbers in the model alone.
    return found + [(proto, None) for proto in inner_tensors(out) if is_external(proto)]


def _write_data(
    moved: Sequence[tuple[TensorProto, Tensor | None]], file: BinaryIO, base_dir: Path | None
) -> str:
    """Write every tensor behind the last; the digest covers the layout and the numbers."""
    digest = hashlib.sha256()
    for proto, tensor in moved:
        offset = -(-file.tell() // _ALIGN) * _ALIGN
        file.write(b"\0" * (offset - file.tell()))
        digest.update(f"{offset} {proto.data_type} {list(proto.dims)}:".encode())
        if tensor is not None:
            length = _stream(tensor, file, digest)
        elif is_external(proto):
            if base_dir is None:
                raise ModelError(
                    f"the numbers of tensor {proto.name!r} are in another file; "
                    "give the model by its path"
                )
            length = _copy(proto, base_dir, file, digest)
        else:
            file.write(proto.raw_data)
            digest.update(proto.raw_data)
            length = len(proto.raw_data)
        digest.update(f":{length} ".encode())
        proto.ClearField("raw_data")
        proto.ClearField("external_data")
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "?"), ("offset", str(offset)), ("length", str(length))):
            proto.external_data.add(key=key, value=value)
    return digest.hexdigest()[:12]


def _stream(tensor: Tensor, file: BinaryIO, digest: hashlib._Hash) -> int:
    array = np.ascontiguousarray(tensor.numpy())
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    raw = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(raw), _CHUNK):
        part = raw[start : start + _CHUNK]
        digest.update(part)
        file.write(part)
    return len(raw)


def _copy(proto: TensorProto, base_dir: Path, file: BinaryIO, digest: hashlib._Hash) -> int:
    """File to file, so that mapped pages do not count as this process's memory."""
    path, offset, length = external_location(proto, base_dir)
    with path.open("rb") as source:
        source.seek(offset)
        left = length
        while left:
            part = source.read(min(_CHUNK, left))
            if not part:
                raise ModelError(f"{path} ended while tensor {proto.name!r} was copied")
            digest.update(part)
            file.write(part)
            left -= len(part)
    return length

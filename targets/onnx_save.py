"""Writing ONNX files: atomic, streamed, in one file up to 2 GB and with external data beyond.

A model and its data file must fit together whatever happens in between. The data file is therefore
named by what it holds: a new model never overwrites the data that an old model refers to. The model is
renamed into place last; only then is the old data file removed. Killed before that rename, the old
pair is as it was, and a stray file is left beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from onnx import ModelProto, TensorProto

from ..frontends.onnx_tensors import external_location, proto_of
from ..ir import ModelError, Tensor, UsageError

_LIMIT = 2**31 - 2**20
"""What one protobuf file may hold, with room for what grows while it is written."""
_ALIGN = 4096
_CHUNK = 1 << 24
_EXTERNAL_BYTES = 1024


def save_model(
    model: ModelProto,
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor] | None = None,
    base_dir: Path | None = None,
    keep_external: bool = False,
) -> None:
    """Write a model.

    Args:
        model: The model; it is not changed. Initializers named in ``tensors`` are placeholders.
        path: The file to write.
        tensors: The numbers of the placeholders.
        base_dir: The folder that the model's external data lies in.
        keep_external: Write external data however small the model is.

    Raises:
        UsageError: If the folder is missing or not writable.
        ModelError: If external data is missing or not allowed.
    """
    tensors = tensors or {}
    target = Path(path)
    check_place(target)
    try:
        _write(model, target, tensors, base_dir, keep_external)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from error


def check_place(target: Path) -> None:
    """Check that a file can stand at a path.

    Raises:
        UsageError: If its folder does not exist, or it is a folder itself.
    """
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {target}: the folder {target.parent} does not exist")
    if target.is_dir():
        raise UsageError(f"cannot write {target}: it is a folder")


def _write(
    model: ModelProto,
    target: Path,
    tensors: Mapping[str, Tensor],
    base_dir: Path | None,
    keep_external: bool,
) -> None:
    slots = [t for t in model.graph.initializer if t.name in tensors]
    external = keep_external or any(map(is_external, model.graph.initializer))
    size = model.ByteSize() + sum(tensors[t.name].nbytes for t in slots)
    old = _data_files(target)
    out = ModelProto()
    out.CopyFrom(model)
    if not external and size < _LIMIT:
        for proto in out.graph.initializer:
            if proto.name in tensors:
                proto.CopyFrom(proto_of(tensors[proto.name], proto.name))
        write_bytes(target, out.SerializeToString(deterministic=True))
        _remove(target, old)
        return
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    data = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = _write_data(out, file, tensors, base_dir)
            file.flush()
            os.fsync(file.fileno())
        final = target.with_name(f"{target.name}.{digest}.data")
        for proto in out.graph.initializer:
            for entry in proto.external_data:
                if entry.key == "location":
                    entry.value = final.name
        _permissions(data)
        os.replace(data, final)
    except BaseException:
        with contextlib.suppress(OSError):
            data.unlink()
        raise
    write_bytes(target, out.SerializeToString(deterministic=True))
    _remove(target, old - {final.name})


def is_external(proto: TensorProto) -> bool:
    """Whether a tensor's numbers are in another file."""
    return bool(proto.data_location == TensorProto.EXTERNAL)


def _write_data(
    out: ModelProto, file: BinaryIO, tensors: Mapping[str, Tensor], base_dir: Path | None
) -> str:
    """Write every large tensor behind the last; the digest names the layout and the small parts."""
    digest = hashlib.sha256()
    for proto in out.graph.initializer:
        tensor = tensors.get(proto.name)
        was_external = proto.data_location == TensorProto.EXTERNAL
        inline = len(proto.raw_data)
        if tensor is None and not was_external and inline < _EXTERNAL_BYTES:
            continue
        offset = -(-file.tell() // _ALIGN) * _ALIGN
        file.write(b"\0" * (offset - file.tell()))
        if tensor is not None:
            length = _stream(tensor, file, digest)
        elif was_external:
            if base_dir is None:
                raise ModelError(
                    f"the numbers of tensor {proto.name!r} are in another file; "
                    "give the model by its path"
                )
            length = _copy(proto, base_dir, file, digest)
        else:
            file.write(proto.raw_data)
            digest.update(proto.raw_data)
            length = inline
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


def write_bytes(target: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, name)
        else:
            _permissions(Path(name))
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _permissions(path: Path) -> None:
    """What a plain ``open`` would have given (temporary files are private)."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _data_files(target: Path) -> set[str]:
    """Our own data files of the model that is being replaced."""
    prefix = f"{target.name}."
    return {
        p.name
        for p in target.parent.glob(f"{target.name}.*.data")
        if len(p.name) == len(prefix) + 12 + len(".data")
    }


def _remove(target: Path, names: set[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            (target.parent / name).unlink()

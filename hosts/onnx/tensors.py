"""ONNX tensors as lazy handles, and models from files.

External data is memory-mapped. Model files are treated as hostile: a location must be inside the model's
folder, before and after symlinks are followed, and offset and length are checked against the file's
and the tensor's size before anything is allocated. This applies to every tensor of a model:
initializers, sparse ones, attributes, the bodies of If, Loop and Scan, local functions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    helper,
    numpy_helper,
)

from ...ir import ArrayTensor, DType, LazyTensor, ModelError, Tensor
from ...ir.errors import check_readable

_DTYPES: dict[int, DType] = {
    getattr(TensorProto, name): DType(short)
    for name, short in {
        "FLOAT": "f32", "UINT8": "u8", "INT8": "i8", "UINT16": "u16", "INT16": "i16", "INT32": "i32",
        "INT64": "i64", "STRING": "string", "BOOL": "bool", "FLOAT16": "f16", "DOUBLE": "f64",
        "UINT32": "u32", "UINT64": "u64", "COMPLEX64": "c64", "COMPLEX128": "c128", "BFLOAT16": "bf16",
        "FLOAT8E4M3FN": "f8e4m3fn", "FLOAT8E4M3FNUZ": "f8e4m3fnuz", "FLOAT8E5M2": "f8e5m2",
        "FLOAT8E5M2FNUZ": "f8e5m2fnuz", "UINT4": "u4", "INT4": "i4", "FLOAT4E2M1": "f4e2m1",
        "FLOAT8E8M0": "f8e8m0", "UINT2": "u2", "INT2": "i2",
    }.items()
    if hasattr(TensorProto, name)
}  # fmt: skip
_EMBEDDED = 1 << 16
"""External tensors of up to this many bytes in attributes and bodies are read with the model."""
_EMBEDDED_ALL = 1 << 26
"""The limit for all of these together; further ones stay external."""
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def text_of(text: str | bytes) -> str:
    """A text of a model as ``str``: protobuf returns text that is not UTF-8 as bytes."""
    return text if isinstance(text, str) else text.decode("utf-8", "backslashreplace")


def dtype_of(code: int) -> DType | None:
    """The element type of an ONNX data type number; ``None`` if the IR does not have it."""
    return _DTYPES.get(code)


def code_of(dtype: DType) -> int:
    """The ONNX data type number of an element type."""
    return _CODES[dtype]


def tensor_of(proto: TensorProto, base_dir: Path | None = None) -> Tensor | None:
    """A lazy handle of an ONNX tensor; ``proto`` becomes its ``host``.

    Args:
        proto: The tensor.
        base_dir: The model's folder, for external data.

    Returns:
        The handle, or ``None`` for an element type that the IR does not have.

    Raises:
        ModelError: If a dimension is negative, or the external data is missing or not allowed.
    """
    dtype = dtype_of(proto.data_type)
    if dtype is None:
        return None
    shape = tuple(proto.dims)
    if any(d < 0 for d in shape):
        raise ModelError(f"tensor {proto.name!r} has a negative dimension: {list(shape)}")
    if not is_external(proto):
        return LazyTensor(shape, dtype, lambda: _inline(proto), proto)
    if base_dir is None:
        return LazyTensor(shape, dtype, lambda: _homeless(proto), proto)
    path, offset, length = external_location(proto, base_dir)
    return LazyTensor(shape, dtype, lambda: _mapped(path, offset, length, shape, dtype), proto)


def constant_of(node: NodeProto, base_dir: Path | None = None) -> Tensor | None:
    """The value of a ``Constant`` node.

    Args:
        node: The node.
        base_dir: The model's folder, for external data.

    Returns:
        A lazy handle, or ``None`` if the value is not a dense tensor of numbers, such as strings or a sparse tensor.

    Raises:
        ModelError: If external data is missing or not allowed.
    """
    attribute = node.attribute[0] if len(node.attribute) == 1 else None
    if attribute is None:
        return None
    if attribute.name == "value":
        return tensor_of(attribute.t, base_dir)
    if attribute.name in ("value_float", "value_floats"):
        return ArrayTensor(np.array(helper.get_attribute_value(attribute), np.float32))
    if attribute.name in ("value_int", "value_ints"):
        return ArrayTensor(np.array(helper.get_attribute_value(attribute), np.int64))
    return None


def is_external(proto: TensorProto) -> bool:
    """Whether a tensor's numbers are in another file."""
    return bool(proto.data_location == TensorProto.EXTERNAL)


def tensors_in(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: in its graph, bodies, attributes, functions and training information."""
    yield from model.graph.initializer
    yield from inner_tensors(model)


def inner_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model except the initializers of its graph."""
    yield from _sparse(model.graph.sparse_initializer)
    yield from tensors_of_nodes(model.graph.node)
    for function in model.functions:
        yield from tensors_of_nodes(function.node)
        yield from _of_attributes(function.attribute_proto)
    for training in model.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)


def tensors_of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """Every tensor in the attributes of nodes and in their bodies."""
    for node in nodes:
        if node.attribute:
            yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        # Test the fields, not the stated type, which may be missing or wrong.
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from _sparse([attribute.sparse_tensor])
        yield from _sparse(attribute.sparse_tensors)
        if attribute.HasField("g"):
            yield from _of_graph(attribute.g)
        for body in attribute.graphs:
            yield from _of_graph(body)


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _sparse(graph.sparse_initializer)
    yield from tensors_of_nodes(graph.node)


def _sparse(tensors: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
    for tensor in tensors:
        yield tensor.values
        yield tensor.indices


def external_files(model: ModelProto, base_dir: Path) -> list[Path]:
    """The files of a model's external data, each once; they need not exist."""
    return [base_dir / location for location in sorted(external_names(model))]


def external_names(model: ModelProto) -> set[str]:
    """The locations of a model's external data, as the model states them."""
    return {
        entry.value
        for proto in tensors_in(model)
        if is_external(proto)
        for entry in proto.external_data
        if entry.key == "location"
    }


def embed(
    protos: Iterable[TensorProto], base_dir: Path, each: int | None = None, total: int | None = None
) -> None:
    """Read external tensors into the model, in place.

    Args:
        protos: Tensors of the model.
        base_dir: The model's folder.
        each: Tensors of more bytes stay external.
        total: The limit for all tensors together, in bytes; tensors that would exceed it stay external.

    Raises:
        ModelError: If external data are missing or not allowed.
    """
    left = total
    for proto in protos:
        if not is_external(proto):
            continue
        path, offset, length = external_location(proto, base_dir)
        if (each is not None and length > each) or (left is not None and length > left):
            continue
        with path.open("rb") as file:
            file.seek(offset)
            proto.raw_data = file.read(length)
        if len(proto.raw_data) != length:
            raise ModelError(f"{path} ended while tensor {proto.name!r} was read")
        proto.ClearField("external_data")
        proto.ClearField("data_location")
        left = None if left is None else left - length


def _inline(proto: TensorProto) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = numpy_helper.to_array(proto)
    except ValueError as error:
        raise ModelError(f"tensor {proto.name!r} is damaged: {error}") from error
    return array


def _homeless(proto: TensorProto) -> npt.NDArray[Any]:
    raise ModelError(
        f"the numbers of tensor {proto.name!r} are in another file; give the model by its path, "
        "or load it with its external data"
    )


def _mapped(
    path: Path, offset: int, length: int, shape: tuple[int, ...], dtype: DType
) -> npt.NDArray[Any]:
    if length == 0:
        return np.zeros(shape, dtype.numpy)
    raw = np.memmap(path, np.uint8, "r", offset, (length,))
    if dtype.bits >= 8:
        return raw.view(dtype.numpy.newbyteorder("<") if dtype.bits > 8 else dtype.numpy).reshape(
            shape
        )
    # Packed types: let onnx unpack them.
    whole = TensorProto(data_type=code_of(dtype), dims=shape, raw_data=raw.tobytes())
    unpacked: npt.NDArray[Any] = numpy_helper.to_array(whole)
    return unpacked


def external_location(
    proto: TensorProto, base_dir: Path, known: dict[str, tuple[Path, int]] | None = None
) -> tuple[Path, int, int]:
    """File, offset and length in bytes of external data, checked.

    Args:
        proto: The tensor.
        base_dir: The model's folder.
        known: A cache of checked files, by location: models can have thousands of tensors in one file.

    Raises:
        ModelError: If the entry leaves the model's folder, the file is missing or too short, or the length
            is not that of the tensor.
    """
    entry = {item.key: item.value for item in proto.external_data}
    where = f"external data of tensor {proto.name!r}"
    location = entry.get("location", "")
    known = {} if known is None else known
    if location not in known:
        known[location] = _external_file(location, base_dir, where)
    real, size = known[location]
    try:
        offset = int(entry.get("offset") or 0)
        length = int(entry["length"]) if entry.get("length") else size - offset
    except ValueError as error:
        raise ModelError(f"{where} has a malformed offset or length") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"{where} ends at byte {offset + length}, {base_dir / location} has {size}"
        )
    dtype, shape = dtype_of(proto.data_type), tuple(proto.dims)
    if any(d < 0 for d in shape):
        raise ModelError(f"tensor {proto.name!r} has a negative dimension: {list(shape)}")
    if dtype is None:
        return real, offset, length
    if dtype is DType.STRING:
        raise ModelError(f"tensor {proto.name!r} is of text, which cannot be in another file")
    expected = (math.prod(shape) * dtype.bits + 7) // 8
    if length != expected:
        raise ModelError(
            f"tensor {proto.name!r} needs {expected} bytes, its entry in {real} has {length}"
        )
    return real, offset, length


def _external_file(location: str, base_dir: Path, where: str) -> tuple[Path, int]:
    """The file at a location, links followed, and its size."""
    if not isinstance(location, str) or "\0" in location:
        raise ModelError(f"{where} names no file: {location!r}")
    parts = PureWindowsPath(location)
    if not location or parts.drive or parts.root or ".." in parts.parts:
        raise ModelError(f"{where} points outside the model's folder: {location!r}")
    path = base_dir / location
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(base_dir))
    if not real.is_relative_to(home):
        raise ModelError(f"{where} points outside the model's folder: {location!r} -> {real}")
    if not real.is_file():
        raise ModelError(f"{where} is missing: {path} (copy it beside the model)")
    return real, real.stat().st_size


def proto_of(tensor: Tensor, name: str) -> TensorProto:
    """An ONNX tensor with its numbers inside; a tensor from ONNX is copied unchanged, and stays external if it was."""
    made = TensorProto()
    if isinstance(tensor.host, TensorProto):
        made.CopyFrom(tensor.host)
        made.name = name
        return made
    if tensor.dtype is DType.STRING or tensor.dtype.bits < 8:
        made.CopyFrom(numpy_helper.from_array(tensor.numpy(), name))
        return made
    array = np.ascontiguousarray(tensor.numpy())
    made.name, made.data_type = name, code_of(tensor.dtype)
    made.dims.extend(tensor.shape)
    made.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return made


def read_model(path: str | os.PathLike[str]) -> tuple[ModelProto, Path]:
    """Read a model without the external data of its initializers.

    All external data are checked. Small external tensors of attributes and bodies are read with the model: when onnx and
    onnxruntime are given a single node, they look for the files in the current folder of the process.

    Returns:
        The model and its folder.

    Raises:
        ModelError: If the file is missing, empty, truncated, or not an ONNX model, or its external data are missing
            or not allowed.
    """
    file = Path(path)
    if not file.exists():
        raise ModelError(f"{file}: no such file")
    if file.is_dir():
        raise ModelError(f"{file} is a folder, not an ONNX file")
    check_readable(file)
    if file.stat().st_size == 0:
        raise ModelError(f"{file} is empty")
    model = ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    except MemoryError:
        raise
    except Exception as error:
        if "MaxDepth" in str(error):
            raise ModelError(f"{file} nests bodies or types too deeply for protobuf") from error
        raise ModelError(f"{file} is truncated or not an ONNX file") from error
    if not model.HasField("graph") or not model.ir_version or not model.opset_import:
        raise ModelError(f"{file} is not an ONNX model (no graph, IR version or opset)")
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{file} has IR version {model.ir_version}; the installed onnx {onnx.__version__} knows "
            f"{onnx.IR_VERSION}: upgrade onnx"
        )
    known: dict[str, tuple[Path, int]] = {}
    for proto in filter(is_external, tensors_in(model)):
        external_location(proto, file.parent, known)
    embed(inner_tensors(model), file.parent, _EMBEDDED, _EMBEDDED_ALL)
    return model, file.parent

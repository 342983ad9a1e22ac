"""Serialises a :class:`.flat.FlatModel` as the bytes of a .tflite file (a flatbuffer)."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ...ir import MissingExtra, ModelError
from .flat import DYNAMIC, NUMPY_TYPES, FlatModel, FlatOperation, FlatTensor
from .versions import minimum_runtime, version_of

_LIMIT = 2**31 - 2**20
"""The largest total size of weights: the limit of a flatbuffer, minus space for everything else."""
_ALIGN = 16
_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
_FIRST_EXTENDED_CODE = 127


def schema() -> Any:
    """Return the schema's generated module.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        import flatbuffers  # noqa: F401
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise MissingExtra("writing .tflite files", "tflite", "ai-edge-litert") from error
    return schema_py_generated


def to_bytes(model: FlatModel) -> bytes:
    """Return the bytes of the file; equal models give equal bytes.

    Raises:
        ModelError: If the file would be too large for a flatbuffer.
        MissingExtra: If the schema is not installed.
    """
    return _Writer(model, schema()).run()


class _Writer:
    def __init__(self, model: FlatModel, schema: Any) -> None:
        self.model, self.schema = model, schema
        self.tensors = model.tensors()
        self.index = {id(tensor): i for i, tensor in enumerate(self.tensors)}
        self.buffers: list[Any] = [schema.BufferT()]
        self.buffer_of: dict[bytes, int] = {}
        self.codes: dict[tuple[str, int], int] = {}

    def run(self) -> bytes:
        import flatbuffers

        weights = sum(t.data.nbytes for t in self.tensors if t.data is not None)
        if weights > _LIMIT:
            raise ModelError(
                f"the weights take {weights:,} bytes, and a .tflite file holds 2 GB at most: "
                "write them as float16 (--weights float16), or split the model"
            )
        made = self.schema.ModelT()
        made.version = _SCHEMA_VERSION
        made.description = self.model.description
        made.subgraphs = [self._subgraph()]
        made.signatureDefs = [self._signature()]
        made.operatorCodes = [self._code(*key) for key in self.codes]
        made.metadata = self._metadata()
        made.buffers = self.buffers
        builder = flatbuffers.Builder(weights + (1 << 16) + 256 * len(self.tensors))
        builder.Finish(made.Pack(builder), file_identifier=_IDENTIFIER)
        return bytes(builder.Output())

    def _subgraph(self) -> Any:
        made = self.schema.SubGraphT()
        made.name = self.model.name
        made.tensors = [self._tensor(tensor) for tensor in self.tensors]
        made.inputs = [self.index[id(tensor)] for _, tensor in self.model.inputs]
        made.outputs = [self.index[id(tensor)] for _, tensor in self.model.outputs]
        made.operators = [self._operator(operation) for operation in self.model.operations]
        return made

    def _tensor(self, tensor: FlatTensor) -> Any:
        made = self.schema.TensorT()
        made.name = tensor.name
        made.shape = [1 if d == DYNAMIC else d for d in tensor.shape]
        if not tensor.is_static:
            made.shapeSignature = list(tensor.shape)
        made.type = getattr(self.schema.TensorType, tensor.dtype)
        made.hasRank = True
        made.buffer = 0
        if tensor.data is not None:
            made.buffer = self._buffer(np.ascontiguousarray(tensor.data, NUMPY_TYPES[tensor.dtype]))
        if tensor.quantization is not None:
            how = self.schema.QuantizationParametersT()
            how.scale = list(tensor.quantization.scales)
            how.zeroPoint = list(tensor.quantization.zero_points)
            how.quantizedDimension = tensor.quantization.axis
            made.quantization = how
        return made

    def _buffer(self, array: Any) -> int:
        """Return the index of the buffer with these bytes; equal bytes are written once."""
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        raw = array.reshape(-1).view(np.uint8)
        digest = hashlib.sha256(raw).digest()
        if digest not in self.buffer_of:
            self.buffer_of[digest] = len(self.buffers)
            self.buffers.append(_aligned(self.schema, raw))
        return self.buffer_of[digest]

    def _operator(self, operation: FlatOperation) -> Any:
        made = self.schema.OperatorT()
        key = (operation.code, version_of(operation))
        made.opcodeIndex = self.codes.setdefault(key, len(self.codes))
        made.inputs = [-1 if t is None else self.index[id(t)] for t in operation.inputs]
        made.outputs = [self.index[id(t)] for t in operation.outputs]
        if operation.options is not None:
            name, fields = operation.options
            options = getattr(self.schema, f"{name}T")()
            for field, value in fields.items():
                if not hasattr(options, field):
                    raise AttributeError(f"{name} has no field {field}")
                setattr(options, field, value)
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, name)
            made.builtinOptions = options
        return made

    def _code(self, code: str, version: int) -> Any:
        made = self.schema.OperatorCodeT()
        number = getattr(self.schema.BuiltinOperator, code)
        made.builtinCode = number
        made.deprecatedBuiltinCode = min(number, _FIRST_EXTENDED_CODE)
        made.version = version
        return made

    def _signature(self) -> Any:
        made = self.schema.SignatureDefT()
        made.signatureKey = "serving_default"
        made.subgraphIndex = 0
        made.inputs = [self._named(name, tensor) for name, tensor in self.model.inputs]
        made.outputs = [self._named(name, tensor) for name, tensor in self.model.outputs]
        return made

    def _named(self, name: str, tensor: FlatTensor) -> Any:
        made = self.schema.TensorMapT()
        made.name, made.tensorIndex = name, self.index[id(tensor)]
        return made

    def _metadata(self) -> list[Any]:
        version = minimum_runtime(self.codes).encode()
        entries = {"min_runtime_version": version.ljust(16, b"\0"), **self.model.metadata}
        found = []
        for name, content in entries.items():
            made = self.schema.MetadataT()
            made.name = name
            made.buffer = len(self.buffers)
            self.buffers.append(_aligned(self.schema, np.frombuffer(content, np.uint8)))
            found.append(made)
        return found


def _aligned(schema: Any, raw: Any) -> Any:
    """Return a buffer whose data is aligned to 16 bytes, as the runtime maps it (the generated code aligns to one)."""

    class Aligned(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802 - the generated code's name
            builder.StartVector(1, raw.size, _ALIGN)
            head = builder.Head() - raw.size
            builder.head = head
            builder.Bytes[head : head + raw.size] = raw.data
            vector = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    return Aligned()

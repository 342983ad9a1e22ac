"""A .tflite file before it is written: its tensors, and its operations in order.

Operators, options and element types have the names of the TFLite schema; nothing here imports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DYNAMIC = -1
"""A size that is not known until the model runs."""


@dataclass(frozen=True)
class Quantization:
    """Affine quantization: an integer ``q`` has the value ``scale * (q - zero_point)``.

    Attributes:
        scales: One for the tensor, or one for each index along ``axis``.
        zero_points: As many as scales.
        axis: The stored axis of per-channel scales.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int = 0


@dataclass(eq=False)
class FlatTensor:
    """A tensor of the file.

    Attributes:
        name: Its name.
        shape: The stored sizes, -1 (``DYNAMIC``) where unknown.
        dtype: The schema's name of its element type.
        data: The numbers of a constant; ``None`` for a tensor that is computed.
        quantization: The scales and zero points of integers that are quantized values.
        producer: The operation that computes it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: Array | None = None
    quantization: Quantization | None = None
    producer: FlatOperation | None = None

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        """Whether every size is known."""
        return DYNAMIC not in self.shape


@dataclass(eq=False)
class FlatOperation:
    """An operation of the file.

    Attributes:
        code: The schema's name of the operator.
        inputs: The tensors that it reads; ``None`` for an optional input that is not given.
        outputs: The tensors that it computes.
        options: The schema's name of its options, and their fields.
        source: The name of the IR node that it was written for.
    """

    code: str
    inputs: tuple[FlatTensor | None, ...]
    outputs: tuple[FlatTensor, ...]
    options: tuple[str, dict[str, Any]] | None = None
    source: str = ""

    def required(self, index: int) -> FlatTensor:
        """Return an input that the operator cannot do without.

        Raises:
            ValueError: If it is not given.
        """
        tensor = self.inputs[index]
        if tensor is None:
            raise ValueError(f"{self.code} without input {index}")
        return tensor


@dataclass
class FlatModel:
    """The one subgraph of a model, with its signature.

    Attributes:
        name: The subgraph's name.
        inputs: The signature's names with the tensors.
        outputs: The same for the results.
        operations: The operations, in the order they run in.
        description: A line for people.
        metadata: The contents of the file's metadata entries, by name.
    """

    name: str
    inputs: list[tuple[str, FlatTensor]] = field(default_factory=list)
    outputs: list[tuple[str, FlatTensor]] = field(default_factory=list)
    operations: list[FlatOperation] = field(default_factory=list)
    description: str = ""
    metadata: dict[str, bytes] = field(default_factory=dict)

    def drop_dead(self) -> None:
        """Remove operations whose results are not read."""
        read = {id(tensor) for _, tensor in self.outputs}
        kept: list[FlatOperation] = []
        for operation in reversed(self.operations):
            if any(id(tensor) in read for tensor in operation.outputs):
                kept.append(operation)
                read.update(id(tensor) for tensor in operation.inputs if tensor is not None)
        self.operations = kept[::-1]

    def tensors(self) -> list[FlatTensor]:
        """Return all tensors: the inputs first, then in order of use."""
        found: dict[int, FlatTensor] = {}
        for _, tensor in self.inputs:
            found.setdefault(id(tensor), tensor)
        for operation in self.operations:
            for read in operation.inputs:
                if read is not None:
                    found.setdefault(id(read), read)
            for made in operation.outputs:
                found.setdefault(id(made), made)
        for _, tensor in self.outputs:
            found.setdefault(id(tensor), tensor)
        return list(found.values())


NUMPY_TYPES: dict[str, Any] = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "INT32": np.int32, "INT64": np.int64,
    "UINT8": np.uint8, "INT8": np.int8, "INT16": np.int16, "UINT16": np.uint16,
    "UINT32": np.uint32, "BOOL": np.bool_,
}  # fmt: skip
"""The NumPy type of each element type that is written."""

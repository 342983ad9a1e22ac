"""Growing an ONNX model node by node: onnxruntime runs every node as it is proposed, and only what runs is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .draw import Draw
from .ort import OrtError, run_model

Array = npt.NDArray[Any]

LARGEST = 3e3
"""A value with a larger number is dropped: later comparisons would test only rounding."""

MOST_NUMBERS = 6000
"""A value with more numbers is dropped, so that graphs run fast."""

WEIGHT = "w"
"""The prefix of constants that are not shapes, axes or scales, so that their numbers may be changed by a rounding unit."""


@dataclass
class OnnxCase:
    """A model with inputs.

    Attributes:
        model: The model; onnxruntime runs it.
        feeds: Inputs by name; the first are those that the model was grown with, the others differ in free sizes.
    """

    model: onnx.ModelProto
    feeds: list[dict[str, Array]]


@dataclass
class Builder:
    """A graph that grows.

    Attributes:
        draw: The source of random choices.
        opset: The opset of the model.
        plain: Whether to use only what all targets support, as far as that is known.
        nodes: The nodes so far.
        values: The arrays of all values for the drawn inputs, constants included.
        constants: Names of initializers.
        inputs: Names of inputs.
        fresh: The values that new nodes may read, oldest first.
        largest: A value with a larger number is dropped.
    """

    draw: Draw
    opset: int
    plain: bool = False
    nodes: list[NodeProto] = field(default_factory=list)
    values: dict[str, Array] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    largest: float = LARGEST
    _count: int = 0

    def name(self, prefix: str) -> str:
        """A new name."""
        self._count += 1
        return f"{prefix}{self._count}"

    def add_input(self, array: Array) -> str:
        """A new input."""
        name = self.name("x")
        self.values[name] = array
        self.inputs.append(name)
        self.fresh.append(name)
        return name

    def constant(self, array: Any, dtype: Any = None, prefix: str = "c") -> str:
        """A new initializer; its numbers must stay exact unless the prefix is that of a weight."""
        name = self.name(prefix)
        self.values[name] = self.constants[name] = np.asarray(array, dtype)
        return name

    def node(
        self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any
    ) -> str | None:
        """Append a node if onnxruntime runs it and its values are not too large; returns its first output, or ``None``."""
        made = self.nodes_of(op, inputs, outputs, **attributes)
        return made[0] if made else None

    def nodes_of(
        self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any
    ) -> list[str]:
        """As :meth:`node`, with all outputs."""
        names = [self.name("v") for _ in range(outputs)]
        attributes = {k: v for k, v in attributes.items() if v is not None}
        made = helper.make_node(op, list(inputs), names, name=self.name("n"), **attributes)
        return self.append(made)

    def append(self, node: NodeProto, captured: Sequence[str] = ()) -> list[str]:
        """Append a node that is made already; nothing if it does not run."""
        given = [n for n in (*dict.fromkeys(node.input), *captured) if n]
        feeds = {n: self.values[n] for n in given if n not in self.constants}
        graph = helper.make_graph(
            [node],
            "one",
            [typed(n, a) for n, a in feeds.items()],
            [helper.make_empty_tensor_value_info(n) for n in node.output],
            [numpy_helper.from_array(self.constants[n], n) for n in given if n in self.constants],
        )
        try:
            made = run_model(model_of(graph, self.opset), feeds)
        except OrtError:
            return []
        for array in made:
            if not isinstance(array, np.ndarray) or array.size > MOST_NUMBERS or array.ndim > 6:
                return []
            if array.dtype.kind == "f" and not np.all(np.abs(array) < self.largest):
                return []
        self.nodes.append(node)
        self.values.update(zip(node.output, made, strict=True))
        self.fresh.extend(node.output)
        return list(node.output)

    def floats(self, *ranks: int, low: int = 0) -> list[str]:
        """Values of float32, of certain ranks or of at least one, newest last; nothing empty."""
        return [
            n
            for n in self.fresh
            if self.values[n].dtype == np.float32
            and self.values[n].size
            and (self.values[n].ndim in ranks if ranks else self.values[n].ndim >= low)
        ]

    def pick(self, names: Sequence[str]) -> str | None:
        """One of several values, mostly one of the newest."""
        if not names:
            return None
        back = self.draw.weighted({1: 10, 2: 4, 3: 2, 5: 1, 9: 1})
        return names[-min(back, len(names))]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value."""
        return self.values[name].shape


def typed(name: str, array: Array, shape: Sequence[int | str | None] | None = None) -> Any:
    """The declaration of an input."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, array.shape if shape is None else shape)


def model_of(graph: onnx.GraphProto, opset: int, ir_version: int | None = None) -> onnx.ModelProto:
    """A model of a graph, of the IR version that goes with the opset unless another is given."""
    version = ir_version or (4 if opset < 10 else 6 if opset < 13 else 8 if opset < 19 else 9)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version
    )


FLOAT = TensorProto.FLOAT

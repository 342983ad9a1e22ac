"""Where the nodes of an ONNX-born graph came from, and the model that they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto


@dataclass(frozen=True)
class OnnxOrigin:
    """The host nodes that an IR node was made from.

    Attributes:
        nodes: Their indices in the host graph, in order.
        inputs: ``Value.host`` of each IR input when the node was made.
        outputs: The host names of the results.
        parts: Number of IR nodes made from this host node; it is copied only if all of them are unchanged.
    """

    nodes: tuple[int, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    parts: int = 1


@dataclass(frozen=True)
class OnnxHost:
    """The host model of an ONNX-born graph.

    Attributes:
        model: The model, which nobody may change.
        base_dir: The folder of its external data, when it came from a file.
        opset: The version of the default domain.
        constant_nodes: Indices of ``Constant`` nodes, by result name.
        idle: Names of constants that nothing read from the start.
    """

    model: ModelProto
    base_dir: Path | None
    opset: int
    constant_nodes: dict[str, int] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()

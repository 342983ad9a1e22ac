"""Origins of the nodes of a graph from ONNX, and its host model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto

from ...ir import Tensor, Value


@dataclass(frozen=True)
class OnnxOrigin:
    """The host nodes from which an IR node was made.

    Attributes:
        nodes: Their indices in the host graph, in order.
        inputs: ``Value.host`` of each IR input at the time when the node was made.
        outputs: The host names of the results.
        parts: Number of IR nodes made from this host node; it is copied only if all of them are unchanged.
    """

    nodes: tuple[int, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    parts: int = 1


@dataclass(frozen=True)
class OnnxForm:
    """The one ONNX node that an IR node is written as, where the spelling of its op would need several.

    Attributes:
        kind: The operator.
        inputs: The values that it reads; ``None`` for an input that is left out.
        attributes: Its attributes.
    """

    kind: str
    inputs: tuple[Value | None, ...]
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class OnnxHost:
    """The host model of a graph from ONNX.

    Attributes:
        model: The model, which must not be changed.
        base_dir: The folder of its external data, if it was read from a file.
        opset: The version of the default domain.
        constant_nodes: Indices of ``Constant`` nodes, by result name.
        idle: Names of constants that nothing read in the host model.
        numbers: New numbers for constants that the model stores, by name: trained weights.
        rewritten: Nodes that replace nodes of the model, by index: their bodies were rewritten.
        reserved: Names of the scopes around a body, which new values of the body must not take.
    """

    model: ModelProto
    base_dir: Path | None
    opset: int
    constant_nodes: dict[str, int] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    rewritten: Mapping[int, NodeProto] = field(default_factory=dict)
    reserved: frozenset[str] = frozenset()

    def node(self, index: int) -> NodeProto:
        """The host node at an index, with the bodies that it has now."""
        return self.rewritten.get(index) or self.model.graph.node[index]

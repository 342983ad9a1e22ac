"""The interface of targets: how they read models again, and the result of writing files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..ir import Graph, Tensor, TensorType


class Readers(Protocol):
    """Reads models for targets, which do not import frontends."""

    def file(self, path: Path) -> Graph:
        """The graph of an ONNX file, to judge what was written."""

    def types(
        self, model: Any, tensors: Mapping[str, Tensor], base_dir: Path | None
    ) -> dict[str, TensorType]:
        """The types of all values of an ONNX model, as far as they are stated or can be inferred.

        Args:
            model: The ``ModelProto``, in order; its initializers need not have their numbers.
            tensors: The numbers of initializers that do not.
            base_dir: The folder of its external data.
        """

    def again(self, graph: Graph) -> Iterator[tuple[str, Graph]]:
        """Other readings of a model, each with the words for it (``"by torch.export"``): one may know calls that were ``Opaque`` in the first."""

    def sized(self, graph: Graph, *, export: bool = False) -> Iterator[tuple[str, Graph]]:
        """Another reading of a torch model for inputs as large as the example inputs, with batches of any size, and the words for it.

        Calls that compute with other sizes are ops then. With ``export``, torch.export reads it.
        """


@dataclass(frozen=True)
class Emitted:
    """The files that a target wrote.

    Attributes:
        files: The files, the model first.
        notes: What the user should know of them, one sentence each.
        data: Further facts, as plain data for JSON.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

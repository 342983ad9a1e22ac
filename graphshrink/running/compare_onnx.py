"""An ONNX file as one side of a comparison, in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..api import load
from ..emission import data_files
from ..frontends.onnx.defaults import defaults
from ..passes.infra.tolerance import tolerance_of, unit_of
from ..report import Size, size_with_bodies
from .inputs import Arrays
from .memory import check_memory
from .sessions import run_session, session
from .widened import WidenedSession


class OnnxSide:
    """An ONNX file in onnxruntime.

    Attributes:
        path: The file.
        types: The types of the inputs, by name.
        optional: The inputs that have a default, by name.
        outputs: The names of the outputs.
        output_types: Their types.
        size: The size of the graph.
        tolerance: The error allowed for its coarsest element type.
        unit: The rounding unit of that type.
        notes: How the file was run, if not as it is.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        self.graph, _ = load(path, overridable_initializers=True)
        self.types = {v.name: v.type for v in self.graph.inputs}
        self.optional = set(defaults(self.graph.host.model))
        self.outputs = list(self.graph.output_names)
        self.output_types = [v.type for v in self.graph.outputs]
        self.size: Size | None = size_with_bodies(self.graph)
        self.tolerance = tolerance_of(self.graph)
        self.unit = unit_of(self.graph)
        self.notes: list[str] = []
        check_memory(self.graph, str(path))
        self._session = session(path, threads)
        if isinstance(self._session, WidenedSession):
            self.notes.append(f"{path}: onnxruntime ran its bfloat16 as float32")
        self._feeds: Arrays = {}

    def run(self, feeds: Arrays) -> list[Any]:
        """Set the inputs, run, and return the outputs."""
        self._feeds = feeds
        return run_session(self._session, feeds, str(self.path))

    def again(self) -> None:
        """Run again on the same inputs, for timing."""
        self._session.run(None, self._feeds)

    @property
    def file_bytes(self) -> int:
        """The bytes of the file and of its external data."""
        files = {self.path, *(path for _, path in data_files(self.graph))}
        return sum(file.stat().st_size for file in files)

""".tflite files in LiteRT: their inputs and operations, running them, and which operations XNNPACK computes."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cli.terminal import show
from ..ir import DType, MissingExtra, ModelError, TensorType, UsageError
from ..ir.errors import check_readable, one_line
from ..ir.processors import usable_cores
from ..targets.tflite.convert import METADATA
from ..targets.tflite.layout import channels_last
from .inputs import Arrays

if TYPE_CHECKING:
    from rich.console import Console

_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Port:
    """An input or output of a file.

    Attributes:
        name: The name in the signature, or the tensor's name if there is no signature.
        index: The tensor's index.
        type: Element type and stored sizes.
        order: For each stored axis, the axis of the original model, if the file records it.
        quantization: Scale and zero point; the scale is 0 if the tensor is not quantised.
    """

    name: str
    index: int
    type: TensorType
    order: tuple[int, ...] | None
    quantization: tuple[float, int]

    def to_dict(self) -> dict[str, Any]:
        """The content as plain data for JSON."""
        found: dict[str, Any] = {"type": str(self.type), "order": self.order and list(self.order)}
        if self.quantization[0]:
            found["scale"], found["zero_point"] = self.quantization
        return found

    def __str__(self) -> str:
        rank = self.type.rank or 0
        last = self.order is not None and rank > 2 and self.order == channels_last(rank).perm
        scale, zero = self.quantization
        how = f", {scale:g} * (q - {zero})" if scale else ""
        return f"{self.name}: {self.type}{' channels last' if last else ''}{how}"


class LiteModel:
    """A loaded .tflite file.

    Attributes:
        path: The file.
        inputs: The inputs, in order.
        outputs: The outputs, in order.

    Args:
        path: The file.
        threads: The number of threads of LiteRT; 0 uses all cores.
        xnnpack: Delegate operations to XNNPACK where possible; if false, LiteRT's own kernels compute all of them.

    Raises:
        MissingExtra: If LiteRT is not installed.
        ModelError: If the file cannot be loaded.
    """

    def __init__(self, path: Path, threads: int = 1, *, xnnpack: bool = True) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise MissingExtra("running .tflite files", "tflite", "ai-edge-litert") from error
        self.path = path
        self._content = _read(path)
        kernels = "BUILTIN" if xnnpack else "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
        try:
            with _silent_stderr():
                self._loaded = Interpreter(
                    model_content=self._content,
                    num_threads=threads or usable_cores(),
                    experimental_op_resolver_type=getattr(OpResolverType, kernels),
                )
                self._loaded.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT cannot load {path}: {one_line(error)}") from error
        recorded = self._recorded
        self.inputs = self._ports("inputs", self._loaded.get_input_details(), recorded)
        self.outputs = self._ports("outputs", self._loaded.get_output_details(), recorded)

    def _ports(self, kind: str, details: Any, recorded: Mapping[str, Any]) -> list[Port]:
        names = {d["index"]: d["name"] for d in details}
        if _SIGNATURE in self._loaded.get_signature_list():
            runner = self._loaded.get_signature_runner(_SIGNATURE)
            kept = runner.get_input_details() if kind == "inputs" else runner.get_output_details()
            names |= {d["index"]: name for name, d in kept.items()}
        orders = recorded.get(kind, {})
        found = []
        for detail in details:
            name, sizes = names[detail["index"]], detail["shape_signature"]
            shape = tuple(int(d) if d >= 0 else None for d in sizes)
            order = orders.get(name)
            type_ = TensorType(DType.of(np.dtype(detail["dtype"])), shape)
            scale, zero = detail["quantization"]
            found.append(
                Port(name, detail["index"], type_, None if order is None else tuple(order),
                     (float(scale), int(zero)))
            )  # fmt: skip
        return found

    @cached_property
    def _model(self) -> Any:
        from ai_edge_litert import schema_py_generated as schema

        return schema.Model.GetRootAs(self._content)

    def metadata(self, name: str) -> bytes | None:
        """An entry of the file's metadata."""
        model = self._model
        for i in range(model.MetadataLength()):
            entry = model.Metadata(i)
            if entry.Name() == name.encode():
                content = model.Buffers(entry.Buffer())
                return b"" if content.DataIsNone() else content.DataAsNumpy().tobytes()
        return None

    @cached_property
    def _recorded(self) -> dict[str, Any]:
        """Our own metadata in the file; empty if another converter wrote it."""
        try:
            found = json.loads(self.metadata(METADATA) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def written_by(self) -> str | None:
        """The version of graphshrink that wrote the file, if one did."""
        version = self._recorded.get("version")
        return None if version is None else str(version)

    @property
    def minimum_runtime(self) -> str | None:
        """The oldest version of the runtime that can run the file, if the file records it."""
        content = self.metadata("min_runtime_version")
        return None if content is None else content.rstrip(b"\0").decode(errors="replace")

    @cached_property
    def coarsest(self) -> DType:
        """The coarsest element type of the weights: int8, float16 or float32."""
        from ai_edge_litert import schema_py_generated as schema

        graph = self._model.Subgraphs(0)
        found = {graph.Tensors(i).Type() for i in range(graph.TensorsLength())}
        if schema.TensorType.INT8 in found:
            return DType.I8
        return DType.F16 if schema.TensorType.FLOAT16 in found else DType.F32

    # Running.

    def feed(self, arrays: Arrays) -> None:
        """Set the inputs from arrays by name, in the stored order of axes.

        Raises:
            ModelError: If LiteRT refuses their shapes.
        """
        try:
            details = self._loaded.get_input_details()
            for port, detail in zip(self.inputs, details, strict=True):
                if arrays[port.name].shape != tuple(detail["shape"]):
                    self._loaded.resize_tensor_input(port.index, arrays[port.name].shape)
            self._loaded.allocate_tensors()
            for port in self.inputs:
                self._loaded.set_tensor(port.index, arrays[port.name].copy(order="C"))
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT cannot run {self.path}: {one_line(error)}") from error

    def invoke(self) -> None:
        """Run on the present inputs.

        Raises:
            ModelError: If LiteRT fails.
        """
        try:
            self._loaded.invoke()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT cannot run {self.path}: {one_line(error)}") from error

    def results(self) -> list[Any]:
        """The outputs of the last run, in the stored order of axes."""
        return [self._loaded.get_tensor(port.index) for port in self.outputs]

    # Operations.

    @cached_property
    def operations(self) -> dict[str, tuple[int, int]]:
        """For each operator, the number of its operations and how many of them XNNPACK computes."""
        nodes = self._loaded._get_ops_details()
        makers = {
            int(out): node["index"]
            for node in nodes
            if node["op_name"] != "DELEGATE"
            for out in node["outputs"]
        }
        by_index = {node["index"]: node for node in nodes}
        taken: set[int] = set()
        for part in nodes:
            if part["op_name"] != "DELEGATE":
                continue
            # A delegated part consists of the operations between its inputs and its outputs.
            given = {int(t) for t in part["inputs"]}
            open_ = [int(t) for t in part["outputs"]]
            while open_:
                tensor = open_.pop()
                index = makers.get(tensor)
                if tensor in given or index is None or index in taken:
                    continue
                taken.add(index)
                open_ += [int(t) for t in by_index[index]["inputs"]]
        names = {n["index"]: n["op_name"] for n in nodes if n["op_name"] != "DELEGATE"}
        total = Counter(names.values())
        with_xnnpack = Counter(names[index] for index in taken)
        return {name: (total[name], with_xnnpack[name]) for name in sorted(total)}

    @property
    def file_bytes(self) -> int:
        """The size of the file."""
        return len(self._content)

    def to_dict(self) -> dict[str, Any]:
        """The content as plain data for JSON."""
        return {
            "inputs": {port.name: port.to_dict() for port in self.inputs},
            "outputs": {port.name: port.to_dict() for port in self.outputs},
            "operations": {
                name: {"count": count, "xnnpack": taken}
                for name, (count, taken) in self.operations.items()
            },
            "transposes": self.operations.get("TRANSPOSE", (0, 0))[0],
            "file_bytes": self.file_bytes,
            "minimum_runtime": self.minimum_runtime,
            "written_by": self.written_by,
        }

    def render(self, console: Console) -> None:
        """Print inputs, outputs and operations."""
        from rich.table import Table

        for kind, ports in (("input ", self.inputs), ("output", self.outputs)):
            for port in ports:
                console.print(f"{kind} {port}", markup=False, highlight=False)
        table = Table("operator", "count", "XNNPACK takes")
        for name, (count, taken) in self.operations.items():
            table.add_row(name, f"{count:,}", f"{taken:,}")
        total = [sum(pair) for pair in zip(*self.operations.values(), strict=True)] or [0, 0]
        table.add_row("all", *(f"{n:,}" for n in total))
        show(console, table)
        transposes = self.operations.get("TRANSPOSE", (0, 0))[0]
        by = f"graphshrink {self.written_by}" if self.written_by else "another converter"
        console.print(
            f"{transposes} TRANSPOSE, {self.file_bytes:,} bytes, written by {by}, "
            f"runs from runtime {self.minimum_runtime or '?'}",
            highlight=False,
        )


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hide the messages that LiteRT writes to the file descriptor of standard error when it loads."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # There is no standard error.
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _read(path: Path) -> bytes:
    check_readable(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    if content[4:8] != b"TFL3":
        raise ModelError(f"{path} is not a .tflite file")
    return content

""".tflite files in LiteRT: what they hold, what they compute, and what XNNPACK takes of them."""

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
from ..ir.errors import check_readable
from ..targets.tflite.convert import METADATA
from ..targets.tflite.layout import channels_last
from .inputs import Arrays
from .sessions import one_line

if TYPE_CHECKING:
    from rich.console import Console

_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Port:
    """An input or output of a file.

    Attributes:
        name: The signature's name, or the tensor's where there is no signature.
        index: The tensor's number.
        type: Element type and stored sizes.
        order: Which axis of the original model each stored axis holds, if the file says so.
        quantization: Scale and zero point; a scale of 0 where there is none.
    """

    name: str
    index: int
    type: TensorType
    order: tuple[int, ...] | None
    quantization: tuple[float, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
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
    """A .tflite file, loaded.

    Attributes:
        path: The file.
        inputs: What it takes, in order.
        outputs: What it gives, in order.

    Args:
        path: The file.
        threads: Threads of LiteRT; 0 takes all.
        xnnpack: Let XNNPACK take what it can; else LiteRT's own kernels compute everything.

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
            with _hushed():
                self._loaded = Interpreter(
                    model_content=self._content,
                    num_threads=threads or os.cpu_count() or 1,
                    experimental_op_resolver_type=getattr(OpResolverType, kernels),
                )
                self._loaded.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT cannot load {path}: {one_line(error)}") from error
        said = self._said
        self.inputs = self._ports("inputs", self._loaded.get_input_details(), said)
        self.outputs = self._ports("outputs", self._loaded.get_output_details(), said)

    def _ports(self, kind: str, details: Any, said: Mapping[str, Any]) -> list[Port]:
        names = {d["index"]: d["name"] for d in details}
        if _SIGNATURE in self._loaded.get_signature_list():
            runner = self._loaded.get_signature_runner(_SIGNATURE)
            kept = runner.get_input_details() if kind == "inputs" else runner.get_output_details()
            names |= {d["index"]: name for name, d in kept.items()}
        orders = said.get(kind, {})
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
    def _said(self) -> dict[str, Any]:
        try:
            found = json.loads(self.metadata(METADATA) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def written_by(self) -> str | None:
        """The version of graphshrink that wrote the file, if one did."""
        version = self._said.get("version")
        return None if version is None else str(version)

    @property
    def minimum_runtime(self) -> str | None:
        """The oldest runtime that runs the file, if it says so."""
        content = self.metadata("min_runtime_version")
        return None if content is None else content.rstrip(b"\0").decode(errors="replace")

    @cached_property
    def coarsest(self) -> DType:
        """The coarsest type that weights are stored in: int8, float16 or float32."""
        from ai_edge_litert import schema_py_generated as schema

        graph = self._model.Subgraphs(0)
        found = {graph.Tensors(i).Type() for i in range(graph.TensorsLength())}
        if schema.TensorType.INT8 in found:
            return DType.I8
        return DType.F16 if schema.TensorType.FLOAT16 in found else DType.F32

    # Running.

    def feed(self, arrays: Arrays) -> None:
        """Set the inputs, from arrays of the stored order by name.

        Raises:
            ModelError: If LiteRT does not take their shapes.
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
        """Run on the inputs that are set.

        Raises:
            ModelError: If LiteRT fails.
        """
        try:
            self._loaded.invoke()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT cannot run {self.path}: {one_line(error)}") from error

    def results(self) -> list[Any]:
        """What the last run gave, in the stored order of axes."""
        return [self._loaded.get_tensor(port.index) for port in self.outputs]

    # What it is made of.

    @cached_property
    def operations(self) -> dict[str, tuple[int, int]]:
        """Operations by operator: how many there are, and how many of them XNNPACK takes."""
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
            # A part is what lies between its inputs and its outputs.
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
        """Plain data, for JSON."""
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
        """Print what the file holds."""
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
def _hushed() -> Iterator[None]:
    """Without LiteRT's greetings, which it writes to the process's own standard error."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # There is none.
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

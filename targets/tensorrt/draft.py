"""The ONNX model that the steps of the target change in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from ...hosts.onnx.operators import opset_of
from ...hosts.onnx.origins import OnnxHost
from ...hosts.onnx.scopes import all_nodes as nodes_within
from ...hosts.onnx.scopes import bodies
from ...hosts.onnx.tensors import (
    code_of,
    embed,
    inner_tensors,
    is_external,
    proto_of,
    tensor_of,
    tensors_in,
)
from ...hosts.torch import is_from_torch
from ...ir import Graph, ModelError, Tensor, TensorType
from ..emitted import Readers
from ..onnx.emitter import INLINE_BYTES, emit
from ..options import NEWEST_OPSET, OnnxOptions

_LARGE = 4096
"""Constants of at least this many bytes are not shapes or axes, so onnx's checker does not need their numbers."""


@dataclass
class Draft:
    """A model that is being prepared for TensorRT.

    Attributes:
        model: The model; initializers named in ``tensors`` are placeholders without numbers.
        tensors: The numbers of the placeholders.
        readers: Infers the types of values.
        base_dir: The folder of external data.
        external: Whether the model had external data.
        notes: Notes for the user, one sentence each.
    """

    model: ModelProto
    tensors: dict[str, Tensor]
    readers: Readers
    base_dir: Path | None = None
    external: bool = False
    notes: list[str] = field(default_factory=list)

    @classmethod
    def from_graph(
        cls,
        graph: Graph,
        readers: Readers,
        newest: int = NEWEST_OPSET,
        any_batch: bool = True,
    ) -> Draft:
        """Return the draft of a graph, emitted as ONNX.

        Args:
            graph: The graph.
            readers: Infers the types of values, and reads torch models again.
            newest: The newest opset that TensorRT takes; a torch model is written in it.
            any_batch: Leave the batch size of a torch model open.
        """
        options = OnnxOptions()
        if is_from_torch(graph):
            options = OnnxOptions(opset=min(newest, NEWEST_OPSET))
        written = emit(graph, options, readers, any_batch)
        model, tensors = written.model, written.tensors
        base_dir = graph.host.base_dir if isinstance(graph.host, OnnxHost) else None
        external = any(map(is_external, tensors_in(model)))
        if base_dir is not None:
            # onnx's checker and graphsurgeon read the tensors in bodies, and look for external data in the working directory.
            embed(inner_tensors(model), base_dir)
        return cls(model, dict(tensors), readers, base_dir, external, list(written.notes))

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return opset_of(self.model)

    def constants(self) -> dict[str, Tensor]:
        """Return the initializers by name, as lazy tensors."""
        found = {p.name: tensor_of(p, self.base_dir) for p in self.model.graph.initializer}
        return {name: t for name, t in found.items() if t is not None} | self.tensors

    def set_constant(self, name: str, tensor: Tensor) -> None:
        """Set the numbers of a constant, which may be new; large ones are computed when the file is written."""
        protos = self.model.graph.initializer
        place = next((i for i, p in enumerate(protos) if p.name == name), None)
        if place is not None:
            # Not overwritten in place: the new numbers may be computed lazily from the old proto.
            del protos[place]
        proto = protos.add()
        self.tensors.pop(name, None)
        if tensor.nbytes <= INLINE_BYTES:
            proto.CopyFrom(proto_of(tensor, name))
            return
        proto.CopyFrom(TensorProto(name=name, data_type=code_of(tensor.dtype), dims=tensor.shape))
        self.tensors[name] = tensor

    def types(self) -> dict[str, TensorType]:
        """Return the types of inputs, constants and results, as far as they can be inferred."""
        return self.readers.types(self.model, self.tensors, self.base_dir)

    def name_nodes(self) -> None:
        """Make node names unique: TensorRT's log refers to layers by name."""
        taken: set[str] = set()
        for node in all_nodes(self.model.graph):
            base = node.name or (node.output[0] if node.output else "") or node.op_type
            name, count = base, 1
            while name in taken:
                count += 1
                name = f"{base}_{count}"
            taken.add(name)
            node.name = name

    def checked(self) -> ModelProto:
        """Return a copy without the numbers of large constants, after onnx's full check.

        Raises:
            ModelError: If the check fails.
        """
        import onnx

        light = ModelProto()
        light.CopyFrom(self.model)
        light.ir_version = max(light.ir_version, 4)
        graph, listed = light.graph, {v.name for v in light.graph.input}
        kept = []
        for proto in graph.initializer:
            large = is_external(proto) or proto.ByteSize() >= _LARGE
            if proto.name not in self.tensors and not large:
                kept.append(proto)
            elif proto.name not in listed:
                # Replace the constant by an input of its type.
                value = helper.make_tensor_value_info(proto.name, proto.data_type, proto.dims)
                graph.input.append(value)
        del graph.initializer[:]
        graph.initializer.extend(kept)
        try:
            onnx.checker.check_model(light, full_check=True)
        except Exception as error:
            message = " ".join(str(error).split())[:300]
            raise ModelError(f"the model does not pass onnx's checker: {message}") from error
        return light


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph and of all bodies in it, in order."""
    return nodes_within(graph.node)


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all bodies in it."""
    yield graph
    for node in all_nodes(graph):
        yield from bodies(node)


def attributes(node: NodeProto) -> dict[str, object]:
    """Return a node's attributes as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}

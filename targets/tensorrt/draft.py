"""The ONNX model that becomes a TensorRT file, while the steps of the target work on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from ...hosts.onnx.origins import OnnxHost
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
from ...ir import Graph, ModelError, Tensor, TensorType
from ..emitted import Readers
from ..onnx.emitter import INLINE_BYTES, emit

_LARGE = 4096
"""Constants of this many bytes are no shapes or axes, whose numbers onnx's checker would look at."""

DOMAINS = ("", "ai.onnx")
"""How ONNX's own domain is spelled."""


@dataclass
class Draft:
    """A model in the making.

    Attributes:
        model: The model; initializers named in ``tensors`` are placeholders without numbers.
        tensors: The numbers of the placeholders.
        readers: Reads models; it knows the types of values.
        base_dir: The folder that external data lies in.
        external: Whether the model came with external data.
        notes: What the user should know, one sentence each.
    """

    model: ModelProto
    tensors: dict[str, Tensor]
    readers: Readers
    base_dir: Path | None = None
    external: bool = False
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, graph: Graph, readers: Readers) -> Draft:
        """Emit a graph as ONNX: an ONNX-born one natively, an FX-born one through torch's exporter."""
        model, tensors = emit(graph)
        base_dir = graph.host.base_dir if isinstance(graph.host, OnnxHost) else None
        split = any(map(is_external, tensors_in(model)))
        if base_dir is not None:
            # onnx's checker and graphsurgeon look into bodies, and for their files in the folder of the process.
            embed(inner_tensors(model), base_dir)
        return cls(model, dict(tensors), readers, base_dir, split)

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return next((o.version for o in self.model.opset_import if o.domain in DOMAINS), 1)

    def constants(self) -> dict[str, Tensor]:
        """The initializers by name, as lazy handles."""
        found = {p.name: tensor_of(p, self.base_dir) for p in self.model.graph.initializer}
        return {name: t for name, t in found.items() if t is not None} | self.tensors

    def put(self, name: str, tensor: Tensor) -> None:
        """Give a constant, old or new, other numbers; large ones are computed when the file is written."""
        protos = self.model.graph.initializer
        place = next((i for i, p in enumerate(protos) if p.name == name), None)
        if place is not None:
            # Not overwritten: the new numbers may be computed from the old ones.
            del protos[place]
        proto = protos.add()
        self.tensors.pop(name, None)
        if tensor.nbytes <= INLINE_BYTES:
            proto.CopyFrom(proto_of(tensor, name))
            return
        proto.CopyFrom(TensorProto(name=name, data_type=code_of(tensor.dtype), dims=tensor.shape))
        self.tensors[name] = tensor

    def types(self) -> dict[str, TensorType]:
        """The types of inputs, constants and results, as far as they can be inferred."""
        return self.readers.types(self.model, self.tensors, self.base_dir)

    def name_nodes(self) -> None:
        """Give every node a name that no other has: what TensorRT reports is told by names."""
        taken: set[str] = set()
        for node in walk(self.model.graph):
            base = node.name or (node.output[0] if node.output else "") or node.op_type
            name, count = base, 1
            while name in taken:
                count += 1
                name = f"{base}_{count}"
            taken.add(name)
            node.name = name

    def checked(self) -> ModelProto:
        """A copy without the numbers of large constants, checked by onnx in full.

        Raises:
            ModelError: If onnx has something against it.
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
                # An input of its type stands for it.
                value = helper.make_tensor_value_info(proto.name, proto.data_type, proto.dims)
                graph.input.append(value)
        del graph.initializer[:]
        graph.initializer.extend(kept)
        try:
            onnx.checker.check_model(light, full_check=True)
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            raise ModelError(f"the model does not pass onnx's checker: {said}") from error
        return light


def walk(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of all bodies in it, in order."""
    stack: list[Iterator[NodeProto]] = [iter(graph.node)]
    while stack:
        for node in stack[-1]:
            yield node
            inner = [n for body in bodies(node) for n in body.node]
            if inner:
                stack.append(iter(inner))
                break
        else:
            stack.pop()


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all bodies in it."""
    yield graph
    for node in walk(graph):
        yield from bodies(node)


def attributes(node: NodeProto) -> dict[str, object]:
    """A node's attributes as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}

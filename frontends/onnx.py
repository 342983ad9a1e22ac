"""ONNX models to IR graphs.

Every host node becomes one IR node, canonical where the IR knows it and ``Opaque`` elsewhere; then
spread-out spellings are raised (see :mod:`.raising`). Values keep their ONNX names as ``host``, nodes keep
the indices of their host nodes as ``origin``, so that the emitter can copy what was not changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TypeProto, helper

from ..ir import (
    UNKNOWN,
    ArrayTensor,
    Dim,
    DType,
    Graph,
    GraphError,
    InferenceError,
    LazyTensor,
    Opaque,
    Tensor,
    TensorType,
    Value,
)
from .onnx_ops import RULES, Lowered, Site
from .onnx_tensors import dtype_of, read_model, tensor_of
from .raising import raise_patterns

_FOLD_BYTES = 1 << 22
"""Constants of up to this size are computed while importing, so that shapes become known."""


@dataclass(frozen=True)
class OnnxOrigin:
    """The host nodes that an IR node stands for.

    Attributes:
        nodes: Their indices in the host graph, in order.
        inputs: ``Value.host`` of each IR input when the node was made.
        outputs: The host names of the results.
    """

    nodes: tuple[int, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


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


def from_onnx(model: ModelProto | str | os.PathLike[str]) -> Graph:
    """Import an ONNX model.

    Args:
        model: The model, or the path of a file; external data is mapped, not read.

    Raises:
        ModelError: If the file cannot be read or must not be.
    """
    if isinstance(model, ModelProto):
        return _Importer(model, None).run()
    proto, folder = read_model(model)
    return _Importer(proto, folder).run()


def type_of(proto: TypeProto) -> TensorType:
    """The IR type of an ONNX type; unknown for sequences, maps, optionals and sparse tensors."""
    if not proto.HasField("tensor_type"):
        return UNKNOWN
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return TensorType(dtype_of(tensor.elem_type), None)
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value"):
            dims.append(dim.dim_value if dim.dim_value >= 0 else None)
        else:
            dims.append(dim.dim_param or None)
    return TensorType(dtype_of(tensor.elem_type), tuple(dims))


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The subgraphs among a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def captures(node: NodeProto) -> list[str]:
    """Outer names that a node's subgraphs read, each once, in order."""
    found: dict[str, None] = {}
    for body in bodies(node):
        own = {v.name for v in body.input} | {t.name for t in body.initializer}
        own |= {t.values.name for t in body.sparse_initializer}
        for inner in body.node:
            for name in [*inner.input, *captures(inner)]:
                if name and name not in own:
                    found.setdefault(name)
            own.update(inner.output)
        for value in body.output:
            if value.name and value.name not in own:
                found.setdefault(value.name)
    return list(found)


class _Importer:
    def __init__(self, model: ModelProto, base_dir: Path | None) -> None:
        self.model, self.base_dir = model, base_dir
        self.graph = Graph(model.graph.name or "graph")
        versions = {o.domain: o.version for o in model.opset_import}
        self.opset = versions.get("", versions.get("ai.onnx", 1))
        self.functions = {(f.domain, f.name) for f in model.functions}
        self.values: dict[str, Value] = {}
        self.types: dict[str, TensorType] = {}
        self.constant_nodes: dict[str, int] = {}

    def run(self) -> Graph:
        host = self.model.graph
        self.types = {v.name: type_of(v.type) for v in [*host.value_info, *host.output]}
        if self._needs_inference():
            self.types = {**self._inferred(), **self.types}
        given = {v.name for v in host.input}
        initial = {t.name: t for t in host.initializer}
        for item in host.input:
            # Before IR version 4 every initializer had to be listed as an input as well.
            if item.name in initial and self.model.ir_version < 4:
                continue
            self._define(self.graph.add_input(item.name, type_of(item.type)), item.name)
        for name, proto in initial.items():
            if name in given and self.model.ir_version >= 4:
                continue  # The caller may override it: an input with a default, not a constant.
            data = tensor_of(proto, self.base_dir)
            if data is not None:
                self._define(self.graph.add_constant(data, name), name)
            else:
                self._barrier_value(name)
        for sparse in host.sparse_initializer:
            self._barrier_value(sparse.values.name)
        for index, node in enumerate(host.node):
            self._node(index, node)
        for item in host.output:
            self.graph.add_output(self._value(item.name), item.name)
        idle = frozenset(set(initial) | set(self.constant_nodes)) - self._read_names()
        self.graph.host = OnnxHost(self.model, self.base_dir, self.opset, self.constant_nodes, idle)
        raise_patterns(self.graph, _combine)
        return self.graph

    # Names and types.

    def _read_names(self) -> set[str]:
        host = self.model.graph
        read = {name for node in host.node for name in node.input}
        read.update(v.name for v in host.output)
        for node in host.node:
            if any(True for _ in bodies(node)):
                read.update(captures(node))
        return read

    def _needs_inference(self) -> bool:
        return any(
            node.op_type not in RULES and any(o and o not in self.types for o in node.output)
            for node in self.model.graph.node
        )

    def _inferred(self) -> dict[str, TensorType]:
        """What onnx infers, from a copy whose large constants are inputs."""
        light, host = ModelProto(), self.model.graph
        light.ir_version = self.model.ir_version
        light.opset_import.extend(self.model.opset_import)
        light.functions.extend(self.model.functions)
        light.graph.name = "types"
        light.graph.node.extend(host.node)
        light.graph.input.extend(host.input)
        light.graph.output.extend(host.output)
        light.graph.value_info.extend(host.value_info)
        listed = {v.name for v in host.input}
        for proto in host.initializer:
            if proto.data_location != onnx.TensorProto.EXTERNAL and proto.ByteSize() < 4096:
                light.graph.initializer.append(proto)
            elif proto.name not in listed:
                light.graph.input.append(
                    helper.make_tensor_value_info(proto.name, proto.data_type, proto.dims)
                )
        try:
            done = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
        except Exception:
            self.graph.notes.append("onnx could not infer the shapes of this model")
            return {}
        return {v.name: type_of(v.type) for v in done.value_info}

    def _define(self, value: Value, name: str) -> None:
        value.host = name
        self.values[name] = value

    def _barrier_value(self, name: str) -> None:
        """A value of the host that is no node's result and no tensor of ours."""
        node = self.graph.append(
            Opaque("onnx:initializer", pure=False),
            [],
            name=name,
            types=[self.types.get(name, UNKNOWN)],
            output_names=[name],
        )
        node.origin = OnnxOrigin((), (), (name,))
        self._define(node.output, name)

    def _value(self, name: str) -> Value:
        if name not in self.values:
            # Not valid ONNX, or a name of an enclosing scope that we cannot see.
            self._barrier_value(name)
        return self.values[name]

    # Nodes.

    def _node(self, index: int, node: NodeProto) -> None:
        domain = node.domain in ("", "ai.onnx")
        if domain and node.op_type == "Constant" and self._constant(index, node):
            return
        inputs = [self._value(n) if n else None for n in node.input]
        lowered: Lowered | None = None
        known = (node.domain, node.op_type) not in self.functions and domain
        if known and node.op_type in RULES and sum(bool(o) for o in node.output) >= 1:
            lowered = self._lower(node, inputs)
        if lowered is None:
            inputs += [self._value(name) for name in captures(node)]
            pure = known and not node.op_type.startswith(("Random", "Bernoulli", "Multinomial"))
            pure = pure and not any(True for _ in bodies(node))
            kind = f"onnx:{node.domain + '.' if not domain else ''}{node.op_type}"
            made = self.graph.append(
                Opaque(kind, pure),
                inputs,
                name=node.name,
                types=[self.types.get(o, UNKNOWN) for o in node.output],
                output_names=[o or f"{node.op_type}_unused" for o in node.output],
            )
        else:
            op, operands = lowered
            arguments = [
                self._derived(o, node, i) if isinstance(o, Tensor) else o
                for i, o in enumerate(operands)
            ]
            made = self.graph.append(
                op,
                arguments,
                name=node.name,
                types=self._stated(node),
                output_names=list(node.output),
            )
        for value, name in zip(made.outputs, node.output, strict=False):
            if name:
                self._define(value, name)
        made.origin = OnnxOrigin(
            (index,),
            tuple(v.host if v is not None else None for v in made.inputs),
            tuple(v.host for v in made.outputs),
        )
        if known:
            self._fold(node, made.outputs)

    def _stated(self, node: NodeProto) -> list[TensorType]:
        return [self.types.get(o, UNKNOWN) for o in node.output if o]

    def _lower(self, node: NodeProto, inputs: list[Value | None]) -> Lowered | None:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        site = Site(node, inputs, attributes, self.opset)
        try:
            lowered = RULES[node.op_type](site)
            if lowered is None:
                return None
            op, operands = lowered
            types = [
                o.type if isinstance(o, Tensor) else None if o is None else o.type for o in operands
            ]
            inferred = op.infer(types)
        except (InferenceError, GraphError, ValueError):
            return None
        stated = self._stated(node)
        if inferred is None or len(inferred) != len(stated) or len(stated) != len(node.output):
            return None
        # Where onnx's own types disagree with ours, ours are wrong about this node.
        if not all(i.accepts(t) for i, t in zip(inferred, stated, strict=True)):
            return None
        return lowered

    def _derived(self, data: Tensor, node: NodeProto, place: int) -> Value:
        value = self.graph.add_constant(data, f"{node.output[0]}_c{place}")
        value.host = ("derived", node.output[0], place)
        return value

    def _constant(self, index: int, node: NodeProto) -> bool:
        attribute = node.attribute[0] if len(node.attribute) == 1 else None
        if attribute is None:
            return False
        data: Tensor | None
        if attribute.name == "value":
            data = tensor_of(attribute.t, self.base_dir)
        elif attribute.name in ("value_float", "value_floats"):
            data = ArrayTensor(np.array(helper.get_attribute_value(attribute), np.float32))
        elif attribute.name in ("value_int", "value_ints"):
            data = ArrayTensor(np.array(helper.get_attribute_value(attribute), np.int64))
        else:
            return False
        if data is None:
            return False
        self._define(self.graph.add_constant(data, node.output[0]), node.output[0])
        self.constant_nodes[node.output[0]] = index
        return True

    # Constants that are computed from constants.

    def _fold(self, node: NodeProto, outputs: Sequence[Value]) -> None:
        if node.op_type == "Shape" and node.input[0]:
            shape = self.values[node.input[0]].type.static_shape
            if shape is not None:
                cut = {a.name: a.i for a in node.attribute}
                part = shape[cut.get("start", 0) : cut.get("end", len(shape))]
                outputs[0].data = ArrayTensor(np.array(part, np.int64))
                outputs[0].type = outputs[0].data.type
            return
        if node.op_type == "CastLike":
            data, like = self.values[node.input[0]].data, self.values[node.input[1]].type.dtype
            if data is not None and data.dtype is like:
                outputs[0].data, outputs[0].type = LazyTensor(*_same(data)), data.type
                return
        feeds = {name: self.values[name].data for name in node.input if name}
        if not feeds or any(data is None for data in feeds.values()):
            return
        if any(True for _ in bodies(node)) or node.op_type.startswith(
            ("Random", "Bernoulli", "Multinomial", "Dropout", "Optional", "Sequence")
        ):
            return
        if sum(data.nbytes for data in feeds.values() if data is not None) > _FOLD_BYTES:
            return
        size = outputs[0].type.size
        if size is not None and size * 8 > _FOLD_BYTES:
            return
        arrays = {name: data.numpy() for name, data in feeds.items() if data is not None}
        if node.op_type in ("ConstantOfShape", "Expand", "Tile") and not _bounded(node, arrays):
            return
        results = _evaluate(node, arrays, self.model)
        if results is None:
            return
        for value, result in zip(outputs, results, strict=True):
            data = ArrayTensor(result)
            if value.type.accepts(data.type):
                value.data, value.type = data, data.type


def _same(data: Tensor) -> tuple[tuple[int, ...], DType, Callable[[], Any]]:
    """The numbers of a tensor without its identity in the host."""
    return data.shape, data.dtype, data.numpy


def _bounded(node: NodeProto, arrays: dict[str, Any]) -> bool:
    count = float(np.prod(arrays[node.input[-1]].astype(np.float64)))
    if node.op_type != "ConstantOfShape":
        count *= arrays[node.input[0]].size
    return count * 8 <= _FOLD_BYTES


def _evaluate(node: NodeProto, arrays: dict[str, Any], model: ModelProto) -> list[Any] | None:
    """What one node makes of constants, computed by onnxruntime; ``None`` where it cannot."""
    try:
        import onnxruntime

        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in arrays.items()
        ]
        outputs = [onnx.ValueInfoProto(name=o) for o in node.output]
        single = helper.make_model(
            helper.make_graph([node], "constant", inputs, outputs),
            opset_imports=list(model.opset_import),
            ir_version=min(model.ir_version, 10),
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            single.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results: Any = session.run(None, {n: np.ascontiguousarray(a) for n, a in arrays.items()})
    except Exception:
        return None
    return list(results) if all(isinstance(r, np.ndarray) for r in results) else None


def _combine(origins: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """The origin of a pattern that is made of several nodes."""
    nodes = sorted(index for origin in origins for index in origin.nodes)
    return OnnxOrigin(tuple(nodes), tuple(inputs), tuple(outputs))


__all__ = ["OnnxHost", "OnnxOrigin", "bodies", "captures", "from_onnx", "type_of"]

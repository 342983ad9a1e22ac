"""Constants that are computed from constants; onnxruntime evaluates them on demand.

A node whose inputs are all known has known results: handles that carry a type now, and evaluate the part of
the model that leads to them on demand. Whether onnxruntime has a kernel is asked before anything is
promised. Small results are kept, large ones are computed again, so that memory follows the tensor at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from ...hosts.onnx.scopes import has_bodies
from ...hosts.onnx.tensors import code_of, proto_of
from ...hosts.onnx.types import type_of
from ...ir import UNKNOWN, ArrayTensor, DType, LazyTensor, ModelError, Tensor, TensorType

_SMALL = 1 << 16
"""Tensors of up to this many bytes are kept once computed."""
_LIMIT = 1 << 31
"""A constant is not computed if it needs more bytes than this, intermediate results included."""
SHAPE_LIKE = 64
"""Integer tensors of up to this many elements may be sizes: type inference sees their numbers."""

_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")
_NOT_TENSORS = ("Sequence", "Optional", "SplitToSequence", "ConcatFromSequence", "StringSplit")
_NO_LARGER = frozenset(
    {
        "Compress", "Gather", "GatherElements", "GatherND", "NonZero", "NonMaxSuppression", "Reshape",
        "Slice", "Split", "Squeeze", "TopK", "Unique", "Unsqueeze",
    }
)  # fmt: skip
"""Operators whose result size depends on the numbers of their inputs, and is about the size of these."""
_CHAIN = 1 << 26
"""Only results of at least this many bytes count as memory that computing a constant needs."""


class NotComputable(ModelError):
    """A constant of the host cannot be computed: the model itself could not run."""


class Constants:
    """Computes a model's constants.

    Args:
        model: The host model, for its operator sets.
    """

    def __init__(self, model: ModelProto) -> None:
        self._opsets = list(model.opset_import)
        # onnxruntime refuses newer IR versions, which say nothing about what an operator computes.
        self._ir_version = min(max(model.ir_version, 4), 10)
        self._nodes: list[NodeProto] = []
        self._makers: dict[str, int] = {}
        self._leaves: dict[str, Tensor] = {}
        self._types: dict[str, TensorType] = {}
        self._kept: dict[str, Tensor] = {}
        self._large: dict[str, dict[str, int]] = {}
        self._runs: dict[Any, bool] = {}

    def results(
        self, node: NodeProto, inputs: Mapping[str, Tensor], types: Sequence[TensorType]
    ) -> list[Tensor] | None:
        """The results of a node whose inputs are known, as lazy tensors.

        Args:
            node: The node.
            inputs: Its inputs' tensors, by name.
            types: What is known for certain about its results.

        Returns:
            One tensor a result, or ``None`` when they are not known or too large.
        """
        if node.op_type.startswith(_RANDOM + _NOT_TENSORS) or has_bodies(node):
            return None
        if not inputs or not all(node.output) or not self._has_kernel(node, inputs):
            return None
        if not all(map(_is_full, types)):
            types = self._inferred(node, inputs)
        if not all(map(_is_full, types)):
            return self._computed(node, inputs)
        if not all(map(_is_fetched, types)):
            return None
        large = self._large_before(inputs)
        large |= {n: _size(t) for n, t in zip(node.output, types, strict=True) if _size(t) > _CHAIN}
        if sum(large.values()) > _LIMIT:
            return None
        self._add(node, inputs, types)
        self._large.update(dict.fromkeys(node.output, large) if large else {})
        return [
            LazyTensor(t.static_shape or (), t.dtype, partial(self._array, name))
            for t, name in zip(types, node.output, strict=True)
            if t.dtype is not None
        ]

    def _large_before(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        """The large results that computing these needs, with their bytes."""
        return {n: b for name in inputs for n, b in self._large.get(name, {}).items()}

    def _add(
        self, node: NodeProto, inputs: Mapping[str, Tensor], types: Sequence[TensorType]
    ) -> None:
        for name, tensor in inputs.items():
            if name not in self._makers:
                self._leaves[name] = tensor
        for name, type_ in zip(node.output, types, strict=True):
            self._makers[name] = len(self._nodes)
            self._types[name] = type_
        self._nodes.append(node)

    def _computed(self, node: NodeProto, inputs: Mapping[str, Tensor]) -> list[Tensor] | None:
        """Results whose sizes depend on numbers; computed now, if all inputs are small."""
        if sum(t.nbytes for t in inputs.values()) > _SMALL:
            return None
        if node.op_type not in _NO_LARGER and not _is_short_range(node, inputs):
            return None
        arrays = _run(self._model([node], inputs, node.output))
        if isinstance(arrays, str):
            return None
        return [ArrayTensor(a) for a in arrays]

    # Questions to onnx and onnxruntime.

    def _has_kernel(self, node: NodeProto, inputs: Mapping[str, Tensor]) -> bool:
        """Whether onnxruntime has a kernel for these element types; asked once a kind."""
        extra = tuple((a.name, a.i) for a in node.attribute if a.name in ("to", "dtype"))
        present = tuple(inputs[n].dtype if n else None for n in node.input)
        key = (node.op_type, present, len(node.output), extra)
        if key not in self._runs:
            self._runs[key] = _session(self._typed(node, inputs)) is not None
        return self._runs[key]

    def _inferred(self, node: NodeProto, inputs: Mapping[str, Tensor]) -> list[TensorType]:
        """The result types, inferred from the types of inputs and the numbers of shape-like ones."""
        try:
            done = onnx.shape_inference.infer_shapes(self._typed(node, inputs, True))
        except Exception:
            return [UNKNOWN] * len(node.output)
        return [type_of(v.type) for v in done.graph.output]

    def _typed(
        self, node: NodeProto, inputs: Mapping[str, Tensor], with_sizes: bool = False
    ) -> ModelProto:
        """A model of one node; inputs have types, small integer ones their numbers when asked."""
        given, known = [], []
        for name, tensor in inputs.items():
            if with_sizes and tensor.dtype.is_int and tensor.size <= SHAPE_LIKE:
                known.append(proto_of(tensor, name))
            else:
                given.append(
                    helper.make_tensor_value_info(name, code_of(tensor.dtype), tensor.shape)
                )
        return self._assembled([node], given, known, node.output)

    def _model(
        self, nodes: Sequence[NodeProto], leaves: Mapping[str, Tensor], outputs: Iterable[str]
    ) -> tuple[ModelProto, dict[str, npt.NDArray[Any]]]:
        """A model and its feeds; only large tensors of NumPy's own types are fed."""
        given, known, feeds = [], [], {}
        for name, tensor in leaves.items():
            if tensor.nbytes > _SMALL and tensor.dtype.numpy.isbuiltin == 1:
                given.append(
                    helper.make_tensor_value_info(name, code_of(tensor.dtype), tensor.shape)
                )
                feeds[name] = np.ascontiguousarray(tensor.numpy()).reshape(tensor.shape)
            else:
                known.append(_inline(tensor, name))
        return self._assembled(nodes, given, known, outputs), feeds

    def _assembled(
        self,
        nodes: Sequence[NodeProto],
        given: list[ValueInfoProto],
        known: list[TensorProto],
        outputs: Iterable[str],
    ) -> ModelProto:
        results = [ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(nodes, "constants", given, results, known)
        return helper.make_model(graph, opset_imports=self._opsets, ir_version=self._ir_version)

    # Numbers.

    def _array(self, name: str) -> npt.NDArray[Any]:
        """The numbers of one result.

        Raises:
            NotComputable: If onnxruntime cannot compute them after all.
        """
        if name in self._kept:
            return self._kept[name].numpy()
        needed: set[int] = set()
        leaves: dict[str, Tensor] = {}
        pending = [name]
        while pending:
            place = self._makers[pending.pop()]
            if place in needed:
                continue
            needed.add(place)
            for read in self._nodes[place].input:
                if read in self._kept:
                    leaves[read] = self._kept[read]
                elif read in self._makers:
                    pending.append(read)
                elif read:
                    leaves[read] = self._leaves[read]
        nodes = [self._nodes[place] for place in sorted(needed)]
        made = [o for node in nodes for o in node.output if _size(self._types[o]) <= _SMALL]
        outputs = list(dict.fromkeys([name, *made]))
        fetched = list(outputs)
        for i, output in enumerate(outputs):
            if self._types[output].dtype is DType.BF16:
                # onnxruntime hands out no bfloat16; float32 holds it without loss.
                fetched[i] = f"{output} as float32"
                to = TensorProto.FLOAT
                nodes.append(helper.make_node("Cast", [output], [fetched[i]], to=to))
        found = _run(self._model(nodes, leaves, fetched))
        if isinstance(found, str):
            raise NotComputable(f"constant {name!r} cannot be computed: {found}")
        arrays: list[npt.NDArray[Any]] = []
        for output, array in zip(outputs, found, strict=True):
            type_ = self._types[output]
            if type_.dtype is DType.BF16:
                array = array.astype(DType.BF16.numpy)
            arrays.append(array)
            tensor = ArrayTensor(array)
            if tensor.type != type_:
                raise NotComputable(f"constant {output!r} is {tensor.type}, expected {type_}")
            if _size(type_) <= _SMALL:
                self._kept[output] = tensor
        return arrays[0]


def _is_short_range(node: NodeProto, inputs: Mapping[str, Tensor]) -> bool:
    """Whether a node is a short ``Range``; onnx infers the size of integer ranges only."""
    if node.op_type != "Range" or any(inputs[name].size != 1 for name in node.input):
        return False
    start, limit, delta = (float(inputs[name].numpy().reshape(())) for name in node.input)
    return delta != 0 and (limit - start) / delta * 8 <= _SMALL


def _is_full(type_: TensorType) -> bool:
    return type_.dtype is not None and type_.is_static


def _is_fetched(type_: TensorType) -> bool:
    """Whether onnxruntime hands out arrays of the type, as itself or as a wider one."""
    assert type_.dtype is not None
    return type_.dtype is DType.BF16 or type_.dtype.numpy.isbuiltin == 1


def _size(type_: TensorType) -> int:
    assert type_.dtype is not None
    return (type_.size or 0) * max(type_.dtype.bits, 8) // 8


def _inline(tensor: Tensor, name: str) -> TensorProto:
    proto = proto_of(tensor, name)
    if proto.data_location != TensorProto.EXTERNAL:
        return proto
    return proto_of(ArrayTensor(np.asarray(tensor.numpy())), name)


def _session(model: ModelProto) -> Any:
    """A session without optimisations, or ``None`` when onnxruntime does not take the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:
        return None  # onnxruntime has many error classes: no kernel, unsupported type, bad sizes.


def _run(prepared: tuple[ModelProto, dict[str, npt.NDArray[Any]]]) -> list[Any] | str:
    """The arrays, or why there are none."""
    model, feeds = prepared
    session = _session(model)
    if session is None:
        return "onnxruntime does not take it"
    try:
        results = list(session.run(None, feeds))
    except Exception as error:
        return str(error).strip().splitlines()[0]
    return results if all(isinstance(r, np.ndarray) for r in results) else "it is no tensor"


__all__ = ["SHAPE_LIKE", "Constants", "NotComputable"]

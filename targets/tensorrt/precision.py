"""Writes precision into the graph: converts float32 to float16 or bfloat16 where that is safe, in weights and by casts.

TensorRT 11 computes in the types of the graph, and so does 10.x for strongly typed networks, so the file decides where low
precision is used. Each node computes in low precision, or stays in float32 for a reason:

- ONNX or TensorRT does not support the operator in that type, or it has a body (``If``, ``Loop``, ``Scan``),
- it computes sums or powers that may be large: reductions, Pow, Exp, norms that do not accumulate in float32 internally,
- a weight or, with calibration, an activation does not fit the range of the type,
- the caller asked for float32,
- it continues from such a sum, like the square root of a variance,
- it is cheap and all its neighbours compute in float32: casts would cost more than it saves.

A value keeps its name in float32; in low precision it gets another name, and a ``Cast`` converts between them if both are
read. Inputs and outputs keep their types. A weight is stored only in the types that nodes read it in, and rounded
once. Quantize and Dequantize nodes take scales in low precision, so that no cast is needed between them and their neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper

from ...hosts.onnx.operators import DOMAINS
from ...hosts.onnx.scopes import bodies, captures, has_bodies
from ...hosts.onnx.tensors import code_of
from ...ir import DerivedTensor, DType, LazyTensor, ModelError, Tensor, TensorType, UsageError
from .draft import Draft
from .operators import Operators, type_name

_ADDS = "its sums or powers need the range and precision of float32"
_INTEGERS = "integers need the precision of float32"
_CONTINUES = "it continues from a sum or from integers in float32"

LOW = {"fp16": DType.F16, "bf16": DType.BF16}

_SUMS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "CumSum", "Pow", "Exp", "Log", "LogSoftmax", "LpNormalization", "LRN",
    "MeanVarianceNormalization", "InstanceNormalization",
})  # fmt: skip
"""Operators that may overflow or lose too much precision in low precision, whatever their neighbours compute in."""

_COORDINATES = frozenset({"GridSample", "RoiAlign", "NonMaxSuppression", "DeformConv"})
"""Operators that take positions, which low precision would shift."""

_STASHING = frozenset({"LayerNormalization", "GroupNormalization", "RMSNormalization"})
"""Norms that accumulate in float32 if ``stash_type`` is float32, its default."""

_OWN_TYPE = frozenset({
    "Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike", "BlackmanWindow", "HammingWindow", "HannWindow", "Range", "CastLike",
})  # fmt: skip
"""Operators that set the type of their result by an attribute or another input."""

_CONTINUING = frozenset({
    "Abs", "Add", "Cast", "Ceil", "Clip", "Div", "Expand", "Floor", "Identity", "Max", "Min", "Mul", "Neg",
    "Reciprocal", "Reshape", "Round", "Sqrt", "Squeeze", "Sub", "Unsqueeze",
})  # fmt: skip
"""Operators that stay in float32 if all their computed inputs are float32 sums or integers: they need the same range."""

_HEAVY = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Attention", "LSTM", "GRU", "RNN", "Einsum",
    "QuantizeLinear", "DequantizeLinear", "DeformConv", "Cast",
})  # fmt: skip
"""Operators that save more than the casts around them cost, and casts themselves."""


@dataclass
class Lowered:
    """The result of the precision step.

    Attributes:
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        low: The number of nodes that compute in low precision.
        kept: The nodes that stay in float32: name, operator, reason.
        calibrated: Whether the ranges of activations are known.
        quantized: Whether the model has Quantize and Dequantize nodes.
    """

    precision: str = "fp32"
    low: int = 0
    kept: list[tuple[str, str, str]] = field(default_factory=list)
    calibrated: bool = False
    quantized: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "type": self.precision,
            "quantized": self.quantized,
            "low_nodes": self.low,
            "calibrated": self.calibrated,
            "float32_nodes": [{"node": n, "op": op, "reason": r} for n, op, r in self.kept],
        }


def lower(
    draft: Draft,
    precision: str,
    operators: Operators,
    keep: Iterable[str] = (),
    ranges: Mapping[str, float] | None = None,
) -> Lowered:
    """Convert a draft to a precision, in place.

    Args:
        draft: The model after clean-up; only its float32 values are converted.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        operators: The operators and types that TensorRT supports.
        keep: Nodes to keep in float32: operators, names, or patterns of names with ``*`` and ``?``.
        ranges: The largest magnitude of values by name, from calibration.

    Raises:
        UsageError: If an entry of ``keep`` matches no node.
        ModelError: If the model is quantized and its opset has no quantization in low precision.
    """
    quantized = any(
        n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in draft.model.graph.node
    )
    if precision == "fp32":
        return Lowered(quantized=quantized)
    if quantized and draft.opset < 19:
        raise ModelError(
            f"ONNX has no quantization in {precision} before opset 19, the model has {draft.opset}: convert it "
            "(onnx.version_converter.convert_version(model, 19)), or keep float32"
        )
    lowering = _Lowering(draft, LOW[precision], precision, operators, list(keep), ranges)
    lowering.decide()
    lowering.rewrite()
    kept = [(n.name, n.op_type, r) for n, r in lowering.reasons()]
    return Lowered(precision, lowering.count, kept, ranges is not None, quantized)


class _Lowering:
    def __init__(
        self,
        draft: Draft,
        dtype: DType,
        precision: str,
        operators: Operators,
        keep: list[str],
        ranges: Mapping[str, float] | None,
    ) -> None:
        self.draft, self.dtype, self.precision = draft, dtype, precision
        self.operators, self.keep, self.ranges = operators, keep, ranges
        self.types = draft.types()
        self.constants = draft.constants()
        self.nodes = list(draft.model.graph.node)
        self.low_allowed = [_low_allowed(node, draft.opset, dtype) for node in self.nodes]
        self.reason: dict[int, str] = {}
        self.count = 0
        limits = _limits(dtype)
        self.largest, self.normal = float(limits.max), float(limits.smallest_normal)
        # A scale below this is subnormal and has fewer than eight bits of precision.
        self.coarse = 256 * float(limits.smallest_subnormal)
        self.extremes: dict[str, tuple[float, float]] = {}

    # Deciding which nodes are lowered.

    def decide(self) -> None:
        """Find the nodes that stay in float32, with the reasons."""
        self._check_names()
        sums: set[str] = set()
        for i, node in enumerate(self.nodes):
            if not self._floats(i):
                continue
            reason = self._reason_for_float32(i, node, sums)
            if reason is not None:
                self.reason[i] = reason
            if reason in (_ADDS, _INTEGERS, _CONTINUES):
                sums.update(node.output)
        self._add_isolated()
        self.count = sum(bool(self._lowered(i)) for i in range(len(self.nodes)))

    def reasons(self) -> list[tuple[NodeProto, str]]:
        """Return the nodes that stay in float32, with the reasons, in order."""
        return [(self.nodes[i], reason) for i, reason in sorted(self.reason.items())]

    def _check_names(self) -> None:
        for pattern in self.keep:
            if not any(_matches(node, pattern) for node in self.nodes):
                raise UsageError(f"keep-float32: no operator or node is named {pattern!r}")

    def _reason_for_float32(self, i: int, node: NodeProto, sums: set[str]) -> str | None:
        """Return why a node stays in float32; ``None`` if it is lowered.

        ``sums`` are the values in float32 that are sums or integers.
        """
        if any(_matches(node, pattern) for pattern in self.keep):
            return "asked for"
        if has_bodies(node):
            return "it has a body"
        if node.domain not in DOMAINS:
            return "it is not an operator of ONNX"
        row = self.operators.taken.get(node.op_type)
        low = type_name(self.dtype)
        quantizer = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if not self._lowered(i) or node.op_type in _OWN_TYPE:
            return f"ONNX has no {self.precision} form of it{self._since(node)}"
        if row is not None and not quantizer and low not in row.types:
            return f"TensorRT does not support it in {self.precision}"
        if any(n and may_be_low and self._unknown(n) for n, may_be_low in self._operands(i)):
            return "the types of its values are not known"
        if node.op_type in _SUMS or not self._accumulates_in_float32(node):
            return _ADDS
        if node.op_type in _COORDINATES:
            return "positions need the precision of float32"
        if node.op_type == "Cast" and self._casts_integers(node):
            return _INTEGERS
        if self._continues_sum(node, sums):
            return _CONTINUES
        return self._out_of_range(i)

    def _since(self, node: NodeProto) -> str:
        """Name the first later opset of TensorRT in which an operator has a form in low precision, if there is one."""
        for opset in range(self.draft.opset + 1, self.operators.opsets[1] + 1):
            if node.op_type not in _OWN_TYPE and any(
                map(any, _low_allowed(node, opset, self.dtype))
            ):
                return f" before opset {opset}"
        return ""

    def _operands(self, i: int) -> list[tuple[str, bool]]:
        """Return the inputs and outputs of a node, each with whether ONNX allows low precision for it."""
        inputs, outputs = self.low_allowed[i]
        node = self.nodes[i]
        return [*zip(node.input, inputs, strict=True), *zip(node.output, outputs, strict=True)]

    def _unknown(self, name: str) -> bool:
        known = self.types.get(name)
        return known is None or known.dtype is None

    def _casts_integers(self, node: NodeProto) -> bool:
        """Whether a Cast converts from or to integers."""
        types = [self.types.get(n) for n in (*node.input, *node.output)]
        return any(t is not None and t.dtype is not None and t.dtype.is_int for t in types)

    def _accumulates_in_float32(self, node: NodeProto) -> bool:
        """Whether a norm accumulates in float32 internally; true for other operators."""
        if node.op_type not in _STASHING:
            return True
        if node.op_type == "GroupNormalization" and self.draft.opset < 21:
            return False
        found = {a.name: a.i for a in node.attribute}
        return bool(found.get("stash_type", TensorProto.FLOAT) == TensorProto.FLOAT)

    def _out_of_range(self, i: int) -> str | None:
        """Return which value of a node does not fit the range of the low type, if one does not."""
        for name in self._lowered(i):
            if name in self.constants:
                high, low = self._extremes(name)
                if high > self.largest and self.nodes[i].op_type != "Clip":
                    return f"a weight reaches {high:.3g}, beyond the range of {self.precision}"
                if 0 < high < self.normal or (self._is_scale(i, name) and 0 < low < self.coarse):
                    return f"its weights are too small for {self.precision} ({low:.3g})"
            elif self.ranges is not None and self.ranges.get(name, 0.0) > self.largest:
                return (
                    f"{name} reaches {self.ranges[name]:.3g}, beyond the range of {self.precision}"
                )
        return None

    def _is_scale(self, i: int, name: str) -> bool:
        """Whether a value is the scale of a Quantize or Dequantize node."""
        node = self.nodes[i]
        quantizer = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        return quantizer and list(node.input[1:2]) == [name]

    def _extremes(self, name: str) -> tuple[float, float]:
        """Return the largest and the smallest magnitude of a constant's numbers that are finite and not zero."""
        if name not in self.extremes:
            numbers = np.abs(self.constants[name].numpy())
            numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
            found = (float(numbers.max()), float(numbers.min())) if numbers.size else (0.0, 0.0)
            self.extremes[name] = found
        return self.extremes[name]

    def _continues_sum(self, node: NodeProto, sums: set[str]) -> bool:
        """Whether all computed inputs of a cheap node are sums or integers in float32."""
        read = [name for name in node.input if name and name not in self.constants]
        return node.op_type in _CONTINUING and bool(read) and sums.issuperset(read)

    def _add_isolated(self) -> None:
        """Keep cheap nodes in float32 if all their neighbours are."""
        made = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        read: dict[str, list[int]] = {}
        for i in range(len(self.nodes)):
            for name in self._floats(i):
                if made.get(name) != i:
                    read.setdefault(name, []).append(i)
        pending = sorted(self.reason)
        while pending:
            i = pending.pop()
            for j in self._neighbours(i, made, read):
                if j in self.reason or self.nodes[j].op_type in _HEAVY or not self._floats(j):
                    continue
                if all(k in self.reason for k in self._neighbours(j, made, read)):
                    self.reason[j] = "everything around it computes in float32"
                    pending.append(j)

    def _neighbours(
        self, i: int, made: Mapping[str, int], read: Mapping[str, list[int]]
    ) -> list[int]:
        found: list[int] = []
        for name in self._floats(i):
            if name in made and made[name] != i:
                found.append(made[name])
            elif made.get(name) == i:
                found += read.get(name, [])
        return found

    # The values of nodes.

    def _floats(self, i: int) -> list[str]:
        """Return the float32 inputs and outputs of a node."""
        names = [*self.nodes[i].input, *self.nodes[i].output]
        return [n for n in dict.fromkeys(names) if n and self._is_float(n)]

    def _lowered(self, i: int) -> list[str]:
        """Return the float32 values that a node reads or writes in low precision; empty if it stays in float32."""
        if i in self.reason:
            return []
        inputs, outputs = self.low_allowed[i]
        node = self.nodes[i]
        names = [n for k, n in enumerate(node.input) if n and inputs[k]]
        names += [n for k, n in enumerate(node.output) if n and outputs[k]]
        return [n for n in dict.fromkeys(names) if self._is_float(n)]

    def _is_float(self, name: str) -> bool:
        known: TensorType | None = self.types.get(name)
        return known is not None and known.dtype is DType.F32

    # Rewriting the model.

    def rewrite(self) -> None:
        """Convert weights, rename values in low precision, insert casts."""
        graph = self.draft.model.graph
        wide: set[str] = {v.name for v in graph.output}
        narrow: dict[str, None] = {}
        made_low: set[str] = set()
        for i, node in enumerate(self.nodes):
            inputs, outputs = self.low_allowed[i]
            low = set(self._lowered(i))
            wide.update(captures(node) if has_bodies(node) else ())
            for k, name in enumerate(node.input):
                if name in low and inputs[k]:
                    narrow.setdefault(name)
                else:
                    wide.add(name)
            made_low.update(n for k, n in enumerate(node.output) if n in low and outputs[k])
        names = self._low_names([*narrow, *made_low])
        self._convert(names, narrow, wide)
        del graph.node[:]
        graph.node.extend(
            self._cast(v.name, names[v.name], self.dtype) for v in graph.input if v.name in narrow
        )
        for i, node in enumerate(self.nodes):
            low = set(self._lowered(i))
            graph.node.append(self._renamed(i, node, low, names))
            for name in node.output:
                if name in made_low and name in wide:
                    graph.node.append(self._cast(names[name], name, DType.F32))
                elif name in narrow and name not in made_low:
                    graph.node.append(self._cast(name, names[name], self.dtype))

    def _low_names(self, wanted: Iterable[str]) -> dict[str, str]:
        taken = set(self.types)
        for node in self.nodes:
            taken.update((*node.input, *node.output))
        names: dict[str, str] = {}
        for name in wanted:
            fresh, count = f"{name}_{self.precision}", 1
            while fresh in taken:
                count += 1
                fresh = f"{name}_{self.precision}_{count}"
            if name not in names:
                taken.add(fresh)
                names[name] = fresh
        return names

    def _convert(self, names: Mapping[str, str], narrow: Iterable[str], wide: set[str]) -> None:
        """Add weights in low precision, and remove float32 weights that are not read any more."""
        done = [n for n in narrow if n in self.constants]
        for name in done:
            self.draft.set_constant(names[name], rounded(self.constants[name], self.dtype))
        unused = {name for name in done if name not in wide}
        kept = [p for p in self.draft.model.graph.initializer if p.name not in unused]
        del self.draft.model.graph.initializer[:]
        self.draft.model.graph.initializer.extend(kept)
        self.draft.tensors = {n: t for n, t in self.draft.tensors.items() if n not in unused}

    def _renamed(
        self, i: int, node: NodeProto, low: set[str], names: Mapping[str, str]
    ) -> NodeProto:
        inputs, outputs = self.low_allowed[i]
        made = NodeProto()
        made.CopyFrom(node)
        for k, name in enumerate(node.input):
            if name in low and inputs[k]:
                made.input[k] = names[name]
        for k, name in enumerate(node.output):
            if name in low and outputs[k]:
                made.output[k] = names[name]
                for attribute in made.attribute:
                    if attribute.name in ("to", "output_dtype") and (
                        attribute.type == AttributeProto.INT and attribute.i == TensorProto.FLOAT
                    ):
                        attribute.i = code_of(self.dtype)
        return made

    def _cast(self, source: str, target: str, dtype: DType) -> NodeProto:
        return helper.make_node(
            "Cast", [source], [target], name=f"{target}_cast", to=code_of(dtype)
        )


def _limits(dtype: DType) -> Any:
    known: Any = ml_dtypes  # Its finfo has no type annotations.
    return np.finfo(np.float16) if dtype is DType.F16 else known.finfo(known.bfloat16)


def rounded(tensor: Tensor, dtype: DType) -> Tensor:
    """Return a constant in another floating-point type, as a lazy tensor that is rounded once.

    Numbers beyond the range of the type (bounds of a Clip) become its largest number, which no value exceeds.
    """
    largest = float(_limits(dtype).max)

    def narrow(numbers: Any) -> Any:
        outside = np.isfinite(numbers) & (np.abs(numbers) > largest)
        return (
            np.where(outside, np.copysign(largest, numbers), numbers) if outside.any() else numbers
        )

    if isinstance(tensor, DerivedTensor):
        return DerivedTensor(tensor.shape, dtype, lambda: narrow(tensor.float64()))
    return LazyTensor(
        tensor.shape, dtype, lambda: np.asarray(narrow(tensor.numpy())).astype(dtype.numpy)
    )


def _low_allowed(node: NodeProto, opset: int, dtype: DType) -> tuple[list[bool], list[bool]]:
    """Return for each input and output whether ONNX allows the low type for it."""
    nothing = ([False] * len(node.input), [False] * len(node.output))
    if node.domain not in DOMAINS or any(True for _ in bodies(node)):
        return nothing
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return nothing
    low = "tensor(float16)" if dtype is DType.F16 else "tensor(bfloat16)"
    free = {c.type_param_str for c in schema.type_constraints if low in c.allowed_type_strs}

    def spread(formal: Any, count: int) -> list[bool]:
        found = [p.type_str in free for p in formal]
        return (found + found[-1:] * count)[:count]

    return spread(schema.inputs, len(node.input)), spread(schema.outputs, len(node.output))


def _matches(node: NodeProto, pattern: str) -> bool:
    return node.op_type == pattern or node.name == pattern or fnmatchcase(node.name, pattern)

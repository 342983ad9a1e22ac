"""Precision written into the graph: float32 becomes float16 or bfloat16 where that is safe, by weights and casts.

TensorRT 11 computes in the types of the graph and in no others, and 10.x does so for strongly typed networks, so the
file says where lower precision is used. Each node computes in low precision, or in float32 for a reason:

- ONNX or TensorRT does not take the operator in that type, or it has a body (``If``, ``Loop``, ``Scan``),
- it sums or exponentiates what may be large: reductions, Pow, Exp, norms that do not accumulate in float32 by themselves,
- a weight or, with calibration, an activation does not fit the range of the type,
- the caller says so,
- it goes on with such a sum, as the root of a variance does,
- everything around it computes in float32, and it is cheap: casts would cost more than it saves.

A value keeps its name in float32; its low form has a name of its own, and a ``Cast`` stands between the two where both are
needed. Inputs and outputs keep their types. A weight that is read in one form only is stored in that form only, rounded
once. Quantize and Dequantize nodes take scales in low precision, so that nothing comes between them and what they quantize.
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

from ...hosts.onnx.scopes import bodies, captures, has_bodies
from ...hosts.onnx.tensors import code_of
from ...ir import DerivedTensor, DType, LazyTensor, ModelError, Tensor, TensorType, UsageError
from .draft import DOMAINS, Draft
from .operators import Operators, type_name

_ADDS = "it adds up, which needs the range and the bits of float32"
_COUNTS = "whole numbers need the bits of float32"
_GOES_ON = "it goes on with a sum or a count"

LOW = {"fp16": DType.F16, "bf16": DType.BF16}

_SUMS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "CumSum", "Pow", "Exp", "Log", "LogSoftmax", "LpNormalization", "LRN",
    "MeanVarianceNormalization", "InstanceNormalization",
})  # fmt: skip
"""What overflows or loses too much where it adds up, whatever stands around it."""

_COORDINATES = frozenset({"GridSample", "RoiAlign", "NonMaxSuppression", "DeformConv"})
"""What takes positions, which low precision would shift."""

_STASHING = frozenset({"LayerNormalization", "GroupNormalization", "RMSNormalization"})
"""Norms that accumulate in float32 if their ``stash_type`` says so, which it does by default."""

_MAKERS = frozenset({
    "Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike", "BlackmanWindow", "HammingWindow", "HannWindow", "Range", "CastLike",
})  # fmt: skip
"""What gives its result a type by an attribute."""

_PASSING = frozenset({
    "Abs", "Add", "Cast", "Ceil", "Clip", "Div", "Expand", "Floor", "Identity", "Max", "Min", "Mul", "Neg",
    "Reciprocal", "Reshape", "Round", "Sqrt", "Squeeze", "Sub", "Unsqueeze",
})  # fmt: skip
"""What goes on with a sum, or with a count, as long as nothing else comes in: its range is still that of the sum."""

_HEAVY = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Attention", "LSTM", "GRU", "RNN", "Einsum",
    "QuantizeLinear", "DequantizeLinear", "DeformConv", "Cast",
})  # fmt: skip
"""What is worth casts around it, or is one."""


@dataclass
class Lowered:
    """What was done for precision.

    Attributes:
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        low: How many nodes compute in low precision.
        kept: Nodes that stay in float32 although asked otherwise: name, operator, reason.
        calibrated: Whether the ranges of activations are known.
        quantized: Whether the model has Quantize and Dequantize nodes.
    """

    precision: str = "fp32"
    low: int = 0
    kept: list[tuple[str, str, str]] = field(default_factory=list)
    calibrated: bool = False
    quantized: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
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
    """Write a precision into a draft, in place.

    Args:
        draft: A clean model in float32 (what is in other types stays).
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        operators: What TensorRT takes in which types.
        keep: Nodes to keep in float32: operators, names, or patterns of names with ``*`` and ``?``.
        ranges: The largest magnitude of values by name, from calibration.

    Raises:
        UsageError: If ``keep`` names nothing.
        ModelError: If the model's opset has no quantization in low precision and the model is quantized.
    """
    quantized = any(
        n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in draft.model.graph.node
    )
    if precision == "fp32":
        return Lowered(quantized=quantized)
    if quantized and draft.opset < 19:
        raise ModelError(
            f"ONNX has no quantization in {precision} before opset 19, the model has {draft.opset}: convert it "
            "(onnx.version_converter.convert_version(model, 19)), or leave precision as it is"
        )
    work = _Lowering(draft, LOW[precision], precision, operators, list(keep), ranges)
    work.decide()
    work.rewrite()
    kept = [(n.name, n.op_type, r) for n, r in work.reasons()]
    return Lowered(precision, work.count, kept, ranges is not None, quantized)


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
        self.places = [_places(node, draft.opset, dtype) for node in self.nodes]
        self.reason: dict[int, str] = {}
        self.count = 0
        limits = _limits(dtype)
        self.largest, self.normal = float(limits.max), float(limits.smallest_normal)
        # Below this, a scale keeps fewer than eight bits.
        self.coarse = 256 * float(limits.smallest_subnormal)
        self.extremes: dict[str, tuple[float, float]] = {}

    # Which nodes.

    def decide(self) -> None:
        """Give each node that stays in float32 its reason."""
        self._check_names()
        sums: set[str] = set()
        for i, node in enumerate(self.nodes):
            if not self._floats(i):
                continue
            reason = self._refused(i, node, sums)
            if reason is not None:
                self.reason[i] = reason
            if reason in (_ADDS, _COUNTS, _GOES_ON):
                sums.update(node.output)
        self._islands()
        self.count = sum(bool(self._lowered(i)) for i in range(len(self.nodes)))

    def reasons(self) -> list[tuple[NodeProto, str]]:
        """The nodes that stay in float32, with the reason, in order."""
        return [(self.nodes[i], reason) for i, reason in sorted(self.reason.items())]

    def _check_names(self) -> None:
        for pattern in self.keep:
            if not any(_matches(node, pattern) for node in self.nodes):
                raise UsageError(f"keep-float32: no operator or node is named {pattern!r}")

    def _refused(self, i: int, node: NodeProto, sums: set[str]) -> str | None:
        if any(_matches(node, pattern) for pattern in self.keep):
            return "asked for"
        if has_bodies(node):
            return "it has a body"
        if node.domain not in DOMAINS:
            return "it is no operator of ONNX"
        row = self.operators.taken.get(node.op_type)
        low = type_name(self.dtype)
        quantizer = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if not self._lowered(i) or node.op_type in _MAKERS:
            return f"ONNX has no {self.precision} form of it{self._since(node)}"
        if row is not None and not quantizer and low not in row.types:
            return f"TensorRT does not take it in {self.precision}"
        if any(n and outside and self._unknown(n) for n, outside in self._slots(i)):
            return "the types of its values are not known"
        if node.op_type in _SUMS or not self._stashes(node):
            return _ADDS
        if node.op_type in _COORDINATES:
            return "positions need the bits of float32"
        if node.op_type == "Cast" and self._counts(node):
            return _COUNTS
        if self._goes_on(node, sums):
            return _GOES_ON
        return self._out_of_range(i)

    def _since(self, node: NodeProto) -> str:
        """From which later opset that TensorRT takes on there is one."""
        for opset in range(self.draft.opset + 1, self.operators.opsets[1] + 1):
            if node.op_type not in _MAKERS and any(map(any, _places(node, opset, self.dtype))):
                return f" before opset {opset}"
        return ""

    def _slots(self, i: int) -> list[tuple[str, bool]]:
        inputs, outputs = self.places[i]
        node = self.nodes[i]
        return [*zip(node.input, inputs, strict=True), *zip(node.output, outputs, strict=True)]

    def _unknown(self, name: str) -> bool:
        known = self.types.get(name)
        return known is None or known.dtype is None

    def _counts(self, node: NodeProto) -> bool:
        """Whether a Cast goes from or to whole numbers."""
        types = [self.types.get(n) for n in (*node.input, *node.output)]
        return any(t is not None and t.dtype is not None and t.dtype.is_int for t in types)

    def _stashes(self, node: NodeProto) -> bool:
        if node.op_type not in _STASHING:
            return True
        if node.op_type == "GroupNormalization" and self.draft.opset < 21:
            return False
        found = {a.name: a.i for a in node.attribute}
        return bool(found.get("stash_type", TensorProto.FLOAT) == TensorProto.FLOAT)

    def _out_of_range(self, i: int) -> str | None:
        for name in self._lowered(i):
            if name in self.constants:
                high, low = self._extremes(name)
                if high > self.largest and self.nodes[i].op_type != "Clip":
                    return f"a weight is {high:.3g}, beyond {self.precision}"
                if 0 < high < self.normal or (self._scales(i, name) and 0 < low < self.coarse):
                    return f"its weights are too small for {self.precision} ({low:.3g})"
            elif self.ranges is not None and self.ranges.get(name, 0.0) > self.largest:
                return f"{name} reaches {self.ranges[name]:.3g}, beyond {self.precision}"
        return None

    def _scales(self, i: int, name: str) -> bool:
        node = self.nodes[i]
        quantizer = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        return quantizer and list(node.input[1:2]) == [name]

    def _extremes(self, name: str) -> tuple[float, float]:
        """The largest magnitude of a constant's finite numbers, and the smallest that is not zero."""
        if name not in self.extremes:
            numbers = np.abs(self.constants[name].numpy())
            numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
            found = (float(numbers.max()), float(numbers.min())) if numbers.size else (0.0, 0.0)
            self.extremes[name] = found
        return self.extremes[name]

    def _goes_on(self, node: NodeProto, sums: set[str]) -> bool:
        """Whether all that a cheap node reads are sums in float32 and constants."""
        read = [name for name in node.input if name and name not in self.constants]
        return node.op_type in _PASSING and bool(read) and sums.issuperset(read)

    def _islands(self) -> None:
        """Cheap nodes between nodes in float32 only join them."""
        made = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        read: dict[str, list[int]] = {}
        for i in range(len(self.nodes)):
            for name in self._floats(i):
                if made.get(name) != i:
                    read.setdefault(name, []).append(i)
        pending = sorted(self.reason)
        while pending:
            i = pending.pop()
            for j in self._around(i, made, read):
                if j in self.reason or self.nodes[j].op_type in _HEAVY or not self._floats(j):
                    continue
                if all(k in self.reason for k in self._around(j, made, read)):
                    self.reason[j] = "everything around it computes in float32"
                    pending.append(j)

    def _around(self, i: int, made: Mapping[str, int], read: Mapping[str, list[int]]) -> list[int]:
        found: list[int] = []
        for name in self._floats(i):
            if name in made and made[name] != i:
                found.append(made[name])
            elif made.get(name) == i:
                found += read.get(name, [])
        return found

    # Which values.

    def _floats(self, i: int) -> list[str]:
        """The float32 values that a node reads and makes."""
        names = [*self.nodes[i].input, *self.nodes[i].output]
        return [n for n in dict.fromkeys(names) if n and self._is_float(n)]

    def _lowered(self, i: int) -> list[str]:
        """Those of them that a node reads and makes in low precision, if it computes in it."""
        if i in self.reason:
            return []
        inputs, outputs = self.places[i]
        node = self.nodes[i]
        names = [n for k, n in enumerate(node.input) if n and inputs[k]]
        names += [n for k, n in enumerate(node.output) if n and outputs[k]]
        return [n for n in dict.fromkeys(names) if self._is_float(n)]

    def _is_float(self, name: str) -> bool:
        known: TensorType | None = self.types.get(name)
        return known is not None and known.dtype is DType.F32

    # Writing it.

    def rewrite(self) -> None:
        """Insert casts, convert weights, rename what is in low precision."""
        graph = self.draft.model.graph
        wide: set[str] = {v.name for v in graph.output}
        narrow: dict[str, None] = {}
        made_low: set[str] = set()
        for i, node in enumerate(self.nodes):
            inputs, outputs = self.places[i]
            low = set(self._lowered(i))
            wide.update(captures(node) if has_bodies(node) else ())
            for k, name in enumerate(node.input):
                if name in low and inputs[k]:
                    narrow.setdefault(name)
                else:
                    wide.add(name)
            made_low.update(n for k, n in enumerate(node.output) if n in low and outputs[k])
        names = self._fresh_names([*narrow, *made_low])
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

    def _fresh_names(self, wanted: Iterable[str]) -> dict[str, str]:
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
        """Weights in low precision; those in float32 that nobody reads any more go."""
        done = [n for n in narrow if n in self.constants]
        for name in done:
            self.draft.put(names[name], rounded(self.constants[name], self.dtype))
        gone = {name for name in done if name not in wide}
        kept = [p for p in self.draft.model.graph.initializer if p.name not in gone]
        del self.draft.model.graph.initializer[:]
        self.draft.model.graph.initializer.extend(kept)
        self.draft.tensors = {n: t for n, t in self.draft.tensors.items() if n not in gone}

    def _renamed(
        self, i: int, node: NodeProto, low: set[str], names: Mapping[str, str]
    ) -> NodeProto:
        inputs, outputs = self.places[i]
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
    known: Any = ml_dtypes  # Its finfo has no types.
    return np.finfo(np.float16) if dtype is DType.F16 else known.finfo(known.bfloat16)


def rounded(tensor: Tensor, dtype: DType) -> Tensor:
    """A constant in another floating-point type, rounded once, when it is asked for.

    Bounds of a Clip beyond the type become its largest number, which is as far as values get.
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


def _places(node: NodeProto, opset: int, dtype: DType) -> tuple[list[bool], list[bool]]:
    """For each input and output, whether ONNX lets it have the low type in place of float32."""
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

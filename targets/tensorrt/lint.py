"""Finds everything that TensorRT would refuse: the opset, operators, element types, restrictions of operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import GraphProto, NodeProto

from ...hosts.onnx.operators import DOMAINS
from ...hosts.onnx.scopes import bodies
from ...hosts.onnx.tensors import constant_of, tensor_of
from ...ir import DType, ModelError, Tensor
from .draft import Draft
from .operators import Operator, Operators, type_name
from .restrictions import RULES, UNFOLDED, NodeInfo

ALTERNATIVES = {
    "AffineGrid": "a constant grid, or MatMul",
    "Bernoulli": "RandomUniformLike and Less",
    "BitShift": "Mul or Div by powers of two",
    "BitwiseAnd": "And on booleans",
    "BitwiseNot": "Not on booleans",
    "BitwiseOr": "Or on booleans",
    "BitwiseXor": "Xor on booleans",
    "BlackmanWindow": "a constant",
    "CenterCropPad": "Slice and Pad",
    "Col2Im": "ConvTranspose with a constant kernel",
    "Compress": "Gather with constant indices",
    "ConcatFromSequence": "Concat",
    "ConvInteger": "Conv between QuantizeLinear and DequantizeLinear",
    "DFT": "MatMul with a constant matrix",
    "DynamicQuantizeLinear": "QuantizeLinear with a constant scale and zero point 0",
    "HammingWindow": "a constant",
    "HannWindow": "a constant",
    "MatMulInteger": "MatMul between QuantizeLinear and DequantizeLinear",
    "MaxRoiPool": "RoiAlign with mode max",
    "MaxUnpool": "Resize, or ScatterElements",
    "MelWeightMatrix": "a constant",
    "Multinomial": "RandomUniformLike, CumSum and ArgMax",
    "NegativeLogLikelihoodLoss": "an export without the loss",
    "OptionalGetElement": "an export without optional values",
    "OptionalHasElement": "an export without optional values",
    "Optional": "an export without optional values",
    "QLinearConv": "Conv between DequantizeLinear and QuantizeLinear",
    "QLinearMatMul": "MatMul between DequantizeLinear and QuantizeLinear",
    "RMSNormalization": "Mul, ReduceMean, Sqrt and Div",
    "RotaryEmbedding": "Slice, Mul and Concat",
    "STFT": "Conv with a constant kernel",
    "SequenceAt": "Split and Gather",
    "SequenceConstruct": "Concat",
    "SequenceEmpty": "Concat",
    "SequenceErase": "Split and Concat",
    "SequenceInsert": "Concat",
    "SequenceLength": "a constant",
    "SequenceMap": "Loop or Scan",
    "SoftmaxCrossEntropyLoss": "an export without the loss",
    "SplitToSequence": "Split",
    "Swish": "Sigmoid and Mul",
    "TensorScatter": "ScatterND",
    "Unique": "TopK",
}
"""What to use in place of operators that TensorRT does not support."""


@dataclass(frozen=True)
class Finding:
    """Something that TensorRT refuses.

    Attributes:
        op: The operator.
        problem: What is wrong, and the remedy.
        node: The node's name.
    """

    op: str
    problem: str
    node: str


def check_opset(draft: Draft, operators: Operators) -> None:
    """Check that TensorRT supports the model's opset.

    Raises:
        ModelError: If it does not; the message has the remedy.
    """
    low, high = operators.opsets
    if low <= draft.opset <= high:
        return
    remedy = f"export it with an opset from {low} to {high}"
    nearest = min(max(draft.opset, low), high)
    raise ModelError(
        f"TensorRT {operators.version} takes opsets {low} to {high}, the model has {draft.opset}: {remedy}, "
        f"or convert it: onnx.version_converter.convert_version(model, {nearest})"
    )


def lint(
    draft: Draft,
    operators: Operators,
    allowed: frozenset[str] = frozenset(),
    *,
    folded: bool = True,
) -> None:
    """Refuse a model that TensorRT would refuse.

    Args:
        draft: The model, after clean-up.
        operators: The operators that TensorRT supports.
        allowed: Operators that are accepted without a check, for plugins and for operators that the table lacks.
        folded: Whether constants are folded; if not, restrictions that ask for constants or shapes are not checked.

    Raises:
        ModelError: One error that lists every operator with the nodes and the remedy.
    """
    found = list(_findings(draft.model.graph, draft, operators, allowed, folded))
    if not found:
        return
    groups: dict[tuple[str, str], list[str]] = {}
    for finding in found:
        groups.setdefault((finding.op, finding.problem), []).append(finding.node)
    lines = [f"{op} ({', '.join(names)}) {problem}" for (op, problem), names in groups.items()]
    raise ModelError(
        f"TensorRT {operators.version} does not take this model: {'; '.join(lines)}. "
        "Accept an operator that a plugin provides with --allow-op NAME"
    )


def _findings(
    graph: GraphProto, draft: Draft, operators: Operators, allowed: frozenset[str], folded: bool
) -> Iterator[Finding]:
    types, constants = draft.types(), _constants_of(graph) | draft.constants()
    stack = [(graph, types, constants)]
    while stack:
        scope, types, constants = stack.pop()
        for node in scope.node:
            if node.op_type not in allowed:
                info = NodeInfo(node, types, constants, draft.opset)
                yield from _check_node(info, operators, folded)
            for body in bodies(node):
                # Names defined in the body hide those of the outer graphs.
                own = {n for inner in body.node for n in inner.output} | {
                    v.name for v in body.input
                }
                inner_constants = {k: v for k, v in constants.items() if k not in own}
                inner_constants |= _constants_of(body)
                hidden = {k: v for k, v in types.items() if k not in own}
                stack.append((body, hidden, inner_constants))


def _constants_of(body: GraphProto) -> dict[str, Tensor]:
    found = {p.name: tensor_of(p) for p in body.initializer}
    for node in body.node:
        if node.op_type == "Constant" and node.domain in DOMAINS:
            found[node.output[0]] = constant_of(node)
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _check_node(info: NodeInfo, operators: Operators, folded: bool) -> Iterator[Finding]:
    node, op = info.node, info.node.op_type
    if node.domain not in DOMAINS:
        yield Finding(
            f"{node.domain}::{op}",
            "is not an operator of ONNX: only a plugin could compute it",
            node.name,
        )
        return
    row = operators.taken.get(op)
    if row is None:
        remedy = f" (use {ALTERNATIVES[op]})" if op in ALTERNATIVES else ""
        yield Finding(op, f"is not supported{remedy}", node.name)
        return
    for dtype in _unsupported_types(info, row):
        type_ = type_name(dtype) or dtype.value
        taken = ", ".join(sorted(row.types))
        yield Finding(op, f"does not support {type_} (only {taken})", node.name)
    for name in row.rules:
        if not folded and name not in UNFOLDED:
            continue
        problem = RULES[name](info)
        if problem is not None:
            yield Finding(op, problem, node.name)


def _unsupported_types(info: NodeInfo, row: Operator) -> list[DType]:
    """Return the element types of a node's data that TensorRT does not support for its operator."""
    found: dict[DType, None] = {}
    for name in typed_values(info.node, info.opset):
        known = info.types.get(name)
        if known is None or known.dtype is None:
            continue
        if type_name(known.dtype) not in row.types:
            found.setdefault(known.dtype)
    return list(found)


_OWN_TYPE = {"BlackmanWindow", "ConstantOfShape", "EyeLike", "HammingWindow", "HannWindow"}
"""Operators whose result has another type than their inputs."""


def typed_values(node: NodeProto, opset: int) -> list[str]:
    """Return the inputs and outputs that are an operator's data: not indices, axes, shapes or conditions.

    They are those with the type variable of the first output or, if no input has it, of the first input.
    """
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return list(node.input[:1])
    if node.op_type in ("Cast", "CastLike"):
        return [*node.input[:1], *node.output[:1]]
    inputs = _spread(schema.inputs, len(node.input))
    outputs = _spread(schema.outputs, len(node.output))
    if not inputs or node.op_type in _OWN_TYPE:
        return [name for name in node.output if name]
    # "tensor(...)" is a fixed type, such as that of indices, not a type variable.
    first = outputs[0] if outputs and "(" not in outputs[0] else ""
    variable = first if first in inputs else inputs[0]
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        variable, outputs = inputs[0], []
    values = [n for n, v in zip(node.input, inputs, strict=False) if n and v == variable]
    return values + [n for n, v in zip(node.output, outputs, strict=False) if n and v == variable]


def _spread(formal: object, count: int) -> list[str]:
    """Return the type variables of ``count`` values; the last formal parameter may be variadic."""
    names = [parameter.type_str for parameter in formal]  # type: ignore[attr-defined]
    return names + names[-1:] * (count - len(names))


__all__ = ["ALTERNATIVES", "Finding", "check_opset", "lint", "typed_values"]

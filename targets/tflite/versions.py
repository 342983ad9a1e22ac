"""Versions of TFLite operators: the version that an operation needs, and the first runtime that has it.

The facts are from LiteRT's own ``op_version.cc`` and ``runtime_version.cc``, for the operators and element types that are emitted.
"""

from __future__ import annotations

from collections.abc import Iterable

from .flat import FlatOperation

_SINCE: dict[str, tuple[str, ...]] = {
    "ABS": ("1.13.0", "2.4.0", "2.5.0", "2.6.0", "2.12.0"),
    "ADD": ("1.5.0", "1.14.0", "2.4.0", "2.6.0"),
    "ARG_MAX": ("1.9.0", "1.14.0", "2.9.0"),
    "ARG_MIN": ("1.9.0", "1.14.0", "2.9.0"),
    "ATAN2": ("2.10.0",),
    "AVERAGE_POOL_2D": ("1.5.0", "1.14.0"),
    "BATCH_MATMUL": ("2.3.0", "2.3.0"),
    "BROADCAST_TO": ("2.5.0", "2.5.0", "2.5.0"),
    "CAST": ("1.5.0", "2.7.0", "2.8.0", "2.9.0", "2.12.0"),
    "CEIL": ("1.14.0",),
    "CONCATENATION": ("1.5.0", "1.14.0", "2.3.0", "2.14.0"),
    "CONV_2D": ("1.5.0", "1.14.0", "1.14.0", "2.3.0", "2.4.0", "2.9.0"),
    "CONV_3D": ("2.5.0",),
    "COS": ("1.14.0",),
    "CUMSUM": ("2.4.0",),
    "DEPTHWISE_CONV_2D": ("1.5.0", "1.12.0", "1.14.0"),
    "DEPTH_TO_SPACE": ("2.1.0", "2.5.0"),
    "DEQUANTIZE": ("1.13.1", "1.14.0", "1.15.0", "2.2.0", "2.7.0"),
    "DIV": ("1.6.0", "2.3.0"),
    "ELU": ("1.14.0",),
    "EQUAL": ("1.14.0", "1.14.0"),
    "EXP": ("1.7.0",),
    "FLOOR": ("1.9.0",),
    "FLOOR_DIV": ("1.14.0", "1.14.0"),
    "FLOOR_MOD": ("1.13.0",),
    "FULLY_CONNECTED": ("1.5.0", "1.10.0", "1.14.0", "1.14.0", "2.0.0", "2.1.0"),
    "GATHER": ("1.6.0", "1.14.0", "1.15.0", "2.4.0", "2.5.0"),
    "GATHER_ND": ("1.14.0",),
    "GELU": ("2.9.0",),
    "GREATER": ("1.14.0", "1.14.0"),
    "GREATER_EQUAL": ("1.14.0", "1.14.0"),
    "HARD_SWISH": ("1.15.0",),
    "LEAKY_RELU": ("1.13.1", "2.3.0"),
    "LESS": ("1.14.0", "1.14.0"),
    "LESS_EQUAL": ("1.14.0", "1.14.0"),
    "LOG": ("1.14.0",),
    "LOCAL_RESPONSE_NORMALIZATION": ("1.5.0",),
    "LOGICAL_AND": ("1.11.0",),
    "LOGICAL_NOT": ("1.11.0",),
    "LOGICAL_OR": ("1.11.0",),
    "LOGISTIC": ("1.14.0", "1.14.0"),
    "LOG_SOFTMAX": ("1.14.0",),
    "MAXIMUM": ("1.14.0", "1.14.0", "2.3.0"),
    "MAX_POOL_2D": ("1.5.0", "1.14.0"),
    "MEAN": ("1.6.0", "1.14.0"),
    "MINIMUM": ("1.14.0", "1.14.0", "2.3.0"),
    "MIRROR_PAD": ("1.13.1", "2.3.0"),
    "MUL": ("1.5.0", "1.14.0", "1.15.0", "2.3.0", "2.6.0"),
    "NEG": ("1.9.0",),
    "NOT_EQUAL": ("1.14.0", "1.14.0"),
    "PACK": ("1.11.0", "1.14.0"),
    "PAD": ("1.5.0", "1.14.0", "2.4.0", "2.6.0", "2.20.0"),
    "PADV2": ("1.9.0", "1.14.0", "2.4.0", "2.6.0", "2.20.0"),
    "POW": ("1.10.0",),
    "PRELU": ("1.8.0",),
    "QUANTIZE": ("1.14.0", "1.15.0", "2.7.0"),
    "RANGE": ("1.13.0",),
    "REDUCE_ALL": ("2.6.0",),
    "REDUCE_ANY": ("1.11.0",),
    "REDUCE_MAX": ("1.11.0", "1.14.0"),
    "REDUCE_MIN": ("1.11.0", "1.14.0"),
    "REDUCE_PROD": ("1.11.0",),
    "RELU": ("1.5.0", "2.1.0"),
    "RELU6": ("1.5.0", "1.14.0"),
    "RELU_0_TO_1": ("2.10.0",),
    "RELU_N1_TO_1": ("1.5.0",),
    "RESHAPE": ("1.5.0",),
    "RESIZE_BILINEAR": ("1.7.0", "1.14.0", "2.2.0"),
    "RESIZE_NEAREST_NEIGHBOR": ("1.13.1", "1.14.0", "2.3.0"),
    "REVERSE_V2": ("1.14.0", "2.2.0"),
    "ROUND": ("1.14.0",),
    "RSQRT": ("1.10.0",),
    "SELECT_V2": ("2.2.0",),
    "SHAPE": ("1.10.0",),
    "SIGN": ("2.11.0", "2.12.0"),
    "SIN": ("1.9.0",),
    "SLICE": ("1.14.0", "1.14.0", "1.14.0", "2.4.0", "2.5.0"),
    "SOFTMAX": ("1.5.0", "1.14.0"),
    "SPACE_TO_DEPTH": ("1.5.0", "1.14.0"),
    "SPLIT": ("1.5.0", "1.14.0", "1.14.0"),
    "SPLIT_V": ("1.13.1", "2.3.0"),
    "SQRT": ("1.10.0",),
    "SQUARE": ("1.12.0",),
    "SQUARED_DIFFERENCE": ("1.13.1",),
    "STRIDED_SLICE": ("1.6.0", "1.14.0", "2.1.0", "2.2.0"),
    "SUB": ("1.6.0", "1.14.0", "2.3.0", "2.4.0"),
    "SUM": ("1.10.0", "1.15.0"),
    "TANH": ("1.14.0", "1.14.0"),
    "TILE": ("1.10.1", "2.2.0", "2.8.0"),
    "TOPK_V2": ("1.7.0",),
    "TRANSPOSE": ("1.6.0", "1.14.0", "1.15.0", "2.3.0", "2.4.0", "2.12.0"),
    "TRANSPOSE_CONV": ("1.9.0", "2.2.0", "2.3.0", "2.13.0"),
    "UNPACK": ("1.11.0", "1.14.0", "2.2.0"),
}  # fmt: skip
"""For each operator, the first runtime that has version 1, 2, and so on."""

OPERATORS = frozenset(_SINCE)
"""The operators that the emitter writes."""

_INT8_SINCE_VERSION_2 = frozenset(
    {
        "ADD", "ARG_MAX", "ARG_MIN", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "EQUAL", "GREATER",
        "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM",
        "MUL", "NOT_EQUAL", "PAD", "PADV2", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6",
        "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SLICE", "SOFTMAX", "SPLIT_V", "STRIDED_SLICE",
        "SUB", "SUM", "TANH", "TRANSPOSE", "GATHER", "DEPTH_TO_SPACE", "DEQUANTIZE",
    }
)  # fmt: skip


def version_of(operation: FlatOperation) -> int:
    """Return the lowest version of an operation's operator that supports its element types, ranks and options."""
    for rule in (_layer_version, _arithmetic_version, _layout_version, _conversion_version):
        found = rule(operation)
        if found is not None:
            return found
    is_int8 = operation.required(0).dtype == "INT8"
    return 2 if is_int8 and operation.code in _INT8_SINCE_VERSION_2 else 1


def _layer_version(operation: FlatOperation) -> int | None:
    """Return the version of a convolution or dense layer; ``None`` for other operators."""
    first = operation.required(0)
    is_int8 = first.dtype == "INT8"
    fields = operation.options[1] if operation.options else {}
    match operation.code:
        case "CONV_2D":
            if first.shape[-1] != operation.required(1).shape[-1]:
                return 6
            return 3 if is_int8 else 1
        case "DEPTHWISE_CONV_2D":
            dilated = (fields["dilationHFactor"], fields["dilationWFactor"]) != (1, 1)
            return 3 if is_int8 else 2 if dilated else 1
        case "FULLY_CONNECTED":
            if len(operation.inputs) == 2:
                return 6
            return 5 if fields["keepNumDims"] else 4 if is_int8 else 1
        case "TRANSPOSE_CONV":
            int8_weight = operation.required(1).dtype == "INT8"
            has_bias = len(operation.inputs) == 4
            fused = bool(fields.get("fusedActivationFunction"))
            return 4 if fused else 3 if has_bias else 2 if int8_weight else 1
    return None


def _arithmetic_version(operation: FlatOperation) -> int | None:
    """Return the version of an elementwise operator; ``None`` where the general rule holds."""
    code, dtype = operation.code, operation.required(0).dtype
    match code:
        case "ADD" | "SUB" if dtype == "INT64":
            return 4
        case "MUL" if dtype == "INT64":
            return 5
        case "MUL" if dtype == "INT8" and _product_scale(operation) >= 1:
            return 3
        case "SUB" | "MAXIMUM" | "MINIMUM" if _broadcasts_above_rank_4(operation):
            return 3
        case "DIV" if _broadcasts_above_rank_4(operation):
            return 2
        case "ABS":
            return {"INT32": 5, "INT16": 4}.get(dtype, 1)
        case "SIGN":
            return 2 if dtype == "INT32" else 1
        case "FLOOR_DIV":
            return 2 if dtype == "FLOAT32" else 1
    return None


def _broadcasts_above_rank_4(operation: FlatOperation) -> bool:
    inputs = [t for t in operation.inputs if t is not None]
    return max(t.rank for t in inputs) > 4 and len({t.shape for t in inputs}) > 1


def _layout_version(operation: FlatOperation) -> int | None:
    """Return the version of an operator that moves data; ``None`` where the general rule holds."""
    first = operation.required(0)
    is_bool, is_large = first.dtype == "BOOL", first.rank > 4
    match operation.code:
        case "TRANSPOSE" if first.rank in (5, 6) or is_bool:
            return {5: 4, 6: 6}.get(first.rank, 3)
        case "PAD" | "PADV2" if is_bool or is_large:
            return 5 if is_bool else 4
        case "SLICE" if is_large:
            return 5
        case "STRIDED_SLICE" if is_bool or is_large:
            return 4 if is_large else 3
        case "GATHER" if is_bool:
            return 3
        case "SPLIT":
            return {"INT32": 3, "INT8": 2}.get(operation.required(1).dtype, 1)
        case "BROADCAST_TO":
            return 3 if first.dtype == "INT8" else 2
        case "CONCATENATION" if first.dtype == "UINT32":
            return 4
    return None


def _conversion_version(operation: FlatOperation) -> int | None:
    """Return the version of a cast, a dequantization or a resize; ``None`` where the general rule holds."""
    first = operation.required(0)
    fields = operation.options[1] if operation.options else {}
    match operation.code:
        case "DEQUANTIZE" if first.dtype == "FLOAT16":
            return 3
        case "DEQUANTIZE" if first.quantization and len(first.quantization.scales) > 1:
            return 5
        case "RESIZE_BILINEAR" if fields["halfPixelCenters"]:
            return 3
        case "RESIZE_NEAREST_NEIGHBOR" if fields["halfPixelCenters"] or fields["alignCorners"]:
            return 3
        case "CAST":
            kinds = {first.dtype, operation.outputs[0].dtype}
            versions = (("FLOAT16", 5), ("UINT16", 4), ("INT8", 3), ("UINT32", 2))
            return next((version for kind, version in versions if kind in kinds), 1)
    return None


def _product_scale(operation: FlatOperation) -> float:
    """Return the scales of both factors over that of the product; 0 if one is not quantized."""
    a, b = operation.inputs
    out = operation.outputs[0]
    if a is None or b is None or not (a.quantization and b.quantization and out.quantization):
        return 0.0
    return a.quantization.scales[0] * b.quantization.scales[0] / out.quantization.scales[0]


def minimum_runtime(operations: Iterable[tuple[str, int]]) -> str:
    """Return the oldest runtime that has all of these operators, each given with its version."""
    found = [_SINCE[code][version - 1] for code, version in operations]
    return max(found, key=_runtime_order, default="1.5.0")


def _runtime_order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))

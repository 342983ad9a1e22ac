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
    "GELU": ("2.9.0",),
    "GREATER": ("1.14.0", "1.14.0"),
    "GREATER_EQUAL": ("1.14.0", "1.14.0"),
    "HARD_SWISH": ("1.15.0",),
    "LEAKY_RELU": ("1.13.1", "2.3.0"),
    "LESS": ("1.14.0", "1.14.0"),
    "LESS_EQUAL": ("1.14.0", "1.14.0"),
    "LOG": ("1.14.0",),
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
    first = operation.required(0)
    code, dtype = operation.code, first.dtype
    fields = operation.options[1] if operation.options else {}
    ranks = [t.rank for t in operation.inputs if t is not None]
    version = 2 if dtype == "INT8" and code in _INT8_SINCE_VERSION_2 else 1
    match code:
        case "CONV_2D":
            weight = operation.required(1)
            if first.shape[-1] != weight.shape[-1]:
                return 6
            return 3 if dtype == "INT8" else 1
        case "DEPTHWISE_CONV_2D":
            dilated = (fields["dilationHFactor"], fields["dilationWFactor"]) != (1, 1)
            return 3 if dtype == "INT8" else 2 if dilated else 1
        case "FULLY_CONNECTED":
            if len(operation.inputs) == 2:
                return 6
            return 5 if fields["keepNumDims"] else 4 if dtype == "INT8" else 1
        case "TRANSPOSE_CONV":
            weight = operation.required(1)
            bias = len(operation.inputs) == 4
            fused = bool(fields.get("fusedActivationFunction"))
            return 4 if fused else 3 if bias else 2 if weight.dtype == "INT8" else 1
        case "ADD":
            version = 4 if dtype == "INT64" else version
        case "MUL":
            version = 5 if dtype == "INT64" else version
            if dtype == "INT8" and _product_scale(operation) >= 1:
                version = 3
        case "SUB":
            wide = max(ranks) > 4 and len({t.shape for t in operation.inputs if t}) > 1
            version = 4 if dtype == "INT64" else 3 if wide else version
        case "DIV" | "MAXIMUM" | "MINIMUM":
            if max(ranks) > 4 and len({t.shape for t in operation.inputs if t}) > 1:
                version = 2 if code == "DIV" else 3
        case "TRANSPOSE":
            version = {5: 4, 6: 6}.get(first.rank, 3 if dtype == "BOOL" else version)
        case "PAD" | "PADV2":
            version = 5 if dtype == "BOOL" else 4 if first.rank > 4 else version
        case "SLICE":
            version = 5 if first.rank > 4 else version
        case "STRIDED_SLICE":
            version = 4 if first.rank > 4 else 3 if dtype == "BOOL" else version
        case "GATHER":
            version = 3 if dtype == "BOOL" else version
        case "SPLIT":
            data = operation.required(1)
            version = {"INT32": 3, "INT8": 2}.get(data.dtype, 1)
        case "DEQUANTIZE":
            per_channel = first.quantization is not None and len(first.quantization.scales) > 1
            version = 3 if dtype == "FLOAT16" else 5 if per_channel else version
        case "RESIZE_BILINEAR" if fields["halfPixelCenters"]:
            version = 3
        case "RESIZE_NEAREST_NEIGHBOR" if fields["halfPixelCenters"] or fields["alignCorners"]:
            version = 3
        case "CAST":
            kinds = {dtype, operation.outputs[0].dtype}
            version = (
                5 if "FLOAT16" in kinds else 4 if "UINT16" in kinds else 3 if "INT8" in kinds
                else 2 if "UINT32" in kinds else 1
            )  # fmt: skip
        case "BROADCAST_TO":
            version = 3 if dtype == "INT8" else 2
        case "ABS":
            version = {"INT32": 5, "INT16": 4}.get(dtype, 1)
        case "SIGN":
            version = 2 if dtype == "INT32" else 1
        case "FLOOR_DIV":
            version = 2 if dtype == "FLOAT32" else 1
        case "CONCATENATION":
            version = 4 if dtype == "UINT32" else version
    return version


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

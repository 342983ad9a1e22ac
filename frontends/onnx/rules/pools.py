"""ONNX's pools."""

from __future__ import annotations

from .... import ir
from ...lowering import Lowered
from ...lowering.pools import average_pool, global_max
from ..node import OnnxNode
from ..registry import reads
from .windows import window


@reads("AveragePool", makes=ir.AveragePool)
def _average_pool(node: OnnxNode) -> Lowered | None:
    kernel, ceil_mode = node.ints("kernel_shape"), node.flag("ceil_mode")
    sizes = window(node, kernel, ceil_mode) if kernel else None
    if kernel is None or sizes is None:
        return None
    counted = node.flag("count_include_pad")
    return average_pool(
        node.required(0), kernel, **sizes, ceil_mode=ceil_mode, counts_padding=counted
    )


@reads("MaxPool", makes=ir.MaxPool, note="without indices", idle_results=True)
def _max_pool(node: OnnxNode) -> Lowered | None:
    kernel, ceil_mode = node.ints("kernel_shape"), node.flag("ceil_mode")
    sizes = window(node, kernel, ceil_mode) if kernel else None
    if kernel is None or sizes is None or node.outputs != 1:
        return None
    # The storage order only affects the indices, which nothing reads here.
    node.flag("storage_order")
    return ir.MaxPool(**sizes, kernel=kernel, ceil_mode=ceil_mode), node.inputs


@reads("GlobalAveragePool", makes=ir.GlobalAveragePool)
def _global_average_pool(node: OnnxNode) -> Lowered | None:
    return ir.GlobalAveragePool(), node.inputs


@reads("GlobalMaxPool", makes=(ir.Reduce, "max"))
def _global_max_pool(node: OnnxNode) -> Lowered | None:
    return global_max(node.required(0))

"""ONNX operators that copy their input, or convert its element type."""

from __future__ import annotations

from .... import ir
from ....hosts.onnx.tensors import dtype_of
from ....ir import DType
from ...lowering import Lowered
from ...support import LeftAlone
from ..node import OnnxNode
from ..registry import reads


@reads("Cast", makes=ir.Cast, note="to types of 16 bits or more, i8, u8 and bool")
def _cast(node: OnnxNode) -> Lowered | None:
    to = dtype_of(node.attribute("to", 0))
    plain = to is not None and (to.bits >= 16 or to in (DType.I8, DType.U8, DType.BOOL))
    return (ir.Cast(to.value), node.inputs) if to is not None and plain else None


@reads("Identity", makes=ir.Identity)
def _identity(node: OnnxNode) -> Lowered | None:
    return (ir.Identity(), node.inputs) if node.type().dtype is not None else None


@reads("Dropout", makes=ir.Identity, note="not in training mode", idle_results=True)
def _dropout(node: OnnxNode) -> Lowered | None:
    # Below opset 7, training mode was the default.
    if node.outputs != 1 or (node.opset < 7 and not node.flag("is_test")):
        return None
    if node.input(2) is not None:
        training = node.data(2)
        if training is None or bool(training.numpy().reshape(-1)[0]):
            how = "it may drop" if training is None else "it drops"
            raise LeftAlone(f"{how} numbers at random (training_mode)")
    return ir.Identity(), node.inputs[:1]

"""How linear layers, products of matrices and embeddings are written in ONNX."""

from __future__ import annotations

from .... import ir
from ....ir import LazyTensor
from ..speller import Speller, spells


@spells(ir.Linear, writes="Gemm MatMul Add Transpose")
def linear(s: Speller, op: ir.Linear) -> None:
    """Gemm for matrices, else MatMul and Add."""
    w, bias = s.node.required(1), s.given(2)
    # Gemm's bias is mandatory before opset 11.
    if s.rank == 2 and (bias or s.opset >= 11):
        s.emit("Gemm", [s.inputs[0], s.inputs[1], bias], s.outputs[0], transB=1)
        return
    if w.data is not None:
        data = w.data
        turned = LazyTensor(data.shape[::-1], data.dtype, lambda: data.numpy().T)
        weight = s.new_constant(turned, f"{s.inputs[1]}_t")
    else:
        weight = s.emit("Transpose", [s.inputs[1]], perm=[1, 0])
    out = s.emit("MatMul", [s.inputs[0], weight], None if bias else s.outputs[0])
    if bias:
        s.emit("Add", [out, bias], s.outputs[0])


@spells(ir.MatMul, writes="MatMul")
def matmul(s: Speller, op: ir.MatMul) -> None:
    """MatMul."""
    s.plain("MatMul")


@spells(ir.Embedding, writes="Gather")
def embedding(s: Speller, op: ir.Embedding) -> None:
    """Gather of the table's rows, where the table comes first."""
    s.emit("Gather", s.inputs[::-1], s.outputs[0], axis=0)

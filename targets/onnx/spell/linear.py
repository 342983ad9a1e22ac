"""How linear layers, products of matrices and embeddings are written in ONNX."""

from __future__ import annotations

from .... import ir
from ....ir import LazyTensor, Value
from ..speller import Speller, spells


@spells(ir.Linear, writes="Gemm MatMul Add Transpose")
def linear(s: Speller, op: ir.Linear) -> None:
    """Gemm for matrices, else MatMul and Add."""
    w, bias = s.node.required(1), s.given(2)
    # Gemm's bias is mandatory before opset 11.
    if s.rank == 2 and (bias or s.opset >= 11):
        s.emit("Gemm", [s.inputs[0], s.inputs[1], bias], s.outputs[0], transB=1)
        return
    stored = _stored(s, w)
    if stored:
        weight = stored
    elif w.data is not None:
        data = w.data
        turned = LazyTensor(data.shape[::-1], data.dtype, lambda: data.numpy().T)
        # Layers that share a weight share its transpose.
        weight = s.forms.get(w) or s.new_constant(turned, f"{s.inputs[1]}_t")
        s.forms[w] = weight
    else:
        weight = s.emit("Transpose", [s.inputs[1]], perm=[1, 0])
    out = s.emit("MatMul", [s.inputs[0], weight], None if bias else s.outputs[0])
    if bias:
        s.emit("Add", [out, bias], s.outputs[0])


def _stored(s: Speller, w: Value) -> str:
    """The name of the matrix of which a weight is the transpose, if the model stores or computes it; else an empty text."""
    base, data = (w.bases[0] if len(w.bases) == 1 else None), w.data
    if base is None or not isinstance(data, LazyTensor) or data.source is not base.data:
        return ""
    name = s.existing(base)
    if name and base.data is not None and data.numpy().tobytes() == base.data.numpy().T.tobytes():
        return name
    return ""


@spells(ir.MatMul, writes="MatMul")
def matmul(s: Speller, op: ir.MatMul) -> None:
    """MatMul."""
    s.plain("MatMul")


@spells(ir.Embedding, writes="Gather")
def embedding(s: Speller, op: ir.Embedding) -> None:
    """Gather of the table's rows, where the table comes first."""
    s.emit("Gather", s.inputs[::-1], s.outputs[0], axis=0)

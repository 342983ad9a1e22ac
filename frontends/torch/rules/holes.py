"""Calls and ops that torch and the IR do not have in common, each with the reason."""

from __future__ import annotations

from .... import ir
from ...support import cannot_read
from ..registry import refuses

_QUANTISED = "torch quantises by observers and modules of its own: export to ONNX first"
cannot_read(
    [ir.Quantize, ir.Dequantize, ir.QuantizedConv, ir.QuantizedMatMul, ir.IntegerMatMul, ir.DynamicQuantize],
    _QUANTISED, "torch", "export",
)  # fmt: skip
cannot_read(ir.Gate, "an exported gate is no module any more: trace the module instead", "export")

refuses(
    "GRUCell", "LSTMCell", "RNNCell", "gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell",
    reason="the IR has no steps of recurrent layers",
)  # fmt: skip
refuses(
    "Transformer", "TransformerEncoder", "TransformerEncoderLayer", "TransformerDecoder", "TransformerDecoderLayer",
    reason="a trace by torch.fx alone does not look inside it: give the module that was traced",
)  # fmt: skip
refuses("argsort", "msort", reason="only topk and sort are read")
cannot_read(ir.LocalResponseNorm, "torch.export writes it as its arithmetic", "export")
cannot_read(
    ir.GatherNd,
    "torch has several tensors of indices in its place, which are not read",
    "torch",
    "export",
)
cannot_read(ir.Range, "torch computes its ends outside of tensors", "torch", "export")
cannot_read(ir.DynamicSlice, "torch computes its bounds outside of tensors", "torch", "export")
refuses("multi_head_attention_forward", reason="only the module is read")

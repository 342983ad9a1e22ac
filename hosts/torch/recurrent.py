"""The order of the gates of recurrent layers in torch and in the IR, which has ONNX's."""

from __future__ import annotations

from ... import ir
from ...ir.ops.recurrent import _Recurrent

TO_TORCH: dict[type[_Recurrent], tuple[int, ...]] = {
    ir.Lstm: (0, 2, 3, 1),
    ir.Gru: (1, 0, 2),
    ir.Rnn: (0,),
}
"""Where the gates of torch are in ONNX's order.

Those of an LSTM are input, forget, cell, output in torch and input, output, forget, cell in ONNX; those of a GRU reset, update, new
in torch and update, reset, new in ONNX.
"""

FROM_TORCH = {op: tuple(map(order.index, range(len(order)))) for op, order in TO_TORCH.items()}
"""Where the gates of ONNX are in torch's order."""

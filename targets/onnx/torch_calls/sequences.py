"""Recurrent layers over sequences of different lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....hosts.torch.recurrent import FROM_TORCH
from ....ir import DType, Gru, Lstm, Rnn, TensorType, Value
from .call import Call, NotWritten, Number, Size, writes


@dataclass(frozen=True)
class Packed:
    """Sequences with their lengths.

    Attributes:
        x: The sequences, padded: time first.
        lengths: How many steps of each count.
        rank: The number of axes of ``x``.
        steps: The size of its first axis.
    """

    x: Value
    lengths: Value
    rank: int
    steps: Size


@writes("pack_padded_sequence")
def pack(call: Call) -> Packed:
    """``(x, lengths, batch_first, enforce_sorted)``."""
    x, lengths = call.tensor(0), call.get(1, "lengths")
    if not isinstance(lengths, Value):
        lengths = call.out.vector(lengths)
    batch_first, rank = call.flag(2, "batch_first"), call.out.rank(x)
    steps = call.out.size(x, int(batch_first))
    if batch_first:
        kind = TensorType(x.type.dtype, (None,) * rank)
        x = call.out.op("Transpose", x, type=kind, perm=[1, 0, *range(2, rank)])
    return Packed(x, call.out.cast(lengths, DType.I32), rank, steps)


@writes("pad_packed_sequence")
def unpack(call: Call) -> list[Any]:
    """``(packed, batch_first, padding, total_length)`` gives ``(x, lengths)``."""
    found = call.get(0, "sequence")
    if not isinstance(found, Packed) or call.get(2, "padding_value", 0.0) != 0:
        raise NotWritten(
            "its sequences are not packed by a call that has a rule, or padded by other numbers than 0"
        )
    x = _of_length(call, found)
    if call.flag(1, "batch_first"):
        perm = [1, 0, *range(2, found.rank)]
        x = call.out.op("Transpose", x, type=TensorType(x.type.dtype), perm=perm)
    return [x, call.out.cast(found.lengths, DType.I64)]


def _of_length(call: Call, found: Packed) -> Value:
    """Sequences with as many steps as are asked for, or as the longest one has."""
    out, x, rank, present = call.out, found.x, found.rank, found.steps
    kind, missing = TensorType(x.type.dtype), 0
    if call.get(3, "total_length") is not None:
        steps = call.size(3, "total_length")
        missing = out.arithmetic("Max", out.arithmetic("Sub", steps, present), 0)
    elif found.lengths.data is not None:
        steps = int(found.lengths.data.numpy().max())
    else:
        longest = TensorType(found.lengths.type.dtype, ())
        steps = out.item(out.op("ReduceMax", found.lengths, type=longest, keepdims=0))
    if missing != 0:
        pads = [0] * rank + [missing] + [0] * (rank - 1)
        x = out.op("Pad", x, out.vector(pads), type=kind)
    if (steps != present and missing == 0) or isinstance(missing, Number):
        zero = out.ints(0)
        x = out.op("Slice", x, zero, out.vector([steps]), zero, type=kind)
    return x


@writes("nn.LSTM", "nn.GRU", "nn.RNN")
def recurrent(call: Call) -> tuple[Any, Any]:
    """``(packed, states)`` gives ``(packed, states)``, for one layer."""
    module, given = call.module, call.get(0, "input")
    if not isinstance(given, Packed):
        raise NotWritten("its input is not packed by a call that has a rule")
    if module.num_layers != 1 or getattr(module, "proj_size", 0):
        raise NotWritten("it has several layers, or projects its states")
    ends = ["", "_reverse"] if module.bidirectional else [""]
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    weights = [[getattr(module, f"{kind}_l0{end}") for kind in kinds] for end in ends]
    direction = "bidirectional" if module.bidirectional else "forward"
    hidden = module.hidden_size
    op: Any
    if call.name == "nn.LSTM":
        op = Lstm(hidden, direction, 3)
    elif call.name == "nn.GRU":
        op = Gru(hidden, direction, 2, reset_after=True)
    else:
        op = Rnn(hidden, direction, 2, module.nonlinearity)
    w, r, *bias = (
        _stacked(call, [own[i] for own in weights], FROM_TORCH[type(op)]) for i in range(len(kinds))
    )
    both = call.out.constant(_beside(bias)) if bias else None
    state = call.get(1, "hx")
    states = [] if state is None else list(state) if isinstance(state, (list, tuple)) else [state]
    out = call.out
    made = out.canonical(
        op, given.x, out.constant(w), out.constant(r), both, given.lengths, *states
    )
    y = made[0]
    if len(ends) == 1:
        joined = out.op("Squeeze", y, out.ints(1))
    else:
        turned = out.op("Transpose", y, type=TensorType(y.type.dtype), perm=[0, 2, 1, 3])
        joined = out.op("Reshape", turned, out.ints(0, 0, 2 * hidden))
    last = made[1:] if len(made) > 2 else made[1]
    return Packed(joined, given.lengths, 3, given.steps), last


def _stacked(call: Call, tensors: list[Any], order: Any) -> Any:
    """Matrices or biases of each direction, with the gates in ONNX's order."""
    import numpy as np

    made = []
    for t in tensors:
        found = t.detach().cpu().numpy()
        gates = found.reshape(len(order), -1, *found.shape[1:])
        made.append(gates[list(order)].reshape(found.shape))
    return np.stack(made)


def _beside(bias: list[Any]) -> Any:
    import numpy as np

    return np.concatenate(bias, axis=1)

"""A recurrent layer that torch lacks: a GRU whose reset gate scales the state before the product, as ONNX has it by default."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class ResetFirstGRU(nn.Module):
    """A GRU with ``n = tanh(W x + b + R (r * h) + c)``; ``nn.GRU`` has ``r * (R h + c)``. Step by step, and slower.

    Parameters have the names and shapes of those of a one-layer ``nn.GRU``, gates in the order reset, update, new.

    Args:
        input_size: The size of each element of a sequence.
        hidden_size: The size of the state.
        bias: Whether there are biases.
        bidirectional: Whether sequences are read both ways.
        device: The device of the parameters.
        dtype: The element type of the parameters.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.bias, self.bidirectional = bias, bidirectional
        for end in self._ends():
            wide = {"weight_ih": (input_size,), "weight_hh": (hidden_size,)}
            for name, rest in {**wide, **({"bias_ih": (), "bias_hh": ()} if bias else {})}.items():
                made = torch.zeros((3 * hidden_size, *rest), device=device, dtype=dtype)
                self.register_parameter(f"{name}_l0{end}", nn.Parameter(made))

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias}, bidirectional={self.bidirectional}"

    def _ends(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def forward(
        self, x: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read sequences ``(time, batch, input_size)``; returns the states of all steps and the last ones, as ``nn.GRU`` does."""
        ways, last = [], []
        for place, end in enumerate(self._ends()):
            steps = x.flip(0) if end else x
            h = x.new_zeros(x.shape[1], self.hidden_size) if state is None else state[place]
            found = []
            for given in self._given(steps, end):
                h = self._next(given, h, end)
                found.append(h)
            made = torch.stack(found) if found else x.new_zeros(0, x.shape[1], self.hidden_size)
            ways.append(made.flip(0) if end else made)
            last.append(h)
        return torch.cat(ways, -1), torch.stack(last)

    def _given(self, steps: torch.Tensor, end: str) -> tuple[torch.Tensor, ...]:
        """The products with the elements of the sequences, step by step."""
        bias = getattr(self, f"bias_ih_l0{end}") if self.bias else None
        return F.linear(steps, getattr(self, f"weight_ih_l0{end}"), bias).unbind(0)

    def _next(self, given: torch.Tensor, h: torch.Tensor, end: str) -> torch.Tensor:
        n = self.hidden_size
        weight = getattr(self, f"weight_hh_l0{end}")
        bias = getattr(self, f"bias_hh_l0{end}") if self.bias else None
        gates = F.linear(h, weight[: 2 * n], None if bias is None else bias[: 2 * n])
        reset, update = torch.sigmoid(given[..., : 2 * n] + gates).chunk(2, -1)
        inner = F.linear(reset * h, weight[2 * n :], None if bias is None else bias[2 * n :])
        new = torch.tanh(given[..., 2 * n :] + inner)
        made: torch.Tensor = (1 - update) * new + update * h
        return made


__all__ = ["ResetFirstGRU"]

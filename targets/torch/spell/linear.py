"""How linear layers, products of matrices and embeddings are written in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

from .... import ir
from ..speller import Speller, spells


@spells(ir.Linear)
def linear(s: Speller, op: ir.Linear) -> fx.Node:
    """``nn.Linear``, or ``F.linear`` of a weight that is computed, or that keeps its name in another module."""
    given = s.weights()
    if given is None or s.out.bare(s.node.input(1)):
        return s.call(F.linear, s.value(), s.value(1), s.optional(2))
    weight, bias = given
    out, fan_in = weight.shape
    made = nn.Linear(fan_in, out, bias is not None, **s.meta(weight.dtype))
    return s.module(s.filled(made, weight, bias), s.value())


@spells(ir.MatMul)
def matmul(s: Speller, op: ir.MatMul) -> fx.Node:
    """``torch.matmul``."""
    return s.call(torch.matmul, *s.values())


@spells(ir.Embedding)
def embedding(s: Speller, op: ir.Embedding) -> fx.Node:
    """``nn.Embedding``, or ``F.embedding`` of a computed table."""
    given = s.weights()
    if given is None:
        return s.call(F.embedding, s.value(), s.value(1))
    rows, features = given[0].shape
    made = nn.Embedding(rows, features, **s.meta(given[0].dtype))
    return s.module(s.filled(made, given[0]), s.value())

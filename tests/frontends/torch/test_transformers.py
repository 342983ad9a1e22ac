"""Layers of transformers inside a traced module: their parts are seen, and keep their names."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from graphshrink import ir, shrink, shrink_graph
from graphshrink.ir import Opaque

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)
PADDED = torch.tensor([[False] * 5, [False, False, False, True, True]])


def opaque(graph: ir.Graph) -> list[str]:
    """Kinds of what was not understood, but for the checks of arguments that are ``None``."""
    kinds = [n.op.kind for n in graph.nodes if isinstance(n.op, Opaque)]
    return [k for k in kinds if k not in ("fx:_operator.is_", "fx:torch._assert")]


def sized(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, 0, 0.3)
    return module.eval()


LAYERS = {
    "in a sequence": (lambda **k: nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 4, 32, **k)), (X,)),
    "masks": (lambda **k: nn.TransformerEncoderLayer(16, 4, 32, **k), (X, CAUSAL, PADDED)),
    "encoder": (lambda **k: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, **k), 2, nn.LayerNorm(16)), (X, None, PADDED)),
    "decoder": (lambda **k: nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, **k), 1), (X, 2 * X[:, 1:], CAUSAL)),
    "both": (lambda **k: nn.Transformer(16, 2, 1, 1, 32, **k), (X, 2 * X, None, CAUSAL, None, PADDED, None, PADDED)),
}  # fmt: skip


@pytest.mark.parametrize("options", [
    {"batch_first": True}, {"batch_first": False, "norm_first": True, "activation": "gelu"}, {"batch_first": True, "bias": False},
], ids=["batch first", "norm first", "no bias"])  # fmt: skip
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore")
def test_layers_are_seen_through(name: str, options: dict[str, Any]) -> None:
    make, inputs = LAYERS[name]
    module = sized(make(**options))
    if not options["batch_first"]:
        inputs = tuple(x.transpose(0, 1) if x is not None and x.ndim == 3 else x for x in inputs)
    result = shrink(module, "", example_inputs=inputs, check=True, on_failure="raise")
    assert not opaque(result.graph)
    assert set(result.model.state_dict()) == set(module.state_dict())
    with torch.no_grad():
        want = module(*inputs)
        torch.testing.assert_close(result.model(*inputs), want, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_padding_in_front_gives_what_torch_gives() -> None:
    """torch has its fast path, which gives zeros, for padding at the ends alone."""
    module = sized(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 1)
    )
    for padded in (PADDED, PADDED.flip(1), torch.where(PADDED, -torch.inf, 0.0)):
        inputs = (X, None, padded)
        made = shrink_graph(module, "", example_inputs=inputs, check=True)
        with torch.no_grad():
            torch.testing.assert_close(made(*inputs), module(*inputs), rtol=1e-4, atol=1e-5)


def test_names_of_weights_stay_where_they_change() -> None:
    module = sized(nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32), nn.Linear(16, 4)))
    sparse = shrink_graph(module, "sparsify", example_inputs=(X,))
    assert set(sparse.state_dict()) == set(module.state_dict())
    assert (sparse.get_parameter("0.self_attn.in_proj_weight") == 0).float().mean() == 0.5
    copy = sized(nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32), nn.Linear(16, 4)))
    copy.load_state_dict(sparse.state_dict())
    torch.testing.assert_close(copy(X), sparse(X), rtol=1e-4, atol=1e-5)
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(X), sparse(X))
    assert set(again.state_dict()) == set(sparse.state_dict())


def test_attention_and_dropout_in_training_mode() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    module = nn.Sequential(sized(layer)).train()
    made = shrink(module, "", example_inputs=(X,))
    assert not opaque(made.graph)
    assert made.model.training
    torch.testing.assert_close(made.model(X), module(X))
    with pytest.raises(ir.ModelError, match=r"0\.dropout1 \(Dropout\) is in training mode"):
        shrink(nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32)), "", example_inputs=(X,))


class Attends(nn.Module):
    """An attention that is called with these arguments."""

    def __init__(self, arguments: dict[str, Any], **options: Any) -> None:
        super().__init__()
        self.a = nn.MultiheadAttention(16, 4, **options)
        self.arguments = arguments

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        """The pair that it returns, or the first of it."""
        y, weights = self.a(q, k, v, **self.arguments)
        return (y, weights) if self.arguments.get("need_weights", True) else y


MASKS_3D = torch.where(
    torch.rand(8, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.3, -1e4, 0.0
)
ATTENTION: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[torch.Tensor, ...]]] = {
    "weights": ({}, {"batch_first": True}, (X, X, X)),
    "weights of heads, padding": (
        {"average_attn_weights": False, "key_padding_mask": PADDED}, {"batch_first": True}, (X[:, 1:], X, X)),
    "a mask for each head": ({"attn_mask": MASKS_3D, "need_weights": False}, {"batch_first": True}, (X, X, X)),
    "a mask of bool, causal": (
        {"attn_mask": CAUSAL < 0, "need_weights": False, "is_causal": True}, {"batch_first": True}, (X, X, X)),
    "other widths": ({"need_weights": False}, {"kdim": 8, "vdim": 12}, (X, X[..., :8], X[..., :12])),
    "no batch": ({"key_padding_mask": PADDED[1]}, {}, (X[0], X[1], X[1])),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_in_all_its_forms(name: str) -> None:
    arguments, options, inputs = ATTENTION[name]
    module = sized(Attends(arguments, **options))
    result = shrink(module, "", example_inputs=inputs, check=True, on_failure="raise")
    assert not opaque(result.graph), result.report.not_understood
    assert isinstance(result.model.get_submodule("a"), nn.MultiheadAttention)
    # One changed weight: all of its ops are written anew.
    sparse = shrink_graph(module, "sparsify", example_inputs=inputs)
    changed = sparse.state_dict()
    if changed.keys() == module.state_dict().keys():
        module.load_state_dict(changed)
        with torch.no_grad():
            torch.testing.assert_close(sparse(*inputs), module(*inputs), rtol=1e-4, atol=1e-5)
    else:  # The layers of queries, keys and values are apart.
        assert "a.out_proj.weight" in changed


def test_unread_attention_without_inputs_has_a_remedy() -> None:
    module = nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)).eval()
    found = shrink(module, "")
    assert "give example_inputs" in " ".join(map(str, found.report.not_understood))
    assert found.report.after.ops["Linear"] == 2

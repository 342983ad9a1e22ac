"""Attention, U-Nets and shuffles: their graphs from a trace, an export and ONNX differ only in names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from zoo.exports import example, exported, small
from zoo.models import conv_norm

from graphshrink import Pipeline
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.frontends.torch.export import from_export
from graphshrink.frontends.torch.importer import from_fx
from graphshrink.ir import Conv, Graph, Opaque, Reshape, Rewriter
from graphshrink.targets.onnx.emitter import to_onnx
from graphshrink.targets.torch.emitter import to_fx
from support.fx_calls import CHECKS, body, ops, respelled


class Attention(nn.Module):
    """A layer of a vision transformer over patches, with one call for the attention."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 16, width))
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, x: Any) -> Any:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        b, t, c = x.shape
        y = self.norm(x)
        q, k, v = (p(y).view(b, t, self.heads, c // self.heads).transpose(1, 2)
                   for p in (self.q, self.k, self.v))  # fmt: skip
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return (x + self.mlp(x)).mean(1)


class UNet(nn.Module):
    """Down, up by interpolation, joined, and up by a transposed convolution."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.down, self.deep, self.join = conv_norm(3, 8), conv_norm(8, 16), conv_norm(24, 8)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Any) -> Any:
        a = self.down(x)
        b = self.deep(F.max_pool2d(a, 2))
        if self.mode == "nearest":
            b = F.interpolate(b, scale_factor=2, mode="nearest")
        else:
            b = F.interpolate(b, size=a.shape[-2:], mode=self.mode, align_corners=False)
        return torch.sigmoid(self.head(self.up(F.avg_pool2d(self.join(torch.cat([a, b], 1)), 2))))


class Shuffle(nn.Module):
    """Half of the channels pass, then all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.main = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Any) -> Any:
        kept, moved = torch.relu(self.stem(x)).chunk(2, 1)
        y = torch.cat([kept, self.main(moved)], 1)
        b, c, h, w = y.shape
        return y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class Stacked(nn.Module):
    """Two branches side by side on a new axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Any) -> Any:
        both = torch.stack([self.a(x), self.b(x)], 1)
        return torch.where(both > 0.0, both, torch.exp(both) - 1.0).amax(1)


class Many(nn.Module):
    """Activations, pools and products for which each host has its own call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.bend = nn.Sequential(
            nn.SELU(), nn.CELU(1.5), nn.Softsign(), nn.Hardsigmoid(), nn.Mish()
        )
        self.pools = nn.Sequential(
            nn.AdaptiveAvgPool2d((8, 4)), nn.AdaptiveMaxPool2d((4, 2)), nn.GLU(1)
        )
        self.last = nn.AdaptiveMaxPool2d(1)

    def forward(self, x: Any) -> Any:
        y = self.pools(torch.roll(self.bend(self.conv(x)), (3, -2), (2, 3)))
        z = y.flatten(2)
        z = torch.baddbmm(z, torch.bmm(z, z.transpose(1, 2)), z, beta=0.5, alpha=2.0)
        z = z.unflatten(2, (4, 2)).movedim(1, 3) * torch.linalg.vector_norm(y, 2, (1, 2, 3), True)
        return self.last(z) + torch.rsqrt(z.amax((1, 2, 3), True).abs() + 1.0)


torch.manual_seed(0)
IMAGE = torch.randn(2, 3, 16, 16)
MODELS: dict[str, nn.Module] = {
    "attention": Attention(),
    "unet-nearest": UNet("nearest"),
    "unet-bilinear": UNet("bilinear"),
    "shuffle": Shuffle(),
    "stacked": Stacked(),
    "many": Many(),
}


def normal(graph: Graph) -> str:
    """The text without names, without what only computes constants, and without biases of zeros."""
    Pipeline("fold-constants,prune-dead").run(graph)
    rw = Rewriter(graph)
    for value in list(graph.values()):
        if value.data is not None and value.producer is not None and value.use_count:
            rw.replace_uses(value, rw.constant(value.data))
    for node in reversed(list(graph.nodes)):
        bias = node.input(2)
        idle = bool(node.outputs) and all(v.data is not None for v in node.outputs)
        if idle or (isinstance(node.op, Opaque) and node.op.kind in CHECKS):
            rw.erase(node)
        elif isinstance(node.op, Conv) and bias is not None and bias.data is not None:
            zero = not np.any(bias.data.float64())
            rw.replace(node, node.op, node.inputs[:2] if zero else node.inputs)
        elif isinstance(node.op, Reshape):
            # A traced module copies the sizes that an export for one size has as numbers.
            first, *rest = node.op.shape
            known = [node.output.type.dim(i) for i in range(1, len(rest) + 1)]
            sizes = [k if isinstance(k, int) else d for k, d in zip(known, rest, strict=True)]
            rw.replace(node, Reshape((first, *sizes)), node.inputs)
    return graph.text(names=False, full=True)


@pytest.mark.parametrize("name", MODELS)
def test_every_way_in_gives_the_same_graph(name: str) -> None:
    model = MODELS[name].eval()
    traced = fx.symbolic_trace(model)
    graph = from_fx(traced, (IMAGE,))
    assert not any(":" in kind for kind in ops(graph))
    copied = to_fx(from_fx(traced, (IMAGE,)))
    assert body(copied) == body(traced)
    with torch.no_grad():
        assert torch.equal(copied(IMAGE), model(IMAGE))
        # Batches of another size: sizes stay what the host computes, or are copied.
        for made in (copied, respelled(from_fx(traced, (IMAGE,)))):
            torch.testing.assert_close(made(IMAGE[:1]), model(IMAGE[:1]), rtol=1e-5, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Without optimisations torch.onnx writes pieces as a sequence; with them it folds batch norms.
        program = torch.export.export(model, (IMAGE,))
        proto = torch.onnx.export(program, dynamo=True, verbose=False, optimize=name == "shuffle")
    assert proto is not None
    text = normal(graph)
    assert normal(from_export(program)) == text
    assert normal(from_onnx(proto.model_proto)) == text


# torch.onnx folds batch norms when it optimises, and otherwise leaves pieces as sequences.
ZOO = {"shufflenet_v1": False, "convnext": True, "bert": False, "llama": True, "mobilenet_v1": False,
       "squeezenet": True, "unet": False, "decoder": True, "audio": False, "lenet": True}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_networks_are_the_same_graph(name: str, onnx_files: Path) -> None:
    model, x = small(name).eval(), example(name)
    text = normal(from_fx(fx.symbolic_trace(model), (x,)))
    program = torch.export.export(model, (x,))
    assert normal(from_export(program)) == text
    if ZOO[name]:
        # The file that the session has already is optimised.
        made = onnx.load(exported(name, onnx_files))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            proto = torch.onnx.export(program, dynamo=True, verbose=False, optimize=False)
        assert proto is not None
        made = proto.model_proto
    assert normal(from_onnx(made)) == text


def any_batch(graph: Graph) -> str:
    """The text, with the example's size where the batch is a symbol."""
    return re.sub(r"(?<=[\[ ])(s\d+|batch)(?=[,\]])", "2", normal(graph))


# torch.onnx shares constants that are alike when it optimises: the norms of a ViT that was not trained.
@pytest.mark.parametrize(("name", "optimize"), [("vit", False), ("attention", True), ("unet-bilinear", False)])  # fmt: skip
def test_networks_of_any_batch_are_the_same_graph(name: str, optimize: bool) -> None:
    model = MODELS[name].eval() if name in MODELS else small(name).eval()
    x = IMAGE if name in MODELS else torch.cat([example(name), example(name)])
    text = any_batch(from_fx(fx.symbolic_trace(model), (x,)))
    assert ("Expand" in text) == (name == "vit")
    assert "Opaque" not in text
    free: Any = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(model, (x,), dynamic_shapes=free)
    assert any_batch(from_export(program)) == text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto = torch.onnx.export(program, dynamo=True, verbose=False, optimize=optimize)
    assert proto is not None
    assert any_batch(from_onnx(proto.model_proto)) == text


def split(x: Any) -> Any:
    pieces = x.split(1, 0)
    return [pieces[i].squeeze(0) for i in range(3)]


TAKEN: dict[str, Callable[[Any], Any]] = {
    "unbind": lambda x: x.unbind(0), "index": lambda x: (x[0], x[1], x[2]), "split": split,
    "slice": lambda x: [x[i : i + 1].squeeze(0) for i in range(3)],
    "select": lambda x: [torch.select(x, 0, i) for i in range(3)],
}  # fmt: skip


class Heads(nn.Module):
    """Queries, keys and values of one dense layer, taken apart."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qkv = how, nn.Linear(12, 36)

    def forward(self, x: Any) -> Any:
        wide = self.qkv(x).reshape(2, 5, 3, 2, 6).permute(2, 0, 3, 1, 4)
        found = TAKEN[self.how](wide)
        q, k, v = (found[i] for i in range(3))
        return torch.softmax(q @ k.transpose(-2, -1), -1) @ v


def test_queries_keys_and_values_are_taken_apart_in_one_way() -> None:
    x, found = torch.randn(2, 5, 12), []
    for how in TAKEN:
        torch.manual_seed(0)
        model = Heads(how).eval()
        traced, program = fx.symbolic_trace(model), torch.export.export(model, (x,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            protos = [
                torch.onnx.export(program, dynamo=True, verbose=False, optimize=optimize)
                # Without optimisations torch.onnx writes pieces as a sequence.
                for optimize in ((True,) if how == "split" else (False, True))
            ]
        graphs = [from_fx(traced, (x,)), from_export(program)]
        # Pieces are taken where they are read.
        lines = [sorted(body(m).replace(";", "\n").split()) for m in (to_fx(graphs[0]), traced)]
        assert lines[0] == lines[1]
        graphs += [from_onnx(p.model_proto) for p in protos if p is not None]
        for graph, proto in zip(graphs[2:], protos, strict=True):
            assert proto is not None
            assert to_onnx(graph) == proto.model_proto
        found += [normal(graph) for graph in graphs]
        assert torch.equal(to_fx(from_fx(traced, (x,)))(x), model(x))
    assert len(found) == 4 * len(TAKEN) - 1
    assert set(found) == {found[0]}
    assert found[0].count("Select") == 3


def test_rows_that_constant_ids_take_are_known() -> None:
    """As in ONNX; the table stays the module's own, and is trained."""

    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 4)
            self.register_buffer("ids", torch.tensor([[3, 0, 8]]))

        def forward(self, x: Any) -> Any:
            return x + self.table(self.ids)

    model, x = Places().eval(), torch.randn(2, 3, 4)
    for graph in (
        from_fx(fx.symbolic_trace(model), (x,)),
        from_export(torch.export.export(model, (x,))),
    ):
        (node,) = (n for n in graph.nodes if n.op.name == "Embedding")
        data = node.output.data
        assert data is not None
        want = model.table(model.ids).detach().numpy()  # type: ignore[arg-type]
        np.testing.assert_array_equal(data.numpy(), want)
        Pipeline("fold-constants,prune-dead").run(graph)
        made = to_fx(graph)
        assert any(torch.equal(p, model.table.weight) for p in made.parameters())
        assert torch.equal(made(x), model(x))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return y.view(y.shape[0], y.size(1) // 2, -1) / y.size(0)


def test_sizes_of_batches_are_never_baked_in() -> None:
    traced = fx.symbolic_trace(Head())
    graph = from_fx(traced, (IMAGE,))
    (shape,) = (n.op.shape for n in graph.nodes if n.op.name == "Reshape")
    assert shape[0] is None
    # A quotient of the batch size is not constant.
    assert any(isinstance(n.op, Opaque) and n.op.kind.endswith("truediv") for n in graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(to_fx(graph)(IMAGE[:1]), traced(IMAGE[:1]))


def test_attention_that_was_changed_is_spelled_out() -> None:
    """A call is copied for all of its ops, or for none of them."""

    class Two(nn.Module):
        def forward(self, x: Any) -> Any:
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    x = torch.randn(2, 5, 8)
    traced = fx.symbolic_trace(Two())
    graph = from_fx(traced, (x,))
    assert ops(graph) == ["Transpose", "Scale", "Scale", "MatMul", "Add", "Softmax", "MatMul"]
    soft = next(n for n in graph.nodes if n.op.name == "Softmax")
    Rewriter(graph).replace(soft, soft.op, soft.inputs)
    made = to_fx(graph)
    assert F.scaled_dot_product_attention not in {n.target for n in made.graph.nodes}
    assert F.scaled_dot_product_attention in {n.target for n in traced.graph.nodes}
    torch.testing.assert_close(made(x), Two()(x), rtol=1e-5, atol=1e-6)


def test_symbols_of_torch_export() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Attention().eval(), (IMAGE,), dynamic_shapes={"x": {0: batch}})
    graph = from_export(program)
    reshapes = [n for n in graph.nodes if n.op.name == "Reshape"]
    assert reshapes
    assert all(n.op.shape[0] is None for n in reshapes)
    symbol = graph.inputs[0].type.shape[0]
    assert isinstance(symbol, str)
    assert all(v.type.shape[0] == symbol for n in reshapes for v in n.outputs)
    with torch.no_grad():
        want, got = program.module()(IMAGE), to_fx(graph)(IMAGE)
    torch.testing.assert_close(got, want)

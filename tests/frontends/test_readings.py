"""Every registered reading rule is correct: the host's operator becomes the op in the table, and computes the same when it is spelled again.

The rows of the table are tested on what the targets write for ``tests/support/op_samples.py``, as a model of ONNX, as a traced module and
as an exported program; every rule of torch is tested on a call of its own below. Numbers are compared with onnxruntime's and torch's.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from graphshrink import ir
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.frontends.onnx.rules import RULES
from graphshrink.frontends.support import HOSTS, holes, table
from graphshrink.frontends.torch.export import from_export
from graphshrink.frontends.torch.importer import from_fx
from graphshrink.frontends.torch.rules import CALLS, MODULES, PIECES
from graphshrink.hosts.torch.calls import call_name
from graphshrink.hosts.torch.modules.gates import Gate, Switch
from graphshrink.hosts.torch.modules.masks import plain_type
from graphshrink.hosts.torch.modules.reset_first import ResetFirstGRU
from graphshrink.hosts.torch.modules.scale import Scale
from graphshrink.hosts.torch.origins import FxHost
from graphshrink.ir import ArrayTensor, DType, Graph, Opaque, TensorType
from graphshrink.ir.ops.rows import Key, key_of, rows, title
from graphshrink.targets.onnx.emitter import to_onnx
from graphshrink.targets.torch.emitter import to_fx
from graphshrink.targets.torch.speller import spells as torch_spells
from support.fx_calls import Call, respelled
from support.onnx_run import outputs_of
from support.op_samples import SAMPLES, Sample

# The table, row by row.


def sample(key: Key, host: str) -> tuple[Graph, Any]:
    """A graph with a node of a row, and its input; operands are computed if constant ones would make another op."""
    found = SAMPLES[key]
    if key[1] in TORCHS and host != "onnx":
        found = Sample(ir.Activation(key[1], TORCHS[key[1]]), found.operands)
    if key[0] is ir.DynamicSlice:
        x, starts, ends = found.operands
        graph = Graph("sample")
        values = [graph.add_constant(ArrayTensor(array)) for array in (x, ends)]
        start = graph.add_input("x", TensorType(DType.I64, starts.shape))
        graph.add_output(graph.append(found.op, [values[0], start, values[1]]).output)
        return graph, starts
    if not issubclass(key[0], ir.Add | ir.Sub | ir.Mul | ir.Div | ir.MatMul):
        return found.graph(), found.operands[0]
    x = np.abs(RNG.standard_normal((3, 3))).astype(np.float32)
    graph = Graph("sample")
    given = graph.add_input("x", TensorType(DType.F32, x.shape))
    other = graph.append(ir.Unary("exp"), [given])
    graph.add_output(graph.append(found.op, [given, other.output]).output)
    return graph, x


RNG = np.random.default_rng(1)
TORCHS = {"selu": (1.6732632, 1.050701), "hard_sigmoid": (1 / 6, 0.5)}
"""The parameters of activations that have none in torch."""


def as_module(key: Key) -> tuple[fx.GraphModule, Any]:
    """The module that the torch target writes for the sample of a row, and its input."""
    graph, array = sample(key, "torch")
    x = torch.from_numpy(array)
    host = fx.Graph()
    given = host.placeholder("x")
    made = [host.call_function(torch.tanh, (given,)) for _ in graph.outputs]
    host.output(tuple(made))
    module = fx.GraphModule(nn.Module(), host).eval()
    graph.inputs[0].host = "x"
    graph.output_names[:] = [node.name for node in made]
    graph.host = FxHost(module, (x,), {n.name: n for n in host.nodes}, frozenset())
    return to_fx(graph), x


def by_onnx(key: Key) -> tuple[Graph, list[Any], list[Any]]:
    given, x = sample(key, "onnx")
    proto, feeds = to_onnx(given), {"x": x}
    graph = from_onnx(proto)
    for node in graph.nodes:
        node.origin = None if not isinstance(node.op, Opaque) else node.origin
    again = outputs_of(to_onnx(graph), feeds, plain=True)
    return from_onnx(proto), outputs_of(proto, feeds, plain=True), again


def by_torch(key: Key) -> tuple[Graph, list[Any], list[Any]]:
    module, x = as_module(key)
    return compared(lambda: from_fx(module, (x,)), module, x)


def by_export(key: Key) -> tuple[Graph, list[Any], list[Any]]:
    module, x = as_module(key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (x,))
    return compared(lambda: from_export(program), module, x)


def compared(
    read: Callable[[], Graph], module: Callable[..., Any], x: torch.Tensor
) -> tuple[Graph, list[Any], list[Any]]:
    """The graph, the results of the module, and those of a module in which every op that is not opaque is spelled again."""
    graph = read()
    for node in graph.nodes:
        node.origin = None if not isinstance(node.op, Opaque) else node.origin
    with torch.no_grad():
        want, got = (torch.utils._pytree.tree_leaves(m(x)) for m in (module, to_fx(graph)))
    return read(), want, got


READ = {"onnx": by_onnx, "torch": by_torch, "export": by_export}


@pytest.mark.parametrize("host", HOSTS)
def test_every_row_is_read_as_the_table_says(host: str) -> None:
    readable, reasons, wrong = table(host), holes(host), []
    for key in rows():
        assert key in readable or reasons.get(key), f"{title(key)} has no rule and no reason"
        if host == "export" and key[0] in (ir.Gate, ir.Identity):
            continue  # They are written as modules, which an export takes apart.
        if host != "onnx" and key[0] in (ir.Range, ir.DynamicSlice):
            continue  # The size depends on numbers: a run on fake tensors cannot follow it.
        if host != "onnx" and torch_spells.table[key].rule is None:
            continue  # No torch model has it.
        graph, want, got = READ[host](key)
        found = {key_of(n.op) for n in graph.nodes if not isinstance(n.op, Opaque)}
        if (key in found) != (key in readable):
            wrong.append(f"{title(key)}: {', '.join(map(title, found))}")
        for a, b in zip(want, got, strict=True):
            if not np.allclose(np.asarray(b), np.asarray(a), 1e-5, 1e-5, equal_nan=True):
                wrong.append(f"{title(key)}: other numbers")
    assert wrong == []


def test_activations_and_functions_are_read_from_everywhere() -> None:
    for op in (ir.Activation, ir.Unary):
        for kind in op.kinds:
            assert all((op, kind) in table(host) for host in HOSTS), kind


def test_operators_have_one_rule_each() -> None:
    names = [
        reading.name for found in table("onnx").values() for reading in found if not reading.pattern
    ]
    assert set(names) == set(RULES)


# Every rule of torch, on a call that uses it.

DRAW = torch.Generator().manual_seed(3)


def n(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW)


class With(nn.Module):
    """A function of the input and of parameters, buffers or modules of the module's own."""

    def __init__(self, function: Callable[..., Any], *own: Any) -> None:
        super().__init__()
        self.function, self.count = function, len(own)
        for i, found in enumerate(own):
            if isinstance(found, nn.Module):
                self.add_module(f"t{i}", found)
            elif found.is_floating_point():
                self.register_parameter(f"t{i}", nn.Parameter(found))
            else:
                self.register_buffer(f"t{i}", found)

    def forward(self, x: Any) -> Any:
        return self.function(x, *(getattr(self, f"t{i}") for i in range(self.count)))


aten = torch.ops.aten
IMAGE, LINE, SPACE, MATRIX, BATCH = n(2, 4, 6, 6), n(2, 4, 8), n(2, 4, 4, 4, 4), n(3, 4), n(2, 3, 4)
BITS, IDS = MATRIX > 0, torch.tensor([[0, 2], [4, 1]])
INPUTS = {1: LINE, 2: IMAGE, 3: SPACE}
Snippet = tuple[Any, torch.Tensor]


def functions() -> dict[str, Snippet]:
    """Activations, functions of one number, comparisons, arithmetic."""
    found: dict[str, Snippet] = {"square": (torch.square, MATRIX)}
    activations = ("relu", "relu6", "silu", "hardswish", "hardsigmoid", "mish", "softsign", "leaky_relu", "elu", "celu", "selu",
                   "gelu", "hardtanh", "softplus", "glu")  # fmt: skip
    found |= {k: (_applied(getattr(F, k)), 3 * IMAGE) for k in activations}
    found |= {
        "hardshrink": (lambda x: F.hardshrink(x, 0.5), IMAGE),
        "threshold": (lambda x: torch.threshold(x, 0.5, 0.0), IMAGE), "_threshold": (lambda x: F.threshold(x, 0.5, 0.0), IMAGE),
        "sigmoid": (torch.sigmoid, MATRIX), "tanh": (torch.tanh, MATRIX), "log_sigmoid": (aten.log_sigmoid.default, IMAGE),
        "prelu": (With(F.prelu, n(4)), IMAGE),
        "softmax": (lambda x: x.softmax(1), IMAGE), "log_softmax": (lambda x: x.log_softmax(1), IMAGE),
        "clamp": (lambda x: x.clamp(-0.5, 0.7), IMAGE), "clip": (lambda x: torch.clip(x, max=0.7), IMAGE),
        "clamp_min": (lambda x: x.clamp_min(0.2), IMAGE), "clamp_max": (lambda x: x.clamp_max(0.2), IMAGE),
        "pow": (lambda x: x.abs() ** 1.5, MATRIX), "rsub": (lambda x: torch.rsub(x, 2.0), MATRIX),
        "truediv": (lambda x: x / 2, MATRIX), "where": (lambda x: torch.where(x > 0, x, 0.5), MATRIX),
        "masked_fill": (lambda x: x.masked_fill(x > 0, 0.5), MATRIX), "max": (torch.max, MATRIX), "min": (torch.min, MATRIX),
    }  # fmt: skip
    for name in ("add", "sub", "mul", "div", "multiply", "subtract", "divide", "true_divide"):
        found[name] = (_applied(getattr(torch, name), torch.exp), MATRIX)
    for name in ("maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge"):
        found[name] = (_applied(getattr(torch, name), torch.floor), MATRIX.round(decimals=1))
    for kind in ir.LOGIC:
        for prefix in ("logical_", "bitwise_"):
            found[prefix + kind] = (
                _applied(getattr(torch, prefix + kind), torch.logical_not),
                BITS,
            )
        sign = getattr(operator, f"{kind}_" if kind != "xor" else "xor")
        found[kind] = (lambda x, f=sign: f(x, ~x), BITS)
        found[f"__{kind}"] = (With(lambda x, c, f=sign: f(c, x), BITS.flip(0)), BITS)
    return found


def _applied(function: Any, *more: Any) -> Any:
    """A call that looks the same to a trace: the function alone is what it calls."""
    return lambda x: function(x, *(f(x) for f in more))


def layers() -> dict[str, Snippet]:
    """Convolutions, products, norms, pools."""
    vector, moments = n(4), (n(4), n(4).abs() + 0.5)
    found: dict[str, Snippet] = {}
    for i, x in INPUTS.items():
        window = (2,) * i
        calls = {
            f"conv{i}d": With(getattr(F, f"conv{i}d"), n(3, 4, *window)),
            f"conv_transpose{i}d": With(getattr(F, f"conv_transpose{i}d"), n(4, 3, *window)),
            f"avg_pool{i}d": lambda x, i=i: getattr(F, f"avg_pool{i}d")(x, 2),
            f"max_pool{i}d": lambda x, i=i: getattr(F, f"max_pool{i}d")(x, 2),
            f"adaptive_avg_pool{i}d": lambda x, i=i: getattr(F, f"adaptive_avg_pool{i}d")(x, 2),
            f"adaptive_max_pool{i}d": lambda x, i=i: getattr(F, f"adaptive_max_pool{i}d")(x, 2),
            f"aten.adaptive_max_pool{i}d": lambda x, i=i: getattr(aten, f"adaptive_max_pool{i}d").default(x, [2] * i)[0],
        }  # fmt: skip
        found |= {name: (function, x) for name, function in calls.items()}
    return found | {
        "convolution": (With(lambda x, w: aten.convolution.default(x, w, None, [2, 1], [1, 0], [1, 1], True, [1, 0], 2), n(4, 3, 2, 3)), IMAGE),
        "linear": (With(F.linear, n(5, 4), n(5)), MATRIX), "matmul": (lambda x: x @ x.transpose(1, 2), BATCH),
        "mm": (With(torch.mm, n(4, 5)), MATRIX), "bmm": (lambda x: torch.bmm(x, x.transpose(1, 2)), BATCH),
        "addmm": (With(lambda x, a, w: torch.addmm(a, x, w), n(5), n(4, 5)), MATRIX),
        "baddbmm": (lambda x: torch.baddbmm(x, x, x, beta=0.5, alpha=2.0), n(2, 3, 3)),
        "einsum": (lambda x: torch.einsum("bij,bkj->kbi", x, x.exp()), BATCH),
        "scaled_dot_product_attention": (lambda x: F.scaled_dot_product_attention(x, x, x.tanh(), is_causal=True), BATCH),
        "batch_norm": (With(lambda x, w, m, v: F.batch_norm(x, m, v, w), vector, *moments), IMAGE),
        "aten.batch_norm": (With(lambda x, w, m, v: torch.batch_norm(x, w, None, m, v, False, 0.1, 0.5, False), vector, *moments), IMAGE),
        "_native_batch_norm_legit_no_training": (With(lambda x, w, m, v: aten._native_batch_norm_legit_no_training.default(x, w, None, m, v, 0.1, 0.5)[0], vector, *moments), IMAGE),
        "native_batch_norm": (With(lambda x, w, m, v: aten.native_batch_norm.default(x, w, None, m, v, False, 0.1, 0.5)[0], vector, *moments), IMAGE),
        "layer_norm": (lambda x: F.layer_norm(x, (6,)), IMAGE),
        "native_layer_norm": (With(lambda x, w: aten.native_layer_norm.default(x, [6], w, w, 0.5)[0], n(6)), IMAGE),
        "group_norm": (With(lambda x, w: F.group_norm(x, 2, w, w), vector), IMAGE),
        "native_group_norm": (With(lambda x, w: aten.native_group_norm.default(x, w, w, 2, 4, 36, 2, 0.5)[0], vector), IMAGE),
        "instance_norm": (lambda x: F.instance_norm(x), IMAGE),
        "aten.instance_norm": (With(lambda x, w: torch.instance_norm(x, w, w, None, None, True, 0.1, 0.5, False), vector), IMAGE),
        "max_pool2d_with_indices": (lambda x: aten.max_pool2d_with_indices.default(x, [2, 2])[0], IMAGE),
        "max_pool3d_with_indices": (lambda x: aten.max_pool3d_with_indices.default(x, [2, 2, 2])[0], SPACE),
    }  # fmt: skip


def shapes() -> dict[str, Snippet]:
    """Reductions, shapes, slices, picks, resolutions, casts."""
    upsample = {
        "upsample_nearest1d": lambda x: aten.upsample_nearest1d.vec(x, [12], None), "upsample_linear1d": lambda x: aten.upsample_linear1d.vec(x, [12], False, None),
        "upsample_nearest2d": lambda x: aten.upsample_nearest2d.vec(x, None, [2.0, 2.0]), "upsample_bilinear2d": lambda x: aten.upsample_bilinear2d.vec(x, [9, 12], True, None),
        "upsample_bicubic2d": lambda x: aten.upsample_bicubic2d.vec(x, [9, 12], False, None), "_upsample_nearest_exact2d": lambda x: aten._upsample_nearest_exact2d.vec(x, [9, 12], None),
        "upsample_nearest3d": lambda x: aten.upsample_nearest3d.vec(x, None, [2.0] * 3), "upsample_trilinear3d": lambda x: aten.upsample_trilinear3d.vec(x, [6, 6, 6], False, None),
    }  # fmt: skip
    casts: dict[str, Any] = {k: (lambda x, k=k: getattr(x, k)()) for k in ("float", "double", "half", "bfloat16", "int", "long", "bool", "byte", "char", "short")}  # fmt: skip
    plain: dict[str, Any] = {
        "mean": lambda x: x.mean((0, 2)), "sum": lambda x: x.sum(1), "amax": lambda x: x.amax((1, 2), True), "amin": lambda x: torch.amin(x, 1),
        "prod": lambda x: x.prod(1), "logsumexp": lambda x: x.logsumexp((1, -1)), "argmax": lambda x: x.argmax(1), "argmin": lambda x: x.argmin(1, True), "cumsum": lambda x: x.cumsum(1),
        "linalg_vector_norm": lambda x: torch.linalg.vector_norm(x, 1, (1, 2)), "norm": lambda x: torch.Tensor.norm(x, 2, 1),
        "flatten": lambda x: x.flatten(1), "reshape": lambda x: torch.reshape(x, (2, -1)), "view": lambda x: x.view(2, 4, 36), "_unsafe_view": lambda x: aten._unsafe_view.default(x, [2, 4, 36]),
        "reshape_as": lambda x: x.reshape_as(x.flatten(2)), "view_as": lambda x: x.view_as(x.tanh().flatten(1, 2)),
        "unflatten": lambda x: x.unflatten(1, (2, 2)), "permute": lambda x: x.permute(0, 2, 3, 1), "transpose": lambda x: x.transpose(1, 2), "swapaxes": lambda x: x.swapaxes(1, 3),
        "swapdims": lambda x: x.swapdims(1, 2), "movedim": lambda x: x.movedim(1, 3), "moveaxis": lambda x: torch.moveaxis(x, (1, 2), (0, 1)),
        "unsqueeze": lambda x: x.unsqueeze(-1), "squeeze": lambda x: x.mean(1, True).squeeze(1), "cat": lambda x: torch.cat([x, x.tanh()], 1), "concat": lambda x: torch.concat([x, x.tanh()], 1),
        "concatenate": lambda x: torch.concatenate([x, x.tanh()], 1), "stack": lambda x: torch.stack([x, x.tanh()], 1), "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
        "expand_as": lambda x: x[:, :1].expand_as(x), "repeat": lambda x: x.repeat(1, 2, 1, 3), "tile": lambda x: torch.tile(x, (2, 1)), "roll": lambda x: x.roll((1, -2), (2, 3)),
        "pad": lambda x: F.pad(x, (1, 2)), "constant_pad_nd": lambda x: aten.constant_pad_nd.default(x, [1, 2], 0.5), "select": lambda x: x.select(1, 2), "narrow": lambda x: x.narrow(1, 1, 2),
        "slice": lambda x: aten.slice.Tensor(x, 1, 1, 3), "getitem": lambda x: x[:, 1:3], "split": lambda x: x.split(2, 1)[0] - x.split(2, 1)[1], "chunk": lambda x: x.chunk(2, 1)[1].tanh(),
        "split_with_sizes": lambda x: torch.add(*(aten.split_with_sizes.default(x, [2, 2], 1)[i] for i in range(2))), "unbind": lambda x: x.unbind(1)[1] - 1.0,
        "interpolate": lambda x: F.interpolate(x, scale_factor=2), "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2), "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
        "to": lambda x: x.to(torch.float64), "alias": lambda x: aten.alias.default(x), "contiguous": lambda x: x.contiguous(), "dropout": lambda x: F.dropout(x, 0.5, False), **casts,
    }  # fmt: skip
    found: dict[str, Snippet] = {k: (f, IMAGE) for k, f in plain.items()}
    found |= {k: (f, INPUTS[int(k[-2])]) for k, f in upsample.items()}
    return found | {
        "t": (lambda x: x.t(), MATRIX), "index": (With(lambda x, i: aten.index.Tensor(x, [None, i]), torch.tensor([2, 0])), IMAGE),
        "index_select": (With(lambda x, i: x.index_select(1, i), torch.tensor([2, 0])), IMAGE),
        "embedding": (With(lambda i, t: F.embedding(i, t), n(5, 3)), IDS),
        "gather": (With(lambda x, i: x.gather(1, i), torch.tensor([[3, 0], [1, 1]])), MATRIX),
        "topk": (lambda x: torch.topk(x, 2, 0, False)[0], MATRIX), "sort": (lambda x: x.sort(descending=True)[1], MATRIX),
        "local_response_norm": (lambda x: F.local_response_norm(x, 3, 0.5), IMAGE),
        "gru": (With(lambda x, h, *w: aten.gru.input(x, h, list(w), True, 1, 0.0, False, False, False)[0], n(1, 3, 2), n(6, 4), n(6, 2), n(6), n(6)), n(5, 3, 4)),
        **{f"rnn_{kind}": (With(lambda x, h, *w, kind=kind: getattr(aten, f"rnn_{kind}").input(x, h, list(w), False, 1, 0.0, False, False, True)[1], n(1, 3, 2), n(2, 4), n(2, 2)), n(3, 5, 4)) for kind in ir.Rnn.kinds},
        "lstm": (With(lambda x, h, *w: aten.lstm.input(x, [h, h], list(w), False, 1, 0.0, False, False, False)[0], n(1, 3, 2), n(8, 4), n(8, 2)), n(5, 3, 4)),
    }  # fmt: skip


def modules() -> dict[type[nn.Module], Snippet]:
    """Modules of torch, and ours."""
    plain = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Mish, nn.Softsign, nn.SELU, nn.LogSigmoid, nn.Identity,
             nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Flatten)  # fmt: skip
    given: list[tuple[nn.Module, torch.Tensor]] = [
        *((kind(), IMAGE) for kind in plain),
        (nn.LeakyReLU(0.3), IMAGE), (nn.CELU(0.5), IMAGE), (nn.ELU(0.5), IMAGE), (nn.GELU("tanh"), IMAGE), (nn.Hardtanh(-0.5, 0.7), IMAGE),
        (nn.Threshold(0.5, 0.0), IMAGE), (nn.Hardshrink(), IMAGE), (nn.Softshrink(), IMAGE), (nn.Tanhshrink(), IMAGE), (nn.RReLU().eval(), IMAGE), (nn.Softplus(2.0), IMAGE), (nn.GLU(1), IMAGE), (nn.PReLU(4, 0.3), IMAGE), (nn.Softmax(1), IMAGE), (nn.LogSoftmax(1), IMAGE),
        (nn.Dropout1d(), LINE), (nn.SyncBatchNorm(4), IMAGE), (nn.LocalResponseNorm(5, 0.5, 0.5, 2.0), IMAGE), (nn.Linear(4, 5), MATRIX), (nn.Embedding(5, 3), IDS), (nn.LayerNorm(6), IMAGE), (nn.GroupNorm(2, 4), IMAGE), (nn.Unflatten(1, (2, 2)), IMAGE),
        (nn.PixelShuffle(2), IMAGE), (nn.PixelUnshuffle(2), IMAGE), (nn.Upsample(scale_factor=2), IMAGE), (nn.UpsamplingNearest2d((8, 9)), IMAGE), (nn.UpsamplingBilinear2d((8, 9)), IMAGE),
        (Gate(nn.ReLU(), Switch("soft", 0.25)), MATRIX), (Scale(n(4), n(4), 2), IMAGE),
    ]  # fmt: skip
    for i, x in INPUTS.items():
        made = {
            f"Conv{i}d": (4, 3, 2), f"ConvTranspose{i}d": (4, 3, 2), f"BatchNorm{i}d": (4,), f"InstanceNorm{i}d": (4,), f"AvgPool{i}d": (2,), f"MaxPool{i}d": (2,),
            f"AdaptiveAvgPool{i}d": (2,), f"AdaptiveMaxPool{i}d": (1,), f"ConstantPad{i}d": (1, 0.5), f"ZeroPad{i}d": (1,), f"ReflectionPad{i}d": (1,),
            f"ReplicationPad{i}d": (1,), f"CircularPad{i}d": (1,),
        }  # fmt: skip
        given += [(getattr(nn, name)(*arguments), x) for name, arguments in made.items()]
    found: dict[type[nn.Module], Snippet] = {type(module): (module, x) for module, x in given}
    found[nn.LSTM] = (
        With(lambda x, m: m(x)[0], nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True)),
        n(2, 5, 4),
    )
    gru, rnn = (
        nn.GRU(4, 3, 2, batch_first=True, bidirectional=True),
        nn.RNN(4, 3, 2, "relu", bias=False),
    )
    found[ResetFirstGRU] = (With(lambda x, m: m(x)[0], ResetFirstGRU(4, 3)), n(5, 2, 4))
    found[nn.GRU] = (With(lambda x, m: m(x)[0], gru), n(2, 5, 4))
    found[nn.RNN] = (With(lambda x, m: m(x)[1], rnn), n(2, 5, 4))
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    found[nn.MultiheadAttention] = (
        With(lambda x, m: m(x, x, x.tanh(), need_weights=False)[0], attention),
        BATCH,
    )
    return found


def of_samples() -> dict[str, Snippet]:
    """Functions that read the operands of their row's sample in order: they need no call above."""
    found: dict[str, Snippet] = {}
    for name, entry in CALLS.items():
        homes = [home for home in (torch, F, operator) if hasattr(home, name)]
        if entry.rule is not None and homes and entry.makes[0] in SAMPLES:
            x, *own = (torch.from_numpy(np.asarray(c)) for c in SAMPLES[entry.makes[0]].operands)
            found[name] = (With(getattr(homes[0], name), *own), x)
    return found


@cache
def snippets() -> dict[str | type[nn.Module], Snippet]:
    return {**of_samples(), **functions(), **layers(), **shapes(), **modules()}


def traced(function: Any) -> fx.GraphModule:
    if isinstance(function, With):
        tracer = fx.Tracer()
        leaf = tracer.is_leaf_module
        tracer.is_leaf_module = lambda m, name: isinstance(m, ResetFirstGRU) or leaf(m, name)  # type: ignore[method-assign]
        return fx.GraphModule(function.eval(), tracer.trace(function))
    made = nn.Sequential(function) if isinstance(function, nn.Module) else Call(function)
    # A module of ours is a leaf as torch's are.
    tracer = fx.Tracer()
    tracer.is_leaf_module = lambda m, name: m is not made  # type: ignore[method-assign]
    return fx.GraphModule(made.eval(), tracer.trace(made))


NAMES: list[str | type[nn.Module]] = [*(k for k, e in CALLS.items() if e.rule), *PIECES, *MODULES]


@pytest.mark.parametrize(
    "name", NAMES, ids=lambda name: name if isinstance(name, str) else name.__name__
)
def test_every_rule_of_torch(name: str | type[nn.Module]) -> None:
    assert name in snippets(), "a rule without a call that shows it: add one above"
    function, x = snippets()[name]
    module = traced(function)
    called = [
        plain_type(module.get_submodule(str(node.target)))
        if node.op == "call_module"
        else call_name(node.target)
        for node in module.graph.nodes
        if node.op.startswith("call_")
    ]
    assert name in called
    graph = from_fx(module, (x,))
    left = [node.op for node in graph.nodes if isinstance(node.op, Opaque)]
    assert left == []
    shown = name if isinstance(name, str) else {Gate: "graphshrink.nn.Gate", Scale: "graphshrink.nn.Scale"}.get(name, f"nn.{name.__name__}")  # fmt: skip
    makes = {
        key
        for host in HOSTS[1:]
        for key, found in table(host).items()
        for r in found
        if r.name == shown
    }
    assert makes & {key_of(node.op) for node in graph.nodes if not isinstance(node.op, Opaque)}
    with torch.no_grad():
        want, got = module(x), respelled(graph)(x)
    assert got.dtype is want.dtype
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)

"""One torch call in its many forms: what it is read as, and that this means the same when it is written anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from graphshrink import shrink
from graphshrink.frontends.torch.importer import from_fx
from graphshrink.ir import Graph, Opaque
from graphshrink.not_understood import not_understood
from graphshrink.targets.torch.emitter import to_fx
from support.evaluate import evaluate
from support.fx_calls import respelled, traced

DRAW = torch.Generator().manual_seed(3)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW)


class With(nn.Module):
    """A function of the input and of tensors of the module's own."""

    def __init__(self, function: Callable[..., Any], *tensors: torch.Tensor) -> None:
        super().__init__()
        self.function, self.names = function, [f"t{i}" for i in range(len(tensors))]
        for name, tensor in zip(self.names, tensors, strict=True):
            self.register_buffer(name, tensor)

    def forward(self, x: Any) -> Any:
        return self.function(x, *(getattr(self, n) for n in self.names))


X, Y, Z = numbers(2, 4, 6, 6), numbers(2, 4, 9), numbers(2, 4, 3, 4, 5)
M, IDS = numbers(3, 4), torch.tensor([[0, 2], [4, 1]])
C, L = numbers(4, 1, 1), numbers(6)
W = numbers(6, 4, 3, 2)

FORMS: dict[str, tuple[Callable[[Any], Any], torch.Tensor, str]] = {
    # Arithmetic.
    "add": (With(lambda x, c: x + c, C), X, "Scale"), "add-back": (With(lambda x, c: c + x, C), X, "Scale"),
    "sub": (With(lambda x, c: x - c, C), X, "Scale"), "sub-back": (With(lambda x, c: c - x, C), X, "Scale"),
    "mul": (With(lambda x, c: x * c, L), X, "Scale"), "mul-back": (With(lambda x, c: c * x, L), X, "Scale"),
    "div": (With(lambda x, c: x / c, L.abs() + 0.5), X, "Scale"), "div-back": (With(lambda x, c: c / x, C), X.abs() + 0.5, "Div"),
    "add-number": (lambda x: x + 2, X, "Scale"), "number-add": (lambda x: 2 + x, X, "Scale"),
    "sub-number": (lambda x: x - 2.5, X, "Scale"), "number-sub": (lambda x: 2.5 - x, X, "Scale"),
    "mul-number": (lambda x: x * 2, X, "Scale"), "div-number": (lambda x: x / 4, X, "Scale"),
    "number-div": (lambda x: 3 / x, X.abs() + 0.5, "Div"), "one-div": (lambda x: 1 / x, X.abs() + 0.5, "Unary"),
    "rsub": (lambda x: torch.rsub(x, 2.0), X, "Scale"),
    "add-alpha": (With(lambda x, c: torch.add(x, c, alpha=2), C), X, "Opaque"),
    "sub-alpha": (With(lambda x, c: torch.sub(x, c, alpha=2), C), X, "Opaque"),
    "div-floor": (lambda x: torch.div(x, 2.0, rounding_mode="floor"), X, "Opaque"),
    "add-integers": (lambda x: x + 2, IDS, "Opaque"), "div-integers": (lambda x: x / x, IDS + 1, "Opaque"),
    "aten-elu": (lambda x: torch.ops.aten.elu(x, 1.2), X, "Activation"),
    "aten-elu-scaled": (lambda x: torch.ops.aten.elu(x, 1.2, 2.5, 1.0), X, "Opaque"),
    "aten-elu-default-scaled": (lambda x: torch.ops.aten.elu.default(x, 1.2, 2.5, 1.0), X, "Opaque"),
    "add-itself": (lambda x: x + x, X, "Add"), "sub-itself": (lambda x: x - x.tanh(), X, "Sub"),
    "mul-itself": (lambda x: torch.multiply(x, x), X, "Mul"), "div-itself": (lambda x: torch.divide(x, x.exp()), X, "Div"),
    "add-map": (With(lambda x, c: x + c, numbers(4, 6, 6)), X, "Add"), "add-wide": (With(lambda x, c: x + c, numbers(3, 1, 1, 1, 1)), X, "Add"),
    "add-bool": (lambda x: x + True, X, "Opaque"), "mixed": (With(lambda x, c: x * c, C.double()), X, "Opaque"),
    # Layers.
    "conv-same": (With(lambda x, w: F.conv2d(x, w, padding="same", dilation=(1, 2)), W), X, "Conv"),
    "conv-valid": (With(lambda x, w: F.conv2d(x, w, padding="valid", stride=2), W), X, "Conv"),
    "conv": (With(lambda x, w, b: F.conv2d(x, w, b, (2, 1), (1, 0), (1, 2)), W, L), X, "Conv"),
    "conv-groups": (With(lambda x, w: F.conv2d(x, w, groups=2, padding=1), numbers(6, 2, 3, 3)), X, "Conv"),
    "conv-1d": (With(lambda x, w: F.conv1d(x, w, stride=2, padding=1), numbers(3, 4, 3)), Y, "Conv"),
    "conv-3d": (With(lambda x, w: F.conv3d(x, w, padding=(1, 0, 2)), numbers(3, 4, 2, 2, 2)), Z, "Conv"),
    "conv-unbatched": (With(lambda x, w: F.conv2d(x[0], w), W), X, "Opaque"),
    "conv-modules": (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2), X, "Conv"), "conv-module-1d": (nn.Conv1d(4, 6, 3, bias=False), Y, "Conv"),
    "conv-module-3d": (nn.Conv3d(4, 6, 2, 2), Z, "Conv"), "conv-reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), X, "Conv"),
    "transposed": (With(lambda x, w, b: F.conv_transpose2d(x, w, b, (2, 3), 1, (1, 0), 2, (1, 2)), numbers(4, 3, 3, 2), L), X, "ConvTranspose"),
    "transposed-1d": (nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, dilation=2), Y, "ConvTranspose"), "transposed-3d": (nn.ConvTranspose3d(4, 2, 2, 2), Z, "ConvTranspose"),
    "transposed-2d": (nn.ConvTranspose2d(4, 6, (3, 2), (2, 1), (1, 0), bias=False), X, "ConvTranspose"),
    "linear": (With(lambda x, w, b: F.linear(x, w, b), numbers(5, 6), numbers(5)), X, "Linear"), "linear-module": (nn.Linear(6, 5, bias=False), X, "Linear"),
    "linear-vector": (With(lambda x, w: F.linear(x, w), numbers(6)), X, "Opaque"),
    "matmul-weight": (With(torch.matmul, numbers(6, 5)), X, "Linear"), "matmul": (lambda x: x @ x.tanh(), X, "MatMul"), "matmul-batch": (With(torch.matmul, numbers(4, 6, 5)), X, "MatMul"),
    "addmm": (With(lambda x, w: torch.addmm(x, x, w), numbers(4, 4)), M, "Add"), "addmm-bias": (With(lambda x, b, w: torch.addmm(b, x, w), numbers(5), numbers(4, 5)), M, "Linear"), "addmm-scaled": (With(lambda x, b, w: torch.addmm(b, x, w, beta=0.5, alpha=3), numbers(5), numbers(4, 5)), M, "Add"),
    "einsum-diagonal": (lambda x: torch.einsum("bij,bkj->bij", x, x), Y, "Transpose"), "einsum-one": (lambda x: torch.einsum("bij->bji", x), Y, "Transpose"), "einsum-turned": (lambda x: torch.einsum("bij,bkj->kib", x, x), Y, "Transpose"),
    "embedding": (nn.Embedding(5, 3), IDS, "Embedding"), "embedding-call": (With(lambda i, t: F.embedding(i, t, padding_idx=1), numbers(5, 3)), IDS, "Embedding"),
    "embedding-bound": (nn.Embedding(5, 3, max_norm=1.0), IDS, "Opaque"),
    # Norms.
    "layer": (nn.LayerNorm((6, 6), 0.25), X, "LayerNorm"), "layer-plain": (lambda x: F.layer_norm(x, (4, 6, 6)), X, "LayerNorm"),
    "layer-no-bias": (nn.LayerNorm(6, bias=False), X, "LayerNorm"), "layer-call": (With(lambda x, w, b: F.layer_norm(x, (6,), w, b, 0.5), L, L + 1), X, "LayerNorm"),
    "group": (nn.GroupNorm(2, 4, 0.25), X, "GroupNorm"), "group-call": (With(lambda x, w, b: F.group_norm(x, 2, w, b, 0.5), numbers(4), numbers(4)), Y, "GroupNorm"),
    "group-plain": (lambda x: F.group_norm(x, 4), X, "GroupNorm"), "group-matrix": (With(lambda x, w: F.group_norm(x, 2, w), numbers(4)), M, "GroupNorm"),
    "instance": (nn.InstanceNorm2d(4, 0.25, affine=True), X, "GroupNorm"), "instance-1d": (nn.InstanceNorm1d(4), Y, "GroupNorm"), "instance-3d": (nn.InstanceNorm3d(4, affine=True), Z, "GroupNorm"),
    "instance-call": (With(lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=0.5), numbers(4), numbers(4)), X, "GroupNorm"),
    "instance-unbatched": (nn.Sequential(nn.Flatten(0, 1), nn.InstanceNorm2d(8)), Z[:, :, 0], "Opaque"),
    "instance-tracked": (nn.InstanceNorm2d(4, track_running_stats=True), X, "Opaque"),
    # Pools.
    "avg": (nn.AvgPool2d(2), X, "AveragePool"), "avg-stride": (lambda x: F.avg_pool2d(x, (3, 2), (1, 2), (1, 0)), X, "AveragePool"),
    "avg-uncounted": (nn.AvgPool2d(3, 2, 1, True, False), X, "AveragePool"), "avg-divisor": (nn.AvgPool2d(2, divisor_override=3), X, "Opaque"),
    "avg-1d": (nn.AvgPool1d(3, 2, 1), Y, "AveragePool"), "avg-3d": (lambda x: F.avg_pool3d(x, 2), Z, "AveragePool"),
    "max": (nn.MaxPool2d(2), X, "MaxPool"), "max-all": (nn.MaxPool2d((3, 2), (1, 2), (1, 0), (1, 2), ceil_mode=True), X, "MaxPool"),
    "max-call": (lambda x: F.max_pool2d(x, 3, 2, 1), X, "MaxPool"), "max-1d": (nn.MaxPool1d(3), Y, "MaxPool"), "max-3d": (nn.MaxPool3d(2, 1), Z, "MaxPool"),
    "global": (nn.AdaptiveAvgPool2d(1), X, "GlobalAveragePool"), "global-pair": (nn.AdaptiveAvgPool2d((1, 1)), X, "GlobalAveragePool"), "global-1d": (nn.AdaptiveAvgPool1d(1), Y, "GlobalAveragePool"),
    "adaptive": (nn.AdaptiveAvgPool2d(3), X, "AveragePool"), "adaptive-half": (nn.AdaptiveAvgPool2d((1, 2)), X, "AveragePool"), "adaptive-uneven": (nn.AdaptiveAvgPool2d(4), X, "Opaque"),
    "mean-global": (lambda x: x.mean((3, 2), keepdim=True), X, "GlobalAveragePool"), "mean-flat": (lambda x: x.mean((2, 3)), X, "Reduce"),
    "mean-6d": (lambda x: x[..., None, None].mean((2, 3, 4, 5), keepdim=True), X, "Reduce"), "mean-one": (lambda x: x.mean(-1, True), X, "Reduce"), "mean-last": (lambda x: x.mean((-1,), keepdim=True), Y, "GlobalAveragePool"), "mean-matrix": (lambda x: x.mean(1, keepdim=True), M, "Reduce"),
    # Functions.
    "leaky": (nn.LeakyReLU(0.3), X, "Activation"), "leaky-call": (lambda x: F.leaky_relu(x), X, "Activation"), "leaky-slope": (lambda x: F.leaky_relu(x, negative_slope=0.3), X, "Activation"),
    "elu": (nn.ELU(0.5), X, "Activation"), "elu-call": (lambda x: F.elu(x, 0.5), X, "Activation"), "elu-plain": (lambda x: F.elu(x), X, "Activation"),
    "elu-scaled": (lambda x: torch.ops.aten.elu.default(x, 0.5, 2.0), X, "Opaque"), "elu-inner": (lambda x: torch.ops.aten.elu.default(x, 0.5, 1, 2.0), X, "Opaque"), "elu-of-selu": (lambda x: torch.ops.aten.elu.default(x, 1.6732632423543772, 1.0507009873554805), X, "Activation"),
    "selu-double": (lambda x: F.selu(x.double()), X, "Activation"), "threshold": (lambda x: F.threshold(x, 0.3, 0.0), X, "Activation"), "threshold-value": (nn.Threshold(0.3, 0.5), X, "Where"), "hardshrink": (nn.Hardshrink(0.4), X, "Where"), "softshrink": (nn.Softshrink(0.4), X, "Sub"), "tanhshrink": (nn.Tanhshrink(), X, "Sub"), "rrelu": (nn.RReLU().eval(), X, "Activation"),
    "softplus": (nn.Softplus(), 9 * X, "Activation"), "softplus-beta": (nn.Softplus(0.3), 9 * X, "Scale"), "softplus-threshold": (nn.Softplus(1, 5), 9 * X, "Where"), "softplus-both": (nn.Softplus(0.3, 1), 9 * X, "Where"), "softplus-double": (lambda x: F.softplus(x.double()), 9 * X, "Where"),
    "log-sigmoid": (nn.LogSigmoid(), 99 * X, "Unary"), "glu": (nn.GLU(), X, "Mul"), "glu-axis": (lambda x: F.glu(x, 1), X, "Mul"),
    "gelu": (nn.GELU(), X, "Activation"), "gelu-tanh": (nn.GELU("tanh"), X, "Activation"), "gelu-call": (lambda x: F.gelu(x, approximate="tanh"), X, "Activation"),
    "hardtanh": (nn.Hardtanh(-0.5, 0.7), X, "Activation"), "hardtanh-call": (lambda x: F.hardtanh(x), X, "Activation"), "hardtanh-six": (lambda x: F.hardtanh(x, 0.0, 6.0), 5 * X, "Activation"),
    "clamp": (lambda x: x.clamp(-0.5, 0.7), X, "Activation"), "clamp-low": (lambda x: x.clamp(min=-0.5), X, "Activation"), "clamp-high": (lambda x: torch.clip(x, max=0.7), X, "Activation"), "clamp-integers": (lambda x: x.clamp(1, 2), IDS, "Opaque"),
    "prelu": (nn.PReLU(4, 0.3), X, "PRelu"), "prelu-one": (nn.PReLU(), X, "PRelu"), "prelu-call": (With(F.prelu, numbers(4).abs()), Y, "PRelu"), "prelu-matrix": (nn.PReLU(4, 0.1), M, "PRelu"),
    **{name: (m, X, "Activation") for name, m in (("relu", nn.ReLU()), ("relu6", nn.ReLU6()), ("silu", nn.SiLU()), ("sigmoid", nn.Sigmoid()), ("tanh", nn.Tanh()), ("hardswish", nn.Hardswish()),
                                                   ("hardsigmoid", nn.Hardsigmoid()), ("mish", nn.Mish()), ("softsign", nn.Softsign()))},
    **{f"{f.__name__}-call": (lambda x, f=f: f(x), 2 * X, "Activation") for f in (F.relu, F.relu6, F.silu, F.hardswish, F.hardsigmoid, F.mish, F.softsign)},
    "where-bool": (lambda x: torch.where(x > 0, x > 1, True), X, "Where"), "equal-bool": (lambda x: torch.eq(x, True), X, "Opaque"),
    "where-integer": (lambda x: torch.where(x > 1, x, 7), IDS, "Where"), "where-fraction": (lambda x: torch.where(x > 1, x, 0.5), IDS, "Opaque"), "equal-large": (lambda x: torch.eq(x, 2**24 + 1), X, "Opaque"),
    "softmax": (nn.Softmax(-3), X, "Softmax"), "softmax-call": (lambda x: x.softmax(1), X, "Softmax"), "softmax-type": (lambda x: F.softmax(x, 1, dtype=torch.float64), X, "Opaque"),
    "log-softmax": (nn.LogSoftmax(1), X, "LogSoftmax"), "dropout": (nn.Dropout(0.5), X, "Identity"), "dropout-torch": (lambda x: torch.dropout(x, 0.5, False), X, "Identity"), "dropout-call": (lambda x: F.dropout(x, 0.5, False), X, "Identity"), "identity": (nn.Identity(), X, "Identity"),
    # Shapes.
    "flatten": (nn.Flatten(), X, "Flatten"), "flatten-2": (nn.Flatten(2), X, "Reshape"), "flatten-middle": (lambda x: x.flatten(1, 2), X, "Reshape"), "flatten-all": (lambda x: x.flatten(), X, "Reshape"), "flatten-front": (lambda x: torch.flatten(x, 0, 1), X, "Reshape"), "flatten-nothing": (lambda x: x.flatten(-1), X, "Opaque"),
    "view": (lambda x: x.view(2, 4, 36), X, "Reshape"), "view-list": (lambda x: x.view((2, -1)), X, "Reshape"), "view-list-size": (lambda x: x.view((x.shape[0], -1)), X, "Flatten"), "view-batch": (lambda x: x.view(x.size(0), -1), X, "Flatten"), "view-type": (lambda x: x.view(torch.int32), X, "Opaque"), "reshape": (lambda x: torch.reshape(x, (2, 2, 2, -1)), X, "Reshape"), "view-kept": (lambda x: x.view(x.shape[0], x.shape[1], -1), X, "Reshape"),
    "permute": (lambda x: x.permute(0, -1, 1, 2), X, "Transpose"), "permute-list": (lambda x: torch.permute(x, (3, 1, 0, 2)), X, "Transpose"), "transpose": (lambda x: x.transpose(1, -1), X, "Transpose"), "swap": (lambda x: torch.swapaxes(x, 0, 2), X, "Transpose"), "t": (lambda x: x.t(), M, "Transpose"),
    "cat": (lambda x: torch.cat([x, x.relu()], -3), X, "Concat"), "cat-front": (lambda x: torch.cat((x.tanh(), x)), X, "Concat"), "cat-keyword": (lambda x: torch.cat([x, x.abs()], dim=2), X, "Concat"),
    "pad": (lambda x: F.pad(x, (1, 2)), X, "Pad"), "pad-both": (lambda x: F.pad(x, (1, 0, -1, 2), value=0.5), X, "Pad"), "pad-reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), X, "Pad"), "pad-channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), X, "Pad"),
    "zero-pad": (nn.ZeroPad2d((1, 2, 0, 3)), X, "Pad"), "constant-pad": (nn.ConstantPad2d((1, 2, 0, 3), -1.5), X, "Pad"),
    "contiguous": (lambda x: x.contiguous(), X, "Identity"),
    "roll": (lambda x: torch.roll(x, -1, 2), X, "Concat"), "roll-nothing": (lambda x: torch.roll(x, 6, 2), X, "Opaque"), "roll-flat": (lambda x: torch.roll(x, 1), X, "Opaque"), "roll-batch": (lambda x: torch.roll(x, 1, 0), X, "Opaque"),
    "repeat-once": (lambda x: x.repeat(1, 1, 1, 1), X, "Identity"), "repeat-more-axes": (lambda x: x.repeat(2, 1, 1, 1, 1), X, "Opaque"), "repeat-often": (lambda x: x.repeat(1, 17, 1, 1), X, "Opaque"),
    "unflatten-open": (lambda x: x.unflatten(1, (-1, 2)), X, "Reshape"), "unflatten-batch": (lambda x: x.unflatten(0, (1, -1)), X, "Reshape"),
    "conv-circular": (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"), X, "Conv"), "conv-replicate": (nn.Conv1d(4, 6, 3, padding="same", padding_mode="replicate"), Y, "Conv"),
    "pick": (lambda x: x[:, torch.tensor([2, 0])], X, "Gather"), "pick-two": (lambda x: x[torch.tensor([0, 1]), torch.tensor([2, 0])], X, "Opaque"),
    "adaptive-max": (nn.AdaptiveMaxPool2d((2, 3)), X, "MaxPool"), "adaptive-max-one": (nn.AdaptiveMaxPool1d(1), Y, "Reduce"), "adaptive-max-uneven": (nn.AdaptiveMaxPool2d(4), X, "Opaque"), "adaptive-kept": (nn.AdaptiveAvgPool2d((None, 3)), X, "AveragePool"),
    "shuffle": (nn.PixelShuffle(2), X, "DepthToSpace"), "unshuffle": (nn.PixelUnshuffle(3), X, "SpaceToDepth"),
    "upsample": (nn.Upsample(scale_factor=2), X, "Resize"), "upsample-size": (nn.Upsample((9, 7), mode="bilinear"), X, "Resize"), "upsample-corners": (nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True), X, "Resize"), "upsample-again": (nn.Upsample(scale_factor=1.5, mode="bilinear", recompute_scale_factor=True), X, "Opaque"), "upsample-2d": (nn.UpsamplingNearest2d((8, 9)), X, "Resize"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str) -> None:
    function, x, becomes = FORMS[name]
    if isinstance(function, nn.Module):
        function = function.eval()
    graph = from_fx(traced(function), (x,))
    (node,) = (n for n in graph.nodes if n.output in graph.outputs)
    assert node.op.name == becomes
    if isinstance(node.op, Opaque):
        return
    with torch.no_grad():
        want, got = function(x), respelled(graph)(x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    (oracle,) = evaluate(graph, [x.double().numpy() if x.is_floating_point() else x.numpy()])
    torch.testing.assert_close(torch.from_numpy(oracle).to(want.dtype), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [
    lambda x: torch.softmax(x, 1, torch.float64), lambda x: x.softmax(1, torch.float64), lambda x: x.softmax(1, dtype=torch.float64),
    lambda x: F.softmax(x, 1, dtype=torch.float64), lambda x: torch.log_softmax(x, 1, torch.float64), lambda x: x.sum(1, dtype=torch.float64),
    lambda x: x.mean(1, dtype=torch.float64), lambda x: x.cumsum(1, dtype=torch.float64),
])  # fmt: skip
def test_a_type_to_compute_in_is_kept_where_types_are_not_known(function: Any) -> None:
    graph = from_fx(traced(function))
    assert [n.op.name for n in graph.nodes] == ["Opaque"]
    torch.testing.assert_close(respelled_or_copied(graph)(X), function(X))


def respelled_or_copied(graph: Graph) -> Any:
    """The module, what is understood written anew."""
    for node in graph.nodes:
        if not isinstance(node.op, Opaque):
            node.origin = None
    return to_fx(graph)


@pytest.mark.parametrize("function", [
    lambda x: torch.split(x, split_size_or_sections=2, dim=1), lambda x: x.split(split_size=2, dim=1), lambda x: x.chunk(chunks=2, dim=1), lambda x: torch.split(x, (1, 3), 1),
])  # fmt: skip
def test_pieces_by_the_names_of_arguments(function: Any) -> None:
    module = traced(lambda x: function(x)[0] * 2 + function(x)[1].mean())
    graph = from_fx(module, (X,))
    assert not any(
        isinstance(n.op, Opaque) for n in graph.nodes if "split" in n.name or "chunk" in n.name
    )
    torch.testing.assert_close(respelled_or_copied(graph)(X), module(X))


def test_calls_that_are_left_alone_say_why() -> None:
    for function, why in (
        (nn.AdaptiveAvgPool2d(4), "6x6 does not divide into 4x4"),
        (lambda x: F.rrelu(x, training=True), "random slopes in training mode"),
        (nn.GRUCell(9, 3), "no steps of recurrent layers"),
        (nn.BatchNorm2d(4, track_running_stats=False), "no running statistics"),
        (lambda x: x + torch.ones(1, dtype=torch.int64), "operands of one type"),
        (lambda x: x.argsort(1), "only topk and sort"),
        (lambda x: torch.topk(x, 2, 1, True, False)[0], "no defined order"),
        (nn.LocalResponseNorm(2), "even number of channels"),
    ):
        x = Y[0] if isinstance(function, nn.GRUCell) else X
        made: Any = function
        graph = from_fx(traced(made.eval() if isinstance(made, nn.Module) else made), (x,))
        reasons = [n.op.reason for n in graph.nodes if isinstance(n.op, Opaque)]
        assert any(why in reason for reason in reasons), reasons


@pytest.mark.parametrize("aten", [torch.ops.aten.batch_norm, torch.ops.aten.batch_norm.default])
def test_the_arguments_of_aten_have_an_order_of_their_own(aten: Any) -> None:
    weight, bias, mean, var = numbers(4), numbers(4), numbers(4), numbers(4).abs() + 0.5
    module = With(lambda x, *p: aten(x, *p, False, 0.1, 0.5, False), weight, bias, mean, var)
    graph = from_fx(traced(module), (X,))
    assert [n.op.name for n in graph.nodes] == ["Scale"]
    torch.testing.assert_close(respelled(graph)(X), module(X), rtol=1e-5, atol=1e-5)


@fx.wrap
def relu(x: Any) -> Any:
    return x + 100


def test_a_function_that_carries_the_name_of_one_of_torchs() -> None:
    module = traced(lambda x: relu(x))
    graph = from_fx(module, (X,))
    assert [n.op.name for n in graph.nodes] == ["Opaque"]
    assert torch.equal(to_fx(graph)(X), X + 100)


@pytest.mark.parametrize("case", ["call", "module"])
def test_results_that_are_returned_together_have_a_reason(case: str) -> None:
    """The IR has ops for them, so that the reason is how the results are used."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(4, 5)

        def forward(self, x: Any) -> Any:
            return torch.topk(x, 2) if case == "call" else self.layer(x)

    graph = shrink(Whole().eval(), example_inputs=(torch.randn(3, 2, 4),)).graph
    (entry,) = not_understood(graph)
    assert entry.reason == "its results are used or returned together, not one by one"

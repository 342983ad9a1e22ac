"""Ops that torch's frontend did not read themselves, written as torch: the same numbers, or an error that names the node."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from graphshrink import PassError, ir, shrink, shrink_graph
from graphshrink.frontends.torch.importer import from_fx
from graphshrink.frontends.torch.trace import trace
from graphshrink.ir import ArrayTensor, Graph, ModelError, Opaque, Rewriter
from graphshrink.targets.torch.emitter import example_inputs_of, to_fx, to_fx_values
from support.evaluate import evaluate

RNG = np.random.default_rng(2)


def numbers(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


IMAGE, SIGNAL, VOLUME, MATRIX = (
    numbers(2, 4, 6, 5),
    numbers(2, 4, 7),
    numbers(2, 4, 3, 4, 3),
    numbers(3, 4),
)


class Sink(nn.Module):
    """A place for one op between a function of the input and the output."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor, self.place = nn.Linear(1, 1), nn.Tanh()

    def forward(self, x: Any) -> Any:
        return self.place(x)


def graph_of(op: ir.Op, x: Any, *constants: Any, shaped: bool = True) -> Graph:
    """A graph that came from torch, with one op in place of its only node."""
    graph = from_fx(fx.symbolic_trace(Sink().eval()), (torch.from_numpy(x),) if shaped else None)
    (node,) = graph.nodes
    rw = Rewriter(graph)
    operands = [
        None if c is None else rw.constant(ArrayTensor(c), f"c{i}") for i, c in enumerate(constants)
    ]
    node.output.type = ir.UNKNOWN  # What the host knew of its own op.
    rw.replace(node, op, [graph.inputs[0], *operands], name="place")
    return graph


ONE, TWO = (1, 1), (2, 1)


def lstm(ways: int, gates: int = 4) -> tuple[Any, ...]:
    """A sequence, and weights and biases for a state of 3 numbers."""
    rows = 3 * gates
    return numbers(5, 2, 4), numbers(ways, rows, 4), numbers(ways, rows, 3), numbers(ways, 2 * rows)


OPS: dict[str, tuple[Any, ...]] = {
    "conv": (ir.Conv(TWO, (1, 0, 1, 0), (1, 2)), IMAGE, numbers(6, 4, 3, 2), numbers(6)),
    "conv-uneven": (ir.Conv(TWO, (1, 0, 0, 2), (1, 2), 2), IMAGE, numbers(6, 2, 3, 2), numbers(6)),
    "conv-uneven-1d": (ir.Conv((1,), (2, 1), (1,)), SIGNAL, numbers(6, 4, 3)),
    "conv-uneven-3d": (ir.Conv((1, 1, 1), (1, 0, 2, 0, 1, 2), (1, 1, 1)), VOLUME, numbers(2, 4, 2, 2, 2)),
    "transposed": (ir.ConvTranspose(TWO, (1, 0, 1, 0), (1, 1), 2, (1, 0)), IMAGE, numbers(4, 3, 3, 2), numbers(6)),
    "transposed-plain": (ir.ConvTranspose(ONE, (0, 0, 0, 0), (2, 1)), IMAGE, numbers(4, 3, 3, 2)),
    "linear": (ir.Linear(), MATRIX, numbers(5, 4), numbers(5)), "linear-plain": (ir.Linear(), MATRIX, numbers(5, 4)),
    "scale-first": (ir.Scale(0), MATRIX, numbers(3), numbers(3)), "scale-last": (ir.Scale(-1), IMAGE, numbers(5), None),
    "scale-channels": (ir.Scale(1), IMAGE, None, numbers(4)), "scale-number": (ir.Scale(1), IMAGE, numbers(1), numbers(1)),
    "clip": (ir.Activation("clip", (-0.5, 0.25)), IMAGE), "clip-low": (ir.Activation("clip", (-0.5, math.inf)), IMAGE),
    "clip-high": (ir.Activation("clip", (-math.inf, 0.25)), IMAGE), "softplus": (ir.Activation("softplus"), IMAGE),
    "celu": (ir.Activation("celu", (0.5,)), IMAGE),
    "prelu": (ir.PRelu(1), IMAGE, numbers(4)), "prelu-back": (ir.PRelu(-3), IMAGE, numbers(4)), "prelu-one": (ir.PRelu(3), IMAGE, numbers(1)),
    "avg": (ir.AveragePool(TWO, (1, 0, 1, 0), ONE, (3, 2), False, True), IMAGE), "avg-ceil": (ir.AveragePool((2, 2), (0,) * 4, ONE, (3, 2), True, False), IMAGE),
    "avg-uncounted": (ir.AveragePool(TWO, (1, 1, 1, 1), ONE, (3, 2), False, False), IMAGE),
    "avg-1d": (ir.AveragePool((1,), (1, 1), (1,), (3,), False, True), SIGNAL), "avg-3d": (ir.AveragePool((1,) * 3, (0,) * 6, (1,) * 3, (2, 2, 3), False, False), VOLUME),
    "max": (ir.MaxPool(TWO, (1, 0, 1, 0), (1, 2), (3, 2)), IMAGE), "max-ceil": (ir.MaxPool((2, 2), (0,) * 4, ONE, (3, 2), True), IMAGE),
    "max-1d": (ir.MaxPool((2,), (1, 1), (1,), (3,)), SIGNAL), "max-3d": (ir.MaxPool((1,) * 3, (0,) * 6, (1,) * 3, (2, 2, 3)), VOLUME),
    "pad": (ir.Pad((0, 1, 0, 2, 0, 0, 3, 0), "constant", 1.5), IMAGE), "pad-crop": (ir.Pad((0, 0, -1, 0, 0, 0, 0, 2)), IMAGE),
    **{f"reduce-{kind}-{keep}": (ir.Reduce(kind, (1, 3), keep), IMAGE) for kind in ("mean", "sum", "max", "min") for keep in (False, True)},
    "reshape": (ir.Reshape((None, 2, -1)), IMAGE), "reshape-all": (ir.Reshape((-1,)), IMAGE), "reshape-copies": (ir.Reshape((None, None, 30)), IMAGE),
    "flatten": (ir.Flatten(1), IMAGE), "squeeze": (ir.Squeeze((0, 2)), numbers(1, 3, 1, 2)), "transpose": (ir.Transpose((0, 3, 1, 2)), IMAGE),
    "unsqueeze": (ir.Unsqueeze((0, 2)), MATRIX), "unsqueeze-back": (ir.Unsqueeze((-1, 1)), MATRIX), "select": (ir.Select(2, -1), IMAGE),
    "slice": (ir.Slice((1, 0), (5, -1), (2, 3), (2, 1)), IMAGE), "slice-open": (ir.Slice((-2,), (2**63 - 1,), (1,), (1,)), IMAGE),
    "slice-back": (ir.Slice((1,), (4,), (-1,), (3,)), IMAGE), "slice-head": (ir.Slice((0,), (2**31 - 1,), (2,), (2,)), IMAGE),
    "global": (ir.GlobalAveragePool(), IMAGE), "global-1d": (ir.GlobalAveragePool(), SIGNAL), "global-3d": (ir.GlobalAveragePool(), VOLUME),
    "softmax": (ir.Softmax(1), IMAGE), "log-softmax": (ir.LogSoftmax(2), IMAGE),
    "layer": (ir.LayerNorm(3, 0.25), IMAGE, numbers(5), numbers(5)), "layer-weight": (ir.LayerNorm(2), IMAGE, numbers(6, 5)),
    "layer-shift": (ir.LayerNorm(3), IMAGE, None, numbers(5)), "layer-plain": (ir.LayerNorm(1), IMAGE),
    "group": (ir.GroupNorm(2, 0.25), IMAGE, numbers(4), numbers(4)), "group-weight": (ir.GroupNorm(2), IMAGE, numbers(4)), "group-plain": (ir.GroupNorm(4, 0.5), SIGNAL),
    "instance": (ir.GroupNorm(0, 0.25), IMAGE, numbers(4), numbers(4)), "instance-1d": (ir.GroupNorm(0), SIGNAL, numbers(4), numbers(4)),
    "instance-3d": (ir.GroupNorm(0), VOLUME, numbers(4), numbers(4)), "instance-weight": (ir.GroupNorm(0), IMAGE, numbers(4)), "instance-plain": (ir.GroupNorm(0, 0.5), IMAGE),
    "cast": (ir.Cast("i32"), 9 * IMAGE), "concat": (ir.Concat(2), IMAGE, IMAGE[:, :, :2]), "matmul": (ir.MatMul(), IMAGE, numbers(5, 3)),
    "transposed-uneven": (ir.ConvTranspose(TWO, (1, 0, 0, 2), ONE, 2, (1, 0)), IMAGE, numbers(4, 3, 3, 2), numbers(6)),
    "max-uneven": (ir.MaxPool(ONE, (2, 0, 0, 1), ONE, (3, 2)), IMAGE), "max-large": (ir.MaxPool(ONE, (2, 1, 2, 1), ONE, (3, 2)), IMAGE),
    "avg-uneven": (ir.AveragePool(ONE, (2, 0, 0, 1), ONE, (3, 2), False, True), IMAGE),
    "reduce-prod": (ir.Reduce("prod", (1, -1), True), IMAGE), "reduce-l1": (ir.Reduce("l1", (0, 2), False), IMAGE), "reduce-l2": (ir.Reduce("l2", (1,), True), IMAGE),
    "prelu-last": (ir.PRelu(3), IMAGE, numbers(5)), "threshold": (ir.Activation("thresholded_relu", (0.5,)), IMAGE),
    "selu": (ir.Activation("selu", (0.5, 2.0)), IMAGE), "selu-own": (ir.Activation("selu", (1.6732632423543772, 1.0507009873554805)), IMAGE),
    "hard-sigmoid": (ir.Activation("hard_sigmoid", (0.5, 0.25)), IMAGE), "clip-empty": (ir.Activation("clip", (0.5, 0.5)), IMAGE),
    "flatten-0": (ir.Flatten(0), IMAGE), "flatten-2": (ir.Flatten(2), IMAGE), "flatten-back": (ir.Flatten(-1), IMAGE), "flatten-4": (ir.Flatten(4), IMAGE),
    "pad-reflect": (ir.Pad((0, 0, 1, 2, 0, 0, 3, 0), "reflect"), IMAGE), "pad-edge": (ir.Pad((0, 2, 1, 0, 0, 1), "edge"), SIGNAL), "pad-wrap": (ir.Pad((0, 0, 1, 2, 0, 0, 3, 0), "wrap"), IMAGE),
    "layer-broadcast": (ir.LayerNorm(2), IMAGE, numbers(5), numbers(6, 1)),
    "cumsum-exclusive": (ir.CumSum(1, True), IMAGE), "cumsum-reverse": (ir.CumSum(-1, False, True), IMAGE), "cumsum-both": (ir.CumSum(2, True, True), IMAGE),
    "arg-last": (ir.ArgReduce("max", 1, True, True), np.round(IMAGE)), "arg-last-min": (ir.ArgReduce("min", -1, False, True), np.round(IMAGE)),
    "depth-dcr": (ir.DepthToSpace(2), IMAGE), "space-dcr": (ir.SpaceToDepth(2), IMAGE[..., :4]),
    "quantize": (ir.Quantize("i8"), 9 * IMAGE, np.float32([0.1, 0.2, 0.3, 0.4]), np.int8([1, -2, 3, 0])), "quantize-u8": (ir.Quantize("u8"), 9 * IMAGE, np.float32(0.1), np.uint8(100)),
    "quantize-i16": (ir.Quantize("i16"), 9 * IMAGE, np.float32([0.001])), "dequantize": (ir.Dequantize(), IMAGE.astype(np.int8), np.float32([0.1, 0.2, 0.3, 0.4]), np.int8([100, -2, 3, 0])),
    "dequantize-i32": (ir.Dequantize(), np.int32(99 * IMAGE), np.float32(0.1)),
    "gather-bytes": (ir.Gather(-2), IMAGE, np.uint8([[0, 1], [1, 1]])), "div-integers": (ir.Div(), np.int32(9 * MATRIX), np.full((3, 4), -4, np.int32)),
    "pow-integers": (ir.Pow(), np.int32([1, 2, 3]), np.float32([2, 0.5, 1.5])), "cumsum-integers": (ir.CumSum(0), np.int32(9 * MATRIX)), "sum-integers": (ir.Reduce("sum", (1,)), np.int32(9 * MATRIX)),
    "lstm": (ir.Lstm(3), *lstm(1)), "lstm-both": (ir.Lstm(3, "bidirectional"), *lstm(2)), "lstm-back": (ir.Lstm(3, "reverse"), *lstm(1)), "lstm-plain": (ir.Lstm(3), *lstm(1)[:3]),
    "lstm-state": (ir.Lstm(3, "bidirectional"), *lstm(2), None, numbers(2, 2, 3), None),
    **{f"gru-{name}": (ir.Gru(3, way, reset_after=True), *lstm(1 + (way == "bidirectional"), 3), *more) for name, way, more in
       (("plain", "forward", ()), ("back", "reverse", ()), ("both", "bidirectional", ()), ("state", "bidirectional", (None, numbers(2, 2, 3))))},
    **{f"gru-first-{way}": (ir.Gru(3, way), *lstm(1 + (way == "bidirectional"), 3)) for way in ("forward", "reverse", "bidirectional")},
    **{f"rnn-{kind}-{way}": (ir.Rnn(3, way, 1, kind), *lstm(1 + (way == "bidirectional"), 1)) for kind in ir.Rnn.kinds for way in ("reverse", "bidirectional")},
    "gather-batches": (ir.GatherNd(1), MATRIX, np.array([[0], [1], [2]])), "gather-two-batches": (ir.GatherNd(2), IMAGE, RNG.integers(-4, 4, (2, 4, 3, 2))),
    **{f"elements-{axis}": (ir.GatherElements(axis), IMAGE, RNG.integers(-2, 2, (2, 3, 5, 4))) for axis in (0, 1, -1)},
    "elements-positive": (ir.GatherElements(1), IMAGE, RNG.integers(0, 4, (2, 9, 5, 4))), "elements-narrow": (ir.GatherElements(-2), IMAGE, np.int32(RNG.integers(-5, 5, (2, 4, 8, 5)))),
    **{f"nd-{n}": (ir.GatherNd(), IMAGE, np.int32(RNG.integers(-2, 2, (3, 2, n)))) for n in (1, 3, 4)},
    "response": (ir.LocalResponseNorm(3, 0.5, 0.6, 2.0), IMAGE), "response-3d": (ir.LocalResponseNorm(5), VOLUME),
    **{op.name: (op, MATRIX, numbers(3, 4)) for op in (ir.Add(), ir.Sub(), ir.Mul(), ir.Div())},
    **{f"avg-{name}": (ir.AveragePool(ONE, pads, dilations, (3, 2), False, counted), IMAGE) for name, pads, dilations, counted in
       (("not-counted", (1, 0, 0, 0), ONE, False), ("dilated", (0, 0, 0, 0), (2, 1), True), ("dilated-uneven", (1, 0, 2, 1), (1, 2), False))},
    "pad-wrap-outer": (ir.Pad((0, 1, 0, 0, 0, 0, 0, 1), "wrap"), IMAGE),
    **{f"resize-{mode}-{at}": (ir.Resize(mode, at, (1.0, 1.0, 1.7, 0.6), (), "ceil"), IMAGE) for mode in ir.RESIZE_MODES for at in ir.COORDINATES if at != "align_corners"},
    **{f"resize-antialias-{mode}": (ir.Resize(mode, "half_pixel", (1.0, 1.0, 0.5, 0.75), cubic=-0.5, exclude_outside=True, antialias=True), IMAGE) for mode in ("linear", "cubic")},
    "resize-channels": (ir.Resize("linear", "half_pixel", (), (3, 2, None, None)), IMAGE), "resize-cubic-inside": (ir.Resize("cubic", "half_pixel", (1.0, 1.0, 2.0, 0.5), (), cubic=-0.5, exclude_outside=True), IMAGE),
    "identity": (ir.Identity(), MATRIX), "gate": (ir.Gate("relu"), IMAGE, np.array([0.25], np.float32)), "gate-prelu": (ir.Gate("prelu"), IMAGE, np.array([0.25], np.float32), numbers(4)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_ops(name: str) -> None:
    op, x, *constants = OPS[name]
    graph = graph_of(op, x, *constants)
    made = to_fx(graph)
    with torch.no_grad():
        got = made(torch.from_numpy(x))
    (want,) = evaluate(graph, [x])
    assert got.shape == want.shape
    np.testing.assert_allclose(got.double().numpy(), want, rtol=1e-4, atol=1e-5)
    assert not any(p.is_meta for p in (*made.parameters(), *made.buffers()))


@pytest.mark.parametrize(
    ("mode", "theirs"), [("reflect", "reflect"), ("edge", "edge"), ("wrap", "wrap")]
)
def test_pads_of_all_axes(mode: str, theirs: Any) -> None:
    made = to_fx(graph_of(ir.Pad((1, 2, -1, 0, 0, 0, 1, -2), mode), IMAGE))
    want = np.pad(IMAGE, ((1, 0), (2, 0), (0, 1), (0, 0)), theirs)[:, :, 1:, :-2]
    # The amounts of an axis are taken one after the other: what is cropped was padded before.
    np.testing.assert_array_equal(made(torch.from_numpy(IMAGE)).numpy(), want)


@pytest.mark.parametrize("groups", [0, 3])
def test_norms_of_single_numbers(groups: int) -> None:
    x, shift = numbers(1, 3, 1, 1), numbers(3)
    made = to_fx(graph_of(ir.GroupNorm(groups, 0.25), x, numbers(3), shift))
    np.testing.assert_allclose(made(torch.from_numpy(x)).detach().numpy().ravel(), shift, rtol=1e-5)


def test_the_response_norm_of_a_matrix() -> None:
    made = to_fx(graph_of(ir.LocalResponseNorm(3, 0.5, 0.6, 2.0), MATRIX))
    x = torch.from_numpy(MATRIX)
    want = nn.functional.local_response_norm(x[:, :, None], 3, 0.5, 0.6, 2.0)[:, :, 0]
    torch.testing.assert_close(made(x), want)


WITHOUT: dict[str, tuple[Any, ...]] = {
    "pool-uneven": (ir.MaxPool((2, 2), (1, 0, 0, 0), ONE, (3, 2), True), IMAGE),
    "avg-dilated": (ir.AveragePool(ONE, (0, 0, 0, 0), (2, 1), (3, 2), True), IMAGE),
    "avg-uneven": (ir.AveragePool(ONE, (1, 0, 0, 0), ONE, (3, 2), True), IMAGE),
    "resize": (ir.Resize("linear", "half_pixel", (1.0, 1.0, 0.5, 0.5), antialias=True), IMAGE),
    "gate": (ir.Gate("softplus"), IMAGE, numbers(1)),
    "cast": (ir.Cast("u32"), IMAGE),
    "lstm-peepholes": (
        ir.Lstm(3),
        *lstm(1),
        None,
        numbers(1, 2, 3),
        numbers(1, 2, 3),
        numbers(1, 9),
    ),
    "gru-first-lengths": (ir.Gru(3), *lstm(1, 3), np.int32([5, 3])),
    "gru-lengths-back": (ir.Gru(3, "reverse", reset_after=True), *lstm(1, 3), np.int32([5, 3])),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_what_torch_does_not_have(name: str) -> None:
    op, x, *constants = WITHOUT[name]
    with pytest.raises(ModelError, match=r"place: .*torch"):
        to_fx(graph_of(op, x, *constants))


@pytest.mark.parametrize(
    ("op", "constants"),
    [(ir.Scale(1), (numbers(4),)), (ir.PRelu(-1), (numbers(4),)), (ir.LayerNorm(-1), (numbers(5),)),
     (ir.Slice((0,), (1,), (-1,), (1,)), ()), (ir.Unsqueeze((-1,)), ()), (ir.GlobalAveragePool(), ())],
)  # fmt: skip
def test_what_needs_the_rank(op: ir.Op, constants: Any) -> None:
    with pytest.raises(ModelError, match="place: "):
        to_fx(graph_of(op, IMAGE, *constants, shaped=False))


@pytest.mark.parametrize(
    ("op", "constants"),
    [(ir.Scale(1), (numbers(1),)), (ir.PRelu(-1), (numbers(1),)), (ir.PRelu(1), (numbers(4),)), (ir.GlobalAveragePool(2), ()),
     (ir.Slice((0, 1), (1, 3), (0, 2), (1, 1)), ()), (ir.Unsqueeze((1, 3)), ())],
)  # fmt: skip
def test_what_needs_no_rank(op: ir.Op, constants: Any) -> None:
    graph = graph_of(op, IMAGE, *constants, shaped=False)
    (want,) = evaluate(graph, [IMAGE])
    with torch.no_grad():
        np.testing.assert_allclose(to_fx(graph)(torch.from_numpy(IMAGE)).numpy(), want, rtol=1e-5)


def test_computed_weights_are_arguments() -> None:
    class Net(nn.Module):
        def forward(self, x: Any, w: Any, b: Any) -> Any:
            return torch.tanh(x), torch.tanh(w), torch.tanh(b)

    shapes = {
        ir.Conv(TWO, (1, 0, 0, 0), (1, 2)): (IMAGE, numbers(6, 4, 3, 2), numbers(6)),
        ir.Linear(): (MATRIX, numbers(5, 4), numbers(5)),
    }
    for op, given in shapes.items():
        inputs = tuple(map(torch.from_numpy, given))
        graph = from_fx(fx.symbolic_trace(Net()), inputs)
        first = next(graph.nodes)
        first.output.type = ir.UNKNOWN
        Rewriter(graph).replace(first, op, graph.inputs)
        want, got = evaluate(graph, list(given))[0], to_fx(graph)(*inputs)[0]
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-5)


def test_names_of_new_modules() -> None:
    """Free ones, no part of the host's own modules, and words that Python takes."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.act = nn.Sequential(nn.Linear(4, 4)), nn.Tanh()

        def forward(self, x: Any) -> Any:
            return self.act(self.block(x))

    for hint, name in (("act", "act"), ("block", "block_1"), ("block.0", "block.0_1"), ("block.0.more", "block.0_more"),
                       ("new.part", "new.part"), ("a/b c", "a_b_c"), ("1x", "m_1x")):  # fmt: skip
        graph = from_fx(fx.symbolic_trace(Net().eval()), (torch.from_numpy(MATRIX),))
        rw = Rewriter(graph)
        rw.replace(list(graph.nodes)[-1], ir.Softmax(1), list(graph.nodes)[-1].inputs)
        (linear, last) = graph.nodes
        weight = rw.constant(ArrayTensor(np.eye(4, dtype=np.float32)))
        made = rw.insert(ir.Linear(), [linear.output, weight], after=linear, name=hint)
        rw.set_input(last, 0, made.output)
        module = to_fx(graph)
        found = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
        assert found == ["block.0", name], hint


def test_values_are_found_by_name() -> None:
    graph = from_fx(fx.symbolic_trace(nn.Sequential(nn.Tanh(), nn.Sigmoid())), (torch.from_numpy(MATRIX),))  # fmt: skip
    module, names = to_fx_values(graph, [n.output for n in graph.nodes])
    assert [n.name for n in module.graph.nodes if n.op == "call_module"] == names
    other = from_fx(fx.symbolic_trace(nn.Sequential(nn.Tanh())), None)
    with pytest.raises(ModelError, match="is not computed by the module"):
        to_fx_values(graph, [next(other.nodes).output])


def test_example_inputs() -> None:
    x = torch.from_numpy(MATRIX)
    graph = from_fx(fx.symbolic_trace(nn.Sequential(nn.Tanh())), (x,))
    assert example_inputs_of(graph)[0] is x
    with pytest.raises(ir.UsageError, match="give example_inputs"):
        example_inputs_of(from_fx(fx.symbolic_trace(nn.Sequential(nn.Tanh())), None))
    with pytest.raises(ir.UsageError, match="came from torch"):
        to_fx(Graph())
    with pytest.raises(ir.UsageError, match="came from torch"):
        to_fx_values(Graph(), [])


def test_a_tensor_that_two_new_modules_read_stays_one_parameter() -> None:
    graph = from_fx(fx.symbolic_trace(nn.Sequential(nn.Tanh(), nn.Sigmoid())), (torch.from_numpy(MATRIX),))  # fmt: skip
    rw = Rewriter(graph)
    weight = rw.constant(ArrayTensor(numbers(4, 4)), "w")
    for node in list(graph.nodes):
        rw.replace(node, ir.Linear(), [node.inputs[0], weight])
    made = to_fx(graph)
    first, second = (m for m in made.modules() if isinstance(m, nn.Linear))
    assert first is not second
    assert first.weight is second.weight


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialiased_resizes_are_read_as_they_are_written(mode: str) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = nn.functional.interpolate(
                x, scale_factor=0.5, mode=mode, antialias=True
            )
            return y

    x = torch.from_numpy(IMAGE)
    graph = from_fx(fx.symbolic_trace(Net()), (x,))
    (want,) = evaluate(graph, [IMAGE])
    np.testing.assert_allclose(want, Net()(x).numpy(), rtol=1e-4, atol=1e-5)


def respell(graph: Graph, rw: Rewriter) -> None:
    for node in list(graph.nodes):
        if not isinstance(node.op, Opaque):
            rw.replace(node, node.op, node.inputs)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.AdaptiveAvgPool1d(1), (2, 4, 6)),
        (nn.AdaptiveAvgPool2d(1), (2, 4, 5, 3)),
        (nn.AdaptiveAvgPool2d(1), (4, 5, 3)),
        (nn.AdaptiveAvgPool3d(1), (2, 4, 3, 2, 3)),
    ],
)
def test_global_pools_average_as_many_axes_as_they_did(
    pool: nn.Module, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    model = nn.Sequential(nn.ReLU(), pool).eval()
    for inputs in (None, (x,)):
        small = shrink_graph(model, [respell], example_inputs=inputs)
        torch.testing.assert_close(small(x), model(x))


def test_a_global_pool_of_nobody_knows_how_many_axes_is_refused() -> None:
    def forgotten(graph: Graph, rw: Rewriter) -> None:
        for node in list(graph.nodes):
            if isinstance(node.op, ir.GlobalAveragePool):
                rw.replace(node, ir.GlobalAveragePool(), node.inputs)

    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
    with pytest.raises(PassError, match="give example_inputs"):
        shrink_graph(model, [forgotten])


def test_a_value_that_is_returned_twice_is_two_outputs() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            y = torch.relu(x)
            return y, {"again": y, "twice": x * 2.0, "input": x}, [y]

    x = torch.randn(2, 3)
    model = Twice().eval()
    graph = from_fx(trace(model, (x,)), (x,))
    assert len(graph.outputs) == len(set(graph.output_names)) == 5
    for passes in (None, [respell]):
        small = shrink_graph(model, passes, example_inputs=(x,), check=True)
        torch.testing.assert_close(small(x), model(x))


def test_uneven_padding_is_merged_once() -> None:
    """torch writes it as a call in front of the convolution, which another run leaves there."""
    model = nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)
    ).eval()
    x = torch.randn(1, 3, 8, 8)
    first = shrink(model, example_inputs=(x,))
    again = shrink(first.model, example_inputs=(x,))
    assert [
        r
        for p in first.report.passes
        if p.text == "merge-linear"
        for r in p.rewrites
        if "Pad" in r.what
    ]
    merges = [p for p in again.report.passes if p.text == "merge-linear"]
    assert not merges[0].rewrites
    assert [q.reason for q in merges[0].refusals] == [
        "not merged with pad: torch pads unevenly by a call of its own"
    ]
    torch.testing.assert_close(again.model(x), model(x), rtol=1e-4, atol=1e-5)

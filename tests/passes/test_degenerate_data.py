"""Passes that measure: data and weights at the edges of what numbers can be give a right choice, or one clear refusal."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

from graphshrink import ir
from graphshrink.errors import GraphshrinkError
from graphshrink.ir import ArrayTensor, DType, Graph, TensorType
from graphshrink.passes import Context, PassRecord, Pipeline
from graphshrink.passes.blocks import layer_blocks as pivot_choose
from graphshrink.passes.blocks import mask_blocks
from graphshrink.passes.blocks.refit import Covariance, RefitLayer
from graphshrink.passes.blocks.search import search_blocks
from graphshrink.passes.depth import affine_fit
from graphshrink.passes.statistics import gram as statistics
from graphshrink.passes.statistics.gram import GramMatrix, InputMoments
from graphshrink.passes.statistics.moments import ActivationMoments, ChannelMoments
from support.calibration import Oracle
from support.evaluate import evaluate

CHANNELS = 8


def few(*args: Any, **options: Any) -> Any:
    """A short search: every step of it is made, few times."""
    return search_blocks(*args, **options, steps=4)


@pytest.fixture(autouse=True)
def no_words_of_others(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Neither warnings of NumPy nor what LAPACK and ARPACK print may reach the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(pivot_choose, "search_blocks", few)
        monkeypatch.setattr(mask_blocks, "search_blocks", few)
        yield
    assert capfd.readouterr() == ("", "")


def network(weights: list[Any], dtype: DType = DType.F32, *, conv: bool = True) -> Graph:
    """Layers of 16 channels with biases, ReLUs in between."""
    graph = Graph("net")
    shape = (None, CHANNELS, 3, 3) if conv else (None, CHANNELS)
    value = graph.add_input("x", TensorType(dtype, shape))
    for number, array in enumerate(weights):
        stored = np.asarray(array).astype(dtype.numpy)
        weight = graph.add_constant(
            ArrayTensor(stored[:, :, None, None] if conv else stored), f"w{number}"
        )
        bias = np.linspace(-1, 1, CHANNELS).astype(dtype.numpy)
        inputs = [value, weight, graph.add_constant(ArrayTensor(bias), f"b{number}")]
        op = ir.Conv((1, 1), (0,) * 4, (1, 1)) if conv else ir.Linear()
        value = graph.append(op, inputs, name=f"layer{number}").output
        if number < len(weights) - 1:
            value = graph.append(ir.Activation("relu"), [value], name=f"act{number}").output
    graph.add_output(value)
    return graph


def random_weights(count: int = 3, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((CHANNELS, CHANNELS)) / 4 for _ in range(count)]


def samples(kind: str, *, conv: bool = True) -> Any:
    """Calibration data that are special in one way."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((24, CHANNELS, 3, 3) if conv else (96, CHANNELS))
    level = np.linspace(0.1, 0.3, CHANNELS).reshape(1, -1, *(1,) * (x.ndim - 2))
    match kind:
        case "constant channels":
            x[:, ::2] = np.broadcast_to(level, x.shape)[:, ::2]
        case "all constant":
            x = np.broadcast_to(level, x.shape).copy()
        case "zeros":
            x[:] = 0
        case "zero channels":
            x[:, 1::2] = 0
        case "one sample":
            x = x[:1]
        case "equal channels":
            x[:] = x[:, :1]
        case "far from zero":
            x = 1e6 + x
        case "subnormal":
            x *= 1e-40
        case "huge":
            x *= 1e18
    return x


KINDS = [
    "constant channels", "all constant", "zeros", "zero channels", "one sample", "equal channels",
    "far from zero", "subnormal", "huge",
]  # fmt: skip
MEASURING = [
    "sparsify{method=wanda}", "sparsify{method=wanda,refit-bias=false,sparsity=0.5}",
    "sparsify{method=sparsegpt}", "sparsify{method=sparsegpt,damping=0,refit-bias=false}",
    "sparsify{method=sparsegpt,sparsity=0.5}",
    "pivot{blocks=2,force=true}", "pivot{blocks=2,force=true,method=identity}",
    "pivot{blocks=2,force=true,method=identity,refit=false}",
    "remove-activations{names=*,by=affine}",
]  # fmt: skip
"""Passes that choose by data."""

OTHERS = [
    "sparsify", "permute-channels{steps=40}", "pivot{blocks=2,force=true,method=zeros}",
    "expand-linear", "expand-linear{form=pw-dw-pw,expansion=1}",
    "mask-blocks{blocks=2,draw=weights}", "mask-blocks{blocks=2}",
]  # fmt: skip
"""Passes that choose by weights, or by none."""

STEPS = [*MEASURING, *OTHERS]


def run(graph: Graph, step: str, data: Any) -> PassRecord:
    """Run one pass; its result must be well-formed, and all that it stored must be finite numbers."""
    (record,) = Pipeline([step]).run(graph, Context(calibration=Oracle(*([d] for d in data))))
    graph.verify()
    for value in graph.values():
        if value.data is not None:
            assert np.isfinite(value.data.numpy().astype(np.float64)).all(), value.name
    for rewrite in record.rewrites:
        assert all(np.isfinite(number) for number in rewrite.measures.values()), rewrite
        assert not any(word in rewrite.what for word in ("nan", "inf%", "e+")), rewrite.what
    return record


@pytest.mark.parametrize(
    ("step", "kind"), [*product(MEASURING, KINDS), *product(OTHERS, ["constant channels", "zeros"])]
)
def test_data_at_the_edges(step: str, kind: str) -> None:
    x = samples(kind).astype(np.float32)
    graph = network(random_weights())
    before = evaluate(graph, [x])[0]
    run(graph, step, np.array_split(x, min(2, len(x))))
    after = evaluate(graph, [x])[0]
    assert np.isfinite(after).all()
    if step.startswith(("permute", "expand")):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


@pytest.mark.parametrize("method", ["wanda", "sparsegpt,damping=1e-9"])
def test_inputs_that_never_vary_are_pruned_first(method: str) -> None:
    """What constant inputs add is the bias's to make up for, exactly: nothing is lost."""
    graph = network(random_weights(1))
    x = samples("constant channels").astype(np.float32)
    before = evaluate(graph, [x])[0]
    run(graph, f"sparsify{{method={method},n=1,m=2}}", [x])
    value = next(iter(graph.nodes)).inputs[1]
    assert value is not None
    assert value.data is not None
    kept = value.data.numpy()[:, :, 0, 0] != 0
    assert not kept[:, ::2].any()
    assert kept[:, 1::2].all()
    np.testing.assert_allclose(evaluate(graph, [x])[0], before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e8])
def test_moments_do_not_depend_on_where_zero_is(offset: float) -> None:
    rng = np.random.default_rng(2)
    noise = (
        rng.integers(-8, 9, (40, CHANNELS)) / 8
    )  # Numbers that stay what they are beside any offset here.
    graph = network(random_weights(2), DType.F64, conv=False)
    layer, act = list(graph.nodes)[:2]
    requests: list[Any] = [GramMatrix(layer), InputMoments(layer), ChannelMoments(graph.inputs[0])]
    batches = [[part + offset] for part in np.split(noise, [1, 7])]
    found = Oracle(*batches).collect(graph, requests)
    gram, inputs, channels = (found[r] for r in requests)
    apart = noise - noise.mean(0)
    np.testing.assert_allclose(gram.scatter[0], apart.T @ apart, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(inputs.scatter[0], (apart**2).sum(0), rtol=1e-9)
    np.testing.assert_allclose(channels.var, noise.var(0), rtol=1e-9)
    for mean in (gram.mean[0], inputs.mean[0], channels.mean):
        np.testing.assert_allclose(mean - offset, noise.mean(0), atol=1e-7)
    assert (np.linalg.eigvalsh(gram.scatter[0]) > -1e-9).all()
    # One channel is 0 or 1, whatever the others are: its line is known.
    moments = Oracle(*batches).collect(graph, [ActivationMoments(act)])[ActivationMoments(act)]
    assert (moments.var_x >= 0).all()


def test_constant_channels_have_no_variance_at_all() -> None:
    """Not even by rounding: 0.1 has no exact sum."""
    graph = network(random_weights(1))
    x = np.full((7, CHANNELS, 3, 3), np.float32(0.1))
    node = next(iter(graph.nodes))
    requests: list[Any] = [
        GramMatrix(node), InputMoments(node), ChannelMoments(graph.inputs[0]),
    ]  # fmt: skip
    found = Oracle([x[:3]], [x[3:]]).collect(graph, requests)
    gram, inputs, channels = (found[r] for r in requests)
    assert not gram.scatter.any()
    assert not inputs.scatter.any()
    assert not channels.var.any()
    np.testing.assert_array_equal(gram.mean, np.float64(np.float32(0.1)))


@pytest.mark.parametrize("step", [s for s in STEPS if "method=zeros" not in s and "names" not in s])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_left_alone(step: str, number: float) -> None:
    weights = random_weights()
    weights[1][3, 5] = number
    graph = network(weights)
    old = list(graph.nodes)[2].inputs[1]
    stopped, record = "", None
    with np.errstate(invalid="ignore"):  # The network itself computes NaN.
        data = [np.ones((2, CHANNELS, 3, 3), np.float32)]
        try:
            (record,) = Pipeline([step]).run(graph, Context(calibration=Oracle(data)))
        except GraphshrinkError as error:
            stopped = str(error)
    node = next(n for n in graph.nodes if n.name == "layer1")
    if not step.startswith("permute"):  # Which may move its outputs.
        assert node.inputs[1] is old
    reasons = {} if record is None else {r.node: r.reason for r in record.refusals}
    assert "finite" in (stopped or reasons["layer1"])


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize(
    "step", ["sparsify{method=wanda}", "sparsify{method=sparsegpt}", "pivot{blocks=2,force=true}"]
)
def test_samples_that_are_not_finite_are_named(step: str, number: float) -> None:
    x = samples("").astype(np.float32)
    x[20, 3, 1, 1] = number
    message = (
        r"%x, an input, is not finite everywhere on the calibration data \(batch 1\): leave out"
    )
    with pytest.raises(GraphshrinkError, match=message):
        run(network(random_weights()), step, np.split(x, 2))


def test_squares_beyond_float64_are_named() -> None:
    x = 1e200 * samples("", conv=False)
    for step in (
        "sparsify{method=wanda}",
        "sparsify{method=sparsegpt}",
        "pivot{blocks=2,force=true}",
    ):
        graph = network(random_weights(1), DType.F64, conv=False)
        with pytest.raises(GraphshrinkError, match=r"layer0: .* leave the range of float64"):
            run(graph, step, [x])


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e10])
@pytest.mark.parametrize(
    "step",
    [
        "sparsify",
        "permute-channels{steps=40}",
        "mask-blocks{blocks=2,draw=weights}",
        "expand-linear",
    ],
)
def test_the_unit_of_weights_does_not_matter(step: str, scale: float) -> None:
    """The same choice for weights of any size; of subnormal ones some finite choice."""
    chosen = []
    for factor in (1.0, scale):
        graph = network(
            [np.sign(w) * 2.0 ** np.round(4 * np.abs(w)) * factor for w in random_weights()]
        )
        record = run(graph, step, [samples("").astype(np.float32)])
        chosen.append([(r.what, r.nodes) for r in record.rewrites])
    if scale >= 1e-30:
        assert chosen[0] == chosen[1]


def test_refits_beyond_float16_are_refused() -> None:
    """A bias that would take up the mean of what is lost, and cannot."""
    graph = network([np.full((CHANNELS, CHANNELS), 50.0)], DType.F16)
    x = np.full((4, CHANNELS, 3, 3), 1e4) + samples("")[:4]
    (record,) = Pipeline(["sparsify{method=wanda}"]).run(graph, Context(calibration=Oracle([x])))
    (refusal,) = record.refusals
    assert refusal.reason == "its refitted bias would leave the range of f16"
    assert not record.rewrites
    graph = network([np.full((CHANNELS, CHANNELS), 50.0)], DType.F16)
    step = "pivot{blocks=2,force=true,method=identity}"
    (record,) = Pipeline([step]).run(graph, Context(calibration=Oracle([x])))
    assert (
        record.refusals[0].reason
        == "not pivoted: the refitted numbers would leave the range of f16"
    )


def test_lines_beyond_float16_are_refused() -> None:
    moments = affine_fit.ActivationStats(1, *(np.array([v]) for v in (1e5, 0.0, 1.0, 1.0)))
    slope, offset = affine_fit.best_line(moments)
    assert (slope, offset) == (1.0, -1e5)
    graph = network([1e3 * np.eye(CHANNELS), np.eye(CHANNELS)], DType.F16)
    with pytest.raises(GraphshrinkError, match=r"the best line of act0 leaves the range of f16"):
        run(graph, "remove-activations{names=*,by=affine}", [1e3 * samples("")])


def test_outputs_that_never_vary_have_an_error_of_nothing_or_of_everything() -> None:
    weight = np.arange(16.0).reshape(4, 4, 1)
    layer = RefitLayer(weight, Covariance(np.zeros((4, 4)), np.full(4, 0.3)))
    assert layer.error(weight, np.zeros(4)) == 0.0
    made = np.zeros_like(weight)
    assert layer.error(made, weight[:, :, 0] @ np.full(4, 0.3)) == 0.0
    assert layer.error(made, np.zeros(4)) == np.inf
    graph = network(random_weights(1))
    step = "pivot{blocks=2,force=true,method=identity,refit=false}"
    (record,) = Pipeline([step]).run(
        graph, Context(calibration=Oracle([samples("all constant").astype(np.float32)]))
    )
    assert "never vary on the calibration data" in record.refusals[0].reason


def test_gram_matrices_are_refused_by_name_when_they_are_too_large(monkeypatch: Any) -> None:
    monkeypatch.setattr(statistics, "GRAM_BYTES", 100)
    graph = network(random_weights(1))
    record = run(graph, "pivot{blocks=2,force=true}", [samples("").astype(np.float32)])
    assert [r.node for r in record.refusals] == ["layer0"]

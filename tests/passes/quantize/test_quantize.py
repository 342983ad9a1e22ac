"""``quantize``: onnxruntime's integer kernels and LiteRT as oracles, ranges by NumPy, one line for each bad input."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink import Exactness, PassError, shrink
from graphshrink.passes.quantize.blocks import block_weight
from graphshrink.passes.quantize.ranges import (
    BINS,
    Extent,
    Levels,
    centres,
    mse_range,
    percentile_range,
)
from graphshrink.passes.quantize.weights import quantized_weight
from support.cli import fails, succeeds
from support.litert import run as run_litert
from support.onnx_run import outputs_of
from support.quantized import IMAGES, Net, constants, error, kinds, network, quantized

RNG = np.random.default_rng(0)
INTEGER = ("QLinearConv", "QLinearAdd", "QLinearConcat", "QLinearGlobalAveragePool", "QGemm", "NhwcMaxPool")  # fmt: skip


# Placement.


@pytest.mark.parametrize("act", ["Relu", "Clip"])
def test_a_convolutional_network_runs_in_integers_from_end_to_end(act: str, tmp_path: Path) -> None:
    model = network(act)
    result = quantized(model)
    found = kinds(result.model, tmp_path)
    assert found["QLinearConv"] == 6
    assert {kind: found[kind] for kind in INTEGER[1:]} == dict.fromkeys(INTEGER[1:], 1)
    # Quantised once; the classifier gives floats by itself.
    assert found["QuantizeLinear"] == 1
    assert not found["DequantizeLinear"]
    assert not {"Conv", "FusedConv", "Relu", "Clip", "Gemm"} & found.keys()
    assert error(model, result.model, IMAGES) < 1e-3
    last = result.report.passes[-1].rewrites[-1]
    assert last.measures["layers in integers"] == 7
    assert last.measures["other ops in integers"] == 5
    assert last.exactness is Exactness.APPROXIMATE


def test_integer_weights_are_parameters_of_the_report() -> None:
    report = quantized(network()).report
    weights = sum(a.size for n, a in constants(network()).items() if a.ndim > 1)
    # With the scales and zero points of weights and activations.
    assert weights <= report.after.parameters <= 1.5 * report.before.parameters


def test_integer_kernels_compute_what_the_file_says(tmp_path: Path) -> None:
    """With pairs of weights that fit, AVX2's kernels give the results of the reference, up to the last bit of float32."""
    made = quantized(network()).model
    (want,), (got,) = outputs_of(made, IMAGES, plain=True), outputs_of(made, IMAGES)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_a_mean_over_the_spatial_axes_is_a_global_pool(tmp_path: Path) -> None:
    net = Net("n", 3, 12, 12)
    pooled = net.add("ReduceMean", [net.conv("x", "a", 3, 16)], "mean", axes=[2, 3], keepdims=1)
    net.dense(net.add("Flatten", [pooled], "flat"), "fc", 16, 4)
    model = net.model("fc")
    made = quantized(model).model
    found = kinds(made, tmp_path)
    assert found["QLinearGlobalAveragePool"] == 1
    assert not found["DequantizeLinear"]
    assert error(model, made, IMAGES) < 1e-3


def test_an_activation_that_cannot_be_folded_stays_in_floats(tmp_path: Path) -> None:
    found = kinds(quantized(network("HardSwish")).model, tmp_path)
    assert found["QLinearConv"] == 6
    assert found["QLinearAdd"] == 1


def test_other_readers_of_an_integer_result_read_the_integers() -> None:
    net = Net("n", 3, 12, 12)
    net.conv("x", "a", 3, 8)
    net.conv("a", "b", 8, 8)
    net.add("Exp", ["a"], "e")
    made = quantized(net.model("b", "e", "a")).model
    producers = {n.output[0]: n for n in made.graph.node}
    for name in ("b", "a"):
        assert producers[name].op_type == "DequantizeLinear"
    exp = next(n for n in made.graph.node if n.op_type == "Exp")
    assert producers[exp.input[0]].op_type == "DequantizeLinear"
    for want, got in zip(
        outputs_of(net.model("b", "e", "a"), IMAGES), outputs_of(made, IMAGES), strict=True
    ):
        assert np.square(want - got).mean() < 1e-2 * want.var()


def test_dense_layers_of_three_axes_and_products(tmp_path: Path) -> None:
    net = Net("n", 6, 16)
    net.constant("w", net.rng.standard_normal((16, 24)) / 4)
    net.constant("b", net.rng.standard_normal(24))
    net.add("Add", [net.add("MatMul", ["x", "w"], "p"), "b"], "y")
    net.add("Transpose", ["y"], "t", perm=[0, 2, 1])
    net.add("MatMul", ["y", "t"], "z")
    x = RNG.standard_normal((32, 6, 16)).astype(np.float32)
    model = net.model("z")
    made = quantized(model, data=x).model
    found = kinds(made, tmp_path)
    assert found["MatMulIntegerToFloat"] == 2
    assert not found["MatMul"]
    assert error(model, made, x) < 1e-3
    weight = next(a for a in constants(made).values() if a.dtype == np.int8 and a.ndim == 2)
    assert weight.shape == (16, 24)


def test_layers_that_are_kept_are_in_floats(tmp_path: Path) -> None:
    model = network()
    result = quantized(model, "keep=[stem,fc]")
    found = kinds(result.model, tmp_path)
    assert found["QLinearConv"] == 5
    assert found["Gemm"] + found["FusedGemm"] == 1
    reasons = {r.node: r.reason for r in result.report.passes[-1].refusals}
    assert reasons["stem"] == reasons["fc"] == "the option keep names it"
    assert error(model, result.model, IMAGES) < error(model, quantized(model).model, IMAGES)


def test_the_most_sensitive_layers_stay_in_floats() -> None:
    # One layer has a channel a thousand times as large as the others: per tensor, its result has few levels for them.
    net = Net("n", 3, 12, 12)
    net.conv("x", "good", 3, 8)
    net.conv("good", "bad", 8, 8)
    bad = next(t for t in net.tensors if t.name == "bad.w")
    array = numpy_helper.to_array(bad).copy()
    array[0] *= 1000
    bad.CopyFrom(numpy_helper.from_array(array, "bad.w"))
    scale = np.ones((1, 8, 1, 1), np.float32)
    scale[0, 0] = 1e-3
    net.add("Mul", ["bad", net.constant("scale", scale)], "scaled")
    net.conv("scaled", "last", 8, 4)
    model = net.model("last")
    # Without the default pipeline, which would merge the scale.
    whole = shrink(model, "quantize", calibration=IMAGES)
    assert error(model, whole.model, IMAGES) > 0.05
    result = shrink(model, "quantize{max-loss=0.01}", calibration=IMAGES)
    assert error(model, result.model, IMAGES) < 0.02
    refused = {r.node: r.reason for r in result.report.passes[-1].refusals}
    assert "bad" in refused
    assert "max-loss" in refused["bad"]
    measures = result.report.passes[-1].rewrites[-1].measures
    assert measures["loss"] <= 0.01 < measures["loss of all layers"]
    with pytest.raises(PassError, match="no layer can be quantized with a loss of at most 1e-12"):
        shrink(model, "quantize{max-loss=1e-12}", calibration=IMAGES)


# Numbers.


def test_weights_have_a_scale_for_each_channel_and_are_symmetric() -> None:
    model = network()
    made = quantized(model, "reduce-range=false,bias-correction=false").model
    stored, given = constants(made), constants(model)
    numbers, scales = stored["head.w.int8"], stored["head.w.scale"]
    assert numbers.dtype == np.int8
    assert scales.shape == (32,)
    assert np.abs(numbers).max() == 127
    assert not stored["head.w.zero"].any()
    wide = scales[:, None, None, None]
    np.testing.assert_allclose(scales, np.abs(given["head.w"]).max((1, 2, 3)) / 127, rtol=1e-6)
    assert (np.abs(numbers * wide - given["head.w"]) <= wide * 0.5001).all()


def test_pairs_of_weights_fit_into_16_bits() -> None:
    made = quantized_weight(RNG.standard_normal((9, 4, 3, 3)), 0, pair_limit=True)
    two = np.sort(np.abs(made.numbers.astype(int)).reshape(9, -1))[:, -2:].sum(1)
    assert two.max() <= 128
    assert two.min() >= 126


def test_clipped_weights_have_the_least_squared_error_of_the_scales_tried() -> None:
    weight = RNG.standard_normal((4, 20000))
    plain, clipped = (quantized_weight(weight, 0, clip=c) for c in (False, True))
    errors = [np.square(m.floats() - weight).sum(1) for m in (plain, clipped)]
    assert (errors[1] <= errors[0]).all()
    assert (errors[1] < errors[0]).any()


def test_ranges_are_those_of_the_samples() -> None:
    model = network()
    stored = constants(quantized(model, "bias-correction=false").model)
    extended = ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.append(helper.make_tensor_value_info("stem.act", TensorProto.FLOAT, None))
    top = outputs_of(extended, IMAGES)[1].max()
    assert stored["stem.act.scale"] == pytest.approx(top / 255, rel=1e-5)
    assert stored["stem.act.zero"] == 0
    low, high = IMAGES.min(), IMAGES.max()
    assert stored["x.scale"] == pytest.approx((high - low) / 255, rel=1e-5)
    assert stored["x.zero"] == round(-low / ((high - low) / 255))


def test_ranges_of_histograms() -> None:
    numbers = RNG.standard_normal(200_000) ** 3
    extent = Extent(float(numbers.min()), float(numbers.max()))
    counts, _ = np.histogram(numbers, BINS, (extent.low, extent.high))
    found = percentile_range(extent, counts.astype(float), 99.9)
    bin_width = (extent.high - extent.low) / BINS
    for signed, end in ((numbers, found.high), (-numbers, -found.low)):
        assert (signed > end).mean() <= 0.001 <= (signed > end - 1.01 * bin_width).mean()
    levels = Levels("u8")

    def loss(one: Extent) -> float:
        scale, zero = levels.parameters(one)
        rounded = np.clip(np.rint(numbers / scale) + zero, 0, 255)
        return float(np.square((rounded - zero) * scale - numbers).mean())

    best = mse_range(extent, counts.astype(float), levels)
    tried = [Extent(extent.low * a, extent.high * b) for a in np.linspace(0.1, 1, 10) for b in np.linspace(0.1, 1, 10)]  # fmt: skip
    assert loss(best) <= 1.02 * min(map(loss, tried))
    assert loss(best) < loss(extent)
    assert centres(extent).shape == (BINS,)


@pytest.mark.parametrize("top", [6.0, 0.1, 3.3333, 1e-20, 1e30])
def test_no_level_lies_beyond_the_range(top: float) -> None:
    for levels in (Levels("u8"), Levels("i8"), Levels("i8", symmetric=True)):
        scale, zero = levels.parameters(Extent(0, top))
        assert (levels.high - zero) * float(scale) <= top * (1 + 1e-12)
        assert (levels.high - zero) * float(scale) >= top * (1 - 1e-6)


@pytest.mark.parametrize("method", ["min-max", "percentile", "mse"])
def test_methods(method: str) -> None:
    model = network()
    data = IMAGES.copy()
    data[0, 0, 0, 0] = 40  # An outlier.
    losses = {
        m: error(model, quantized(model, f"method={m},percentile=99.9", data=data).model, IMAGES)
        for m in ("min-max", method)
    }
    assert losses[method] <= losses["min-max"]
    assert losses[method] < 1e-2


def test_bias_correction_removes_the_mean_error() -> None:
    net = Net("n", 8, 6, 6)
    net.conv("x", "y", 8, 4)
    model = net.model("y")
    x = (RNG.standard_normal((64, 8, 6, 6)) + 3).astype(np.float32)
    errors = []
    for option in ("false", "true"):
        # Coarse weights, so that their error dominates: the largest is far from the others.
        array = constants(model)["y.w"].copy()
        array[:, 0, 0, 0] = 40
        next(t for t in model.graph.initializer if t.name == "y.w").CopyFrom(
            numpy_helper.from_array(array, "y.w")
        )
        made = quantized(model, f"weights-only=true,bias-correction={option}", data=x).model
        (want,), (got,) = outputs_of(model, x), outputs_of(made, x)
        errors.append(np.abs((got - want).mean((0, 2, 3))).max())
    assert errors[1] < 1e-4 < 1e-2 < errors[0]


def test_weights_alone_need_no_data() -> None:
    model = network()
    made = shrink(model, "default,quantize{weights-only=true}").model
    found = Counter(n.op_type for n in made.graph.node)
    assert found["DequantizeLinear"] == 7
    assert not found["QuantizeLinear"]
    assert error(model, made, IMAGES) < 1e-4
    assert len(made.SerializeToString()) < 0.55 * len(model.SerializeToString())


def test_four_bits_run_in_matmulnbits(tmp_path: Path) -> None:
    net = Net("n", 5, 64, opset=21)
    net.constant("w", net.rng.standard_normal((64, 48)) / 8)
    net.constant("b", net.rng.standard_normal(48))
    net.add("Add", [net.add("MatMul", ["x", "w"], "p"), "b"], "y")
    net.constant("odd", net.rng.standard_normal((48, 8)) / 7)
    net.add("MatMul", [net.add("Relu", ["y"], "r"), "odd"], "z")
    model = net.model("z")
    x = RNG.standard_normal((32, 5, 64)).astype(np.float32)
    result = shrink(model, "default,quantize{weights-only=true,weights=int4}")
    assert kinds(result.model, tmp_path)["MatMulNBits"] == 2
    optimized = onnx.load(tmp_path / "optimized.onnx").graph.node
    bits = [a.i for n in optimized for a in n.attribute if a.name == "bits"]
    assert sorted(bits) == [4, 8]
    assert error(model, result.model, x) < 0.02
    reasons = [r.reason for r in result.report.passes[-1].refusals]
    assert any("its 48 inputs do not divide into blocks of 32" in r for r in reasons)
    stored = next(t for t in result.model.graph.initializer if t.data_type == TensorProto.INT4)
    assert len(stored.raw_data or stored.int32_data) <= 64 * 48 // 2


def test_blocks_have_small_errors() -> None:
    matrix = RNG.standard_normal((64, 10))
    matrix[:32, 3] = 0
    made = block_weight(matrix, 32)
    assert made.scales.shape == (2, 10)
    assert made.numbers.min() >= -8
    assert made.numbers.max() <= 7
    plain = np.abs(matrix.reshape(2, 32, 10)).max(1) / 7
    wide = np.repeat(plain, 32, axis=0)
    wide[wide == 0] = 1
    rounded = np.clip(np.rint(matrix / wide), -8, 7) * wide
    errors = [np.square(m - matrix).sum() for m in (made.floats(), rounded)]
    assert errors[0] < 0.9 * errors[1]


def test_four_bits_are_refused_where_they_do_not_fit() -> None:
    for options in ("weights=int4", "weights=int4,weights-only=true,max-loss=1"):
        with pytest.raises(
            PassError, match="weights=int4 needs weights-only=true, and no max-loss"
        ):
            quantized(network(), options)
    with pytest.raises(PassError, match="block must be a power of 2, not 48"):
        quantized(network(), "weights=int4,weights-only=true,block=48")


def test_a_bias_that_needs_more_than_32_bits_widens_the_scales() -> None:
    net = Net("n", 1, 4, 4)
    net.conv("x", "y", 1, 2, 1)
    for tensor, array in zip(net.tensors, ([[[[1e-7]]], [[[1.0]]]], [1e3, 0.5]), strict=True):
        tensor.CopyFrom(numpy_helper.from_array(np.array(array, np.float32), tensor.name))
    model = net.model("y")
    x = RNG.standard_normal((8, 1, 4, 4)).astype(np.float32)
    made = quantized(model, data=x).model
    (want,), (got,) = outputs_of(model, x), outputs_of(made, x)
    assert np.abs(want - got)[:, 0].max() < 1e3 / 100


def test_files_are_equal_byte_by_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        quantized(network(), "method=mse").save(tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


# Targets.


def test_tflite_runs_in_int8(tmp_path: Path) -> None:
    model = network(batch=1)
    path = tmp_path / "q.tflite"
    result = quantized(model, data=IMAGES, target="tflite")
    emitted = result.save(path)
    assert not [note for note in emitted.notes if "is computed in float32" in note]
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(str(path))._get_ops_details()
    used = Counter(op["op_name"] for op in details)
    assert used["CONV_2D"] + used["DEPTHWISE_CONV_2D"] == 6
    assert used["QUANTIZE"] <= 3
    assert used["DEQUANTIZE"] == 1
    for kernels in ("builtin", "xnnpack"):
        got = np.concatenate(
            [next(iter(run_litert(path, {"x": IMAGES[i : i + 1].transpose(0, 2, 3, 1)}, kernels).values())) for i in range(16)]
        )  # fmt: skip
        want = np.concatenate([outputs_of(model, IMAGES[i : i + 1])[0] for i in range(16)])
        assert np.square(want - got).mean() < 2e-3 * want.var()


def test_tensorrt_has_symmetric_activations_and_float_biases(tmp_path: Path) -> None:
    path = tmp_path / "trt.onnx"
    quantized(network(batch=4), data=IMAGES, target="tensorrt").save(path, target="tensorrt")
    made = onnx.load(path)
    stored = constants(made)
    readers = {name: node for node in made.graph.node for name in node.input}
    points = [n for n in made.graph.node if n.op_type == "QuantizeLinear"]
    assert points
    for node in points:
        zero = stored.get(node.input[2]) if len(node.input) > 2 else np.int8(0)
        assert zero is not None
        assert zero.dtype == np.int8
        assert not zero.any()
    assert not [a for a in stored.values() if a.dtype == np.int32 and a.ndim == 1 and a.size > 4]
    # The convolution in front of the sum computes it too.
    project = next(n for n in made.graph.node if n.op_type == "Conv" and "project.w" in "".join(n.input))  # fmt: skip
    assert readers[project.output[0]].op_type == "Add"


# Bad input: one line each.


def saved(model: ModelProto, tmp_path: Path) -> Path:
    onnx.save(model, tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


def test_no_calibration(tmp_path: Path) -> None:
    line = fails(saved(network(), tmp_path), tmp_path / "out.onnx", "--passes", "default,quantize")
    assert "pass quantize needs calibration data: none were given; give --calibration PATH" in line
    assert not (tmp_path / "out.onnx").exists()


def test_the_command_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", x=IMAGES)
    out = tmp_path / "out.onnx"
    text = succeeds(
        saved(network(), tmp_path), out, "--passes", "default,quantize{method=mse}",
        "--calibration", tmp_path / "samples.npz",
    )  # fmt: skip
    assert "approximate" in text
    assert error(network(), onnx.load(out), IMAGES) < 1e-3


def test_nan_in_samples(tmp_path: Path) -> None:
    data = IMAGES.copy()
    data[3, 0, 0, 0] = np.nan
    np.savez(tmp_path / "samples.npz", x=data)
    line = fails(
        saved(network(), tmp_path), tmp_path / "out.onnx", "--passes", "default,quantize",
        "--calibration", tmp_path / "samples.npz",
    )  # fmt: skip
    assert "input 'x' contains NaN or infinite numbers" in line


def test_twice() -> None:
    made = quantized(network()).model
    with pytest.raises(PassError, match=r"is a Quantize; give the model as it was before"):
        quantized(made)


def test_nothing_to_quantize() -> None:
    net = Net("n", 3, 12, 12)
    net.add("Exp", ["x"], "y")
    with pytest.raises(PassError, match=r"no layer can be quantized \(there are no convolutions"):
        quantized(net.model("y"))
    net = Net("n", 3, 12, 12)
    net.constant("w", RNG.standard_normal((3, 2, 3, 3)))
    net.add("ConvTranspose", ["x", "w"], "y")
    with pytest.raises(PassError, match="no integer kernel for transposed convolutions"):
        quantized(net.model("y"))


def test_an_opset_without_scales_for_channels() -> None:
    net = Net("n", 3, 12, 12, opset=11)
    net.conv("x", "y", 3, 4)
    with pytest.raises(
        PassError, match="opset 11; convert the model to a newer one first: --opset 17"
    ):
        quantized(net.model("y"))


def test_names_that_match_nothing() -> None:
    with pytest.raises(PassError, match=r"quantize: keep: no node is named 'steam'.*stem"):
        quantized(network(), "keep=steam")


def test_an_empty_channel_and_a_constant_activation() -> None:
    net = Net("n", 3, 12, 12)
    net.conv("x", "a", 3, 4)
    net.add("Mul", ["a", net.constant("nothing", np.zeros((1, 4, 1, 1)))], "zero")
    net.conv("zero", "b", 4, 4)
    weight = next(t for t in net.tensors if t.name == "b.w")
    array = numpy_helper.to_array(weight).copy()
    array[2] = 0
    weight.CopyFrom(numpy_helper.from_array(array, "b.w"))
    model = net.model("b")
    result = shrink(model, "quantize", calibration=IMAGES)
    notes = "\n".join(result.report.notes)
    assert "quantize: %zero is 0 everywhere on the calibration data: its scale is 1" in notes
    assert "quantize: b: the weights of output channels 2 are all 0" in notes
    (want,), (got,) = outputs_of(model, IMAGES), outputs_of(result.model, IMAGES)
    assert np.isfinite(got).all()
    assert np.abs(want - got).max() < 1e-2


def test_a_weight_that_is_not_finite() -> None:
    model = network()
    tensor = next(t for t in model.graph.initializer if t.name == "fc.w")
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(array, "fc.w"))
    refused = {r.node: r.reason for r in quantized(model).report.passes[-1].refusals}
    assert refused == {"fc": "its weight is not finite everywhere"}


def test_torch_modules_become_files_of_integers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="pip install 'graphshrink[torch]'")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU6(), torch.nn.Flatten(2),
        torch.nn.Linear(100, 6), torch.nn.ReLU(), torch.nn.Flatten(1), torch.nn.Linear(48, 4),
    ).eval()  # fmt: skip
    x = torch.from_numpy(IMAGES)
    result = quantized(model, data=x, example_inputs=(x[:1],))
    want = model(x).detach()
    assert float((result.model(x) - want).square().mean() / want.var()) < 1e-3
    result.save(tmp_path / "torch.onnx")
    made = onnx.load(tmp_path / "torch.onnx")
    shapes = sorted(a.shape for a in constants(made).values() if a.dtype == np.int8 and a.ndim > 1)
    assert shapes == [(4, 48), (8, 3, 3, 3), (100, 6)]
    (got,) = outputs_of(made, IMAGES)
    assert np.square(got - want.numpy()).mean() < 1e-3 * float(want.var())
    assert kinds(made, tmp_path)["QLinearConv"] == 1


@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_a_layer_whose_bias_is_not_finite_stays_as_it_is(number: float) -> None:
    """Such as the bias of a class that must never be chosen."""
    net = Net("n", 3, 12, 12)
    flat = net.add("Flatten", [net.add("Relu", [net.conv("x", "a", 3, 4)], "r")], "flat")
    net.dense(flat, "fc", 576, 5)
    model = net.model("fc")
    bias = next(t for t in model.graph.initializer if t.name == "fc.b")
    numbers = numpy_helper.to_array(bias).copy()
    numbers[2] = number
    bias.CopyFrom(numpy_helper.from_array(numbers, "fc.b"))
    result = quantized(model)
    refused = {s.node: s.reason for p in result.report.passes for s in p.refusals}
    assert refused["fc"] == "its bias is not finite everywhere"
    (want,), (got,) = outputs_of(model, IMAGES), outputs_of(result.model, IMAGES)
    np.testing.assert_array_equal(got[:, 2], want[:, 2])
    np.testing.assert_allclose(
        got[:, :2], want[:, :2], rtol=0, atol=0.1 * np.abs(want[:, :2]).max()
    )
    with pytest.raises(PassError, match="%fc is not finite everywhere"):
        quantized(model, "max-loss=0.1")


@pytest.mark.parametrize("outputs", ["number", "transposed", "number for each sample"])
def test_the_loss_of_outputs_without_a_variance(outputs: str) -> None:
    """The loss is measured for one number, for batches along another axis, and for one sample alone."""
    net = Net("n", 3, 12, 12)
    flat = net.add("Flatten", [net.add("Relu", [net.conv("x", "a", 3, 4)], "r")], "flat")
    net.dense(flat, "fc", 576, 1)
    if outputs == "number":
        net.add("ReduceMean", ["fc"], "y", keepdims=0)
    elif outputs == "transposed":
        net.add("Transpose", ["fc"], "y", perm=[1, 0])
    model = net.model("fc" if outputs == "number for each sample" else "y")
    data = IMAGES[:40] if outputs == "transposed" else IMAGES[:1]
    result = quantized(model, "max-loss=0.5", data)
    measured = result.report.passes[-1].rewrites[-1].measures
    (want,), (got,) = outputs_of(model, data), outputs_of(result.model, data, plain=True)
    spread = want.var() or np.square(want).mean()
    assert measured["loss"] == pytest.approx(np.square(got - want).mean() / spread, rel=0.05)
    assert measured["loss"] > 0
    with pytest.raises(PassError, match="with a loss of at most 1e-12"):
        quantized(model, "max-loss=1e-12", data)


def test_layers_that_do_not_get_4_bits_are_named() -> None:
    result = quantized(network(), "weights-only=true,weights=int4")
    note = next(n for n in result.report.all_notes if "int4" in n)
    assert "7 of 7 layers have int8 weights" in note
    assert "does not exist in opset 17" in note
    assert "only dense layers have 4-bit kernels" in note


def test_a_model_of_float16_is_refused_with_the_remedy() -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT16, [8, 4]) for n in "xy")
    w = numpy_helper.from_array(RNG.standard_normal((4, 4)).astype(np.float16), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(PassError, match=r"is f16, and only f32 .*: give the model in float32"):
        shrink(model, "quantize", calibration=RNG.standard_normal((8, 4)).astype(np.float16))


def test_recurrent_layers_are_named_as_what_stays_in_floats() -> None:
    weights = {"w": (1, 16, 3), "r": (1, 16, 4), "v": (4, 5)}
    made = [numpy_helper.from_array(RNG.standard_normal(s).astype(np.float32), n) for n, s in weights.items()]  # fmt: skip
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], "lstm", hidden_size=4),
        helper.make_node("MatMul", ["h", "v"], ["y"], "head"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [6, 2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 5])
    graph = helper.make_graph(nodes, "g", [x], [y], made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = [(RNG.standard_normal((6, 2, 3)).astype(np.float32),) for _ in range(4)]
    (record,) = shrink(model, "quantize", calibration=data).report.passes
    assert [r.node for r in record.refusals] == ["lstm"]
    assert "recurrent layer" in record.refusals[0].reason

"""``requantize{...}``: passes on quantised weights; onnxruntime as the oracle, integers counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from graphshrink import Exactness, PassError, Pipeline, shrink
from graphshrink.passes.quantize.requantize import fresh
from support.onnx_run import outputs_of
from support.quantized import IMAGES, Net, constants, error, network, quantized

RNG = np.random.default_rng(3)


class Fake(Net):
    """A model whose weights are fake-quantised: from integers, or by a Quantize of floats as training leaves them."""

    def weight(self, name: str, array: Any, whole: bool, trained: bool) -> str:
        array = np.asarray(array, np.float32)
        axes = None if whole else tuple(range(1, array.ndim))
        scale = (np.abs(array).max(axes) / 127).astype(np.float32)
        wide = scale if whole else scale.reshape(-1, *[1] * (array.ndim - 1))
        zero = np.zeros(scale.shape, np.int8)
        self.constant(f"{name}.s", scale)
        self.tensors.append(numpy_helper.from_array(zero, f"{name}.z"))
        more = [f"{name}.s", f"{name}.z"]
        axis = {} if whole else {"axis": 0}
        if trained:
            source = self.add("QuantizeLinear", [self.constant(f"{name}.f", array), *more], f"{name}.q", **axis)  # fmt: skip
        else:
            numbers = np.clip(np.rint(array / wide), -127, 127).astype(np.int8)
            self.tensors.append(numpy_helper.from_array(numbers, f"{name}.q"))
            source = f"{name}.q"
        return self.add("DequantizeLinear", [source, *more], name, **axis)

    def fake(
        self, x: str, out: str, fan_in: int, fan_out: int, kernel: int = 3, whole: bool = False, trained: bool = False
    ) -> str:  # fmt: skip
        shape = (fan_out, fan_in, kernel, kernel)
        array = self.rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        inputs = [x, self.weight(f"{out}.w", array, whole, trained), self.constant(f"{out}.b", self.rng.standard_normal(fan_out) / 5)]  # fmt: skip
        return self.add("Conv", inputs, out, pads=[kernel // 2] * 4, kernel_shape=[kernel] * 2)

    def norm(self, x: str, out: str, size: int) -> str:
        names = [
            self.constant(f"{out}.{i}", array)
            for i, array in enumerate(
                (self.rng.uniform(0.5, 2, size), self.rng.standard_normal(size), self.rng.standard_normal(size), self.rng.uniform(0.5, 2, size))
            )
        ]  # fmt: skip
        return self.add("BatchNormalization", [x, *names], out)


def int8(model: ModelProto) -> dict[str, Any]:
    return {n: a for n, a in constants(model).items() if a.dtype == np.int8 and a.ndim > 1}


def kinds(model: ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_two_convolutions_merge_into_one_of_integers(whole: bool, trained: bool) -> None:
    net = Fake("n", 3, 12, 12)
    net.fake("x", "a", 3, 16, 3, whole, trained)
    net.fake("a", "b", 16, 4, 1, whole, trained)
    model = net.model("b")
    refused = shrink(model, "merge-linear").report.passes[-1].refusals
    assert any("is quantised" in r.reason for r in refused)
    result = shrink(model, "requantize{merge-linear,prune-dead}")
    made = result.model
    assert kinds(made) == ["DequantizeLinear", "Conv"]
    (numbers,) = int8(made).values()
    assert numbers.shape == (4, 3, 3, 3)
    scale = next(a for n, a in constants(made).items() if n.endswith(".scale"))
    assert scale.shape == (() if whole else (4,))
    last = result.report.passes[-1]
    assert last.text == "requantize-weights"
    assert last.exactness is Exactness.APPROXIMATE
    assert 0 < last.rewrites[-1].measures["weight error"] < 1e-3
    assert error(model, made, IMAGES) < 1e-3


@pytest.mark.parametrize("whole", [False, True])
def test_a_batch_norm_only_scales_channels(whole: bool) -> None:
    net = Fake("n", 3, 12, 12)
    net.norm(net.fake("x", "a", 3, 16, 3, whole), "y", 16)
    model = net.model("y")
    result = shrink(model, "requantize{default}")
    assert kinds(result.model) == ["DequantizeLinear", "Conv"]
    (before,), (after,) = int8(model).values(), int8(result.model).values()
    rewrite = result.report.passes[-1].rewrites[-1]
    if whole:
        # One scale for all channels cannot hold sixteen factors.
        assert rewrite.exactness is Exactness.APPROXIMATE
        return
    assert rewrite.exactness is Exactness.EXACT
    assert rewrite.measures["weight error"] < 1e-9
    signs = np.sign((before.astype(int) * after).reshape(16, -1).sum(1)).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(before * signs, after)
    (want,), (got,) = outputs_of(model, IMAGES), outputs_of(result.model, IMAGES)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def _input_and_bias_in_integers(factors: Any, shifts: Any) -> ModelProto:
    """A convolution whose input, weight and bias are integers, and a batch norm behind it."""
    net, size = Fake("n", 3, 12, 12), len(factors)
    weight = net.rng.standard_normal((size, 3, 3, 3))
    scale = (np.abs(weight).max((1, 2, 3)) / 127).astype(np.float32)
    bias = np.rint(net.rng.standard_normal(size) / (np.float32(0.03) * scale)).astype(np.int32)
    net.tensors += [
        numpy_helper.from_array(np.uint8(128), "x.z"),
        numpy_helper.from_array(bias, "b.q"),
        numpy_helper.from_array(
            np.rint(weight / scale.reshape(-1, 1, 1, 1)).astype(np.int8), "w.q"
        ),
    ]
    levels = [net.constant("x.s", 0.03), "x.z"]
    x = net.add(
        "DequantizeLinear", [net.add("QuantizeLinear", ["x", *levels], "xq"), *levels], "xd"
    )
    w = net.add("DequantizeLinear", ["w.q", net.constant("w.s", scale)], "w", axis=0)
    b = net.add(
        "DequantizeLinear", ["b.q", net.constant("b.s", np.float32(0.03) * scale)], "b", axis=0
    )
    net.add("Conv", [x, w, b], "a", pads=[1] * 4)
    norm = (factors, shifts, np.zeros(size), np.ones(size))
    names = [net.constant(f"n.{i}", array) for i, array in enumerate(norm)]
    net.add("BatchNormalization", ["a", *names], "y")
    return net.model("y")


@pytest.mark.parametrize("shift", [0.01, 1.0, -1e6])
def test_the_bias_of_a_channel_that_a_batch_norm_switches_off_is_kept(shift: float) -> None:
    """Its weights become tiny or 0, but its bias has to fit into 32 bits, in steps that are small enough."""
    factors = np.array([1, 0.5, 1e-5, 1e-8, 1e-12, 0])
    model = _input_and_bias_in_integers(factors, np.full(6, shift))
    made = shrink(model, "requantize{default}").model
    assert kinds(made) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv"]  # fmt: skip
    for plain in (True, False):
        (want,), (got,) = (
            outputs_of(model, IMAGES, plain=True),
            outputs_of(made, IMAGES, plain=plain),
        )
        for channel in range(6):
            size = np.abs(want[:, channel]).max()
            np.testing.assert_allclose(got[:, channel], want[:, channel], rtol=0, atol=0.01 * size)


def test_merged_weights_stay_small_enough_for_sums_of_16_bits() -> None:
    """Processors without VNNI add two products of uint8 and int8 in 16 bits: ``255 * 128`` is the most that fits."""

    def pairs(made: ModelProto) -> int:
        rows = [np.abs(a.astype(int)).reshape(len(a), -1) for a in int8(made).values()]
        return max(int(np.sort(r, axis=1)[:, -2:].sum(1).max()) for r in rows)

    net = Fake("n", 3, 12, 12)
    net.fake("x", "a", 3, 16)
    net.fake("a", "b", 16, 4, 1)
    free = net.model("b")
    for tensor in free.graph.initializer:
        if tensor.name.endswith(".w.q"):
            half = (numpy_helper.to_array(tensor).astype(int) // 2).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    assert pairs(free) <= 128
    made = shrink(free, "requantize{merge-linear,prune-dead}").model
    assert kinds(made) == ["DequantizeLinear", "Conv"]
    assert pairs(made) <= 128
    assert error(free, made, IMAGES) < 2e-3


@pytest.mark.parametrize("passes", ["permute-channels", "sparsify"])
def test_weights_of_half_precision_stay_floats_once_they_change(passes: str) -> None:
    net = Net("n", 8, opset=19)
    for name, shape in (("a", (16, 8)), ("b", (4, 16))):
        net.tensors += [
            numpy_helper.from_array(RNG.integers(-127, 128, shape).astype(np.int8), f"{name}.q"),
            numpy_helper.from_array(np.float16(0.01), f"{name}.s"),
        ]
        net.add("DequantizeLinear", [f"{name}.q", f"{name}.s"], f"{name}.w")
    net.add("Gemm", ["x", "a.w"], "a", transB=1)
    net.add("Relu", ["a"], "r")
    net.add("Gemm", ["r", "b.w"], "b", transB=1)
    model = net.model("b")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    x = RNG.standard_normal((8, 8)).astype(np.float16)
    result = shrink(model, f"requantize{{{passes}}}")
    assert any("only f32 becomes integers" in r.reason for r in result.report.passes[-1].refusals)
    (got,) = outputs_of(result.model, x)
    assert got.dtype == np.float16
    if passes == "permute-channels":
        (want,) = outputs_of(model, x)
        np.testing.assert_allclose(got, want, rtol=0, atol=0.01 * np.abs(want).max())


def test_what_no_pass_changes_is_as_it_was() -> None:
    model = quantized(network()).model
    made = shrink(model, "requantize{merge-linear,deduplicate},prune-dead").model
    before, after = int8(model), int8(made)
    assert sorted(a.tobytes() for a in before.values()) == sorted(a.tobytes() for a in after.values())  # fmt: skip
    (want,), (got,) = outputs_of(model, IMAGES), outputs_of(made, IMAGES)
    np.testing.assert_array_equal(got, want)


def test_channels_are_permuted_with_their_scales() -> None:
    """Half of the weights become zeros, in the best order of channels; the others keep their integers and scales."""
    model = quantized(network(), "reduce-range=false").model
    result = shrink(
        model, "requantize{permute-channels,sparsify{skip=[depthwise,stem]}},prune-dead",
        calibration=IMAGES,
    )  # fmt: skip
    passes = {p.text.partition("{")[0]: p for p in result.report.passes}
    assert passes["permute-channels"].rewrites
    restored = passes["requantize-weights"].rewrites
    assert all(r.exactness is Exactness.EXACT for r in restored)
    made = int8(result.model)
    sparse = [a for a in made.values() if a.ndim == 4 and a.shape[1] % 4 == 0]
    assert len(sparse) >= 3
    for array in sparse:
        groups = np.moveaxis(array, 1, -1).reshape(-1, 4)
        assert ((groups != 0).sum(1) <= 2).all()
    before = {tuple(sorted(np.abs(a).reshape(-1).tolist())) for a in int8(model).values()}
    unpruned = next(a for a in made.values() if a.shape == (16, 1, 3, 3))
    assert tuple(sorted(np.abs(unpruned).reshape(-1).tolist())) in before


def test_blocks_of_integers() -> None:
    net = Fake("n", 32)
    array = net.rng.standard_normal((32, 32)) / 6
    order = RNG.permutation(32), RNG.permutation(32)
    mask = np.kron(np.eye(2), np.ones((16, 16)))[order[0]][:, order[1]]
    for name, source in (("a", "x"), ("b", "a.r")):
        weight = net.weight(f"{name}.w", array * mask, False, False)
        net.add("Gemm", [source, weight, net.constant(f"{name}.b", np.ones(32))], name, transB=1)
        net.add("Relu", [name], f"{name}.r")
    model = net.model("b.r")
    x = RNG.standard_normal((16, 32)).astype(np.float32)
    made = shrink(model, "requantize{default,pivot{blocks=2,force=true}},prune-dead").model
    blocks = int8(made)
    assert blocks
    assert sum(a.size for a in blocks.values()) <= 32 * 32 + 64
    (want,), (got,) = outputs_of(model, x), outputs_of(made, x)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_nothing_crosses_the_quantisation_of_an_activation() -> None:
    """A batch norm behind Q/DQ is not folded into the convolution in front of it."""
    net = Fake("n", 3, 12, 12)
    net.fake("x", "a", 3, 8)
    net.constant("s", 0.05)
    net.tensors.append(numpy_helper.from_array(np.uint8(128), "z"))
    quantized_a = net.add("QuantizeLinear", ["a", "s", "z"], "q")
    net.norm(net.add("DequantizeLinear", [quantized_a, "s", "z"], "d"), "n1", 8)
    net.conv("n1", "b", 8, 8, 1)
    model = net.model("b")
    for pipeline in ("default", "requantize{default}"):
        made = shrink(model, pipeline).model
        assert kinds(made) == ["DequantizeLinear", "Conv", "QuantizeLinear", "DequantizeLinear", "Conv"]  # fmt: skip
        (want,), (got,) = outputs_of(model, IMAGES), outputs_of(made, IMAGES)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_steps_are_found_and_only_where_they_are() -> None:
    numbers = RNG.integers(-100, 101, (6, 40))
    numbers[0] = 2 * (numbers[0] // 2)
    scales = RNG.uniform(0.001, 1, (6, 1))
    made, exact = fresh(numbers * scales, 0, whole=False)
    assert exact
    np.testing.assert_allclose(made.floats(), numbers * scales, rtol=1e-6)
    made, exact = fresh(RNG.standard_normal((6, 40)), 0, whole=False)
    assert not exact
    assert np.abs(made.numbers).max(1).min() == 127


def test_the_text_of_the_group() -> None:
    text = "requantize{merge-linear{max-kernel=5},prune-dead}"
    assert str(Pipeline(text)) == text
    with pytest.raises(PassError, match="requantize has no passes"):
        Pipeline("requantize{}")


def test_default_in_a_text() -> None:
    from graphshrink import DEFAULT_PIPELINE

    assert Pipeline("default,quantize") == Pipeline(f"{DEFAULT_PIPELINE},quantize")


def test_a_model_without_quantised_weights_is_as_it_was() -> None:
    model = network()
    plain, grouped = shrink(model, "default").model, shrink(model, "requantize{default}").model
    assert plain == grouped

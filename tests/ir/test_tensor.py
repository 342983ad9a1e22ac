"""Lazy tensors: what is loaded, kept and rounded, and when; element types."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphshrink.ir import (
    ArrayTensor,
    DerivedTensor,
    DType,
    ElidedTensor,
    LazyTensor,
    SplatTensor,
    TensorType,
)
from graphshrink.ir.tensor import _KEEP_BYTES
from support.graphs import types


def test_a_lazy_tensor_is_loaded_each_time_and_not_kept() -> None:
    loads = []

    def load() -> np.ndarray:
        loads.append(1)
        return np.array([1, 2], np.float16)

    tensor = LazyTensor((2,), DType.F16, load, host="file")
    assert (tensor.size, tensor.nbytes, tensor.host) == (2, 4, "file")
    assert str(tensor.type) == "f16[2]"
    assert not loads
    tensor.numpy()
    assert tensor.float64().dtype == np.float64
    assert len(loads) == 2


def test_a_load_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(2,\)"):
        LazyTensor((2,), DType.F32, lambda: np.zeros(3, np.float32)).numpy()
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(2,\)"):
        DerivedTensor((2,), DType.F32, lambda: np.zeros(3)).numpy()


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5))
def test_derived_numbers_are_rounded_once(numbers: list[float]) -> None:
    exact = np.array(numbers)
    third = DerivedTensor(exact.shape, DType.F16, lambda: exact / 3)
    again = DerivedTensor(exact.shape, DType.F16, lambda: third.float64() * 3)
    # Through the stored form, 1/3 would have been rounded to 11 bits on the way.
    np.testing.assert_array_equal(again.numpy(), (exact / 3 * 3).astype(np.float16))
    assert again.numpy().dtype == np.float16
    np.testing.assert_array_equal(third.float64(), exact / 3)


def test_small_derived_tensors_are_kept_and_large_ones_are_not() -> None:
    for size, calls in ((_KEEP_BYTES // 8, 1), (_KEEP_BYTES // 8 + 1, 3)):
        computed = []

        def compute(size: int = size, computed: list[int] = computed) -> np.ndarray:
            computed.append(1)
            return np.ones(size)

        tensor = DerivedTensor((size,), DType.F32, compute)
        tensor.numpy()
        tensor.numpy()
        tensor.float64()
        assert len(computed) == calls


def test_large_derived_tensors_write_their_stored_form() -> None:
    size = _KEEP_BYTES // 8 + 1
    computed = []

    def write(out: np.ndarray) -> None:
        out[:] = 2

    def compute(n: int) -> np.ndarray:
        computed.append(n)
        return np.full(n, 2.0)

    large = DerivedTensor((size,), DType.F16, lambda: compute(size), write)
    assert large.numpy().dtype == np.float16
    assert large.numpy().sum(dtype=np.float64) == 2 * size
    assert not computed
    small = DerivedTensor((3,), DType.F16, lambda: compute(3), write)
    small.numpy()
    assert computed == [3]


def test_splats_take_no_memory() -> None:
    tensor = SplatTensor((10**6, 10**6), DType.F32, 0.5)
    array = tensor.numpy()
    assert array.strides == (0, 0)
    assert array[7, 9] == np.float32(0.5)
    assert tensor.nbytes == 4 * 10**12


def test_elided_numbers_say_how_to_keep_them() -> None:
    tensor = ElidedTensor((2,), DType.F32)
    for ask in (tensor.numpy, tensor.float64):
        with pytest.raises(ValueError, match="full=True"):
            ask()


@pytest.mark.parametrize("dtype", list(DType))
def test_element_types_have_a_numpy_form(dtype: DType) -> None:
    assert DType.of(dtype.numpy) is dtype
    assert DType(dtype.value) is dtype
    if dtype is DType.STRING:
        assert dtype.bits == 0
    elif dtype.bits >= 8:
        assert dtype.numpy.itemsize * 8 == dtype.bits
    assert dtype.is_wide_float <= dtype.is_float
    assert not (dtype.is_float and dtype.is_int)


def test_which_element_types_are_floats() -> None:
    floats = {d.value for d in DType if d.is_float}
    assert floats == {
        "f16", "bf16", "f32", "f64", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f8e8m0", "f4e2m1"
    }  # fmt: skip
    assert {d.value for d in DType if d.is_int} == {
        f"{sign}{bits}" for sign in "iu" for bits in (2, 4, 8, 16, 32, 64)
    }


def test_other_numpy_types_are_refused() -> None:
    for dtype in (np.datetime64, np.dtype([("a", "f4")]), ml_dtypes.float8_e3m4):
        with pytest.raises(TypeError, match="no element type"):
            DType.of(dtype)


@pytest.mark.parametrize(("dtype", "size", "nbytes"), [
    (DType.I4, 5, 3), (DType.U2, 5, 2), (DType.BOOL, 5, 5), (DType.BF16, 5, 10), (DType.C128, 1, 16),
    (DType.F4E2M1, 1, 1), (DType.STRING, 3, 0),
])  # fmt: skip
def test_stored_bytes(dtype: DType, size: int, nbytes: int) -> None:
    assert ElidedTensor((size,), dtype).nbytes == nbytes


def test_bfloat16_rounds_to_nearest() -> None:
    tensor = DerivedTensor((2,), DType.BF16, lambda: np.array([1 + 2**-8, 1 + 3 * 2**-8]))
    assert tensor.numpy().astype(np.float64).tolist() == [1.0, 1 + 2**-6]


def test_arrays_are_taken_as_they_are() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert ArrayTensor(array).numpy() is array
    assert ArrayTensor(array.T).shape == (3, 2)
    assert ArrayTensor(["a", "b"]).dtype is DType.STRING


# The order of what is known about types.


@given(types())
def test_a_type_accepts_and_refines_itself(a: TensorType) -> None:
    assert a.accepts(a)
    assert a.refined(a) == a
    assert a.accepts(TensorType())
    assert TensorType().accepts(a)
    assert TensorType().refined(a) == a
    assert a.refined(TensorType()) == a


@given(types(), types())
def test_refining_keeps_what_is_known(a: TensorType, b: TensorType) -> None:
    refined = a.refined(b)
    assert a.accepts(refined)
    assert a.accepts(b) == b.accepts(a)
    if a.accepts(b):
        assert b.accepts(refined)
        assert refined.refined(b) == refined
    for axis in range(a.rank or 0):
        if a.dim(axis) is not None:
            assert refined.dim(axis) == a.dim(axis) == a.dim(axis - (a.rank or 0))


def test_sizes_of_types() -> None:
    known, symbolic = TensorType(DType.F32, (2, 3)), TensorType(DType.F32, ("n", 3))
    assert (known.size, known.static_shape, known.is_static) == (6, (2, 3), True)
    assert (symbolic.size, symbolic.static_shape, symbolic.rank) == (None, None, 2)
    assert (known.dim(5), symbolic.dim(0), TensorType().dim(0)) == (None, None, None)
    assert TensorType(DType.F32, ()).size == 1
    assert str(TensorType(None, ("a b", None, "inf", "n"))) == '?["a b", ?, "inf", n]'

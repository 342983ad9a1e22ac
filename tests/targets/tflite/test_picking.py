"""TopK, GatherElements, GatherND, Range and LRN in LiteRT, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from graphshrink import ModelError
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.targets.tflite import Options
from graphshrink.targets.tflite.convert import flat_model
from graphshrink.targets.tflite.write import to_bytes
from support.litert import KERNELS, compared, model_of, relative, run

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

RNG = np.random.default_rng(5)
IMAGE = RNG.standard_normal((2, 4, 6, 5)).astype(np.float32)
TIES = np.float32([[1, 3, 3, 2], [5, -1, 5, 5], [1, 0, 0, 0]])
Case = tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]
"""Operator, inputs, constants, attributes."""


def places(high: int, *shape: int) -> Any:
    return RNG.integers(-high, high, shape)


def top(x: Any, k: int, **attributes: Any) -> Case:
    return "TopK", {"x": x}, {"k": np.array([k])}, attributes


def elements(x: Any, index: Any, constant: bool, axis: int) -> Case:
    feeds, held = {"x": x}, {"i": index}
    return "GatherElements", feeds | ({} if constant else held), held if constant else {}, {"axis": axis}  # fmt: skip


def nd(x: Any, index: Any, constant: bool, batch: int = 0) -> Case:
    feeds, held = {"x": x}, {"i": index}
    attributes = {"batch_dims": batch} if batch else {}
    return "GatherND", feeds | ({} if constant else held), held if constant else {}, attributes


CASES: dict[str, Case] = {
    "topk": top(TIES, 2), "topk-first-axis": top(TIES, 2, axis=0), "topk-middle": top(IMAGE, 3, axis=1), "topk-all": top(TIES, 4),
    "topk-smallest": top(TIES, 3, largest=0), "topk-vector": top(TIES[0], 2), "topk-integers": top(TIES.astype(np.int32), 2),
    "topk-smallest-first": top(IMAGE, 1, largest=0, axis=0),
    **{f"elements-{axis}-{constant}": elements(IMAGE, places(2, 2, 3, 6, 5), constant, axis) for axis in (0, 1, -1) for constant in (False, True)},
    "elements-vector": elements(TIES[0], places(4, 7), False, 0), "elements-integers": elements(TIES.astype(np.int64), places(3, 5, 4), False, 0),
    "elements-narrow": elements(TIES, places(4, 3, 2).astype(np.int32), False, 1),
    **{f"nd-{n}-{constant}": nd(IMAGE, places(2, 3, n), constant) for n in (1, 2, 4) for constant in (False, True)},
    **{f"nd-batch-{batch}-{constant}": nd(IMAGE, places(2, *(2, 4)[:batch], 3, 2), constant, batch) for batch in (1, 2) for constant in (False, True)},
    "nd-one-vector": nd(IMAGE, places(2, 3), False), "nd-deep": nd(IMAGE, places(2, 2, 3, 2), False),
    **{f"lrn-{size}": ("LRN", {"x": 3 * IMAGE}, {}, {"size": size, "alpha": 0.5, "beta": 0.7, "bias": 2.0}) for size in (1, 3, 9)},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_same_numbers(name: str) -> None:
    kind, feeds, constants, attributes = CASES[name]
    outputs = ["y", "z"] if kind == "TopK" else ["y"]
    order = [*feeds, *constants]
    node = helper.make_node(kind, order, outputs, **attributes)
    compared(model_of([node], feeds, outputs, constants), feeds)


@pytest.mark.parametrize("shape", [(2, 7, 3), (2, 5, 3, 2, 2)])
def test_local_response_norms_of_other_ranks(shape: tuple[int, ...]) -> None:
    """onnxruntime has images only; torch is the oracle."""
    torch = pytest.importorskip("torch")
    x = 3 * RNG.standard_normal(shape).astype(np.float32)
    node = helper.make_node("LRN", ["x"], ["y"], size=3, alpha=0.5, beta=0.7, bias=2.0)
    flat, _, orders = flat_model(from_onnx(model_of([node], {"x": x}, ["y"])), Options())
    want = torch.nn.functional.local_response_norm(torch.from_numpy(x), 3, 0.5, 0.7, 2.0)
    for kernels in KERNELS:
        (got,) = run(to_bytes(flat), {"x": x}, kernels, orders).values()
        assert relative(want.numpy(), got) < 1e-5


def test_indices_alone() -> None:
    """The numbers are not read, and the indices go on."""
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["t", "z"], axis=1),
        helper.make_node("Gather", ["table", "z"], ["y"]),
    ]
    constants = {"k": np.array([2]), "table": RNG.standard_normal((4, 3)).astype(np.float32)}
    compared(model_of(nodes, {"x": TIES}, ["y"], constants), {"x": TIES})


def test_behind_a_convolution() -> None:
    """Values that are stored channels last."""
    w = RNG.standard_normal((4, 4, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("TopK", ["c", "k"], ["t", "i"], axis=1),
        helper.make_node("GatherElements", ["c", "i"], ["e"], axis=1),
        helper.make_node("LRN", ["e"], ["l"], size=3),
        helper.make_node("GatherND", ["l", "p"], ["y"]),
    ]
    constants = {"w": w, "k": np.array([3]), "p": places(2, 5, 2)}
    compared(model_of(nodes, {"x": IMAGE}, ["t", "e", "y"], constants), {"x": IMAGE})


def test_open_sizes() -> None:
    nodes = [helper.make_node("TopK", ["x", "k"], ["y", "z"], axis=1)]
    made = model_of(nodes, {"x": TIES}, ["y", "z"], {"k": np.array([2])}, {"x": ["n", 4]})
    compared(made, {"x": TIES})


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_ranges(dtype: Any) -> None:
    feeds = {"a": np.array(2, dtype), "b": np.array(-9, dtype)}
    nodes = [helper.make_node("Range", ["a", "b", "d"], ["y"])]
    compared(model_of(nodes, feeds, ["y"], {"d": np.array(-3, dtype)}), feeds)


@pytest.mark.parametrize("held", [False, True])
def test_int64_is_divided_in_int32(held: bool) -> None:
    x, d = np.array([[-9, 8, 7], [0, 2**31 - 1, -(2**31)]]), np.array([4, -3, 7])
    feeds = {"x": x} if held else {"x": x, "d": d}
    made = model_of(
        [helper.make_node("Div", ["x", "d"], ["y"])], feeds, ["y"], {"d": d} if held else {}
    )
    compared(made, feeds)
    notes = flat_model(from_onnx(made), Options())[1]
    assert any("divided in int32" in note for note in notes)


REFUSED: dict[str, tuple[Case, str]] = {
    "large-divisor": (("Div", {"x": places(9, 3)}, {"d": np.array([2**31])}, {}), "an operand is larger"),
    "none": (top(TIES, 0), "no elements"),
    "smallest-of-integers": (top(TIES.astype(np.int32), 2, largest=0), "smallest of integers"),
    "floats": (("Range", {n: np.array(i, np.float32) for i, n in enumerate("abc")}, {}, {}), "integers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    (kind, feeds, constants, attributes), reason = REFUSED[name]
    outputs = ["y", "z"] if kind == "TopK" else ["y"]
    node = helper.make_node(kind, [*feeds, *constants], outputs, **attributes)
    with pytest.raises(ModelError, match=reason):
        compared(model_of([node], feeds, outputs, constants), feeds)


def slices() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Constants and further inputs of a Slice."""

    def ints(*found: int) -> Any:
        return np.array(found, np.int64)

    return {
        "both": ({"a": ints(1, -1)}, {"s": ints(1, 0), "e": ints(4, -1)}),
        "end": ({"s": ints(0), "a": ints(1)}, {"e": ints(3)}),
        "start": ({"e": ints(2**63 - 1), "a": ints(2)}, {"s": ints(-2)}),
        "steps": ({"a": ints(2, 1), "t": ints(2, 3)}, {"s": ints(1, 0), "e": ints(2**63 - 1, 4)}),
        "far": ({"a": ints(1)}, {"s": ints(-(2**63)), "e": ints(2**63 - 1)}),
        "all-axes": ({}, {"s": ints(1, 0, 2, 0), "e": ints(2, 5, 6, 3)}),
        "narrow": ({"a": np.int32([1])}, {"s": np.int32([1]), "e": np.int32([2**31 - 1])}),
    }


@pytest.mark.parametrize("layered", [False, True], ids=["plain", "channels-last"])
@pytest.mark.parametrize("name", slices())
def test_slices_with_computed_bounds(name: str, layered: bool) -> None:
    constants, more = slices()[name]
    w = RNG.standard_normal((4, 4, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"])] if layered else []
    names = [n if n in constants or n in more else "" for n in ("s", "e", "a", "t")]
    while not names[-1]:
        names.pop()
    nodes.append(helper.make_node("Slice", ["c" if layered else "x", *names], ["y"]))
    feeds = {"x": IMAGE, **more}
    compared(model_of(nodes, feeds, ["y"], constants | ({"w": w} if layered else {})), feeds)

"""Einstein sums of computed operands, in LiteRT against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from graphshrink import shrink_graph
from support.litert import compared, model_of
from support.onnx_run import outputs_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

RNG = np.random.default_rng(0)

SIZES = {"b": 2, "c": 3, "i": 4, "j": 5, "k": 2, "l": 1}

EQUATIONS = [
    "bi,bj->bij", "i,j->ji", "bij,bij->b", "bij,cj->cbi", "bcij,bckj->bcik", "bci,bcj->ij",
    "bij,ji->b", "bcij,bij->bc", "ij,jk,kc->ic", "bi->ib", "bij->", "bi,bi", "...i,...j->...ij",
    "b...i,ij->b...j", "bil,bjl->bij", "bi,,j->ij",
]  # fmt: skip


def operands(equation: str) -> dict[str, Any]:
    terms = equation.replace(" ", "").split("->")[0].split(",")
    shapes = [[SIZES[c] for c in t.replace("...", "bc" if "b" not in t else "c")] for t in terms]
    return {f"x{i}": RNG.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}


def respell(graph: Any, rw: Any) -> None:
    for node in graph.nodes:
        rw.replace(node, node.op, node.inputs)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_equations(equation: str) -> None:
    feeds = operands(equation)
    model = model_of(
        [helper.make_node("Einsum", list(feeds), ["y"], equation=equation)], feeds, ["y"]
    )
    compared(model, feeds)
    want, got = (outputs_of(m, feeds)[0] for m in (model, shrink_graph(model, [respell])))
    np.testing.assert_allclose(want, got, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("equation", ["bi,bj->bij", "bcij,bckj->bcik", "bij,ji->b"])
def test_free_batches(equation: str) -> None:
    """A batch of another size than in the file: sizes of a batch are copied, not stated."""
    feeds = operands(equation)
    shapes = {n: ["n", *a.shape[1:]] for n, a in feeds.items() if len(a.shape) and n == "x0"}
    shapes |= {n: ["n", *a.shape[1:]] for n, a in feeds.items() if equation.count("b") > 2}
    model = model_of(
        [helper.make_node("Einsum", list(feeds), ["y"], equation=equation)],
        feeds,
        ["y"],
        shapes=shapes,
    )
    more = {n: np.concatenate([a, a, a]) if n in shapes else a for n, a in feeds.items()}
    want, got = (outputs_of(m, more)[0] for m in (model, shrink_graph(model, [respell])))
    np.testing.assert_allclose(want, got, rtol=1e-4, atol=1e-5)

"""Every node test of the onnx package: an empty pipeline is lossless, and rewriting keeps the outputs in onnxruntime.

``respell`` spells every canonical op again, so that the spelling of each op is compared with onnxruntime on
every case that uses it, even if no pass changes it. ``respell-known`` does the same with all operands except the
first as constants, because many rules need constant scales, axes or weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from graphshrink import DEFAULT_PIPELINE, Graph, Pipeline, Rewriter
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import Opaque
from graphshrink.passes import relative_error
from graphshrink.targets.onnx.emitter import to_onnx
from support.onnx_cases import Known, feeds_of

CHUNKS = 4
LEAST = {"default": 10, "respell": 140, "respell-known": 110}
"""The smallest number of cases of a chunk that are changed and compared; fewer means that ops are no longer understood."""


def respell(graph: Graph, rw: Rewriter) -> None:
    for node in graph.nodes:
        if not isinstance(node.op, Opaque):
            rw.replace(node, node.op, node.inputs)


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results = session.run(None, feeds)
    # A sequence counts as its tensors.
    return [part for r in results for part in (r if isinstance(r, list) else [r])]


def tolerance(arrays: list[Any]) -> float:
    kinds = {np.asarray(a).dtype for a in arrays}
    return 1e-2 if np.dtype(np.float16) in kinds else 1e-5


def different(cases: list[Any], pipeline: Pipeline, least: int) -> Iterator[str]:
    compared = 0
    for case in cases:
        graph = from_onnx(case.model)
        pipeline.run(graph)
        model = to_onnx(graph)
        if model == case.model:
            continue
        feeds = feeds_of(case)
        try:
            want = run(case.model, feeds)
        except Exception:
            continue  # onnxruntime does not run the original either.
        compared += 1
        error = relative_error(want, run(model, feeds))
        if not error <= tolerance(want):
            yield f"{case.name}: {error}"
    assert compared > least


@pytest.fixture(scope="module")
def graphs(cases: list[Any]) -> list[Graph]:
    """The cases as they are read, for tests that change nothing in them."""
    return [from_onnx(case.model) for case in cases]


def test_empty_pipeline_is_lossless(cases: list[Any], graphs: list[Graph]) -> None:
    pairs = zip(cases, graphs, strict=True)
    lost = [c.name for c, graph in pairs if to_onnx(graph) != c.model]
    assert lost == []


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("what", LEAST)
def test_same_outputs(cases: list[Any], what: str, chunk: int) -> None:
    pipeline = Pipeline(DEFAULT_PIPELINE if what == "default" else [respell])
    chosen = cases[chunk::CHUNKS]
    if what == "respell-known":
        chosen = [known for known in map(Known.of, chosen) if known is not None]
    assert list(different(chosen, pipeline, LEAST[what])) == []


def test_text_round_trips_for_every_case(cases: list[Any], graphs: list[Graph]) -> None:
    from graphshrink.ir import parse

    for case, graph in zip(cases, graphs, strict=True):
        text = str(graph)
        assert str(parse(text)) == text, case.name

"""Every node test of the onnx package that can be written: LiteRT against onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from graphshrink import DEFAULT_PIPELINE, ModelError, Pipeline
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import Opaque
from graphshrink.passes import relative_error
from graphshrink.targets.tflite import Options
from graphshrink.targets.tflite.convert import flat_model
from graphshrink.targets.tflite.write import to_bytes
from support.litert import KERNELS, run
from support.onnx_cases import Known
from support.onnx_run import outputs_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

CHUNKS = 4
CLAMPED = {
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal_expanded",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal_expanded",
    "test_attention_causal_boolmask_nan_robustness_expanded",
    "test_attention_local_window_gqa_rank4_mask_expanded",
}
"""Cases that compare a sum with infinity: LiteRT's own ADD clamps infinities to the largest float."""

SUMMED = {"test_nllloss_NCd1d2d3d4d5_mean_weight_expanded"}
"""Cases with a sum of thousands of numbers, which LiteRT's own SUM adds one after the other."""

REFUSED = (
    "LiteRT has no kernel for",
    "LiteRT supports 1-D and 2-D only",
    "it is written in 1-D and 2-D only",
    "3-D with groups",
    "TFLite has no kernels for",
    "whole numbers round otherwise in TFLite",
    "LiteRT has no dilated windows",
    "LiteRT has no antialiasing",
    "LiteRT computes it in float32 only",
    "is computed by the model, not constant",
    "an operand has no elements",
    "it has no elements",
    "its size is not known",
    "is not known",
    "LiteRT supports at most",
    "celu needs an alpha",
    "the model computes its scale",
    "activations can only be int8 or uint8",
    "the activation has a scale for each channel",
    "a constant that is not the weight",
    "the sequences of a batch have different lengths",
)
"""Why a case of known ops may be refused."""


def array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def wide(value: Any) -> Any:
    """Halves and doubles are computed in float32: their types are not compared."""
    value = np.asarray(value)
    return value.astype(np.float64) if value.dtype.kind in "fV" else value


def tolerance(arrays: list[Any]) -> float:
    return 2e-2 if {a.dtype.name for a in arrays} & {"float16", "bfloat16"} else 1e-5


@dataclass
class Written:
    """A case that could be written."""

    content: bytes
    orders: dict[str, Any]

    def error(self, case: Any, expected: Any) -> str:
        """What LiteRT computes otherwise than onnxruntime; nothing if they agree."""
        given = case.data_sets[0][0]
        feeds = {i.name: array(v) for i, v in zip(case.model.graph.input, given, strict=False)}
        try:
            want = outputs_of(case.model, feeds, plain=True)
        except Exception:
            want = [array(v) for v in expected]  # onnxruntime does not run the case.
        for kernels in KERNELS:
            if kernels == "builtin" and case.name in CLAMPED:
                continue
            got = run(self.content, feeds, kernels, self.orders)
            error = relative_error(list(map(wide, want)), list(map(wide, got.values())))
            allowed = tolerance(want) * (5 if case.name in SUMMED else 1)
            if not error <= allowed:
                return f"with {kernels}: {error}"
        return ""


def written(case: Any) -> Written | str:
    """The file, or why there is none; nothing where the IR does not know the ops."""
    graph = from_onnx(case.model)
    Pipeline(DEFAULT_PIPELINE).run(graph)
    try:
        flat, _, orders = flat_model(graph, Options())
    except ModelError as error:
        known = not any(isinstance(n.op, Opaque) for n in graph.nodes)
        return str(error) if known else ""
    return Written(to_bytes(flat), orders)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_same_outputs(cases: list[Any], chunk: int) -> None:
    compared, wrong, unexplained = 0, [], []
    for case in cases[chunk::CHUNKS]:
        # With its operands given, or, where weights and scales must be known, as constants.
        for tried in (case, Known.of(case)):
            reason = None if tried is None else written(tried)
            if isinstance(reason, Written):
                error = reason.error(tried, case.data_sets[0][1])
                compared += 1
                wrong += [f"{case.name} {error}"] if error else []
                break
            if reason and not any(known in reason for known in REFUSED):
                unexplained.append(f"{case.name}: {reason}")
    assert wrong == []
    assert unexplained == []
    assert compared > 140, compared

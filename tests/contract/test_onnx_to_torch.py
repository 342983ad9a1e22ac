"""Every node test of the onnx package, and the networks of the zoo, as torch modules, and some of these as ONNX files again.

A case counts if the module computes what onnxruntime does or, where that does not run the case, what the onnx package says. Where
axes, shapes or weights must be known, the operands beside the first are constants. ``python benchmarks/to_torch.py`` takes all cases back.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from zoo.exports import example, exported, small
from zoo.mobile_models import MOBILE
from zoo.models import SMALL
from zoo.more_models import MORE

from graphshrink import ModelError, shrink, to_torch
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import DType
from graphshrink.readers import HostReaders
from graphshrink.targets.torch.anew import to_module
from support.onnx_cases import Known
from support.onnx_run import outputs_of

CHUNKS = 2
LEAST = 500
"""The smallest number of cases of a chunk that are written and right."""

SHARE = 10
"""Every so many cases come back."""

LEAST_BACK = 90
"""The smallest number of these that graphshrink writes as ONNX files again, with the same outputs."""

STATED = {
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
}
"""Cases in which onnxruntime writes the lowest float for the infinity that the onnx package states."""


def array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def is_numeric(value: Any) -> bool:
    """Whether torch has tensors like a value: no text, no sequence, no type of fewer than 8 bits."""
    if isinstance(value, list) or value is None:
        return False
    dtype = array(value).dtype
    return dtype.kind in "fiub" or dtype.name == "bfloat16"


def tensor(value: Any) -> torch.Tensor:
    found = array(value)
    if DType.of(found.dtype) is DType.BF16:
        return torch.from_numpy(found.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(found.copy())


def wide(value: Any) -> Any:
    """Floats as float64."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return value.double().numpy() if value.is_floating_point() else value.numpy()
    return value.astype(np.float64) if value.dtype.kind in "fV" else value


def tolerance(want: Any) -> float:
    if want.dtype == np.float64:
        return 1e-10
    return 1e-5 if want.dtype.kind not in "fV" or want.dtype.itemsize > 2 else 2e-2


def is_right(want: Any, got: torch.Tensor) -> bool:
    limit = tolerance(want)
    if got.is_floating_point() != (want.dtype.kind in "fV") or got.element_size() != want.itemsize:
        return False
    a, b = wide(want), wide(got)
    if a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    largest = float(np.abs(a[np.isfinite(a)]).max(initial=0)) or 1.0
    return bool(np.allclose(b, a, rtol=0, atol=limit * largest, equal_nan=True))


def outputs(case: Any, tried: Any, given: list[Any]) -> list[Any]:
    names = [i.name for i in tried.model.graph.input]
    try:
        if case.name not in STATED:
            return outputs_of(
                tried.model, dict(zip(names, map(array, given), strict=False)), plain=True
            )
    except Exception:
        pass  # onnxruntime does not run the case.
    return [array(v) for v in case.data_sets[0][1]]


def taken(cases: list[Any]) -> list[Any]:
    """The cases whose inputs torch has tensors for; an operator that is written out by the onnx package is written out by the readers too."""
    names = {case.name for case in cases}
    return [
        c
        for c in cases
        if (c.name.removesuffix("_expanded") == c.name or c.name[:-9] not in names)
        and all(map(is_numeric, c.data_sets[0][0]))
    ]


def modules(cases: list[Any]) -> Iterator[tuple[Any, Any, list[torch.Tensor], list[Any]]]:
    """Each case that is written, with its module, inputs and outputs as they should be."""
    for case in cases:
        for tried in (case, Known.of(case)):
            if tried is None:
                continue
            try:
                module = to_module(from_onnx(tried.model, inline=True), HostReaders())
            except ModelError as error:
                assert "cannot be written as a torch module" in str(error)  # noqa: PT017
                continue
            given = tried.data_sets[0][0]
            yield case, module, list(map(tensor, given)), outputs(case, tried, given)
            break


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_same_outputs(cases: list[Any], chunk: int) -> None:
    right, wrong = 0, []
    for case, module, given, want in modules(taken(cases)[chunk::CHUNKS]):
        with torch.no_grad():
            got = module(*given)
        found = [got] if isinstance(got, torch.Tensor) else list(got)
        if len(want) == len(found) and all(map(is_right, want, found)):
            right += 1
        else:
            wrong.append(case.name)
    assert wrong == []
    assert right >= LEAST, right


def returned(module: Any, given: list[torch.Tensor], path: Path) -> ModelProto:
    """A module as an ONNX file that graphshrink writes itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shrink(module, (), example_inputs=tuple(given)).save(path)
    return onnx.load(path)


def results(model: ModelProto, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """What onnxruntime computes or, where it has no kernels, the reference of the onnx package."""
    feeds = {i.name: x.numpy() for i, x in zip(model.graph.input, given, strict=True)}
    try:
        found = outputs_of(model, feeds, plain=True)
    except Exception:
        found = ReferenceEvaluator(model).run(None, feeds)
    return [tensor(np.asarray(v)) for v in found]


def test_comes_back(cases: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exported(graph: Any, opset: Any = None) -> Any:
        raise ModelError("torch's exporter is not asked")

    monkeypatch.setattr("graphshrink.targets.onnx.torch_exporter.exported", exported)
    equal, refused, wrong = 0, 0, []
    for case, module, given, want in modules(taken(cases)[::SHARE]):
        if any(x.dtype is torch.bfloat16 for x in given):
            continue  # NumPy has no such arrays to feed.
        try:
            model = returned(module, given, tmp_path / "back.onnx")
        except ModelError as error:
            assert "graphshrink itself cannot write it: " in str(error)  # noqa: PT017
            refused += 1
            continue
        found = results(model, given)
        if len(want) == len(found) and all(map(is_right, want, found)):
            equal += 1
        else:
            wrong.append(case.name)
    assert wrong == []
    assert equal >= LEAST_BACK, (equal, refused)


ALIKE = {"resnet50", "densenet121"}
"""Networks of ops that others have too: ResNet-18, and the convolutions, norms, pools and joined branches of the rest."""


@pytest.mark.parametrize("name", sorted({*SMALL, *MORE, *MOBILE} - ALIKE))
def test_networks(name: str, onnx_files: Path, tmp_path: Path) -> None:
    path, x = exported(name, onnx_files), example(name)
    module = to_torch(path)
    (want,) = outputs_of(path, x.numpy())
    with torch.no_grad():
        assert is_right(want, module(x))
        if name in SMALL:
            # Nothing is folded in these files: the module is the network that was exported.
            doubled, image = copy.deepcopy(module).double(), example(name, torch.float64)
            assert is_right(small(name, torch.float64)(image).numpy(), doubled(image))
    back = returned(module, [x], tmp_path / "back.onnx")
    assert is_right(want, results(back, [x])[0])

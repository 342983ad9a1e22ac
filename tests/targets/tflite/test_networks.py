"""Well-known networks through LiteRT, from ONNX and from torch, against onnxruntime and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo.exports import example, exported, small
from zoo.mobile_models import MOBILE
from zoo.models import SMALL
from zoo.more_models import MORE

from graphshrink import ModelError, shrink
from graphshrink.ir import parse
from graphshrink.targets.emitted import Emitted
from graphshrink.targets.tflite import to_tflite
from support.litert import KERNELS, relative, run_saved
from support.onnx_run import outputs_of

pytest.importorskip("ai_edge_litert", reason='pip install "graphshrink[tflite]"')

NAMES = sorted({*SMALL, *MORE, *MOBILE})
NO_TRANSPOSE = [
    n for n in NAMES if n not in ("vit", "bert", "gpt2", "llama", "shufflenet_v1", "shufflenet_v2")
]
LIMIT = 1e-5


def saved(name: str, kind: str, onnx_files: Path, folder: Path, **options: Any) -> Emitted:
    if kind == "onnx":
        result = shrink(exported(name, onnx_files))
    else:
        result = shrink(small(name), example_inputs=(example(name),))
    return result.save(folder / f"{name}.tflite", **options)


# Exporting takes seconds: what others export too, and what has ops of its own. gpt2 as FX goes by the same way as lstm.
CASES = [
    (name, "onnx")
    for name in NAMES
    if name not in MOBILE or name in ("squeezenet", "unet", "audio")
]
CASES += [(name, "fx") for name in NAMES if name != "gpt2"]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_numbers(name: str, kind: str, onnx_files: Path, tmp_path: Path) -> None:
    x = example(name)
    done = saved(name, kind, onnx_files, tmp_path)
    with torch.no_grad():
        want = small(name)(x).numpy()
    wanted = [want]
    if kind == "onnx":
        wanted += outputs_of(exported(name, onnx_files), x.numpy())
    for kernels in KERNELS:
        (got,) = run_saved(done, x.numpy(), kernels)
        assert max(relative(w, got) for w in wanted) <= LIMIT, kernels
    if name in NO_TRANSPOSE:
        assert "TRANSPOSE" not in done.data["operations"]


def test_a_class_token_and_a_batch_that_is_free(tmp_path: Path) -> None:
    """LiteRT asks for the size of the batch when it runs."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    model, x = small("vit"), torch.cat([example("vit"), example("vit").flip(-1)])
    free: Any = ({0: torch.export.Dim("batch", min=1, max=64)},)
    proto = torch.onnx.export(model, (x,), dynamo=True, verbose=False, dynamic_shapes=free)
    assert proto is not None
    proto.save(tmp_path / "vit.onnx")
    done = shrink(tmp_path / "vit.onnx").save(tmp_path / "vit.tflite")
    for kind in (OpResolverType.BUILTIN, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES):
        loaded = Interpreter(str(done.files[0]), num_threads=1, experimental_op_resolver_type=kind)
        (source,), (result,) = loaded.get_input_details(), loaded.get_output_details()
        for rows in (x[:1], x, torch.cat([x, x])):
            array = np.ascontiguousarray(rows.numpy().transpose(0, 2, 3, 1))
            loaded.resize_tensor_input(source["index"], array.shape)
            loaded.allocate_tensors()
            loaded.set_tensor(source["index"], array)
            loaded.invoke()
            with torch.no_grad():
                assert relative(model(rows).numpy(), loaded.get_tensor(result["index"])) <= LIMIT


def test_an_expand_of_what_has_no_known_size_is_refused() -> None:
    graph = parse(
        "graph g(%x: f32[n, 1], %z: f32[m, 2]) {\n"
        "  %y: f32[n, m] = Expand(%x, %z) {shape=[1, none], like=[0]}\n  return %y\n}"
    )
    with pytest.raises(ModelError, match=r"Expand.*a size is not known: fix it with --fix-shape"):
        to_tflite(graph)

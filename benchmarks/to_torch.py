"""ONNX models as torch modules, by graphshrink and by onnx2torch: how many come out right, wrong, or not at all.

The models are the node tests of the onnx package (where axes, shapes or weights must be known, the operands beside the first are
constants) and any ONNX files of one's own. A module is right if it computes what onnxruntime does or, where that does not run the
case, what the onnx package says, to 1e-5 of the largest number (2e-2 in half precision), in the same element types. onnx2torch stands in a folder
of its own, because its requirements would replace torch; its import of torchvision is answered by an empty module::

    pip install --no-deps --target site onnx2torch
    python benchmarks/to_torch.py --site site [--files FOLDER] [--markdown benchmarks/results/to_torch.md]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, TensorProto, numpy_helper

from graphshrink import to_torch

RIGHT, WRONG, FAILS, REFUSED = "right", "wrong numbers", "does not run", "not converted"
Convert = Callable[[ModelProto], Any]


@dataclass
class Case:
    """A model with inputs and the outputs that are expected of it."""

    name: str
    forms: list[tuple[ModelProto, list[Any]]]
    stated: list[Any] | None = None


def array(value: Any) -> Any:
    """The array of a test's input or output."""
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def node_tests() -> Iterator[Case]:
    """The node tests whose inputs torch has tensors for."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(collect_testcases(None))
    for case in found:
        given, want = case.data_sets[0]
        if any(isinstance(v, list) or v is None for v in (*given, *want)):
            continue
        arrays = [array(v) for v in given]
        if not all(a.dtype.kind in "fiub" or a.dtype.name == "bfloat16" for a in arrays):
            continue
        forms = [(case.model, arrays)]
        if len(arrays) > 1:
            known = ModelProto()
            known.CopyFrom(case.model)
            names = [i.name for i in known.graph.input]
            del known.graph.input[1:]
            known.graph.initializer.extend(
                numpy_helper.from_array(a, n) for a, n in zip(arrays[1:], names[1:], strict=True)
            )
            forms.append((known, arrays[:1]))
        yield Case(case.name, forms, [array(v) for v in want])


def files(folder: Path) -> Iterator[Case]:
    """Files with random inputs of their known sizes, and 1 for unknown ones."""
    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("**/*.onnx")):
        model = onnx.load(path)
        stored = {t.name for t in model.graph.initializer}
        arrays = []
        for item in model.graph.input:
            if item.name in stored:
                continue
            kind = item.type.tensor_type
            shape = [d.dim_value or 1 for d in kind.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
            arrays.append(drawn.astype(dtype))
        yield Case(str(path.relative_to(folder)), [(model, arrays)])


def expected(case: Case, model: ModelProto, arrays: list[Any]) -> list[Any] | None:
    """What onnxruntime computes, or what the test states."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return list(
            session.run(
                None, dict(zip((i.name for i in session.get_inputs()), arrays, strict=True))
            )
        )
    except Exception:  # Whatever onnxruntime raises for a case that it lacks.
        return case.stated


def tensor(found: Any) -> torch.Tensor:
    """A tensor with the numbers of an array."""
    if found.dtype.name == "bfloat16":
        return torch.from_numpy(found.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(found))


def same(want: Any, got: torch.Tensor) -> bool:
    """Whether a result is right."""
    halves = want.dtype.itemsize == 2 and want.dtype.kind in "fV"
    a = want.astype(np.float64) if want.dtype.kind in "fV" else want
    b = (got.double() if got.is_floating_point() else got).detach().numpy()
    if a.shape != b.shape or got.element_size() != want.itemsize or a.dtype.kind != b.dtype.kind:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    largest = float(np.abs(a[np.isfinite(a)]).max(initial=0)) or 1.0
    return bool(
        np.allclose(b, a, rtol=0, atol=(2e-2 if halves else 1e-5) * largest, equal_nan=True)
    )


def outcome(case: Case, convert: Convert) -> str:
    """What becomes of a case; of its forms, the first that is converted counts."""
    for model, arrays in case.forms:
        copied = ModelProto.FromString(model.SerializeToString())
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                module = convert(copied)
        except Exception:  # A converter that does not take the model.
            continue
        want = expected(case, model, arrays)
        if want is None:
            return "no reference"
        try:
            with torch.no_grad():
                got = module(*map(tensor, arrays))
        except Exception:
            return FAILS
        found = [got] if isinstance(got, torch.Tensor) else list(got)
        right = len(found) == len(want) and all(
            isinstance(b, torch.Tensor) and same(a, b) for a, b in zip(want, found, strict=True)
        )
        return RIGHT if right else WRONG
    return REFUSED


def _absent(*_: Any, **__: Any) -> Any:
    raise ImportError("torchvision is not installed")


def converters(site: Path | None) -> dict[str, Convert]:
    """The converters by name."""
    found: dict[str, Convert] = {"graphshrink": to_torch}
    if site is not None:
        sys.path.insert(0, str(site))
        vision, ops = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
        vars(ops).update(roi_align=_absent, nms=_absent, batched_nms=_absent)
        vars(vision)["ops"] = ops
        sys.modules.setdefault("torchvision", vision)
        sys.modules.setdefault("torchvision.ops", ops)
        import onnx2torch

        found[f"onnx2torch {version('onnx2torch')}"] = lambda m: onnx2torch.convert(m).eval()
    return found


def main() -> int:
    """Compare, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--site", type=Path, help="the folder of onnx2torch; without it, graphshrink alone"
    )
    parser.add_argument("--files", type=Path, help="a folder of ONNX files")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(4)
    ways = converters(options.site)
    lines = [
        f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}",
        "",
    ]
    lines += [
        "| models | converter | " + " | ".join((RIGHT, WRONG, FAILS, REFUSED)) + " |",
        "| --- " * 6 + "|",
    ]
    groups = {"node tests of onnx": list(node_tests())}
    if options.files is not None:
        groups["files"] = list(files(options.files))
    for title, cases in groups.items():
        for name, convert in ways.items():
            count = Counter(outcome(case, convert) for case in cases)
            cells = [str(count[kind]) for kind in (RIGHT, WRONG, FAILS, REFUSED)]
            lines.append(f"| {len(cases)} {title} | {name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(
            f"# ONNX models as torch modules\n\n`python benchmarks/to_torch.py`; its docstring says what is compared.\n\n{text}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

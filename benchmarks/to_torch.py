"""ONNX models as torch modules, by graphshrink and by onnx2torch, and back as ONNX files: how many come out right, wrong, or not at all.

The models are the node tests of the onnx package (where axes, shapes or weights must be known, the operands beside the first are
constants), the ONNX files of packages that ``corpus.json`` lists, and any ONNX files of one's own. A module is right if it computes what
onnxruntime does or, where that does not run the case, what the onnx package says, to 1e-5 of the largest number (1e-10 in double, 2e-2 in half
precision; in files, or 20 times what a rounding unit in inputs and weights changes), in the same element types. graphshrink's modules come back by ``shrink(module, (), example_inputs=...).save("back.onnx")``, and the
file is compared in the same way, in onnxruntime or, where that has no kernels, by the onnx package's reference. Each file has a time
limit. onnx2torch stands in a folder of its own, because its requirements would replace torch; its import of torchvision is answered by an
empty module::

    pip install --no-deps --target site onnx2torch
    python benchmarks/corpus.py --folder corpus --fetch --no-run --group packages
    python benchmarks/to_torch.py [--site site] [--corpus corpus] [--files FOLDER] [--every 3] [--markdown benchmarks/results/to_torch.md]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import re
import sys
import tempfile
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

from graphshrink import ModelError, shrink, to_torch

RIGHT, WRONG, FAILS, REFUSED = "right", "wrong numbers", "does not run", "not converted"
KINDS = (RIGHT, WRONG, FAILS, REFUSED)
SLOW, UNKNOWN = "over the time limit", "no reference"
EQUAL, EXPORTED, OTHER, LEFT = "equal", "equal, by torch's exporter", "other numbers", "refused"
BACK = (EQUAL, EXPORTED, OTHER, LEFT)
Convert = Callable[[ModelProto], Any]


@dataclass
class Case:
    """A model with inputs and the outputs that are expected of it."""

    name: str
    forms: list[tuple[ModelProto, list[Any]]]
    stated: list[Any] | None = None
    rounding: list[float] | None = None
    """How far outputs move where all inputs and weights move by a rounding unit."""


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        kind: What became of the module.
        back: What became of the file that was made of the module; empty if none was to be made.
        reason: Why there is no module, or no file.
    """

    kind: str
    back: str = ""
    reason: str = ""


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


def packages(folder: Path, each: int) -> Iterator[Case]:
    """The files of packages in ``corpus.json`` that were fetched, with inputs that they run on."""
    sys.path.insert(0, str(Path(__file__).parent))
    from corpus_files import group, place, short
    from corpus_inputs import running_inputs, session

    seen: Counter[str] = Counter()
    for entry in json.loads((Path(__file__).parent / "corpus.json").read_text()):
        path = place(entry["source"], folder) / entry["path"]
        if group(entry["source"]) != "packages" or not path.is_file():
            continue
        seen[entry["source"]] += 1
        if seen[entry["source"]] > each:
            continue

        def make(path: Path = path) -> tuple[ModelProto, list[Any], list[Any]]:
            feeds, want = running_inputs(str(path))
            # Long rows of zeros and ones are numbers without variance, which norms blow up.
            long = [
                n for n, a in feeds.items() if a.dtype.kind in "iu" and a.ndim == 2 and a.size > 255
            ]
            other = {
                n: np.random.default_rng(0).integers(0, 256, feeds[n].shape).astype(feeds[n].dtype)
                for n in long
            }
            with contextlib.suppress(Exception):
                if long:
                    feeds, want = (
                        {**feeds, **other},
                        session(str(path)).run(None, {**feeds, **other}),
                    )
            return onnx.load(path), list(feeds.values()), want

        yield Lazy(f"{short(entry['source'])} {entry['path']}", [], make=make)


@dataclass
class Lazy(Case):
    """A case that is read when it is its turn."""

    make: Callable[[], tuple[ModelProto, list[Any], list[Any]]] | None = None

    def read(self) -> None:
        """Read the model, and find inputs for it."""
        assert self.make is not None
        model, arrays, self.stated = self.make()
        self.forms = [(model, arrays)]
        nudged = ModelProto.FromString(model.SerializeToString())
        for t in nudged.graph.initializer:
            if t.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE):
                t.CopyFrom(numpy_helper.from_array(_moved(numpy_helper.to_array(t)), t.name))
        stored = {t.name for t in model.graph.initializer}
        names = [i.name for i in model.graph.input if i.name not in stored]
        feeds = {
            n: _moved(a) if a.dtype.kind == "f" else a for n, a in zip(names, arrays, strict=True)
        }
        pairs = zip(self.stated, results(nudged, feeds), strict=True)
        self.rounding = [_distance(a, np.asarray(b)) for a, b in pairs]


def _moved(array: Any) -> Any:
    """Floats, each moved by a rounding unit up or down."""
    ways = np.random.default_rng(0).choice([-np.inf, np.inf], array.shape).astype(array.dtype)
    return np.nextafter(array, ways)


def _distance(a: Any, b: Any) -> float:
    """The largest finite difference of floats."""
    if a.dtype.kind != "f" or a.shape != b.shape:
        return 0.0
    with np.errstate(all="ignore"):
        found = np.abs(a.astype(np.float64) - b)
    return float(found[np.isfinite(found)].max(initial=0))


def plain_session(model: ModelProto) -> onnxruntime.InferenceSession:
    """A session of onnxruntime without its own rewriting, on one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def expected(case: Case, model: ModelProto, arrays: list[Any]) -> list[Any] | None:
    """What onnxruntime computes, or what the test states."""
    try:
        session = plain_session(model)
        names = (i.name for i in session.get_inputs())
        return list(session.run(None, dict(zip(names, arrays, strict=True))))
    except Exception:  # Whatever onnxruntime raises for a case that it lacks.
        return case.stated


def tensor(found: Any) -> torch.Tensor:
    """A tensor with the numbers of an array."""
    if found.dtype.name == "bfloat16":
        return torch.from_numpy(found.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(found))


def plain(x: torch.Tensor) -> Any:
    """An array with the numbers of a tensor."""
    if x.dtype is not torch.bfloat16:
        return x.numpy()
    return (
        x.view(torch.int16).numpy().view(onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    )


def same(want: Any, got: torch.Tensor, rounding: float = 0.0) -> bool:
    """Whether a result is right, up to 20 times what a rounding unit in inputs and weights changes."""
    halves = want.dtype.itemsize == 2 and want.dtype.kind in "fV"
    a = want.astype(np.float64) if want.dtype.kind in "fV" else want
    b = (got.double() if got.is_floating_point() else got).detach().numpy()
    if a.shape != b.shape or got.element_size() != want.itemsize or a.dtype.kind != b.dtype.kind:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    largest = float(np.abs(a[np.isfinite(a)]).max(initial=0)) or 1.0
    limit = 2e-2 if halves else 1e-10 if want.dtype.itemsize == 8 else 1e-5
    error = max(limit * largest, 20 * rounding)
    return bool(np.allclose(b, a, rtol=0, atol=error, equal_nan=True))


def all_same(want: list[Any], found: list[Any], rounding: list[float] | None) -> bool:
    """Whether all results are right."""
    errors = rounding or [0.0] * len(want)
    return len(found) == len(want) and all(
        isinstance(b, torch.Tensor) and same(a, b, e)
        for a, b, e in zip(want, found, errors, strict=True)
    )


def outcome(case: Case, convert: Convert, comes_back: bool) -> Outcome:
    """What becomes of a case; of its forms, the first that is converted counts."""
    reason = ""
    for model, arrays in case.forms:
        copied = ModelProto.FromString(model.SerializeToString())
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                module = convert(copied)
        except Exception as error:  # A converter that does not take the model.
            reason = reason or str(error)
            continue
        want = expected(case, model, arrays)
        if want is None:
            return Outcome(UNKNOWN)
        given = tuple(map(tensor, arrays))
        try:
            with torch.no_grad():
                got = module(*given)
        except Exception as error:
            return Outcome(FAILS, reason=str(error))
        found = [got] if isinstance(got, torch.Tensor) else list(got)
        if not all_same(want, found, case.rounding):
            return Outcome(WRONG)
        return Outcome(RIGHT, *(back(module, given, want, case.rounding) if comes_back else ()))
    return Outcome(REFUSED, reason=reason)


def back(
    module: Any, given: tuple[torch.Tensor, ...], want: list[Any], rounding: list[float] | None
) -> tuple[str, str]:
    """What becomes of a module that is written as an ONNX file again, and the reason if there is none."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "back.onnx"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                notes = shrink(module, (), example_inputs=given).save(path).notes
        except ModelError as error:
            return LEFT, str(error)
        model = onnx.load(path)
    feeds = {i.name: plain(x) for i, x in zip(model.graph.input, given, strict=True)}
    reason = next((n for n in notes if n.startswith("written by torch's exporter")), "")
    try:
        got = results(model, feeds)
    except Exception as error:
        return OTHER, f"does not run: {error}"
    right = all_same(want, [tensor(np.asarray(a)) for a in got], rounding)
    return (EXPORTED if reason else EQUAL) if right else OTHER, reason


def results(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    """What onnxruntime computes or, where it has no kernels, the reference of the onnx package."""
    try:
        return list(plain_session(model).run(None, feeds))
    except Exception:
        from onnx.reference import ReferenceEvaluator

        return list(ReferenceEvaluator(model).run(None, feeds))


def limited(case: Case, convert: Convert, comes_back: bool, seconds: float) -> Outcome:
    """The outcome of a case in a process of its own, which is ended after so many seconds."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def work() -> None:
        try:
            if isinstance(case, Lazy):
                try:
                    case.read()
                except ValueError as error:  # No inputs were found that it runs on.
                    theirs.send(Outcome(UNKNOWN, reason=str(error)))
                    return
            theirs.send(outcome(case, convert, comes_back))
        except Exception as error:
            theirs.send(Outcome(FAILS, reason=f"{type(error).__name__}: {error}"))

    process = context.Process(target=work)
    process.start()
    made = Outcome(SLOW)
    if ours.poll(seconds):
        try:
            made = ours.recv()
        except EOFError:
            made = Outcome(FAILS, reason="the process ended")
    process.kill()
    process.join()
    return made


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


def tables(title: str, way: str, outcomes: dict[str, Outcome]) -> tuple[str, str]:
    """The rows of both tables; the second one is empty where nothing comes back."""
    known = [o for o in outcomes.values() if o.kind != UNKNOWN]
    count = Counter(o.kind for o in known)
    cells = [str(count[kind]) for kind in (*KINDS, SLOW)]
    first = f"| {len(known)} {title} | {way} | {' | '.join(cells)} |"
    returned = [o for o in known if o.back]
    if not returned:
        return first, ""
    backs = Counter(o.back for o in returned)
    share = 100 * (backs[EQUAL] + backs[EXPORTED]) / len(returned)
    cells = [str(backs[kind]) for kind in BACK]
    return first, f"| {len(returned)} modules of {title} | {' | '.join(cells)} | {share:.1f} % |"


def reasons(outcomes: dict[str, Outcome]) -> list[str]:
    """Why modules did not come back, by what refused them, with how many each."""
    found: Counter[str] = Counter()
    for o in outcomes.values():
        if o.back in (LEFT, EXPORTED, OTHER):
            text = re.sub(
                r"written by torch's exporter.*?names: |; graphshrink itself.*", "", o.reason
            )
            text = re.sub(r"\(([^():]|\([^()]*\))*\)|[0-9]+", "", text).replace("|", "/")
            found[f"{o.back}: {' '.join(text.split())[:200]}"] += 1
    return [f"- {count} {text}" for text, count in found.most_common()]


def main() -> int:
    """Compare, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--site", type=Path, help="the folder of onnx2torch; without it, graphshrink alone"
    )
    parser.add_argument("--files", type=Path, help="a folder of ONNX files")
    parser.add_argument("--corpus", type=Path, help="where corpus.py fetched files of packages to")
    parser.add_argument("--every", type=int, default=1, help="every so many cases")
    parser.add_argument("--each", type=int, default=3, help="so many files of each package at most")
    parser.add_argument("--seconds", type=float, default=60, help="the time limit of a file")
    parser.add_argument("--no-node-tests", action="store_true", help="files alone")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(4)
    ways = converters(options.site)
    groups: dict[str, tuple[list[Case], float]] = {}
    if not options.no_node_tests:
        groups["node tests of onnx"] = list(node_tests())[:: options.every], 0
    if options.corpus is not None:
        groups["ONNX files of packages"] = (
            list(packages(options.corpus, options.each))[:: options.every],
            options.seconds,
        )
    if options.files is not None:
        groups["files"] = list(files(options.files))[:: options.every], options.seconds
    there, again, why = [], [], []
    for title, (cases, seconds) in groups.items():
        for name, convert in ways.items():
            ours = convert is to_torch
            outcomes = {}
            for case in cases:
                made = (
                    limited(case, convert, ours, seconds)
                    if seconds
                    else outcome(case, convert, ours)
                )
                outcomes[case.name] = made
                if seconds or made.kind in (WRONG, FAILS) or made.back == OTHER:
                    print(f"{case.name}: {made.kind} {made.back} {made.reason[:200]}", flush=True)
            first, second = tables(title, name, outcomes)
            there.append(first)
            again += [second] if second else []
            if ours:
                why += [f"\n{title}, why not by graphshrink:\n", *reasons(outcomes)]
            print(first, second, sep="\n", flush=True)
    lines = [
        f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"
        + (f"; every {options.every}th case" if options.every > 1 else ""),
        "",
        "| models | converter | " + " | ".join((*KINDS, SLOW)) + " |",
        "| --- " * 7 + "|",
        *there,
        "",
        "graphshrink's modules that are right, written as ONNX files again:",
        "",
        "| modules | " + " | ".join(BACK) + " | share |",
        "| --- " * 6 + "|",
        *again,
        *why,
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(
            f"# ONNX models as torch modules, and back\n\n`python benchmarks/to_torch.py`; its docstring says what is compared.\n\n{text}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

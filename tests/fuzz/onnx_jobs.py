"""The jobs for ONNX models: each runs a pipeline or a target, and checks the result."""

from __future__ import annotations

import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper

from graphshrink import Rewriter, ShrinkResult, shrink
from graphshrink.ir import Graph, Opaque

from .isolate import in_child
from .onnx_graphs import WEIGHT, Array, OnnxCase
from .ort import NoKernel, OrtError, Session
from .verdict import EQUAL, Outcome, Unsupported, Wrong, compare, judged, moved

EXTREMA = frozenset({"ArgMax", "ArgMin", "Hardmax"})
COMPARISONS = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
"""Operators whose result jumps where two numbers are equal."""

TOLERANCE = {"onnx": 2e-5, "tensorrt": 2e-5, "tflite": 1e-4, "to-torch": 2e-5}
"""The error that float32 may cause in any case, by target."""


def respell(graph: Graph, rw: Rewriter) -> None:
    """A pass that changes nothing, but makes the target spell every node instead of copying it."""
    for node in list(graph.nodes):
        if not isinstance(node.op, Opaque):
            rw.replace(node, node.op, node.inputs)


EXACT: dict[str, Any] = {
    "default": None,
    "respell": [respell],
    "fold-respell": ["fold-constants", respell, "prune-dead"],
    "merge-all": "fold-constants,merge-linear{force=true,max-mac-growth=1000,max-growth-mb=64},prune-dead",
    "merge-no-maps": "fold-constants,merge-linear{bias-maps=false},prune-dead",
    "merge-only": "merge-linear",
    "prune-only": "prune-dead",
    "permute": "fold-constants,permute-channels{steps=20},prune-dead",
    "expand": "fold-constants,expand-linear,merge-linear,prune-dead",
    "expand-pw": "expand-linear{form=pw-dw-pw},merge-linear{force=true,max-mac-growth=1000}",
    "pivot": "fold-constants,pivot{method=zeros,blocks=2,force=true},prune-dead",
    "gates": "fold-constants,insert-gates{sites=[*]},prune-dead",
}
"""Pipelines that must not change the function, by name of the job."""

Job = Callable[["Prepared"], None]


@dataclass
class Prepared:
    """A case in a folder, with the outputs of the original.

    Attributes:
        case: The case.
        folder: A folder for files.
        factored: Whether the pipeline writes weights as products. Their zeros come back as rounding units of the
            largest number, so that a judge has to move zeros too.
    """

    case: OnnxCase
    folder: Path
    factored: bool = False

    @cached_property
    def path(self) -> Path:
        """The file."""
        path = self.folder / "model.onnx"
        path.write_bytes(self.case.model.SerializeToString())
        return path

    @cached_property
    def wanted(self) -> list[list[Array]]:
        """The outputs of the original in onnxruntime, for each set of inputs.

        Raises:
            OrtError: If it does not run; such a case is not valid.
        """
        session = Session(self.case.model)
        return [session.run(feeds) for feeds in self.case.feeds]

    def nudged(self, which: int, seed: int) -> list[Array]:
        """The outputs of the original when inputs and weights are changed by rounding units."""
        rng = np.random.default_rng(seed)
        model = onnx.ModelProto()
        model.CopyFrom(self.case.model)
        for stored in model.graph.initializer:
            if stored.name.startswith(WEIGHT):
                array = self._moved(numpy_helper.to_array(stored), rng)
                stored.CopyFrom(numpy_helper.from_array(array, stored.name))
        for node in model.graph.node:
            if node.op_type == "Constant" and node.output[0].startswith(WEIGHT):
                value = node.attribute[0].t
                value.CopyFrom(
                    numpy_helper.from_array(self._moved(numpy_helper.to_array(value), rng))
                )
        feeds = {n: moved(a, rng) for n, a in self.case.feeds[which].items()}
        for (name, kind), array in zip(self.decisive.items(), self._decisive(which), strict=True):
            if array.dtype.kind == "f":
                _move_inside(model.graph, name, kind, _rounding(array, kind, rng))
        return Session(model).run(feeds)

    def _moved(self, weight: Array, rng: np.random.Generator) -> Array:
        near = moved(weight, rng)
        if self.factored and weight.dtype.kind == "f" and weight.size:
            unit = np.finfo(weight.dtype).eps * np.abs(weight).max()
            near = near + (rng.integers(-1, 2, weight.shape) * unit).astype(weight.dtype)
        return near

    @cached_property
    def decisive(self) -> dict[str, str]:
        """Values inside that operators compare, and an operator: equal ones may come out different, whatever the inputs are."""
        inputs = {n for feeds in self.case.feeds for n in feeds}
        inputs |= {t.name for t in self.case.model.graph.initializer}
        found: dict[str, str] = {}
        for node in self.case.model.graph.node:
            kind = _decides(self.case.model, node)
            if kind:
                found |= {n: kind for n in node.input if n and n not in inputs}
        return found

    def _decisive(self, which: int) -> list[Array]:
        if not self.decisive:
            return []
        model = onnx.ModelProto()
        model.CopyFrom(self.case.model)
        del model.graph.output[:]
        model.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, self.decisive))
        return Session(model).run(self.case.feeds[which])

    def check(
        self, run: Callable[[Mapping[str, Array]], list[Array]], target: str, first: bool = False
    ) -> None:
        """Compare a result with the original on all inputs, twice on the first."""
        for which, feeds in enumerate(self.case.feeds[: 1 if first else None]):
            got = run(feeds)
            compare(self.wanted[which], got, TOLERANCE[target], partial(self.nudged, which))
            if which == 0:
                again = run(feeds)
                same = all(
                    np.array_equal(a, c, equal_nan=True) for a, c in zip(got, again, strict=True)
                )
                if not same:
                    raise Wrong("two runs differ", "the same inputs gave other outputs")

    def session(self, model: onnx.ModelProto | Path) -> Session:
        """A session of a result.

        Raises:
            Unsupported: If it is a valid model in float64 that onnxruntime has no kernels for (a convolution).
        """
        try:
            return Session(model)
        except NoKernel as error:
            doubles = any(a.dtype == np.float64 for a in self.case.feeds[0].values())
            if not doubles:
                raise
            onnx.checker.check_model(model, full_check=True)
            raise Unsupported("onnxruntime has no such kernel for float64") from error

    def check_model(self, model: onnx.ModelProto | Path, target: str = "onnx") -> None:
        """Compare an ONNX result with the original."""
        try:
            session = self.session(model)
        except OrtError as error:
            raise Wrong("result does not load", str(error)) from error
        names = [o.name for o in self.case.model.graph.output]
        if session.outputs != names:
            raise Wrong("names of outputs", f"{names} became {session.outputs}")

        def run(feeds: Mapping[str, Array]) -> list[Array]:
            missing = [n for n in session.inputs if n not in feeds]
            if missing or len(session.inputs) != len(feeds):
                raise Wrong("names of inputs", f"{list(feeds)} became {session.inputs}")
            try:
                return session.run(feeds)
            except OrtError as error:
                raise Wrong("result does not run", str(error)) from error

        self.check(run, target)


def _decides(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """The operator of a node, or in the function that it calls, whose result jumps where numbers are equal."""
    kinds = [node.op_type]
    kinds += [n.op_type for f in model.functions if f.name == node.op_type for n in f.node]
    return next((kind for kind in kinds if kind in EXTREMA | COMPARISONS), "")


def _rounding(array: Array, kind: str, rng: np.random.Generator) -> Array:
    """Changes by a rounding unit of each number, or, where the largest of a row is sought, of the largest of all.

    Whole rows of a product can be zero, or equal; a factored weight gives them up to the rounding of its other rows. A comparison
    with a zero is not moved: an operator that is read as another one shows there.
    """
    signs = rng.integers(-1, 2, array.shape).astype(array.dtype)
    size = np.abs(array).max(initial=0) if kind in EXTREMA else np.abs(array)
    return np.asarray(signs * size * np.finfo(array.dtype).eps, array.dtype)


def _move_inside(graph: onnx.GraphProto, name: str, kind: str, changes: Array) -> None:
    """Have nodes that compare read a value with changes added."""
    fresh, stored = f"{name}_moved", f"{name}_changes"
    graph.initializer.append(numpy_helper.from_array(changes, stored))
    readers = [n for n in graph.node if n.op_type == kind or n.domain == "local"]
    for node in readers:
        node.input[:] = [fresh if n == name else n for n in node.input]
    place = next((i + 1 for i, node in enumerate(graph.node) if name in node.output), 0)
    graph.node.insert(place, onnx.helper.make_node("Add", [name, stored], [fresh]))


def _shrunk(it: Prepared, passes: Any, target: str | None = None) -> ShrinkResult:
    before = it.path.read_bytes()
    result = shrink(it.path, passes, target=target)
    if it.path.read_bytes() != before:
        raise Wrong("the input file changed", str(it.path))
    return result


def exact(passes: Any, it: Prepared) -> None:
    """A pipeline that must not change the function."""
    it.factored = "expand-linear" in passes if isinstance(passes, str) else False
    it.check_model(_shrunk(it, passes).model)


def given(it: Prepared) -> None:
    """A model that is given as an object is not changed, and the written file loads."""
    before = it.case.model.SerializeToString(deterministic=True)
    out = it.folder / "out.onnx"
    shrink(it.case.model).save(out)
    if it.case.model.SerializeToString(deterministic=True) != before:
        raise Wrong("the given model changed", "an object that was passed in is different")
    it.check_model(out)


def empty(it: Prepared) -> None:
    """An empty pipeline gives an equal model; nodes that are out of order may be put in order."""
    made = shrink(it.path, [], overridable_initializers=True).model
    want, got = onnx.ModelProto(), onnx.ModelProto()
    want.CopyFrom(it.case.model)
    got.CopyFrom(made)
    for model in (want, got):
        nodes = sorted(model.graph.node, key=lambda n: list(n.output))
        kept = [type(n).FromString(n.SerializeToString()) for n in nodes]
        del model.graph.node[:]
        model.graph.node.extend(kept)
    if want.SerializeToString(deterministic=True) != got.SerializeToString(deterministic=True):
        raise Wrong("empty pipeline", "the model is not equal")


def again(it: Prepared) -> None:
    """Run the pipeline again on its own result."""
    out = it.folder / "once.onnx"
    _shrunk(it, None).save(out)
    it.check_model(shrink(out).model)


def external(it: Prepared) -> None:
    """A file with external data: shrunk to another file, renamed, and shrunk in place."""
    given = it.folder / "external"
    given.mkdir(exist_ok=True)
    source = given / "in.onnx"
    model = onnx.ModelProto()
    model.CopyFrom(it.case.model)
    one = len(model.graph.node) % 2 == 0
    for stored in model.graph.initializer:
        if stored.name.startswith(WEIGHT) and stored.raw_data:
            place = "in.data" if one else f"{stored.name}.bin"
            external_data_helper.set_external_data(stored, place)
    onnx.save_model(external_data_helper.write_external_data_tensors(model, str(given)), source)
    before = {p.name: p.read_bytes() for p in given.iterdir()}
    try:
        it.check_model(source)
    except Wrong as error:
        raise Unsupported("external data: onnxruntime does not load it") from error
    shrink(source).save(given / "out.onnx")
    it.check_model(given / "out.onnx")
    # A copy must not change when the original is overwritten.
    (given / "kept.onnx").write_bytes((given / "out.onnx").read_bytes())
    shrink(source, []).save(given / "out.onnx")
    it.check_model(given / "out.onnx")
    it.check_model(given / "kept.onnx")
    after = {p.name: p.read_bytes() for p in given.iterdir() if p.name in before}
    if after != before:
        raise Wrong("files of the input changed", ", ".join(n for n in before if after.get(n) != before[n]))  # fmt: skip
    shrink(source).save(source)
    it.check_model(source)
    it.check_model(given / "kept.onnx")


def _load_optimised(path: Path) -> None:
    """Load a model as samples are measured, with onnxruntime's optimisations; they abort the process on some models."""
    import onnxruntime

    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def calibrated(passes: str, it: Prepared) -> None:
    """A pass that needs calibration data, on dead and constant channels: its result must be finite."""
    loads = in_child(lambda: judged("load", partial(_load_optimised, it.path)), "load", 60)
    if loads.kind != EQUAL:
        raise Unsupported("onnxruntime's own optimisations fail on the case")
    samples = [{n: np.array(a) for n, a in it.case.feeds[0].items()} for _ in range(3)]
    for sample in samples[1:]:
        for array in sample.values():
            if array.dtype.kind == "f" and array.ndim > 1:
                array[:, 0] = 0
                array[:, 1:2] = 0.5
    try:
        wanted = Session(it.case.model).run(samples[0])
    except OrtError as error:
        raise Unsupported("does not run on constant channels") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        made = shrink(it.path, passes, calibration=samples, on_failure="raise").model
    for stored in made.graph.initializer:
        array = numpy_helper.to_array(stored)
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise Wrong("weights that are not finite", stored.name)
    got = it.session(made).run(samples[0])
    for a, c in zip(wanted, got, strict=True):
        if a.shape != c.shape:
            raise Wrong("shape of an output", f"{a.shape} became {c.shape}")
        if a.dtype.kind == "f" and np.all(np.isfinite(a)) and not np.all(np.isfinite(c)):
            raise Wrong("numbers that are not finite", f"{_count(c)} of {c.size}")


def _count(array: Array) -> int:
    return int(np.sum(~np.isfinite(array)))


CALIBRATED = {
    "wanda": "fold-constants,sparsify{method=wanda},prune-dead",
    "sparsegpt": "fold-constants,sparsify{method=sparsegpt},prune-dead",
    "pivot-search": "fold-constants,pivot{method=search,blocks=2,force=true},prune-dead",
    "pivot-identity": "fold-constants,pivot{method=identity,blocks=2,force=true},prune-dead",
}
"""Pipelines that need calibration data, by name of the job."""


def hoisted(it: Prepared) -> None:
    """After ``hoist-padding``, a merge must not change the outputs.

    A window that is larger than what it reads is outside the standard. onnxruntime rounds the number of its steps
    towards zero and reads beyond the end, so that the result has one step more than the rule of the standard gives.
    """
    if not all(_windows_fit(it.case.model, feeds) for feeds in it.case.feeds):
        return
    options = "{force=true,max-mac-growth=1000,max-growth-mb=64}"
    first = _shrunk(it, f"fold-constants,hoist-padding{options},prune-dead").model
    changed = Prepared(OnnxCase(first, it.case.feeds), it.folder / "hoisted")
    changed.folder.mkdir(exist_ok=True)
    try:
        wanted = changed.wanted
    except OrtError as error:
        raise Wrong("result does not load", str(error)) from error
    for a, c in zip(it.wanted[0], wanted[0], strict=True):
        if a.shape != c.shape or a.dtype != c.dtype:
            raise Wrong("shape of an output", f"{a.shape} became {c.shape}")
    exact(f"merge-linear{options},prune-dead", changed)


def _windows_fit(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> bool:
    """Whether the windows of all pools and convolutions are at most as large as what they read with its padding."""
    nodes = [n for n in model.graph.node if n.op_type in ("Conv", "AveragePool", "MaxPool")]
    made = {name for node in model.graph.node for name in node.output}
    shapes = {name: a.shape for name, a in feeds.items()}
    shapes |= {i.name: tuple(i.dims) for i in model.graph.initializer}
    wanted = sorted({name for node in nodes for name in node.input if name in made})
    if wanted:
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        del shown.graph.output[:]
        shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        arrays = Session(shown).run(feeds)
        shapes |= {name: a.shape for name, a in zip(wanted, arrays, strict=True)}
    return all(_window_fits(node, shapes) for node in nodes)


def _window_fits(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if given.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        return True
    sizes = shapes[node.input[0]][2:]
    rank = len(sizes)
    kernel = given.get("kernel_shape") or shapes[node.input[1]][2:]
    pads = given.get("pads") or [0] * (2 * rank)
    dilations = given.get("dilations") or [1] * rank
    return all(
        n + pads[i] + pads[rank + i] > dilations[i] * (kernel[i] - 1) for i, n in enumerate(sizes)
    )


def tensorrt(it: Prepared) -> None:
    """The file for TensorRT, in onnxruntime."""
    out = it.folder / "trt.onnx"
    profile = [f"{n}:{'x'.join(map(str, a.shape))}" for n, a in it.case.feeds[0].items() if a.ndim]
    free = any(d.dim_param or not d.HasField("dim_value") for i in it.case.model.graph.input for d in i.type.tensor_type.shape.dim)  # fmt: skip
    _shrunk(it, None, "tensorrt").save(out, "tensorrt", profile=tuple(profile) if free else ())
    it.check_model(out, "tensorrt")


def _leaves_range(model: onnx.ModelProto) -> bool:
    """Whether constants produce subnormal numbers."""
    stored = [
        *model.graph.initializer,
        *(a.t for n in model.graph.node for a in n.attribute if a.HasField("t")),
    ]
    sizes = [
        np.abs(numpy_helper.to_array(t))
        for t in stored
        if t.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    ]
    return any(np.any((a > 0) & ((a < 1e-30) | (a > 1e30))) for a in sizes)


def tflite(it: Prepared, **options: Any) -> None:
    """The file for LiteRT, in LiteRT, with XNNPACK and without."""
    from support.litert import KERNELS, interpreter

    if _leaves_range(it.case.model):
        raise Unsupported("XNNPACK computes with zeros for the smallest numbers")
    out = it.folder / "out.tflite"
    fixed = {n: a.shape for n, a in it.case.feeds[0].items()}
    result = shrink(it.path, target="tflite", fixed_shapes=fixed)
    done = result.save(out, **options)
    names = [o.name for o in it.case.model.graph.output]
    orders = done.data
    if list(orders["outputs"]) != names:
        raise Wrong("names of outputs", f"{names} became {list(orders['outputs'])}")
    for kernels in KERNELS:
        try:
            runner = interpreter(out, kernels).get_signature_runner("serving_default")
        except Exception as error:
            raise Wrong("result does not load", str(error)) from error

        def run(feeds: Mapping[str, Array], runner: Any = runner) -> list[Array]:
            ready = {}
            for name, detail in runner.get_input_details().items():
                if name not in feeds:
                    raise Wrong("names of inputs", f"{list(feeds)} became {name}")
                stored = feeds[name].transpose(orders["inputs"][name])
                ready[name] = np.ascontiguousarray(stored.astype(detail["dtype"]))
            try:
                made = runner(**ready)
            except Exception as error:
                raise Wrong("result does not run", str(error)) from error
            ordered = []
            for name, want in zip(names, it.wanted[0], strict=True):
                order = orders["outputs"][name]
                if made[name].ndim != len(order):
                    raise Wrong(
                        "rank of an output",
                        f"{name}: {want.shape} became {made[name].shape}, order {order}",
                    )
                ordered.append(_as(want, np.transpose(made[name], np.argsort(order))))
            return ordered

        it.check(run, "tflite", first=True)


def _as(want: Array, got: Array) -> Array:
    """Convert integers, which are int32 in LiteRT and int64 in ONNX."""
    return got.astype(want.dtype) if want.dtype.kind == got.dtype.kind else got


def to_torch(passes: Any, it: Prepared) -> None:
    """The model as a torch module, in torch, and its copy that went through pickle."""
    import torch

    import graphshrink

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        module = graphshrink.to_torch(it.path, passes)
    given = list(module.meta["inputs"].values())

    def run(feeds: Mapping[str, Array], made: Any = module) -> list[Array]:
        if set(given) - set(feeds):
            raise Wrong("names of inputs", f"{list(feeds)} became {given}")
        try:
            with torch.no_grad():
                found = made(*(torch.from_numpy(np.array(feeds[name])) for name in given))
        except Exception as error:
            raise Wrong("result does not run", f"{error}\n{made.code}") from error
        return [t.detach().numpy() for t in ([found] if isinstance(found, torch.Tensor) else found)]

    it.check(run, "to-torch")
    it.check(partial(run, made=pickle.loads(pickle.dumps(module))), "to-torch", first=True)


def exported(it: Prepared) -> None:
    """The exported program of the target torch, loaded again."""
    import torch

    out = it.folder / "out.pt2"
    result = shrink(it.path, [], target="torch")
    result.save(out)
    names = list(result.model.meta["inputs"].values())
    program = torch.export.load(out).module()

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        given = [torch.from_numpy(np.array(feeds[name])) for name in names]
        try:
            with torch.no_grad():
                found = program(*given)
        except AssertionError as error:
            # torch.export takes sizes of 1 for another case than all others.
            raise Unsupported("torch.export excludes these sizes") from error
        return [t.detach().numpy() for t in ([found] if isinstance(found, torch.Tensor) else found)]

    it.check(run, "to-torch", first=True)


def back(passes: Any, it: Prepared) -> None:
    """The model as a torch module, and that as an ONNX file again."""
    import torch

    import graphshrink

    out = it.folder / "back.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        module = graphshrink.to_torch(it.path)
        given = list(module.meta["inputs"].values())
        example = tuple(torch.from_numpy(np.array(it.case.feeds[0][name])) for name in given)
        notes = shrink(module, passes, example_inputs=example).save(out).notes
    exporter = next((note for note in notes if note.startswith("written by torch's")), None)
    if exporter is not None:
        raise Unsupported(exporter)
    try:
        session = it.session(out)
    except OrtError as error:
        raise Wrong("result does not load", str(error)) from error

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        try:
            return session.run(
                {name: feeds[own] for name, own in zip(session.inputs, given, strict=True)}
            )
        except OrtError as error:
            raise Wrong("result does not run", str(error)) from error

    it.check(run, "to-torch", first=True)


JOBS: dict[str, Job] = {
    **{name: partial(exact, passes) for name, passes in EXACT.items()},
    "given": given,
    "empty": empty,
    "again": again,
    "external": external,
    **{name: partial(calibrated, passes) for name, passes in CALIBRATED.items()},
    "hoisted": hoisted,
    "tensorrt": tensorrt,
    "tflite": tflite,
    "tflite-nchw": partial(tflite, keep_nchw_io=True),
    "to-torch": partial(to_torch, ()),
    "to-torch-default": partial(to_torch, None),
    "to-torch-norms": partial(to_torch, "fresh-norms{layers=*}"),
    "back": partial(back, ()),
    "back-default": partial(back, None),
    "exported": exported,
}

_OTHERS: dict[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tflite": ("tflite", "tflite-nchw"),
    "to-torch": (
        "to-torch",
        "to-torch-default",
        "to-torch-norms",
        "back",
        "back-default",
        "exported",
    ),
}

TARGETS: dict[str, tuple[str, ...]] = {
    "onnx": tuple(n for n in JOBS if not any(n in jobs for jobs in _OTHERS.values())),
    **_OTHERS,
}
"""Jobs by target."""


@contextmanager
def prepared(case: OnnxCase) -> Iterator[Prepared]:
    """A case in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        yield Prepared(case, Path(folder))


def run_job(case: OnnxCase, job: str) -> Outcome:
    """Run one job on a case.

    Raises:
        OrtError: If onnxruntime does not run the case itself.
    """
    with prepared(case) as it:
        it.wanted  # noqa: B018 - raises if the case does not run
        return judged(job, lambda: JOBS[job](it))

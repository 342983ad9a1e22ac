"""The jobs for torch modules: each runs a pipeline or a target, and checks the result."""

from __future__ import annotations

import copy
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from graphshrink import shrink

from .onnx_jobs import EXACT, TOLERANCE, respell
from .ort import OrtError, Session
from .torch_programs import Program
from .verdict import Outcome, Unsupported, Wrong, compare, judged, moved

LIMITS = {torch.float64: 1e-9, torch.float32: 2e-5}
"""The error that is allowed in any case, by element type."""


@dataclass
class Ran:
    """The results of one run: outputs, and the inputs afterwards, which it may have written to."""

    arrays: list[Any]
    form: str


def run_module(model: Any, inputs: tuple[Any, ...]) -> Ran:
    """Run a module on its own copy of the inputs."""
    given = [x.clone() for x in inputs]
    with torch.no_grad():
        leaves, form = tree_flatten(model(*given))
    tensors = [x.detach().clone() for x in leaves if isinstance(x, torch.Tensor)]
    return Ran([x.numpy().copy() for x in [*tensors, *given]], _form(form, leaves))


def _form(spec: Any, leaves: list[Any]) -> str:
    kinds = ["tensor" if isinstance(x, torch.Tensor) else repr(x) for x in leaves]
    return f"{spec} of {', '.join(kinds)}"


@dataclass
class Prepared:
    """A program with the outputs that torch computes.

    Attributes:
        program: The program.
        dtype: The floating-point type.
    """

    program: Program
    dtype: torch.dtype = torch.float64

    @cached_property
    def names(self) -> dict[str, Any]:
        """The names that the source defines."""
        return self.program.loaded()

    def made(self) -> Any:
        """A new instance of the module."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.names["make"](self.dtype)

    def inputs(self, batch: int | None = None) -> tuple[Any, ...]:
        """The inputs, made anew; or so many times the batch."""
        made: tuple[Any, ...] = self.names["inputs"](self.dtype, batch)
        return made

    def wanted(self, inputs: tuple[Any, ...]) -> list[Ran]:
        """The results of two runs of the original."""
        model = self.made()
        return [run_module(model, inputs) for _ in range(2)]

    def nudged(self, inputs: tuple[Any, ...], run: int, seed: int) -> list[Any]:
        """The results of the original when weights and inputs are changed by rounding units."""
        rng, model = np.random.default_rng(seed), self.made()

        def nudge(x: Any) -> Any:
            return torch.from_numpy(moved(x.detach().numpy(), rng))

        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.is_floating_point():
                    tensor.copy_(nudge(tensor))
        given = tuple(nudge(x) for x in inputs)
        return [run_module(model, given) for _ in range(run + 1)][-1].arrays

    def _nudged(self, inputs: tuple[Any, ...], run: int, part: slice, seed: int) -> list[Any]:
        return self.nudged(inputs, run, seed)[part]

    def check(self, model: Any, inputs: tuple[Any, ...]) -> None:
        """Compare two runs of a result with two runs of the original."""
        wanted = self.wanted(inputs)
        for i, want in enumerate(wanted):
            try:
                got = run_module(model, inputs)
            except Exception as error:
                raise Wrong(
                    "result does not run", f"run {i}: {type(error).__name__}: {error}"
                ) from error
            if got.form != want.form:
                raise Wrong("form of the outputs", f"{want.form} became {got.form}")
            count = len(want.arrays) - len(inputs)
            for part, what in (
                (slice(0, count), "wrong numbers"),
                (slice(count, None), "wrong numbers in inputs"),
            ):
                compare(
                    want.arrays[part],
                    got.arrays[part],
                    LIMITS[self.dtype],
                    partial(self._nudged, inputs, i, part),
                    what,
                )

    def check_all(self, model: Any, free: bool) -> None:
        """Compare a result with the original, also with another batch size if the original supports it."""
        self.check(model, self.inputs())
        if not (free and self.program.free):
            return
        other = self.inputs(2)
        try:
            self.wanted(other)
        except Exception:
            return
        try:
            self.check(model, other)
        except Wrong as wrong:
            raise Wrong(f"another batch size: {wrong.kind}", str(wrong)) from wrong


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of a module, to detect changes."""

    facts: dict[str, Any]
    tensors: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """Take the snapshot."""
        facts: dict[str, Any] = {}
        tensors = {}
        for name, module in model.named_modules(remove_duplicate=False):
            facts[f"{name} type"] = type(module)
            facts[f"{name} training"] = module.training
            for key, value in vars(module).items():
                if key in ("_parameters", "_buffers", "_modules"):
                    facts[f"{name}.{key}"] = [(k, id(v)) for k, v in value.items()]
                elif "hooks" in key and isinstance(value, dict):
                    facts[f"{name}.{key}"] = [id(v) for v in value.values()]
                else:
                    # Plain values may be replaced by equal ones.
                    plain = isinstance(value, str | int | float | bool | tuple | list | type(None))
                    facts[f"{name}.{key}"] = repr(value) if plain else id(value)
            for key, value in [*module._parameters.items(), *module._buffers.items()]:
                if value is not None:
                    facts[f"{name}.{key} tensor"] = (
                        value.requires_grad,
                        value._version,
                        value.data_ptr(),
                        value.stride(),
                    )
                    tensors[f"{name}.{key}"] = value.detach().clone()
        return cls(facts, tensors)

    def changed(self, now: Snapshot) -> list[str]:
        """What is not as it was."""
        names = {**self.facts, **now.facts}
        return [name for name in names if self.facts.get(name) != now.facts.get(name)]

    def check(self, now: Snapshot, when: str, by_itself: Sequence[str] = ()) -> None:
        """Compare with a later one.

        Args:
            now: The later snapshot.
            when: What happened in between.
            by_itself: The parts that the module changes itself when it is called.
        """
        changed = [name for name in self.changed(now) if name not in by_itself]
        if changed:
            said = f"{when}: {', '.join(changed[:5])}"
            raise Wrong(f"the given model changed ({when})", said)
        for name, was in self.tensors.items():
            if not torch.equal(was, now.tensors[name]):
                raise Wrong(f"the given model's numbers changed ({when})", f"{when}: {name}")


def _check_parameters(given: nn.Module, result: Any) -> None:
    """No parameter of the result trains unless the given model had one that does."""
    trains = any(p.requires_grad for p in given.parameters())
    # The score of a gate that a pass adds is there to be trained.
    more = [n for n, p in result.named_parameters() if p.requires_grad and ".switch." not in n]
    if more and not trains:
        raise Wrong("frozen weights train", ", ".join(more[:5]))


def whole(passes: Any, it: Prepared, inputs: bool = True, way: str = "module") -> None:
    """A module through a pipeline that must not change the function."""
    model = it.made()
    given: Any = model
    examples = it.inputs()
    if way == "graph":
        if it.program.options or it.program.after:
            raise Unsupported("symbolic_trace: options or hooks")
        try:
            given = torch.fx.symbolic_trace(model)
        except Exception as error:
            raise Unsupported(f"symbolic_trace: {type(error).__name__}") from error
        try:
            it.check_all(given, free=True)
        except Wrong as error:
            raise Unsupported("symbolic_trace: another function") from error
    elif way.startswith("export"):
        given = _exported(model, examples, "free" in way)
    owner = model if way.startswith("export") else given
    before = Snapshot.of(owner)
    shown = examples if inputs and not way.startswith("export") else None
    result = shrink(given, passes, example_inputs=shown, on_failure="raise")
    shrunk = Snapshot.of(owner)
    _check_form(it, examples)
    made = result.model
    # Check numbers first: they are worse than a changed module, and often both occur.
    it.check_all(made, free=way == "module" and not _was_exported(result))
    if way == "export free" and it.program.free and examples[0].shape[0] > 1:
        _check_free(it, given, made)
    before.check(shrunk, "by shrinking")
    if not way.startswith(
        "export"
    ):  # An exported program writes to the buffers of its module itself.
        # Hooks of modules that the result shares may set attributes on them.
        alone = it.made()
        fresh = Snapshot.of(alone)
        run_module(alone, examples)
        by_itself = fresh.changed(Snapshot.of(alone))
        shrunk.check(Snapshot.of(owner), "by running the result", by_itself)
    if way == "module":
        _check_parameters(model, made)


def _check_free(it: Prepared, program: Any, made: Any) -> None:
    """Another batch size, if the exported program supports it."""
    other = it.inputs(2)
    try:
        run_module(program.module(), other)
    except Exception:
        return
    it.check(made, other)


def _was_exported(result: Any) -> bool:
    return any("torch.export was used" in note for note in result.report.notes)


def _check_form(it: Prepared, examples: tuple[Any, ...]) -> None:
    for x, y in zip(it.inputs(), examples, strict=True):
        if not torch.equal(x, y):
            raise Wrong("the example inputs changed", "an array that was passed in is different")


def _exported(model: Any, inputs: tuple[Any, ...], free: bool) -> Any:
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in inputs) if free else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, inputs, dynamic_shapes=shapes)
    except Exception as error:
        raise Unsupported(f"torch.export: {type(error).__name__}") from error


def empty(it: Prepared) -> None:
    """An empty pipeline."""
    whole([], it)


def copied(it: Prepared) -> None:
    """The result can be copied, pickled, and loaded with its own state dict."""
    try:
        copy.deepcopy(it.made())
    except Exception as error:
        raise Unsupported(f"deepcopy: {type(error).__name__}") from error
    result = shrink(it.made(), example_inputs=it.inputs())
    made = result.model
    it.check(copy.deepcopy(made), it.inputs())
    made.load_state_dict(made.state_dict())
    try:
        pickle.dumps(it.made())
    except Exception as error:
        raise Unsupported(f"pickle: {type(error).__name__}") from error
    if not _was_exported(result):
        made = pickle.loads(pickle.dumps(made))
    it.check(made, it.inputs())


def again(it: Prepared) -> None:
    """Run the pipeline again on its own result."""
    first = shrink(it.made(), example_inputs=it.inputs()).model
    it.check(shrink(first, example_inputs=it.inputs()).model, it.inputs())


def masked(it: Prepared) -> None:
    """Weights stay sparse under masks, and ``fold-masks`` makes them ordinary weights."""
    first = shrink(it.made(), "sparsify{n=2,m=4}", example_inputs=it.inputs()).model
    wanted = [run_module(first, it.inputs()) for _ in range(2)]
    made = shrink(first, "fold-masks,prune-dead", example_inputs=it.inputs()).model
    for want in wanted:
        got = run_module(made, it.inputs())
        compare(want.arrays, got.arrays, LIMITS[it.dtype], lambda _, want=want: want.arrays)


def saved(target: str, it: Prepared, **options: Any) -> None:
    """A file, from a module in float32."""
    it = Prepared(it.program, torch.float32)
    inputs = it.inputs()
    want = it.wanted(inputs)[0]
    count = len(want.arrays) - len(inputs)
    if any(
        not np.array_equal(a, x.numpy()) for a, x in zip(want.arrays[count:], inputs, strict=True)
    ):
        raise Unsupported("writes into inputs")
    if target == "tflite" and _leaves_range(it.program.source()):
        raise Unsupported("LiteRT computes with zeros for the smallest numbers")
    suffix = ".tflite" if target == "tflite" else ".onnx"
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = Path(folder) / f"out{suffix}"
        done = shrink(it.made(), example_inputs=inputs, target=target).save(out, target, **options)
        arrays = [x.numpy() for x in inputs]
        got = _tflite(done, arrays) if target == "tflite" else _onnx(out, arrays)
        compare(
            want.arrays[:count],
            got,
            TOLERANCE[target],
            lambda seed: it.nudged(inputs, 0, seed)[:count],
        )
        if target == "onnx" and it.program.free and Session(out).open_batch:
            _other_batch(it, out, count)


def _other_batch(it: Prepared, path: Path, count: int) -> None:
    """A file whose batch size is open, with another batch, if the module takes it."""
    inputs = it.inputs(2)
    try:
        want = it.wanted(inputs)[0].arrays[:count]
    except Exception:
        return
    try:
        got = _onnx(path, [x.numpy() for x in inputs])
        compare(want, got, TOLERANCE["onnx"], lambda seed: it.nudged(inputs, 0, seed)[:count])
    except Wrong as wrong:
        raise Wrong(f"another batch size: {wrong.kind}", str(wrong)) from wrong


def _leaves_range(source: str) -> bool:
    """Whether a module computes with numbers that float32 has not, or has with few digits only."""
    written = [float(text) for text in re.findall(r"\b\d+(?:\.\d+)?e-?\d+\b", source)]
    return any(a and not 1e-30 < a < 1e30 for a in written)


def _onnx(path: Path, arrays: list[Any]) -> list[Any]:
    try:
        session = Session(path)
        if len(session.inputs) != len(arrays):
            raise Wrong("names of inputs", f"{len(arrays)} became {session.inputs}")
        return session.run(dict(zip(session.inputs, arrays, strict=True)))
    except OrtError as error:
        raise Wrong("result does not load", str(error)) from error


def _tflite(done: Any, arrays: list[Any]) -> list[Any]:
    from support.litert import run_saved

    try:
        return run_saved(done, arrays, "builtin")
    except Exception as error:
        raise Wrong("result does not load", str(error)) from error


Job = Callable[[Prepared], None]

JOBS: dict[str, Job] = {
    "default": partial(whole, None),
    "no-inputs": partial(whole, None, inputs=False),
    "respell": partial(whole, [respell]),
    "respell-no-inputs": partial(whole, [respell], inputs=False),
    "graph": partial(whole, None, way="graph"),
    "export": partial(whole, None, way="export"),
    "export-free": partial(whole, None, way="export free"),
    "export-respell": partial(whole, [respell], way="export"),
    "merge-all": partial(whole, EXACT["merge-all"]),
    "permute": partial(whole, EXACT["permute"]),
    "expand": partial(whole, EXACT["expand"]),
    "gates": partial(whole, EXACT["gates"]),
    "pivot": partial(whole, EXACT["pivot"]),
    "empty": empty,
    "copied": copied,
    "again": again,
    "masked": masked,
    "onnx": partial(saved, "onnx"),
    "onnx-13": partial(saved, "onnx", opset=13),
    "tensorrt": partial(saved, "tensorrt"),
    "tflite": partial(saved, "tflite"),
}

RARE = ("onnx", "onnx-13", "tensorrt", "tflite")
"""Jobs that take seconds each."""

TARGETS = {"torch": tuple(JOBS)}
"""Jobs by target."""

OFTEN = ("default", "no-inputs", "respell")
"""Jobs that are run for every case."""


def run_job(program: Program, job: str) -> Outcome:
    """Run one job on a program.

    Raises:
        Exception: If torch does not run the program itself.
    """
    torch.set_num_threads(1)
    it = Prepared(program)
    it.wanted(it.inputs())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return judged(job, lambda: JOBS[job](it))

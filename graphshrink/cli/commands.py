"""The commands: ``shrink``, ``inspect``, ``compare``, ``passes``; see :mod:`.entry` for how they are called."""

from __future__ import annotations

import inspect as inspect_module
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..ir.errors import UsageError, read_number
from .terminal import console, fixed_shapes_of, shapes_of, show, writable, write_json

if TYPE_CHECKING:
    from ..emission import Emission
    from ..ir import Graph

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME:1x3x224x224",
        help="The shape of an input that the model is run on; may be given several times.",
    ),
]
FixedShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--fix-shape",
        metavar="NAME:1x3x224x224",
        help="Fix the sizes of an input in the model (? leaves one as it is); may be given several times.",
    ),
]


def _whole(least: int, most: int) -> Any:
    """The settings of an option that takes whole numbers, written in plain digits."""

    def number(text: str) -> int:
        try:
            found = int(read_number(str(text), int))
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a whole number") from None
        if not least <= found <= most:
            raise typer.BadParameter(f"{text} is not from {least} to {most}")
        return found

    return number


def _share(text: str) -> float:
    """A tolerance: finite, and not below 0."""
    try:
        found = float(read_number(str(text), float))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a finite number") from None
    if found < 0:
        raise typer.BadParameter(f"{text} is below 0")
    return found


_MANY = 2**63 - 1
Seed = Annotated[
    int,
    typer.Option(parser=_whole(0, _MANY), metavar="N", help="The seed of random inputs."),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Data for passes that ask for them, and for --fp16: .npz, or a folder of .npy or images.",
    ),
]
CalibrationSamples = Annotated[
    int | None,
    typer.Option(
        parser=_whole(1, _MANY), metavar="N", help="Take at most so many calibration samples."
    ),
]
CalibrationBatch = Annotated[
    int | None,
    typer.Option(parser=_whole(1, _MANY), metavar="N", help="Run so many of them at a time."),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="How calibration images become samples, such as resize=256,crop=224,"
        "mean=[0.5,0.5,0.5],std=[0.5,0.5,0.5],layout=nchw, or imagenet.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; stands anywhere.")
    ] = False,
) -> None:
    """Make trained networks smaller, and leave them correct.

    'graphshrink IN OUT' is short for 'graphshrink shrink IN OUT'.

    A file that is named like a command is given as ./inspect.
    """
    # Both options are dealt with in cli.main, which also sees what goes wrong before this.


@app.command()
def shrink(
    source: Annotated[str, typer.Argument(metavar="IN", help="The ONNX file to read.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The file to write.")],
    passes: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The pipeline; see 'graphshrink passes'.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run the model before and after every pass.")
    ] = False,
    shapes: Inputs = None,
    fixed: FixedShapes = None,
    overridable: Annotated[
        bool,
        typer.Option(
            "--overridable-initializers",
            help="Keep initializers that are listed as inputs as inputs; without it they are weights.",
        ),
    ] = False,
    calibration: Calibration = None,
    calibration_samples: CalibrationSamples = None,
    calibration_batch: CalibrationBatch = None,
    preprocess: Recipe = None,
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the report as JSON.")
    ] = None,
    as_json: Json = False,
    seed: Seed = 0,
    dump: Annotated[
        str | None,
        typer.Option("--dump-dir", metavar="FOLDER", help="Write the graph after every pass."),
    ] = None,
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            help="Say what was left alone, and why; -vv logs each pass.",
        ),
    ] = 0,
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What to write; without it the suffix of OUT decides."),
    ] = None,
    trt_version: Annotated[
        str | None,
        typer.Option(metavar="N.N", help="tensorrt: the version; the newest known if not given."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:min:opt:max",
            help="tensorrt: sizes of an input, such as x:1x3x224x224:8x3x224x224:32x3x224x224.",
        ),
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="tensorrt: compute in float16 where that is safe.")
    ] = False,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="tensorrt: compute in bfloat16 where that is safe.")
    ] = False,
    keep_float32: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="tensorrt: an operator or node that stays in float32."),
    ] = None,
    float64: Annotated[
        str | None, typer.Option(metavar="MODE", help="tensorrt: refuse float64, or cast it.")
    ] = None,
    allow_op: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="tensorrt: an operator that a plugin of yours does."),
    ] = None,
    build: Annotated[
        bool, typer.Option("--build", help="tensorrt: build the engine and time it (on a GPU).")
    ] = False,
    keep_nchw_io: Annotated[
        bool,
        typer.Option("--keep-nchw-io", help="tflite: inputs and outputs keep their order of axes."),
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="tflite: store weights as float32 or float16."),
    ] = None,
) -> None:
    """Shrink an ONNX file."""
    from ..api import DEFAULT_PIPELINE
    from ..api import shrink as run
    from ..emission import emission
    from ..guarded import KeepData, check_outputs, files_read
    from ..passes import Pipeline
    from .progress import watch_passes

    # Refuse before the work, not after it.
    # By the names of the target's own Options.
    asked = {
        "trt_version": trt_version, "profile": profile, "fp16": fp16, "bf16": bf16,
        "keep_float32": keep_float32, "float64": float64, "allow_op": allow_op,
        "build": build, "keep_nchw_io": keep_nchw_io, "weights": weights,
    }  # fmt: skip
    chosen = emission(out, target, {name: value for name, value in asked.items() if value})
    outputs = [str(file) for file in chosen.files]
    for file in outputs:
        writable(file)
    if report is not None:
        writable(report, text=True)
        outputs.append(report)
    pipeline = Pipeline(DEFAULT_PIPELINE if passes is None else passes)
    check_outputs(chosen, report, source, files_read(calibration, pipeline))
    data = _calibration(calibration, calibration_samples, calibration_batch, preprocess)
    with watch_passes(len(pipeline), verbose=bool(verbose)) as watch:
        result = run(
            source,
            pipeline,
            check=check,
            calibration=data,
            seed=seed,
            shapes=shapes_of(shapes),
            fixed_shapes=fixed_shapes_of(fixed),
            overridable_initializers=overridable,
            dump=dump,
            observers=[watch, KeepData(outputs)],
            target=chosen.target.name,
            progress=watch.progress_within,
        )
        if data is not None and (fp16 or bf16):
            chosen = _with_ranges(chosen, result.graph, data)
        result.emit(chosen)
    if report is not None:
        write_json(report, result.report.to_dict())
    if as_json:
        typer.echo(json.dumps(result.report.to_dict(), indent=1))
    elif verbose or sys.stdout.isatty():
        result.report.render(console(), verbose=bool(verbose))
    else:
        typer.echo(_summary(result.report, out))
        for note in result.report.all_notes:
            typer.echo(f"note: {note}")
    undone = [r.problem for r in result.report.passes if r.rolled_back]
    if undone:
        typer.echo(f"graphshrink: the check failed, rolled back: {'; '.join(undone)}", err=True)
        raise typer.Exit(1)


def _with_ranges(chosen: Emission, graph: Graph, data: Any) -> Emission:
    """A target in low precision sees on the calibration data how large values get."""
    from dataclasses import replace

    from ..data.calibration import named_batches

    return replace(chosen, options=replace(chosen.options, ranges=named_batches(graph, data)))


def _calibration(
    path: str | None, samples: int | None, batch: int | None, preprocess: str | None
) -> Any:
    """The calibration data that the options give, or ``None``."""
    if path is None:
        for option, value in (
            ("--calibration-samples", samples),
            ("--calibration-batch", batch),
            ("--preprocess", preprocess),
        ):
            if value is not None:
                raise UsageError(f"{option} is about calibration data: give --calibration PATH")
        return None
    from ..data.calibration import CalibrationData

    return CalibrationData(path, samples, batch, preprocess)


def _summary(report: Any, out: str) -> str:
    before, after = report.before, report.after
    refused = sum(len(r.refusals) for r in report.passes)
    macs = ""
    if before.macs is not None and after.macs is not None:
        macs = f", {before.macs:,} -> {after.macs:,} MACs"
    checked = [r.error for r in report.passes if r.error is not None]
    error = f", error {max(checked):.1e}" if checked else ""
    return (
        f"{out}: {before.nodes:,} -> {after.nodes:,} nodes, {before.parameters:,} -> "
        f"{after.parameters:,} parameters{macs}{error}; {refused} left alone (-v says why)"
    )


@app.command()
def inspect(
    source: Annotated[
        str, typer.Argument(metavar="MODEL", help="The ONNX or .tflite file to read.")
    ],
    as_json: Json = False,
    text: Annotated[bool, typer.Option("--text", help="Print the whole graph.")] = False,
    trt_log: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Show which weights got sparse kernels, by a log or layer information of trtexec.",
        ),
    ] = None,
    sparsity: Annotated[
        bool,
        typer.Option(
            "--sparsity", help="Say of every weight what N:M sparsity would do to it instead."
        ),
    ] = False,
    pattern: Annotated[
        str | None, typer.Option(metavar="N:M", help="The pattern of --sparsity; 2:4 if not given.")
    ] = None,
) -> None:
    """Show what a model is made of."""
    if source.endswith(".tflite"):
        _inspect_tflite(source, as_json, text)
        return
    from ..api import load
    from ..report import Size, size_table

    if trt_log is not None:
        _sparse_kernels(source, trt_log, as_json)
        return
    if pattern is not None and not sparsity:
        raise UsageError("--pattern goes with --sparsity")
    if sparsity:
        _sparsity(source, pattern, as_json)
        return
    graph, _ = load(source)
    size = Size.of(graph)
    notes = [*graph.notes, *size.notes]
    count, depth = _regions(graph)
    if as_json:
        signature = {
            "inputs": {v.name: str(v.type) for v in graph.inputs},
            "outputs": {
                n: str(v.type) for n, v in zip(graph.output_names, graph.outputs, strict=True)
            },
        }
        structure = {"regions": {"count": count, "depth": depth}, "notes": notes}
        typer.echo(json.dumps({**signature, **vars(size), **structure}, indent=1))
        return
    if text:
        typer.echo(str(graph), nl=False)
        return
    for value in graph.inputs:
        typer.echo(f"input  {value.name}: {value.type}")
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        typer.echo(f"output {name}: {value.type}")
    out = console()
    show(out, size_table(size))
    out.print(f"{count:,} single-entry single-exit regions, nested {depth} deep", highlight=False)
    for note in notes:
        out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _sparse_kernels(source: str, log: str, as_json: bool) -> None:
    """Which weights of a model have the 2:4 pattern, and what TensorRT did with them."""
    from ..api import load
    from ..targets.tensorrt.sidecar import sparse_layers
    from ..targets.tensorrt.trtexec_log import joined, read_report

    report = read_report(log)
    rows = joined(sparse_layers(load(source)[0]), report)
    if as_json:
        found = {key: value for key, value in report.to_dict().items() if key != "layers"}
        typer.echo(json.dumps({**found, "weights": rows}, indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("layer", "shape", "2:4 holds", "eligible", "likely", "engine", "kernel")
    for row in rows:
        marks = ["yes" if row[key] else "no" for key in ("valid", "eligible", "likely")]
        shape = "x".join(map(str, row["shape"]))
        name = escape(", ".join(row["nodes"]))
        kernel = escape(row["kernel"] or "-")
        table.add_row(name, shape, *marks, row["engine"] or "not named", kernel)
    out = console()
    show(out, table)
    time = "" if report.milliseconds is None else f"; {report.milliseconds} ms (median)"
    out.print(
        f"{report.eligible} layers with the pattern in the engine, {report.sparse} of them with sparse "
        f"kernels{time}",
        highlight=False,
        soft_wrap=True,
    )
    if rows and not any(row["engine"] for row in rows):
        typer.echo(f"note: {log} names no node of {source}: is it of this model?")


def _sparsity(source: str, text: str | None, as_json: bool) -> None:
    """The table of ``inspect --sparsity``."""
    from ..api import load
    from ..ir import Pattern
    from ..sparsity import sparsity, sparsity_dict, sparsity_table

    try:
        pattern = Pattern.of(text) if text is not None else Pattern()
    except ValueError as error:
        raise UsageError(f"--pattern: {error}") from error
    rows = sparsity(load(source)[0], pattern)
    if as_json:
        typer.echo(json.dumps(sparsity_dict(rows, pattern), indent=1))
        return
    show(console(), sparsity_table(rows, pattern))


def _inspect_tflite(source: str, as_json: bool, text: bool) -> None:
    from ..running.litert import LiteModel

    if text:
        raise UsageError(f"--text prints graphs of the IR, which {source} does not hold")
    model = LiteModel(Path(source))
    if as_json:
        typer.echo(json.dumps(model.to_dict(), indent=1))
    else:
        model.render(console())


def _regions(graph: Graph) -> tuple[int, int]:
    """How many regions there are in a graph, and how deep they nest."""
    from ..ir.analysis import regions

    root = regions(graph)
    depths = {root: 0}
    for region in root.walk():
        for child in region.children:
            depths[child] = depths[region] + 1
    return len(depths) - 1, max(depths.values())


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="The reference, ONNX or .tflite.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other file.")],
    shapes: Inputs = None,
    data: Annotated[
        str | None, typer.Option(metavar="FILE.npz", help="Inputs by name; else random ones.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            parser=_share,
            metavar="X",
            help="The error allowed, relative to the largest output; 1e-4 for float32 when not given.",
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option(parser=_whole(1, 10**6), metavar="N", help="Timed pairs of runs.")
    ] = 30,
    threads: Annotated[
        int,
        typer.Option(
            parser=_whole(0, 256), metavar="N", help="Threads of the runtime; 0 takes all."
        ),
    ] = 0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare two models: numbers, size, and latency as a paired ratio."""
    from ..running.compare import compare_models

    found = compare_models(
        Path(first),
        Path(second),
        shapes=shapes_of(shapes),
        data=Path(data) if data else None,
        tolerance=tolerance,
        runs=runs,
        threads=threads,
        seed=seed,
    )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        found.render(console(), first, second)
    if not found.equal:
        typer.echo(
            f"graphshrink: the outputs differ by {found.error:.2e}, "
            f"allowed are {found.tolerance:.0e}",
            err=True,
        )
        raise typer.Exit(1)


@app.command()
def passes(as_json: Json = False) -> None:
    """List the passes, ours and those of installed packages."""
    from ..ir.options import option_text, options_of
    from ..passes import known_passes

    rows: list[dict[str, Any]] = []
    for name, cls in known_passes().items():
        doc = inspect_module.getdoc(cls) or ""
        options = [
            {
                "name": option.name,
                "takes": option.takes,
                "default": option_text(option.default),
                "doc": option.help,
            }
            for option in options_of(cls)
        ]
        exactness = str(cls.exactness)
        first = doc.splitlines()[0] if doc else ""
        rows.append({"name": name, "exactness": exactness, "doc": first, "options": options})
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("pass, option=default", "exactness", "what it does")
    for row in rows:
        table.add_row(row["name"], row["exactness"], escape(row["doc"]))
        for option in row["options"]:
            setting = escape(f"  {option['name']}={option['default']}")
            table.add_row(setting, "", escape(option["doc"]))
    show(console(), table)

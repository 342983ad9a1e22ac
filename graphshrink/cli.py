"""The command line: ``graphshrink in.onnx out.onnx``, ``inspect``, ``compare``, ``passes``.

Exit codes: 0 fine, 1 a check failed or two models differ, 2 wrong use or unreadable input.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from .ir.errors import GraphshrinkError, UsageError

COMMANDS = ("shrink", "inspect", "compare", "passes")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make trained networks smaller, and leave them correct. "
    "'graphshrink IN OUT' is short for 'graphshrink shrink IN OUT'.",
)

Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME:1x3x224x224", help="The shape of an input."),
]
Seed = Annotated[int, typer.Option(help="The seed of random inputs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
def shrink(
    source: Annotated[str, typer.Argument(metavar="IN", help="The ONNX file to read.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="The ONNX file to write.")],
    passes: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The pipeline; see 'graphshrink passes'.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run the model before and after every pass.")
    ] = False,
    shapes: Inputs = None,
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the report as JSON.")
    ] = None,
    as_json: Json = False,
    seed: Seed = 0,
    dump: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Write the graph after every pass.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Say what was left alone, and why.")
    ] = False,
) -> None:
    """Shrink an ONNX file."""
    from .api import shrink as run

    _writable(target)
    result = run(source, passes, check=check, seed=seed, shapes=_shapes(shapes), dump=dump)
    result.save(target)
    if report is not None:
        _write_json(report, result.report.to_dict())
    if as_json:
        typer.echo(json.dumps(result.report.to_dict(), indent=1))
    elif verbose or sys.stdout.isatty():
        result.report.render(_console(), verbose=verbose)
    else:
        typer.echo(_summary(result.report, target))
    if result.report.failed:
        undone = ", ".join(r.text for r in result.report.passes if r.rolled_back)
        typer.echo(f"graphshrink: the check failed, rolled back: {undone}", err=True)
        raise typer.Exit(1)


def _summary(report: Any, target: str) -> str:
    before, after = report.before, report.after
    refused = sum(len(r.refusals) for r in report.passes)
    macs = "" if after.macs is None else f", {before.macs:,} -> {after.macs:,} MACs"
    checked = [r.error for r in report.passes if r.error is not None]
    error = f", error {max(checked):.1e}" if checked else ""
    return (
        f"{target}: {before.nodes:,} -> {after.nodes:,} nodes, {before.parameters:,} -> "
        f"{after.parameters:,} parameters{macs}{error}; {refused} left alone (-v says why)"
    )


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="The ONNX file to read.")],
    as_json: Json = False,
    text: Annotated[bool, typer.Option("--text", help="Print the whole graph.")] = False,
) -> None:
    """Show what a model is made of."""
    from .api import load
    from .report import Size, size_table

    graph, _ = load(source)
    size = Size.of(graph)
    if as_json:
        signature = {
            "inputs": {v.name: str(v.type) for v in graph.inputs},
            "outputs": {
                n: str(v.type) for n, v in zip(graph.output_names, graph.outputs, strict=True)
            },
        }
        typer.echo(json.dumps({**signature, **vars(size), "notes": graph.notes}, indent=1))
        return
    if text:
        typer.echo(str(graph), nl=False)
        return
    for value in graph.inputs:
        typer.echo(f"input  {value.name}: {value.type}")
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        typer.echo(f"output {name}: {value.type}")
    _console().print(size_table(size))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="The reference, an ONNX file.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other ONNX file.")],
    shapes: Inputs = None,
    data: Annotated[
        str | None, typer.Option(metavar="FILE.npz", help="Inputs by name; else random ones.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="The error allowed, relative to the largest output.")
    ] = 1e-4,
    runs: Annotated[int, typer.Option(min=1, help="Timed pairs of runs.")] = 30,
    threads: Annotated[int, typer.Option(help="onnxruntime threads; 0 takes all.")] = 0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare two models: numbers, size, and latency in onnxruntime as a paired ratio."""
    from .compare import compare_models

    found = compare_models(
        Path(first),
        Path(second),
        shapes=_shapes(shapes),
        data=Path(data) if data else None,
        runs=runs,
        threads=threads,
        seed=seed,
    )
    if as_json:
        typer.echo(json.dumps(found.to_dict(tolerance), indent=1))
    else:
        found.render(_console(), first, second)
    if found.error > tolerance:
        typer.echo(
            f"graphshrink: the outputs differ by {found.error:.2e}, allowed {tolerance:.0e}",
            err=True,
        )
        raise typer.Exit(1)


@app.command()
def passes(as_json: Json = False) -> None:
    """List the passes, ours and those of installed packages."""
    from .passes import known_passes
    from .passes.base import option_fields, option_text

    rows: list[dict[str, Any]] = []
    for name, cls in known_passes().items():
        options = {f.name.replace("_", "-"): option_text(f.default) for f in option_fields(cls)}
        doc = (cls.__doc__ or "").strip().splitlines()
        rows.append(
            {
                "name": name,
                "exactness": str(cls.exactness),
                "options": options,
                "doc": doc[0] if doc else "",
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("pass", "exactness", "options and defaults", "what it does")
    for row in rows:
        shown = "\n".join(f"{k}={v}" for k, v in row["options"].items())
        table.add_row(row["name"], row["exactness"], escape(shown), escape(row["doc"]))
    _console().print(table)


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=False)


def _shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for text in texts or []:
        name, colon, sizes = text.rpartition(":")
        try:
            shape = tuple(int(d) for d in sizes.split("x"))
        except ValueError:
            shape = ()
        if not colon or not name or not shape or min(shape) < 0:
            raise UsageError(f"--input {text!r} is not NAME:1x3x224x224")
        found[name] = shape
    return found


def _writable(target: str) -> None:
    """Refuse before the work, not after it."""
    path = Path(target)
    if path.suffix != ".onnx":
        raise UsageError(f"cannot write {target}: only .onnx files can be written")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {target}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {target}: the folder {path.parent} is read-only")


def _write_json(path: str, data: Any) -> None:
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=target.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(data, file, indent=1)
        os.replace(name, target)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def main() -> None:
    """The entry point."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if arguments == ["--version"]:
        from . import __version__

        typer.echo(__version__)
        return
    # Two files without a command are the obvious thing.
    if arguments and arguments[0] not in (*COMMANDS, "--help"):
        arguments = ["shrink", *arguments]
    try:
        app(args=arguments, prog_name="graphshrink")
    except GraphshrinkError as error:
        if debug:
            raise
        _fail(str(error), 2)
    except KeyboardInterrupt:
        if debug:
            raise
        _fail("interrupted", 130)
    except MemoryError:
        if debug:
            raise
        _fail("out of memory", 2)
    except Exception as error:
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error} (a fault of ours; --debug shows where)", 2)


def _fail(message: str, code: int) -> None:
    typer.echo("graphshrink: " + " ".join(message.split()), err=True)
    raise SystemExit(code)

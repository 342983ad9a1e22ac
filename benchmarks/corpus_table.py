"""The results of the corpus as Markdown."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from corpus_run import OTHERS, TARGETS

ROUNDING = 1e-4
"""A difference of at most this, or of ten times what onnxruntime's own optimisations make, is rounding."""


@dataclass
class Row:
    """What became of one file.

    Attributes:
        name: The source and the file.
        group: The part of the list that it belongs to.
        found: What each job found, by job; a job that has not run is missing.
    """

    name: str
    group: str
    found: dict[str, dict[str, Any]]

    def nodes(self, tool: str) -> int | None:
        """The number of nodes that a tool leaves."""
        nodes = self.found.get(tool, {}).get("nodes")
        return int(nodes) if nodes is not None else None

    @property
    def fewest(self) -> int | None:
        """The number of nodes that the better of the other tools leaves."""
        return min((n for t in OTHERS if (n := self.nodes(t)) is not None), default=None)

    @property
    def more(self) -> bool:
        """Whether graphshrink leaves more nodes than another tool."""
        ours, best = self.nodes("graphshrink"), self.fewest
        return ours is not None and best is not None and ours > best

    @property
    def is_float(self) -> bool:
        """Whether it is a network of float numbers without control flow, quantised layers and operators of other domains."""
        return self.found.get("original", {}).get("kind") == "float"

    @property
    def grew(self) -> bool:
        """Whether the file is larger than it was."""
        after = self.found.get("graphshrink", {}).get("bytes")
        return after is not None and after > self.found["original"]["bytes"]

    @property
    def why(self) -> str:
        """What the passes say of nodes that they leave."""
        refusals = self.found.get("graphshrink", {}).get("refusals", {})
        sizes = [int(n) for r in refusals for n in re.findall(r"folding would add (\d+) bytes", r)]
        return f"folding would add {sum(sizes)} bytes" if sizes else ""

    @property
    def wrong(self) -> bool:
        """Whether the outputs differ by more than rounding."""
        found = self.found.get("compare", {})
        gap, own = found.get("gap"), found.get("own") or 0.0
        return bool(found.get("wrong")) or (gap is not None and gap > max(ROUNDING, 10 * own))

    @property
    def commits(self) -> str:
        """The commits of graphshrink that were measured."""
        own = ("graphshrink", "compare", *TARGETS)
        keys = (str(self.found[job].get("key", "")) for job in own if job in self.found)
        return ", ".join(dict.fromkeys(key[:7] for key in keys if key))

    @property
    def verdict(self) -> str:
        """How the outputs compare, in a few words."""
        found = self.found.get("compare", {})
        if "graphshrink" in self.found and (problem := self.found["graphshrink"].get("error")):
            return f"not written: {_cell(problem)}"
        if problem := found.get("error"):
            return f"not compared: {_cell(problem)}"
        if found.get("wrong"):
            return f"WRONG: {_cell(found['wrong'])}"
        gap, own = found.get("gap"), found.get("own")
        if gap is None:
            return "not run"
        text = "equal" if gap == 0 else f"{gap:.0e}"
        if gap > ROUNDING and own:
            text += f" (onnxruntime's own: {own:.0e})"
        return f"WRONG: {text}" if self.wrong else text


def _cell(text: str) -> str:
    text = re.sub(r"(?<![\w:/])/\S+/", "", text.removeprefix("ValueError: "))
    return text.replace("|", "/").replace("\n", " ")[:110]


def general(reason: str) -> str:
    """A reason without the names and the numbers of one file."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|%\S+|/\S+", "…", reason)
    return re.sub(r"\d+", "n", text)[:150]


def summary(rows: list[Row]) -> list[str]:
    """The counts of a group of files."""
    run = [r for r in rows if r.nodes("graphshrink") is not None]
    compared = [r for r in run if "gap" in r.found.get("compare", {})]
    lines = [
        f"- {len(rows)} files: {len(run)} written, {len(compared)} compared with the original by onnxruntime, "
        f"{sum(r.wrong for r in rows)} with wrong outputs, {sum(r.grew for r in rows)} that grew"
    ]
    for other in OTHERS:
        pairs = [
            (a, b)
            for r in run
            if (a := r.nodes("graphshrink")) is not None and (b := r.nodes(other)) is not None
        ]
        fewer, more = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
        failed = sum("error" in r.found.get(other, {}) for r in rows)
        lines.append(
            f"- beside {other}: fewer nodes on {fewer}, as many on {len(pairs) - fewer - more}, more on {more}; it fails on {failed}"
        )
    lines.append(f"- more nodes than the better of the two: {sum(r.more for r in run)}")
    for target in TARGETS:
        done = [r.found[target] for r in rows if target in r.found]
        if not done:
            continue
        refused = Counter(general(f["error"]) for f in done if "error" in f)
        floats = [r for r in rows if target in r.found and r.is_float]
        lines.append(f"- {target}: {len(done) - refused.total()} written, {refused.total()} not")
        if floats:
            good = sum("error" not in r.found[target] for r in floats)
            lines.append(
                f"  - of {len(floats)} float networks without control flow, {good} written: {100 * good / len(floats):.0f} %"
            )
        lines += [f"  - {n}x {text}" for text, n in refused.most_common(12)]
    return lines


def _commits(rows: list[Row]) -> str:
    """Which graphshrink was measured."""
    found = {
        what: " and ".join(dict.fromkeys(r.found[job]["key"] for r in rows if job in r.found))
        for what, job in (("graphshrink", "graphshrink"), ("its targets", TARGETS[0]))
    }
    return ", ".join(f"{what} at {key}" for what, key in found.items() if key)


def sections(text: str) -> dict[str, list[str]]:
    """The sections of an earlier table, by title."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip().splitlines() for part in parts}


def table(
    rows: list[Row], versions: str, notes: list[str], before: dict[str, list[str]]
) -> list[str]:
    """All results: the counts of each group, then a line for each file.

    Args:
        rows: The results.
        versions: The versions of the other tools.
        notes: What is said above.
        before: The sections of the earlier table: a group of which nothing was measured keeps its own, with the commits that it names.
    """
    lines = ["# Files that others publish", "", f"{versions}. Nodes without constants.", "", *notes]
    for name in dict.fromkeys(r.group for r in rows):
        group = [r for r in rows if r.group == name]
        title = name.capitalize()
        if not any("graphshrink" in r.found for r in group) and title in before:
            lines += ["", f"## {title}", "", *before[title]]
            continue
        lines += ["", f"## {title}", "", f"{_commits(group)}.", "", *summary(group), ""]
        head = ("file", "before", "graphshrink", *OTHERS, "outputs", *TARGETS, "at")
        lines += [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
        for row in group:
            counts = [
                "fails" if "error" in row.found.get(tool, {}) else "" if row.nodes(tool) is None else str(row.nodes(tool))
                for tool in ("original", "graphshrink", *OTHERS)
            ]  # fmt: skip
            if row.more:
                counts[1] += f" (more: {row.why})" if row.why else " (more)"
            targets = [
                "" if t not in row.found else "no" if "error" in row.found[t] else "yes"
                for t in TARGETS
            ]
            lines.append(
                f"| {' | '.join([_cell(row.name), *counts, row.verdict, *targets, row.commits])} |"
            )
    return lines

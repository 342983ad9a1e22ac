"""The report of a run: sizes before and after, and for each pass its changes, refusals and output error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .bodies import bodies_of
from .cli.terminal import Name, show
from .ir import Dequantize, Exactness, Graph, Rewrite, Value
from .ir.errors import listed
from .not_understood import NotUnderstood, summary
from .passes import PassRecord
from .tables import html_of, text_of
from .targets.emitted import Emitted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SCHEMA = 1
"""The version of the JSON form."""


def _is_measured(record: PassRecord) -> bool:
    """Whether the check, or the pass itself on its data, measured how much the outputs changed."""
    return record.error is not None or any("loss" in r.measures for r in record.rewrites)


@dataclass(frozen=True)
class Size:
    """The size of a graph.

    Attributes:
        nodes: The number of nodes.
        ops: The number of nodes by op.
        parameters: The number of elements of all floating-point constants in use, and of weights that are stored as integers.
        bytes: The bytes of all constants in use.
        macs: Multiply-accumulates of one run; ``None`` if a shape is unknown.
        unsized: The first node whose shapes are unknown, if ``macs`` is ``None``.
        uncounted: Whether bodies of If, Loop or Scan have MACs, which ``macs`` does not count.
    """

    nodes: int
    ops: dict[str, int]
    parameters: int
    bytes: int
    macs: int | None
    unsized: str | None = None
    uncounted: bool = False

    @property
    def notes(self) -> list[str]:
        """Why MACs are unknown, or what they leave out; empty if they are known."""
        if self.unsized is not None:
            return [f"MACs are unknown, because the shapes at {self.unsized} are unknown"]
        if self.uncounted:
            return [
                "MACs do not count the bodies of If, Loop and Scan: how often they run depends on numbers"
            ]
        return []

    @classmethod
    def of(cls, graph: Graph, captured: Container[str] = ()) -> Size:
        """The size of a graph; a symbolic batch size counts as 1. Constants with the host names ``captured`` do not count."""
        ops: Counter[str] = Counter()
        macs, unsized = 0, None
        for node in graph.nodes:
            ops[node.op_name] += 1
            found = node.macs
            if found is None and unsized is None:
                unsized = f"{node.op.name} {node.name}"
            macs += found or 0
        read = {
            v: v.data
            for v in graph.constants
            if v.data is not None and v.use_count and v.host not in captured
        }
        return cls(
            nodes=len(graph),
            ops=dict(sorted(ops.items())),
            parameters=sum(t.size for v, t in read.items() if t.dtype.is_float or _is_weight(v)),
            bytes=sum(t.nbytes for t in read.values()),
            macs=macs if unsized is None else None,
            unsized=unsized,
        )


def _is_weight(value: Value) -> bool:
    """Whether integers stand for numbers of floating point."""
    return any(isinstance(node.op, Dequantize) and i == 0 for node, i in value.uses)


def size_with_bodies(graph: Graph) -> Size:
    """The size of a graph, with the nodes and constants of the bodies in it. Their MACs depend on how often they run and do not count."""
    size = Size.of(graph)
    for body in bodies_of(graph):
        inner = Size.of(body.graph, body.captured)
        size = replace(
            size,
            nodes=size.nodes + inner.nodes,
            ops=dict(sorted((Counter(size.ops) + Counter(inner.ops)).items())),
            parameters=size.parameters + inner.parameters,
            bytes=size.bytes + inner.bytes,
            uncounted=size.uncounted or inner.uncounted or inner.macs != 0,
        )
    return size


@dataclass(repr=False)
class Report:
    """The report of a run; ``print(report)`` shows its tables.

    Attributes:
        pipeline: The passes, as a pipeline text.
        before: The size of the graph before the first pass.
        after: The size of the graph after the last pass.
        passes: One record for each pass.
        notes: Remarks on the model, such as optimizations that unknown shapes or types prevent.
        emitted: The files and notes of the target; ``None`` until it has written them.
        not_understood: The nodes that are still opaque after the passes, grouped.
        calibration_used: Whether something used the calibration data that were given; ``None`` if none were.
        planned: Whether a plan chose the passes, which measured what they lose.
        recovered: Whether a training behind the passes measured what they lose.
    """

    pipeline: str
    before: Size
    after: Size
    passes: list[PassRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    emitted: Emitted | None = None
    not_understood: list[NotUnderstood] = field(default_factory=list)
    calibration_used: bool | None = None
    planned: bool = False
    recovered: bool = False

    @property
    def changed(self) -> bool:
        """Whether a pass changed something and was not rolled back."""
        return any(r.rewrites and not r.rolled_back for r in self.passes)

    @property
    def failed(self) -> bool:
        """Whether a pass failed the check and was rolled back."""
        return any(r.rolled_back for r in self.passes)

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes on the model that was read, then those on the file that was written."""
        return (*self.notes, *(self.emitted.notes if self.emitted else ()))

    @property
    def _inexact(self) -> list[PassRecord]:
        return [
            r
            for r in self.passes
            if r.rewrites and r.exactness is not Exactness.EXACT and not r.rolled_back
        ]

    @property
    def approximate(self) -> list[str]:
        """The passes that changed the function of the model: its outputs are no longer equal up to rounding."""
        return [r.text for r in self._inexact]

    @property
    def unchecked(self) -> list[str]:
        """The passes that changed the function of the model by an amount that nobody measured."""
        measured = self.planned or self.recovered
        return [] if measured else [r.text for r in self._inexact if not _is_measured(r)]

    @property
    def warnings(self) -> list[str]:
        """What was not understood, not used or not checked, one line each."""
        found = [summary(self.not_understood)] if self.not_understood else []
        if self.calibration_used is False:
            found.append(
                "no pass used the calibration data: plans, quantize, sparsify, reconstruct, drop-blocks, pivot, remove-activations and prune-channels{method=variance} do, "
                "and targets that measure ranges"
            )
        if self.unchecked:
            found.append(
                f"{listed(self.unchecked)} changed the model's function, and nobody measured by how much: "
                "--check does (check=True in Python)"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON; ``schema`` increases when the meaning changes."""
        return {
            "schema": SCHEMA,
            "pipeline": self.pipeline,
            "before": vars(self.before),
            "after": vars(self.after),
            "passes": [
                {
                    "pass": r.text,
                    "exactness": str(r.exactness),
                    "seconds": r.seconds,
                    "error": number(r.error),
                    "rolled_back": r.rolled_back,
                    "problem": r.problem,
                    "rewrites": [
                        {
                            "what": w.what,
                            "nodes": list(w.nodes),
                            "exactness": str(w.exactness),
                            "measures": w.measures,
                        }
                        for w in r.rewrites
                    ],
                    "refusals": [
                        {"node": f.node, "op": f.op, "reason": f.reason} for f in r.refusals
                    ],
                }
                for r in self.passes
            ],
            "notes": list(self.notes),
            "not_understood": [entry.to_dict() for entry in self.not_understood],
            "calibration_used": self.calibration_used,
            "unchecked": self.unchecked,
            "emitted": None
            if self.emitted is None
            else {
                "files": [str(path) for path in self.emitted.files],
                "notes": list(self.emitted.notes),
                **self.emitted.data,
            },
        }

    @property
    def summary(self) -> str:
        """The sizes before and after, in a few words."""
        before, after = self.before, self.after
        macs = ""
        if before.macs is not None and after.macs is not None:
            macs = f", {before.macs:,} -> {after.macs:,} MACs"
        return (
            f"{before.nodes:,} -> {after.nodes:,} nodes, {before.parameters:,} -> {after.parameters:,} "
            f"parameters{macs}"
        )

    def __repr__(self) -> str:
        return f"<Report {self.summary}>"

    def __str__(self) -> str:
        return text_of(self.render)

    def _repr_html_(self) -> str:
        return html_of(self.render)

    def render(self, console: Console, *, verbose: bool = False) -> None:
        """Print tables: sizes, passes, and with ``verbose`` every rewrite and refusal."""
        from rich.markup import escape
        from rich.table import Table

        show(console, size_table(self.before, self.after))
        table = Table("pass", "changes", "left alone", "exactness", "seconds", "error")
        for r in self.passes:
            table.add_row(
                Name(r.text),
                f"{len(r.rewrites)}{' (rolled back)' if r.rolled_back else ''}",
                str(len(r.refusals)),
                str(r.exactness),
                "-" if r.seconds is None else f"{r.seconds:.3f}",
                "not checked" if r.error is None else f"{r.error:.1e}",
            )
        show(console, table)
        if verbose:
            for r in self.passes:
                for (what, kind), nodes in _grouped(
                    ((w.what, str(w.exactness)), _measured(w)) for w in r.rewrites
                ):
                    console.print(escape(f"{r.text}: {what} ({kind}): {nodes}"), soft_wrap=True)
                for (reason, op), nodes in _grouped(((f.reason, f.op), f.node) for f in r.refusals):
                    line = f"{r.text}: left {op} {nodes}: {reason}"
                    console.print(escape(line), soft_wrap=True)
        elif any(r.refusals for r in self.passes):
            console.print("Some nodes were left alone; -v shows them with the reasons.")
        for r in self.passes:
            if r.problem:
                kind = "rolled back" if r.rolled_back else "note"
                console.print(escape(f"{kind}: {r.problem}"), soft_wrap=True)
        for entry in self.not_understood if verbose else ():
            console.print(escape(f"not understood: {entry}"), soft_wrap=True)
        warnings = self.warnings[bool(self.not_understood) :] if verbose else self.warnings
        for note in (*warnings, *self.all_notes):
            console.print(escape(f"note: {note}"), soft_wrap=True)


def number(value: float | None) -> float | str | None:
    """A number for JSON, which has no infinity: that becomes the text ``"infinite"``."""
    return "infinite" if value == math.inf else value


def _measured(rewrite: Rewrite) -> str:
    """The nodes of a rewrite, and its measures."""
    nodes = ", ".join(rewrite.nodes)
    measures = ", ".join(f"{name} {value:.3g}" for name, value in rewrite.measures.items())
    return f"{nodes} ({measures})" if measures else nodes


def _grouped(pairs: Any) -> list[tuple[tuple[str, str], str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return [
        (key, "; ".join(names[:8]) + (f"; and {len(names) - 8} more" if len(names) > 8 else ""))
        for key, names in groups.items()
    ]


def size_table(
    before: Size, after: Size | None = None, titles: tuple[str, str] = ("before", "after")
) -> Table:
    """A table of one size, or of two side by side."""
    from rich.markup import escape
    from rich.table import Table

    sizes = [before] if after is None else [before, after]
    table = Table("")
    for title in ["count"] if after is None else titles:
        table.add_column(Name(title), justify="right")
    table.add_row("nodes", *(f"{s.nodes:,}" for s in sizes))
    table.add_row("parameters", *(f"{s.parameters:,}" for s in sizes))
    table.add_row("bytes of constants", *(f"{s.bytes:,}" for s in sizes))
    table.add_row("MACs", *("unknown" if s.macs is None else f"{s.macs:,}" for s in sizes))
    for op in sorted({op for s in sizes for op in s.ops}):
        table.add_row(f"  {escape(op)}", *(f"{s.ops.get(op, 0):,}" for s in sizes))
    return table

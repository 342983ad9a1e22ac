"""Findings on disk: one folder each, with a report and the smallest case as files that can be run again."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from .onnx_graphs import OnnxCase
from .verdict import Outcome

if TYPE_CHECKING:  # ONNX cases do not need torch.
    from .torch_programs import Program

Case: TypeAlias = "OnnxCase | Program"


def describe(case: Case) -> str:
    """A description of a case."""
    if not isinstance(case, OnnxCase):
        return case.source()
    model = onnx.printer.to_text(case.model)
    with np.printoptions(precision=6, threshold=64, floatmode="maxprec"):
        feeds = "\n".join(
            f"{n} = {a.dtype}{list(a.shape)} {a.ravel()[:64]}"
            for f in case.feeds
            for n, a in f.items()
        )
    return f"{model}\n{feeds}\n"


def signature(case: Case) -> str:
    """A key of a minimised case: equal for equal faults."""
    if not isinstance(case, OnnxCase):
        lines = [
            re.sub(r"\d+", "#", line) for step in case.steps for line in (*step.init, *step.lines)
        ]
        return "; ".join([*lines, *case.after])[:200]
    return " ".join(sorted(node.op_type for node in case.model.graph.node))[:200]


def write(folder: Path, seed: int, front: str, outcome: Outcome, case: Case) -> Path:
    """Write a finding; returns its folder."""
    word = re.sub(r"[^A-Za-z0-9]+", "-", outcome.what)[:40].strip("-")
    place = folder / f"{outcome.kind}-{front}-{outcome.job}-{word}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    if not isinstance(case, OnnxCase):
        (place / "model.py").write_text(case.source())
        (place / "program.json").write_text(case.to_json())
    else:
        onnx.save(case.model, place / "model.onnx")
        for i, feeds in enumerate(case.feeds):
            np.savez(place / f"feeds{i}.npz", **feeds)
    (place / "outcome.json").write_text(
        json.dumps({"seed": seed, "front": front, **asdict(outcome)}, indent=1)
    )
    (place / "report.txt").write_text(
        f"{outcome.kind} in job {outcome.job}: {outcome.what}\n"
        f"seed {seed}: cd tests && python -m fuzz --front {front} --seed {seed} --job {outcome.job}\n"
        f"smallest case: cd tests && python -m fuzz --replay {place}\n\n{outcome.detail}\n\n{describe(case)}"
    )
    return place


def read(place: Path) -> tuple[dict[str, Any], Case]:
    """Read a finding from its folder."""
    outcome = json.loads((place / "outcome.json").read_text())
    if outcome["front"] == "torch":
        from .torch_programs import Program

        return outcome, Program.from_json((place / "program.json").read_text())
    feeds = [dict(np.load(file)) for file in sorted(place.glob("feeds*.npz"))]
    return outcome, OnnxCase(onnx.load(place / "model.onnx"), feeds)

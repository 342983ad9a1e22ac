"""The transfer benchmark: how rows are taken together and compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def transfer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import transfer

    yield transfer
    for name in ("transfer", "transfer_networks", "package_networks", "depth_vs_width"):
        sys.modules.pop(name, None)


def row(kind: str, wanted: float, accuracy: float, speed: float, seed: int = 0) -> dict[str, Any]:
    latency = {"onnxruntime, batch 1": {"speedup": speed, "milliseconds": 1 / speed}}
    return {
        "kind": kind, "wanted": wanted, "seed": seed, "accuracy": accuracy, "macs": 1, "convolutions": 1, "latency": latency,
    }  # fmt: skip


def test_seeds_are_averaged_and_the_best_rival_counts(transfer: Any) -> None:
    records = [
        row("base", 1, 0.9, 1), row("plan", 2, 0.88, 2.1), row("plan", 2, 0.86, 2.1, 1), row("plan", 3.5, 0.85, 3.4),
        row("taylor", 2, 0.80, 2), row("taylor", 2, 0.84, 2, 1), row("uniform", 2, 0.70, 2.2),
        row("plan, long", 2, 0.99, 2),
    ]  # fmt: skip
    found = transfer.groups(records)
    plan = next(g for g in found if g["kind"] == "plan" and g["wanted"] == 2)
    assert (plan["seeds"], plan["accuracy"], plan["low"]) == (2, pytest.approx(87), 86)
    text = transfer.verdicts(found)
    assert "plan 87.00 % at 2.10x, taylor 82.00 % at 2.00x: +5.00 points" in text
    assert "plan for 3.5x is 1.70 times as fast, +3.00 points" in text
    assert "uniform" not in text
    assert "99" not in text
    assert "87.00 % (86.00 to 88.00)" in transfer.table(found)


def test_blends_go_from_the_region_to_its_replacement(transfer: Any) -> None:
    module = nn.Module()
    for name in ("blend_old0", "blend_new0", "other"):
        module.register_buffer(name, torch.full((1,), 0.25))
    blends = transfer.Blends(module, 4)
    seen = []
    for _ in range(5):
        seen.append((float(module.blend_old0), float(module.blend_new0)))
        blends.step()
    assert seen[0] == (1, 0)
    assert seen[2] == pytest.approx((0.5, 0.5))
    assert seen[4] == (0, 1)
    assert float(module.other) == 0.25
    again = transfer.Blends(module, 4)
    again.load_state_dict({"done": 2})
    assert float(module.blend_new0) == pytest.approx(0.5)

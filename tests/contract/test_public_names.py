"""The public names: adding one is a promise, and removing one breaks it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module

import pytest

import graphshrink

PUBLIC = {
    "graphshrink": """
        Advice Augmentation CalibrationData Context DEFAULT_PIPELINE Exactness GateSchedule Graph GraphshrinkError
        MissingExtra ModelError Pass PassError Pipeline Plan Recovered RecoveredFile Report Rewriter ShrinkResult
        TokenAugmentation TrainingError UsageError advise gate_penalty gates insert_blocks insert_gates keep_top kept_at
        plan recover recover_file register removal_savings reorder_alike save_removal_plan shrink shrink_graph to_torch
    """,
    "graphshrink.passes": """
        Accumulator ActivationMoments CALIBRATION_DATA Calibration ChannelMoments ChannelStats Check CheckFailed
        Condition Context Deduplicate DropBlocks Dump ExpandLinear FoldConstants FoldMasks FreshNorms FuseDense FuseMoves
        FusePatterns Gram GramMatrix HoistPadding InputMoments InputStats InsertGates KNOWN_RANKS MaskBlocks
        MergeLinear MoveScales NO_GATES NO_LASTING_MASKS Observer Pass PassError PassLike PassRecord PermuteChannels
        Pipeline Pivot PruneChannels PruneDead PushPads Quantize REFERENCE Reconstruct RemovalPlan RemoveActivations RemoveNoops Repeat
        Requantize Request Sparsify Timing Verify known_passes register relative_error
    """,
}
MODULES = ("accuracy", "datasets", "errors", "ir", "nn", "passes", "processes")
NEED_TORCH = {"datasets", "nn", "processes"}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module: str) -> None:
    found = import_module(module)
    assert sorted(found.__all__) == PUBLIC[module].split()
    for name in found.__all__:
        assert getattr(found, name) is not None


def test_dir_shows_the_public_names_and_modules() -> None:
    shown = {name for name in dir(graphshrink) if not name.startswith("__")}
    assert shown == {*PUBLIC["graphshrink"].split(), *MODULES}
    assert "__version__" in dir(graphshrink)
    for name in MODULES:
        if name in NEED_TORCH:
            pytest.importorskip("torch", reason="pip install 'graphshrink[torch]'")
        assert getattr(graphshrink, name) is import_module(f"graphshrink.{name}")
    with pytest.raises(AttributeError, match="'graphshrink' has no attribute 'everything'"):
        _ = graphshrink.everything


def test_dir_imports_nothing_heavy() -> None:
    code = (
        "import json, sys, graphshrink; dir(graphshrink)\n"
        "print(json.dumps([m for m in ('numpy', 'onnx', 'torch', 'typer', 'rich') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []

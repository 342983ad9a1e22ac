"""The cores of a process, and the threads that onnxruntime is given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from graphshrink.ir.processors import session_threads, usable_cores
from support.cli import small_model

ON_ONE_CORE = """
import os, sys
from pathlib import Path
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from graphshrink.running.sessions import session
print(session(Path(sys.argv[1])).get_session_options().intra_op_num_threads)
"""


def test_all_cores_are_left_to_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "cpu_count", usable_cores)
    assert session_threads() == 0
    assert session_threads(3) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: usable_cores() + 1)
    assert session_threads() == usable_cores()


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2,
    reason="needs Linux and two cores",
)
def test_a_process_on_one_core_prints_no_errors(tmp_path: Path) -> None:
    model = small_model(tmp_path / "in.onnx")
    run = subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE, str(model)], capture_output=True, text=True, check=True
    )
    assert (run.stdout.strip(), run.stderr) == ("1", "")

"""Each frontend can be imported first, before the rest of the package."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("reader", ["onnx", "torch"])
def test_each_frontend_is_imported_first_in_a_process_of_its_own(reader: str) -> None:
    pytest.importorskip(reader)
    code = f"import graphshrink.frontends.{reader}.importer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

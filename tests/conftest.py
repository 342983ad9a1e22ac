"""Property tests draw the same cases every time, so that a run can be repeated."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def onnx_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the ONNX exports of one session share."""
    return tmp_path_factory.mktemp("zoo")

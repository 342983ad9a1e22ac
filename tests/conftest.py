"""Property tests draw the same cases every time, so that a run can be repeated."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def onnx_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the ONNX exports of one session share."""
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="session")
def cases() -> list[Any]:
    """The node tests of the onnx package, which take a while to collect."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    assert len(found) > 1500
    return list(found)

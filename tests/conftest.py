"""What all tests share: repeatable property tests, exported networks, and visible skips where torch is missing."""

import os
import pickle
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

# Small tensors lose more to waking threads than they gain, and every worker would wake all cores. torch reads this
# when it is imported; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore these, and programs that tests start and interrupt inherit that.
for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

NO_TORCH = "torch is not installed: pip install 'graphshrink[torch]'"

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def onnx_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the ONNX exports of one session share, whichever process makes them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "zoo"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_tables(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Latencies and scores of tests are not kept in the user's cache, nor read from there."""
    os.environ["GRAPHSHRINK_LATENCY_DB"] = str(tmp_path_factory.mktemp("tables") / "t.sqlite")


@pytest.fixture(scope="session")
def cases(onnx_files: Path) -> list[Any]:
    """The node tests of the onnx package, which takes five seconds to compute them: once a session."""
    path = onnx_files / "cases.pickle"
    if path.exists():
        return list(pickle.loads(path.read_bytes()))
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(collect_testcases(None))
    assert len(found) > 1500
    # As with the exports, another process may be at it too.
    made = onnx_files / f"cases-{os.getpid()}.pickle"
    made.write_bytes(pickle.dumps(found, protocol=pickle.HIGHEST_PROTOCOL))
    made.replace(path)
    return found


def pytest_runtest_setup() -> None:
    """Let torch.onnx build its table of operators once a process, not, for half a second, at every export."""
    made: Any = sys.modules.get("torch.onnx._internal.exporter._registration")
    build = getattr(getattr(made, "ONNXRegistry", None), "from_torchlib", None)
    if build is not None and not hasattr(build, "cache_info"):
        made.ONNXRegistry.from_torchlib = staticmethod(cache(build))


class _SkipWithoutTorch(MetaPathFinder):
    """Skips a test module that imports torch, as ``pytest.importorskip`` does, while it is being collected.

    What the tests do later gets the plain error of a missing package.
    """

    def __init__(self) -> None:
        self.collecting = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if fullname == "torch" and self.collecting:
            pytest.skip(NO_TORCH, allow_module_level=True)


if find_spec("torch") is None:
    _finder = _SkipWithoutTorch()
    sys.meta_path.insert(0, _finder)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[Any]:
        """Say so where a module cannot be collected for want of torch."""
        _finder.collecting = isinstance(collector, pytest.Module)
        try:
            return (yield)
        finally:
            _finder.collecting = False

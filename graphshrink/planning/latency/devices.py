"""Devices that graphs are timed on: a runtime, the hardware that it uses, and a number of threads.

A runtime is imported only when its device is requested.
"""

from __future__ import annotations

import platform
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...hosts.torch import is_from_torch
from ...ir import Graph, MissingExtra, UsageError
from ...ir.errors import one_line
from .standalone import random_array, with_torch_host
from .timing import Clock, own_clock

Call = Callable[[], object]


class Device(ABC):
    """Runs graphs to time them.

    Attributes:
        name: The argument of :func:`device`.
        threads: The number of threads of the runtime; 0 uses all cores.
        hardware: ``"cpu"`` or ``"gpu"``; only one process at a time measures on each.

    Args:
        threads: The number of threads.
    """

    name: ClassVar[str]
    hardware: ClassVar[str] = "cpu"

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    @cached_property
    def identity(self) -> str:
        """The description of the device in signatures: name, version of the runtime, processor, threads."""
        return f"{self.name} {self.version()}, {self.processor()}, {self.threads} threads"

    @property
    def own_clock(self) -> Clock | None:
        """A clock that stands still while other processes have the processor, if the calling thread computes everything."""
        return own_clock() if self.threads == 1 and self.hardware == "cpu" else None

    @abstractmethod
    def version(self) -> str:
        """The version of the runtime."""

    @abstractmethod
    def load(self, graph: Graph) -> Call:
        """Load a graph; returns a call that runs it once on random inputs and waits for the result.

        Raises:
            ModelError: If the graph cannot be written for the runtime, or does not run.
            UsageError: If the shape of an input is not known.
        """

    def processor(self) -> str:
        """The name of the CPU or GPU model."""
        return _processor()

    @contextmanager
    def set_up(self) -> Iterator[None]:
        """A context with the process-wide settings of the runtime that graphs need."""
        yield

    def __repr__(self) -> str:
        return f"device({self.name!r}, {self.threads})"


def _processor() -> str:
    """The name of the CPU model, as reported by the system."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _arrays(graph: Graph) -> dict[str, Any]:
    """Random inputs by name.

    Raises:
        UsageError: If the shape of an input is not known.
    """
    from ...running.inputs import random_inputs

    return random_inputs(graph)


class _OrtCpu(Device):
    """onnxruntime on the CPU."""

    name = "ort-cpu"

    def version(self) -> str:
        return str(import_module("onnxruntime").__version__)

    def load(self, graph: Graph) -> Call:
        from ...running.sessions import run_session, session

        arrays = _arrays(graph)
        with _written_onnx(graph) as path:
            loaded = session(path, self.threads, graph.name)
        # torch's exporter renames inputs, but keeps their order.
        names = [port.name for port in loaded.get_inputs()]
        if set(names) != set(arrays):
            arrays = dict(zip(names, arrays.values(), strict=True))
        feeds = arrays
        run_session(loaded, feeds, graph.name)
        return lambda: loaded.run(None, feeds)


@contextmanager
def _written_onnx(graph: Graph) -> Iterator[Path]:
    """A temporary ONNX file of a graph."""
    from ...targets.onnx.emitter import save_onnx

    with tempfile.TemporaryDirectory(prefix="graphshrink-") as folder:
        path = Path(folder) / "timed.onnx"
        save_onnx(graph, path)
        yield path


class _LiteRtCpu(Device):
    """LiteRT with XNNPACK on the CPU."""

    name = "litert-cpu"

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        try:
            import_module("ai_edge_litert.interpreter")
        except ImportError as error:
            raise MissingExtra("the device litert-cpu", "tflite", "ai-edge-litert") from error

    def version(self) -> str:
        from importlib.metadata import version

        return version("ai-edge-litert")

    def load(self, graph: Graph) -> Call:
        from ...readers import HostReaders
        from ...running.litert import LiteModel
        from ...targets.options import TFLiteOptions
        from ...targets.tflite import save

        with tempfile.TemporaryDirectory(prefix="graphshrink-") as folder:
            path = Path(folder) / "timed.tflite"
            save(graph, path, TFLiteOptions(), HostReaders())
            model = LiteModel(path, self.threads)
        rng = np.random.default_rng(0)
        model.feed({port.name: random_array(port.type, rng) for port in model.inputs})
        model.invoke()
        return model.invoke


class _Torch(Device):
    """torch in eager mode, without gradients."""

    kind: ClassVar[str]

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        try:
            self._torch: Any = import_module("torch")
        except ImportError as error:
            raise MissingExtra(f"the device {self.name}", "torch", "torch") from error

    def version(self) -> str:
        return str(self._torch.__version__)

    @contextmanager
    def set_up(self) -> Iterator[None]:
        before = self._torch.get_num_threads()
        if self.threads:
            self._torch.set_num_threads(self.threads)
        try:
            with self._torch.no_grad():
                yield
        finally:
            self._torch.set_num_threads(before)

    def load(self, graph: Graph) -> Call:
        from ...ir import ModelError
        from ...running.inputs import fx_inputs
        from ...targets.torch.emitter import to_fx

        if not is_from_torch(graph):
            from .standalone import standalone

            graph = with_torch_host(standalone(graph, own_weights=True))
        # A copy, because moving a module to a device moves its weights, which belong to the caller.
        module = import_module("copy").deepcopy(to_fx(graph)).eval().to(self.kind)
        held = graph.host.inputs
        inputs = [
            x.to(self.kind) if isinstance(x, self._torch.Tensor) else x
            for x in (fx_inputs(graph) if held is None else held)
        ]
        wait = self._torch.cuda.synchronize if self.kind == "cuda" else lambda: None

        def run() -> None:
            module(*inputs)
            wait()

        try:
            with self._torch.no_grad():
                run()
        except Exception as error:
            raise ModelError(f"torch cannot run {graph.name}: {one_line(error)}") from error
        return run


class _TorchCpu(_Torch):
    name = "torch-cpu"
    kind = "cpu"


class _TorchCuda(_Torch):
    name = "torch-cuda"
    kind = "cuda"
    hardware = "gpu"

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        if not self._torch.cuda.is_available():
            raise UsageError(
                "the device torch-cuda needs a GPU and a build of torch with CUDA; torch finds none: "
                "use torch-cpu, or install torch for CUDA (https://pytorch.org)"
            )

    def processor(self) -> str:
        return str(self._torch.cuda.get_device_name())


class _TensorRt(Device):
    """TensorRT through polygraphy; inputs and outputs are in GPU memory."""

    name = "tensorrt"
    hardware = "gpu"

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        try:
            import_module("tensorrt")
        except ImportError as error:
            raise UsageError(
                "the device tensorrt needs NVIDIA's package tensorrt and a GPU: pip install tensorrt"
            ) from error
        try:
            import_module("polygraphy")
        except ImportError as error:
            raise MissingExtra("the device tensorrt", "tensorrt", "polygraphy") from error

    def version(self) -> str:
        return str(import_module("tensorrt").__version__)

    def processor(self) -> str:
        torch = import_module("torch") if _has_torch_cuda() else None
        return "GPU" if torch is None else str(torch.cuda.get_device_name())

    def load(self, graph: Graph) -> Call:
        from ...ir import ModelError

        trt = import_module("polygraphy.backend.trt")
        cuda = import_module("polygraphy.cuda")
        try:
            with _written_onnx(graph) as path:
                engine = trt.engine_from_network(trt.network_from_onnx_path(str(path)))
            runner = trt.TrtRunner(engine)
            runner.activate()
            feeds = {
                name: cuda.DeviceArray(a.shape, a.dtype).copy_from(np.ascontiguousarray(a))
                for name, a in _arrays(graph).items()
            }

            def run() -> object:
                return runner.infer(feeds, check_inputs=False, copy_outputs_to_host=False)

            run()
        except Exception as error:
            raise ModelError(f"TensorRT cannot run {graph.name}: {one_line(error)}") from error
        return run


def _has_torch_cuda() -> bool:
    try:
        return bool(import_module("torch").cuda.is_available())
    except ImportError:
        return False


_CLASSES: tuple[type[Device], ...] = (_OrtCpu, _LiteRtCpu, _TorchCpu, _TorchCuda, _TensorRt)
DEVICES: dict[str, type[Device]] = {cls.name: cls for cls in _CLASSES}
"""The devices by name."""


def device(name: str, threads: int = 1) -> Device:
    """The device with a name.

    Args:
        name: A name of :data:`DEVICES`.
        threads: The number of threads of the runtime; 0 uses all cores. GPUs ignore it.

    Raises:
        UsageError: If there is no such device, or its hardware is missing on this machine.
        MissingExtra: If its runtime is not installed.
    """
    if name not in DEVICES:
        raise UsageError(f"there is no device {name!r}; devices are {', '.join(DEVICES)}")
    if threads < 0:
        raise UsageError(f"threads={threads}: give 0 (all cores) or more")
    return DEVICES[name](threads)

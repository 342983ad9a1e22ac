"""A run on fake tensors: the types of all results, and whether the module writes to its own tensors.

A module whose shapes depend on numbers (``x.nonzero()``, ``x.reshape(n.item(), -1)``) does not run on fake tensors. It runs on the example inputs
themselves, on copies of its tensors, and what depends on numbers has no known sizes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_map

from ... import ir
from ...hosts.torch.calls import call_name
from ...hosts.torch.copies import ModuleCopy, containers_kept
from ...hosts.torch.dtypes import DTYPES
from ...ir import ModelError, TensorType
from .modules import hooked
from .sizes import is_plain
from .trace import StateError, version_of, writes_tensors


class DoesNotRun(ModelError):
    """A traced module does not run on its inputs."""


class FakeRun(fx.Interpreter):
    """Runs the graph on fake tensors and keeps the type of every result.

    The module's own tensors are fakes too, and modules that could change themselves are copies.
    """

    def __init__(self, module: fx.GraphModule, mode: Any) -> None:
        super().__init__(module)
        self.mode = mode
        self.found: dict[str, TensorType] = {}
        self.results: dict[str, Any] = {}
        self.copies: dict[int, nn.Module] = {}
        self.fakes: dict[int, tuple[str, Any, int]] = {}
        self.in_rows: dict[str, bool] = {}
        self.lengths: dict[str, int] = {}
        self.by_numbers: set[str] = set()
        """The nodes whose results have shapes, or are sizes, that depend on numbers."""

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and note the type of its result."""
        result = super().run_node(n)
        if n.op.startswith("call_") and call_name(n.target) in ("embedding", "embedding_bag"):
            # With max_norm they write to their table; the emitted call does the same, so this is no lost state.
            self.fakes = {k: (name, f, version_of(f)) for k, (name, f, _) in self.fakes.items()}
        if is_plain(result):
            self.results[n.name] = result
        # An in-place call may change a tensor's shape later: keep the type, not the tensor.
        self.found[n.name] = type_of(result)
        if isinstance(result, (tuple, list)):
            self.lengths[n.name] = len(result)
        if isinstance(result, torch.Tensor):
            self.in_rows[n.name] = result.is_contiguous()
        return result

    def fetch_attr(self, target: str) -> Any:
        """A fake of a tensor of the module, or a copy of a submodule."""
        found = super().fetch_attr(target)
        if isinstance(found, torch.Tensor):
            return self._fake(found, target)
        known = type(found).__module__.startswith("torch.nn.modules.") and not hooked(found)
        if known or not isinstance(found, nn.Module):
            return found
        if id(found) not in self.copies:
            shared = ModuleCopy(found)
            names = {id(t): f"{target}.{name}" for name, t in shared.tensors.items()}
            made = ModuleCopy(found, lambda t: self._fake(t, names[id(t)]))
            self.copies[id(found)] = made.module
        return self.copies[id(found)]

    def _stand_in(self, found: torch.Tensor) -> Any:
        """What is computed with in place of a tensor of the module."""
        return self.mode.from_tensor(found)

    def _fake(self, found: torch.Tensor, name: str) -> Any:
        if id(found) not in self.fakes:
            fake = self._stand_in(found)
            self.fakes[id(found)] = name, fake, version_of(fake)
        return self.fakes[id(found)][1]

    def written(self) -> list[str]:
        """The module's tensors that were written to."""
        return [name for name, fake, version in self.fakes.values() if version_of(fake) != version]


class RealRun(FakeRun):
    """Runs the graph on numbers, and finds which shapes depend on them: those of calls that do not run on fakes of their arguments."""

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; nothing is noted of sizes that depend on numbers."""
        result = super().run_node(n)
        if any(s.name in self.by_numbers for s in n.all_input_nodes) or not self._runs_on_fakes(n):
            self._forget_sizes(n)
        return result

    def _stand_in(self, found: torch.Tensor) -> Any:
        return found.detach().clone()

    def _runs_on_fakes(self, n: fx.Node) -> bool:
        if not n.op.startswith("call_"):
            return True
        from torch._subclasses.fake_tensor import FakeTensorMode

        mode = FakeTensorMode(allow_non_fake_inputs=True)

        def faked(found: Any) -> Any:
            return mode.from_tensor(found) if isinstance(found, torch.Tensor) else found

        args, kwargs = self.fetch_args_kwargs_from_env(n)
        try:
            with unlogged(), mode, torch.no_grad():
                getattr(self, n.op)(n.target, *tree_map(faked, (args, kwargs)))
        except Exception:  # Whatever torch raises where numbers decide.
            return False
        return True

    def _forget_sizes(self, n: fx.Node) -> None:
        self.by_numbers.add(n.name)
        self.results.pop(n.name, None)
        kind = self.found[n.name]
        self.found[n.name] = kind.with_shape((None,) * (kind.rank or 0)) if kind.shape else kind


def shapes_of(module: fx.GraphModule, inputs: Sequence[Any]) -> dict[str, TensorType]:
    """The types of all results, from a run on fake tensors.

    Raises:
        DoesNotRun: If it does not run.
        StateError: If it writes to its own tensors.
    """
    return fake_run(module, inputs).found


def fake_run(module: fx.GraphModule, inputs: Sequence[Any]) -> FakeRun:
    """Run a module on fakes of its inputs.

    Raises:
        DoesNotRun: If it does not run.
        StateError: If it writes to its own tensors.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs]
    interpreter = FakeRun(module, mode)
    try:
        with unlogged(), containers_kept(module), mode, torch.no_grad():
            interpreter.run(*fakes)
    except Exception:
        # Shapes depend on numbers, or a call runs on numbers alone: torch refuses fake masks of bytes.
        interpreter = RealRun(module, None)
        given = [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in inputs]
        try:
            with unlogged(), containers_kept(module), torch.no_grad():
                interpreter.run(*given)
        except Exception as error:
            raise _does_not_run(error) from error
    if interpreter.written():
        raise StateError(writes_tensors(interpreter.written()))
    return interpreter


def _does_not_run(error: Exception) -> DoesNotRun:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DoesNotRun(f"the module does not run on example_inputs: {first}")


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep torch from logging sizes that do not fit, which are expected here, with tracebacks as errors."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def type_of(found: Any) -> TensorType:
    """The IR type of a torch tensor (fake ones too); unknown for anything else."""
    if not isinstance(found, torch.Tensor):
        return ir.UNKNOWN
    dims: list[ir.Dim] = [d if isinstance(d, int) else str(d) for d in found.shape]
    return TensorType(DTYPES.get(found.dtype), tuple(dims))

"""Which sizes follow the inputs: the module runs on fake tensors again, with one axis of the inputs after another longer or shorter.

A size that is another one in such a run is no property of the module, so no weight may be computed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ...hosts.torch.copies import containers_kept
from ...ir import TensorType
from .fake_run import FakeRun, unlogged
from .runs import Resized, Runs


def resized_runs(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    found: Mapping[str, TensorType],
    batch_alone: bool = False,
) -> Runs:
    """Run a module with other sizes of its inputs, as far as it runs with them.

    Args:
        module: The module, which ran on the inputs before.
        inputs: The example inputs.
        found: The types of all results for them.
        batch_alone: Only batches have other sizes.
    """
    sizes = {
        (i, axis): size
        for i, x in enumerate(inputs)
        if isinstance(x, torch.Tensor)
        for axis, size in enumerate(x.shape)
    }
    batch = [place for place in sizes if place[1] == 0]
    rest = [place for place in sizes if place[1] > 0 and not batch_alone]
    made: list[Resized] = []
    if batch and (run := _run(module, inputs, batch, _OTHER, batch=True)) is not None:
        made.append(run)
    alone = {place: _runs(module, inputs, [place]) for place in rest}
    made += [run for runs in alone.values() for run in runs]
    # Axes that only run together: of two inputs, or of images that have to be square.
    stuck = [place for place, runs in alone.items() if not runs]
    groups: dict[int, list[tuple[int, int]]] = {}
    for place in stuck:
        groups.setdefault(sizes[place], []).append(place)
    for group in groups.values():
        if len(group) > 1 and (runs := _runs(module, inputs, group)):
            made += runs
            stuck = [place for place in stuck if place not in group]
    images = [(i, axis) for i, axis in stuck if axis > 1]
    if len(images) > 1:
        made += _runs(module, inputs, images)
    return Runs(found, tuple(made))


class OtherBatch:
    """The types of a module's results for a batch of another size, from a run that is made when they are first asked for."""

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Any], runs: Runs) -> None:
        """Keep a module.

        Args:
            module: The module, which ran on the inputs before.
            inputs: The example inputs.
            runs: The runs that were made already.
        """
        self._module, self._inputs = module, inputs
        self._found = next((run.found for run in runs.resized if run.batch), None)
        self._asked = self._found is not None

    def __call__(self) -> Mapping[str, TensorType] | None:
        """The types by the names of the host's nodes; ``None`` if the module does not run with another size."""
        if not self._asked:
            self._asked = True
            sizes = {
                (i, 0): x.shape[0]
                for i, x in enumerate(self._inputs)
                if isinstance(x, torch.Tensor) and x.ndim
            }
            # Inputs with another first axis than the first one may be no batches.
            own = [place for place in sizes if sizes[place] == next(iter(sizes.values()))]
            for some in (list(sizes), own) if len(own) < len(sizes) else (own,):
                run = _run(self._module, self._inputs, some, _OTHER, batch=True) if some else None
                if run is not None:
                    self._found = run.found
                    break
        return self._found


Change = Callable[[int], int]

_OTHER: tuple[Change, ...] = (
    lambda size: 2 * size + 1,
    lambda size: 2 * size,
    lambda size: size // 2,
)
"""Other sizes to run with; odd sizes first, which tell more apart."""

_SMALL: tuple[Change, ...] = (lambda size: min(2, size - 1), lambda size: size // 2)
"""Small sizes, which tell apart what is cut off at a number: ``x[:, :16]`` follows only smaller sizes."""


def _runs(
    module: fx.GraphModule, inputs: Sequence[Any], places: Sequence[tuple[int, int]]
) -> list[Resized]:
    """The runs with another and with a small size of some axes; none where no other size runs."""
    other = _run(module, inputs, places, _OTHER)
    if other is None:
        return []
    small = _run(module, inputs, places, _SMALL)
    return [other] if small is None else [other, small]


def _run(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    places: Sequence[tuple[int, int]],
    changes: Sequence[Change],
    *,
    batch: bool = False,
) -> Resized | None:
    """A run with the first change of the sizes of some axes that runs; ``None`` where none does."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for change in changes:
        if any(not change(inputs[i].shape[axis]) > 0 for i, axis in places):
            continue
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        ran = FakeRun(module, mode)
        try:
            with unlogged(), containers_kept(module), mode, torch.no_grad():
                fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs]
                for i, axis in places:
                    fakes[i] = _of_size(fakes[i], axis, change(fakes[i].shape[axis]))
                ran.run(*fakes)
        except Exception:  # Whatever torch raises for sizes that do not fit.
            continue
        return Resized(batch, ran.found, ran.results)
    return None


def _of_size(x: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """A tensor with another size of one axis, in the same order in memory."""
    own = x.shape[axis]
    times, rest = divmod(size, own)
    parts = [x] * times + ([x.narrow(axis, 0, rest)] if rest else [])
    return torch.cat(parts, axis)

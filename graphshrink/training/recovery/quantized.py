"""Recovery of torch modules in integers: the module becomes a quantised ONNX model, which is trained and written back.

The passes of ``quantize=`` run on the ONNX model of the given module, so that the weights that are rounded in training are those that ship: merged
kernels, with batch norms folded into them. That model becomes a module (:mod:`graphshrink.targets.torch.trainable`) whose quantisation passes
gradients (:mod:`.fake_quantization`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.data import DistributedSampler

from ...ir import Graph, ModelError, UsageError
from ...ir.errors import counted, listed
from ...readers import HostReaders
from ...targets.torch.trainable import Trainable
from .fake_quantization import make_differentiable, zeros_of
from .loop import Unpack, unpacked
from .randomness import own_randomness, seed_all, seed_of
from .zeros import Zeros

PASSES = "default,quantize"
"""What ``quantize=True`` runs: layers are merged before they are quantised."""

SAMPLES = 512
"""The number of samples of the loader that ranges are measured on, if no calibration data are given."""


@dataclass(frozen=True)
class QuantizedStudent:
    """A quantised network that is trained.

    Attributes:
        trainable: The module, and where its numbers belong in the model.
        zeros: A callback that keeps weights zero that were zero before rounding.
        digest: What a checkpoint must agree with: the quantised model before the training.
        notes: What the user should know, one sentence each.
    """

    trainable: Trainable
    zeros: Zeros
    digest: str
    notes: list[str]

    @property
    def module(self) -> nn.Module:
        """The module in training."""
        return self.trainable.module

    def graph(self) -> Graph:
        """The graph of the model with the trained numbers, as integers."""
        from .files import reread

        return reread(self.trainable.trained())


def quantized_student(
    module: nn.Module,
    passes: bool | str,
    batches: Iterable[Any],
    unpack: Unpack | None,
    calibration: Any,
    seed: int,
) -> QuantizedStudent:
    """Quantise a module, which does not change, for training.

    Args:
        module: The module.
        passes: True for :data:`PASSES`, or a text of passes.
        batches: The batches of the training; the first ones are the samples without ``calibration``.
        unpack: As for :func:`graphshrink.recover`.
        calibration: Samples for ranges; as for :func:`graphshrink.shrink`.
        seed: The seed of the order of batches.

    Raises:
        UsageError: If the passes quantise nothing, or there are no batches.
        ModelError: If the module cannot be read, or torch cannot express the quantised model.
    """
    from ...targets.onnx.emitter import to_onnx
    from .files import quantised

    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    samples = _samples(module, batches, unpack, seed)
    floats, returned = _as_onnx(module, samples[0])
    data = calibration
    if data is None:
        data = [tuple(_array(x) for x in sample) for sample in samples]
    text = PASSES if passes is True else str(passes)
    graph, prepared, notes = quantised(floats, text, data)
    trainable = Trainable(graph, HostReaders())
    masks = zeros_of(prepared, trainable)
    made = make_differentiable(trainable)
    _return_like(trainable.module, returned)
    kept = {made.names.get(name, name): mask for name, mask in masks.items()}
    if frozen:
        notes.append(
            f"the quantised module trains all weights, also those made of {counted(len(frozen), 'frozen parameter')}: {listed(frozen[:3])}"
        )
    if trainable.frozen:
        notes.append(
            f"{counted(len(trainable.frozen), 'weight')} of the quantised model cannot be trained, because nodes compute them or several share "
            f"them: {listed(trainable.frozen[:3])}"
        )
    if made.stopped:
        notes.append(
            f"what is in front of {counted(len(made.stopped), 'quantised value')} learns from other paths alone: {listed(made.stopped[:3])}"
        )
    content = to_onnx(graph).SerializeToString(deterministic=True)
    digest = hashlib.sha256(content).hexdigest()
    return QuantizedStudent(trainable, Zeros(trainable.module, kept), digest, notes)


def _samples(
    module: nn.Module, batches: Iterable[Any], unpack: Unpack | None, seed: int
) -> list[tuple[torch.Tensor, ...]]:
    """The arguments of the module in the first batches.

    Raises:
        UsageError: If there are no batches, or arguments that are no tensors.
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    generator = getattr(batches, "generator", None)
    known = generator if isinstance(generator, torch.Generator) else None
    state = None if known is None else known.get_state()
    found: list[tuple[torch.Tensor, ...]] = []
    with own_randomness(device), _first_share(batches):
        seed_all(seed_of(seed, "calibration"))
        if known is not None:
            known.manual_seed(seed_of(seed, "calibration"))
        count = 0
        for batch in batches:
            inputs, _ = unpacked(batch, unpack, device)
            if not inputs or not all(isinstance(x, torch.Tensor) for x in inputs):
                raise UsageError(
                    "quantize needs a module whose arguments are tensors: give unpack, a function that converts a batch to (inputs, labels)"
                )
            found.append(tuple(x.detach() for x in inputs))
            count += max((len(x) for x in inputs if x.dim()), default=1)
            if count >= SAMPLES:
                break
    if known is not None and state is not None:
        known.set_state(state)
    if not found:
        raise UsageError("the loader yields nothing: it has no batches")
    return found


@contextmanager
def _first_share(batches: Iterable[Any]) -> Iterator[None]:
    """Let all processes see the batches of the first one, so that they measure the same ranges."""
    sampler = getattr(batches, "sampler", None)
    if not isinstance(sampler, DistributedSampler):
        yield
        return
    rank, sampler.rank = sampler.rank, 0
    try:
        yield
    finally:
        sampler.rank = rank


def _array(tensor: torch.Tensor) -> Any:
    """The numbers of a sample.

    Raises:
        UsageError: If they are bfloat16, which NumPy does not have.
    """
    if tensor.dtype is torch.bfloat16:
        raise UsageError(
            "the batches are bfloat16, and only float32 is quantised: give the module and the batches in float32"
        )
    return tensor.cpu().numpy()


def _return_like(made: fx.GraphModule, returned: Any) -> None:
    """Let a module, which returns a tensor or a tuple of tensors, return them in the containers of another one.

    Args:
        made: The module; it is changed.
        returned: What the other module returns.

    Raises:
        UsageError: If there are other containers than tuples, lists and dicts, or another number of tensors.
    """
    output = next(node for node in made.graph.nodes if node.op == "output")
    values = tree_leaves(output.args[0])
    leaves, shape = tree_flatten(returned)
    tensors = [isinstance(leaf, torch.Tensor) for leaf in leaves]
    if sum(tensors) != len(values) or not _plain(returned):
        raise UsageError(
            "quantize needs a module that returns a tensor, or tensors in tuples, lists and dicts: it returns "
            f"a {type(returned).__name__} with {counted(sum(tensors), 'tensor')}, of which {len(values)} are results of its ONNX model"
        )
    rest = iter(values)
    nodes = [next(rest) if t else leaf for t, leaf in zip(tensors, leaves, strict=True)]
    output.args = (tree_unflatten(nodes, shape),)
    made.recompile()


def _plain(data: Any) -> bool:
    """Whether tensors are in containers that FX can return."""
    if isinstance(data, dict):
        return type(data) is dict and all(map(_plain, data.values()))
    if isinstance(data, tuple | list):
        return all(map(_plain, data))
    return data is None or isinstance(data, torch.Tensor | bool | int | float | str)


def _as_onnx(module: nn.Module, example: tuple[torch.Tensor, ...]) -> tuple[Graph, Any]:
    """The graph of the module's ONNX file, as it is in evaluation mode, and what the module returns.

    Raises:
        ModelError: If it cannot be written as ONNX.
    """
    from ...api import load, shrink

    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with tempfile.TemporaryDirectory(prefix="graphshrink-") as folder:
            path = Path(folder) / "module.onnx"
            shrink(module, "", example_inputs=example).save(path)
            with torch.no_grad():
                returned = module(*example)
            return load(path)[0], returned
    except (ModelError, UsageError) as error:
        raise ModelError(f"the module cannot be quantised: {error}") from error
    finally:
        for each, training in modes.items():
            each.training = training


__all__ = ["QuantizedStudent", "quantized_student"]

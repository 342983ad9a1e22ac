"""What is asked of torch models before they are read: inputs by name, and models and files that cannot be read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .ir import ModelError, UsageError

_FILES = {
    ".pt2": "an exported program: load it by torch.export.load in Python and give the program to graphshrink.shrink",
    ".pt": "a file of torch: build the model in Python, load its weights and give the module to graphshrink.shrink",
}
_FILES |= dict.fromkeys((".pth", ".ckpt", ".pts", ".safetensors"), _FILES[".pt"])


def not_a_torch_file(path: str, error: ModelError) -> ModelError:
    """The error for a file that is no ONNX model; one for files of torch if the suffix is one of theirs."""
    known = _FILES.get(Path(path).suffix.lower())
    if known is None or not Path(path).is_file():
        return error
    return ModelError(
        f"{path} is no ONNX model but seems to be {known}, with example_inputs; or export it by torch.onnx.export"
    )


def check_torch_model(model: Any, kinds: set[str]) -> None:
    """Refuse torch models whose calls or numbers are not there.

    Args:
        model: The module.
        kinds: The full names of its classes.

    Raises:
        UsageError: If it is TorchScript, or has tensors without numbers.
    """
    if any(kind.startswith("torch.jit.") for kind in kinds):
        raise UsageError(
            "the model is TorchScript, which is not read: give the nn.Module that it was made from, or export that to ONNX"
        )
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named():
            if tensor.is_meta:
                raise UsageError(
                    f"{name} is on the meta device and has no numbers: call model.to_empty(device='cpu') and load the weights first"
                )


def positional(model: Any, inputs: Any) -> tuple[Any, ...]:
    """Example inputs as positional ones.

    Args:
        model: A module, or an exported program.
        inputs: A tuple or list of inputs, one input, or a dict by names of arguments of ``forward``.

    Raises:
        UsageError: If arguments in front of a named one have no default, or one can only be given by keyword.
    """
    if isinstance(inputs, tuple):
        return inputs
    if isinstance(inputs, list):
        return tuple(inputs)
    forward = getattr(model, "forward", None)
    if not isinstance(inputs, Mapping) or not inputs or forward is None:
        return (inputs,)
    named = inspect.signature(forward).parameters
    taken = {name: p for name, p in named.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    alone = [n for n in inputs if n in named and named[n].kind is named[n].KEYWORD_ONLY]
    if alone and inputs.keys() <= named.keys():
        raise UsageError(
            f"forward takes {alone[0]} by keyword alone: wrap the module in one that takes it by place"
        )
    if not inputs.keys() <= taken.keys():
        return (inputs,)  # A dict that is an input itself.
    last = max(list(taken).index(name) for name in inputs)
    found = []
    for name, p in list(taken.items())[: last + 1]:
        if name not in inputs and p.default is p.empty:
            raise UsageError(f"example_inputs lack {name!r}, which forward needs")
        found.append(inputs.get(name, p.default))
    return tuple(found)

"""Masks that last: weights that stay pruned while they are trained, as parametrizations of ordinary torch modules.

``module.weight`` becomes ``where(mask, original, 0)``: what an optimizer does to the original (momentum, weight decay,
any update at all) never shows where the mask is false, and no gradient arrives there. Masks are buffers, so that
``state_dict``, devices and DistributedDataParallel know them. torch's own parametrized modules refuse to be pickled, and
their copies share one class, which breaks both when one is unparametrized; ours pickle, and copies are apart.

:func:`fold_masks` makes ordinary modules again, and exporting does that by itself. :func:`rewind` sets what
survived to an earlier checkpoint (Frankle and Carbin, "The lottery ticket hypothesis", ICLR 2019; Renda et al., "Comparing
rewinding and fine-tuning in neural network pruning", ICLR 2020).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ....ir import MissingExtra, ModelError, Pattern, Reduction, UsageError


class Mask(nn.Module):
    """The parametrization: a weight that is zero where the mask is false.

    Args:
        mask: Where the weight is kept.
        pattern: The N:M pattern that the mask has; ``None`` for an unstructured mask.
        reduction: How the weight is summed over; needed for a pattern.
    """

    mask: torch.Tensor

    def __init__(
        self,
        mask: torch.Tensor,
        pattern: Pattern | None = None,
        reduction: Reduction | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.bool))
        self.pattern, self.reduction = pattern, reduction

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight where it is kept, zero elsewhere."""
        return torch.where(self.mask, weight, weight.new_zeros(()))

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """What is assigned to the weight becomes the original; the mask stays."""
        return weight

    def holds(self) -> bool:
        """Whether the mask has its pattern; true for an unstructured one."""
        if self.pattern is None or self.reduction is None:
            return True
        return self.reduction.holds(self.mask.cpu().numpy(), self.pattern)

    @property
    def density(self) -> float:
        """The part that is kept."""
        return float(self.mask.double().mean())

    def extra_repr(self) -> str:
        """The pattern."""
        return f"{self.pattern or 'unstructured'}, keeps {self.density:.1%}"


class Constant(nn.Module):
    """A matrix that is no weight of a module of torch: ``forward()`` gives it."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self) -> torch.Tensor:
        """The matrix."""
        return self.weight


def mask_weight(module: nn.Module, mask: Mask | torch.Tensor, name: str = "weight") -> nn.Module:
    """Let a weight of a module stay zero where a mask is false; the parameter keeps its identity.

    Args:
        module: The module, which is changed.
        mask: The mask, of the weight's shape.
        name: The weight.

    Raises:
        UsageError: If the module has no such weight, or the mask has another shape.
    """
    weight = getattr(module, name, None)
    mask = mask if isinstance(mask, Mask) else Mask(mask)
    if not isinstance(weight, torch.Tensor):
        raise UsageError(f"{type(module).__name__} has no weight {name!r} to mask")
    if weight.shape != mask.mask.shape:
        raise UsageError(
            f"a mask of shape {tuple(mask.mask.shape)} for {name} of {tuple(weight.shape)}"
        )
    parametrize.register_parametrization(module, name, mask.to(weight.device), unsafe=True)
    _mend(module)
    return module


def mask_of(module: nn.Module, name: str = "weight") -> Mask | None:
    """The mask of a weight, if that mask is all that it is parametrized by."""
    if not parametrize.is_parametrized(module, name):
        return None
    found = list(module.parametrizations[name])  # type: ignore[index,arg-type]
    return found[0] if len(found) == 1 and isinstance(found[0], Mask) else None


def only_masked(module: nn.Module) -> bool:
    """Whether masks are all that a module's tensors are parametrized by."""
    return all(mask_of(module, name) is not None for name in _parametrized(module))


def _parametrized(module: nn.Module) -> list[str]:
    """The names of a module's tensors that are computed from others."""
    # A module of an exported program may only be called so.
    return list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The class of a module without its parametrizations."""
    return type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)


def masks(module: nn.Module) -> Iterator[tuple[str, Mask]]:
    """All masks of a module and its children, by the dotted name of their weights."""
    for prefix, child in module.named_modules():
        for name in _parametrized(child):
            found = mask_of(child, name)
            if found is not None:
                yield f"{prefix}.{name}" if prefix else name, found


def check_masks(module: nn.Module) -> None:
    """Make sure that every mask has the pattern that it was made for.

    Raises:
        ModelError: If one does not; the message names its weight.
    """
    for name, mask in masks(module):
        if not mask.holds():
            raise ModelError(f"the mask of {name} is not {mask.pattern}: was it changed?")


def fold_masks(module: nn.Module) -> nn.Module:
    """Write zeros into all masked weights and make the modules ordinary ones again, in place.

    Parameters keep their identity and become what the masked weights are. Other parametrizations are left alone.

    Returns:
        The module.

    Raises:
        ModelError: If a mask has lost its pattern.
    """
    check_masks(module)
    for child in list(module.modules()):
        for name in _parametrized(child):
            if mask_of(child, name) is not None:
                parametrize.remove_parametrizations(child, name, leave_parametrized=True)
    return module


def without_masks(module: nn.Module) -> nn.Module:
    """The module itself if it has no masks, else a copy whose masks are folded."""
    if next(masks(module), None) is None:
        return module
    return fold_masks(copy.deepcopy(module))


OTHER_ORDER = "graphshrink: channels reordered"
"""The key in the ``meta`` of a module whose channels are not in the order that they were trained in."""


def rewind(
    module: nn.Module,
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    *,
    reordered: bool = False,
) -> nn.Module:
    """Set all parameters and buffers to an earlier checkpoint, in place; masks stay, so that only what survived returns.

    Args:
        module: A module with masks, whose layers are still those of the checkpoint, and not merged.
        checkpoint: A ``state_dict``, or a file: ``.safetensors``, or one that ``torch.save`` wrote, which is read as
            tensors only.
        reordered: The channels of the checkpoint are in the order of the module; needed where that is not the order
            in which it was trained. :func:`graphshrink.reorder_alike` makes such a checkpoint.

    Returns:
        The module.

    Raises:
        UsageError: If the file cannot be read, or names, shapes or the order of channels are not those of the module.
        MissingExtra: If a ``.safetensors`` file is given and safetensors is not installed.
    """
    turned = any(getattr(m, "meta", {}).get(OTHER_ORDER) for m in module.modules())
    if turned and not reordered:
        raise UsageError(
            "the channels of this module were reordered, those of a checkpoint were not: "
            "reorder both by reorder_alike, and say reordered=True"
        )
    given = dict(_read(checkpoint) if isinstance(checkpoint, str | os.PathLike) else checkpoint)
    own = {
        _plain_name(name): tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if not name.endswith(_MASK)
    }
    missing, extra = [n for n in own if n not in given], [n for n in given if n not in own]
    for names, what in ((missing, "lacks"), (extra, "has, and the module has not,")):
        names = [n for n in names if not n.endswith("num_batches_tracked")]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UsageError(
                f"the checkpoint {what} {names[0]}{more}: it must be of the same layers, "
                "neither merged nor renamed"
            )
    for name, tensor in own.items():
        if name in given and given[name].shape != tensor.shape:
            raise UsageError(
                f"{name} is {tuple(given[name].shape)} in the checkpoint and "
                f"{tuple(tensor.shape)} in the module"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            if name in given:
                tensor.copy_(given[name])
    return module


_MASK = ".mask"
_PART, _ORIGINAL = "parametrizations.", ".original"


def _plain_name(name: str) -> str:
    """The name that a parametrized tensor had before."""
    return name.replace(_PART, "").removesuffix(_ORIGINAL) if _PART in name else name


def _read(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    file = os.fspath(path)
    try:
        if file.endswith(".safetensors"):
            try:
                from safetensors.torch import load_file
            except ImportError as error:
                raise MissingExtra(f"reading {file}", "safetensors", "safetensors") from error
            loaded: Mapping[str, Any] = load_file(file)
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except MissingExtra:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"cannot read the checkpoint {file}: {first}") from error
    if not isinstance(loaded, Mapping) or not all(
        isinstance(t, torch.Tensor) for t in loaded.values()
    ):
        raise UsageError(f"{file} holds no state_dict: save module.state_dict()")
    return loaded


# Pickling and copying of parametrized modules.


def _mend(module: nn.Module) -> None:
    """Let a module that was just parametrized be pickled and copied."""
    made: Any = type(module)
    made.__reduce_ex__ = lambda self, protocol: (_rebuilt, _parts(self))
    made.__deepcopy__ = _copied


def _parts(module: Any) -> tuple[nn.Module, dict[str, list[nn.Module]]]:
    """The module without its parametrizations, sharing its tensors, and the parametrizations."""
    base = plain_type(module)
    plain: Any = base.__new__(base)
    plain.__dict__ = dict(module.__dict__)
    plain._modules = {k: v for k, v in module._modules.items() if k != "parametrizations"}
    plain._parameters, plain._buffers = dict(module._parameters), dict(module._buffers)
    found: dict[str, list[nn.Module]] = {}
    for name, held in module.parametrizations.items():
        original = held.original
        where = plain._parameters if isinstance(original, nn.Parameter) else plain._buffers
        where[name] = original
        found[name] = list(held)
    if isinstance(plain, nn.RNNBase):
        # Its list of weights has what the masks made of them, which cannot be copied.
        plain._init_flat_weights()
    return plain, found


def _rebuilt(plain: nn.Module, found: dict[str, list[nn.Module]]) -> nn.Module:
    for name, parts in found.items():
        for part in parts:
            parametrize.register_parametrization(plain, name, part, unsafe=True)
    _mend(plain)
    return plain


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    known: nn.Module | None = memo.get(id(module))
    if known is not None:
        return known
    plain, found = _parts(module)
    made = memo[id(module)] = _rebuilt(copy.deepcopy(plain, memo), copy.deepcopy(found, memo))
    return made


__all__ = [
    "OTHER_ORDER",
    "Constant",
    "Mask",
    "check_masks",
    "fold_masks",
    "mask_of",
    "mask_weight",
    "masks",
    "rewind",
    "without_masks",
]

"""Weights that a module computes from others at every call (weight norm, spectral norm, pruning) as plain weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ...hosts.torch.copies import ModuleCopy
from ...hosts.torch.modules.masks import mask_of


def folded(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A model whose computed weights are plain ones, and their names.

    The given model is not changed; where nothing is computed it is returned as it is. Modules in training mode, and lasting masks,
    stay as they are.
    """
    places = [name for name, part in model.named_modules() if not part.training and _computes(part)]
    if not places:
        return model, []
    made = ModuleCopy(model).module
    names: list[str] = []
    with torch.no_grad():
        for place in places:
            part, twin = model.get_submodule(place), made.get_submodule(place)
            fold = _fold_hooks if _norms(part) else _fold_parametrizations
            names += [f"{place}.{name}" if place else name for name in fold(part, twin)]
    return made, names


def _computes(part: nn.Module) -> bool:
    if parametrize.is_parametrized(part):
        kept: Any = part.parametrizations
        return all(mask_of(part, name) is None for name in kept)
    return bool(_norms(part))


def _norms(part: nn.Module) -> dict[int, Any]:
    """The hooks of torch.nn.utils that compute a weight before each call."""
    kinds = (WeightNorm, SpectralNorm, BasePruningMethod)
    return {key: hook for key, hook in part._forward_pre_hooks.items() if isinstance(hook, kinds)}


def _fold_parametrizations(part: nn.Module, twin: nn.Module) -> list[str]:
    held: Any = part.parametrizations
    names = list(held)
    # torch adds a class for each parametrized module; the copy gets the one below.
    twin.__class__ = type(part).__mro__[1]
    del twin._modules["parametrizations"]
    for name in names:
        _put(
            twin,
            name,
            getattr(part, name),
            trained=any(p.requires_grad for p in held[name].parameters()),
        )
    return names


def _fold_hooks(part: nn.Module, twin: nn.Module) -> list[str]:
    names = []
    for key, hook in _norms(part).items():
        if isinstance(hook, WeightNorm):
            name, weight = hook.name, hook.compute_weight(part)
        elif isinstance(hook, SpectralNorm):
            name, weight = hook.name, hook.compute_weight(part, do_power_iteration=False)
        else:
            name, weight = hook._tensor_name, hook.apply_mask(part)
        own = [n for n in twin._parameters if n in (f"{name}_g", f"{name}_v", f"{name}_orig")]
        trained = any(twin._parameters[n].requires_grad for n in own)  # type: ignore[union-attr]
        for n in own:
            del twin._parameters[n]
        for n in (f"{name}_u", f"{name}_v", f"{name}_mask"):
            twin._buffers.pop(n, None)
        twin.__dict__.pop(name, None)
        del twin._forward_pre_hooks[key]
        _put(twin, name, weight, trained=trained)
        names.append(name)
    return names


def _put(twin: nn.Module, name: str, weight: torch.Tensor, *, trained: bool) -> None:
    for hooks in (twin._load_state_dict_pre_hooks, twin._state_dict_hooks):
        # Those that look for the tensors which the weight was computed from.
        own = [k for k, h in hooks.items() if _of_torch(getattr(h, "hook", h))]
        for key in own:
            del hooks[key]
    twin.register_parameter(name, nn.Parameter(weight.detach().clone(), requires_grad=trained))


def _of_torch(hook: Any) -> bool:
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).startswith("torch.nn.utils")


__all__ = ["folded"]

"""The numbers of an emitted torch module: its parameters and buffers, masks and switches."""

from __future__ import annotations

import itertools

import torch
from torch import fx, nn

from ...hosts.torch.modules.gates import Switch
from ...hosts.torch.modules.masks import Mask, mask_weight
from ...ir import DType, MaskedTensor, Tensor, Value
from .speller import torch_dtype


class Parameters:
    """Makes tensors of constants, one for all who read the same.

    Args:
        host: The host module; ``None`` for a model that did not come from torch, whose weights all learn.
        temporary: The ids of buffers that stay out of the ``state_dict``; those of plain numbers are added.
    """

    def __init__(
        self, host: fx.GraphModule | None = None, temporary: set[int] | None = None
    ) -> None:
        self._host, self._temporary = host, set() if temporary is None else temporary
        self._tensors: dict[int, tuple[Tensor, torch.Tensor]] = {}
        self._masks: dict[int, Mask] = {}
        self._names: dict[int, str] = {}
        self._switches: dict[Value, Switch] = {}

    def tensor(self, data: Tensor) -> torch.Tensor:
        """The tensor of a constant, the same one each time: tied weights stay tied.

        A tensor of the host is that very tensor. One that is derived from parameters is a parameter, and learns if one of
        them does; one that is derived from buffers is a buffer, and one of plain numbers a buffer outside the ``state_dict``.
        Without a host module, floats are parameters that learn.
        """
        if isinstance(data.host, torch.Tensor):
            return data.host
        if id(data) not in self._tensors:
            made = self.made(data)
            if made.is_floating_point():
                made = self._learned(data, made)
            if self._host is not None and data.hosts == ():
                self._temporary.add(id(made))
            # The constant is kept, so that no other one gets its id.
            self._tensors[id(data)] = data, made
        return self._tensors[id(data)][1]

    def _learned(self, data: Tensor, made: torch.Tensor) -> torch.Tensor:
        if self._host is None:
            return nn.Parameter(made)
        sources = self._host.parameters() if data.hosts is None else data.hosts
        found = [p for p in sources if isinstance(p, nn.Parameter)]
        if not found and data.hosts is not None:
            return made
        return nn.Parameter(made, any(p.requires_grad for p in found))

    def all(self) -> list[tuple[Tensor, torch.Tensor]]:
        """The constants that tensors were made of, each with its tensor."""
        return list(self._tensors.values())

    def made(self, data: Tensor) -> torch.Tensor:
        """A new tensor, on the device and in the memory format of the tensors that the constant is derived from."""
        sources = [h for h in data.hosts or () if isinstance(h, torch.Tensor)]
        made = _tensor(data, next((h for h in sources if h.device.type != "meta"), self._any()))
        form = next(
            (f for h in sources if (f := _last(h)) is not None and h.ndim == made.ndim), None
        )
        if form is None:
            return made
        return torch.empty_like(made, memory_format=form).copy_(made)

    def fill(self, module: nn.Module, name: str, data: Tensor) -> None:
        """Give a new module its tensor of this name; a lasting mask of its weight comes along."""
        tensor = self.tensor(data)
        hold(module, name, tensor)
        if name in ("weight", "bias"):  # A layer that other code knows, and saves.
            self._temporary.discard(id(tensor))
        if name.startswith("weight"):  # Recurrent layers have several.
            self._mask(module, name, data)

    def _mask(self, module: nn.Module, name: str, weight: Tensor) -> None:
        """Modules that share a weight share its mask."""
        if not isinstance(weight, MaskedTensor) or not weight.lasting:
            return
        if id(weight) not in self._masks:
            mask = torch.from_numpy(weight.mask)
            self._masks[id(weight)] = Mask(mask, weight.pattern, weight.reduction)
        mask_weight(module, self._masks[id(weight)], name)

    def place(self, data: Tensor) -> str | None:
        """The name that the host has for the one parameter of the same shape which a constant is made from."""
        hosts = [h for h in data.hosts or () if isinstance(h, torch.Tensor)]
        found = [h for h in hosts if tuple(h.shape) == data.shape]
        if len(found) != 1:
            return None
        if self._host is not None and not self._names:
            named = self._host.named_parameters(remove_duplicate=False)
            self._names.update((id(p), name) for name, p in reversed(list(named)))
        name = self._names.get(id(found[0]))
        return None if name is None or "parametrizations" in name.split(".") else name

    def switch(self, number: Value, mode: str) -> Switch:
        """The switch of a gate: one for all gates that read the same number."""
        assert number.data is not None
        if number not in self._switches:
            found, like = number.data.host, self._any()
            if not isinstance(found, Switch) or found.mode != mode:
                found = Switch(mode, float(number.data.float64()[0]))
                wide = like is not None and like.dtype in (torch.float32, torch.float64)
                device = like.device if like is not None and like.device.type != "meta" else None
                found.to(device, like.dtype if like is not None and wide else torch.float32)
            self._switches[number] = found
        return self._switches[number]

    @property
    def device(self) -> torch.device:
        """The device of new tensors."""
        like = self._any()
        return torch.device("cpu") if like is None or like.is_meta else like.device

    def _any(self) -> torch.Tensor | None:
        """A tensor of the host, whose device new ones get."""
        if self._host is None:
            return None
        return next(itertools.chain(self._host.parameters(), self._host.buffers()), None)


def hold(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a parameter or a buffer of a module in the place of its own of this name."""
    module._parameters.pop(name, None)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def _tensor(data: Tensor, like: torch.Tensor | None) -> torch.Tensor:
    torch_dtype(data.dtype)  # Before the numbers are made, an element type that torch lacks.
    array = data.numpy()
    if data.dtype is DType.BF16:
        made = torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    else:
        made = torch.from_numpy(array.copy())
    return made if like is None or like.device.type == "meta" else made.to(like.device)


def _last(tensor: torch.Tensor) -> torch.memory_format | None:
    """The format of a tensor whose channels are its innermost axis."""
    forms = {4: torch.channels_last, 5: torch.channels_last_3d}
    form = forms.get(tensor.ndim)
    if form is None or not tensor.is_contiguous(memory_format=form):
        return None
    # Axes of size 1 leave it open; torch then goes by the strides.
    rows = torch.empty(tensor.shape, device="meta").stride()
    return form if tensor.stride() != rows else None

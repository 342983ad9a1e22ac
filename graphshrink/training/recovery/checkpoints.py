"""Checkpoints of a training run: tensors as safetensors, everything else as JSON; no pickle.

A checkpoint is a tree of dicts, lists, tuples, tensors and plain values. Tensors are written to a file of their own, named
by the step; ``recovery.json`` holds the rest and names that file. It is renamed into place last, and only then is
the tensor file of the old checkpoint deleted: if the process is killed at any moment, the old checkpoint or the new one is
complete. Other files in the folder are never touched.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from ...cli.terminal import write_json
from ...ir import MissingExtra, ModelError, UsageError

FORMAT = "graphshrink recovery checkpoint"
VERSION = 1

INDEX = "recovery.json"
"""The file that marks a folder as a checkpoint."""

_TENSORS = re.compile(r"step-\d+\.safetensors")


class Checkpoints:
    """A folder with the last checkpoint of a run.

    Args:
        folder: The folder; created if it does not exist.

    Raises:
        UsageError: If it cannot be created.
        MissingExtra: If safetensors is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            import safetensors.torch  # noqa: F401
        except ImportError as error:
            raise MissingExtra("checkpoints", "torch", "safetensors") from error
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot keep checkpoints in {folder}: {error.strerror}") from error

    @property
    def exists(self) -> bool:
        """Whether there is a checkpoint."""
        return (self.folder / INDEX).exists()

    def save(self, step: int, state: Any) -> None:
        """Write a checkpoint, whole or not at all, and delete the previous one.

        Args:
            step: The number of the step, for the file's name.
            state: The tree.

        Raises:
            UsageError: If it cannot be written.
        """
        from safetensors.torch import save_file

        tensors: dict[str, torch.Tensor] = {}
        plain = _packed(state, "", tensors)
        name = f"step-{step:08d}.safetensors"
        partial = self.folder / f".{name}.tmp"
        old = self._named()
        try:
            save_file(tensors, partial)
            os.replace(partial, self.folder / name)
        except OSError as error:
            raise UsageError(f"cannot write {self.folder / name}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
        index = {"format": FORMAT, "version": VERSION, "tensors": name, "state": plain}
        write_json(str(self.folder / INDEX), index)
        if old is not None and old != name:
            (self.folder / old).unlink(missing_ok=True)
        for file in self.folder.glob(".step-*.safetensors.tmp"):  # Of a run that was killed.
            file.unlink(missing_ok=True)

    def _named(self) -> str | None:
        """The name of the tensor file of the present checkpoint, if there is one."""
        try:
            name = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["tensors"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return None
        return name if isinstance(name, str) and _TENSORS.fullmatch(name) else None

    def load(self) -> Any:
        """Read the checkpoint; returns its tree, with tensors on the CPU, or ``None`` if there is no checkpoint.

        Raises:
            ModelError: If it is damaged or has another version.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder / INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{path} is damaged: it is not JSON; delete the folder") from error
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise ModelError(f"{path} is not a checkpoint of a recovery; choose another folder")
        if index.get("version") != VERSION:
            raise ModelError(
                f"{path} has version {index.get('version')!r} of the checkpoint format; "
                f"this is version {VERSION}"
            )
        name = index.get("tensors")
        if not isinstance(name, str) or not _TENSORS.fullmatch(name):
            raise ModelError(f"{path} is damaged: it does not name a tensor file")
        try:
            return _unpacked(index.get("state"), load_file(self.folder / name))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the checkpoint in {self.folder} is damaged ({error}); delete the folder"
            ) from error


def _packed(data: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree with references in place of its tensors, which are added to ``tensors`` by their paths in it."""
    match data:
        case torch.Tensor():
            # Tensors may share memory; safetensors does not allow that.
            tensors[name] = data.detach().cpu().contiguous().clone()
            return {"tensor": name}
        case dict():
            items = [[k, _packed(v, f"{name}.{k}".strip("."), tensors)] for k, v in data.items()]
            return {"dict": items}
        case list() | tuple():
            items = [_packed(v, f"{name}.{i}".strip("."), tensors) for i, v in enumerate(data)]
            return {"tuple": items} if isinstance(data, tuple) else items
        case None | bool() | int() | float() | str():
            return data
    raise UsageError(
        f"cannot store {name} in a checkpoint: it is a {type(data).__name__}; states may contain dicts, "
        "lists, tensors, numbers and text"
    )


def _unpacked(data: Any, tensors: dict[str, torch.Tensor]) -> Any:
    match data:
        case {"tensor": name}:
            return tensors[name]
        case {"dict": items}:
            return {key: _unpacked(value, tensors) for key, value in items}
        case {"tuple": items}:
            return tuple(_unpacked(value, tensors) for value in items)
        case list():
            return [_unpacked(value, tensors) for value in data]
    return data

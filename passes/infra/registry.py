"""The registry of passes: built-in ones (imported on first use), registered ones, and those of other packages."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ...ir import Exactness, Graph, Rewriter
from ...ir.options import suggestion
from .contract import Context, Pass, PassError

ENTRY_POINTS = "graphshrink.passes"
"""The entry point group under which other packages publish passes."""

BUILT_IN = {
    "deduplicate": "cleanup.deduplicate:Deduplicate",
    "drop-blocks": "depth.drop_blocks:DropBlocks",
    "expand-linear": "depth.expand_linear:ExpandLinear",
    "fold-constants": "cleanup.fold_constants:FoldConstants",
    "fold-masks": "sparsity.fold_masks:FoldMasks",
    "fresh-norms": "depth.fresh_norms:FreshNorms",
    "fuse-dense": "cleanup.fuse_dense:FuseDense",
    "fuse-moves": "cleanup.fuse_moves:FuseMoves",
    "fuse-patterns": "cleanup.fuse_patterns:FusePatterns",
    "hoist-padding": "depth.hoist_padding:HoistPadding",
    "insert-gates": "depth.insert_gates:InsertGates",
    "mask-blocks": "blocks.mask_blocks:MaskBlocks",
    "merge-linear": "merge.merge_linear:MergeLinear",
    "move-scales": "cleanup.move_scales:MoveScales",
    "permute-channels": "channels.permute_channels:PermuteChannels",
    "pivot": "blocks.pivot:Pivot",
    "prune-channels": "channels.prune_channels:PruneChannels",
    "prune-dead": "cleanup.prune_dead:PruneDead",
    "push-pads": "cleanup.push_pads:PushPads",
    "quantize": "quantize.quantize:Quantize",
    "reconstruct": "reconstruction.reconstruct:Reconstruct",
    "remove-activations": "depth.remove_activations:RemoveActivations",
    "remove-noops": "cleanup.remove_noops:RemoveNoops",
    "sparsify": "sparsity.sparsify:Sparsify",
}
"""The module and class of each built-in pass, inside ``graphshrink.passes``; imported on first use."""

_PACKAGE = __name__.rsplit(".", 2)[0]
_REGISTRY: dict[str, type[Pass]] = {}
_published: dict[str, Any] | None = None


def register(cls: type[Pass]) -> type[Pass]:
    """Register a class of passes under its name (a decorator).

    A class that is defined again in the same module, for example by a notebook cell that runs twice, replaces the first
    one.

    Raises:
        PassError: If the name is malformed or already taken by another class.
    """
    name = cls.name
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise PassError(
            f"{cls.__qualname__}: {name!r} is not a pass name (words-joined-by-hyphens)"
        )
    owner = _owner_of(name)
    if owner is not None and owner != _qualified_name(cls):
        raise PassError(
            f"the pass name {name!r} is taken by {owner}; rename {_qualified_name(cls)}"
        )
    _REGISTRY[name] = cls
    return cls


def _entry_points() -> dict[str, Any]:
    """The entry points by pass name; read once."""
    global _published
    if _published is None:
        from importlib.metadata import entry_points

        _published = {}
        for point in entry_points(group=ENTRY_POINTS):
            other = _published.get(point.name)
            owner = _owner_of(point.name) or (other and other.value)
            # A package may decorate a class and publish the same class.
            if owner is not None and owner != point.value:
                raise PassError(
                    f"the pass name {point.name!r} is published by {point.value} "
                    f"but taken by {owner}; uninstall one of them"
                )
            _published[point.name] = point
    return _published


def known_passes() -> dict[str, type[Pass]]:
    """All passes by name: built-in ones, registered ones, and those of installed packages."""
    for name in (*BUILT_IN, *_entry_points()):
        pass_class(name)
    return dict(sorted(_REGISTRY.items()))


def pass_class(name: str) -> type[Pass]:
    """The class of the pass with this name.

    Raises:
        PassError: If there is none (the error suggests the nearest name), or its package does not load.
    """
    found = _REGISTRY.get(name)
    if found is not None:
        return found
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        # The import registers the class, unless the module was imported before and the registry was changed.
        built_in: type[Pass] = getattr(import_module(f"{_PACKAGE}.{module}"), attribute)
        return _REGISTRY.setdefault(name, built_in)
    point = _entry_points().get(name)
    if point is not None:
        try:
            loaded = point.load()
        except Exception as error:
            raise PassError(f"pass {name!r} ({point.value}) does not load: {error}") from error
        if not isinstance(loaded, type) and callable(loaded):
            loaded = _class_of_function(name, loaded)
        if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
            raise PassError(f"pass {name!r} ({point.value}) is neither a Pass nor a function")
        if loaded.name != name:
            raise PassError(f"entry point {name!r} ({point.value}) is a pass named {loaded.name!r}")
        return register(loaded)
    known = sorted({*BUILT_IN, *_REGISTRY, *_entry_points()})
    raise PassError(f"unknown pass {name!r}{suggestion(name, known)}")


def _owner_of(name: str) -> str | None:
    """The module and class that own a name, which need not be imported yet; ``None`` if the name is free."""
    if name in _REGISTRY:
        return _qualified_name(_REGISTRY[name])
    return f"{_PACKAGE}.{BUILT_IN[name]}" if name in BUILT_IN else None


def _qualified_name(cls: type[Pass]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _class_of_function(name: str, function: Callable[[Graph, Rewriter], None]) -> type[Pass]:
    def run(self: Pass, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        function(graph, rw)

    body = {
        "name": name, "exactness": Exactness.APPROXIMATE, "run": run,
        "__doc__": function.__doc__, "__module__": function.__module__,
    }  # fmt: skip
    return type(getattr(function, "__name__", "Function"), (Pass,), body)

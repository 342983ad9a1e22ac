"""Sizes that are equal whatever the inputs are, so that one can be asked of another value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import fx

from ...hosts.torch.calls import shape_of_other
from .call import Followed, Free
from .runs import Runs, Sizes

Place = tuple[str, int | None]
"""A host node and an axis; without an axis, its whole shape."""


class Alike:
    """Finds values with the same size, or shape, as one that a host node asks for.

    Sizes are taken for equal where they are in all runs; without other runs, nothing is.
    """

    def __init__(self, nodes: Sequence[fx.Node], sizes: Mapping[str, Any], runs: Runs) -> None:
        """Look at the sizes that a module asks for.

        Args:
            nodes: The host's nodes in order.
            sizes: The calls that depend only on shapes, each with its result.
            runs: The runs with other sizes.
        """
        self._nodes, self._runs = [n.name for n in nodes if n.name in runs.found], runs
        self._asked: dict[str, tuple[Sizes | None, ...] | Sizes] = {}
        self._places: dict[Any, list[Place]] | None = None
        if not runs.resized:
            return
        for name, found in sizes.items():
            if isinstance(found, Followed):
                self._asked[name] = found.runs
            elif isinstance(found, Free) and found.asked is not None:
                asked = runs.sizes(*found.asked)
                if asked is not None:
                    self._asked[name] = asked
            elif isinstance(found, tuple):
                source = next((f.asked[0] for f in found if isinstance(f, Free) and f.asked), None)
                in_order = all(
                    f.asked == (source, i) for i, f in enumerate(found) if isinstance(f, Free)
                )
                if source and in_order and len(runs.all_sizes(source)) == len(found):
                    self._asked[name] = runs.all_sizes(source)
        for node in nodes:
            other = shape_of_other(node)
            if other is not None:
                self._asked[other.name] = runs.all_sizes(other.name)

    def __call__(self, name: str) -> Iterator[Place]:
        """The values and axes with the size that a host node asks for, in the host's order."""
        asked = self._asked.get(name)
        if asked is None or None in asked:
            return iter(())
        if self._places is None:
            self._places = {}
            for node in self._nodes:
                whole = self._runs.all_sizes(node)
                self._places.setdefault(whole, []).append((node, None))
                for axis, own in enumerate(whole):
                    self._places.setdefault(own, []).append((node, axis))
        return iter(self._places.get(asked, ()))

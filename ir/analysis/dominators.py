"""Dominators of acyclic graphs, in one walk.

In a graph without cycles the immediate dominator of a vertex is the lowest common ancestor, in the
dominator tree built so far, of its predecessors; no fixpoint is needed. Ancestors are found by jump
pointers in O(log n) (Myers, *An applicative random-access stack*, 1983), so that a hundred thousand
joins between long parallel chains stay cheap. General algorithms walk the tree step by step there:
networkx's needs quadratic time on such graphs.
"""

from __future__ import annotations

from collections.abc import Iterable


class DominatorTree:
    """A dominator tree that grows from its root, vertex 0, in topological order.

    Fed in reverse, with successors for predecessors, it is the tree of post-dominators.
    """

    __slots__ = ("_depth", "_jump", "parent")

    def __init__(self) -> None:
        self.parent = [0]
        self._jump = [0]
        self._depth = [0]

    def add(self, predecessors: Iterable[int]) -> int:
        """Add a vertex behind the given ones (at least one) and return its number."""
        dominator = -1
        for vertex in predecessors:
            dominator = vertex if dominator < 0 else self._common(dominator, vertex)
        if dominator < 0:
            raise ValueError("every vertex but the root has a predecessor")
        depth, jump = self._depth, self._jump
        vertex = len(depth)
        far = jump[dominator]
        # Two jumps of equal length in a row are joined into one of twice the length.
        joined = depth[dominator] - depth[far] == depth[far] - depth[jump[far]]
        self.parent.append(dominator)
        depth.append(depth[dominator] + 1)
        jump.append(jump[far] if joined else dominator)
        return vertex

    def dominates(self, dominator: int, vertex: int) -> bool:
        """Whether every path from the root to ``vertex`` goes through ``dominator``; each vertex dominates itself."""
        return self._lift(vertex, self._depth[dominator]) == dominator

    def _lift(self, vertex: int, depth: int) -> int:
        parent, jump, depths = self.parent, self._jump, self._depth
        while depths[vertex] > depth:
            far = jump[vertex]
            vertex = far if depths[far] >= depth else parent[vertex]
        return vertex

    def _common(self, a: int, b: int) -> int:
        if a == b:
            return a
        parent, jump, depths = self.parent, self._jump, self._depth
        if depths[a] > depths[b]:
            a = self._lift(a, depths[b])
        else:
            b = self._lift(b, depths[a])
        # Equal depths jump equally far.
        while a != b:
            if jump[a] == jump[b]:
                a, b = parent[a], parent[b]
            else:
                a, b = jump[a], jump[b]
        return a

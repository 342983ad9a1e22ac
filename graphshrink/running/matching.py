"""Which inputs and outputs of two models belong together: those of the same name, else those at the same place."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir import TensorType, UsageError

Named = Sequence[tuple[str, TensorType]]
"""Inputs or outputs in order: names and types."""


def paired_names(names: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """For each name, the place of its partner among the others: of the same name, the rest in order."""
    place = {name: i for i, name in enumerate(others)}
    left = [i for i, name in enumerate(others) if name not in set(names)]
    rest = iter(left)
    return [place[name] if name in place else next(rest, None) for name in names]


def matched(
    what: str, first: Named, second: Named, files: tuple[str, str]
) -> tuple[list[int], str]:
    """Match the inputs or the outputs of two models.

    Args:
        what: ``"inputs"`` or ``"outputs"``.
        first: Those of the first model.
        second: Those of the second model.
        files: The names of both models, for the error.

    Returns:
        For each of the first model, the place of its partner in the second; and a note, which is empty if all names agree.

    Raises:
        UsageError: If there are not as many, or partners without a common name have different types; it lists both sides.
    """
    if len(first) == len(second):
        places = paired_names([n for n, _ in first], [n for n, _ in second])
        found = [place for place in places if place is not None]
        renamed = [
            (own, second[place])
            for own, place in zip(first, found, strict=True)
            if own[0] != second[place][0]
        ]
        if all(mine.accepts(theirs) for (_, mine), (_, theirs) in renamed):
            pairs = ", ".join(f"{own} = {other}" for (own, _), (other, _) in renamed)
            note = f"the {what} have other names and are matched in order: {pairs}"
            return found, note if renamed else ""
    sides = [
        f"{file} has {', '.join(f'{name}: {type_}' for name, type_ in side) or 'none'}"
        for file, side in zip(files, (first, second), strict=True)
    ]
    raise UsageError(f"the models have different {what}: {'; '.join(sides)}")


__all__ = ["Named", "matched", "paired_names"]

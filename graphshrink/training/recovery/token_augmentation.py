"""Random variants of texts as token ids, so that a network does not learn a few sentences by heart: spans of joined texts, and replaced tokens.

A teacher gives targets for any tokens, whether a text makes sense or not. Replacing tokens at random is from Jiao et al., "TinyBERT: distilling BERT for
natural language understanding", 2020, where a language model chooses them; here they are drawn from the whole vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...ir import Graph, UsageError, Value
from ...ir.ops import Cast, Embedding

LEAST_VOCABULARY = 2


@dataclass(frozen=True)
class TokenAugmentation:
    """Random variants of texts; random numbers come from torch's global generator.

    A variant has the length of the text that it replaces, and everything that is not a free token stays at its place: tokens that all samples have
    equally often, such as those of the beginning and the end, and those that fill samples up to a length. So the other inputs of the model (attention
    masks, token types, positions) stay as they are.

    Attributes:
        input: The name of the model's input that takes the ids; may be left out if it is the only input of integers.
        varied: The part of the batches that are varied; the others are the samples as they are.
        joined: The part of the samples whose free tokens become a random span of several samples, one after the other.
        replaced: The largest part of the free tokens of a sample that are replaced by random ones; the part is drawn for each sample.
        vocabulary: Random tokens are ids below this number; if not given, the rows of the table that the model looks ids up in.
    """

    input: str | None = None
    varied: float = 1.0
    joined: float = 1.0
    replaced: float = 0.3
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        for name in ("varied", "joined", "replaced"):
            share = getattr(self, name)
            if not (0 <= share <= 1 and math.isfinite(share)):
                raise UsageError(f"TokenAugmentation: {name} must be between 0 and 1, not {share}")
        if self.vocabulary is not None and self.vocabulary < LEAST_VOCABULARY:
            raise UsageError(
                f"TokenAugmentation: vocabulary must be at least {LEAST_VOCABULARY}, not {self.vocabulary}"
            )


def token_input(graph: Graph, names: tuple[str, ...], wanted: str | None) -> int:
    """The place of the input with the ids.

    Args:
        graph: The graph.
        names: The names of its inputs.
        wanted: The name of the input; ``None`` for the only one of integers.

    Raises:
        UsageError: If there is no such input, or it does not take the integers of one sequence for each sample.
    """
    integers = [
        name
        for name, value in zip(names, graph.inputs, strict=True)
        if value.type.dtype is not None and value.type.dtype.is_int
    ]
    if wanted is None:
        if len(integers) != 1:
            found = ", ".join(integers) or "none"
            raise UsageError(
                f"variants of tokens need the name of the input that takes them; inputs of integers: {found}"
            )
        wanted = integers[0]
    if wanted not in names:
        raise UsageError(
            f"there is no input {wanted!r} to vary the tokens of; inputs of integers: {', '.join(integers) or 'none'}"
        )
    place = names.index(wanted)
    type_ = graph.inputs[place].type
    if wanted not in integers or type_.rank not in (None, 2):
        raise UsageError(
            f"tokens are integers (samples, tokens); input {wanted!r} is {type_}: name another, or leave out the variants of tokens"
        )
    return place


def vocabulary_of(value: Value) -> int | None:
    """The smallest number of rows of the constant tables that ids are looked up in; ``None`` if there are none."""
    found = []
    for reader, place in value.uses:
        if isinstance(reader.op, Cast):
            found.append(vocabulary_of(reader.outputs[0]))
        elif isinstance(reader.op, Embedding) and place == 0:
            table = reader.input(1)
            rows = None if table is None else table.type.dim(0)
            found.append(rows if isinstance(rows, int) else None)
    return min((rows for rows in found if rows is not None), default=None)


__all__ = ["TokenAugmentation", "token_input", "vocabulary_of"]

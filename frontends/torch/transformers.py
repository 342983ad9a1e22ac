"""How torch's layers of transformers compute, without the fast paths of inference: what a trace records of them.

The forwards of ``nn.TransformerEncoderLayer`` and of the modules around it first ask for sizes and numbers, to find out whether a fused
kernel may compute all of a layer. The functions here are what they compute otherwise, after "Attention is all you need" (Vaswani et al.,
2017), layers with the norms first after Xiong et al. (arXiv:2002.04745).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn

PARTS: tuple[type[nn.Module], ...] = (
    nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.TransformerDecoderLayer, nn.TransformerDecoder, nn.Transformer,
)  # fmt: skip
"""The modules that a trace looks into. The attention inside them stays a module."""


class Tracer(Protocol):
    """What a trace tells."""

    def note(self, text: str) -> None:
        """Add a note for the user."""

    def example(self, value: Any) -> Any:
        """The example input that a value is; ``None`` if it is none."""


@contextmanager
def written_out(tracer: Tracer) -> Iterator[None]:
    """Let the layers of transformers compute without their fast paths, for as long as the context lasts.

    Where torch computes different numbers with and without its fast path, those of the fast path are computed, and a note says so.
    """
    forwards: dict[Any, Callable[..., Any]] = {
        nn.TransformerEncoderLayer: _encoder_layer,
        nn.TransformerEncoder: functools.partial(_encoder, tracer),
        nn.TransformerDecoder: _decoder,
        nn.Transformer: _transformer,
    }
    with ExitStack() as restored:
        for kind, forward in forwards.items():
            restored.callback(setattr, kind, "forward", kind.forward)
            kind.forward = _like(kind.forward, forward)
        yield


def _like(given: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """A method that computes ``forward``, with the signature and annotations of the given one."""

    @functools.wraps(given)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return method


def _encoder_layer(
    layer: Any, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
) -> Any:  # fmt: skip
    masks = (src_mask, src_key_padding_mask)
    if layer.norm_first:
        x = src + layer._sa_block(layer.norm1(src), *masks, is_causal=is_causal)
        return x + layer._ff_block(layer.norm2(x))
    x = layer.norm1(src + layer._sa_block(src, *masks, is_causal=is_causal))
    return layer.norm2(x + layer._ff_block(x))


def _encoder(
    tracer: Tracer, encoder: Any, src: Any, mask: Any = None, src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Any:  # fmt: skip
    x = src
    for layer in encoder.layers:
        # Without the hint that a mask is causal, the mask itself is used: the numbers are the same.
        x = layer(
            x, src_mask=mask, is_causal=is_causal is True, src_key_padding_mask=src_key_padding_mask
        )
    nested = getattr(encoder, "use_nested_tensor", False) and not encoder.training
    if (
        nested
        and mask is None
        and _is_nested(tracer.example(src_key_padding_mask), src_key_padding_mask)
    ):
        x = x.masked_fill(src_key_padding_mask.to(torch.bool).unsqueeze(-1), 0.0)
        tracer.note(
            "where src_key_padding_mask hides positions, the result of the encoder is zero before its last norm, as in torch's fast path "
            "without gradients"
        )
    return x if encoder.norm is None else encoder.norm(x)


def _is_nested(example: Any, padding: Any) -> bool:
    """Whether torch makes nested tensors of padded sequences: those of a batch whose padding is at their ends."""
    if not isinstance(example, torch.Tensor):
        return padding is not None
    hidden = example.to(torch.bool)
    # Once a position is hidden, all behind it are.
    return hidden.ndim == 2 and bool((hidden.cummax(1).values == hidden).all())


def _decoder(
    decoder: Any, tgt: Any, memory: Any, tgt_mask: Any = None, memory_mask: Any = None, tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None, tgt_is_causal: bool | None = None, memory_is_causal: bool = False,
) -> Any:  # fmt: skip
    x = tgt
    for layer in decoder.layers:
        x = layer(
            x, memory, tgt_mask=tgt_mask, memory_mask=memory_mask, tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask, tgt_is_causal=tgt_is_causal is True, memory_is_causal=memory_is_causal,
        )  # fmt: skip
    return x if decoder.norm is None else decoder.norm(x)


def _transformer(
    transformer: Any, src: Any, tgt: Any, src_mask: Any = None, tgt_mask: Any = None, memory_mask: Any = None,
    src_key_padding_mask: Any = None, tgt_key_padding_mask: Any = None, memory_key_padding_mask: Any = None,
    src_is_causal: bool | None = None, tgt_is_causal: bool | None = None, memory_is_causal: bool = False,
) -> Any:  # fmt: skip
    memory = transformer.encoder(
        src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal
    )
    return transformer.decoder(
        tgt, memory, tgt_mask=tgt_mask, memory_mask=memory_mask, tgt_key_padding_mask=tgt_key_padding_mask,
        memory_key_padding_mask=memory_key_padding_mask, tgt_is_causal=tgt_is_causal, memory_is_causal=memory_is_causal,
    )  # fmt: skip


__all__ = ["PARTS", "written_out"]

"""The encoder-decoder of Megatron's T5 tests as two stacks, whose memory adds up.

The tests follow Megatron-LM's documented T5 recipe: as many encoder as decoder layers, 512 tokens in and 128
out, one table of embeddings and positions. The tables of their memory leave layers and lengths blank.
"""

from dataclasses import replace
from functools import cache

from costmodels.graph import Block, Elementwise, Matmul, ModelGraph, Norm, Split
from costmodels.graph_import.transformer import transformer_graph

__all__ = ["DECODER_TOKENS", "ENCODER_TOKENS", "t5_stacks"]

ENCODER_TOKENS = 512
DECODER_TOKENS = 128
_DROPOUT_COPIES = 2
"""Softmax output and its dropped-out copy."""


def _cross_attention(hidden: int, heads: int, *, flash: bool) -> tuple[Norm | Matmul | Elementwise, ...]:
    """Return attention from decoder to encoder tokens, counted per decoder token.

    Keys and values of every layer belong to all encoder tokens; their input, the encoder's output, is one
    tensor for all layers and is left out.
    """
    ratio = ENCODER_TOKENS / DECODER_TOKENS
    scores = 0 if flash else heads * ENCODER_TOKENS
    return (
        Norm(name="cross_norm", features=hidden, bias=True, rms=False),
        Matmul(name="cross_q", in_features=hidden, out_features=hidden, split=Split.COLUMN, bias=True),
        Matmul(
            name="cross_kv",
            in_features=hidden,
            out_features=2 * hidden,
            split=Split.COLUMN,
            bias=True,
            tokens_frac=ratio,
            shares_input=True,
        ),
        Elementwise(
            name="cross_attention",
            reads=0,
            writes=hidden + int(2 * hidden * ratio) + _DROPOUT_COPIES * scores,
            saved=hidden + int(2 * hidden * ratio) + _DROPOUT_COPIES * scores,
            saved_mask=scores,
            split=Split.COLUMN,
        ),
        Matmul(name="cross_out", in_features=hidden, out_features=hidden, split=Split.ROW, bias=True),
        Elementwise(name="cross_add", reads=2 * hidden, writes=hidden, saved=0, saved_mask=hidden),
    )


@cache
def t5_stacks(
    *, hidden: int, ffn: int, layers: int, heads: int, vocab: int, flash: bool
) -> tuple[ModelGraph, ModelGraph]:
    """Return encoder and decoder; embeddings and positions belong to the encoder, the head to the decoder."""
    plain = transformer_graph(
        name=f"t5-h{hidden}-L{layers}",
        hidden=hidden,
        ffn_hidden=ffn,
        num_layers=layers,
        num_heads=heads,
        vocab=vocab,
        max_seq_len=ENCODER_TOKENS,
        learned_positions=True,
        dropout=True,
    )
    own = plain.blocks[0]
    crossed = Block(
        name="decoder",
        operators=(*own.operators, *_cross_attention(hidden, heads, flash=flash)),
        num_reductions=own.num_reductions + 1,
    )
    encoder = replace(plain, vocab=0, outputs=plain.outputs[:1], tied_head=False)
    decoder = replace(plain, blocks=(crossed,), inputs=())
    return encoder, decoder

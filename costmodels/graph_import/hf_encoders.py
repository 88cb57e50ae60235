"""Hugging Face configs of encoders, encoder-decoders and vision transformers."""

from dataclasses import replace

from costmodels.graph import Block, Embedding, Matmul, ModelGraph, Norm, Operator, Split
from costmodels.graph_import.hf_fields import Fields
from costmodels.graph_import.parts import (
    AttentionSpec,
    FeedForwardSpec,
    attention_operators,
    cross_attention_operators,
    feed_forward_operators,
    residual,
)
from costmodels.graph_import.transformer import TransformerSpec, transformer_from_spec

__all__ = ["ENCODERS"]


def _architecture(c: Fields) -> str:
    listed = c.values.get("architectures")
    return str(listed[0]) if isinstance(listed, list | tuple) and listed else ""


def _encoder_spec(c: Fields, name: str, family: str, *, vocab: int) -> TransformerSpec:
    hidden, heads = c.count("hidden_size"), c.count("num_attention_heads")
    c.head_dim(hidden, heads, hidden_key="hidden_size", heads_key="num_attention_heads")
    return TransformerSpec(
        name=name,
        family=family,
        kind="encoder",
        causal=False,
        hidden=hidden,
        ffn_hidden=c.count("intermediate_size"),
        num_layers=c.count("num_hidden_layers"),
        num_heads=heads if hidden % heads == 0 else 1,
        vocab=vocab,
        dropout=c.rate("hidden_dropout_prob"),
        attention_dropout=c.rate("attention_probs_dropout_prob"),
        head=False,
        tied=False,
    )


def _bert(c: Fields, name: str, family: str) -> ModelGraph:
    """Return BERT or RoBERTa with the head that `architectures` names; without one, the pooler."""
    rows, hidden = c.count("max_position_embeddings"), c.count("hidden_size")
    vocab = c.count("vocab_size")
    spec = replace(
        _encoder_spec(c, name, family, vocab=vocab),
        max_seq_len=rows if family == "bert" else rows - 2,
        learned_positions=True,
        num_position_rows=rows,
        token_types=c.count("type_vocab_size", default=2),
        embedding_norm=True,
        norm_layout="post",
        final_norm=False,
    )
    graph = transformer_from_spec(spec)
    architecture = _architecture(c)
    predicts = architecture.endswith(("ForMaskedLM", "ForPreTraining"))
    pools = not architecture.endswith("ForMaskedLM")
    once = 1 / (spec.max_seq_len or 1)
    outputs: tuple[Operator, ...] = ()
    if pools:
        outputs += (_pooler(hidden, once),)
    if architecture.endswith("ForPreTraining"):
        pair = Matmul(
            name="next_sentence",
            in_features=hidden,
            out_features=2,
            split=Split.NONE,
            bias=True,
            tokens_frac=once,
        )
        outputs += (pair,)
    if predicts:
        outputs += _masked_head(hidden, vocab)
    return replace(graph, outputs=outputs, tied_head=predicts)


def _pooler(hidden: int, once: float) -> Matmul:
    """Return the matmul over the first token of each sequence of full length."""
    return Matmul(
        name="pooler", in_features=hidden, out_features=hidden, split=Split.NONE, bias=True, tokens_frac=once
    )


def _masked_head(hidden: int, vocab: int) -> tuple[Operator, ...]:
    return (
        Matmul(name="head_transform", in_features=hidden, out_features=hidden, split=Split.NONE, bias=True),
        Norm(name="head_norm", features=hidden, bias=True, rms=False),
        Matmul(name="head", in_features=hidden, out_features=vocab, split=Split.COLUMN, bias=True),
    )


def _vit(c: Fields, name: str, family: str) -> ModelGraph:
    """Return a vision transformer; its tokens are the patches of one image and the class token."""
    hidden, side, patch = c.count("hidden_size"), c.count("image_size"), c.count("patch_size")
    if side % patch:
        c.note("patch_size", f"{patch} does not divide image_size ({side})")
    tokens = (side // patch) ** 2 + 1
    architecture = _architecture(c)
    classifies = architecture.endswith("ForImageClassification")
    labels = c.values.get("id2label")
    num_labels = len(labels) if isinstance(labels, dict) else c.count("num_labels", default=2)
    spec = _encoder_spec(c, name, family, vocab=num_labels if classifies else 1)
    graph = transformer_from_spec(replace(spec, max_seq_len=tokens))
    inputs: tuple[Operator, ...] = (
        Matmul(
            name="patches",
            in_features=c.count("num_channels", default=3) * patch**2,
            out_features=hidden,
            split=Split.NONE,
            bias=True,
            tokens_frac=(tokens - 1) / tokens,
        ),
        Embedding(name="class_token", num_rows=1, features=hidden, split=Split.NONE),
        Embedding(name="positions", num_rows=tokens, features=hidden, split=Split.NONE),
    )
    head = Matmul(
        name="classifier",
        in_features=hidden,
        out_features=num_labels,
        split=Split.NONE,
        bias=True,
        tokens_frac=1 / tokens,
    )
    last: Operator = head if classifies else _pooler(hidden, 1 / tokens)
    return replace(
        graph,
        kind="vision",
        inputs=inputs + tuple(op for op in graph.inputs if op.name == "embedding_dropout"),
        outputs=(*graph.outputs, last),
    )


def _t5_layer(c: Fields, *, decoder: bool, first: bool) -> Block:
    hidden, heads = c.count("d_model"), c.count("num_heads")
    gated = c.choice(
        "feed_forward_proj", accepted=("relu", "gated-gelu", "gated-silu", "gelu"), default="relu"
    ).startswith("gated")
    attention = AttentionSpec(
        hidden=hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=c.count("d_kv"),
        causal=decoder,
        extra_params=c.count("relative_attention_num_buckets", default=32) * heads if first else 0,
    )
    network = FeedForwardSpec(hidden=hidden, ffn_hidden=c.count("d_ff"), gated=gated)
    halves = [("attention", attention_operators(attention))]
    if decoder:
        halves.append(("cross", cross_attention_operators(attention)))
    halves.append(("ffn", feed_forward_operators(network)))
    dropout = c.rate("dropout_rate")
    operators: list[Operator] = []
    for half, inner in halves:
        add = residual(f"{half}_add", hidden, dropout=dropout)
        operators += [Norm(name=f"{half}_norm", features=hidden), *inner, add]
    side = "decoder" if decoder else "encoder"
    name = f"{side}-first" if first else side
    return Block(name=name, operators=tuple(operators), num_reductions=len(halves))


def _t5(c: Fields, name: str, family: str) -> ModelGraph:
    """Return T5: the first layer of each side holds the relative positions that its other layers share."""
    hidden, vocab = c.count("d_model"), c.count("vocab_size")
    num_encoder = c.count("num_layers")
    num_decoder = c.count("num_decoder_layers", default=num_encoder)
    blocks = tuple(
        _t5_layer(c, decoder=decoder, first=first) for decoder in (False, True) for first in (True, False)
    )
    norm = Norm(name="encoder_norm", features=hidden)
    last = replace(blocks[1], name="encoder-last", operators=(*blocks[1].operators, norm))
    if num_encoder == 1:
        last = replace(blocks[0], name="encoder-last", operators=(*blocks[0].operators, norm))
    encoder = (0,) * (num_encoder > 1) + (1,) * (num_encoder - 2) + (4,)
    return ModelGraph(
        name=name,
        family=family,
        hidden=hidden,
        vocab=vocab,
        blocks=(*blocks, last),
        layers=encoder + (2,) + (3,) * (num_decoder - 1),
        inputs=(Embedding(name="tokens", num_rows=vocab, features=hidden),),
        outputs=(
            Norm(name="final_norm", features=hidden),
            Matmul(name="head", in_features=hidden, out_features=vocab, split=Split.COLUMN),
        ),
        tied_head=c.flag("tie_word_embeddings", default=True),
        max_seq_len=c.optional("n_positions"),
        attention_dropout=c.rate("dropout_rate"),
        kind="encoder-decoder",
        encoder_layers=num_encoder,
    )


ENCODERS = {"bert": _bert, "roberta": _bert, "t5": _t5, "vit": _vit, "xlm-roberta": _bert}
"""Model type -> the function that builds its graph."""

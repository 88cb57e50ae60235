"""Hugging Face configs of dense decoders; defaults are those of the format's own config classes."""

from typing import Any

from costmodels.graph_import.hf_fields import Fields

__all__ = ["DECODERS", "llama_like", "window_layers"]


def llama_like(c: Fields) -> dict[str, Any]:
    """Return the fields that every Llama-shaped config has: RMS norm, gated feed-forward, rotation."""
    hidden, heads = c.count("hidden_size"), c.count("num_attention_heads")
    return {
        "hidden": hidden,
        "ffn_hidden": c.count("intermediate_size"),
        "num_layers": c.count("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": c.kv_heads(
            heads, keys=("num_key_value_heads",), heads_key="num_attention_heads", default=heads
        ),
        "head_dim": c.head_dim(hidden, heads, hidden_key="hidden_size", heads_key="num_attention_heads"),
        "vocab": c.count("vocab_size"),
        "max_seq_len": c.optional("max_position_embeddings"),
        "gated": True,
        "bias": False,
        "rms": True,
        "rotary": True,
        "tied": c.flag("tie_word_embeddings", default=False),
        "attention_dropout": c.rate("attention_dropout"),
    }


def window_layers(c: Fields, num_layers: int, *, every_full: int | None) -> tuple[bool, ...] | None:
    """Return which layers slide: as `layer_types` says, else all but each `every_full`-th; None is all."""
    types = c.sequence("layer_types", length=num_layers)
    if types is not None:
        return tuple(kind in {"sliding_attention", "chunked_attention"} for kind in types)
    if every_full is None:
        return None
    return tuple(bool((layer + 1) % every_full) for layer in range(num_layers))


def _llama(c: Fields) -> dict[str, Any]:
    attention, ffn = c.flag("attention_bias", default=False), c.flag("mlp_bias", default=False)
    return llama_like(c) | {"qkv_bias": attention, "out_bias": attention, "ffn_bias": ffn}


def _internlm(c: Fields) -> dict[str, Any]:
    bias = c.flag("bias", default=True)
    return llama_like(c) | {"qkv_bias": bias, "out_bias": bias}


def _mistral(c: Fields) -> dict[str, Any]:
    return llama_like(c) | {"window": c.optional("sliding_window")}


def _qwen2(c: Fields) -> dict[str, Any]:
    fields = llama_like(c) | {"qkv_bias": True}
    return fields | _qwen_window(c, fields["num_layers"])


def _qwen_window(c: Fields, num_layers: int) -> dict[str, Any]:
    if not c.flag("use_sliding_window", default=False):
        return {}
    first = c.amount("max_window_layers", default=28)
    layers = window_layers(c, num_layers, every_full=None)
    return {
        "window": c.optional("sliding_window", default=4096),
        "window_layers": layers or tuple(layer >= first for layer in range(num_layers)),
    }


def _qwen3(c: Fields) -> dict[str, Any]:
    bias = c.flag("attention_bias", default=False)
    fields = llama_like(c) | {"qkv_bias": bias, "out_bias": bias, "qk_norm": "head"}
    return fields | _qwen_window(c, fields["num_layers"])


def _olmo2(c: Fields) -> dict[str, Any]:
    bias = c.flag("attention_bias", default=False)
    return llama_like(c) | {
        "qkv_bias": bias,
        "out_bias": bias,
        "qk_norm": "full",
        "norm_layout": "branch-post",
    }


def _phi3(c: Fields) -> dict[str, Any]:
    return llama_like(c) | {
        "window": c.optional("sliding_window"),
        "dropout": c.rate("resid_pdrop", "embd_pdrop"),
    }


def _gemma(c: Fields) -> dict[str, Any]:
    bias = c.flag("attention_bias", default=False)
    return llama_like(c) | {
        "qkv_bias": bias,
        "out_bias": bias,
        "tied": c.flag("tie_word_embeddings", default=True),
    }


def _gemma2(c: Fields) -> dict[str, Any]:
    fields = _gemma(c) | {"norm_layout": "sandwich"}
    return fields | {
        "window": c.optional("sliding_window", default=4096),
        "window_layers": window_layers(c, fields["num_layers"], every_full=2),
    }


def _gemma3(c: Fields) -> dict[str, Any]:
    """Return Gemma-3's text network; its nested configs leave out what equals the class's defaults."""
    if "text_config" in c.values:
        c = c.nested("text_config")
    heads, layers = c.count("num_attention_heads", default=8), c.count("num_hidden_layers")
    pattern = c.count("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return {
        "hidden": c.count("hidden_size"),
        "ffn_hidden": c.count("intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": c.kv_heads(
            heads, keys=("num_key_value_heads",), heads_key="num_attention_heads", default=4
        ),
        "head_dim": c.count("head_dim", default=256),
        "vocab": c.count("vocab_size", default=262208),
        "max_seq_len": c.count("max_position_embeddings", default=131072),
        "gated": True,
        "bias": False,
        "rms": True,
        "rotary": True,
        "tied": c.flag("tie_word_embeddings", default=True),
        "norm_layout": "sandwich",
        "qk_norm": "head",
        "window": c.optional("sliding_window", default=4096),
        "window_layers": window_layers(c, layers, every_full=pattern),
    }


def _nemotron(c: Fields) -> dict[str, Any]:
    attention, ffn = c.flag("attention_bias", default=False), c.flag("mlp_bias", default=False)
    return llama_like(c) | {
        "gated": False,
        "rms": False,
        "qkv_bias": attention,
        "out_bias": attention,
        "ffn_bias": ffn,
    }


def _starcoder2(c: Fields) -> dict[str, Any]:
    return llama_like(c) | {
        "gated": False,
        "rms": False,
        "bias": c.flag("use_bias", default=True),
        "tied": c.flag("tie_word_embeddings", default=True),
        "window": c.optional("sliding_window"),
        "dropout": c.rate("residual_dropout", "embedding_dropout"),
    }


def _phi(c: Fields) -> dict[str, Any]:
    return llama_like(c) | {
        "gated": False,
        "rms": False,
        "bias": True,
        "head_bias": True,
        "norm_layout": "parallel-shared",
        "dropout": c.rate("resid_pdrop", "embd_pdrop"),
    }


def _gpt_neox(c: Fields) -> dict[str, Any]:
    parallel = c.flag("use_parallel_residual", default=True)
    return llama_like(c) | {
        "gated": False,
        "rms": False,
        "bias": True,
        "qkv_bias": c.flag("attention_bias", default=True),
        "out_bias": c.flag("attention_bias", default=True),
        "norm_layout": "parallel" if parallel else "pre",
        "dropout": c.rate("hidden_dropout"),
    }


def _gpt2(c: Fields) -> dict[str, Any]:
    hidden, heads = c.count("n_embd", "hidden_size"), c.count("n_head", "num_attention_heads")
    c.head_dim(hidden, heads, hidden_key="n_embd", heads_key="n_head")
    return {
        "hidden": hidden,
        "ffn_hidden": c.count("n_inner", default=4 * hidden),
        "num_layers": c.count("n_layer", "num_hidden_layers"),
        "num_heads": heads,
        "vocab": c.count("vocab_size"),
        "max_seq_len": c.count("n_positions", "max_position_embeddings"),
        "learned_positions": True,
        "tied": c.flag("tie_word_embeddings", default=True),
        "dropout": c.rate("resid_pdrop", "embd_pdrop"),
        "attention_dropout": c.rate("attn_pdrop"),
    }


def _gptj(c: Fields) -> dict[str, Any]:
    return _gpt2(c) | {
        "learned_positions": False,
        "rotary": True,
        "qkv_bias": False,
        "out_bias": False,
        "norm_layout": "parallel-shared",
        "tied": c.flag("tie_word_embeddings", default=False),
        "head_bias": True,
    }


def _opt(c: Fields) -> dict[str, Any]:
    hidden, heads = c.count("hidden_size"), c.count("num_attention_heads")
    positions = c.count("max_position_embeddings")
    before = c.flag("do_layer_norm_before", default=True)
    c.head_dim(hidden, heads, hidden_key="hidden_size", heads_key="num_attention_heads")
    return {
        "hidden": hidden,
        "ffn_hidden": c.count("ffn_dim"),
        "num_layers": c.count("num_hidden_layers"),
        "num_heads": heads,
        "vocab": c.count("vocab_size"),
        "max_seq_len": positions,
        "learned_positions": True,
        # The table of positions starts with two rows that no token uses.
        "num_position_rows": positions + 2,
        "bias": c.flag("enable_bias", default=True),
        "embedding_dim": c.optional("word_embed_proj_dim", default=hidden),
        "norm_layout": "pre" if before else "post",
        "final_norm": before and not c.flag("_remove_final_layer_norm", default=False),
        "tied": c.flag("tie_word_embeddings", default=True),
        "dropout": c.rate("dropout"),
        "attention_dropout": c.rate("attention_dropout"),
    }


def _bloom(c: Fields) -> dict[str, Any]:
    hidden = c.count("hidden_size", "n_embed")
    heads = c.count("n_head", "num_attention_heads")
    c.head_dim(hidden, heads, hidden_key="hidden_size", heads_key="n_head")
    return {
        "hidden": hidden,
        "ffn_hidden": 4 * hidden,
        "num_layers": c.count("n_layer", "num_hidden_layers"),
        "num_heads": heads,
        "vocab": c.count("vocab_size"),
        "max_seq_len": c.optional("seq_length"),
        "embedding_norm": True,
        "tied": c.flag("tie_word_embeddings", default=True),
        "dropout": c.rate("hidden_dropout"),
        "attention_dropout": c.rate("attention_dropout"),
    }


def _falcon(c: Fields) -> dict[str, Any]:
    hidden = c.count("hidden_size", "n_embed")
    heads = c.count("num_attention_heads", "n_head")
    new = c.flag("new_decoder_architecture", default=False)
    parallel = new or c.flag("parallel_attn", default=True)
    single = c.flag("multi_query", default=True) and not new
    norms = c.count("num_ln_in_parallel_attn", default=2 if new else 1)
    c.head_dim(hidden, heads, hidden_key="hidden_size", heads_key="num_attention_heads")
    kv_heads = c.kv_heads(
        heads, keys=("num_kv_heads", "n_head_kv"), heads_key="num_attention_heads", default=heads
    )
    return {
        "hidden": hidden,
        "ffn_hidden": c.count("ffn_hidden_size", default=4 * hidden),
        "num_layers": c.count("num_hidden_layers", "n_layer"),
        "num_heads": heads,
        "num_kv_heads": kv_heads if new else 1 if single else heads,
        "vocab": c.count("vocab_size"),
        "max_seq_len": c.optional("max_position_embeddings", default=2048),
        "bias": c.flag("bias", default=False),
        "rotary": not c.flag("alibi", default=False),
        "norm_layout": "pre" if not parallel else "parallel" if norms > 1 else "parallel-shared",
        "tied": c.flag("tie_word_embeddings", default=True),
        "dropout": c.rate("hidden_dropout"),
        "attention_dropout": c.rate("attention_dropout"),
    }


def _mpt(c: Fields) -> dict[str, Any]:
    hidden, heads = c.count("d_model"), c.count("n_heads")
    c.head_dim(hidden, heads, hidden_key="d_model", heads_key="n_heads")
    bias = not c.flag("no_bias", default=True)
    return {
        "hidden": hidden,
        "ffn_hidden": c.count("expansion_ratio", default=4) * hidden,
        "num_layers": c.count("n_layers"),
        "num_heads": heads,
        "vocab": c.count("vocab_size"),
        "max_seq_len": c.optional("max_seq_len"),
        "bias": bias,
        "norm_bias": bias,
        "tied": c.flag("tie_word_embeddings", default=True),
        "dropout": c.rate("resid_pdrop", "emb_pdrop"),
    }


DECODERS = {
    "bloom": _bloom,
    "falcon": _falcon,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gptj": _gptj,
    "internlm": _internlm,
    "llama": _llama,
    "mistral": _mistral,
    "mpt": _mpt,
    "nemotron": _nemotron,
    "olmo2": _olmo2,
    "opt": _opt,
    "phi": _phi,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "starcoder2": _starcoder2,
}
"""Model type -> the fields of `TransformerSpec` that its config means."""

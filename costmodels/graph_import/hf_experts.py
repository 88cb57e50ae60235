"""Hugging Face configs of decoders with routed experts."""

from typing import Any

from costmodels.graph_import.hf_decoders import llama_like, window_layers
from costmodels.graph_import.hf_fields import Fields
from costmodels.graph_import.parts import LatentAttention, SparseIndexer

__all__ = ["MIXTURES", "qwen_experts"]


def _check_top_k(c: Fields, key: str, top_k: int, num_experts: int) -> int:
    if top_k > num_experts:
        c.note(key, f"{top_k} experts per token of {num_experts} experts in all")
        return 1
    return top_k


def _experts(c: Fields, *, number: tuple[str, ...], width: tuple[str, ...]) -> dict[str, Any]:
    num_experts = c.count(*number)
    top_k_key = "num_experts_per_tok"
    return {
        "num_experts": num_experts,
        "top_k": _check_top_k(c, top_k_key, c.count(top_k_key), num_experts),
        "expert_ffn_hidden": c.count(*width),
    }


def _mixtral(c: Fields) -> dict[str, Any]:
    return (
        llama_like(c)
        | _experts(c, number=("num_local_experts",), width=("intermediate_size",))
        | {"window": c.optional("sliding_window")}
    )


def qwen_experts(c: Fields, num_layers: int) -> dict[str, Any]:
    """Return experts, the layers that have them, and the gated shared expert, as Qwen configs say them."""
    step, dense = c.count("decoder_sparse_step", default=1), c.values.get("mlp_only_layers") or ()
    if not isinstance(dense, list | tuple):
        c.note("mlp_only_layers", f"{dense!r} is not a list of layer numbers")
        dense = ()
    shared = c.amount("shared_expert_intermediate_size")
    return _experts(c, number=("num_experts",), width=("moe_intermediate_size",)) | {
        "moe_layers": tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers)),
        "shared_ffn_hidden": shared,
        "shared_gate": shared > 0,
    }


def _qwen2_moe(c: Fields) -> dict[str, Any]:
    fields = llama_like(c) | {"qkv_bias": c.flag("qkv_bias", default=True)}
    return fields | qwen_experts(c, fields["num_layers"])


def _qwen3_moe(c: Fields) -> dict[str, Any]:
    bias = c.flag("attention_bias", default=False)
    fields = llama_like(c) | {"qkv_bias": bias, "out_bias": bias, "qk_norm": "head"}
    return fields | qwen_experts(c, fields["num_layers"])


def _latent(c: Fields) -> LatentAttention:
    return LatentAttention(
        kv_lora_rank=c.count("kv_lora_rank"),
        q_lora_rank=c.optional("q_lora_rank"),
        qk_nope_head_dim=c.count("qk_nope_head_dim"),
        qk_rope_head_dim=c.count("qk_rope_head_dim"),
        v_head_dim=c.count("v_head_dim"),
    )


def _deepseek(c: Fields, *, router_bias: bool) -> dict[str, Any]:
    """Return the fields of DeepSeek-V2, V3 and what follows them (Kimi-K2, GLM-5)."""
    mla, layers = _latent(c), c.count("num_hidden_layers")
    heads, first = c.count("num_attention_heads"), c.amount("first_k_dense_replace")
    step = c.count("moe_layer_freq", default=1)
    bias = c.flag("attention_bias", default=False)
    return {
        "hidden": c.count("hidden_size"),
        "ffn_hidden": c.count("intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "head_dim": mla.qk_nope_head_dim + mla.qk_rope_head_dim,
        "vocab": c.count("vocab_size"),
        "max_seq_len": c.optional("max_position_embeddings"),
        "gated": True,
        "bias": False,
        "qkv_bias": bias,
        "out_bias": bias,
        "rms": True,
        "tied": c.flag("tie_word_embeddings", default=False),
        "mla": mla,
        "num_shared_experts": c.amount("n_shared_experts"),
        "moe_layers": tuple(layer >= first and layer % step == 0 for layer in range(layers)),
        "router_bias": router_bias,
        "group_limit": c.optional("topk_group") if c.count("n_group", default=1) > 1 else None,
    } | _experts(c, number=("n_routed_experts",), width=("moe_intermediate_size",))


def _deepseek_v2(c: Fields) -> dict[str, Any]:
    return _deepseek(c, router_bias=c.values.get("topk_method") == "noaux_tc")


def _deepseek_v3(c: Fields) -> dict[str, Any]:
    if "text_config" in c.values:
        c = c.nested("text_config")
    return _deepseek(c, router_bias=c.values.get("topk_method", "noaux_tc") == "noaux_tc")


def _deepseek_sparse(c: Fields) -> dict[str, Any]:
    indexer = SparseIndexer(
        num_heads=c.count("index_n_heads", default=32),
        head_dim=c.count("index_head_dim", default=128),
        num_keys=c.count("index_topk", default=2048),
    )
    return _deepseek_v3(c) | {"indexer": indexer}


def _glm4_moe(c: Fields) -> dict[str, Any]:
    bias = c.flag("attention_bias", default=False)
    return (
        llama_like(c)
        | {
            "qkv_bias": bias,
            "qk_norm": "head" if c.flag("use_qk_norm", default=False) else None,
            "num_shared_experts": c.amount("n_shared_experts"),
            "first_dense_layers": c.amount("first_k_dense_replace"),
            "router_bias": True,
        }
        | _experts(c, number=("n_routed_experts",), width=("moe_intermediate_size",))
    )


def _minimax_m2(c: Fields) -> dict[str, Any]:
    full = c.choice("qk_norm_type", accepted=("per_layer", "per_head"), default="per_layer") == "per_layer"
    norm = "full" if full else "head"
    return (
        llama_like(c)
        | {
            "qk_norm": norm if c.flag("use_qk_norm", default=True) else None,
            "router_bias": c.flag("use_routing_bias", default=True),
        }
        | _experts(c, number=("num_local_experts",), width=("intermediate_size",))
    )


def _gpt_oss(c: Fields) -> dict[str, Any]:
    fields = llama_like(c) | _experts(c, number=("num_local_experts",), width=("intermediate_size",))
    bias = c.flag("attention_bias", default=True)
    return fields | {
        "head_dim": c.count("head_dim", default=64),
        "qkv_bias": bias,
        "out_bias": bias,
        "expert_bias": True,
        "router_bias": True,
        "sinks": True,
        "window": c.optional("sliding_window", default=128),
        "window_layers": window_layers(c, fields["num_layers"], every_full=2),
    }


def _llama4(c: Fields) -> dict[str, Any]:
    """Return Llama-4's text network; attention in chunks is taken as a window of one chunk."""
    if "text_config" in c.values:
        c = c.nested("text_config")
    fields = llama_like(c)
    layers, step = fields["num_layers"], c.count("interleave_moe_layer_step", default=1)
    return (
        fields
        | _experts(c, number=("num_local_experts",), width=("intermediate_size",))
        | {
            "ffn_hidden": c.count("intermediate_size_mlp"),
            "num_shared_experts": 1,
            "moe_layers": tuple((layer + 1) % step == 0 for layer in range(layers)),
            "window": c.optional("attention_chunk_size", default=8192),
            "window_layers": window_layers(c, layers, every_full=4),
        }
    )


MIXTURES = {
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v32": _deepseek_sparse,
    "glm4_moe": _glm4_moe,
    "glm_moe_dsa": _deepseek_sparse,
    "gpt_oss": _gpt_oss,
    "kimi_k2": _deepseek_v3,
    "kimi_k25": _deepseek_v3,
    "llama4": _llama4,
    "llama4_text": _llama4,
    "minimax_m2": _minimax_m2,
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
}
"""Model type -> the fields of `TransformerSpec` that its config means."""

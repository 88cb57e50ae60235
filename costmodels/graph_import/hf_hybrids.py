"""Hugging Face configs of state-space models and of hybrids with attention."""

from collections.abc import Callable, Sequence
from typing import Any

from costmodels.graph import (
    Block,
    Embedding,
    Matmul,
    ModelGraph,
    Norm,
    Operator,
    Split,
)
from costmodels.graph_import.hf_decoders import llama_like
from costmodels.graph_import.hf_experts import qwen_experts
from costmodels.graph_import.hf_fields import Fields
from costmodels.graph_import.mixers import DeltaNetSpec, MambaSpec, delta_net_operators, mamba_operators
from costmodels.graph_import.parts import (
    AttentionSpec,
    ExpertsSpec,
    FeedForwardSpec,
    attention_operators,
    experts_operators,
    feed_forward_operators,
    residual,
)

__all__ = ["HYBRIDS"]


def _graph(
    name: str,
    family: str,
    layers: Sequence[Block],
    *,
    hidden: int,
    vocab: int,
    tied: bool,
    max_seq_len: int | None,
) -> ModelGraph:
    blocks = tuple(dict.fromkeys(layers))
    return ModelGraph(
        name=name,
        family=family,
        hidden=hidden,
        vocab=vocab,
        blocks=blocks,
        layers=tuple(blocks.index(block) for block in layers),
        inputs=(Embedding(name="tokens", num_rows=vocab, features=hidden),),
        outputs=(
            Norm(name="final_norm", features=hidden),
            Matmul(name="head", in_features=hidden, out_features=vocab, split=Split.COLUMN),
        ),
        tied_head=tied,
        max_seq_len=max_seq_len,
    )


def _half(name: str, hidden: int, operators: tuple[Operator, ...]) -> tuple[Operator, ...]:
    """Return norm, operators and residual add."""
    norm = Norm(name=f"{name}_norm", features=hidden)
    return (norm, *operators, residual(f"{name}_add", hidden, dropout=False))


def _dt_rank(c: Fields, key: str, hidden: int) -> int:
    return -(-hidden // 16) if c.values.get(key, "auto") == "auto" else c.count(key)


def _mamba(c: Fields, name: str, family: str) -> ModelGraph:
    hidden, vocab = c.count("hidden_size", "d_model"), c.count("vocab_size")
    spec = MambaSpec(
        hidden=hidden,
        inner=c.count("intermediate_size", default=c.count("expand", default=2) * hidden),
        state=c.count("state_size", default=16),
        conv=c.count("conv_kernel", default=4),
        dt_rank=_dt_rank(c, "time_step_rank", hidden),
        bias=c.flag("use_bias", default=False),
        conv_bias=c.flag("use_conv_bias", default=True),
    )
    block = Block(name="mamba", operators=_half("mixer", hidden, mamba_operators(spec)), num_reductions=1)
    return _graph(
        name,
        family,
        [block] * c.count("num_hidden_layers", "n_layer"),
        hidden=hidden,
        vocab=vocab,
        tied=c.flag("tie_word_embeddings", default=True),
        max_seq_len=None,
    )


def _mamba2_spec(c: Fields, hidden: int, *, heads: str, head_dim: str, state: str) -> MambaSpec:
    num_heads = c.count(heads)
    return MambaSpec(
        hidden=hidden,
        inner=num_heads * c.count(head_dim),
        state=c.count(state),
        conv=c.count("conv_kernel", default=4),
        num_groups=c.count("n_groups", default=1),
        num_heads=num_heads,
        bias=c.flag("use_bias", default=False),
        conv_bias=c.flag("use_conv_bias", default=True),
    )


def _mamba2(c: Fields, name: str, family: str) -> ModelGraph:
    hidden = c.count("hidden_size")
    spec = _mamba2_spec(c, hidden, heads="num_heads", head_dim="head_dim", state="state_size")
    inner = c.count("expand", default=2) * hidden
    if spec.inner != inner and not c.problems:
        c.note("num_heads", f"num_heads * head_dim is {spec.inner}, expand * hidden_size is {inner}")
    block = Block(name="mamba2", operators=_half("mixer", hidden, mamba_operators(spec)), num_reductions=1)
    return _graph(
        name,
        family,
        [block] * c.count("num_hidden_layers"),
        hidden=hidden,
        vocab=c.count("vocab_size"),
        tied=c.flag("tie_word_embeddings", default=False),
        max_seq_len=None,
    )


def _attention_half(f: dict[str, Any], **changes: Any) -> tuple[Operator, ...]:
    spec = AttentionSpec(
        hidden=f["hidden"],
        num_heads=f["num_heads"],
        num_kv_heads=f["num_kv_heads"],
        head_dim=f["head_dim"],
        **changes,
    )
    return _half("attention", f["hidden"], attention_operators(spec))


def _jamba(c: Fields, name: str, family: str) -> ModelGraph:
    f = llama_like(c)
    hidden, layers = f["hidden"], f["num_layers"]
    mixer = MambaSpec(
        hidden=hidden,
        inner=c.count("mamba_expand", default=2) * hidden,
        state=c.count("mamba_d_state", default=16),
        conv=c.count("mamba_d_conv", default=4),
        dt_rank=_dt_rank(c, "mamba_dt_rank", hidden),
        bias=c.flag("mamba_proj_bias", default=False),
        conv_bias=c.flag("mamba_conv_bias", default=True),
        inner_norms=True,
    )
    num_experts = c.count("num_experts", default=16)
    experts = ExpertsSpec(
        hidden=hidden,
        ffn_hidden=f["ffn_hidden"],
        num_experts=num_experts,
        top_k=c.count("num_experts_per_tok", default=2),
    )
    dense = FeedForwardSpec(hidden=hidden, ffn_hidden=f["ffn_hidden"], gated=True)
    attention_every = c.count("attn_layer_period", default=8), c.amount("attn_layer_offset", default=4)
    experts_every = c.count("expert_layer_period", default=2), c.amount("expert_layer_offset", default=1)
    mixers = {True: _attention_half(f), False: _half("mixer", hidden, mamba_operators(mixer))}
    halves = {
        True: _half("ffn", hidden, experts_operators(experts)),
        False: _half("ffn", hidden, feed_forward_operators(dense)),
    }
    order = []
    for layer in range(layers):
        attends = layer % attention_every[0] == attention_every[1]
        routes = num_experts > 1 and layer % experts_every[0] == experts_every[1]
        kind = ("attention" if attends else "mamba") + ("-moe" if routes else "")
        order.append(Block(name=kind, operators=mixers[attends] + halves[routes]))
    return _graph(
        name,
        family,
        order,
        hidden=hidden,
        vocab=f["vocab"],
        tied=f["tied"],
        max_seq_len=f["max_seq_len"],
    )


def _delta_net(c: Fields, hidden: int) -> tuple[Operator, ...]:
    spec = DeltaNetSpec(
        hidden=hidden,
        num_key_heads=c.count("linear_num_key_heads"),
        num_value_heads=c.count("linear_num_value_heads"),
        key_dim=c.count("linear_key_head_dim"),
        value_dim=c.count("linear_value_head_dim"),
        conv=c.count("linear_conv_kernel_dim", default=4),
    )
    return delta_net_operators(spec)


def _qwen_next(c: Fields, name: str, family: str) -> ModelGraph:
    """Return Qwen3-Next and Qwen3.5: gated delta nets, and every fourth layer gated attention."""
    outer = c
    if "text_config" in c.values:
        c = c.nested("text_config")
    mixture = c.get("num_experts")[1] is not None
    if mixture:
        c.values = {"intermediate_size": c.values.get("moe_intermediate_size"), **c.values}
    f = llama_like(c)
    hidden, layers = f["hidden"], f["num_layers"]
    types = c.sequence("layer_types", length=layers)
    interval = c.count("full_attention_interval", default=4)
    attends = [(types[i] == "full_attention") if types else (i + 1) % interval == 0 for i in range(layers)]
    gate = c.flag("attn_output_gate", default=True)
    attention = _attention_half(f, output_gate=gate, qk_norm="head", rotary=True)
    linear = _half("mixer", hidden, _delta_net(c, hidden))
    dense = _half(
        "ffn",
        hidden,
        feed_forward_operators(FeedForwardSpec(hidden=hidden, ffn_hidden=f["ffn_hidden"], gated=True)),
    )
    routed, routes = dense, (False,) * layers
    if mixture:
        e = qwen_experts(c, layers)
        routes = e["moe_layers"]
        spec = ExpertsSpec(
            hidden=hidden,
            ffn_hidden=e["expert_ffn_hidden"],
            num_experts=e["num_experts"],
            top_k=e["top_k"],
            shared_ffn_hidden=e["shared_ffn_hidden"],
            shared_gate=e["shared_gate"],
        )
        routed = _half("ffn", hidden, experts_operators(spec))
    order = [
        Block(
            name=("attention" if full else "linear") + ("-moe" if moe else ""),
            operators=(attention if full else linear) + (routed if moe else dense),
        )
        for full, moe in zip(attends, routes, strict=True)
    ]
    return _graph(
        name,
        family,
        order,
        hidden=hidden,
        vocab=f["vocab"],
        tied=outer.flag("tie_word_embeddings", default=False),
        max_seq_len=f["max_seq_len"],
    )


def _latent_experts(c: Fields, hidden: int) -> tuple[Operator, ...]:
    """Return Nemotron's experts, which may work in a narrower latent space than the layer."""
    latent = c.optional("moe_latent_size")
    down_up: list[tuple[Operator, ...]] = [(), ()]
    if latent is not None:
        down_up = [
            (Matmul(name="latent_down", in_features=hidden, out_features=latent, split=Split.NONE),),
            (Matmul(name="latent_up", in_features=latent, out_features=hidden, split=Split.NONE),),
        ]
    shared = FeedForwardSpec(
        hidden=hidden,
        ffn_hidden=c.amount("n_shared_experts", default=1) * c.count("moe_shared_expert_intermediate_size"),
    )
    routed = ExpertsSpec(
        hidden=hidden if latent is None else latent,
        ffn_hidden=c.count("moe_intermediate_size"),
        num_experts=c.count("n_routed_experts"),
        top_k=c.count("num_experts_per_tok"),
        gated=False,
        router_bias=True,
        router_hidden=hidden,
    )
    return (
        *feed_forward_operators(shared, prefix="shared_"),
        *down_up[0],
        *experts_operators(routed),
        *down_up[1],
    )


def _nemotron_h(c: Fields, name: str, family: str) -> ModelGraph:
    """Return Nemotron-H and Nemotron-3: each layer is one mixer, as the pattern's letter says."""
    pattern = c.values.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or not pattern or set(pattern) - set("M*-E"):
        accepted = "a word of M (Mamba-2), * (attention), - (feed-forward) and E (experts)"
        c.note("hybrid_override_pattern", f"{pattern!r} is not {accepted}")
        pattern = "M"
    hidden = c.count("hidden_size")
    heads = c.count("num_attention_heads")
    attention: dict[str, Any] = {
        "hidden": hidden,
        "num_heads": heads,
        "num_kv_heads": c.kv_heads(
            heads, keys=("num_key_value_heads",), heads_key="num_attention_heads", default=heads
        ),
        "head_dim": c.head_dim(hidden, heads, hidden_key="hidden_size", heads_key="num_attention_heads"),
    }
    mixer = _mamba2_spec(
        c, hidden, heads="mamba_num_heads", head_dim="mamba_head_dim", state="ssm_state_size"
    )
    makers: dict[str, Callable[[], tuple[Operator, ...]]] = {
        "M": lambda: _half("mixer", hidden, mamba_operators(mixer)),
        "*": lambda: _attention_half(attention),
        "-": lambda: _half(
            "ffn",
            hidden,
            feed_forward_operators(FeedForwardSpec(hidden=hidden, ffn_hidden=c.count("intermediate_size"))),
        ),
        "E": lambda: _half("ffn", hidden, _latent_experts(c, hidden)),
    }
    names = {"M": "mamba2", "*": "attention", "-": "dense", "E": "moe"}
    kinds = {
        letter: Block(name=names[letter], operators=makers[letter](), num_reductions=1)
        for letter in dict.fromkeys(pattern)
    }
    return _graph(
        name,
        family,
        [kinds[letter] for letter in pattern],
        hidden=hidden,
        vocab=c.count("vocab_size"),
        tied=c.flag("tie_word_embeddings", default=False),
        max_seq_len=c.optional("max_position_embeddings"),
    )


HYBRIDS = {
    "jamba": _jamba,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "nemotron_h": _nemotron_h,
    "qwen3_5": _qwen_next,
    "qwen3_5_moe": _qwen_next,
    "qwen3_5_moe_text": _qwen_next,
    "qwen3_5_text": _qwen_next,
    "qwen3_next": _qwen_next,
}
"""Model type -> the function that builds its graph."""

"""The pieces of a layer as operators: attention, feed-forward, experts, residual.

Conventions, which every cost model may rely on:

- query, key and value are one column-split matmul, gate and up are one column-split matmul;
- the projection after attention and the down projection are row-split matmuls;
- an activation keeps its own input (`saved`); its output is the next matmul's saved input;
- a residual add keeps nothing but its dropout mask (one byte per element).

Summed by the rule "a matmul and a norm save their input, attention saves query, key and value, an
elementwise operator saves `saved` elements and its mask", a GPT layer in 16 bits keeps 34*s*b*h bytes when
the softmax is not saved (Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models,
2022, eq. 2 without its 5*a*s/h term).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from costmodels.graph import Attention, Elementwise, Experts, Matmul, Norm, Operator, Split

__all__ = [
    "AttentionSpec",
    "ExpertsSpec",
    "FeedForwardSpec",
    "LatentAttention",
    "SparseIndexer",
    "attention_operators",
    "cross_attention_operators",
    "experts_operators",
    "feed_forward_operators",
    "residual",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Ranks and head dimensions of latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1)."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    """None: queries come from the hidden state by one matmul."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseIndexer:
    """A small scorer that picks which keys a query attends to (DeepSeek-V3.2, arXiv:2512.02556)."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    num_heads: int
    head_dim: int
    num_keys: int
    """Keys that each query keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Self attention with its projections."""

    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    causal: bool = True
    window: int | None = None
    rotary: bool = False
    qk_norm: Literal["head", "full"] | None = None
    """RMS norm of queries and keys: per head with one shared weight, or over all heads at once."""
    qk_norm_layer: bool = False
    """The norm of queries and keys is a layer norm with bias rather than an RMS norm."""
    extra_params: int = 0
    """Sinks, relative position biases."""
    latent: LatentAttention | None = None
    output_gate: bool = False
    """A sigmoid gate, projected beside the queries, scales the attention's output."""
    indexer: SparseIndexer | None = None
    """Only with `latent`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForwardSpec:
    """A dense feed-forward network."""

    hidden: int
    ffn_hidden: int
    gated: bool = False
    bias: bool = False
    down_bias: bool | None = None
    """Of the second matmul; None is as `bias`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsSpec:
    """Routed experts beside shared ones."""

    hidden: int
    ffn_hidden: int
    num_experts: int
    top_k: int
    gated: bool = True
    bias: bool = False
    router_bias: bool = False
    router_hidden: int | None = None
    """Width that the router reads, where it is not `hidden`."""
    group_limit: int | None = None
    shared_ffn_hidden: int = 0
    """Of all shared experts together; 0 is none."""
    shared_gate: bool = False
    """A sigmoid of the hidden state scales the shared experts' output (Qwen2-MoE)."""


def _qk_norms(spec: AttentionSpec) -> tuple[Operator, ...]:
    if spec.qk_norm is None:
        return ()
    sides = (("q_norm", spec.num_heads), ("k_norm", spec.num_kv_heads))
    rms, bias = not spec.qk_norm_layer, spec.qk_norm_layer
    if spec.qk_norm == "head":
        return tuple(
            Norm(name=name, features=spec.head_dim, copies=heads, over_heads=True, rms=rms, bias=bias)
            for name, heads in sides
        )
    return tuple(
        Norm(name=name, features=spec.head_dim * heads, over_heads=True, rms=rms, bias=bias)
        for name, heads in sides
    )


def _rotary(num_elements: int) -> Elementwise:
    return Elementwise(name="rotary", reads=num_elements, writes=num_elements, saved=0, split=Split.COLUMN)


def attention_operators(spec: AttentionSpec) -> tuple[Operator, ...]:
    """Return projections, norms of queries and keys, rotation, attention and the output projection."""
    if spec.latent is not None:
        return _latent_attention(spec, spec.latent)
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    gate = q if spec.output_gate else 0
    qkv = Matmul(
        name="qkv",
        in_features=spec.hidden,
        out_features=q + 2 * kv + gate,
        split=Split.COLUMN,
        bias=spec.qkv_bias,
    )
    attention = Attention(
        name="attention",
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        value_dim=spec.head_dim,
        causal=spec.causal,
        window=spec.window,
        num_params=spec.extra_params,
    )
    out = Matmul(
        name="attention_out", in_features=q, out_features=spec.hidden, split=Split.ROW, bias=spec.out_bias
    )
    rotary = (_rotary(q + kv),) if spec.rotary else ()
    gating = Elementwise(name="output_gate", reads=2 * q, writes=q, saved=2 * q, split=Split.COLUMN)
    return (qkv, *_qk_norms(spec), *rotary, attention, *((gating,) if gate else ()), out)


def _indexer(hidden: int, q_rank: int, indexer: SparseIndexer) -> tuple[Operator, ...]:
    """Return the scorer of DeepSeek sparse attention: projections, and scores of every query and key.

    The scores themselves grow with the sequence and belong to the attention (`sparse_keys`).
    """
    width = indexer.num_heads * indexer.head_dim
    return (
        Matmul(name="index_q", in_features=q_rank, out_features=width, split=Split.NONE, shares_input=True),
        Matmul(
            name="index_k",
            in_features=hidden,
            out_features=indexer.head_dim,
            split=Split.NONE,
            shares_input=True,
        ),
        Norm(name="index_k_norm", features=indexer.head_dim, rms=False, bias=True),
        Matmul(
            name="index_weights",
            in_features=hidden,
            out_features=indexer.num_heads,
            split=Split.NONE,
            shares_input=True,
        ),
    )


def _latent_queries(spec: AttentionSpec, rank: int | None, queries: int) -> tuple[Operator, ...]:
    if rank is None:
        return (Matmul(name="q", in_features=spec.hidden, out_features=queries, split=Split.COLUMN),)
    return (
        Matmul(
            name="q_down", in_features=spec.hidden, out_features=rank, split=Split.NONE, bias=spec.qkv_bias
        ),
        Norm(name="q_latent_norm", features=rank),
        Matmul(name="q_up", in_features=rank, out_features=queries, split=Split.COLUMN),
    )


def _latent_attention(spec: AttentionSpec, mla: LatentAttention) -> tuple[Operator, ...]:
    """Return MLA in its training form: latents are expanded to keys and values of every head."""
    heads, qk_dim = spec.num_heads, mla.qk_nope_head_dim + mla.qk_rope_head_dim
    latent = mla.kv_lora_rank + mla.qk_rope_head_dim
    return (
        *_latent_queries(spec, mla.q_lora_rank, heads * qk_dim),
        Matmul(
            name="kv_down",
            in_features=spec.hidden,
            out_features=latent,
            split=Split.NONE,
            bias=spec.qkv_bias,
            shares_input=True,
        ),
        Norm(name="kv_latent_norm", features=mla.kv_lora_rank),
        Matmul(
            name="kv_up",
            in_features=mla.kv_lora_rank,
            out_features=heads * (mla.qk_nope_head_dim + mla.v_head_dim),
            split=Split.COLUMN,
        ),
        _rotary((heads + 1) * mla.qk_rope_head_dim),
        *(_indexer(spec.hidden, mla.q_lora_rank or spec.hidden, spec.indexer) if spec.indexer else ()),
        Attention(
            name="attention",
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=qk_dim,
            value_dim=mla.v_head_dim,
            causal=spec.causal,
            window=spec.window,
            kv_latent_dim=latent,
            sparse_keys=spec.indexer.num_keys if spec.indexer else None,
            index_dim=spec.indexer.head_dim if spec.indexer else 0,
            index_heads=spec.indexer.num_heads if spec.indexer else 0,
            num_params=spec.extra_params,
        ),
        Matmul(
            name="attention_out",
            in_features=heads * mla.v_head_dim,
            out_features=spec.hidden,
            split=Split.ROW,
            bias=spec.out_bias,
        ),
    )


def cross_attention_operators(spec: AttentionSpec) -> tuple[Operator, ...]:
    """Return attention from decoder tokens to encoder tokens (taken as equally many)."""
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return (
        Matmul(
            name="cross_q", in_features=spec.hidden, out_features=q, split=Split.COLUMN, bias=spec.qkv_bias
        ),
        Matmul(
            name="cross_kv",
            in_features=spec.hidden,
            out_features=2 * kv,
            split=Split.COLUMN,
            bias=spec.qkv_bias,
        ),
        Attention(
            name="cross_attention",
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            value_dim=spec.head_dim,
            causal=False,
            cross=True,
        ),
        Matmul(
            name="cross_out", in_features=q, out_features=spec.hidden, split=Split.ROW, bias=spec.out_bias
        ),
    )


def feed_forward_operators(
    spec: FeedForwardSpec, *, prefix: str = "", shares_input: bool = False
) -> tuple[Operator, ...]:
    """Return up (with gate), activation and down; `shares_input` when the operator before reads the same."""
    width = 2 * spec.ffn_hidden if spec.gated else spec.ffn_hidden
    down_bias = spec.bias if spec.down_bias is None else spec.down_bias
    return (
        Matmul(
            name=f"{prefix}gate_up" if spec.gated else f"{prefix}up",
            in_features=spec.hidden,
            out_features=width,
            split=Split.COLUMN,
            bias=spec.bias,
            shares_input=shares_input,
        ),
        Elementwise(
            name=f"{prefix}activation",
            reads=width,
            writes=spec.ffn_hidden,
            saved=width,
            split=Split.COLUMN,
        ),
        Matmul(
            name=f"{prefix}down",
            in_features=spec.ffn_hidden,
            out_features=spec.hidden,
            split=Split.ROW,
            bias=down_bias,
        ),
    )


def experts_operators(spec: ExpertsSpec) -> tuple[Operator, ...]:
    """Return the shared experts, if any, then router and routed experts."""
    shared: tuple[Operator, ...] = ()
    if spec.shared_ffn_hidden:
        network = FeedForwardSpec(
            hidden=spec.hidden, ffn_hidden=spec.shared_ffn_hidden, gated=spec.gated, bias=spec.bias
        )
        gate = Matmul(
            name="shared_gate", in_features=spec.hidden, out_features=1, split=Split.NONE, shares_input=True
        )
        shared = feed_forward_operators(network, prefix="shared_") + ((gate,) if spec.shared_gate else ())
    routed = Experts(
        name="experts",
        hidden=spec.hidden,
        ffn_hidden=spec.ffn_hidden,
        num_experts=spec.num_experts,
        top_k=spec.top_k,
        gated=spec.gated,
        bias=spec.bias,
        router_bias=spec.router_bias,
        router_hidden=spec.router_hidden,
        group_limit=spec.group_limit,
    )
    return (*shared, routed)


def residual(name: str, hidden: int, *, dropout: bool, num_branches: int = 1) -> Elementwise:
    """Return the add of `num_branches` outputs to the residual stream, after dropout if there is any."""
    return Elementwise(
        name=name,
        reads=(1 + num_branches) * hidden,
        writes=hidden,
        saved=0,
        saved_mask=hidden if dropout else 0,
        split=Split.NONE,
    )

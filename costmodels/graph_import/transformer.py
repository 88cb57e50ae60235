"""The one builder of decoder and encoder stacks, from GPT to mixtures of experts with latent attention.

`TransformerSpec` says what a stack is; `transformer_graph` makes its `ModelGraph`. The conventions of the
operators are those of `costmodels.graph_import.parts`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from costmodels.graph import Block, Elementwise, Embedding, Matmul, ModelGraph, Norm, Operator, Split
from costmodels.graph_import.parts import (
    AttentionSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LatentAttention,
    SparseIndexer,
    attention_operators,
    experts_operators,
    feed_forward_operators,
    residual,
)

__all__ = ["TransformerSpec", "transformer_from_spec", "transformer_graph"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSpec:
    """The dimensions and habits of one stack of layers."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    hidden: int
    ffn_hidden: int
    """Of the dense feed-forward networks."""
    num_layers: int
    num_heads: int
    vocab: int
    family: str = "transformer"
    num_kv_heads: int | None = None
    """None is as many as `num_heads`."""
    head_dim: int | None = None
    """None is `hidden / num_heads`."""
    max_seq_len: int | None = None
    causal: bool = True
    kind: Literal["decoder", "encoder"] = "decoder"
    gated: bool = False
    """SwiGLU or GeGLU: gate and up in place of up."""
    bias: bool = True
    """Of every matmul of a layer, unless one of the next four says otherwise."""
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    ffn_bias: bool | None = None
    down_bias: bool | None = None
    norm_bias: bool | None = None
    """None: layer norms have one, RMS norms have none."""
    rms: bool = False
    norm_layout: Literal["pre", "post", "branch-post", "sandwich", "parallel", "parallel-shared"] = "pre"
    """Post: norms after the adds (BERT); branch-post: norms of what is added (OLMo-2); sandwich: norms before
    and after both halves (Gemma-2); parallel: both halves read the layer's input, through two norms
    (GPT-NeoX) or one (Falcon-7B)."""
    qk_norm: Literal["head", "full"] | None = None
    qk_norm_layer: bool = False
    rotary: bool = False
    tied: bool = True
    head: bool = True
    """Ends in a projection to the vocabulary."""
    head_bias: bool = False
    final_norm: bool = True
    learned_positions: bool = False
    num_position_rows: int | None = None
    """Rows of the position table; None is `max_seq_len`."""
    token_types: int = 0
    embedding_norm: bool = False
    embedding_dim: int | None = None
    """Where it differs from `hidden` (OPT-350m): projections in and out follow."""
    dropout: bool = False
    """Hidden dropout; attention dropout too unless `attention_dropout` says otherwise."""
    attention_dropout: bool | None = None
    output_gate: bool = False
    """Queries come with a gate for the attention's output (Qwen3-Next)."""
    indexer: SparseIndexer | None = None
    sinks: bool = False
    """One learned softmax sink per head (gpt-oss)."""
    mla: LatentAttention | None = None
    window: int | None = None
    window_layers: tuple[bool, ...] | None = None
    """Which layers have the window; None is all of them."""
    num_experts: int = 0
    top_k: int = 0
    expert_ffn_hidden: int | None = None
    """Of one expert; None is `ffn_hidden`."""
    expert_bias: bool = False
    router_bias: bool = False
    group_limit: int | None = None
    num_shared_experts: int = 0
    shared_ffn_hidden: int | None = None
    """Of all shared experts together; None is `num_shared_experts` times one expert."""
    shared_gate: bool = False
    first_dense_layers: int = 0
    moe_layers: tuple[bool, ...] | None = None
    """Which layers have experts; None is all after the first dense ones."""
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("hidden", "ffn_hidden", "num_layers", "num_heads", "vocab"):
            if getattr(self, name) < 1:
                message = f"{name} must be at least 1, not {getattr(self, name)}"
                raise ValueError(message)
        if self.head_dim is None and self.hidden % self.num_heads:
            message = f"num_heads ({self.num_heads}) must divide hidden ({self.hidden}) without head_dim"
            raise ValueError(message)
        if self.num_heads % self.kv_heads:
            message = f"num_kv_heads ({self.kv_heads}) must divide num_heads ({self.num_heads})"
            raise ValueError(message)
        if not 0 <= self.top_k <= self.num_experts or bool(self.top_k) != bool(self.num_experts):
            message = f"top_k ({self.top_k}) must lie between 1 and num_experts ({self.num_experts})"
            raise ValueError(message)
        for name in ("window_layers", "moe_layers"):
            layers = getattr(self, name)
            if layers is not None and len(layers) != self.num_layers:
                message = f"{name} has {len(layers)} entries for {self.num_layers} layers"
                raise ValueError(message)
        if self.learned_positions and not (self.num_position_rows or self.max_seq_len):
            message = "learned_positions needs max_seq_len or num_position_rows"
            raise ValueError(message)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def qk_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.num_heads if self.head_dim is None else self.head_dim

    def has_experts(self, layer: int) -> bool:
        """Whether layer number `layer` routes its tokens to experts."""
        if not self.num_experts:
            return False
        if self.moe_layers is not None:
            return self.moe_layers[layer]
        return layer >= self.first_dense_layers

    def layer_window(self, layer: int) -> int | None:
        """Return the attention window of layer number `layer`."""
        if self.window is None or self.window_layers is None:
            return self.window
        return self.window if self.window_layers[layer] else None


def transformer_graph(**dimensions: Any) -> ModelGraph:
    """Return the graph of the stack with these fields of `TransformerSpec`.

    Examples
    --------
    >>> gpt2 = transformer_graph(name="gpt2", hidden=768, ffn_hidden=3072, num_layers=12, num_heads=12,
    ...                          vocab=50257, max_seq_len=1024, learned_positions=True)
    >>> gpt2.num_params
    124439808
    """
    return transformer_from_spec(TransformerSpec(**dimensions))


def transformer_from_spec(spec: TransformerSpec) -> ModelGraph:
    """Return the graph of `spec`; layers with the same operators share one block."""
    kinds: dict[tuple[int | None, bool], int] = {}
    blocks: list[Block] = []
    layers: list[int] = []
    for layer in range(spec.num_layers):
        kind = (spec.layer_window(layer), spec.has_experts(layer))
        if kind not in kinds:
            kinds[kind] = len(blocks)
            blocks.append(_block(spec, window=kind[0], experts=kind[1]))
        layers.append(kinds[kind])
    return ModelGraph(
        name=spec.name,
        family=spec.family,
        hidden=spec.hidden,
        vocab=spec.vocab,
        blocks=tuple(blocks),
        layers=tuple(layers),
        inputs=_inputs(spec),
        outputs=_outputs(spec),
        tied_head=spec.tied and spec.head,
        max_seq_len=spec.max_seq_len,
        attention_dropout=spec.dropout if spec.attention_dropout is None else spec.attention_dropout,
        kind=spec.kind,
        source=spec.source,
    )


def _norm(spec: TransformerSpec, name: str, *, shares_input: bool = False) -> Norm:
    bias = not spec.rms if spec.norm_bias is None else spec.norm_bias
    return Norm(name=name, features=spec.hidden, bias=bias, rms=spec.rms, shares_input=shares_input)


def _attention(spec: TransformerSpec, window: int | None) -> tuple[Operator, ...]:
    return attention_operators(
        AttentionSpec(
            hidden=spec.hidden,
            num_heads=spec.num_heads,
            num_kv_heads=spec.kv_heads,
            head_dim=spec.qk_dim,
            qkv_bias=spec.bias if spec.qkv_bias is None else spec.qkv_bias,
            out_bias=spec.bias if spec.out_bias is None else spec.out_bias,
            causal=spec.causal,
            window=window,
            rotary=spec.rotary,
            qk_norm=spec.qk_norm,
            qk_norm_layer=spec.qk_norm_layer,
            extra_params=spec.num_heads if spec.sinks else 0,
            latent=spec.mla,
            output_gate=spec.output_gate,
            indexer=spec.indexer,
        )
    )


def _feed_forward(spec: TransformerSpec, *, shares_input: bool = False) -> tuple[Operator, ...]:
    network = FeedForwardSpec(
        hidden=spec.hidden,
        ffn_hidden=spec.ffn_hidden,
        gated=spec.gated,
        bias=spec.bias if spec.ffn_bias is None else spec.ffn_bias,
        down_bias=spec.down_bias,
    )
    return feed_forward_operators(network, shares_input=shares_input)


def _experts(spec: TransformerSpec) -> tuple[Operator, ...]:
    width = spec.ffn_hidden if spec.expert_ffn_hidden is None else spec.expert_ffn_hidden
    shared = spec.num_shared_experts * width if spec.shared_ffn_hidden is None else spec.shared_ffn_hidden
    return experts_operators(
        ExpertsSpec(
            hidden=spec.hidden,
            ffn_hidden=width,
            num_experts=spec.num_experts,
            top_k=spec.top_k,
            gated=spec.gated,
            bias=spec.expert_bias,
            router_bias=spec.router_bias,
            group_limit=spec.group_limit,
            shared_ffn_hidden=shared,
            shared_gate=spec.shared_gate,
        )
    )


def _block(spec: TransformerSpec, *, window: int | None, experts: bool) -> Block:
    attention = _attention(spec, window)
    shared = spec.norm_layout == "parallel-shared"
    second = _experts(spec) if experts else _feed_forward(spec, shares_input=shared)
    add_1 = residual("attention_add", spec.hidden, dropout=spec.dropout)
    add_2 = residual("ffn_add", spec.hidden, dropout=spec.dropout)
    both = residual("parallel_add", spec.hidden, dropout=spec.dropout, num_branches=2)
    norm_1, norm_2 = _norm(spec, "attention_norm"), _norm(spec, "ffn_norm")
    after_1, after_2 = _norm(spec, "attention_post_norm"), _norm(spec, "ffn_post_norm")
    sibling = _norm(spec, "ffn_norm", shares_input=True)
    arrangements: dict[str, tuple[Operator, ...]] = {
        "pre": (norm_1, *attention, add_1, norm_2, *second, add_2),
        "post": (*attention, add_1, norm_1, *second, add_2, norm_2),
        "branch-post": (*attention, after_1, add_1, *second, after_2, add_2),
        "sandwich": (norm_1, *attention, after_1, add_1, norm_2, *second, after_2, add_2),
        "parallel": (norm_1, *attention, sibling, *second, both),
        "parallel-shared": (norm_1, *attention, *second, both),
    }
    name = ("moe" if experts else "dense") + ("" if window is None else "-window")
    return Block(
        name=name,
        operators=arrangements[spec.norm_layout],
        num_reductions=1 if spec.norm_layout.startswith("parallel") else 2,
    )


def _inputs(spec: TransformerSpec) -> tuple[Operator, ...]:
    width = spec.hidden if spec.embedding_dim is None else spec.embedding_dim
    operators: list[Operator] = [Embedding(name="tokens", num_rows=spec.vocab, features=width)]
    if width != spec.hidden:
        operators.append(
            Matmul(name="embedding_in", in_features=width, out_features=spec.hidden, split=Split.NONE)
        )
    rows = (spec.num_position_rows or spec.max_seq_len or 0) if spec.learned_positions else 0
    for name, count in (("positions", rows), ("token_types", spec.token_types)):
        if count:
            operators.append(Embedding(name=name, num_rows=count, features=spec.hidden, split=Split.NONE))
    if spec.embedding_norm:
        operators.append(_norm(spec, "embedding_norm"))
    if spec.dropout:
        operators.append(
            Elementwise(
                name="embedding_dropout",
                reads=spec.hidden,
                writes=spec.hidden,
                saved=0,
                saved_mask=spec.hidden,
            )
        )
    return tuple(operators)


def _outputs(spec: TransformerSpec) -> tuple[Operator, ...]:
    width = spec.hidden if spec.embedding_dim is None else spec.embedding_dim
    operators: list[Operator] = [_norm(spec, "final_norm")] if spec.final_norm else []
    if width != spec.hidden:
        operators.append(
            Matmul(name="embedding_out", in_features=spec.hidden, out_features=width, split=Split.NONE)
        )
    if spec.head:
        operators.append(
            Matmul(
                name="head",
                in_features=width,
                out_features=spec.vocab,
                split=Split.COLUMN,
                bias=spec.head_bias,
            )
        )
    return tuple(operators)

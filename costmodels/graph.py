"""A model as operators with shapes per token, grouped into blocks with repeat counts.

The operators are few and typed, so a cost model walks over them once and works on columns of
configurations; no operator knows about parallel degrees beyond *how* it may be split.
Weights and activations are counted in elements here; dtypes belong to the strategy.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

__all__ = [
    "Attention",
    "Block",
    "Elementwise",
    "Embedding",
    "Experts",
    "Generic",
    "Matmul",
    "ModelGraph",
    "Norm",
    "Operator",
    "Split",
    "StateSpace",
]


class Split(StrEnum):
    """How tensor parallelism may cut an operator."""

    COLUMN = "column"
    """Output features are cut; the input is whole (or gathered first)."""
    ROW = "row"
    """Input features are cut; the output needs a reduction over the tensor group."""
    NONE = "none"
    """Replicated over the tensor group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matmul:
    """A dense layer: every token's `in_features` to `out_features`."""

    name: str
    in_features: int
    out_features: int
    split: Split
    bias: bool = False
    tokens_frac: float = 1.0
    """Rows per token of the block: below one where only some tokens pass."""
    shares_input: bool = False
    """Reads the same input as the operator before it, so nothing more is saved for backward."""

    @property
    def num_params(self) -> int:
        """Weights plus biases."""
        return self.in_features * self.out_features + (self.out_features if self.bias else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Scores, softmax and the sum over values; projections are separate matmuls."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Of queries and keys."""
    value_dim: int
    causal: bool = True
    window: int | None = None
    """Keys that a query may see, newest first; None is all."""
    kv_latent_dim: int | None = None
    """MLA: what is cached per token in place of keys and values."""
    cross: bool = False
    """Keys come from the encoder."""
    sparse_keys: int | None = None
    """Keys that each query attends to, chosen by an indexer among all that are cached; None is all."""
    index_heads: int = 0
    index_dim: int = 0
    """Heads and width of that indexer; it scores every key and caches `index_dim` elements per token."""
    num_params: int = 0
    """Learned relative position biases, sinks and the like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A layer or RMS norm over `features`; replicated over the tensor group."""

    name: str
    features: int
    bias: bool = False
    rms: bool = True
    over_heads: bool = False
    """Applied to queries or keys per head (its activations follow the heads' split)."""
    copies: int = 1
    """How many times the norm runs per token (per head norms share one weight)."""
    shares_input: bool = False
    """Reads what an earlier norm of the block read, so nothing more is saved for backward."""

    @property
    def num_params(self) -> int:
        """Scale, and shift for a layer norm with bias."""
        return self.features * (2 if self.bias else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise:
    """Reads `reads` and writes `writes` elements per token; follows the split of what it reads."""

    name: str
    reads: int
    writes: int
    saved: int
    """Elements per token kept for backward."""
    saved_mask: int = 0
    """Bytes per token of dropout masks kept for backward."""
    split: Split = Split.NONE
    num_params: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """A look-up table of `num_rows` by `features`; cut over rows by tensor parallelism when `split`."""

    name: str
    num_rows: int
    features: int
    split: Split = Split.COLUMN

    @property
    def num_params(self) -> int:
        """Size of the table."""
        return self.num_rows * self.features


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Routed feed-forward networks: each token goes to `top_k` of `num_experts`."""

    name: str
    hidden: int
    ffn_hidden: int
    """Of one expert."""
    num_experts: int
    top_k: int
    gated: bool = True
    bias: bool = False
    router_bias: bool = False
    router_hidden: int | None = None
    """Width that the router reads, where experts work in a narrower space; None is `hidden`."""
    group_limit: int | None = None
    """Nodes (or groups) that one token may reach; None is no limit."""

    @property
    def num_params_per_expert(self) -> int:
        """Weights of one expert."""
        up = 2 if self.gated else 1
        bias = (up * self.ffn_hidden + self.hidden) if self.bias else 0
        return (up + 1) * self.hidden * self.ffn_hidden + bias

    @property
    def num_router_params(self) -> int:
        """Weights that score the experts; replicated."""
        width = self.hidden if self.router_hidden is None else self.router_hidden
        return width * self.num_experts + (self.num_experts if self.router_bias else 0)

    @property
    def num_params(self) -> int:
        """All experts and the router."""
        return self.num_experts * self.num_params_per_expert + self.num_router_params


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpace:
    """A selective state-space mixer (Mamba): short convolution and scan; projections are separate."""

    name: str
    inner: int
    state: int
    conv: int
    num_heads: int = 1
    num_params: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generic:
    """Any other operator, by what it does per token (or per sample, when `tokens_frac` says so)."""

    name: str
    flops: float
    """Multiply-adds counted as two, forward, per token."""
    reads: float
    writes: float
    """Elements moved per token, forward."""
    saved: float
    """Elements per token kept for backward."""
    num_params: int = 0
    split: Split = Split.NONE


Operator = Matmul | Attention | Norm | Elementwise | Embedding | Experts | StateSpace | Generic


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Operators in order, run once per layer of this kind."""

    name: str
    operators: tuple[Operator, ...]
    num_reductions: int = 2
    """Row-split outputs that tensor parallelism must reduce, forward (two in a transformer layer)."""

    @property
    def num_params(self) -> int:
        """Parameters of one such layer."""
        return sum(op.num_params for op in self.operators)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGraph:
    """A network: input operators, a run of layers (each naming its block), output operators.

    `layers` holds one index into `blocks` per layer, in order, so uneven networks (dense first layers of
    a mixture of experts, alternating windows, hybrids) keep their true order for stage splits.
    """

    name: str
    family: str
    """Hugging Face model type, or "graph" for a network built from operators."""
    hidden: int
    vocab: int
    blocks: tuple[Block, ...]
    layers: tuple[int, ...]
    inputs: tuple[Operator, ...]
    """Token and position embeddings and what stands before the first layer; first stage."""
    outputs: tuple[Operator, ...]
    """Final norm and head; last stage. A tied head keeps its Matmul, the last one, and sets `tied_head`."""
    tied_head: bool = False
    max_seq_len: int | None = None
    attention_dropout: bool = False
    kind: Literal["decoder", "encoder", "encoder-decoder", "vision", "graph"] = "decoder"
    encoder_layers: int = 0
    """How many of `layers` (the first ones) belong to the encoder."""
    source: str = field(default="", compare=False)
    """Where the dimensions come from."""

    @property
    def num_layers(self) -> int:
        """Layers in all."""
        return len(self.layers)

    @property
    def num_params(self) -> int:
        """Parameters in all; a tied head counts once."""
        body = sum(self.blocks[i].num_params for i in self.layers)
        ends = sum(op.num_params for op in self.inputs + self.outputs)
        heads = [op for op in self.outputs if isinstance(op, Matmul)]
        tied = heads[-1].in_features * heads[-1].out_features if self.tied_head and heads else 0
        return body + ends - tied

    @property
    def num_active_params(self) -> int:
        """Parameters that one token passes through (top-k experts only)."""
        idle = 0
        for i in self.layers:
            for op in self.blocks[i].operators:
                if isinstance(op, Experts):
                    idle += (op.num_experts - op.top_k) * op.num_params_per_expert
        return self.num_params - idle

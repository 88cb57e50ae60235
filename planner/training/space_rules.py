"""The rules that make a training strategy legal, each with a name and a reason, and what a model allows."""

from dataclasses import dataclass
from math import gcd

from costmodels.graph import Attention, Experts, Matmul, ModelGraph, Split, StateSpace

__all__ = ["RULES", "ModelLimits", "divisors", "model_limits"]

RULES: dict[str, str] = {
    "tp-divides-heads": "the tensor-parallel degree divides the attention heads of every layer",
    "tp-divides-kv-heads": "the tensor-parallel degree divides the key-value heads, or is a multiple of them",
    "tp-divides-features": "the tensor-parallel degree divides the features of every split layer",
    "layers-per-stage": "every pipeline stage (and model chunk) holds at least one layer",
    "even-layers-for-interleaving": "interleaving needs the same number of layers in every model chunk; "
    "embedding and head may stand in for one layer each where the stack can place them so",
    "cp-splits-the-sequence": "a sequence is cut into 2 x cp equal pieces, so that causal work is balanced",
    "cp-needs-causal-attention": "context parallelism needs a decoder whose every mixer is attention",
    "global-batch-divisible": "replicas times micro-batch divides the global batch",
    "microbatches-multiple-of-pp-for-interleaving": "interleaving runs micro-batches in rounds of pp",
    "ep-divides-experts": "the expert-parallel degree divides the experts of every layer",
    "experts-divide-the-stage": "ep x etp divides the ranks of one pipeline stage",
    "etp-divides-expert-features": "the expert tensor degree divides the features of an expert",
    "tokens-divide-tp": "sequence parallelism needs seq_len / cp divisible by tp",
    "experts-need-sequence-parallel": "experts under tensor parallelism take sequence-parallel input",
    "full-shards-need-one-stage": "sharded gradients or weights are gathered for every micro-batch of a "
    "pipeline; this stack allows them without pipeline parallelism only",
    "shard-groups-fill-a-level": "a shard group of some replicas ends at a border of the cluster's levels",
    "tp-overlap-inside-scale-up": "tile-wise overlap needs the tensor group inside one scale-up domain",
    "request-allows": "the request allows other values only",
}
"""Every rule that can exclude a family of strategies, with the condition it demands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What a model's shapes allow; every number is one that degrees must divide."""

    num_layers: int
    heads: int
    """Greatest common divisor over layers; 0 without heads."""
    kv_heads: tuple[int, ...]
    features: int
    """Greatest common divisor of all features that tensor parallelism cuts; 0 when it cuts none."""
    experts: int
    """Greatest common divisor of the layers' experts; 0 for a dense model."""
    expert_features: int
    causal: bool
    """Every mixer is causal attention."""


def model_limits(model: ModelGraph) -> ModelLimits:
    """Return what the operators of `model` allow."""
    heads = features = experts = expert_features = 0
    kv_heads: set[int] = set()
    causal = model.kind == "decoder"
    for op in (op for block in model.blocks for op in block.operators):
        if isinstance(op, Attention):
            heads = gcd(heads, op.num_heads)
            kv_heads.add(op.num_kv_heads)
            causal = causal and op.causal and not op.cross
        elif isinstance(op, StateSpace):
            heads = gcd(heads, op.num_heads)
            causal = False
        elif isinstance(op, Matmul) and op.split is not Split.NONE:
            features = gcd(features, op.out_features if op.split is Split.COLUMN else op.in_features)
        elif isinstance(op, Experts):
            experts = gcd(experts, op.num_experts)
            expert_features = gcd(expert_features, op.ffn_hidden)
    return ModelLimits(
        num_layers=model.num_layers,
        heads=heads,
        kv_heads=tuple(sorted(kv_heads)),
        features=features,
        experts=experts,
        expert_features=expert_features,
        causal=causal and bool(kv_heads),
    )


def divisors(number: int) -> list[int]:
    """Return all divisors, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted(set(small) | {number // d for d in small})

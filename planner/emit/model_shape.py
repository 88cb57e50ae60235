"""The dimensions that frameworks ask for, read from a model's operators."""

from dataclasses import dataclass

from costmodels.graph import Attention, Block, Embedding, Experts, Matmul, ModelGraph, Norm, StateSpace
from hardware.errors import OutOfDomainError

__all__ = ["LatentShape", "ModelShape", "model_shape"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShape:
    """Multi-head latent attention."""

    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder stack as frameworks describe it."""

    name: str
    num_layers: int
    hidden: int
    ffn_hidden: int
    """Of dense layers; of one expert where no layer is dense."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    max_seq_len: int | None
    gated: bool
    rms: bool
    bias: bool
    qkv_bias: bool
    rotary: bool
    learned_positions: bool
    qk_norm: bool
    tied_head: bool
    window: int | None
    num_experts: int = 0
    top_k: int = 0
    expert_ffn_hidden: int = 0
    shared_ffn_hidden: int = 0
    group_limit: int | None = None
    router_bias: bool = False
    expert_layers: tuple[bool, ...] = ()
    """Which layers have experts."""
    latent: LatentShape | None = None


def model_shape(model: ModelGraph) -> ModelShape:
    """Return the dimensions of a decoder.

    Raises
    ------
    OutOfDomainError
        if the model is no decoder of attention layers, which no emitter can describe to a framework.
    """
    operators = [op for block in model.blocks for op in block.operators]
    attention = next((op for op in operators if isinstance(op, Attention)), None)
    if model.kind != "decoder" or attention is None or any(isinstance(op, StateSpace) for op in operators):
        message = (
            f"model {model.name} ({model.kind}, {model.family}) is no decoder of attention layers only; "
            "launch files can be written for those"
        )
        raise OutOfDomainError(message)
    matmuls = {op.name: op for op in operators if isinstance(op, Matmul)}
    experts = next((op for op in operators if isinstance(op, Experts)), None)
    down, first = matmuls.get("down"), next(op for op in operators if isinstance(op, Norm))
    ffn = down.in_features if down else experts.ffn_hidden if experts else 0
    shared = matmuls.get("shared_down")
    windows = {op.window for op in operators if isinstance(op, Attention)}
    return ModelShape(
        name=model.name,
        num_layers=model.num_layers,
        hidden=model.hidden,
        ffn_hidden=ffn,
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        vocab=model.vocab,
        max_seq_len=model.max_seq_len,
        gated="gate_up" in matmuls or bool(experts and experts.gated),
        rms=first.rms,
        bias=matmuls["attention_out"].bias or bool(down and down.bias),
        qkv_bias=any(m.bias for name, m in matmuls.items() if name in ("qkv", "q", "q_up")),
        rotary=any(op.name == "rotary" for op in operators),
        learned_positions=any(isinstance(op, Embedding) and op.name == "positions" for op in model.inputs),
        qk_norm=any(op.name == "q_norm" for op in operators),
        tied_head=model.tied_head,
        window=max((w for w in windows if w is not None), default=None),
        num_experts=experts.num_experts if experts else 0,
        top_k=experts.top_k if experts else 0,
        expert_ffn_hidden=experts.ffn_hidden if experts else 0,
        shared_ffn_hidden=shared.in_features if shared else 0,
        group_limit=experts.group_limit if experts else None,
        router_bias=bool(experts and experts.router_bias),
        expert_layers=tuple(_has_experts(model.blocks[i]) for i in model.layers) if experts else (),
        latent=_latent(matmuls, attention),
    )


def _has_experts(block: Block) -> bool:
    return any(isinstance(op, Experts) for op in block.operators)


def _latent(matmuls: dict[str, Matmul], attention: Attention) -> LatentShape | None:
    if attention.kv_latent_dim is None or "kv_up" not in matmuls:
        return None
    kv_rank = matmuls["kv_up"].in_features
    rope = attention.kv_latent_dim - kv_rank
    down = matmuls.get("q_down")
    return LatentShape(
        q_rank=down.out_features if down else None,
        kv_rank=kv_rank,
        nope_dim=attention.head_dim - rope,
        rope_dim=rope,
        value_dim=attention.value_dim,
    )

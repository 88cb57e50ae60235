"""Times of one layer and one micro-batch on one rank, for every distinct way to shard it.

A search space holds millions of strategies and only hundreds of distinct shards (tensor, context and expert
degrees, micro-batch, sequence parallelism). Operators are therefore costed on the distinct shards; the step
model gathers them by row. Times here are kernel and collective times as measured alone; what a software
stack adds to or hides of them is the step model's business.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from costmodels.collectives.times import Collective, collective_s
from costmodels.graph import (
    Attention,
    Block,
    Elementwise,
    Embedding,
    Experts,
    Generic,
    Matmul,
    ModelGraph,
    Norm,
    Operator,
    Split,
    StateSpace,
)
from costmodels.kernels.times import KernelModel
from costmodels.training.ring_attention import ring_attention_s
from hardware.levels import Level

__all__ = ["LOSS_BYTES_PER_LOGIT", "LayerCosts", "Shards", "element_bytes", "layer_costs", "matmul_dtype"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_WIDE_FORMATS = ("fp32", "tf32")
_NORM_BACKWARD_TRAFFIC = 2.0
"""Backward of a norm reads input and output gradient and writes one: 6 bytes against 4, plus partial sums."""
_VECTOR_BACKWARD_TRAFFIC = 1.5
_CAST_BYTES_PER_ELEMENT = 2.0
"""Beyond the quantisation that a measured 8-bit matmul includes: a pass of its own for the maximum."""
LOSS_BYTES_PER_LOGIT = 52.0
"""Traffic of a cross entropy written with tensor operations over a vocabulary cut by tensor parallelism:
widen to fp32 (2 + 4 bytes), maximum (4), subtract (8), exponentials (8), sum (4), divide (8), scale the
gradient (8), narrow it (6); counted in Megatron's vocabulary-parallel loss."""
_ALIGNED_ELEMENTS = 64
"""Dimensions that are multiples of 128 bytes keep matmuls of A100 and later on their fast path
(NVIDIA, Matrix Multiplication Background User's Guide, section 4.1)."""
_EXPERT_TILE_ROWS = 128
"""Rows to which a grouped matmul pads each expert's tokens (CUTLASS tile height)."""
_ROUTING_PASSES = 6.0
"""Reads and writes of every routed token for permute, pad, weight and unpermute (two each way, forward)."""
_SCAN_PASSES = 16.0
_SCAN_BACKWARD_TRAFFIC = 2.5
"""Reads and writes of the inner width by a chunked state-space scan: convolution, chunk states in fp32, state
passing, chunk scan, gate and norm; its backward runs most of them twice (counted in Mamba-2's kernels;
assumed)."""
_SCAN_MATMUL_SLOWDOWN = 5.0
"""Chunked scans reach about a fifth of the matmul rate (assumed)."""
_OPS_PER_SCAN = 12.0
_OPS_PER_EXPERTS = 45
"""Host launches of one routed layer: router, top-k, auxiliary loss, permutation maps, dispatch, a launch or
more per
group of experts, activation, combine, unpermute (counted roughly in Megatron-core's token dispatcher;
assumed)."""


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """Distinct ways to cut one layer, as equal-length columns."""

    tp: Ints
    cp: Ints
    ep: Ints
    etp: Ints
    micro_batch: Ints
    sequence_parallel: Ints

    def __len__(self) -> int:
        return len(self.tp)


@dataclass(slots=True, eq=False)
class LayerCosts:
    """Seconds per layer and micro-batch (mean over the model's layers), one row per shard.

    ``head`` columns belong to the last stage, ``embed`` to the first; both are per micro-batch.
    """

    gemm_fwd_s: Floats
    gemm_bwd_s: Floats
    misaligned_s: Floats
    """Part of forward matmul time whose cut dimensions are no multiples of 64 elements."""
    attn_fwd_s: Floats
    attn_bwd_s: Floats
    unfused_fwd_s: Floats
    """Attention through batched matmuls and a softmax kernel, in place of the flash kernel."""
    unfused_bwd_s: Floats
    learned_fwd_s: Floats
    """What attention with learned sinks or biases takes more where no fused kernel handles them."""
    learned_bwd_s: Floats
    vector_fwd_s: Floats
    vector_bwd_s: Floats
    norm_fwd_s: Floats
    """Fused norms; a stack without them passes over the tensor several times."""
    norm_bwd_s: Floats
    expert_fwd_s: Floats
    expert_bwd_s: Floats
    routing_s: Floats
    """Permutation traffic of routed tokens, each way."""
    cast_s: Floats
    """Scaling to 8 bits or fewer by kernels of its own, forward."""
    num_ops: Floats
    """Kernel launches by the host, forward."""
    tp_fwd_s: Floats
    tp_bwd_s: Floats
    num_collectives: Floats
    ep_s: Floats
    """Dispatch and combine, forward (the same again in backward)."""
    cp_s: Floats
    """Key and value exchange of context parallelism, forward."""
    head_gemm_fwd_s: Floats
    head_gemm_bwd_s: Floats
    head_vector_s: Floats
    """Norms and element-wise work of the head, forward and backward."""
    loss_s: Floats
    """Cross entropy, forward and backward, at `LOSS_BYTES_PER_LOGIT`; a stack may need fewer."""
    embed_s: Floats

    @classmethod
    def zeros(cls, rows: int) -> "LayerCosts":
        """Return costs of nothing for `rows` shards."""
        return cls(**{f.name: np.zeros(rows) for f in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    """What every operator needs to be costed."""

    shards: Shards
    seq_len: int
    precision: str
    kernels: KernelModel
    levels: tuple[Level, ...]
    tokens: Floats
    """Tokens per micro-batch and context shard. shape (rows,)"""
    replicated_tokens: Floats
    """Tokens that a replicated operator sees: cut by tp under sequence parallelism."""

    @property
    def element_bytes(self) -> float:
        """Return the bytes of an activation."""
        return element_bytes(self.precision)


def element_bytes(precision: str) -> float:
    """Return the bytes of an activation or weight: 16 bits in every mixed precision."""
    return 4.0 if precision.lower() in _WIDE_FORMATS else 2.0


def matmul_dtype(precision: str) -> str:
    """Return the kernel dtype of linear layers for a training precision."""
    name = precision.lower()
    if name in ("bf16", "fp16"):
        return "bf16"
    if name in ("fp32", "tf32"):
        return name
    if "fp4" in name:
        return "nvfp4"
    return "fp8"


def _dtypes(ctx: _Context, op: Matmul) -> tuple[str, str]:
    """Return the dtype of forward and data-gradient, and of the weight-gradient matmul."""
    dtype = matmul_dtype(ctx.precision)
    if op.split is Split.NONE:
        wide = dtype if dtype in _WIDE_FORMATS else "bf16"
        return wide, wide
    return dtype, ("fp8" if dtype == "nvfp4" else dtype)


def _add_matmul(out: LayerCosts, op: Matmul, weight: float, ctx: _Context) -> None:
    tp = ctx.shards.tp
    rows = ctx.replicated_tokens if op.split is Split.NONE else ctx.tokens
    rows = np.maximum(rows * op.tokens_frac, 1.0)
    wide = op.out_features / np.where(op.split is Split.COLUMN, tp, 1)
    deep = op.in_features / np.where(op.split is Split.ROW, tp, 1)
    dtype, grad_dtype = _dtypes(ctx, op)
    forward = ctx.kernels.matmul_s(rows, wide, deep, dtype=dtype)
    out.gemm_fwd_s += weight * forward
    ragged = (wide % _ALIGNED_ELEMENTS > 0) | (deep % _ALIGNED_ELEMENTS > 0)
    out.misaligned_s += weight * forward * ragged
    out.gemm_bwd_s += weight * (
        ctx.kernels.matmul_s(rows, deep, wide, dtype=dtype)
        + ctx.kernels.matmul_s(deep, wide, rows, dtype=grad_dtype)
    )
    if dtype not in ("bf16", "fp32", "tf32"):
        moved = rows * (deep + wide) * _CAST_BYTES_PER_ELEMENT
        out.cast_s += weight * ctx.kernels.memory_s(moved)
    out.num_ops += weight


def _add_attention(out: LayerCosts, op: Attention, weight: float, ctx: _Context) -> None:
    shards = ctx.shards
    heads = np.maximum(op.num_heads / shards.tp, 1.0)
    kv_heads = np.maximum(op.num_kv_heads / shards.tp, 1.0)
    batch = shards.micro_batch.astype(np.float64)
    length = np.full(len(shards), float(ctx.seq_len))
    fused = [np.zeros(len(shards)), np.zeros(len(shards))]
    for backward, total in ((False, out.attn_fwd_s), (True, out.attn_bwd_s)):
        fused[backward] = ring_attention_s(
            op,
            ctx.kernels,
            cp=shards.cp,
            batch=batch,
            seq_len=length,
            heads=heads,
            kv_heads=kv_heads,
            backward=backward,
        )
        total += weight * fused[backward]
    for backward, total, learned in (
        (False, out.unfused_fwd_s, out.learned_fwd_s),
        (True, out.unfused_bwd_s, out.learned_bwd_s),
    ):
        seconds = ctx.kernels.unfused_attention_s(
            batch=batch, q_len=length, kv_len=length, heads=heads, head_dim=op.head_dim, backward=backward
        )
        total += weight * seconds / shards.cp
        if op.num_params:
            learned += weight * np.maximum(seconds / shards.cp - fused[backward], 0.0)
    kv_bytes = shards.micro_batch * length * kv_heads * (op.head_dim + op.value_dim) * ctx.element_bytes
    out.cp_s += weight * collective_s(Collective.ALL_GATHER, kv_bytes, shards.tp, shards.cp, ctx.levels)
    out.num_ops += weight


def _add_vector(out: LayerCosts, elements_fwd: Floats, backward: float, weight: float, ctx: _Context) -> None:
    out.vector_fwd_s += weight * ctx.kernels.memory_s(elements_fwd * ctx.element_bytes)
    out.vector_bwd_s += weight * ctx.kernels.memory_s(elements_fwd * ctx.element_bytes * backward)
    out.num_ops += weight


def _add_norm(out: LayerCosts, op: Norm, weight: float, ctx: _Context) -> None:
    tokens = ctx.tokens / ctx.shards.tp if op.over_heads else ctx.replicated_tokens
    moved = 2.0 * tokens * op.features * op.copies * ctx.element_bytes
    out.norm_fwd_s += weight * ctx.kernels.memory_s(moved, norm=True)
    out.norm_bwd_s += weight * ctx.kernels.memory_s(moved * _NORM_BACKWARD_TRAFFIC, norm=True)
    out.num_ops += weight


def _add_experts(out: LayerCosts, op: Experts, weight: float, ctx: _Context) -> None:
    shards = ctx.shards
    router_rows = ctx.replicated_tokens
    out.gemm_fwd_s += weight * ctx.kernels.matmul_s(router_rows, op.num_experts, op.hidden, dtype="bf16")
    out.gemm_bwd_s += weight * 2 * ctx.kernels.matmul_s(router_rows, op.num_experts, op.hidden, dtype="bf16")
    local = np.maximum(op.num_experts / shards.ep, 1.0)
    routed = ctx.tokens * op.top_k * shards.etp / shards.tp
    rows = local * np.ceil(routed / local / _EXPERT_TILE_ROWS) * _EXPERT_TILE_ROWS
    up = (2 if op.gated else 1) * op.ffn_hidden / shards.etp
    down = op.ffn_hidden / shards.etp
    dtype = matmul_dtype(ctx.precision)
    per_expert = np.maximum(rows / local, 1.0)
    for wide, deep in (
        (up, np.full(len(shards), float(op.hidden))),
        (np.full(len(shards), float(op.hidden)), down),
    ):
        forward = ctx.kernels.expert_matmul_s(local, per_expert, wide, deep, dtype=dtype)
        data = ctx.kernels.expert_matmul_s(local, per_expert, deep, wide, dtype=dtype)
        grad = ctx.kernels.expert_matmul_s(
            local, deep, wide, per_expert, dtype="fp8" if dtype == "nvfp4" else dtype
        )
        out.expert_fwd_s += weight * forward
        out.expert_bwd_s += weight * (data + grad)
        if dtype not in ("bf16", "fp32", "tf32"):
            out.cast_s += weight * ctx.kernels.memory_s(rows * (deep + wide) * _CAST_BYTES_PER_ELEMENT)
    activation = rows * (up + down) * ctx.element_bytes
    out.vector_fwd_s += weight * ctx.kernels.memory_s(activation)
    out.vector_bwd_s += weight * ctx.kernels.memory_s(activation * _VECTOR_BACKWARD_TRAFFIC)
    out.routing_s += weight * ctx.kernels.memory_s(routed * op.hidden * ctx.element_bytes * _ROUTING_PASSES)
    sent = routed * op.hidden * ctx.element_bytes
    hop = collective_s(Collective.ALL_TO_ALL, sent, shards.etp, shards.ep, ctx.levels)
    gather = collective_s(
        Collective.ALL_GATHER, sent * shards.etp, np.ones_like(shards.etp), shards.etp, ctx.levels
    )
    out.ep_s += weight * (2 * hop + 2 * gather)
    out.num_ops += weight * _OPS_PER_EXPERTS


def _add_state_space(out: LayerCosts, op: StateSpace, weight: float, ctx: _Context) -> None:
    """Add a chunked scan (Dao and Gu, arXiv 2405.21060, section 6): matmuls in chunks, passes over states."""
    inner = op.inner / ctx.shards.tp
    moved = ctx.tokens * inner * (_SCAN_PASSES + op.conv / 2.0)
    _add_vector(out, moved, _SCAN_BACKWARD_TRAFFIC, weight, ctx)
    chunk = ctx.kernels.matmul_s(ctx.tokens, inner, 3.0 * op.state, dtype="bf16") * _SCAN_MATMUL_SLOWDOWN
    out.gemm_fwd_s += weight * chunk
    out.gemm_bwd_s += weight * 2.5 * chunk
    out.num_ops += weight * _OPS_PER_SCAN


def _add_operator(out: LayerCosts, op: Operator, weight: float, ctx: _Context) -> None:
    tp = ctx.shards.tp
    if isinstance(op, Matmul):
        _add_matmul(out, op, weight, ctx)
    elif isinstance(op, Attention):
        _add_attention(out, op, weight, ctx)
    elif isinstance(op, Norm):
        _add_norm(out, op, weight, ctx)
    elif isinstance(op, Elementwise):
        tokens = ctx.replicated_tokens if op.split is Split.NONE else ctx.tokens / tp
        _add_vector(out, tokens * (op.reads + op.writes), _VECTOR_BACKWARD_TRAFFIC, weight, ctx)
    elif isinstance(op, Experts):
        _add_experts(out, op, weight, ctx)
    elif isinstance(op, StateSpace):
        _add_state_space(out, op, weight, ctx)
    elif isinstance(op, Generic):
        tokens = ctx.tokens / np.where(op.split is Split.NONE, 1, tp)
        _add_vector(out, tokens * (op.reads + op.writes), _VECTOR_BACKWARD_TRAFFIC, weight, ctx)
        side = np.cbrt(np.maximum(tokens * op.flops / 2.0, 1.0))
        out.gemm_fwd_s += weight * ctx.kernels.matmul_s(side, side, side, dtype="bf16")
        out.gemm_bwd_s += weight * 2 * ctx.kernels.matmul_s(side, side, side, dtype="bf16")


def _add_reductions(out: LayerCosts, block: Block, hidden: int, weight: float, ctx: _Context) -> None:
    """Add the tensor-parallel collectives of one layer, forward and backward.

    Without sequence parallelism each row-split output is all-reduced (and each column-split input's
    gradient);
    with it the same bytes move as a reduce-scatter and an all-gather, and the gathered input of the
    column-split
    matmul is gathered once more in backward (Korthikanti et al., arXiv 2205.05198, section 4.2.2).
    """
    shards = ctx.shards
    one = np.ones_like(shards.tp)
    size = ctx.tokens * hidden * ctx.element_bytes
    reduce_all = collective_s(Collective.ALL_REDUCE, size, one, shards.tp, ctx.levels)
    scatter = collective_s(Collective.REDUCE_SCATTER, size, one, shards.tp, ctx.levels)
    gather = collective_s(Collective.ALL_GATHER, size, one, shards.tp, ctx.levels)
    sharded = shards.sequence_parallel > 0
    count = weight * block.num_reductions
    out.tp_fwd_s += count * np.where(sharded, scatter + gather, reduce_all)
    out.tp_bwd_s += count * np.where(sharded, scatter + 2 * gather, reduce_all)
    collectives = count * np.where(sharded, 2.0, 1.0) * (shards.tp > 1)
    out.num_collectives += collectives
    out.num_ops += collectives


def _add_ends(out: LayerCosts, model: ModelGraph, ctx: _Context) -> None:
    tp = ctx.shards.tp
    body = LayerCosts.zeros(len(ctx.shards))
    for op in model.outputs:
        _add_operator(body, op, 1.0, ctx)
    out.head_gemm_fwd_s += body.gemm_fwd_s
    out.head_gemm_bwd_s += body.gemm_bwd_s
    logits = ctx.tokens * model.vocab / tp
    out.loss_s += ctx.kernels.memory_s(logits * LOSS_BYTES_PER_LOGIT)
    out.head_vector_s += body.vector_fwd_s + body.vector_bwd_s + body.norm_fwd_s + body.norm_bwd_s
    reads = sum(op.features for op in model.inputs if isinstance(op, Embedding))
    out.embed_s += 3.0 * ctx.kernels.memory_s(ctx.tokens * max(reads, 1) * ctx.element_bytes)


def layer_costs(
    model: ModelGraph,
    shards: Shards,
    *,
    seq_len: int,
    precision: str,
    kernels: KernelModel,
    levels: tuple[Level, ...],
) -> LayerCosts:
    """Return the costs of one layer (mean over the model's layers) and of the model's ends, per shard.

    Parameters
    ----------
    shards : distinct degrees and micro-batches. shape (rows,)
    seq_len : tokens per sequence, before context parallelism.
    precision : training precision; linear layers follow it, attention and the head stay in bf16.
    """
    tokens = shards.micro_batch * seq_len / shards.cp
    cut = np.where(shards.sequence_parallel > 0, shards.tp, 1)
    ctx = _Context(
        shards=shards,
        seq_len=seq_len,
        precision=precision,
        kernels=kernels,
        levels=levels,
        tokens=tokens,
        replicated_tokens=tokens / cut,
    )
    out = LayerCosts.zeros(len(shards))
    counts = np.bincount(np.asarray(model.layers), minlength=len(model.blocks))
    for block, count in zip(model.blocks, counts, strict=True):
        weight = float(count) / model.num_layers
        for op in block.operators:
            _add_operator(out, op, weight, ctx)
        _add_reductions(out, block, model.hidden, weight, ctx)
    _add_ends(out, model, ctx)
    return out

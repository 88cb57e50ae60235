"""Seconds of the operators of one serving iteration, per layer kind, on one device of an instance.

Rows are (configuration, work) pairs. Attention kernels see prompts and decoding requests apart; every other
operator sees the tokens of both together. Weights are read once per iteration whatever the batch.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from costmodels.collectives.expert_exchange import ExchangeKernel, moe_combine_s, moe_dispatch_s
from costmodels.collectives.times import SERVING, Collective, collective_s
from costmodels.graph import Attention, Block, Elementwise, Experts, Generic, Matmul, Norm, Split, StateSpace
from costmodels.kernels.times import KernelModel
from costmodels.serving.config import Quant, ServingTable
from costmodels.serving.memory import tagged_operators
from hardware.device import Device
from hardware.levels import Level

__all__ = [
    "IterationWork",
    "LayerTimes",
    "ServingMachine",
    "head_s",
    "kernel_format",
    "layer_times",
    "quant_matmul_s",
    "reduce_s",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_DISPATCH_BYTES = 1.0 + 4.0 / 128
"""Per element of a dispatched token: 8-bit with one scale per 128."""
_COMBINE_BYTES = 2.0
_SCAN_PASSES = 8.0
"""Reads and writes of the inner width per token in a chunked scan: projections, gates, states (assumed)."""
_VECTOR_BANDWIDTH_FRAC = 0.8
_NARROW_PEAK_FRAC = 0.5
"""Of the 16-bit peak, reached by grouped matmuls that widen 4-bit weights (assumed)."""
_SAMPLING_PASSES = 3.0
"""Passes over the logits: cast, soft-max, arg-max or top-k (assumed)."""
_DRAFT_ATTENTION = 0.15
"""Added to attention over the cache per drafted token: the cache is read once for all of them (assumed)."""
_INDEXER_PEAK_FRAC = 0.4
"""Of the 8-bit peak, reached by the indexer of a sparse attention (assumed)."""
_TILE_TOKENS = 16.0
"""Rows of the smallest tile of a matrix unit."""
_CACHE_GAIN = 2.5
"""Bandwidth of the last-level cache over that of memory, for element-wise kernels whose tensors stay in it
(assumed)."""
_FUSED_LATENCY_S = 1.6e-6
"""Start and end of one memory-bound kernel inside a captured graph, beyond its traffic (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingMachine:
    """What an instance runs on."""

    device: Device
    kernels: KernelModel
    levels: tuple[Level, ...]
    """Inner to outer; ranks fill the inner level first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IterationWork:
    """What one iteration of one attention group processes, one row per configuration."""

    prefill_tokens: Floats
    """New prompt tokens."""
    prefill_context: Floats
    """Tokens already cached before them, summed over the prompts."""
    prefill_seqs: Floats
    """Prompts that the new tokens belong to."""
    decode_seqs: Floats
    """Requests that get one token (or one verified draft) each."""
    decode_context: Floats
    """Cached tokens, summed over those requests."""

    @classmethod
    def of(
        cls,
        prefill_tokens: npt.ArrayLike,
        prefill_context: npt.ArrayLike,
        decode_seqs: npt.ArrayLike,
        decode_context: npt.ArrayLike,
        prefill_seqs: npt.ArrayLike | None = None,
    ) -> "IterationWork":
        """Return the work of rows given as scalars or arrays; one prompt by default where tokens are."""
        tokens = np.asarray(prefill_tokens, dtype=float)
        prompts = np.where(tokens > 0, 1.0, 0.0) if prefill_seqs is None else np.asarray(prefill_seqs, float)
        columns = np.broadcast_arrays(
            tokens, np.asarray(prefill_context, float), prompts,
            np.asarray(decode_seqs, float), np.asarray(decode_context, float),
        )  # fmt: skip
        names = ("prefill_tokens", "prefill_context", "prefill_seqs", "decode_seqs", "decode_context")
        return cls(**{n: np.atleast_1d(c).astype(float) for n, c in zip(names, columns, strict=True)})

    def take(self, rows: npt.NDArray[np.bool_]) -> "IterationWork":
        """Return the chosen rows."""
        return IterationWork(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(slots=True, eq=False)
class LayerTimes:
    """Seconds per kind of operator, one row per (configuration, work) pair."""

    gemm_s: Floats
    prefill_attention_s: Floats
    decode_attention_s: Floats
    experts_s: Floats
    vector_s: Floats
    comm_s: Floats


def kernel_format(device: Device, code: int, *, routed: bool = False) -> str:
    """Return the kernel format that runs weights of one `Quant` on `device`.

    Devices without the narrow matrix units keep the narrow weights and compute in 16 bits. Engines pick the
    faster kernel of a family: measured dense block-scaled matmuls wait for a separate quantisation that
    engines fuse, and measured per-tensor experts are several times slower than block-scaled ones on Hopper,
    so each side answers for both scalings.
    """
    quant = Quant(code)
    if quant in (Quant.FP8, Quant.FP8_BLOCK):
        narrow = "fp8-block" if routed else "fp8"
        return narrow if device.fp8_flops_per_s else "int8-weight-only"
    if quant in (Quant.NVFP4, Quant.MXFP4):
        return "nvfp4" if device.fp4_flops_per_s else "int4-weight-only"
    if quant is Quant.INT8:
        return "int8" if device.int8_flops_per_s else "int8-weight-only"
    return "int4-weight-only" if quant is Quant.INT4 else "bf16"


def quant_matmul_s(machine: ServingMachine, m: Floats, n: Floats, k: Floats, codes: Ints) -> Floats:
    """Return seconds of a dense matmul in each row's number format. shape (rows,)

    Fewer tokens than the smallest tile never take longer than a full tile: an engine may pad them.
    """
    out = np.zeros(len(m))
    for code in np.unique(codes):
        rows = codes == code
        dtype = kernel_format(machine.device, int(code))
        out[rows] = machine.kernels.matmul_s(m[rows], n[rows], k[rows], dtype=dtype)
        few = rows & (m < _TILE_TOKENS)
        if few.any():
            tile = machine.kernels.matmul_s(np.full(few.sum(), _TILE_TOKENS), n[few], k[few], dtype=dtype)
            out[few] = np.minimum(out[few], tile)
    return out


def reduce_s(num_bytes: Floats, degree: Ints, levels: tuple[Level, ...]) -> Floats:
    """Return seconds of an all-reduce over `degree` neighbouring devices."""
    stride = np.ones_like(degree)
    return collective_s(Collective.ALL_REDUCE, num_bytes, stride, degree, levels, SERVING)


def _all_to_all_s(tokens: Floats, experts: Experts, group: Ints, levels: tuple[Level, ...]) -> Floats:
    """Return seconds of dispatch and combine of `tokens` per device over `group` devices."""
    best = np.full(len(tokens), np.inf)
    node = levels[0].size
    for kernel in (ExchangeKernel.LOW_LATENCY, ExchangeKernel.NORMAL, ExchangeKernel.RACK):
        args = (np.full(len(tokens), experts.top_k), np.ones_like(group), group, levels)
        there = moe_dispatch_s(kernel, tokens, np.full(len(tokens), _DISPATCH_BYTES * experts.hidden), *args)
        back = moe_combine_s(kernel, tokens, np.full(len(tokens), _COMBINE_BYTES * experts.hidden), *args)
        usable = group <= node if kernel is ExchangeKernel.RACK else np.ones(len(tokens), dtype=bool)
        best = np.minimum(best, np.where(usable, there + back, np.inf))
    return np.where(group > 1, best, 0.0)


def _attention_s(
    op: Attention, table: ServingTable, work: IterationWork, machine: ServingMachine, draft: Floats
) -> tuple[Floats, Floats]:
    """Return seconds of attention over prompts, and over decoding requests."""
    prefill, decode = np.zeros(len(table)), np.zeros(len(table))
    for code in np.unique(table.kv):
        dtype = "bf16" if code == Quant.BF16 else "fp8"
        rows = (table.kv == code) & (work.prefill_tokens > 0)
        if rows.any():
            prefill[rows] = _prompt_attention_s(op, table.take(rows), work.take(rows), machine, dtype)
        rows = (table.kv == code) & (work.decode_seqs > 0)
        if rows.any():
            decode[rows] = _cache_attention_s(op, table.take(rows), work.take(rows), machine, dtype)
    return prefill, decode * (1.0 + _DRAFT_ATTENTION * draft)


def _prompt_attention_s(
    op: Attention, table: ServingTable, work: IterationWork, machine: ServingMachine, dtype: str
) -> Floats:
    """Return seconds of attention of new prompt tokens over their own context."""
    heads = np.maximum(op.num_heads // table.tp, 1)
    kv_heads = heads if op.kv_latent_dim is not None else np.maximum(op.num_kv_heads // table.tp, 1)
    prompts = np.maximum(work.prefill_seqs, 1.0)
    new = work.prefill_tokens / prompts
    seen = new + work.prefill_context / prompts
    window = op.window if op.sparse_keys is None else op.sparse_keys
    return machine.kernels.attention_s(
        batch=prompts, q_len=new, kv_len=seen, heads=heads, kv_heads=kv_heads, head_dim=op.head_dim,
        value_dim=op.value_dim, causal=op.causal, window=window, kv_dtype=dtype,
    ) + _indexer_s(op, work.prefill_tokens, seen, prompts, machine)  # fmt: skip


def _cache_attention_s(
    op: Attention, table: ServingTable, work: IterationWork, machine: ServingMachine, dtype: str
) -> Floats:
    """Return seconds of attention of decoding requests over their cache."""
    batch = work.decode_seqs
    context = np.maximum(work.decode_context / batch, 1.0)
    seen = context if op.sparse_keys is None else np.minimum(context, op.sparse_keys)
    heads = np.maximum(op.num_heads // table.tp, 1)
    indexer = _indexer_s(op, batch, context, batch, machine)
    if op.kv_latent_dim is not None:
        return indexer + machine.kernels.mla_decode_attention_s(
            batch=batch, kv_len=seen, heads=heads, dtype=dtype
        )
    kv_heads = np.maximum(op.num_kv_heads // table.tp, 1)
    return indexer + machine.kernels.decode_attention_s(
        batch=batch,
        kv_len=seen,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=op.head_dim,
        window=op.window,
        dtype=dtype,
    )


def _indexer_s(
    op: Attention, queries: Floats, keys: Floats, seqs: Floats, machine: ServingMachine
) -> Floats | float:
    """Return seconds of scoring every cached key in 8 bits, where a sparse attention picks its keys so."""
    if op.sparse_keys is None or op.index_heads == 0:
        return 0.0
    flops = 2.0 * queries * keys * op.index_heads * op.index_dim
    peak = machine.device.fp8_flops_per_s or machine.device.peak_flops_per_s("bf16")
    return machine.kernels.memory_s(seqs * keys * op.index_dim) + flops / (_INDEXER_PEAK_FRAC * peak)


def _experts_s(
    op: Experts, tokens: Floats, table: ServingTable, machine: ServingMachine, skew: float
) -> Floats:
    """Return seconds of router and routed experts on one device; `tokens` are its attention group's."""
    out = quant_matmul_s(
        machine, tokens, np.full(len(table), float(op.num_experts)), np.full(len(table), float(op.hidden)),
        np.zeros(len(table), dtype=np.int64),
    )  # fmt: skip
    pooled = tokens * table.dp
    for code in np.unique(table.experts):
        rows = table.experts == code
        shape = {
            "tokens": pooled[rows], "hidden": op.hidden, "ffn_hidden": op.ffn_hidden,
            "num_experts": op.num_experts, "top_k": op.top_k, "ep": table.ep[rows], "etp": table.etp[rows],
            "skew": skew,
        }  # fmt: skip
        dtype = kernel_format(machine.device, int(code), routed=True)
        if dtype == "int4-weight-only":
            out[rows] += _narrow_experts_s(shape, Quant(code), machine)
        else:
            out[rows] += machine.kernels.experts_s(**shape, dtype=dtype)
    return out


def _narrow_experts_s(shape: dict[str, npt.ArrayLike], quant: Quant, machine: ServingMachine) -> Floats:
    """Return seconds of experts with 4-bit weights that are widened on the way to 16-bit matrix units.

    Few rows per expert only read weights, so the 16-bit kernel's time shrinks with the bytes; many compute
    as the 16-bit kernel does.
    """
    wide = machine.kernels.experts_s(**shape, dtype="bf16")
    width = np.asarray(shape["ffn_hidden"]) / np.asarray(shape["etp"])
    routed = np.asarray(shape["tokens"]) * np.asarray(shape["top_k"]) / np.asarray(shape["ep"])
    flops = 6.0 * routed * np.asarray(shape["hidden"]) * width
    compute = flops / (_NARROW_PEAK_FRAC * machine.device.peak_flops_per_s("bf16"))
    launch = 4.0 * machine.kernels.launch_s()
    lean = launch + np.maximum(wide - launch, 0.0) * quant.bytes_per_weight / 2.0
    return np.asarray(np.maximum(lean, compute), dtype=float)


def _state_space_s(
    op: StateSpace, tokens: Floats, seqs: Floats, table: ServingTable, machine: ServingMachine
) -> Floats:
    """Return seconds of a recurrent mixer: states move twice, tokens pass through once."""
    state = 2.0 * 4.0 * seqs * op.inner * (op.state + op.conv) / table.tp
    passed = 2.0 * tokens * op.inner * _SCAN_PASSES / table.tp
    return machine.kernels.memory_s(state + passed)


def _vector_bytes(op: Norm | Elementwise | Generic, tp: Ints) -> tuple[Floats, float]:
    """Return bytes per token of a memory-bound operator, and how many kernels it starts."""
    if isinstance(op, Norm):
        cut = tp if op.over_heads else np.ones_like(tp)
        return 4.0 * op.features * op.copies / cut, 0.5 if op.over_heads else 1.0
    if isinstance(op, Generic):
        return 2.0 * (op.reads + op.writes) / np.ones_like(tp), 1.0
    cut = np.ones_like(tp) if op.split is Split.NONE else tp
    return 2.0 * (op.reads + op.writes) / cut, 1.0 if op.split is Split.COLUMN else 0.0


def _memory_bytes(moved: Floats, device: Device) -> Floats:
    """Return bytes that cost as much from memory alone as `moved` bytes of which the cache keeps a part."""
    kept = np.minimum((device.l2_bytes or 0.0) / (2.0 * np.maximum(moved, 1.0)), 1.0)
    return np.asarray(moved * (1.0 - kept * (1.0 - 1.0 / _CACHE_GAIN)))


def layer_times(
    block: Block, table: ServingTable, work: IterationWork, machine: ServingMachine, routing_skew: float = 0.0
) -> LayerTimes:
    """Return seconds of one layer of kind `block`, one row per (configuration, work) pair.

    Residual adds run inside the norm that follows; a layer's routed and shared experts share one reduction.
    """
    draft = table.draft_tokens.astype(float)
    tokens = work.prefill_tokens + work.decode_seqs * (1.0 + draft)
    zero = np.zeros(len(table))
    out = LayerTimes(*(zero.copy() for _ in range(6)))
    vector_bytes, launches, routed = zero.copy(), 0.0, None
    for op, is_attention in tagged_operators(block):
        if isinstance(op, Matmul):
            rows = np.maximum(tokens * op.tokens_frac, 1.0)
            n = np.full(len(table), float(op.out_features)) / (table.tp if op.split is Split.COLUMN else 1)
            k = np.full(len(table), float(op.in_features)) / (table.tp if op.split is Split.ROW else 1)
            codes = table.attention if is_attention else table.weights
            if op.out_features > 1:
                out.gemm_s += quant_matmul_s(machine, rows, np.ceil(n), np.ceil(k), codes)
            if op.split is Split.ROW and (is_attention or not _has_experts(block)):
                out.comm_s += reduce_s(2.0 * tokens * op.out_features, table.tp, machine.levels)
        elif isinstance(op, Attention):
            prefill, decode = _attention_s(op, table, work, machine, draft)
            out.prefill_attention_s += prefill
            out.decode_attention_s += decode
        elif isinstance(op, Experts):
            routed = op
            out.experts_s += _experts_s(op, tokens, table, machine, routing_skew)
        elif isinstance(op, StateSpace):
            out.decode_attention_s += _state_space_s(
                op, tokens, work.decode_seqs + work.prefill_seqs, table, machine
            )
        elif isinstance(op, Norm | Elementwise | Generic):
            moved, kernels = _vector_bytes(op, table.tp)
            vector_bytes += _memory_bytes(tokens * moved, machine.device)
            launches += kernels
    out.vector_s += launches * _FUSED_LATENCY_S + vector_bytes / (
        _VECTOR_BANDWIDTH_FRAC * machine.device.memory_bytes_per_s
    )
    if routed is not None:
        spread = table.dp > 1
        shared = reduce_s(2.0 * tokens * routed.hidden, table.tp, machine.levels)
        apart = _all_to_all_s(tokens / table.tp, routed, table.tp * table.dp, machine.levels)
        out.comm_s += np.where(spread, apart, shared)
    return out


def _has_experts(block: Block) -> bool:
    return any(isinstance(op, Experts) for op in block.operators)


def head_s(vocab: int, hidden: int, rows: Floats, table: ServingTable, machine: ServingMachine) -> Floats:
    """Return seconds of the projection to the vocabulary, the gather of logits and one pass of sampling."""
    m = np.maximum(rows, 1.0)
    width = np.ceil(vocab / table.tp)
    codes = np.zeros(len(table), dtype=np.int64)
    product = quant_matmul_s(machine, m, width, np.full(len(table), float(hidden)), codes)
    gather = collective_s(
        Collective.ALL_GATHER, 2.0 * m * vocab, np.ones_like(table.tp), table.tp, machine.levels, SERVING
    )
    sample = machine.kernels.memory_s(4.0 * m * vocab * _SAMPLING_PASSES)
    return product + np.where(table.tp > 1, gather, 0.0) + sample

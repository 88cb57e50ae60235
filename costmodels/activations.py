"""Bytes that one layer keeps for its backward pass, per micro-batch and rank, by how it is sharded.

Rules (Korthikanti et al., arXiv 2205.05198, section 4): a matmul keeps its input unless the operator before it
kept the same tensor; a norm keeps its input; attention keeps queries, keys and values, and its score matrix
unless it is a flash kernel; an element-wise operator keeps what it states. Tensors inside a tensor-parallel
pair are cut by tp; tensors outside it are whole, or cut by tp under sequence parallelism.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from costmodels.graph import (
    Attention,
    Block,
    Elementwise,
    Experts,
    Generic,
    Matmul,
    ModelGraph,
    Norm,
    Operator,
    Split,
    StateSpace,
)

__all__ = ["SavedBytes", "saved_bytes"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_HALF = 2.0
_NORM_STATS_BYTES = 8.0
"""Mean and reciprocal deviation per token, fp32."""
_LOG_SUM_EXP_BYTES = 4.0
"""Per head and token, kept by flash attention."""


@dataclass(slots=True, eq=False)
class SavedBytes:
    """Bytes per token (scores: per token and key) of one layer, mean over layers. shape (rows,)"""

    kept: Floats
    """Everything but scores and the layer's input."""
    scores: Floats
    """Softmax output, dropout mask and dropout output of unfused attention."""
    layer_input: Floats
    experts: Floats
    """Part of `kept` that scales with the imbalance of routing."""
    widest: Floats
    """Largest single layer's `kept`, for the working set of full recomputation."""

    @classmethod
    def zeros(cls, rows: int) -> "SavedBytes":
        """Return nothing for `rows` rows."""
        return cls(**{f.name: np.zeros(rows) for f in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    tp: Floats
    outside: Floats
    """Divisor of tensors outside a tensor-parallel pair."""
    ep: Floats
    etp: Floats
    input_bytes: float
    """Per element of a linear layer's kept input: 1 under fp8."""
    dropout: bool


def _matmul_bytes(op: Matmul, shape: _Shape) -> Floats:
    if op.shares_input:
        return np.zeros_like(shape.tp)
    cut = shape.tp if op.split is Split.ROW else shape.outside
    width = _HALF if op.split is Split.NONE else shape.input_bytes
    return op.tokens_frac * op.in_features * width / cut


def _attention_bytes(op: Attention, shape: _Shape) -> tuple[Floats, Floats]:
    heads = np.maximum(op.num_heads / shape.tp, 1.0)
    kv_heads = np.maximum(op.num_kv_heads / shape.tp, 1.0)
    query = heads * op.head_dim
    kept = _HALF * (query + kv_heads * (op.head_dim + op.value_dim)) + _LOG_SUM_EXP_BYTES * heads
    return kept, heads * (5.0 if shape.dropout else _HALF)


def _expert_bytes(op: Experts, shape: _Shape) -> Floats:
    routed = op.top_k * shape.etp / shape.tp
    up = (2 if op.gated else 1) * op.ffn_hidden / shape.etp
    down = op.ffn_hidden / shape.etp
    return routed * (shape.input_bytes * op.hidden + _HALF * up + shape.input_bytes * down)


def _operator_bytes(op: Operator, shape: _Shape) -> tuple[Floats, Floats, Floats]:
    """Return kept bytes per token, score bytes per token and key, and the experts' share of the first."""
    zero = np.zeros_like(shape.tp)
    if isinstance(op, Matmul):
        return _matmul_bytes(op, shape), zero, zero
    if isinstance(op, Attention):
        kept, scores = _attention_bytes(op, shape)
        return kept, scores, zero
    if isinstance(op, Norm):
        cut = shape.tp if op.over_heads else shape.outside
        return op.copies * (_HALF * op.features + _NORM_STATS_BYTES) / cut, zero, zero
    if isinstance(op, Elementwise):
        cut = shape.outside if op.split is Split.NONE else shape.tp
        return (_HALF * op.saved + op.saved_mask) / cut, zero, zero
    if isinstance(op, Experts):
        routed = _expert_bytes(op, shape)
        return routed + _HALF * op.num_experts / shape.outside, zero, routed
    if isinstance(op, StateSpace):
        return _HALF * 4.0 * op.inner / shape.tp, zero, zero
    if isinstance(op, Generic):
        return _HALF * op.saved / np.where(op.split is Split.NONE, shape.outside, shape.tp), zero, zero
    return zero, zero, zero


def _block_bytes(block: Block, shape: _Shape) -> tuple[Floats, Floats, Floats]:
    kept, scores, experts = (np.zeros_like(shape.tp) for _ in range(3))
    for op in block.operators:
        k, s, e = _operator_bytes(op, shape)
        kept, scores, experts = kept + k, scores + s, experts + e
    return kept, scores, experts


def saved_bytes(
    model: ModelGraph, tp: Ints, ep: Ints, etp: Ints, sequence_parallel: Ints, *, precision: str
) -> SavedBytes:
    """Return what one layer keeps per token, for each row of degrees. All columns have shape (rows,)."""
    ranks = tp.astype(np.float64)
    shape = _Shape(
        tp=ranks,
        outside=np.where(sequence_parallel > 0, ranks, 1.0),
        ep=ep.astype(np.float64),
        etp=etp.astype(np.float64),
        input_bytes=1.0 if "fp8" in precision or "fp4" in precision else _HALF,
        dropout=model.attention_dropout,
    )
    out = SavedBytes.zeros(len(tp))
    counts = np.bincount(np.asarray(model.layers), minlength=len(model.blocks))
    for block, count in zip(model.blocks, counts, strict=True):
        share = float(count) / model.num_layers
        kept, scores, experts = _block_bytes(block, shape)
        out.kept += share * kept
        out.scores += share * scores
        out.experts += share * experts
        out.widest = np.maximum(out.widest, kept)
    out.layer_input = _HALF * model.hidden / shape.outside
    return out

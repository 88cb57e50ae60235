"""Bytes that one layer keeps for its backward pass, per token and rank, by how it is sharded.

Rules (Korthikanti et al., arXiv 2205.05198, section 4): a matmul keeps its input unless the operator before
it kept the same tensor; a norm keeps its input; attention keeps queries, keys and values, and its scores
unless it is a flash kernel; an element-wise operator keeps what it states. Tensors inside a tensor-parallel
pair are cut by tp; tensors outside it are whole, or cut by tp under sequence parallelism.

What a software stack computes in several steps keeps more: an unfused norm its input in fp32 and the
normalised copy, an unfused gated activation the activated gate, an unfused softmax its output and its 16-bit
copy.
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
from costmodels.stacks import Stack

__all__ = ["SavedBytes", "saved_bytes"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_HALF = 2.0
_NORM_STATS_BYTES = 8.0
"""Mean and reciprocal deviation per token, fp32."""
_LOG_SUM_EXP_BYTES = 4.0
"""Per head and token, kept by flash attention."""
_UNFUSED_NORM_BYTES = 6.0
"""Per element in place of the 16-bit input: an fp32 copy of it, and the normalised 16-bit tensor, which the
product with the weight keeps (counted on autograd's saved tensors of LLaMA's reference RMS norm)."""
_DROPOUT_SCORE_BYTES = 3.0
"""Per score: mask and the dropped-out copy."""
_EXPERT_OUTPUT_BYTES = 2.0
"""Per element of an expert's output, kept to weigh it with the router's probability."""


@dataclass(slots=True, eq=False)
class SavedBytes:
    """Bytes per token of one layer, mean over layers. shape (rows,)"""

    kept: Floats
    """Everything but scores and the layer's input."""
    scores: Floats
    """Softmax output, dropout mask and dropout output of unfused attention; zero with a flash kernel."""
    scores_gradient: Floats
    """What backward of unfused attention holds for a moment, beside the scores."""
    layer_input: Floats
    experts: Floats
    """Part of `kept` that scales with the imbalance of routing."""
    widest: Floats
    """Largest single layer's `kept`: what backward of a recomputed layer has to hold."""

    @classmethod
    def zeros(cls, rows: int) -> "SavedBytes":
        """Return nothing for `rows` rows."""
        return cls(**{f.name: np.zeros(rows) for f in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    tp: Floats
    outside: Floats
    """Divisor of tensors outside a tensor-parallel pair."""
    etp: Floats
    seq_len: int
    input_bytes: float
    """Per element of a linear layer's kept input: 1 under fp8."""
    dropout: bool
    stack: Stack


def _matmul_bytes(op: Matmul, shape: _Shape) -> Floats:
    if op.shares_input:
        return np.zeros_like(shape.tp)
    cut = shape.tp if op.split is Split.ROW else shape.outside
    width = _HALF if op.split is Split.NONE else shape.input_bytes
    return op.tokens_frac * op.in_features * width / cut


def _norm_bytes(op: Norm, shape: _Shape) -> Floats:
    cut = shape.tp if op.over_heads else shape.outside
    fused = 0.0 if op.shares_input else _HALF
    each = fused if shape.stack.fused_norm else _UNFUSED_NORM_BYTES
    return op.copies * (each * op.features + _NORM_STATS_BYTES) / cut


def _attention_bytes(op: Attention, shape: _Shape) -> tuple[Floats, Floats, Floats]:
    """Return queries, keys and values; the scores; and what their backward holds for a moment."""
    heads = np.maximum(op.num_heads / shape.tp, 1.0)
    kv_heads = np.maximum(op.num_kv_heads / shape.tp, 1.0)
    kept = _HALF * (heads * op.head_dim + kv_heads * (op.head_dim + op.value_dim))
    if shape.stack.flash:
        return kept + _LOG_SUM_EXP_BYTES * heads, np.zeros_like(kept), np.zeros_like(kept)
    keys = shape.seq_len if op.sparse_keys is None else min(shape.seq_len, op.sparse_keys)
    each = shape.stack.score_bytes + (_DROPOUT_SCORE_BYTES if shape.dropout else 0.0)
    return kept, heads * keys * each, heads * keys * 2.0 * _HALF


def _expert_bytes(op: Experts, shape: _Shape) -> Floats:
    """Return what routed tokens keep: dispatched input, both sides of the activation, weighed output."""
    routed = op.top_k * shape.etp / shape.tp
    inner = op.ffn_hidden / shape.etp
    activated = shape.input_bytes + (0.0 if op.gated else _HALF)
    up = _HALF * (2 if op.gated else 1)
    ends = (shape.input_bytes + _EXPERT_OUTPUT_BYTES) * op.hidden
    return routed * (ends + (up + activated) * inner)


def _elementwise_bytes(op: Elementwise, shape: _Shape) -> Floats:
    cut = shape.outside if op.split is Split.NONE else shape.tp
    gated = op.writes < op.saved
    unfused = _HALF * op.writes if gated and not shape.stack.fused_activation else 0.0
    return (_HALF * op.saved + op.saved_mask + unfused) / cut


def _operator_bytes(op: Operator, shape: _Shape) -> Floats:
    """Return kept bytes per token of an operator other than attention and routed experts."""
    if isinstance(op, Matmul):
        return _matmul_bytes(op, shape)
    if isinstance(op, Norm):
        return _norm_bytes(op, shape)
    if isinstance(op, Elementwise):
        return _elementwise_bytes(op, shape)
    if isinstance(op, StateSpace):
        return _HALF * 4.0 * op.inner / shape.tp
    if isinstance(op, Generic):
        return _HALF * op.saved / (shape.outside if op.split is Split.NONE else shape.tp)
    return np.zeros_like(shape.tp)


def _block_bytes(block: Block, shape: _Shape) -> tuple[Floats, Floats, Floats, Floats]:
    """Return kept bytes, scores, what backward of the scores holds, and the experts' share of the first."""
    kept, scores, gradient, experts = (np.zeros_like(shape.tp) for _ in range(4))
    for op in block.operators:
        if isinstance(op, Attention):
            own, own_scores, own_gradient = _attention_bytes(op, shape)
            scores, gradient = scores + own_scores, np.maximum(gradient, own_gradient)
        elif isinstance(op, Experts):
            routed = _expert_bytes(op, shape)
            own, experts = routed + _HALF * op.num_experts / shape.outside, experts + routed
        else:
            own = _operator_bytes(op, shape)
        kept = kept + own
    return kept, scores, gradient, experts


def saved_bytes(
    model: ModelGraph,
    tp: Ints,
    etp: Ints,
    sequence_parallel: Ints,
    *,
    seq_len: int,
    precision: str,
    stack: Stack,
) -> SavedBytes:
    """Return what one layer keeps per token, for each row of degrees. All columns have shape (rows,)."""
    ranks = tp.astype(np.float64)
    shape = _Shape(
        tp=ranks,
        outside=np.where(sequence_parallel > 0, ranks, 1.0),
        etp=etp.astype(np.float64),
        seq_len=seq_len,
        input_bytes=1.0 if "fp8" in precision or "fp4" in precision else _HALF,
        dropout=model.attention_dropout,
        stack=stack,
    )
    out = SavedBytes.zeros(len(tp))
    counts = np.bincount(np.asarray(model.layers), minlength=len(model.blocks))
    for block, count in zip(model.blocks, counts, strict=True):
        share = float(count) / model.num_layers
        kept, scores, gradient, experts = _block_bytes(block, shape)
        out.kept += share * kept
        out.scores += share * scores
        out.experts += share * experts
        out.widest = np.maximum(out.widest, kept)
        out.scores_gradient = np.maximum(out.scores_gradient, gradient)
    out.layer_input = _HALF * model.hidden / shape.outside
    return out

"""What a model must compute and keep, whatever runs it: FLOPs, bytes moved, cache per token.

Model FLOPs count matrix products, a multiply-add as two, and nothing that a software stack may or may not
repeat or skip; norms, activations and look-ups count as none. Two conventions exist for causal attention: all
scores (the default here, as in Narayanan et al., arXiv:2104.04473), or the half that is not masked.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from costmodels.graph import (
    Attention,
    Elementwise,
    Embedding,
    Experts,
    Generic,
    Matmul,
    ModelGraph,
    Norm,
    Operator,
    StateSpace,
)

__all__ = [
    "forward_flops_per_token",
    "hardware_flops",
    "keys_per_query",
    "kv_cache_bytes",
    "operator_bytes",
    "operator_flops",
    "training_flops",
]

Floats = npt.NDArray[np.float64]

_SCAN_FLOPS_PER_STATE = 6.0
"""Per state element and token: decay and its product, input product and add, read-out multiply and add."""


def keys_per_query(op: Attention, seq_len: float, *, causal_halved: bool) -> float:
    r"""Return the mean number of keys that a query is counted to see.

    Parameters
    ----------
    seq_len : tokens in the sequence. [1]
    causal_halved : count only keys that a causal query may see: :math:`s/2`, or with a window (or a choice of
        keys) :math:`w < s` the mean of :math:`\min(i, w)`, which is :math:`w - w^2/(2s)`. [bool]

    Notes
    -----
    Without it a query counts :math:`\min(s, w)` keys.
    """
    limits = [limit for limit in (op.window, op.sparse_keys) if limit is not None]
    seen = min([float(seq_len), *limits])
    if not (causal_halved and op.causal):
        return seen
    return seen - seen * seen / (2.0 * seq_len)


def operator_flops(op: Operator, seq_len: float, *, causal_halved: bool = False) -> float:
    """Return forward FLOPs per token of the operator in a sequence of `seq_len` tokens. [FLOP]"""
    match op:
        case Matmul():
            return 2.0 * op.in_features * op.out_features * op.tokens_frac
        case Attention():
            keys = keys_per_query(op, seq_len, causal_halved=causal_halved)
            scored = seq_len / 2.0 if causal_halved and op.causal else float(seq_len)
            index = 2.0 * scored * op.index_heads * op.index_dim
            return 2.0 * keys * op.num_heads * (op.head_dim + op.value_dim) + index
        case Experts():
            matrices = (3 if op.gated else 2) * op.hidden * op.ffn_hidden
            width = op.hidden if op.router_hidden is None else op.router_hidden
            return 2.0 * (op.top_k * matrices + width * op.num_experts)
        case StateSpace():
            return op.inner * (2.0 * op.conv + _SCAN_FLOPS_PER_STATE * op.state)
        case Generic():
            return op.flops
        case Norm() | Elementwise() | Embedding():
            return 0.0


def _operators(model: ModelGraph, *, layers_only: bool = False) -> list[tuple[Operator, int]]:
    counts = np.bincount(np.asarray(model.layers, dtype=np.int64), minlength=len(model.blocks))
    found = [
        (op, int(count))
        for block, count in zip(model.blocks, counts, strict=True)
        for op in block.operators
        if count
    ]
    return found if layers_only else found + [(op, 1) for op in model.inputs + model.outputs]


def forward_flops_per_token(model: ModelGraph, seq_len: float, *, causal_halved: bool = False) -> float:
    r"""Return forward model FLOPs per token, head included. [FLOP]

    Notes
    -----
    A GPT of :math:`L` layers of width :math:`h` comes to
    :math:`24 L h^2 (1 + s/(6h) + V/(12 L h))` (Narayanan et al., arXiv:2104.04473, appendix).
    """
    return float(
        sum(
            count * operator_flops(op, seq_len, causal_halved=causal_halved)
            for op, count in _operators(model)
        )
    )


def training_flops(model: ModelGraph, seq_len: int, *, causal_halved: bool = False) -> float:
    """Return model FLOPs of forward and backward of one sequence; backward counts as two forwards. [FLOP]"""
    return 3.0 * seq_len * forward_flops_per_token(model, seq_len, causal_halved=causal_halved)


def hardware_flops(
    model: ModelGraph,
    seq_len: int,
    recompute: Literal["none", "selective", "full"],
    *,
    causal_halved: bool = False,
) -> float:
    """Return model FLOPs of one sequence plus what recomputation repeats. [FLOP]

    Parameters
    ----------
    recompute : "selective" repeats the attention's scores and sums, "full" repeats all layers, not the head.
    """
    kinds = {"none": (), "selective": (Attention,), "full": (object,)}[recompute]
    again = sum(
        count * operator_flops(op, seq_len, causal_halved=causal_halved)
        for op, count in _operators(model, layers_only=True)
        if isinstance(op, kinds)
    )
    return training_flops(model, seq_len, causal_halved=causal_halved) + seq_len * float(again)


def operator_bytes(op: Operator, num_tokens: float, *, element_bytes: float = 2.0) -> float:
    """Return bytes that the operator moves forward for `num_tokens` tokens, each read and written once. [B]

    Weights count once; of experts, those that so many tokens are expected to reach when routed evenly.
    Attention counts its queries, keys, values and outputs (scores stay on chip).
    """
    params = float(op.num_params)
    match op:
        case Matmul():
            moved = (op.in_features + op.out_features) * op.tokens_frac
        case Attention():
            q, kv = op.num_heads, op.num_kv_heads
            moved = (q + kv) * (op.head_dim + op.value_dim)
        case Norm():
            moved = 2.0 * op.features * op.copies
        case Embedding():
            moved, params = 2.0 * op.features, 0.0
        case Experts():
            reached = 1.0 - (1.0 - op.top_k / op.num_experts) ** num_tokens
            params = op.num_router_params + reached * op.num_experts * op.num_params_per_expert
            wide = (3 if op.gated else 2) * op.ffn_hidden
            moved = op.top_k * (2.0 * op.hidden + wide) + op.num_experts
        case StateSpace():
            moved = 4.0 * op.inner
        case Elementwise() | Generic():
            moved = float(op.reads + op.writes)
    return element_bytes * (params + num_tokens * moved)


def kv_cache_bytes(
    model: ModelGraph,
    context_len: npt.ArrayLike,
    *,
    element_bytes: float = 2.0,
    state_bytes: float = 4.0,
) -> Floats:
    """Return the bytes that one sequence keeps between decoding steps, for each context length. [B]

    Parameters
    ----------
    context_len : tokens seen so far; for cross attention also the encoder's tokens. [1]
    element_bytes : of a cached key or value element. [B]
    state_bytes : of an element of a recurrent state. [B]

    Notes
    -----
    Grouped queries cache their key and value heads, latent attention its latent, a windowed layer no more
    than its window, a state-space layer a state and the inputs of its convolution, however long the context.
    """
    context = np.asarray(context_len, dtype=np.float64)
    total = np.zeros_like(context)
    for op, count in _operators(model, layers_only=True):
        if isinstance(op, Attention) and (op.causal or op.cross):
            per_token = op.num_kv_heads * (op.head_dim + op.value_dim)
            if op.kv_latent_dim is not None:
                per_token = op.kv_latent_dim
            kept = context if op.window is None else np.minimum(context, op.window)
            total = total + count * element_bytes * (per_token + op.index_dim) * kept
        elif isinstance(op, StateSpace):
            state = state_bytes * op.inner * op.state + element_bytes * op.inner * op.conv
            total = total + count * state
    return total

"""Bytes that a serving instance keeps per device, and how many tokens and requests fit beside the weights.

Every device holds its shard of the weights (vocabulary matrices included), the engine's reserve, the
activations of one iteration, and the KV cache, which engines allot in blocks of tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.graph import (
    Attention,
    Block,
    Embedding,
    Experts,
    Matmul,
    ModelGraph,
    Operator,
    Split,
    StateSpace,
)
from costmodels.serving.config import Quant, ServingTable
from costmodels.serving.lora import lora_bytes

__all__ = [
    "ServingMemory",
    "kv_bytes_per_request",
    "kv_transfer_bytes",
    "layer_counts",
    "serving_memory",
    "tagged_operators",
    "weight_bytes",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_STATE_BYTES = 4.0
"""Recurrent states are kept in 32 bits."""
_LIVE_ACTIVATIONS = 6.0
"""Copies of a layer's widest activation alive at once: input, residual, matmul in and out (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingMemory:
    """Bytes per device, one row per configuration, and what is left for the KV cache."""

    weights_bytes: Floats
    adapters_bytes: Floats
    """Low-rank adapters kept resident."""
    activations_bytes: Floats
    reserve_bytes: Floats
    """Held by the runtime (context, communication buffers, graphs) or kept free by the engine."""
    device_bytes: float

    @property
    def kv_budget_bytes(self) -> Floats:
        """Left for KV cache and states; negative where the weights alone do not fit."""
        held = self.weights_bytes + self.adapters_bytes + self.activations_bytes + self.reserve_bytes
        return self.device_bytes - held


def tagged_operators(block: Block) -> Iterator[tuple[Operator, bool]]:
    """Yield a layer's operators, and whether each belongs to attention (or a mixer) and its projections."""
    mixed = done = False
    for operator in block.operators:
        mixed = mixed or isinstance(operator, Attention | StateSpace)
        yield operator, not done
        done = done or (mixed and isinstance(operator, Matmul) and operator.split is Split.ROW)


def layer_counts(model: ModelGraph) -> list[tuple[Block, int]]:
    """Return every distinct block with the number of layers that use it."""
    return [(block, model.layers.count(i)) for i, block in enumerate(model.blocks) if i in model.layers]


def _bytes_per_weight(codes: Ints) -> Floats:
    table = np.array([q.bytes_per_weight for q in Quant])
    return table[codes]


def weight_bytes(model: ModelGraph, table: ServingTable) -> Floats:
    """Return weight bytes per device of the fullest stage. shape (rows,)"""
    tp, dense = table.tp, _bytes_per_weight(table.weights)
    around = _bytes_per_weight(table.attention)
    routed = _bytes_per_weight(table.experts)
    body = np.zeros(len(table))
    for block, count in layer_counts(model):
        for operator, is_attention in tagged_operators(block):
            if isinstance(operator, Experts):
                held = np.ceil(operator.num_experts / np.maximum(table.ep, 1)) / table.etp
                body += count * (
                    operator.num_params_per_expert * held * routed + 2.0 * operator.num_router_params
                )
            elif isinstance(operator, Matmul):
                cut = np.ones_like(tp) if operator.split is Split.NONE else tp
                body += count * operator.num_params / cut * (around if is_attention else dense)
            else:
                body += count * operator.num_params * 2.0
    head = sum(op.num_params for op in model.outputs if isinstance(op, Matmul))
    tables = sum(op.num_params for op in model.inputs if isinstance(op, Embedding))
    ends = 2.0 * (tables + (0 if model.tied_head else head)) / tp
    first_or_last = 2.0 * max(tables, head) / tp
    return np.where(table.pp > 1, body / table.pp + first_or_last, body + ends)


def kv_bytes_per_request(
    model: ModelGraph, table: ServingTable, context_tokens: Floats, block_tokens: int = 16
) -> Floats:
    """Return cache bytes per device of one request with `context_tokens` in cache. shape (rows,)

    Keys and values are cut over heads by tensor parallelism and repeated where heads are too few; an MLA
    latent is repeated on every tensor rank; a windowed layer keeps its window only.
    """
    element = _bytes_per_weight(table.kv)
    context = (
        np.ceil(np.broadcast_to(np.asarray(context_tokens, dtype=float), table.tp.shape) / block_tokens)
        * block_tokens
    )
    total = np.zeros(len(table))
    for block, count in layer_counts(model):
        for operator in block.operators:
            if isinstance(operator, Attention):
                seen = (
                    context
                    if operator.window is None
                    else np.minimum(context, operator.window + block_tokens)
                )
                if operator.kv_latent_dim is not None:
                    width = np.full(len(table), float(operator.kv_latent_dim))
                else:
                    heads = np.ceil(operator.num_kv_heads / table.tp)
                    width = heads * (operator.head_dim + operator.value_dim)
                total += count * seen * width * element
            elif isinstance(operator, StateSpace):
                total += count * _STATE_BYTES * operator.inner * (operator.state + operator.conv) / table.tp
    return total / table.pp


def kv_transfer_bytes(model: ModelGraph, table: ServingTable, prompt_tokens: Floats) -> Floats:
    """Return bytes of one request's cache on its way from a prefill to a decode instance, all devices."""
    latent = all(
        op.kv_latent_dim is not None
        for b, _ in layer_counts(model)
        for op in b.operators
        if isinstance(op, Attention)
    )
    copies = table.pp if latent else table.tp * table.pp
    heads = [
        op.num_kv_heads for b, _ in layer_counts(model) for op in b.operators if isinstance(op, Attention)
    ]
    copies = np.minimum(copies, max(heads, default=1) * table.pp)
    return kv_bytes_per_request(model, table, prompt_tokens) * copies


def serving_memory(
    model: ModelGraph, table: ServingTable, *, device_bytes: float, memory_frac: float, reserve_bytes: float
) -> ServingMemory:
    """Return what each device holds besides the KV cache.

    Parameters
    ----------
    device_bytes : memory of one device. [B]
    memory_frac : share of it that the engine may use.
    reserve_bytes : held by the runtime inside that share. [B]
    """
    widest = model.hidden
    for block, _ in layer_counts(model):
        for operator in block.operators:
            if isinstance(operator, Matmul):
                widest = max(widest, operator.out_features)
    per_token = 2.0 * (2 * model.hidden + widest / table.tp) * _LIVE_ACTIVATIONS / 3.0
    logits = 4.0 * table.max_batch * model.vocab / table.tp
    return ServingMemory(
        weights_bytes=weight_bytes(model, table),
        adapters_bytes=lora_bytes(model, table),
        activations_bytes=table.token_budget * per_token + logits,
        reserve_bytes=np.full(len(table), reserve_bytes + (1.0 - memory_frac) * device_bytes),
        device_bytes=device_bytes,
    )

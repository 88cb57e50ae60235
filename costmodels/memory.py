"""Peak memory of the most loaded rank of a training strategy, part by part.

Model states follow Megatron's and ZeRO's accounting (Rajbhandari et al., arXiv 1910.02054); activations follow
`costmodels.activations` times the micro-batches in flight of the schedule (Narayanan et al., arXiv 2104.04473);
the last stage adds logits and their fp32 copies. Every stage that can be the fullest is costed and the worst
one is reported.
"""

import json
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from costmodels.activations import saved_bytes
from costmodels.cost_table import MemoryTable
from costmodels.graph import ModelGraph
from costmodels.job import TrainingJob
from costmodels.keys import Keys, shard_degree
from costmodels.parameters import RankParameters, rank_parameters
from costmodels.stacks import Stack
from costmodels.strategy import ConfigTable, Recompute
from hardware.device import Device

__all__ = ["MemoryCoefficients", "chunks_in_flight", "memory_coefficients", "peak_memory", "stage_memory"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_WEIGHT_BYTES = 2.0
_MASTER_AND_MOMENTS_BYTES = 12.0
"""fp32 master weight and two Adam moments."""
_FULL_SHARD_WEIGHT_BYTES = 4.0
"""FSDP keeps the fp32 weight itself as the shard, and gathers bf16 copies."""
_MOMENTS_BYTES = 8.0
_GATHERED_LAYERS = 2.0
"""Layers whose weights full sharding holds whole: the one at work and the one prefetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCoefficients:
    """Fitted constants of allocator and runtime; see the coefficient file for their samples."""

    logits_bytes_per_element: float
    """Logits and the copies that an unfused cross entropy keeps at its peak."""
    fused_logits_bytes_per_element: float
    workspace_bytes: float
    """Matmul and attention workspaces that live inside the allocator."""
    slack_frac: float
    """Share of the dynamic part that the allocator cannot reuse."""
    runtime_bytes: float
    """Context, collectives library and kernels, outside the allocator."""
    sigma: float
    """Standard deviation of ln(measured / predicted) peak."""


@cache
def memory_coefficients() -> MemoryCoefficients:
    """Return the shipped constants."""
    path = files("costmodels") / "data" / "coefficients" / "training" / "memory.json"
    return MemoryCoefficients(**json.loads(path.read_text(encoding="utf-8"))["fitted"])


def chunks_in_flight(pp: Ints, vpp: Ints, num_micro: Ints, rank: Ints) -> Floats:
    """Return how many forward passes of one model chunk pipeline rank `rank` keeps at its fullest.

    Plain 1F1B keeps ``min(m, p - rank)``; the interleaved schedule warms up ``2 (p - rank - 1) + (v - 1) p``
    chunk passes and keeps one more (Megatron-core's schedule). All columns have shape (rows,).
    """
    plain = np.minimum(num_micro, pp - rank)
    interleaved = np.minimum(num_micro * vpp, 2 * (pp - rank - 1) + (vpp - 1) * pp + 1)
    return np.where(vpp > 1, interleaved, plain).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class _States:
    weights: Floats
    gradients: Floats
    optimizer: Floats
    gathered: Floats


def _cut(table: ConfigTable) -> tuple[Floats, Floats]:
    """Return over how many ranks dense and expert states are sharded."""
    shard = shard_degree(table).astype(np.float64)
    own = np.maximum(table.tp * table.dp * table.cp // (table.ep * table.etp), 1)
    return shard, np.minimum(shard, own)


def _states(table: ConfigTable, p: RankParameters, ends: Floats, stack: Stack) -> _States:
    dense = p.layers_max * p.layer_dense + ends
    expert = p.layers_max * p.layer_expert
    shard, expert_shard = _cut(table)
    sharded = dense / shard + expert / expert_shard
    whole = dense + expert
    full = table.zero == 3
    grad = np.where(full, _FULL_SHARD_WEIGHT_BYTES, stack.main_grad_bytes)
    optimizer = np.where(full, _MOMENTS_BYTES, _MASTER_AND_MOMENTS_BYTES)
    layer = p.layer_dense + p.layer_expert
    held = np.minimum(_GATHERED_LAYERS, p.layers_max) * layer * (1.0 - 1.0 / shard) + ends
    return _States(
        weights=np.where(full, _FULL_SHARD_WEIGHT_BYTES * sharded, _WEIGHT_BYTES * whole),
        gradients=grad * np.where(table.zero >= 2, sharded, whole),
        optimizer=optimizer * np.where(table.zero >= 1, sharded, whole),
        gathered=np.where(full, 2.0 * _WEIGHT_BYTES * held, 0.0),
    )


def _activations(
    job: TrainingJob, table: ConfigTable, p: RankParameters, stack: Stack, rank: Ints
) -> tuple[Floats, Floats]:
    """Return bytes in flight and the working set of one layer in backward."""
    saved = saved_bytes(
        job.model, table.tp, table.ep, table.etp, table.sequence_parallel, precision=job.precision
    )
    tokens = table.micro_batch * job.seq_len / table.cp
    scores = np.zeros_like(tokens) if stack.flash else saved.scores * tokens * job.seq_len
    kept = saved.kept * tokens
    inputs = saved.layer_input * tokens
    full = table.recompute == Recompute.FULL
    chosen = np.where(
        table.recompute_layers > 0, np.minimum(table.recompute_layers, p.layers_max), p.layers_max
    )
    again = np.where(full, chosen, 0.0)
    held_scores = np.where(table.recompute == Recompute.NONE, scores, 0.0)
    per_micro = again * inputs + (p.layers_max - again) * (kept + held_scores)
    num_micro = np.maximum(job.global_batch // (table.dp * table.micro_batch), 1)
    flight = chunks_in_flight(table.pp, table.vpp, num_micro, rank) / table.vpp
    working = np.where(full, saved.widest * tokens + scores, np.where(held_scores > 0, 0.0, scores))
    return flight * per_micro, working


def _logits(job: TrainingJob, table: ConfigTable, stack: Stack, c: MemoryCoefficients) -> Floats:
    tokens = table.micro_batch * job.seq_len / table.cp
    each = c.fused_logits_bytes_per_element if stack.fused_loss else c.logits_bytes_per_element
    return tokens * job.model.vocab / table.tp * each


def stage_memory(
    job: TrainingJob, table: ConfigTable, stack: Stack, rank: Ints, c: MemoryCoefficients
) -> MemoryTable:
    """Return the peak memory of pipeline rank `rank` (one per row), part by part."""
    p = rank_parameters(job.model, table.tp, table.pp, table.ep, table.etp, table.vpp)
    is_first, is_last = rank == 0, rank == table.pp - 1
    both = is_first & is_last
    ends = np.where(both, p.first + p.last, np.where(is_first, p.first, np.where(is_last, p.last, 0.0)))
    states = _states(table, p, ends, stack)
    activations, working = _activations(job, table, p, stack, rank)
    logits = np.where(is_last, _logits(job, table, stack, c), 0.0)
    tokens = table.micro_batch * job.seq_len / table.cp
    sends = np.where(table.pp > 1, 4.0, 1.0) * tokens * job.model.hidden * _WEIGHT_BYTES
    buffers = sends + c.workspace_bytes + working
    dynamic = activations + logits + states.gathered + buffers
    return MemoryTable(
        weights_bytes=states.weights,
        gradients_bytes=states.gradients,
        optimizer_bytes=states.optimizer,
        activations_bytes=activations,
        logits_bytes=logits,
        gathered_bytes=states.gathered,
        buffers_bytes=buffers,
        slack_bytes=c.slack_frac * dynamic,
        runtime_bytes=np.full(len(table), c.runtime_bytes),
    )


def peak_memory(job: TrainingJob, configs: ConfigTable, stack: Stack) -> MemoryTable:
    """Return the memory of the fullest pipeline rank of every strategy.

    The fullest rank is the first (most micro-batches in flight) or the last (logits and head).
    """
    columns = [getattr(configs, f.name) for f in fields(configs) if not f.name.startswith("overlap")]
    keys = Keys.of(*columns)
    table = configs.take(keys.first)
    c = memory_coefficients()
    first = stage_memory(job, table, stack, np.zeros_like(table.pp), c)
    last = stage_memory(job, table, stack, table.pp - 1, c)
    worse = last.peak_bytes > first.peak_bytes
    worst = MemoryTable(
        **{
            f.name: np.where(worse, getattr(last, f.name), getattr(first, f.name))
            for f in fields(MemoryTable)
        }
    )
    return worst.take(keys.inverse)


def usable_bytes(device: Device) -> float:
    """Return what an allocator can get of a device's memory."""
    return device.memory_bytes


def vocabulary(model: ModelGraph) -> int:
    """Return the rows of the model's output, as the loss sees them."""
    return model.vocab

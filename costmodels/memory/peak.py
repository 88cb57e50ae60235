"""Peak memory of the most loaded rank of a training strategy, part by part.

Model states follow Megatron's and ZeRO's accounting (Rajbhandari et al., arXiv 1910.02054); activations
follow `costmodels.memory.activations` times the micro-batches in flight of the schedule (Narayanan et al.,
arXiv 2104.04473). On top of what is in flight a rank holds, one after the other, either the logits and
their fp32 copies (last stage) or what backward of one layer needs; the larger of the two counts. The first
stage (most micro-batches in flight, embedding) and the last (logits, head) bound all others; the worse one
is reported.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from costmodels.cost_table import MemoryTable
from costmodels.job import TrainingJob
from costmodels.keys import Keys, shard_degree
from costmodels.memory.activations import SavedBytes, saved_bytes
from costmodels.memory.coefficients import MemoryCoefficients, memory_coefficients, usable_bytes
from costmodels.parameters import RankParameters, rank_parameters
from costmodels.stacks import Stack
from costmodels.strategy import ConfigTable, Recompute

__all__ = [
    "StageDetails",
    "chunks_in_flight",
    "memory_coefficients",
    "peak_memory",
    "stage_memory",
    "usable_bytes",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_WEIGHT_BYTES = 2.0
_MASTER_AND_MOMENTS_BYTES = 12.0
"""fp32 master weight and two Adam moments."""
_FP32_BYTES = 4.0
"""Under full sharding the shard is the fp32 weight itself, and 16-bit copies are gathered."""
_MOMENTS_BYTES = 8.0
_PASSING_TENSORS = 4.0
"""Tensors of the layer's width that backward of one layer holds at once (assumed); under sequence parallelism
two more are gathered whole."""
_GATHERED_LAYERS = 2.0
"""Layers whose weights full sharding holds whole: the one at work and the one prefetched. Of sharded
gradients: the one at work and the one on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDetails:
    """What a measured run may state beyond its strategy; a plan leaves the defaults."""

    layers: float | None = None
    """Layers of an ordinary stage; None is an even split, rounded up."""
    missing_layers: float = 0.0
    """Layers that the last chunk of the stage asked for lacks against an ordinary one."""
    micro_batch_group: int | None = None
    """Micro-batches that pass one model chunk before the next (interleaving); None is the stages."""
    deferred_logits: int = 0
    """Micro-batches whose logit gradients wait for the weight gradient of the head."""
    extra_heads: int = 0
    """Further predictions of the vocabulary (multi-token prediction): each has its logits and, where the
    first stage is another one, a copy of the embedding."""


def chunks_in_flight(
    pp: Ints, vpp: Ints, num_micro: Ints, rank: Ints, *, micro_batch_group: int | None = None
) -> Floats:
    """Return how many forward passes of one model chunk pipeline rank `rank` keeps at its fullest.

    Plain 1F1B keeps ``min(m, p - rank)``; the interleaved schedule warms up ``2 (p - rank - 1) + (v - 1) g``
    chunk passes, with groups of ``g = p`` micro-batches unless stated, and keeps one more (Megatron-core's
    schedule). All columns have shape (rows,).
    """
    group = pp if micro_batch_group is None else np.full_like(pp, micro_batch_group)
    plain = np.minimum(num_micro, pp - rank)
    interleaved = np.minimum(num_micro * vpp, 2 * (pp - rank - 1) + (vpp - 1) * group + 1)
    flight: Floats = np.where(vpp > 1, interleaved, plain).astype(np.float64)
    return flight


_BLOCK_ROWS = 16_384
"""Rows costed at once, so that the columns in flight stay in the processor's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class _States:
    weights: Floats
    gradients: Floats
    optimizer: Floats
    gathered: Floats
    unreduced: Floats
    """Gradients in passing, in buckets that the framework sets aside."""
    step: Floats
    """Held during the optimizer step, when no activations are."""


def _cut(table: ConfigTable) -> tuple[Floats, Floats]:
    """Return over how many ranks dense and expert states are sharded."""
    shard = shard_degree(table).astype(np.float64)
    full = np.maximum(table.dp * table.cp, 1)
    own = np.maximum(table.tp * full // (table.ep * table.etp), 1)
    return shard, np.maximum(own * shard / full, 1.0)


def _gradient_bytes(stack: Stack, precision: str) -> tuple[float, float]:
    """Return bytes per parameter of gradients as accumulated, and of their fp32 copy for the step.

    A sharded optimizer keeps that copy of its shard (fits nvidia-smi figures of BLOOM's runs).
    """
    if not stack.widened_gradients:
        return stack.main_grad_bytes, 0.0
    if precision == "fp16":
        return _WEIGHT_BYTES, _FP32_BYTES
    return _WEIGHT_BYTES + _FP32_BYTES, 0.0


def _states(
    table: ConfigTable,
    p: RankParameters,
    layers: Floats,
    ends: Floats,
    stack: Stack,
    precision: str,
    step_bytes: float,
) -> _States:
    dense = layers * p.layer_dense + ends
    expert = layers * p.layer_expert
    shard, expert_shard = _cut(table)
    sharded = dense / shard + expert / expert_shard
    whole = dense + expert
    full = table.zero == 3
    main, widened = _gradient_bytes(stack, precision)
    grad = np.where(full, _FP32_BYTES, main)
    kept = _MASTER_AND_MOMENTS_BYTES + np.where(table.zero > 0, widened, 0.0)
    optimizer = np.where(full, _MOMENTS_BYTES, kept)
    layer = p.layer_dense + p.layer_expert
    near = np.minimum(_GATHERED_LAYERS, layers) * layer * (1.0 - 1.0 / shard)
    unreduced = np.minimum(near + ends * (1.0 - 1.0 / shard), whole - sharded)
    return _States(
        weights=np.where(full, _FP32_BYTES * sharded, _WEIGHT_BYTES * whole),
        gradients=grad * np.where(table.zero >= 2, sharded, whole),
        optimizer=optimizer * np.where(table.zero >= 1, sharded, whole),
        gathered=np.where(full, 2.0 * _WEIGHT_BYTES * (near + ends), 0.0),
        unreduced=np.where(table.zero == 2, grad * unreduced, 0.0),
        step=np.where(table.zero > 0, step_bytes * sharded, (widened + step_bytes) * whole),
    )


def _in_flight(
    job: TrainingJob,
    table: ConfigTable,
    saved: SavedBytes,
    stack: Stack,
    layers: Floats,
    rank: Ints,
    details: StageDetails,
    imbalance_frac: float,
) -> Floats:
    """Return the activations of all micro-batches that wait for their backward pass."""
    tokens = table.micro_batch * job.seq_len / table.cp
    chosen = np.where(table.recompute_layers > 0, np.minimum(table.recompute_layers, layers), layers)
    again = np.where(table.recompute == Recompute.FULL, chosen, 0.0)
    selective = table.recompute == Recompute.SELECTIVE
    crowded = np.where(table.ep > 1, imbalance_frac * saved.experts, 0.0)
    kept = (saved.kept + crowded) * np.where(selective, stack.selective_kept_frac, 1.0)
    scores = np.where(selective, 0.0, saved.scores)
    per_token = again * saved.layer_input + (layers - again) * (kept + scores)
    num_micro = np.maximum(job.global_batch // (table.dp * table.micro_batch), 1)
    group = details.micro_batch_group
    flight = chunks_in_flight(table.pp, table.vpp, num_micro, rank, micro_batch_group=group)
    return (flight / table.vpp * layers - details.missing_layers) / layers * per_token * tokens


def _working(job: TrainingJob, table: ConfigTable, saved: SavedBytes) -> Floats:
    """Return what backward of one layer holds for a moment: what it recomputed and gradients in passing."""
    tokens = table.micro_batch * job.seq_len / table.cp
    full = table.recompute == Recompute.FULL
    again = np.where(full, saved.widest, 0.0)
    scores = np.where(table.recompute == Recompute.NONE, 0.0, saved.scores)
    gathers = (table.sequence_parallel > 0) & (table.tp > 1)
    whole = np.where(gathers, 2.0 * _WEIGHT_BYTES * job.model.hidden, 0.0)
    passing = _PASSING_TENSORS * saved.layer_input + whole
    return tokens * (again + scores + saved.scores_gradient + passing)


def _logits(job: TrainingJob, table: ConfigTable, stack: Stack, details: StageDetails) -> Floats:
    tokens = table.micro_batch * job.seq_len / table.cp
    each = (1 + details.extra_heads) * stack.logit_bytes + _WEIGHT_BYTES * details.deferred_logits
    return tokens * (job.model.vocab * each + _WEIGHT_BYTES * details.deferred_logits) / table.tp


def stage_memory(
    job: TrainingJob,
    table: ConfigTable,
    stack: Stack,
    rank: Ints,
    c: MemoryCoefficients,
    *,
    details: StageDetails | None = None,
) -> MemoryTable:
    """Return the peak memory of pipeline rank `rank` (one per row), part by part."""
    details = StageDetails() if details is None else details
    p = rank_parameters(job.model, table.tp, table.pp, table.ep, table.etp, table.vpp)
    is_first, is_last = rank == 0, rank == table.pp - 1
    ends = np.where(is_first, p.first, 0.0) + np.where(is_last, p.last, 0.0)
    ends = ends + np.where(is_last & ~is_first, details.extra_heads * p.first, 0.0)
    layers = p.layers_max if details.layers is None else np.full_like(p.layers_max, details.layers)
    states = _states(table, p, layers - details.missing_layers, ends, stack, job.precision, c.step_bytes)
    saved = saved_bytes(
        job.model,
        table.tp,
        table.etp,
        table.sequence_parallel,
        seq_len=job.seq_len,
        precision=job.precision,
        stack=stack,
    )
    activations = _in_flight(job, table, saved, stack, layers, rank, details, c.expert_imbalance_frac)
    logits = np.where(is_last, _logits(job, table, stack, details), 0.0)
    working = np.maximum(_working(job, table, saved) - logits, 0.0)
    tokens = table.micro_batch * job.seq_len / table.cp
    sends = np.where(table.pp > 1, 4.0, 1.0) * tokens * job.model.hidden * _WEIGHT_BYTES
    backward = activations + logits + working + sends
    buffers = sends + c.workspace_bytes + working + np.maximum(states.step - backward, 0.0)
    dynamic = activations + logits + states.gathered + buffers
    return MemoryTable(
        weights_bytes=states.weights,
        gradients_bytes=states.gradients,
        optimizer_bytes=states.optimizer,
        activations_bytes=activations,
        logits_bytes=logits,
        gathered_bytes=states.gathered + states.unreduced,
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
    starts = range(0, max(len(table), 1), _BLOCK_ROWS)
    blocks = [_fullest(job, table.take(slice(s, s + _BLOCK_ROWS)), stack) for s in starts]
    whole = {f.name: np.concatenate([getattr(b, f.name) for b in blocks]) for f in fields(MemoryTable)}
    return MemoryTable(**whole).take(keys.inverse)


def _fullest(job: TrainingJob, table: ConfigTable, stack: Stack) -> MemoryTable:
    """Return the memory of the fuller of first and last rank."""
    c = memory_coefficients(stack.name)
    first = stage_memory(job, table, stack, np.zeros_like(table.pp), c)
    last = stage_memory(job, table, stack, table.pp - 1, c)
    worse = last.peak_bytes > first.peak_bytes
    worst = {
        f.name: np.where(worse, getattr(last, f.name), getattr(first, f.name)) for f in fields(MemoryTable)
    }
    return MemoryTable(**worst)

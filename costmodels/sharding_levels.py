r"""Time and memory of full sharding whose weights, gradients and optimizer end at different levels.

With the :math:`\psi` parameters of one tensor rank, replicas numbered from the innermost level outwards, and
groups of :math:`W`, :math:`G` and :math:`O` replicas (each inside the next) that divide weights, gradients
and optimizer state, every layer and micro-batch gathers its weights over W before forward, again before
backward (over fewer replicas where a second copy is kept, hpZ), and reduces its gradients over G. Every step
reduces gradient shards over the O / G groups of O, then over the replicas of O, and gathers updated weights
over O / W. ZeRO-3 is W = G = O = all replicas; MiCS one smaller group for all three (Z. Zhang et al., arXiv
2205.00119); ZeRO++'s hpZ a second copy in the node (G. Wang et al., arXiv 2306.10209); weights in a package,
gradients in a node and optimizer over the world is arXiv 2501.04266.

Collectives hide under the layer that computes meanwhile, as in `costmodels.training.step_time`. Quantised
weights and gradients (8 and 4 bits, qwZ and qgZ) move fewer bytes, change the numbers that are computed, and
take passes over the device's memory: per parameter 2 bytes are read and 1 written of the own shard of
weights, 1 read and 2 written of all of them behind the gather, 2 read and 1/2 written of gradients, and 1/2
read and 2 / G written where they are summed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from costmodels.collectives.times import Collective, collective_s
from costmodels.cost_table import CostTable
from costmodels.job import TrainingJob
from costmodels.kernels.times import kernel_model
from costmodels.memory.feasibility import fits_probability
from costmodels.memory.peak import memory_coefficients, peak_memory, usable_bytes
from costmodels.parameters import rank_parameters
from costmodels.stacks import Stack, find_stack
from costmodels.strategy import ConfigTable
from costmodels.training.evaluate import evaluate
from hardware.cluster import Cluster
from hardware.levels import Level

__all__ = ["ShardLevels", "level_costs"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_WEIGHT_BYTES, _QUANTIZED_WEIGHT_BYTES = 2.0, 1.0
_GRADIENT_BYTES, _QUANTIZED_GRADIENT_BYTES = 2.0, 0.5
"""On the wire; accumulated gradients are kept as the stack keeps them."""
_STATE_BYTES = 12.0
"""fp32 master weight and two Adam moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLevels:
    """Over how many neighbouring replicas each kind of state is divided; each divides the next."""

    weight_ranks: int
    backward_ranks: int
    """Over which weights are gathered for backward; fewer than `weight_ranks` keeps a second copy of them."""
    gradient_ranks: int
    optimizer_ranks: int
    quantized: bool = False

    def __post_init__(self) -> None:
        inner = (self.backward_ranks, self.weight_ranks, self.optimizer_ranks)
        positive = min(*inner, self.gradient_ranks) > 0
        nested = positive and all(b % a == 0 for a, b in pairwise(inner))
        if not nested or self.optimizer_ranks % self.gradient_ranks:
            message = f"{self}: groups of shards must lie inside each other, optimizer outermost"
            raise ValueError(message)


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """The levels of every row."""

    weight_ranks: Ints
    backward_ranks: Ints
    gradient_ranks: Ints
    optimizer_ranks: Ints
    weight_bytes: Floats
    """On the wire, per parameter."""
    gradient_bytes: Floats
    packed: npt.NDArray[np.bool_]
    """Where weights and gradients are quantised on the way."""


def _columns(levels: Sequence[ShardLevels]) -> _Columns:
    packed = np.array([one.quantized for one in levels])
    return _Columns(
        weight_ranks=np.array([one.weight_ranks for one in levels]),
        backward_ranks=np.array([one.backward_ranks for one in levels]),
        gradient_ranks=np.array([one.gradient_ranks for one in levels]),
        optimizer_ranks=np.array([one.optimizer_ranks for one in levels]),
        weight_bytes=np.where(packed, _QUANTIZED_WEIGHT_BYTES, _WEIGHT_BYTES),
        gradient_bytes=np.where(packed, _QUANTIZED_GRADIENT_BYTES, _GRADIENT_BYTES),
        packed=packed,
    )


def _layer_passes(job: TrainingJob, configs: ConfigTable) -> Floats:
    """Return how often a device runs a layer in one step."""
    passes: Floats = job.model.num_layers * job.global_batch / (configs.dp * configs.micro_batch)
    return passes


def _packing_bytes(ends: _Columns) -> Floats:
    """Return what quantising and its reverse read and write per parameter of a layer, both ways together."""
    total = np.zeros(len(ends.packed))
    for ranks in (ends.weight_ranks, ends.backward_ranks):
        gathered = (_WEIGHT_BYTES + _QUANTIZED_WEIGHT_BYTES) * (1.0 + 1.0 / ranks)
        total = total + np.where(ranks > 1, gathered, 0.0)
    summed = _GRADIENT_BYTES * (1.0 + 1.0 / ends.gradient_ranks) + 2.0 * _QUANTIZED_GRADIENT_BYTES
    both: Floats = total + np.where(ends.gradient_ranks > 1, summed, 0.0)
    return both


def level_costs(
    job: TrainingJob, cluster: Cluster, configs: ConfigTable, levels: Sequence[ShardLevels]
) -> CostTable:
    """Return the cost of every row of one stage (pp, cp, ep and vpp 1), sharded at the levels of that row.

    Gradient and weight traffic replace what `costmodels.training.evaluate.evaluate` costs for a sharded
    optimizer.
    """
    stack, ends = find_stack(job.stack), _columns(levels)
    sharded = np.where(configs.dp > ends.optimizer_ranks, ends.optimizer_ranks, 0)
    columns = {name: getattr(configs, name) for name in configs.__slots__}
    base = evaluate(job, cluster, ConfigTable.from_columns(**(columns | {"zero": 1, "shard_group": sharded})))
    memory = peak_memory(job, configs, stack)
    one = np.ones_like(configs.tp)
    counts = rank_parameters(job.model, configs.tp, one, one, one, one)
    whole = counts.layers_max * counts.layer_dense + counts.first + counts.last
    own = memory_coefficients(stack.name)
    copied = ends.backward_ranks < ends.weight_ranks
    second = np.where(copied, _WEIGHT_BYTES / ends.backward_ranks, 0.0)
    states = replace(
        memory,
        weights_bytes=whole * (_WEIGHT_BYTES / ends.weight_ranks + second),
        gradients_bytes=whole * stack.main_grad_bytes / ends.gradient_ranks,
        optimizer_bytes=whole * _STATE_BYTES / ends.optimizer_ranks,
        gathered_bytes=np.where(ends.weight_ranks > 1, memory.gathered_bytes, 0.0),
    )
    visible = _visible_s(job, configs, base, counts.layer_dense, ends, cluster.levels, stack)
    passes = _layer_passes(job, configs)
    packing = passes * kernel_model(cluster.device).memory_s(counts.layer_dense * _packing_bytes(ends))
    packing = np.where(ends.packed, packing * stack.vector, 0.0)
    step = _step_s(configs, whole, ends, cluster.levels) * stack.dp_comm
    usable = usable_bytes(cluster.device)
    return replace(
        base,
        dp_comm_s=visible + packing + step,
        correction_s=np.zeros(len(configs)),
        memory=states,
        fits_probability=fits_probability(states.peak_bytes, usable, own.sigma),
    )


def _visible_s(
    job: TrainingJob,
    configs: ConfigTable,
    base: CostTable,
    layer_params: Floats,
    ends: _Columns,
    network: tuple[Level, ...],
    stack: Stack,
) -> Floats:
    """Return what gathering and reducing of all layers and micro-batches leaves in sight."""

    def each(op: Collective, size: Floats, ranks: Ints) -> Floats:
        return collective_s(op, size, configs.tp, ranks, network) * stack.dp_comm

    weight_bytes = layer_params * ends.weight_bytes
    forward = each(Collective.ALL_GATHER, weight_bytes, ends.weight_ranks)
    backward = each(Collective.ALL_GATHER, weight_bytes, ends.backward_ranks)
    gradient_bytes = layer_params * ends.gradient_bytes
    backward = backward + each(Collective.REDUCE_SCATTER, gradient_bytes, ends.gradient_ranks)
    passes = _layer_passes(job, configs)
    forward_s = (base.forward_s + base.tp_comm_s / 2) / passes
    backward_s = (base.backward_s + base.recompute_s + base.tp_comm_s / 2) / passes
    left = stack.dp_exposed_frac
    hidden = np.maximum(forward - forward_s, left * forward) + np.maximum(
        backward - backward_s, left * backward
    )
    shown: Floats = passes * np.where(configs.overlap_dp > 0, hidden, forward + backward)
    return shown


def _step_s(configs: ConfigTable, whole: Floats, ends: _Columns, network: tuple[Level, ...]) -> Floats:
    """Return what a step adds: gradient shards over the optimizer's group and replicas, new weights back."""
    sent = whole * ends.gradient_bytes
    inner, outer, held = ends.gradient_ranks, ends.optimizer_ranks, ends.weight_ranks
    tp = configs.tp
    reduced = collective_s(Collective.REDUCE_SCATTER, sent / inner, tp * inner, outer // inner, network)
    replicas = np.maximum(configs.dp // outer, 1)
    averaged = collective_s(Collective.ALL_REDUCE, sent / outer, tp * outer, replicas, network)
    fresh = whole * ends.weight_bytes / held
    returned = collective_s(Collective.ALL_GATHER, fresh, tp * held, outer // held, network)
    total: Floats = reduced + averaged + returned
    return total

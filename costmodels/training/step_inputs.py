"""Everything that the time of a step is made of, one row per strategy, before a software stack is applied.

Layer costs, parameter counts and collectives are computed on distinct keys and gathered by row, so a table
of a million strategies costs a few dozen array passes.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

from costmodels.collectives.times import Collective, collective_s, p2p_s
from costmodels.job import TrainingJob
from costmodels.kernels.portable import portable_attention_ratio
from costmodels.kernels.times import KernelModel
from costmodels.keys import Keys, shard_degree
from costmodels.parameters import RankParameters, rank_parameters
from costmodels.stacks import stack_release
from costmodels.strategy import ConfigTable, Recompute
from costmodels.training.layer_costs import LayerCosts, Shards, element_bytes, layer_costs
from costmodels.training.releases import release_pace
from hardware.levels import Level

__all__ = ["StepInputs", "step_inputs"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Index = npt.NDArray[np.intp]


@dataclass(slots=True, eq=False)
class StepInputs:
    """Columns that a step's time depends on. Seconds are those of kernels and collectives alone."""

    layer: LayerCosts
    layers_max: Floats
    """Layers of the fullest stage."""
    layers_mean: Floats
    pp: Floats
    vpp: Floats
    num_micro: Floats
    """Micro-batches per pipeline and step."""
    recomputed_frac: Floats
    """Share of the layers that run forward twice."""
    recompute_attention: Floats
    """One where attention scores are recomputed."""
    p2p_s: Floats
    """One stage-to-stage send."""
    grad_comm_s: Floats
    """One gradient reduction of the fullest stage, 4-byte gradients. Under full sharding only what goes
    between replicas of the shards: the rest runs layer by layer with the gathering of weights."""
    grad_rounds: Floats
    """Gradient reductions per step: sharded gradients cannot wait for the last micro-batch."""
    param_comm_s: Floats
    """Gathering of updated weights under a sharded optimizer."""
    tied_comm_s: Floats
    """Adding up the two gradients of a tied embedding, 4-byte gradients: first and last stage hold it."""
    gather_layer_s: Floats
    """Gathering one layer's weights under full sharding, one pass."""
    optimizer_s: Floats
    overlap_dp: Floats
    overlap_tp: Floats
    overlap_pp: Floats
    num_nodes: Floats
    pace: Floats
    """Step time of the software's release over that of the newest."""
    fp16: Floats
    """One where training runs in fp16 with loss scaling."""
    flash1_ratio: Floats
    """Time of FlashAttention's first version over that of the device's own kernels."""
    flash2_ratio: Floats

    def __len__(self) -> int:
        return len(self.pp)

    @classmethod
    def concatenate(cls, parts: list[Self]) -> Self:
        """Return all rows of `parts`, in order."""
        own = {
            f.name: np.concatenate([getattr(p, f.name) for p in parts])
            for f in fields(cls)
            if f.name != "layer"
        }
        layer = {
            f.name: np.concatenate([getattr(p.layer, f.name) for p in parts]) for f in fields(LayerCosts)
        }
        return cls(layer=LayerCosts(**layer), **own)

    def take(self, rows: Index | npt.NDArray[np.bool_] | slice) -> Self:
        """Return the chosen rows."""
        own = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "layer"}
        layer = {f.name: getattr(self.layer, f.name)[rows] for f in fields(LayerCosts)}
        return type(self)(layer=LayerCosts(**layer), **own)


def _layer_rows(
    job: TrainingJob, configs: ConfigTable, kernels: KernelModel, levels: tuple[Level, ...]
) -> LayerCosts:
    columns = ("tp", "cp", "ep", "etp", "micro_batch", "sequence_parallel")
    keys = Keys.of(*(getattr(configs, c) for c in columns))
    shards = Shards(**{c: getattr(configs, c)[keys.first] for c in columns})
    costs = layer_costs(
        job.model, shards, seq_len=job.seq_len, precision=job.precision, kernels=kernels, levels=levels
    )
    return LayerCosts(**{f.name: getattr(costs, f.name)[keys.inverse] for f in fields(LayerCosts)})


def _stage_bytes(parameters: RankParameters) -> tuple[Floats, Floats]:
    """Return dense (with the heavier end) and expert parameters of the fullest stage."""
    ends = np.maximum(parameters.first, parameters.last)
    return (
        parameters.layers_max * parameters.layer_dense + ends,
        parameters.layers_max * parameters.layer_expert,
    )


def _expert_replicas(table: ConfigTable) -> Ints:
    return np.maximum(table.tp * table.dp * table.cp // (table.ep * table.etp), 1)


def _between_shards_s(
    table: ConfigTable, parameters: RankParameters, levels: tuple[Level, ...], bytes_each: float
) -> Floats:
    """Return the time in which the groups that each hold all shards add up what they reduced."""
    dense, _ = _stage_bytes(parameters)
    shard = shard_degree(table)
    replicas = np.where(table.zero > 0, table.dp * table.cp // np.maximum(shard, 1), 1)
    return collective_s(Collective.ALL_REDUCE, dense * bytes_each / shard, table.tp * shard, replicas, levels)


def _gather_layer_s(
    table: ConfigTable, parameters: RankParameters, levels: tuple[Level, ...], bytes_each: float
) -> Floats:
    """Return the time of gathering one layer's weights, dense and expert ones over their own shards."""
    gather = Collective.ALL_GATHER
    shard = shard_degree(table)
    expert_shard = np.minimum(shard, _expert_replicas(table))
    dense_s = collective_s(gather, parameters.layer_dense * bytes_each, table.tp, shard, levels)
    expert_s = collective_s(
        gather, parameters.layer_expert * bytes_each, table.ep * table.etp, expert_shard, levels
    )
    return dense_s + expert_s


def _reduction_s(
    table: ConfigTable,
    parameters: RankParameters,
    levels: tuple[Level, ...],
    op: Collective,
    bytes_each: float,
) -> Floats:
    """Return the time of one collective over a stage's gradients or weights, experts over their own group."""
    dense, expert = _stage_bytes(parameters)
    group = table.dp * table.cp
    stride = table.tp
    shard = shard_degree(table)
    dense_s = collective_s(op, dense * bytes_each, stride, np.where(table.zero > 0, shard, group), levels)
    expert_group = _expert_replicas(table)
    expert_s = collective_s(op, expert * bytes_each, table.ep * table.etp, expert_group, levels)
    if op is Collective.ALL_GATHER:
        return dense_s + expert_s
    return dense_s + _between_shards_s(table, parameters, levels, bytes_each) + expert_s


def _tied_s(table: ConfigTable, parameters: RankParameters, levels: tuple[Level, ...]) -> Floats:
    """Return the time in which the first and the last stage add up their gradients of a tied embedding.

    Every rank of the first stage does so with its peer of the last one, once per step, behind the flush
    (Narayanan et al., arXiv 2104.04473; Megatron's embedding group).
    """
    stride = table.tp * table.cp * table.dp * np.maximum(table.pp - 1, 1)
    return collective_s(Collective.ALL_REDUCE, parameters.tied * 4.0, stride, np.minimum(table.pp, 2), levels)


@dataclass(frozen=True, slots=True, eq=False)
class _DataParallel:
    grad_comm_s: Floats
    param_comm_s: Floats
    tied_comm_s: Floats
    gather_layer_s: Floats
    optimizer_s: Floats
    layers_max: Floats
    layers_mean: Floats


def _data_parallel(
    job: TrainingJob, table: ConfigTable, kernels: KernelModel, levels: tuple[Level, ...]
) -> _DataParallel:
    parameters = rank_parameters(job.model, table.tp, table.pp, table.ep, table.etp, table.vpp)
    reduce = _reduction_s(table, parameters, levels, Collective.ALL_REDUCE, 4.0)
    scatter = _reduction_s(table, parameters, levels, Collective.REDUCE_SCATTER, 4.0)
    gather = _reduction_s(table, parameters, levels, Collective.ALL_GATHER, element_bytes(job.precision))
    dense, expert = _stage_bytes(parameters)
    shard = shard_degree(table)
    expert_shard = np.minimum(shard, _expert_replicas(table))
    updated = dense / shard + expert / np.where(table.zero > 0, expert_shard, 1)
    between = _between_shards_s(table, parameters, levels, 4.0)
    layer_gather = _gather_layer_s(table, parameters, levels, element_bytes(job.precision))
    return _DataParallel(
        grad_comm_s=np.select([table.zero == 0, table.zero == 3], [reduce, between], scatter),
        param_comm_s=np.where((table.zero > 0) & (table.zero < 3), gather, 0.0),
        tied_comm_s=_tied_s(table, parameters, levels),
        gather_layer_s=np.where(table.zero == 3, layer_gather, 0.0),
        optimizer_s=kernels.optimizer_s(updated),
        layers_max=parameters.layers_max,
        layers_mean=parameters.layers_mean,
    )


def _sends(job: TrainingJob, table: ConfigTable, levels: tuple[Level, ...]) -> Floats:
    size = table.micro_batch * job.seq_len / table.cp * job.model.hidden * element_bytes(job.precision)
    size = np.where(table.sequence_parallel > 0, size / table.tp, size)
    hop = p2p_s(size, table.tp * table.cp * table.dp, levels, degree=table.pp)
    return np.where(table.pp > 1, hop, 0.0)


def step_inputs(
    job: TrainingJob, configs: ConfigTable, *, kernels: KernelModel, levels: tuple[Level, ...], num_nodes: int
) -> StepInputs:
    """Return the inputs of every row of `configs`."""
    dp_columns = ("tp", "pp", "dp", "cp", "ep", "etp", "vpp", "zero", "shard_group")
    dp_keys = Keys.of(*(getattr(configs, c) for c in dp_columns))
    shared = _data_parallel(job, configs.take(dp_keys.first), kernels, levels)
    send_columns = ("tp", "pp", "dp", "cp", "micro_batch", "sequence_parallel")
    send_keys = Keys.of(*(getattr(configs, c) for c in send_columns))
    sends = _sends(job, configs.take(send_keys.first), levels)
    rows = {f.name: getattr(shared, f.name)[dp_keys.inverse] for f in fields(_DataParallel)}
    full = configs.recompute == Recompute.FULL
    share = np.where(
        configs.recompute_layers > 0, np.minimum(configs.recompute_layers / rows["layers_mean"], 1.0), 1.0
    )
    num_micro = np.maximum(job.global_batch / (configs.dp * configs.micro_batch), 1.0)
    return StepInputs(
        layer=_layer_rows(job, configs, kernels, levels),
        pp=configs.pp.astype(np.float64),
        vpp=configs.vpp.astype(np.float64),
        num_micro=num_micro,
        grad_rounds=np.where(configs.zero >= 2, num_micro, 1.0),
        recomputed_frac=np.where(full, share, 0.0),
        recompute_attention=(configs.recompute == Recompute.SELECTIVE).astype(np.float64),
        p2p_s=sends[send_keys.inverse],
        overlap_dp=configs.overlap_dp.astype(np.float64),
        overlap_tp=configs.overlap_tp.astype(np.float64),
        overlap_pp=configs.overlap_pp.astype(np.float64),
        num_nodes=np.full(len(configs), float(num_nodes)),
        pace=np.full(len(configs), release_pace(job.release or stack_release(job.stack))),
        fp16=np.full(len(configs), float(job.precision.lower() == "fp16")),
        flash1_ratio=np.full(len(configs), portable_attention_ratio(kernels, "flash1")),
        flash2_ratio=np.full(len(configs), portable_attention_ratio(kernels, "flash2")),
        **rows,
    )

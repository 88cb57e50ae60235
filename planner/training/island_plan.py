"""Groups of a cluster as islands: what each does alone, and training that only averages models between them.

Averaging instead of reducing gradients is another algorithm (local SGD, DiLoCo; under the next round: CO2,
arXiv 2401.16265). It is planned where the request states `local_steps`, and the plan states its staleness.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np

from costmodels.cost_table import CostTable
from costmodels.job import TrainingJob
from costmodels.stacks import device_stack
from costmodels.strategy import ConfigTable, Strategy
from costmodels.training.evaluate import evaluate, rated_peak_flops_per_s
from costmodels.training.local_updates import LocalUpdateCost, local_update_cost
from hardware.cluster import Cluster
from hardware.errors import InfeasibleError, InputError
from planner.plan import (
    Check,
    LocalUpdates,
    Placement,
    PlanFile,
    PlannedIsland,
    PlannedRank,
    Search,
    TrainingPlan,
    TrainingPrediction,
)
from planner.plan_io import plan_document
from planner.request import TrainRequest, allowed_values
from planner.training.memory_fit import memory_of
from planner.training.plan_checks import (
    bandwidth_check,
    groups_check,
    order_check,
    parts_check,
    seats_check,
)
from planner.training.provenance import training_provenance
from planner.training.ranks import host_names, rank_coordinates
from planner.training.search import search_space
from planner.training.search_checks import halved_networks
from planner.training.space import training_space

__all__ = ["averaging_s", "best_alone", "group_name", "plan_local_updates"]

_REDUCED_BYTES = 4.0
"""Models are averaged in fp32."""
_FINEST_PARTS = 16
"""Parts of the batch per group in the finest division that is tried."""


def group_name(cluster: Cluster, index: int) -> str:
    """Return what plans call a group: its name, or its number."""
    return cluster.groups[index].name or f"{index}"


def best_alone(
    request: TrainRequest, job: TrainingJob, cluster: Cluster
) -> tuple[Strategy, CostTable, int] | None:
    """Return the best strategy on a cluster taken as one, its cost and the rows searched; None: none fits."""
    found = search_space(
        training_space(
            job,
            world=cluster.num_devices,
            levels=cluster.levels,
            flash_attention=device_stack(job.stack, cluster.device).flash,
            allow=allowed_values(request),
        ),
        memory=memory_of(job, cluster),
        evaluate=lambda configs: evaluate(job, cluster, configs),
        top=1,
        min_probability=request.min_fits_probability,
    )
    if found.nearest is not None or not len(found.best):
        return None
    strategy = found.best.strategy(0)
    return strategy, evaluate(job, cluster, ConfigTable.from_strategies([strategy])), found.num_configs


def averaging_s(job: TrainingJob, cluster: Cluster) -> float:
    """Return the time to average the model over the slowest link between two groups. [s]"""
    rate = min(
        cluster.bytes_per_s_between(i, j) * min(cluster.groups[i].num_devices, cluster.groups[j].num_devices)
        for i, j in combinations(range(len(cluster.groups)), 2)
    )
    return 2.0 * _REDUCED_BYTES * job.model.num_params / rate


def plan_local_updates(request: TrainRequest, job: TrainingJob, cluster: Cluster) -> PlanFile[TrainingPlan]:
    """Return the plan of groups that train alone and average their models every `request.local_steps` steps.

    Raises
    ------
    InputError
        if the cluster is one group.
    InfeasibleError
        if a group cannot hold the model alone.
    """
    if request.local_steps is None or cluster.is_homogeneous:
        message = f"local_steps: cluster {cluster.name} has one group; models are averaged between groups"
        raise InputError(message)
    started = time.monotonic()
    islands, costs, num_configs = _islands(request, job, cluster)
    cost = local_update_cost(
        tuple(island.step_s for island in islands),
        averaging_s(job, cluster),
        local_steps=request.local_steps,
        overlapped=request.local_overlap,
    )
    updates = LocalUpdates(
        local_steps=request.local_steps,
        overlapped=request.local_overlap,
        staleness_steps=cost.staleness_steps,
        reduce_s=averaging_s(job, cluster),
        exposed_s=cost.exposed_s,
        islands=islands,
    )
    predicted = _prediction(job, cluster, islands, costs, cost)
    placement = _placement(cluster, islands)
    plan = TrainingPlan(
        strategy=islands[0].strategy,
        predicted=predicted,
        placement=placement,
        certificate=_certificate(job, cluster, updates, predicted, placement),
        local_updates=updates,
    )
    return PlanFile(
        kind="train",
        request=plan_document(request),
        plans=(plan,),
        search=Search(num_configs=num_configs, num_feasible=len(islands), wall_s=time.monotonic() - started),
        diagnostics=_notes(job, cluster, updates, cost),
        provenance=training_provenance(job, cluster),
    )


def _islands(
    request: TrainRequest, job: TrainingJob, cluster: Cluster
) -> tuple[tuple[PlannedIsland, ...], list[CostTable], int]:
    """Return every group with its share of the batch, and how much was searched.

    Shares follow what each group attains alone on all of the batch. Of finer and coarser ones those are taken
    whose slowest group is the fastest: 46 sequences leave 64 devices few ways to share them, 48 many.
    """
    groups = range(len(cluster.groups))
    alone = [best_alone(request, job, cluster.group_cluster(i)) for i in groups]
    searched = sum(found[2] for found in alone if found)
    speeds = []
    for i, found in zip(groups, alone, strict=True):
        if found is None:
            raise _unfit(cluster, i)
        speeds.append(1.0 / float(found[1].step_s[0]))
    dealings = list(dict.fromkeys(_dealings(job.global_batch, speeds)))
    known = {
        (i, batch): best_alone(request, replace(job, global_batch=batch), cluster.group_cluster(i))
        for i, batch in sorted({pair for dealing in dealings for pair in enumerate(dealing)})
    }
    searched += sum(found[2] for found in known.values() if found)
    steps_s = {pair: np.inf if found is None else float(found[1].step_s[0]) for pair, found in known.items()}
    best = min(dealings, key=lambda dealing: max(steps_s[pair] for pair in enumerate(dealing)))
    islands, costs = [], []
    for i, batch in enumerate(best):
        found = known[i, batch]
        if found is None:
            raise _unfit(cluster, i)
        strategy, table, _ = found
        costs.append(table)
        islands.append(
            PlannedIsland(
                group=group_name(cluster, i),
                strategy=strategy,
                global_batch=batch,
                step_s=float(table.step_s[0]),
                peak_memory_bytes=float(table.peak_memory_bytes[0]),
            )
        )
    return tuple(islands), costs, searched


def _unfit(cluster: Cluster, group: int) -> InfeasibleError:
    message = f"local_steps: group {group_name(cluster, group)} of {cluster.name} cannot hold the model alone"
    return InfeasibleError(message, ("memory of every stage",))


def _dealings(global_batch: int, speeds: list[float]) -> Iterator[tuple[int, ...]]:
    """Yield whole shares of the batch by speed, in powers of two from a fine division to the coarsest.

    Powers of two leave the islands many degrees of data parallelism.
    """
    unit = 1
    while global_batch % (2 * unit) == 0 and 2 * unit * _FINEST_PARTS * len(speeds) <= global_batch:
        unit *= 2
    while global_batch % unit == 0 and global_batch // unit >= len(speeds):
        yield _shares(global_batch, speeds, unit)
        unit *= 2


def _shares(global_batch: int, speeds: list[float], unit: int) -> tuple[int, ...]:
    """Return multiples of `unit` by speed, at least one each, that add up to the batch."""
    parts = global_batch // unit
    exact = np.array(speeds) / sum(speeds) * parts
    shares = np.maximum(1, np.floor(exact)).astype(int)
    while shares.sum() > parts:
        shares[int(np.argmax(shares))] -= 1
    while shares.sum() < parts:
        shares[int(np.argmax(exact - shares))] += 1
    return tuple(int(share) * unit for share in shares)


def _prediction(
    job: TrainingJob,
    cluster: Cluster,
    islands: tuple[PlannedIsland, ...],
    costs: list[CostTable],
    cost: LocalUpdateCost,
) -> TrainingPrediction:
    slowest = max(range(len(islands)), key=lambda i: islands[i].step_s)
    fullest = max(
        range(len(islands)), key=lambda i: islands[i].peak_memory_bytes / costs[i].device_memory_bytes
    )
    own = {name: float(column[0]) for name, column in costs[slowest].time_parts().items()}
    spread = float(costs[slowest].step_high_s[0]) / islands[slowest].step_s
    rated = sum(
        group.num_devices * rated_peak_flops_per_s(group.node.device, job.precision)
        for group in cluster.groups
    )
    return TrainingPrediction(
        step_s=cost.step_s,
        step_low_s=cost.step_s / spread,
        step_high_s=cost.step_s * spread,
        tokens_per_s_per_device=job.num_tokens / cost.step_s / cluster.num_devices,
        mfu_frac=sum(table.model_flops for table in costs) / (cost.step_s * rated),
        peak_memory_bytes=islands[fullest].peak_memory_bytes,
        memory_parts_bytes={n: float(c[0]) for n, c in costs[fullest].memory.parts().items()},
        memory_capacity_bytes=costs[fullest].device_memory_bytes,
        fits_probability=min(float(table.fits_probability[0]) for table in costs),
        time_parts_s=own | {"averaging": cost.exposed_s},
    )


def _placement(cluster: Cluster, islands: tuple[PlannedIsland, ...]) -> Placement:
    """Return the ranks of all islands over the devices in order; coordinates are those inside the island."""
    places = iter(host_names(cluster))
    ranks: list[PlannedRank] = []
    for number, island in enumerate(islands):
        for at in rank_coordinates(island.strategy):
            host, device = next(places)
            ranks.append(
                PlannedRank(rank=len(ranks), host=host, device=device, coordinates={"island": number} | at)
            )
    return Placement(ranks=tuple(ranks))


def _certificate(
    job: TrainingJob,
    cluster: Cluster,
    updates: LocalUpdates,
    predicted: TrainingPrediction,
    placement: Placement,
) -> tuple[Check, ...]:
    worlds = [island.strategy.world for island in updates.islands]
    sizes = [group.num_devices for group in cluster.groups]
    batches = [island.global_batch for island in updates.islands]
    return (
        groups_check(worlds, sizes),
        Check(
            name="batches-sum-to-the-global-batch",
            holds=sum(batches) == job.global_batch,
            detail=f"{batches} of {job.global_batch} sequences",
        ),
        seats_check(placement, sum(sizes)),
        Check(
            name="staleness-is-stated",
            holds=updates.staleness_steps >= updates.local_steps,
            detail=f"{updates.staleness_steps} steps after rounds of {updates.local_steps}",
        ),
        parts_check(predicted),
        *_cost_checks(job, cluster, updates),
    )


def _cost_checks(job: TrainingJob, cluster: Cluster, updates: LocalUpdates) -> tuple[Check, Check]:
    """Return what the cost is checked for: islands in another order, and networks at half their rate."""

    def recosted_s(on: Cluster, order: range) -> float:
        alone = [_alone_s(job, on.group_cluster(i), updates.islands[i]) for i in order]
        return local_update_cost(
            tuple(alone),
            averaging_s(job, on),
            local_steps=updates.local_steps,
            overlapped=updates.overlapped,
        ).step_s

    groups = range(len(updates.islands))
    step_s = recosted_s(cluster, groups)
    backwards_s = recosted_s(cluster, groups[::-1])
    return (
        order_check(abs(backwards_s / step_s - 1.0), f"{len(groups)} groups"),
        bandwidth_check(recosted_s(halved_networks(cluster), groups) / step_s),
    )


def _alone_s(job: TrainingJob, group: Cluster, island: PlannedIsland) -> float:
    """Return an island's step without learned corrections. [s]"""
    own = replace(job, global_batch=island.global_batch)
    rows = ConfigTable.from_strategies([island.strategy])
    return float(evaluate(own, group, rows, corrected=False).step_s[0])


def _notes(
    job: TrainingJob, cluster: Cluster, updates: LocalUpdates, cost: LocalUpdateCost
) -> tuple[str, ...]:
    under = "under the next round" if updates.overlapped else "while all wait"
    shares = ", ".join(f"{i.group} {i.global_batch} sequences in {i.step_s:.3g} s" for i in updates.islands)
    rest = f"of which every step waits {cost.exposed_s:.3g} s" if cost.exposed_s > 0 else "all of it hidden"
    return (
        f"software stack {job.stack}: kernels, launch overheads and overlap are those of this stack",
        f"another algorithm than synchronous training, as asked: {cluster.name}'s groups take "
        f"{updates.local_steps} optimizer steps alone and average their models {under}; other groups' "
        f"updates arrive {updates.staleness_steps} steps late; what that costs in loss is not predicted",
        f"shares of the batch by speed: {shares}",
        f"averaging takes {updates.reduce_s:.3g} s over the joining links, {rest}",
    )

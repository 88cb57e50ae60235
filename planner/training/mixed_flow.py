"""The training flow on a cluster of unlike groups: pipelines across them, against every simpler way."""

import time
from dataclasses import replace
from itertools import pairwise
from math import ceil

import numpy as np

from costmodels.intervals import Z90
from costmodels.job import TrainingJob
from costmodels.memory.feasibility import fits_probability
from costmodels.memory.peak import memory_coefficients, usable_bytes
from costmodels.training.evaluate import rated_peak_flops_per_s
from costmodels.training.local_updates import local_update_cost
from hardware.cluster import Cluster
from hardware.errors import InfeasibleError, InputError
from planner.plan import (
    Check,
    Excluded,
    Placement,
    PlanFile,
    PlannedRank,
    PlannedStage,
    Search,
    TrainingPlan,
    TrainingPrediction,
)
from planner.plan_io import plan_document
from planner.request import TrainRequest, allowed_values, group_speeds
from planner.training.island_plan import averaging_s, best_alone, group_name
from planner.training.mixed_energy import mixed_cost_usd, mixed_energy_j
from planner.training.mixed_plan import MixedPipeline, MixedSearch, search_mixed_pipelines
from planner.training.mixed_shapes import MOST_ORDERED_GROUPS
from planner.training.mixed_subsets import best_without_some
from planner.training.plan_checks import (
    bandwidth_check,
    groups_check,
    layers_check,
    order_check,
    parts_check,
    seats_check,
    stages_fit_check,
)
from planner.training.provenance import training_provenance
from planner.training.ranks import host_names
from planner.training.search_checks import halved_networks

__all__ = ["plan_mixed_training"]

_SHARED = ("tp", "dp", "pp", "micro_batch", "recompute")
"""Decisions of a pipeline over groups that a request may narrow; `tp` is then that of every stage."""


def plan_mixed_training(
    request: TrainRequest, job: TrainingJob, cluster: Cluster, *, flat: tuple[TrainingPlan, ...] = ()
) -> PlanFile[TrainingPlan]:
    """Return pipelines over all groups, best first, with what one group alone or one flat network would take.

    Parameters
    ----------
    flat : plans that take all groups as one cluster over the network that they share; ranked with the others.

    Raises
    ------
    InfeasibleError
        if no pipeline over the groups fits in memory.
    InputError
        if the request narrows columns that differ between groups.
    """
    allow = _allowed(request, cluster)
    started = time.monotonic()
    attained = group_speeds(request, cluster)
    found = search_mixed_pipelines(job, cluster, top=request.top, attained=attained, allow=allow)
    pipelines = found.pipelines
    if not found.num_layouts:
        asked = ", ".join(f"{name} {list(values)}" for name, values in allow.items())
        message = f"no division of the groups of {cluster.name} is left: allow {asked or 'leaves all'}"
        raise InfeasibleError(message, ("allow",))
    if not pipelines:
        message = (
            f"no pipeline over the groups of {cluster.name} fits in memory; add nodes or shorten sequences"
        )
        raise InfeasibleError(message, ("memory of every stage",))
    checks = _search_checks(pipelines[0], job, cluster, attained, allow)
    made = [_plan(pipeline, job, cluster) for pipeline in pipelines]
    mixed = [replace(plan, certificate=plan.certificate + checks) for plan in made]
    even = () if attained else flat  # a flat cluster is predicted with all groups equally fast
    plans = tuple(sorted([*mixed, *even], key=lambda plan: plan.predicted.step_s)[: request.top])
    return PlanFile(
        kind="train",
        request=plan_document(request),
        plans=plans,
        search=Search(
            num_configs=found.num_layouts + len(flat),
            num_feasible=found.num_fit + len(flat),
            wall_s=time.monotonic() - started,
            excluded=(
                Excluded(
                    rule="groups-stay-in-one-fabric",
                    count=0,
                    why="tensor, data and expert groups across unlike groups are not enumerated",
                ),
            ),
        ),
        diagnostics=_diagnostics(request, job, cluster, found, flat),
        provenance=training_provenance(job, cluster),
    )


def _allowed(request: TrainRequest, cluster: Cluster) -> dict[str, tuple[int, ...]]:
    """Return what the request narrows of the degrees that groups share."""
    allow = allowed_values(request)
    others = sorted(set(allow) - set(_SHARED))
    if others:
        message = (
            f"allow: {', '.join(others)} cannot be narrowed on {cluster.name}, whose groups differ; "
            f"what can: {', '.join(_SHARED)}"
        )
        raise InputError(message)
    return allow


def _plan(pipeline: MixedPipeline, job: TrainingJob, cluster: Cluster) -> TrainingPlan:
    predicted = _prediction(pipeline, job, cluster)
    placement = _placement(pipeline, cluster)
    stages = tuple(
        PlannedStage(
            group=group_name(cluster, stage.group),
            tp=stage.tp,
            num_layers=stage.num_layers,
            peak_memory_bytes=stage.peak_memory_bytes,
        )
        for stage in pipeline.stages
    )
    return TrainingPlan(
        strategy=pipeline.strategy,
        predicted=predicted,
        placement=placement,
        certificate=_certificate(pipeline, predicted, placement, job, cluster),
        stages=stages,
    )


def _prediction(pipeline: MixedPipeline, job: TrainingJob, cluster: Cluster) -> TrainingPrediction:
    devices = [cluster.groups[stage.group].node.device for stage in pipeline.stages]
    fullest = max(
        range(len(devices)), key=lambda i: pipeline.stages[i].peak_memory_bytes / devices[i].memory_bytes
    )
    peak = pipeline.stages[fullest].peak_memory_bytes
    sigma = memory_coefficients(job.stack).sigma
    fits = [
        float(fits_probability(np.array([stage.peak_memory_bytes]), usable_bytes(device), sigma)[0])
        for stage, device in zip(pipeline.stages, devices, strict=True)
    ]
    rated = sum(
        group.num_devices * rated_peak_flops_per_s(group.node.device, job.precision)
        for group in cluster.groups
    )
    step_s = pipeline.step_s
    energy_j = mixed_energy_j(pipeline, job, cluster)
    return TrainingPrediction(
        step_s=step_s,
        step_low_s=step_s * float(np.exp(-Z90 * pipeline.sigma)),
        step_high_s=step_s * float(np.exp(Z90 * pipeline.sigma)),
        tokens_per_s_per_device=job.num_tokens / step_s / cluster.num_devices,
        mfu_frac=pipeline.model_flops / (step_s * rated),
        peak_memory_bytes=peak,
        memory_parts_bytes={"fullest_stage": peak},
        memory_capacity_bytes=devices[fullest].memory_bytes,
        fits_probability=min(fits),
        time_parts_s={
            "stages": pipeline.compute_s,
            "pp_comm": pipeline.exposed_p2p_s,
            "dp_comm": pipeline.gradient_s,
            "tied_comm": pipeline.tied_s,
            "optimizer_and_fixed": pipeline.other_s,
        },
        energy_j=energy_j,
        watts_per_device=None if energy_j is None else energy_j / step_s / cluster.num_devices,
        joules_per_token=None if energy_j is None else energy_j / job.num_tokens,
        cost_usd=mixed_cost_usd(cluster, step_s),
    )


def _placement(pipeline: MixedPipeline, cluster: Cluster) -> Placement:
    """Return ranks stage by stage, each on the devices of its group in their order."""
    places = host_names(cluster)
    sizes = [group.num_devices for group in cluster.groups]
    start = [sum(sizes[:i]) for i in range(len(sizes))]
    free = dict(enumerate(start))
    ranks: list[PlannedRank] = []
    for pp, stage in enumerate(pipeline.stages):
        for dp in range(pipeline.strategy.dp):
            for tp in range(stage.tp):
                host, device = places[free[stage.group]]
                free[stage.group] += 1
                at = {"tp": tp, "cp": 0, "dp": dp, "pp": pp}
                ranks.append(PlannedRank(rank=len(ranks), host=host, device=device, coordinates=at))
    return Placement(ranks=tuple(ranks))


def _certificate(
    pipeline: MixedPipeline,
    predicted: TrainingPrediction,
    placement: Placement,
    job: TrainingJob,
    cluster: Cluster,
) -> tuple[Check, ...]:
    used = [
        sum(stage.tp for stage in pipeline.stages if stage.group == index) * pipeline.strategy.dp
        for index in range(len(cluster.groups))
    ]
    sizes = [group.num_devices for group in cluster.groups]
    layers = [stage.num_layers for stage in pipeline.stages]
    order = [stage.group for stage in pipeline.stages]
    crossings = sum(a != b for a, b in pairwise(order))
    return (
        groups_check(used, sizes),
        layers_check(layers, job.model.num_layers),
        seats_check(placement, sum(sizes)),
        Check(
            name="only-the-pipeline-crosses-groups",
            holds=crossings == len(set(order)) - 1,
            detail=f"{crossings} cuts between groups",
        ),
        stages_fit_check(
            [stage.peak_memory_bytes for stage in pipeline.stages],
            [stage.limit_bytes for stage in pipeline.stages],
        ),
        parts_check(predicted),
    )


def _search_checks(
    best: MixedPipeline,
    job: TrainingJob,
    cluster: Cluster,
    attained: dict[int, float],
    allow: dict[str, tuple[int, ...]],
) -> tuple[Check, ...]:
    """Return what the search itself is checked for, over all shapes with the best one's micro-batch."""
    alike = {"micro_batch": (best.strategy.micro_batch,), "recompute": (int(best.strategy.recompute),)}

    def best_s(groups: Cluster, speeds: dict[int, float]) -> float:
        found = search_mixed_pipelines(
            job,
            groups,
            top=1,
            attained=speeds,
            allow={**allow, **alike},
        ).pipelines
        return found[0].step_s if found else np.inf

    checks = [bandwidth_check(best_s(halved_networks(cluster), attained) / best.step_s)]
    last = len(cluster.groups) - 1
    if last < MOST_ORDERED_GROUPS:
        backwards = replace(cluster, groups=cluster.groups[::-1])
        again_s = best_s(backwards, {last - index: speed for index, speed in attained.items()})
        checks.append(order_check(abs(again_s / best.step_s - 1.0), f"{last + 1} groups"))
    return tuple(checks)


def _diagnostics(
    request: TrainRequest,
    job: TrainingJob,
    cluster: Cluster,
    search: MixedSearch,
    flat: tuple[TrainingPlan, ...],
) -> tuple[str, ...]:
    best = search.pipelines[0]
    notes = [f"software stack {job.stack}: kernels, launch overheads and overlap are those of this stack"]
    proof = f"none of {search.num_layouts:,} layouts is faster: {search.num_fit:,} dealt, the others bounded"
    notes.append(f"pipeline over all groups: {best.step_s:.3g} s per step; {proof}")
    if request.attained:
        speeds = ", ".join(f"{name} {speed:g}" for name, speed in sorted(request.attained.items()))
        notes.append(f"layers are dealt by the measured speeds {speeds}; groups alone are as predicted")
    times: list[float | None] = []
    for index, group in enumerate(cluster.groups):
        found = best_alone(request, job, cluster.group_cluster(index))
        alone = None if found is None else float(found[1].step_s[0])
        times.append(alone)
        name = group_name(cluster, index)
        took = "does not fit in memory" if alone is None else f"{alone:.3g} s per step"
        faster = " and is faster: leave the others out" if alone is not None and alone < best.step_s else ""
        notes.append(f"group {name} alone ({group.num_devices} devices): {took}{faster}")
    some = best_without_some(job, cluster, best, group_speeds(request, cluster), _allowed(request, cluster))
    if some is not None:
        names = ", ".join(group_name(cluster, index) for index in some[0])
        notes.append(f"groups {names} alone: {some[1]:.3g} s per step and are faster: leave the others out")
    if len({group.node.device.name for group in cluster.groups}) == 1:
        took = f"{flat[0].predicted.step_s:.3g} s per step" if flat else "does not fit in memory"
        took += ", were all groups as fast as predicted" if flat and request.attained else ""
        notes.append(f"all groups as one cluster over the network that they share: {took}")
    notes.append("energy_j: devices only; a stage computes, exchanges gradients, updates weights, or waits")
    return (*notes, *_local_update_note(job, cluster, times))


def _local_update_note(job: TrainingJob, cluster: Cluster, alone_s: list[float | None]) -> list[str]:
    """Return what islands that average their models now and then would take; never taken unasked."""
    known = [time_s for time_s in alone_s if time_s is not None]
    if len(known) < len(alone_s):
        return []
    island_s = 1.0 / sum(1.0 / time_s for time_s in known)
    reduce_s = averaging_s(job, cluster)
    steps = max(1, ceil(reduce_s / island_s))
    cost = local_update_cost((island_s,), reduce_s, local_steps=steps, overlapped=True)
    return [
        f"option, not taken: averaging models every {steps} steps under the next round (CO2) would take "
        f"{cost.step_s:.3g} s per step at best; it changes the algorithm, "
        f"updates arrive {cost.staleness_steps} steps late (local_steps: {steps} takes it)"
    ]

"""The training flow on measured layers: types, degrees, replicas and layers per stage, with a bound."""

import time
from dataclasses import replace

import numpy as np

from costmodels.intervals import Z90
from costmodels.job import TrainingJob
from costmodels.memory.feasibility import fits_probability
from costmodels.memory.peak import memory_coefficients, usable_bytes
from costmodels.model_flops import training_flops
from costmodels.strategy import Strategy
from costmodels.training.evaluate import rated_peak_flops_per_s
from costmodels.training.hetero import HeteroCost, HeteroModel, HeteroPlan, hetero_cost
from hardware.cluster import Cluster
from hardware.errors import InfeasibleError, InputError
from planner.plan import (
    Check,
    Placement,
    PlanFile,
    PlannedRank,
    PlannedSeats,
    PlannedStage,
    Search,
    TrainingPlan,
    TrainingPrediction,
)
from planner.plan_io import plan_document
from planner.request import TrainRequest
from planner.training.hetero_search import best_hetero_plan, num_candidates
from planner.training.island_plan import group_name
from planner.training.plan_checks import (
    bandwidth_check,
    layers_check,
    order_check,
    parts_check,
    seats_check,
    stages_fit_check,
)
from planner.training.profiled_fleet import ProfiledFleet, read_profiled_fleet
from planner.training.provenance import training_provenance
from planner.training.ranks import host_names
from solvers.outcome import Outcome

__all__ = ["plan_profiled"]

_SIGMA = 0.1
"""Of ln(measured / predicted): root mean square over Sailor's 36 measured runs (benchmarks.sailor_runs)."""
_REL_GAP = 0.01
_TIME_LIMIT_S = 10.0


def plan_profiled(request: TrainRequest, job: TrainingJob, cluster: Cluster) -> PlanFile[TrainingPlan]:
    """Return the fastest pipeline over the groups whose layers were measured, and how far the best can be.

    Raises
    ------
    InputError
        if the request asks for what this search cannot do.
    InfeasibleError
        if nothing fits.
    """
    assert request.layer_profiles is not None
    unused = [name for name in ("allow", "attained", "local_steps") if getattr(request, name)]
    if unused:
        message = f"{', '.join(unused)}: not together with layer_profiles, whose search has its own space"
        raise InputError(message)
    started = time.monotonic()
    known = read_profiled_fleet(request.layer_profiles, job, cluster)
    outcome = best_hetero_plan(known.fleet, known.model, rel_gap=_REL_GAP, time_limit_s=_TIME_LIMIT_S)
    if outcome.solution is None:
        message = f"no pipeline over the groups of {cluster.name} fits in memory under the measured layers"
        raise InfeasibleError(message, outcome.conflict)
    plan = _plan(outcome.solution, job, cluster, known)
    return PlanFile(
        kind="train",
        request=plan_document(request),
        plans=(plan,),
        search=Search(
            num_configs=num_candidates(known.fleet, known.model),
            num_feasible=1,
            wall_s=time.monotonic() - started,
        ),
        diagnostics=(
            f"layer times measured: {request.layer_profiles}",
            *known.notes,
            _gap_note(outcome),
            *_idle_notes(outcome.solution, known),
        ),
        provenance=training_provenance(job, cluster),
    )


def _gap_note(outcome: Outcome[HeteroPlan]) -> str:
    assert outcome.objective is not None
    assert outcome.bound is not None
    gap = 100 * (outcome.objective / outcome.bound - 1)
    return (
        f"no plan of the space can be faster than {outcome.bound:.4g} s (this one is at most {gap:.1f} % "
        "above); space: up to four stages, equal replicas, up to two types share the replicas of a stage"
    )


def _idle_notes(plan: HeteroPlan, known: ProfiledFleet) -> list[str]:
    idle = {n: known.fleet.num_devices[n] - plan.num_devices.get(n, 0) for n in known.fleet.num_devices}
    left = ", ".join(f"{count} of {name}" for name, count in idle.items() if count)
    return [f"devices left idle, because using them is no faster: {left}"] if left else []


def _plan(plan: HeteroPlan, job: TrainingJob, cluster: Cluster, known: ProfiledFleet) -> TrainingPlan:
    cost = hetero_cost(plan, known.model)
    predicted = _prediction(plan, cost, job, cluster)
    placement = _placement(plan, cluster)
    return TrainingPlan(
        strategy=Strategy(
            tp=plan.stages[0].replicas[0][1],
            pp=len(plan.stages),
            dp=plan.num_replicas,
            micro_batch=plan.micro_batch,
            zero=0,
            overlap_dp=False,
        ),
        predicted=predicted,
        placement=placement,
        certificate=_certificate(plan, cost, predicted, placement, known),
        stages=tuple(_stage(plan, cost, i) for i in range(len(plan.stages))),
    )


def _stage(plan: HeteroPlan, cost: HeteroCost, index: int) -> PlannedStage:
    stage = plan.stages[index]
    kinds = list(dict.fromkeys(stage.replicas))
    seats = tuple(
        PlannedSeats(group=group, tp=tp, replicas=stage.replicas.count((group, tp))) for group, tp in kinds
    )
    return PlannedStage(
        group=kinds[0][0],
        tp=kinds[0][1],
        num_layers=stage.num_layers,
        peak_memory_bytes=cost.stage_bytes[index],
        seats=seats if len(seats) > 1 else (),
    )


def _prediction(plan: HeteroPlan, cost: HeteroCost, job: TrainingJob, cluster: Cluster) -> TrainingPrediction:
    devices = {group_name(cluster, i): group.node.device for i, group in enumerate(cluster.groups)}
    sigma = memory_coefficients(job.stack).sigma
    held = [
        (peak, min((devices[name] for name, _ in stage.replicas), key=lambda d: d.memory_bytes))
        for peak, stage in zip(cost.stage_bytes, plan.stages, strict=True)
    ]
    fits = [
        float(fits_probability(np.array([peak]), usable_bytes(device), sigma)[0]) for peak, device in held
    ]
    peak, fullest = max(held, key=lambda entry: entry[0] / entry[1].memory_bytes)
    rated = sum(
        group.num_devices * rated_peak_flops_per_s(group.node.device, job.precision)
        for group in cluster.groups
    )
    flops = training_flops(job.model, job.seq_len, causal_halved=True) * job.global_batch
    return TrainingPrediction(
        step_s=cost.step_s,
        step_low_s=cost.step_s * float(np.exp(-Z90 * _SIGMA)),
        step_high_s=cost.step_s * float(np.exp(Z90 * _SIGMA)),
        tokens_per_s_per_device=job.num_tokens / cost.step_s / cluster.num_devices,
        mfu_frac=flops / (cost.step_s * rated),
        peak_memory_bytes=peak,
        memory_parts_bytes={"fullest_stage": peak},
        memory_capacity_bytes=fullest.memory_bytes,
        fits_probability=min(fits),
        time_parts_s={
            "stages": cost.compute_s,
            "pp_comm": cost.exposed_p2p_s,
            "dp_comm": cost.gradient_s,
            "optimizer": cost.update_s,
        },
    )


def _placement(plan: HeteroPlan, cluster: Cluster) -> Placement:
    """Return every rank's device: wide tensor groups are seated first, so that each lies inside one node."""
    names = [group_name(cluster, i) for i in range(len(cluster.groups))]
    places = host_names(cluster)
    free: dict[str, list[tuple[str, int]]] = {}
    start = 0
    for name, group in zip(names, cluster.groups, strict=True):
        free[name] = places[start : start + group.num_devices]
        start += group.num_devices
    wanted = [(i, k, seat) for i, stage in enumerate(plan.stages) for k, seat in enumerate(stage.replicas)]
    seated: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for i, k, (name, tp) in sorted(wanted, key=lambda w: (-w[2][1], w[0], w[1])):
        seated[i, k], free[name] = free[name][:tp], free[name][tp:]
    ranks: list[PlannedRank] = []
    for i, k, _ in wanted:
        for t, (host, device) in enumerate(seated[i, k]):
            at = {"tp": t, "cp": 0, "dp": k, "pp": i}
            ranks.append(PlannedRank(rank=len(ranks), host=host, device=device, coordinates=at))
    return Placement(ranks=tuple(ranks))


def _certificate(
    plan: HeteroPlan,
    cost: HeteroCost,
    predicted: TrainingPrediction,
    placement: Placement,
    known: ProfiledFleet,
) -> tuple[Check, ...]:
    used, fleet, rounds = plan.num_devices, known.fleet, plan.num_micro_batches
    layers = [stage.num_layers for stage in plan.stages]
    limits = [min(fleet.limit_bytes[name] for name, _ in stage.replicas) for stage in plan.stages]
    hosts: dict[tuple[int, int], set[str]] = {}
    for rank in placement.ranks:
        hosts.setdefault((rank.coordinates["pp"], rank.coordinates["dp"]), set()).add(rank.host)
    total = len(known.model.layers.num_params)
    return (
        Check(
            name="devices-are-in-the-fleet",
            holds=all(count <= fleet.num_devices[name] for name, count in used.items()),
            detail=", ".join(f"{used.get(n, 0)} of {c} {n}" for n, c in fleet.num_devices.items()),
        ),
        layers_check(layers, total, ", embedding and head counted"),
        Check(
            name="micro-batches-fill-the-global-batch",
            holds=rounds * plan.micro_batch * plan.num_replicas == fleet.global_batch,
            detail=f"{rounds} x {plan.micro_batch} x {plan.num_replicas} = {fleet.global_batch}",
        ),
        seats_check(placement, sum(used.values())),
        Check(
            name="tensor-groups-stay-in-a-host",
            holds=all(len(names) == 1 for names in hosts.values()),
            detail=f"{len(hosts)} tensor groups",
        ),
        stages_fit_check(cost.stage_bytes, limits),
        parts_check(predicted),
        *_cost_checks(plan, cost, known.model),
    )


def _cost_checks(plan: HeteroPlan, cost: HeteroCost, model: HeteroModel) -> tuple[Check, Check]:
    """Return what the cost is checked for: the last pipeline listed first, and links at half rate."""
    turned = tuple(replace(s, replicas=(s.replicas[-1], *s.replicas[:-1])) for s in plan.stages)
    again_s = hetero_cost(replace(plan, stages=turned), model).step_s
    slower = replace(
        model,
        pair_links={ends: link.slowed(2.0) for ends, link in model.pair_links.items()},
        host_links={ends: link.slowed(2.0) for ends, link in model.host_links.items()},
    )
    return (
        order_check(abs(again_s / cost.step_s - 1.0), f"{plan.num_replicas} pipelines"),
        bandwidth_check(hetero_cost(plan, slower).step_s / cost.step_s),
    )

"""The training flow: request, space, costs, memory first, the best and the front, plan."""

from contextlib import suppress
from dataclasses import replace

from costmodels.cost_table import CostTable
from costmodels.job import TrainingJob
from costmodels.stacks import device_stack
from costmodels.strategy import ConfigTable, Strategy
from costmodels.training.evaluate import evaluate
from hardware.cluster import Cluster
from hardware.errors import InfeasibleError, InputError
from planner.facility import facility_note
from planner.plan import Check, FrontPoint, Placement, PlanFile, Search, TrainingPlan
from planner.plan_io import plan_document
from planner.request import TrainRequest, allowed_values, group_speeds, resolve
from planner.training.certificate import training_certificate
from planner.training.device_order import follow_links
from planner.training.flow_notes import flow_notes
from planner.training.island_plan import plan_local_updates
from planner.training.memory_fit import memory_of
from planner.training.mixed_flow import plan_mixed_training
from planner.training.placement import planned_placement
from planner.training.power_objective import power_view
from planner.training.prediction import training_diagnostics, training_prediction
from planner.training.profiled_plan import plan_profiled
from planner.training.provenance import training_provenance
from planner.training.ranks import default_placement
from planner.training.remedy import no_strategy, nothing_fits
from planner.training.search import search_space
from planner.training.search_checks import search_checks
from planner.training.sharding_plan import LevelPlan, best_level_plans, level_checks, planned_sharding
from planner.training.space import training_space

__all__ = ["plan_training", "training_plan_of"]


def plan_training(request: TrainRequest) -> PlanFile[TrainingPlan]:
    """Return the plan file that answers a training request.

    Raises
    ------
    InfeasibleError
        if no legal strategy exists, or none fits; says which rules excluded them, or how far the nearest is
        from fitting.
    """
    job, cluster = resolve(request)
    powered = request.power_budget_w or request.facility or request.objective != "throughput"
    if not cluster.is_homogeneous and powered:
        message = (
            "objective, power_budget_w, facility: a cluster of unlike groups is planned for throughput alone"
        )
        raise InputError(message)
    group_speeds(request, cluster)
    if request.layer_profiles is not None:
        return plan_profiled(request, job, cluster)
    if request.local_steps is not None:
        return plan_local_updates(request, job, cluster)
    if cluster.is_homogeneous:
        return _plan_alike(request, job, cluster)
    flat: tuple[TrainingPlan, ...] = ()
    if len({group.node.device.name for group in cluster.groups}) == 1:
        with suppress(InfeasibleError):
            flat = _plan_alike(request, job, cluster).plans[:1]
    return plan_mixed_training(request, job, cluster, flat=flat)


def _plan_alike(request: TrainRequest, job: TrainingJob, cluster: Cluster) -> PlanFile[TrainingPlan]:
    """Return strategies whose stages are all alike, on a cluster taken as one."""
    allow, view = allowed_values(request), power_view(request, job, cluster)
    space = training_space(
        job,
        world=cluster.num_devices,
        levels=cluster.levels,
        flash_attention=device_stack(job.stack, cluster.device).flash,
        allow=allow,
    )
    found = search_space(
        space,
        memory=memory_of(job, cluster),
        evaluate=lambda configs: view.slowed(evaluate(job, cluster, configs)),
        top=request.top,
        min_probability=request.min_fits_probability,
        score=view.score,
    )
    if found.nearest is not None:
        raise nothing_fits(
            job, cluster, found.nearest, allow=allow, min_probability=request.min_fits_probability
        )
    if not found.num_configs:
        raise no_strategy(space, cluster, allow=allow)
    by_levels, num_by_levels = best_level_plans(request, job, cluster)
    costs, checks = view.slowed(evaluate(job, cluster, found.best)), _alike_checks(found.best, job, cluster)
    placement, network = _placed(found.best.strategy(0), job, cluster)
    made = [
        training_plan_of(
            found.best.strategy(row),
            costs,
            row,
            request=request,
            job=job,
            cluster=cluster,
            placement=placement if row == 0 else None,
            cap_w=view.cap_w,
        )
        for row in range(len(found.best))
    ]
    plans = tuple(replace(plan, certificate=plan.certificate + checks) for plan in made)
    plans = _with_levels(plans, by_levels, request=request, job=job, cluster=cluster)
    return PlanFile(
        kind="train",
        request=plan_document(request),
        plans=plans,
        search=Search(
            num_configs=found.num_configs + num_by_levels,
            num_feasible=found.num_feasible + len(by_levels),
            wall_s=found.wall_s,
            excluded=space.excluded(),
        ),
        diagnostics=(
            *training_diagnostics(job, cluster, plans[0].strategy),
            *view.notes,
            *([facility_note(request.facility)] if request.facility else []),
            *network,
        ),
        provenance=training_provenance(job, cluster),
        pareto=_front(job, cluster, found.front),
    )


def _alike_checks(best: ConfigTable, job: TrainingJob, cluster: Cluster) -> tuple[Check, ...]:
    """Return what the costs of these rows are checked for, learned corrections left out."""
    return search_checks(
        len(best), cluster, lambda at, rows: evaluate(job, at, best.take(rows), corrected=False).step_s
    )


def _placed(strategy: Strategy, job: TrainingJob, cluster: Cluster) -> tuple[Placement, tuple[str, ...]]:
    """Return where every rank runs, by measured links and links inside hosts, and what the network adds."""
    placed = planned_placement(strategy, job, cluster)
    placement, links = follow_links(placed.placement, strategy, cluster)
    return placement, (*placed.diagnostics, *links, *flow_notes(strategy, job, cluster))


def _with_levels(
    plans: tuple[TrainingPlan, ...],
    by_levels: list[LevelPlan],
    *,
    request: TrainRequest,
    job: TrainingJob,
    cluster: Cluster,
) -> tuple[TrainingPlan, ...]:
    """Return the best of ordinary plans and of those sharded at several levels, when time is what counts."""
    if not by_levels or request.objective != "throughput" or request.power_budget_w:
        return plans
    checks = level_checks(by_levels, job, cluster)
    plain = [
        training_plan_of(p.strategy, p.costs, 0, request=request, job=job, cluster=cluster) for p in by_levels
    ]
    added = [
        replace(plan, certificate=plan.certificate + checks, sharding=planned_sharding(p.levels))
        for plan, p in zip(plain, by_levels, strict=True)
    ]
    return tuple(sorted([*plans, *added], key=lambda plan: plan.predicted.step_s)[: request.top])


def training_plan_of(
    strategy: Strategy,
    costs: CostTable,
    row: int,
    *,
    request: TrainRequest,
    job: TrainingJob,
    cluster: Cluster,
    placement: Placement | None = None,
    cap_w: float | None = None,
) -> TrainingPlan:
    """Return one strategy with its cost, its ranks and what was checked."""
    predicted = training_prediction(costs, row, job, cluster, cap_w=cap_w, facility=request.facility)
    placement = placement or default_placement(strategy, cluster)
    certificate = training_certificate(
        strategy,
        predicted,
        placement,
        job=job,
        cluster=cluster,
        min_probability=request.min_fits_probability,
    )
    return TrainingPlan(strategy=strategy, predicted=predicted, placement=placement, certificate=certificate)


def _front(job: TrainingJob, cluster: Cluster, configs: ConfigTable) -> tuple[FrontPoint, ...]:
    costs = evaluate(job, cluster, configs)
    return tuple(
        FrontPoint(
            strategy=configs.strategy(row),
            step_s=float(costs.step_s[row]),
            peak_memory_bytes=float(costs.peak_memory_bytes[row]),
            fits_probability=float(costs.fits_probability[row]),
        )
        for row in range(len(configs))
    )

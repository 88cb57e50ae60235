"""The serving flow: buckets, engine configurations per device, the cheapest mix, its check by simulation."""

import math
from time import perf_counter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from costmodels.graph import ModelGraph
from costmodels.kernels import kernel_model
from costmodels.power import device_power, serving_draw_w
from costmodels.serving_bound import throughput_bound_tokens_per_s
from costmodels.serving_engine import EngineStack
from costmodels.serving_operators import kernel_format
from hardware.errors import InfeasibleError
from planner.plan import Check, PlanFile, Search
from planner.plan_io import plan_document
from planner.serving_check import SimulatedFleet, simulated_check
from planner.serving_items import Item, ItemSearch, find_items
from planner.serving_provenance import serving_provenance
from planner.serving_request import ServeRequest, resolve_serving
from planner.serving_types import (
    FleetStrategy,
    MixEntry,
    Route,
    ServingPlan,
    ServingPrediction,
    SimulatedCheck,
)
from planner.serving_workload import Buckets, Workload, bucketise, read_workload
from solvers.gpu_mix import Limit, MixProblem, MixSolution, check_mix, solve_mix
from solvers.outcome import Outcome

__all__ = ["plan_serving"]

Floats = npt.NDArray[np.float64]
Form = Literal["joint", "split"]

_HEADROOM_STEPS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)


def plan_serving(request: ServeRequest) -> PlanFile[ServingPlan]:
    """Return the cheapest fleets that serve the workload within the targets, best first.

    Raises
    ------
    SpecError, InputError
        if the request cannot be read.
    InfeasibleError
        if nothing keeps the targets or the limits; names the lowest latencies or the rows in conflict.
    """
    start = perf_counter()
    model, engine, offers = resolve_serving(request)
    workload = read_workload(request.workload, rate_per_s=request.rate_per_s, percentile=request.percentile)
    traffic = workload.traffic
    buckets = bucketise(traffic)
    hits = request.prefix_hit_frac or traffic.prefix_hit_frac
    search = find_items(
        request,
        model,
        engine,
        offers,
        buckets,
        arrival_cv=traffic.arrival_cv,
        prefix_hit_frac=hits,
    )
    forms: list[Form] = ["joint", "split"] if request.form == "auto" else [request.form]
    plans: list[ServingPlan] = []
    failures: list[InfeasibleError] = []
    for form in forms:
        try:
            plans.append(_plan_of_form(form, request, model, engine, workload, buckets, search))
        except InfeasibleError as error:
            failures.append(error)
    if not plans:
        raise _explained(failures[0], search, buckets)
    plans.sort(key=lambda p: (not _holds(p), p.predicted.cost_usd_per_hour, p.strategy.form))
    if len(plans) > 1:
        plans[0] = _with_reason(plans[0], plans[1])
    notes = [f"{f.args[0]}" for f in failures]
    return PlanFile(
        kind="serve",
        request=plan_document(request),
        plans=tuple(plans[: request.top]),
        search=Search(
            num_configs=search.num_configs,
            num_feasible=search.num_feasible,
            wall_s=perf_counter() - start,
            excluded=search.excluded,
        ),
        diagnostics=(*notes, *_diagnostics(request, search, traffic.arrival_cv)),
        provenance=serving_provenance(request, model, offers),
    )


def _explained(error: InfeasibleError, search: ItemSearch, buckets: Buckets) -> InfeasibleError:
    """Return the error with what is lowest possible, and which devices cannot hold the model."""
    reasons = [b for b in search.bounds if not b.endswith(": ")]
    reasons += [f"{e.rule} ({e.count})" for e in search.excluded if "fit" in e.rule]
    message = f"{error.args[0]}; " + "; ".join(dict.fromkeys(reasons)) if reasons else str(error.args[0])
    return InfeasibleError(message, error.conflict or buckets.names)


def _plan_of_form(
    form: Form,
    request: ServeRequest,
    model: ModelGraph,
    engine: EngineStack,
    workload: Workload,
    buckets: Buckets,
    search: ItemSearch,
) -> ServingPlan:
    """Return the cheapest fleet of one form, with the headroom that its simulation needed."""
    roles = ("both",) if form == "joint" else ("prefill", "decode")
    items = [item for item in search.items if item.role in roles]
    last: tuple[MixProblem, Outcome[MixSolution], float, SimulatedCheck | None] | None = None
    for headroom in _HEADROOM_STEPS:
        problem = _mix_problem(request, items, roles, buckets, headroom)
        outcome = solve_mix(problem)
        if outcome.solution is None and last is not None:
            break
        solution = outcome.unwrap()
        check = None
        if request.simulate:
            fleet = SimulatedFleet(model=model, engine=engine, items=tuple(items), buckets=buckets)
            check = simulated_check(fleet, solution, workload, request.slo)
        last = (problem, outcome, headroom, check)
        if check is None or check.holds:
            break
    if last is None:
        message = "no mix was found"
        raise InfeasibleError(message)
    return _serving_plan(form, request, model, engine, workload, buckets, items, *last)


def _mix_problem(
    request: ServeRequest, items: list[Item], roles: tuple[str, ...], buckets: Buckets, headroom: float
) -> MixProblem:
    """Return the mix with one set of buckets per role; limits hold over all roles together."""
    if not items:
        message = "no device has a configuration that keeps the latency targets for any request size"
        raise InfeasibleError(message, buckets.names)
    loads = []
    for role in roles:
        with np.errstate(divide="ignore"):
            load = np.stack(
                [
                    buckets.rate_per_s * (1.0 + headroom) / item.rate_per_s
                    if item.role == role
                    else np.full(len(buckets.names), np.inf)
                    for item in items
                ]
            )
        loads.append(load)
    prefix = {"both": "", "prefill": "prefill ", "decode": "decode "}
    zones = np.full(len(items), 1.0 / (request.num_zones - 1)) if request.num_zones > 1 else None
    return MixProblem(
        item_names=tuple(item.name for item in items),
        bucket_names=tuple(f"{prefix[role]}{name}" for role in roles for name in buckets.names),
        usd_per_hour=np.array([item.usd_per_hour for item in items]),
        load=np.concatenate(loads, axis=1),
        spare=np.full(len(items), request.spare_instances) if request.spare_instances else None,
        headroom_frac=zones,
        limits=_limits(request, items),
    )


def _limits(request: ServeRequest, items: list[Item]) -> tuple[Limit, ...]:
    """Return stock and minimum per device, budget and power as rows."""
    limits: list[Limit] = []
    devices = np.array([item.config.num_devices for item in items], dtype=float)
    for name in dict.fromkeys(item.offer.device.name for item in items):
        offer = next(item.offer for item in items if item.offer.device.name == name)
        mine = np.array([item.offer.device.name == name for item in items])
        if math.isfinite(offer.max_devices):
            limits.append(
                Limit(name=f"max_devices.{name}", per_instance=devices * mine, total=offer.max_devices)
            )
        if offer.min_devices:
            limits.append(
                Limit(
                    name=f"min_devices.{name}", per_instance=-devices * mine, total=-float(offer.min_devices)
                )
            )
    if request.budget_usd_per_hour is not None:
        cost = np.array([item.usd_per_hour for item in items])
        limits.append(Limit(name="budget_usd_per_hour", per_instance=cost, total=request.budget_usd_per_hour))
    if request.power_budget_w is not None:
        watts = np.array([_watts(item) or 0.0 for item in items])
        limits.append(Limit(name="power_budget_w", per_instance=watts, total=request.power_budget_w))
    return tuple(limits)


def _watts(item: Item) -> float | None:
    """Return mean watts of one instance under load, by its role; None where rated power is unknown."""
    if item.offer.device.tdp_w is None:
        return None
    return serving_draw_w(device_power(item.offer.device), item.role) * item.config.num_devices


def _serving_plan(
    form: Form,
    request: ServeRequest,
    model: ModelGraph,
    engine: EngineStack,
    workload: Workload,
    buckets: Buckets,
    items: list[Item],
    problem: MixProblem,
    outcome: Outcome[MixSolution],
    headroom: float,
    check: SimulatedCheck | None,
) -> ServingPlan:
    solution = outcome.unwrap()
    used = [i for i in range(len(items)) if solution.count[i] > 0]
    served = np.where(solution.share > 0, problem.load, 0.0) * solution.share
    load = served.sum(axis=1) / (1.0 + headroom)
    mix = tuple(
        MixEntry(
            name=items[i].name,
            device=items[i].offer.device.name,
            count=int(solution.count[i]),
            role=items[i].role,
            config=_config(items[i]),
            devices_per_instance=items[i].config.num_devices,
            usd_per_hour=items[i].usd_per_hour,
            load_frac=float(load[i] / solution.count[i]),
        )
        for i in used
    )
    predicted = _prediction(workload, buckets, items, solution, outcome, headroom, check)
    return ServingPlan(
        strategy=FleetStrategy(form=form, engine=engine.name, instances={m.name: m.count for m in mix}),
        mix=mix,
        routing=_routes(form, buckets, items, solution),
        predicted=predicted,
        certificate=(
            *_certificate(problem, solution, outcome, check, request),
            _bound_check(model, items, solution, workload),
        ),
        reason=_reason(predicted, mix),
    )


def _config(item: Item) -> dict[str, int | bool | str]:
    document = plan_document(item.config)
    return {k: v.replace("_", "-") if isinstance(v, str) else v for k, v in document.items()}


def _prediction(
    workload: Workload,
    buckets: Buckets,
    items: list[Item],
    solution: MixSolution,
    outcome: Outcome[MixSolution],
    headroom: float,
    check: SimulatedCheck | None,
) -> ServingPrediction:
    """Return the fleet's figures: latencies are the worst of what the routed sizes see at the percentile."""
    traffic = workload.traffic
    num = len(buckets.names)
    ttft = tpot = 0.0
    for i, item in enumerate(items):
        share = solution.share[i].reshape(-1, num).max(axis=0) > 1e-6
        if share.any() and item.role != "decode":
            ttft = max(ttft, float(item.ttft_s[share].max()))
        if share.any() and item.role != "prefill":
            tpot = max(tpot, float(item.tpot_s[share].max()))
    counts = solution.count
    watts = [_watts(item) for item in items]
    known = all(w is not None for w, c in zip(watts, counts, strict=True) if c)
    drawn = sum((w or 0.0) * int(c) for w, c in zip(watts, counts, strict=True)) if known else None
    output = traffic.rate_per_s * traffic.mean_output_tokens
    total = traffic.rate_per_s * (traffic.mean_output_tokens + traffic.mean_prompt_tokens)
    single = solution.best_single_usd_per_hour
    return ServingPrediction(
        ttft_s=ttft,
        tpot_s=tpot,
        throughput_tokens_per_s=output,
        requests_per_s=traffic.rate_per_s,
        num_devices=int(sum(item.config.num_devices * c for item, c in zip(items, counts, strict=True))),
        cost_usd_per_hour=solution.usd_per_hour,
        cost_usd_per_million_tokens=solution.usd_per_hour / (total * 3600.0) * 1e6,
        best_single_usd_per_hour=single if math.isfinite(single) else None,
        bound_usd_per_hour=outcome.bound if outcome.bound is not None else 0.0,
        watts=drawn,
        joules_per_token=None if drawn is None else drawn / output,
        headroom_frac=headroom,
        simulated=check,
    )


def _routes(form: Form, buckets: Buckets, items: list[Item], solution: MixSolution) -> tuple[Route, ...]:
    roles: tuple[Literal["both", "prefill", "decode"], ...] = (
        ("both",) if form == "joint" else ("prefill", "decode")
    )
    num = len(buckets.names)
    routes = []
    for r, role in enumerate(roles):
        for b in range(num):
            share = solution.share[:, r * num + b]
            routes.append(
                Route(
                    prompt_tokens_up_to=_whole(buckets.prompt_up_to[b]),
                    output_tokens_up_to=_whole(buckets.output_up_to[b]),
                    rate_per_s=float(buckets.rate_per_s[b]),
                    role=role,
                    shares={items[i].name: float(share[i]) for i in np.flatnonzero(share > 1e-9)},
                )
            )
    return tuple(routes)


def _whole(value: float) -> int | None:
    return None if math.isinf(value) else int(value)


def _certificate(
    problem: MixProblem,
    solution: MixSolution,
    outcome: Outcome[MixSolution],
    check: SimulatedCheck | None,
    request: ServeRequest,
) -> tuple[Check, ...]:
    broken = check_mix(problem, solution)
    gap = outcome.gap_frac
    checks = [
        Check(
            name="every-size-served-and-limits-kept",
            holds=not broken,
            detail="; ".join(broken) or "re-checked",
        ),
        Check(
            name="cost-proven",
            holds=gap is not None and gap <= 1e-4,
            detail=f"{outcome.status.value}, {100 * (gap or 0.0):.4f} % above the bound",
        ),
    ]
    if check is not None:
        detail = f"{100 * check.attainment_frac:.2f} % of {check.num_requests} requests within all targets"
        checks.append(Check(name="targets-hold-in-simulation", holds=check.holds, detail=detail))
    return tuple(checks)


def _bound_check(model: ModelGraph, items: list[Item], solution: MixSolution, workload: Workload) -> Check:
    """Return whether the workload is within what the devices' matmul units can do at all."""
    traffic = workload.traffic
    wanted = traffic.rate_per_s * (traffic.mean_prompt_tokens + traffic.mean_output_tokens)
    bound = 0.0
    for item, count in zip(items, solution.count.tolist(), strict=True):
        if count:
            kernels = kernel_model(item.offer.device)
            dtype = kernel_format(item.offer.device, int(item.config.weights))
            bound += count * item.config.num_devices * throughput_bound_tokens_per_s(model, kernels, dtype)
    detail = f"{wanted:.4g} of at most {bound:.4g} prompt and output tokens per second"
    return Check(name="below-the-compute-bound", holds=wanted <= bound, detail=detail)


def _reason(predicted: ServingPrediction, mix: tuple[MixEntry, ...]) -> str:
    kinds = " + ".join(f"{m.count} x {m.name}" for m in mix)
    single = predicted.best_single_usd_per_hour
    if any(m.role != "both" for m in mix):
        return f"{kinds}: the cheapest fleet with prompts and decoding apart"
    if single is None:
        return f"{kinds}: no single kind of instance serves every request size"
    saved = 1.0 - predicted.cost_usd_per_hour / single
    if saved > 1e-9:
        return f"{kinds}: {100 * saved:.1f} % below the cheapest fleet of one kind ({single:.2f} USD/h)"
    return f"{kinds}: the cheapest fleet of one kind; no mix is below it"


def _holds(plan: ServingPlan) -> bool:
    """Return whether every check of the plan holds."""
    return all(check.holds for check in plan.certificate)


def _with_reason(best: ServingPlan, other: ServingPlan) -> ServingPlan:
    from dataclasses import replace

    more = other.predicted.cost_usd_per_hour / best.predicted.cost_usd_per_hour - 1.0
    return replace(
        best, reason=f"{best.reason}; the {other.strategy.form} form costs {100 * more:.1f} % more"
    )


def _diagnostics(request: ServeRequest, search: ItemSearch, arrival_cv: float) -> tuple[str, ...]:
    notes: list[Any] = []
    if not request.simulate:
        notes.append(
            "not simulated: queueing comes from formulas, mixing sizes on an instance is taken as additive"
        )
    if arrival_cv > 3.0:
        notes.append(f"arrivals are bursty (coefficient of variation {arrival_cv:.1f})")
    notes += [
        f"{e.rule}: {e.count} configurations left out ({e.why})" for e in search.excluded if "fit" in e.rule
    ]
    return tuple(notes)

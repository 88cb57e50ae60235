"""A solved mix as a plan: instances, routes, predictions, certificate and reason."""

import math
from dataclasses import dataclass

import numpy as np

from costmodels.kernels.times import kernel_model
from costmodels.serving.bound import throughput_bound_tokens_per_s
from costmodels.serving.operators import kernel_format
from planner.facility import site_energy
from planner.plan import Check
from planner.plan_io import plan_document
from planner.serving.items import Item, item_draw
from planner.serving.mix import Fleet, Headrooms, Slot, single_usd_per_hour
from planner.serving.plan import (
    FleetStrategy,
    MixEntry,
    ModelPrediction,
    Route,
    ServingPlan,
    ServingPrediction,
    SimulatedCheck,
)
from planner.serving.power import FleetDraw, fleet_draw
from planner.serving.purchase import SolvedMix
from planner.serving.purchase_words import (
    bought_by_offer,
    instance_usd_per_hour,
    levels_of,
    purchases_of,
    used_usd_per_hour,
)
from planner.serving.request import ServeRequest
from solvers.gpu_mix import MixProblem, MixSolution

__all__ = ["SolvedFleet", "serving_plan_of"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SolvedFleet:
    """A fleet with its mix, the headroom of each demand and role, and what the replays showed."""

    request: ServeRequest
    fleet: Fleet
    problem: MixProblem
    mix: SolvedMix
    headrooms: Headrooms
    level_checks: tuple[tuple[SimulatedCheck | None, ...], ...]
    """What replays showed, by level of the day (the peak first) and demand."""

    @property
    def solution(self) -> MixSolution:
        """The mix at the peak."""
        return self.mix.solution

    @property
    def scale(self) -> float:
        """Served rate over the asked one."""
        return self.mix.scale

    @property
    def checks(self) -> tuple[SimulatedCheck | None, ...]:
        """What the replays of the peak showed, by demand."""
        return self.level_checks[0]

    @property
    def minimised(self) -> float:
        """What the objective makes least: dollars per hour, watts, or minus the served rate."""
        if self.request.objective == "throughput":
            return -self.scale
        return (
            float(self.problem.price @ self.solution.count)
            if self.problem.weight is not None
            else self.mix.usd_per_hour
        )

    @property
    def late(self) -> list[int]:
        """Demands whose targets are broken at some level."""
        return [
            n
            for n in range(len(self.fleet.slots))
            if any((check := checks[n]) is not None and not check.holds for checks in self.level_checks)
        ]

    @property
    def kept_frac(self) -> float:
        """Requests within all targets, at the level and of the demand where they are fewest."""
        return min(
            (c.attainment_frac for checks in self.level_checks for c in checks if c is not None), default=1.0
        )

    def same_counts(self, other: "SolvedFleet") -> bool:
        """Return whether both have the same instances at every level."""
        pairs = zip(self.mix.levels, other.mix.levels, strict=True)
        return all(np.array_equal(mine.count, theirs.count) for (_, mine), (_, theirs) in pairs)


def serving_plan_of(solved: SolvedFleet) -> ServingPlan:
    """Return the plan of a solved fleet."""
    fleet = solved.fleet
    levels = tuple(
        tuple(
            _entry(solved, slot, i, mixed, level.rate_frac)
            for slot in fleet.slots
            for i in _used(slot, mixed)
        )
        for level, mixed in solved.mix.levels
    )
    routing = tuple(
        tuple(route for slot in fleet.slots for route in _routes(solved, slot, mixed, level.rate_frac))
        for level, mixed in solved.mix.levels
    )
    mix = levels[0]
    predicted = _prediction(solved)
    forms = {slot.form for slot in fleet.slots}
    engines = dict.fromkeys(slot.demand.engine.name for slot in fleet.slots)
    return ServingPlan(
        strategy=FleetStrategy(
            form=forms.pop() if len(forms) == 1 else "mixed",
            engine=", ".join(engines),
            instances={m.name: m.count for m in mix},
        ),
        mix=mix,
        routing=routing[0],
        predicted=predicted,
        certificate=_certificate(solved),
        reason=_reason(solved, predicted, mix),
        purchases=purchases_of(fleet, solved.mix),
        levels=levels_of(fleet, solved.mix, levels, routing, solved.level_checks),
    )


def _used(slot: Slot, solution: MixSolution) -> list[int]:
    return [i for i in range(slot.items.start, slot.items.stop) if solution.count[i] > 0]


def _entry(solved: SolvedFleet, slot: Slot, i: int, solution: MixSolution, rate_frac: float) -> MixEntry:
    """Return one kind of instance at one level of the day."""
    fleet = solved.fleet
    item = fleet.items[i]
    return MixEntry(
        name=fleet.item_names[i],
        device=item.offer.device.name,
        count=int(solution.count[i]),
        role=item.role,
        config=_config(item),
        devices_per_instance=item.config.num_devices,
        usd_per_hour=instance_usd_per_hour(fleet, solved.mix, solution, i),
        load_frac=_load_frac(solved, slot, i, solution, rate_frac),
        model=slot.demand.name if len(solved.fleet.slots) > 1 else None,
        watts_per_device=None if item.draw is None else item.draw.watts,
        cap=item.cap,
        offers=bought_by_offer(solved.mix, solution, i),
    )


def _load_frac(
    solved: SolvedFleet, slot: Slot, i: int, solution: MixSolution, rate_frac: float = 1.0
) -> float:
    """Return the arrivals at each instance over what it can take, headroom aside."""
    served = np.where(solution.share[i] > 0, solved.problem.load[i], 0.0) * solution.share[i]
    of_roles = solved.headrooms[solved.fleet.slots.index(slot)]
    headroom = of_roles[slot.roles.index(solved.fleet.items[i].role)]
    return float(served.sum() * solved.scale * rate_frac / max(1.0 + headroom, 1.0) / solution.count[i])


def _draws(solved: SolvedFleet) -> tuple[FleetDraw | None, FleetDraw | None]:
    """Return the draw of the fleet with every instance busy, and the mean at the planned rate."""
    busy, mean = [], []
    for slot in solved.fleet.slots:
        for i in _used(slot, solved.solution):
            item, demand = solved.fleet.items[i], slot.demand
            load = _load_frac(solved, slot, i, solved.solution)
            devices = int(solved.solution.count[i]) * item.config.num_devices
            busy.append((item.draw, devices))
            mean.append((item_draw(item, demand.model, demand.buckets, load=load), devices))
    return fleet_draw(busy), fleet_draw(mean)


def _config(item: Item) -> dict[str, int | bool | str]:
    document = plan_document(item.config)
    return {k: v.replace("_", "-") if isinstance(v, str) else v for k, v in document.items()}


def _model_prediction(solved: SolvedFleet, number: int) -> ModelPrediction:
    """Return the figures of one demand: latencies are the worst of what its routed sizes see."""
    slot, solution = solved.fleet.slots[number], solved.solution
    traffic = slot.demand.workload.traffic
    num = len(slot.demand.buckets.names)
    in_time = ~np.isin(slot.demand.buckets.names, slot.demand.buckets.late)
    ttft = tpot = 0.0
    for i in _used(slot, solution):
        item = solved.fleet.items[i]
        share = (
            np.stack([solution.share[i, span] for span in slot.buckets]).reshape(-1, num).max(axis=0) > 1e-6
        ) & in_time
        if share.any() and item.role != "decode":
            ttft = max(ttft, float(item.ttft_s[share].max()))
        if share.any() and item.role != "prefill":
            tpot = max(tpot, float(item.tpot_s[share].max()))
    rate = traffic.rate_per_s * solved.scale
    return ModelPrediction(
        model=slot.demand.name,
        form=slot.form,
        ttft_s=ttft,
        tpot_s=tpot,
        requests_per_s=rate,
        throughput_tokens_per_s=rate * traffic.mean_output_tokens,
        cost_usd_per_hour=used_usd_per_hour(solved.fleet, solved.mix, slot),
        headroom_frac=max(solved.headrooms[number]),
        simulated=solved.checks[number],
    )


def _prediction(solved: SolvedFleet) -> ServingPrediction:
    """Return the fleet's figures; latencies are the worst of all models."""
    fleet, solution = solved.fleet, solved.solution
    parts = tuple(_model_prediction(solved, n) for n in range(len(fleet.slots)))
    traffics = [slot.demand.workload.traffic for slot in fleet.slots]
    output = sum(p.throughput_tokens_per_s for p in parts)
    total = output + sum(
        p.requests_per_s * t.mean_prompt_tokens for p, t in zip(parts, traffics, strict=True)
    )
    pairs = [(item, int(c)) for item, c in zip(fleet.items, solution.count, strict=True) if c]
    drawn, mean = _draws(solved)
    one_price = solved.mix.purchase is None and solved.request.objective == "cost"
    single = single_usd_per_hour(fleet, solved.problem) if one_price else math.inf
    usd_per_hour = solved.mix.usd_per_hour
    mean_rate_frac = sum(level.time_frac * level.rate_frac for level, _ in solved.mix.levels)
    return ServingPrediction(
        ttft_s=max(p.ttft_s for p in parts),
        tpot_s=max(p.tpot_s for p in parts),
        throughput_tokens_per_s=output,
        requests_per_s=sum(p.requests_per_s for p in parts),
        num_devices=sum(item.config.num_devices * c for item, c in pairs),
        cost_usd_per_hour=usd_per_hour,
        cost_usd_per_million_tokens=usd_per_hour / (total * mean_rate_frac * 3600.0) * 1e6,
        best_single_usd_per_hour=single if math.isfinite(single) else None,
        bound_usd_per_hour=_bound(solved, "cost"),
        bound_watts=_bound(solved, "energy"),
        bound_requests_per_s=_bound(solved, "throughput"),
        watts=None if drawn is None else drawn.watts,
        watts_low=None if drawn is None else drawn.low_w,
        watts_high=None if drawn is None else drawn.high_w,
        mean_watts=None if mean is None else mean.watts,
        joules_per_token=None if mean is None else mean.watts / output,
        site=None if mean is None else site_energy(solved.request.facility, mean.pools, output),
        headroom_frac=max(map(max, solved.headrooms)),
        simulated=solved.checks[0] if len(parts) == 1 else None,
        by_model=parts if len(parts) > 1 else (),
    )


def _bound(solved: SolvedFleet, objective: str) -> float | None:
    """Return the proven bound of the objective if it was this one, throughput in requests of all models."""
    bound = solved.mix.outcome.bound
    if solved.request.objective != objective or bound is None:
        return None
    if objective != "throughput":
        return bound
    return bound * sum(slot.demand.workload.traffic.rate_per_s for slot in solved.fleet.slots)


def _routes(solved: SolvedFleet, slot: Slot, solution: MixSolution, rate_frac: float) -> list[Route]:
    """Return where requests of one demand go at one level of the day."""
    buckets = slot.demand.buckets
    routes = []
    for role, span in zip(slot.roles, slot.buckets, strict=True):
        for b in range(len(buckets.names)):
            share = solution.share[:, span.start + b]
            routes.append(
                Route(
                    prompt_tokens_up_to=_whole(buckets.prompt_up_to[b]),
                    output_tokens_up_to=_whole(buckets.output_up_to[b]),
                    rate_per_s=float(buckets.rate_per_s[b]) * solved.scale * rate_frac,
                    role=role,
                    shares={
                        solved.fleet.item_names[i]: float(share[i]) for i in np.flatnonzero(share > 1e-9)
                    },
                    model=slot.demand.name if len(solved.fleet.slots) > 1 else None,
                )
            )
    return routes


def _whole(value: float) -> int | None:
    return None if math.isinf(value) else int(value)


def _certificate(solved: SolvedFleet) -> tuple[Check, ...]:
    broken = solved.mix.broken(solved.problem)
    gap = solved.mix.outcome.gap_frac
    checks = [
        Check(
            name="every-size-served-and-limits-kept",
            holds=not broken,
            detail="; ".join(broken) or "re-checked",
        ),
        Check(
            name=f"{solved.request.objective}-proven",
            holds=gap is not None and gap <= 1e-4,
            detail=f"{solved.mix.outcome.status.value}, {100 * (gap or 0.0):.4f} % from the bound",
        ),
    ]
    several = len(solved.fleet.slots) > 1
    for slot, check in zip(solved.fleet.slots, solved.checks, strict=True):
        whose = f"{slot.demand.name}: " if several else ""
        if check is not None:
            detail = f"{whose}{_check_words(check, slot.demand.request.percentile)}"
            checks.append(Check(name="targets-hold-in-simulation", holds=check.holds, detail=detail))
        checks.append(_bound_check(solved, slot, whose))
    return tuple(checks)


def _check_words(check: SimulatedCheck, percentile: float) -> str:
    within = f"{100 * check.attainment_frac:.2f} % of {check.num_requests} requests within all targets"
    if check.confidence_frac is None or check.attainment_low_frac is None:
        return within
    return (
        f"{within} over {check.num_replications} replays; with {100 * check.confidence_frac:g} % confidence "
        f"each target is kept by at least {100 * check.attainment_low_frac:.2f} % ({percentile:g} % wanted)"
    )


def _bound_check(solved: SolvedFleet, slot: Slot, whose: str) -> Check:
    """Return whether the workload is within what the devices' matmul units can do at all."""
    traffic = slot.demand.workload.traffic
    wanted = traffic.rate_per_s * solved.scale * (traffic.mean_prompt_tokens + traffic.mean_output_tokens)
    bound = 0.0
    for i in _used(slot, solved.solution):
        item = solved.fleet.items[i]
        kernels = kernel_model(item.offer.device)
        dtype = kernel_format(item.offer.device, int(item.config.weights))
        each = throughput_bound_tokens_per_s(slot.demand.model, kernels, dtype)
        bound += int(solved.solution.count[i]) * item.config.num_devices * each
    detail = f"{whose}{wanted:.4g} of at most {bound:.4g} prompt and output tokens per second"
    return Check(name="below-the-compute-bound", holds=wanted <= bound, detail=detail)


def _reason(solved: SolvedFleet, predicted: ServingPrediction, mix: tuple[MixEntry, ...]) -> str:
    request = solved.request
    kinds = " + ".join(f"{m.count} x {m.name}" for m in mix)
    if request.objective == "energy":
        return f"{kinds}: no mix of these instances draws less with all of them busy"
    if request.objective == "throughput":
        return f"{kinds}: no mix within the limits serves more requests of these sizes"
    if solved.mix.purchase is not None:
        return f"{kinds}: no purchase of these offers that carries the load is cheaper"
    single = predicted.best_single_usd_per_hour
    apart = any(m.role != "both" for m in mix)
    if single is None and apart:
        return f"{kinds}: the cheapest fleet with prompts and decoding apart"
    if single is None:
        return f"{kinds}: no single kind of instance serves every request size"
    saved = 1.0 - predicted.cost_usd_per_hour / single
    one = "one kind per phase" if apart else "one kind per model" if predicted.by_model else "one kind"
    if saved > 1e-9:
        return f"{kinds}: {100 * saved:.1f} % below the cheapest fleet of {one} ({single:.2f} USD/h)"
    return f"{kinds}: the cheapest fleet of {one}; no mix is below it"

"""The serving flow: buckets, engine configurations per device, the best mix, its check by simulation."""

from dataclasses import replace
from itertools import product
from time import perf_counter

import numpy as np

from hardware.errors import InfeasibleError
from planner.facility import facility_note
from planner.plan import PlanFile, Search
from planner.plan_io import plan_document
from planner.serving.demands import demand_of, late_note, with_late_sizes
from planner.serving.layers import plan_layers
from planner.serving.mix import Demand, Fleet, Form, fleet_of, mix_problem
from planner.serving.model_requests import model_requests
from planner.serving.offers import DeviceOffer
from planner.serving.plan import ServingPlan
from planner.serving.power import draw_notes
from planner.serving.provenance import serving_provenance
from planner.serving.purchase import solve_fleet
from planner.serving.purchase_words import purchase_notes
from planner.serving.reachable import least_limits
from planner.serving.replays import Replays
from planner.serving.request import ServeRequest, resolve_serving
from planner.serving.result import SolvedFleet, serving_plan_of

__all__ = ["plan_serving"]

_HEADROOM_STEPS = (
    *(-0.95, -0.93, -0.9, -0.86, -0.8, -0.7, -0.6, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0),
    *(0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.1, 2.9, 3.9, 5.1, 6.6, 8.5, 11.0, 14.0, 18.0, 23.0),
)
"""Under bursts, formulas ask for many times what large fleets need, and for a part of what small ones do."""
_PATIENCE = 4
"""Steps of headroom in a row that may be of no help before targets count as out of reach."""
_LEAST_HELP_FRAC = 0.002
"""Of the requests, that a step of help brings within the targets."""
Steps = list[list[int]]
"""Which of the steps each demand and role takes."""
_MAX_FORMS = 16
"""Combinations of forms of several models that are tried."""


def plan_serving(request: ServeRequest) -> PlanFile[ServingPlan]:
    """Return the best fleets that serve the workload within the targets, best first.

    Raises
    ------
    SpecError, InputError
        if the request cannot be read.
    InfeasibleError
        if nothing keeps the targets or the limits; names the lowest latencies or the rows in conflict.
    """
    start = perf_counter()
    asked = [(each, *resolve_serving(each)) for each in model_requests(request)]
    offers = asked[0][3]
    demands = tuple(demand_of(*each) for each in asked)
    found, failures = _planned(request, demands)
    notes = [f"{error.args[0]}" for forms, error in failures.items() if forms not in found]
    ranked = sorted(found.values(), key=lambda pair: _order(request, pair[0]))
    plans = [plan for plan, _ in ranked]
    if plans:
        demands = ranked[0][1]
    else:
        one_price = not any(offer.purchases for offer in offers)
        layered = plan_layers(request, demands) if one_price else None
        if layered is None:
            free = tuple(demand_of(*each[:3], _without_end(offers)) for each in asked)
            raise _explained(
                next(iter(failures.values())), demands, least_limits(request, free, _forms(free), offers)
            )
        plans = [layered]
        notes = ["no instance of one kind of device holds the model: its layers are spread over all of them"]
    if len(plans) > 1 and request.objective == "cost":
        plans[0] = _with_reason(plans[0], plans[1])
    used = {(entry.device, entry.role) for entry in plans[0].mix}
    return PlanFile(
        kind="serve",
        request=plan_document(request),
        plans=tuple(plans[: request.top]),
        search=Search(
            num_configs=sum(d.search.num_configs for d in demands),
            num_feasible=sum(d.search.num_feasible for d in demands),
            wall_s=perf_counter() - start,
            excluded=tuple(dict.fromkeys(e for d in demands for e in d.search.excluded)),
        ),
        diagnostics=tuple(
            dict.fromkeys(
                (
                    *notes,
                    *(n for d in demands for n in _diagnostics(d)),
                    *draw_notes(
                        i for d in demands for i in d.search.items if (i.offer.device.name, i.role) in used
                    ),
                    *([facility_note(request.facility)] if request.facility else []),
                    *purchase_notes(request, plans[0]),
                    *_stage_notes(plans[0]),
                )
            )
        ),
        provenance=serving_provenance(request, tuple(d.model for d in demands), offers),
    )


_Found = dict[tuple[Form, ...], tuple[ServingPlan, tuple[Demand, ...]]]
_Failures = dict[tuple[Form, ...], InfeasibleError]


def _planned(request: ServeRequest, demands: tuple[Demand, ...]) -> tuple[_Found, _Failures]:
    """Return the best plan in every form with the demands that it serves, and why forms failed."""
    found: _Found = {}
    failures: _Failures = {}
    for variant in (demands, *with_late_sizes(demands)):
        replays = Replays(request)
        for forms in _forms(demands):
            try:
                plan = _plan_of_forms(forms, request, variant, replays)
            except InfeasibleError as error:
                failures.setdefault(forms, error)
                continue
            if forms not in found or _order(request, plan) < _order(request, found[forms][0]):
                found[forms] = plan, variant
    return found, failures


def _without_end(offers: tuple[DeviceOffer, ...]) -> tuple[DeviceOffer, ...]:
    """Return the devices as if any number of each could be had."""
    return tuple(replace(offer, max_devices=np.inf) for offer in offers)


def _forms(demands: tuple[Demand, ...]) -> list[tuple[Form, ...]]:
    """Return the combinations of forms to try; with many models, the same form for all that leave it open."""
    open_forms: tuple[Form, ...] = ("joint", "split")
    each: list[tuple[Form, ...]] = [
        open_forms if d.request.form == "auto" else (d.request.form,) for d in demands
    ]
    combined = list(product(*each))
    if len(combined) <= _MAX_FORMS:
        return combined
    return [tuple(forms[0] if len(forms) == 1 else form for forms in each) for form in open_forms]


def _explained(
    error: InfeasibleError, demands: tuple[Demand, ...], wanting: tuple[str, ...]
) -> InfeasibleError:
    """Return the error with what would do, what is lowest possible, and which devices cannot hold a model."""
    several = len(demands) > 1
    reasons = list(wanting)
    for demand in demands:
        whose = f"{demand.name}: " if several else ""
        reasons += [f"{whose}{b}" for b in demand.search.bounds if not b.endswith(": ")]
        reasons += [f"{whose}{words}" for words in _misfits(demand)]
    if not any(d.search.num_feasible for d in demands):
        reasons.append("with max_devices of every device, its layers are spread over several machines")
    message = f"{error.args[0]}; " + "; ".join(dict.fromkeys(reasons)) if reasons else str(error.args[0])
    return InfeasibleError(message, error.conflict or demands[0].buckets.names)


def _plan_of_forms(
    forms: tuple[Form, ...], request: ServeRequest, demands: tuple[Demand, ...], replays: Replays
) -> ServingPlan:
    """Return the best fleet of the given forms, with the headroom that each model's simulation needed."""
    fleet = fleet_of(demands, forms)
    found, steps = _start(request, fleet, replays)
    found = _raised(found, steps, replays)
    if not found.late and request.simulate:
        found = _lowered(found, steps, replays)
    return serving_plan_of(found)


def _start(request: ServeRequest, fleet: Fleet, replays: Replays) -> tuple[SolvedFleet, Steps]:
    """Return the fleet without headroom, or the largest that the limits allow and that replays bear.

    Formulas of queues take every kind of instance alone: a fleet that shares its load needs less.
    """
    start = _HEADROOM_STEPS.index(0.0)
    steps = [[start] * len(slot.roles) for slot in fleet.slots]
    try:
        return _solved(request, fleet, steps, replays), steps
    except InfeasibleError:
        for step in range(start - 1, -1, -1) if request.simulate else ():
            steps = [[step] * len(slot.roles) for slot in fleet.slots]
            try:
                found = _solved(request, fleet, steps, replays)
            except InfeasibleError:
                continue
            if found.late:
                break
            return found, steps
        raise


def _raised(found: SolvedFleet, steps: Steps, replays: Replays) -> SolvedFleet:
    """Return the first fleet with more headroom whose targets hold, else that after which more is no help."""
    best, idle = found, 0
    while (late := found.late) and idle < _PATIENCE:
        if any(max(steps[n]) + 1 == len(_HEADROOM_STEPS) for n in late):
            break
        for n in late:
            steps[n] = [step + 1 for step in steps[n]]
        try:
            found = _solved(found.request, found.fleet, steps, replays)
        except InfeasibleError:
            break
        helps = found.kept_frac > best.kept_frac + _LEAST_HELP_FRAC
        best, idle = (found, 0) if helps else (best, idle + 1)
    return best if found.late else found


def _lowered(found: SolvedFleet, steps: Steps, replays: Replays) -> SolvedFleet:
    """Return a fleet with as little headroom as the simulation of each model still bears, role by role."""
    for n, role in [(n, role) for n, slot in enumerate(found.fleet.slots) for role in range(len(slot.roles))]:
        while (tried := _one_lower(found, steps, replays, n, role)) is not None:
            if tried.scale > found.scale or not tried.same_counts(found):
                found = tried
    return found


def _one_lower(found: SolvedFleet, steps: Steps, replays: Replays, n: int, role: int) -> SolvedFleet | None:
    """Return the fleet with one step less headroom for a role, and move `steps` there; None if it is late.

    Where another phase of the same model would be late then, a step more for that one may still be cheaper.
    """
    phases = range(len(steps[n]))
    for more in (0, 1) if len(phases) > 1 else (0,):
        mine = [steps[n][phase] + (-1 if phase == role else more) for phase in phases]
        if min(mine) < 0 or max(mine) >= len(_HEADROOM_STEPS):
            return None
        moved = [mine if other == n else of_roles for other, of_roles in enumerate(steps)]
        try:
            tried = _solved(found.request, found.fleet, moved, replays)
        except InfeasibleError:
            return None
        if not tried.late and (not more or tried.minimised < found.minimised):
            steps[n] = mine
            return tried
    return None


def _solved(request: ServeRequest, fleet: Fleet, steps: Steps, replays: Replays) -> SolvedFleet:
    """Return the best mix at the given headrooms, replayed."""
    headrooms = tuple(tuple(_HEADROOM_STEPS[step] for step in of_roles) for of_roles in steps)
    problem = mix_problem(request, fleet, headrooms)
    mix = solve_fleet(request, fleet, problem)
    checks = tuple(
        tuple(
            replays.check(slot, fleet, solution, mix.scale * level.rate_frac) if request.simulate else None
            for slot in fleet.slots
        )
        for level, solution in mix.levels
    )
    return SolvedFleet(
        request=request, fleet=fleet, problem=problem, mix=mix, headrooms=headrooms, level_checks=checks
    )


def _rank(request: ServeRequest, plan: ServingPlan) -> tuple[float, float]:
    """Return what orders plans, smallest first: the objective, then dollars."""
    p = plan.predicted
    first = {
        "cost": p.cost_usd_per_hour,
        "energy": p.mean_watts if p.mean_watts is not None else np.inf,
        "throughput": -p.requests_per_s,
    }[request.objective]
    return (float(first), p.cost_usd_per_hour)


def _order(request: ServeRequest, plan: ServingPlan) -> tuple[bool, float, float, str]:
    """Return what orders plans: those whose checks hold first, then by rank."""
    return (not _holds(plan), *_rank(request, plan), plan.strategy.form)


def _holds(plan: ServingPlan) -> bool:
    """Return whether every check of the plan holds."""
    return all(check.holds for check in plan.certificate)


def _with_reason(best: ServingPlan, other: ServingPlan) -> ServingPlan:
    more = other.predicted.cost_usd_per_hour / best.predicted.cost_usd_per_hour - 1.0
    return replace(
        best, reason=f"{best.reason}; the {other.strategy.form} form costs {100 * more:.1f} % more"
    )


def _stage_notes(plan: ServingPlan) -> tuple[str, ...]:
    staged = sorted({m.name for m in plan.mix if int(m.config.get("pp", 1)) > 1})
    told = "pipeline stages are taken to be even and always busy; no measured serving runs are behind them"
    return (f"{', '.join(staged)}: {told}",) if staged else ()


def _misfits(demand: Demand) -> list[str]:
    """Return which configurations do not hold the model, in words."""
    return [
        f"{e.rule}: {e.count} configuration{'s' * (e.count > 1)} left out ({e.why})"
        for e in demand.search.excluded
        if "fit" in e.rule
    ]


def _diagnostics(demand: Demand) -> tuple[str, ...]:
    notes: list[str] = []
    if not demand.request.simulate:
        notes.append(
            "not simulated: queueing comes from formulas, mixing sizes on an instance is taken as additive"
        )
    trace = demand.workload.trace
    if trace is not None and (trace.tree is not None or trace.session is not None):
        notes.append(
            "requests that share a prefix go where it is cached, as far as load allows; "
            f"{100 * demand.workload.traffic.prefix_hit_frac:.0f} % of the prompt tokens were sent before"
        )
    cv = demand.workload.traffic.arrival_cv
    if cv > 3.0:
        notes.append(f"arrivals are bursty (coefficient of variation {cv:.1f})")
    notes += _misfits(demand)
    notes += late_note(demand)
    most = demand.model.max_seq_len
    traffic = demand.workload.traffic
    if most is not None:
        total = np.array(traffic.prompt_tokens) + np.array(traffic.output_tokens)
        over = float(np.array(traffic.share_frac)[total > most].sum())
        if over > 0.0:
            notes.append(
                f"{100 * over:.3g} % of the requests are longer than the {most} tokens that "
                f"{demand.name} is made for"
            )
    if demand.request.num_adapters:
        notes.append("low-rank adapters are costed from rated figures; no measured runs are behind them")
    return tuple(notes)

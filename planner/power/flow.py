"""The power flow: a request, the answers to its sections, one plan file."""

from hashlib import sha256
from importlib.metadata import version
from time import perf_counter

import numpy as np
import numpy.typing as npt

from hardware.errors import InfeasibleError, InputError
from planner.facility import facility_note
from planner.plan import Check, PlanFile, Provenance, Search
from planner.plan_io import plan_document, plan_text, read_plan
from planner.power.plan import PowerPlan, RowAnswer, RowOption, ServingCaps, TrainingClocks
from planner.power.request import PowerRequest, RowSection, ServingSection, TrainingSection
from planner.power.rows import RowChoice, RowSettings, row_choices
from planner.power.site import with_site
from solvers.power_caps import servers_without_breach

__all__ = ["plan_power"]

Floats = npt.NDArray[np.float64]

_DAY_POINTS = 240


def plan_power(request: PowerRequest) -> PlanFile[PowerPlan]:
    """Return the plan file that answers a power request.

    Raises
    ------
    InfeasibleError
        if a row, a deadline or a fleet cannot be kept under its budget.
    """
    started = perf_counter()
    row, training, serving = None, None, None
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    tried = 0
    if request.row is not None:
        row, row_checks, more, tried = _row(request.row)
        notes, checks = notes + more, checks + row_checks
    if request.training is not None:
        training, more = _training(request.training)
        notes, tried = notes + more, tried + len(training.points)
        checks += (_saves(training),)
    if request.serving is not None:
        serving, more = _serving(request.serving)
        notes, tried = notes + more, tried + len(serving.pools)
        checks += (_latency(request.serving, serving),)
    if request.facility is not None:
        row, training, serving = with_site(request.facility, row, training, serving)
        notes += (facility_note(request.facility),)
    return PlanFile(
        kind="power",
        request=plan_document(request),
        plans=(PowerPlan(row=row, training=training, serving=serving, certificate=checks),),
        search=Search(num_configs=tried, num_feasible=tried, wall_s=perf_counter() - started),
        diagnostics=notes,
        provenance=Provenance(
            tool_version=version("meshwright"),
            inputs={"request": sha256(plan_text(request).encode()).hexdigest()},
        ),
    )


def _row(section: RowSection) -> tuple[RowAnswer, tuple[Check, ...], tuple[str, ...], int]:
    if section.work == "training":
        return _training_row(section)
    settings = section.settings()
    most = int(section.servers * (1 + section.most_extra_frac))
    step = max(1, (most - section.servers) // 8)
    coarse = row_choices(settings, tuple(range(section.servers, most + 1, step)))
    safe = [c for c in coarse if c.safe]
    if not safe:
        message = "no number of servers from the rated one on stays under the budget without a brake"
        raise InfeasibleError(message, ("row budget",))
    low = max(c.num_servers for c in safe)
    finer = row_choices(settings, tuple(range(low + 1, min(low + step, most + 1)))) if step > 1 else []
    choices = sorted(coarse + finer, key=lambda c: c.num_servers)
    best = [c for c in choices if c.safe][-1]
    return (*_answer(section, settings, best, choices), len(choices))


def _answer(
    section: RowSection, settings: RowSettings, best: RowChoice, choices: list[RowChoice]
) -> tuple[RowAnswer, tuple[Check, ...], tuple[str, ...]]:
    answer = RowAnswer(
        num_servers=best.num_servers,
        rated_servers=section.servers,
        added_frac=best.num_servers / section.servers - 1,
        budget_w=settings.budget_w,
        thresholds_frac=best.policy.thresholds,
        low_clocks_mhz=tuple(round(c * section.max_clock_mhz, 1) for c in best.policy.low_clocks),
        high_clocks_mhz=tuple(round(c * section.max_clock_mhz, 1) for c in best.policy.high_clocks),
        hysteresis_frac=best.policy.hysteresis,
        spike_frac=best.spike_frac,
        delay_s=section.telemetry_s + section.out_of_band_s,
        options=tuple(
            RowOption(
                num_servers=c.num_servers,
                safe=c.safe,
                peak_frac=c.peak_frac,
                num_brakes=c.num_brakes,
                brakes_per_year=c.brakes_per_year,
                breach_probability=c.breach_probability,
                high_p50_frac=c.high_p50_frac,
                low_p50_frac=c.low_p50_frac,
                high_p99_frac=c.high_p99_frac,
                low_p99_frac=c.low_p99_frac,
            )
            for c in choices
        ),
        day_frac=_picture(best.day),
        mean_w=float(best.day.mean()) * settings.budget_w,
    )
    days = section.seeds * section.hours / 24
    checks = (
        Check(
            name="no brake",
            holds=best.num_brakes == 0,
            detail=f"{best.num_brakes} in {days:g} simulated days",
        ),
        Check(
            name="high class",
            holds=best.high_p50_frac < 0.01,
            detail=f"median latency {100 * best.high_p50_frac:+.2f} % against no control",
        ),
        Check(name="peak", holds=best.peak_frac <= 1, detail=f"{100 * best.peak_frac:.1f} % of the budget"),
    )
    after = [c for c in choices if c.num_servers > best.num_servers]
    knee = (
        f"the next count tried, {after[0].num_servers}, is not safe" if after else "the most that was tried"
    )
    notes = (
        f"row: {knee}; one request at a time per server: waiting grows faster than with batching",
        "row: expected brakes per year extrapolate the tail of the simulated hours",
    )
    return answer, checks, notes


def _picture(day: Floats) -> tuple[float, ...]:
    parts = np.array_split(day, min(_DAY_POINTS, len(day)))
    return tuple(round(float(p.max()), 4) for p in parts)


def _training_row(section: RowSection) -> tuple[RowAnswer, tuple[Check, ...], tuple[str, ...], int]:
    """Return how many servers of one training job fit: all peak together, so no credit for multiplexing."""
    settings = section.settings()
    peak_w = float(settings.server.draw_w(section.prompt_frac))
    valley_w = float(settings.server.draw_w(section.valley_frac))
    count = servers_without_breach(
        mean_w=peak_w, deviation_w=0.0, correlation=1.0, budget_w=settings.budget_w, probability=1e-9
    )
    if not count:
        message = f"row.budget_w: {settings.budget_w:g} W does not hold one training server of {peak_w:g} W"
        raise InfeasibleError(message, ("row budget",))
    swing = count * (peak_w - valley_w) / settings.budget_w
    holds = swing <= section.ramp_limit_frac
    option = RowOption(
        num_servers=count,
        safe=holds,
        peak_frac=count * peak_w / settings.budget_w,
        num_brakes=0,
        brakes_per_year=0.0,
        breach_probability=0.0,
        high_p50_frac=0.0,
        low_p50_frac=0.0,
    )
    answer = RowAnswer(
        num_servers=count,
        rated_servers=section.servers,
        added_frac=count / section.servers - 1,
        budget_w=settings.budget_w,
        thresholds_frac=(),
        low_clocks_mhz=(),
        high_clocks_mhz=(),
        hysteresis_frac=0.0,
        spike_frac=swing,
        delay_s=section.telemetry_s + section.out_of_band_s,
        options=(option,),
        day_frac=(option.peak_frac,),
        mean_w=count * peak_w,
    )
    limit = 100 * section.ramp_limit_frac
    check = Check(
        name="ramp",
        holds=holds,
        detail=f"all servers swing together by {100 * swing:.1f} % of the budget; allowed {limit:.1f} %",
    )
    remedy = "" if holds else "; hold a power floor between steps, or stagger jobs"
    return answer, (check,), (f"training row: no multiplexing credit, correlation 1{remedy}",), 1


def _training(section: TrainingSection) -> tuple[TrainingClocks, tuple[str, ...]]:
    from hardware.schema import validate
    from planner.power.clocks import plan_clocks
    from planner.request import TrainRequest, resolve

    plan = read_plan(section.plan)
    if plan.kind != "train":
        message = f"{section.plan}: is a {plan.kind} plan; training.plan needs a train plan"
        raise InputError(message)
    job, cluster = resolve(validate(TrainRequest, dict(plan.request), section.plan))
    return plan_clocks(plan.plans[0], job, cluster, section)


def _serving(section: ServingSection) -> tuple[ServingCaps, tuple[str, ...]]:
    from planner.power.serving_caps import plan_caps

    plan = read_plan(section.plan)
    if plan.kind != "serve":
        message = f"{section.plan}: is a {plan.kind} plan; serving.plan needs a serve plan"
        raise InputError(message)
    return plan_caps(plan, section)


def _saves(training: TrainingClocks) -> Check:
    worst = min(p.rounded_saved_frac for p in training.points)
    return Check(
        name="clocks save energy",
        holds=worst >= -1e-9,
        detail=f"whole clocks save at least {100 * worst:.2f} % at every deadline, none of which is missed",
    )


def _latency(section: ServingSection, serving: ServingCaps) -> Check:
    request = read_plan(section.plan).request
    late = [
        name
        for name, value in serving.latency.items()
        if request.get(f"slo_{name}") is not None and value > float(request[f"slo_{name}"]) * (1 + 1e-6)
    ]
    shown = ", ".join(f"{n} {v:.4g}" for n, v in serving.latency.items())
    return Check(name="tail latency under the caps", holds=not late, detail=shown)

"""Clocks along the pipeline of a training plan: stage curves from its costs, the frontier, whole clocks."""

from dataclasses import dataclass

import numpy as np

from costmodels.job import TrainingJob
from costmodels.power.draw import DevicePower
from costmodels.power.training import training_power
from costmodels.strategy import Strategy
from hardware.cluster import Cluster
from hardware.errors import InfeasibleError, InputError
from planner.plan import TrainingPlan
from planner.power.pipeline import clock_curve, pipeline_problem, static_clocks
from planner.power.plan import ClockPoint, TrainingClocks
from planner.power.request import TRAINING_CLOCK, TrainingSection
from solvers.time_energy import (
    Budget,
    ClockCurve,
    Clocks,
    TimeEnergyProblem,
    capped_curve,
    energy_of,
    fastest_s,
    frontier,
    look_up,
    round_clocks,
)

__all__ = ["MAX_CLOCK_MHZ", "plan_clocks", "stage_weights"]

MAX_CLOCK_MHZ = {
    "a100-40gb": 1410.0,
    "a100-80gb": 1410.0,
    "a800-80gb": 1410.0,
    "v100-16gb": 1530.0,
    "v100-32gb": 1530.0,
    "h100": 1980.0,
    "h800": 1980.0,
    "h20": 1980.0,
    "h200": 1980.0,
    "b200": 1965.0,
    "gb200": 1965.0,
    "mi300x": 2100.0,
}
"""Highest clock of the compute units (vendor tables, recalled); a request can state another."""

_MOST_OPERATIONS = 1024
"""Longer flushes repeat their steady state: their clocks are planned on fewer micro-batches."""
_LEAST_CLOCK_FRAC = 0.47
"""Lowest clock planned where the request has none: below it energy rises again (660 of 1,410 MHz, A100)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ladder:
    """Clocks that may be set."""

    top_mhz: float
    mhz: tuple[float, ...]


def _ladder(section: TrainingSection, device: str) -> _Ladder:
    top = section.max_clock_mhz or MAX_CLOCK_MHZ.get(device)
    if top is None:
        message = f"training.max_clock_mhz: the clocks of {device} are not known; give its highest clock"
        raise InputError(message)
    low = section.min_clock_mhz or _LEAST_CLOCK_FRAC * top
    if low > top:
        message = f"training.min_clock_mhz: {low:g} MHz is above the highest clock, {top:g} MHz"
        raise InputError(message)
    steps = np.arange(top, low - 1e-9, -section.clock_step_mhz)
    return _Ladder(top_mhz=top, mhz=tuple(float(c) for c in steps))


def stage_weights(job: TrainingJob, strategy: Strategy) -> tuple[float, ...]:
    """Return the work of each stage over that of the heaviest: its layers, and on the last the output matrix.

    The output matrix counts as many layers as its parameters are of one layer's.
    """
    layers = np.full(strategy.pp, job.model.num_layers // strategy.pp, dtype=float)
    layers[: job.model.num_layers % strategy.pp] += 1
    head = job.model.hidden * job.model.vocab
    body = sum(job.model.blocks[i].num_params for i in job.model.layers) / job.model.num_layers
    layers[-1] += head / body
    return tuple(float(w) for w in layers / layers.max())


def _stages(
    plan: TrainingPlan, job: TrainingJob, power: DevicePower, ladder: _Ladder, section: TrainingSection
) -> list[tuple[ClockCurve, ClockCurve]]:
    strategy, parts = plan.strategy, plan.predicted.time_parts_s
    batches = max(1, job.global_batch // (strategy.dp * strategy.micro_batch))
    exposed = sum(parts.get(n, 0.0) for n in ("tp_comm", "cp_comm", "ep_comm"))
    forward_s = (parts["forward"] + exposed / 3) / batches
    backward_s = (parts["backward"] + parts["recompute"] + exposed * 2 / 3) / batches
    clocks = np.array(ladder.mhz) / ladder.top_mhz
    devices = strategy.tp * strategy.cp * strategy.dp
    natural_w = power.natural_w("matmul")
    both = []
    for weight in stage_weights(job, strategy):
        curves = [
            clock_curve(
                seconds * weight,
                natural_w,
                clocks,
                TRAINING_CLOCK,
                blocked_w=power.blocked_w,
                devices=devices,
            )
            for seconds in (forward_s, backward_s)
        ]
        if section.device_cap_w is not None:
            power.check_cap(section.device_cap_w, key="training.device_cap_w")
            curves = [
                capped_curve(c, section.device_cap_w * devices, power.blocked_w * devices) for c in curves
            ]
        both.append((curves[0], curves[1]))
    return both


def _budgets(problem: TimeEnergyProblem, stages: int, limit_w: float, blocked_w: float) -> tuple[Budget, ...]:
    return tuple(
        Budget(
            name=f"stage {s}",
            operations=tuple(np.flatnonzero(problem.curve // 2 == s).tolist()),
            limit_w=limit_w,
            blocked_w=blocked_w,
        )
        for s in range(stages)
    )


def _clock(ladder: _Ladder, problem: TimeEnergyProblem, curve: int, point: int) -> int:
    """Return the clock of a point; capped curves lost their fastest points."""
    lost = len(ladder.mhz) - len(problem.curves[curve].time_s)
    return round(ladder.mhz[lost + point])


def _point(
    problem: TimeEnergyProblem, ladder: _Ladder, clocks: Clocks, static: Clocks, fastest: Clocks, stages: int
) -> ClockPoint:
    chosen, rounded = round_clocks(problem, clocks)
    whole, _ = round_clocks(problem, static)
    # what every device would draw until the same deadline, at full clock and then blocked
    reference = fastest.energy_j
    first = {int(c): int(np.flatnonzero(problem.curve == c)[0]) for c in np.unique(problem.curve)}
    return ClockPoint(
        slowdown_frac=clocks.deadline_s / fastest.deadline_s - 1,
        deadline_s=clocks.deadline_s,
        energy_j=clocks.energy_j,
        saved_frac=1 - clocks.energy_j / reference,
        rounded_saved_frac=1 - rounded.energy_j / reference,
        static_saved_frac=1 - static.energy_j / reference,
        static_clocks_mhz=tuple(
            (
                _clock(ladder, problem, 2 * s, int(whole[first[2 * s]])),
                _clock(ladder, problem, 2 * s + 1, int(whole[first[2 * s + 1]])),
            )
            for s in range(stages)
        ),
        operation_clocks_mhz=tuple(
            tuple(
                _clock(ladder, problem, int(problem.curve[i]), int(chosen[i]))
                for i in np.flatnonzero(problem.curve // 2 == s)
            )
            for s in range(stages)
        ),
    )


def plan_clocks(
    plan: TrainingPlan, job: TrainingJob, cluster: Cluster, section: TrainingSection
) -> tuple[TrainingClocks, tuple[str, ...]]:
    """Return the frontier of a training plan's pipeline, and what a reader must know about it."""
    power, strategy = training_power(cluster.device, job), plan.strategy
    ladder = _ladder(section, cluster.device.name)
    batches = max(1, job.global_batch // (strategy.dp * strategy.micro_batch))
    planned = max(min(batches, _MOST_OPERATIONS // (2 * strategy.pp)), min(batches, strategy.pp))
    stages = _stages(plan, job, power, ladder, section)
    devices = strategy.tp * strategy.cp * strategy.dp
    blocked_w = power.blocked_w * devices
    problem = pipeline_problem(stages, planned, blocked_w=blocked_w)
    if section.stage_budget_w is not None:
        if section.stage_budget_w < blocked_w:
            message = (
                f"training.stage_budget_w: {section.stage_budget_w:g} W is below the {blocked_w:g} W that "
                f"the {devices} devices of a stage draw while they wait"
            )
            raise InfeasibleError(message, ("stage budget",))
        limits = _budgets(problem, strategy.pp, section.stage_budget_w, blocked_w)
        problem = TimeEnergyProblem(
            before=problem.before,
            after=problem.after,
            curve=problem.curve,
            curves=problem.curves,
            blocked_w=problem.blocked_w,
            budgets=limits,
        )
    fast_s = fastest_s(problem)
    fast_times = np.array([c.time_s.min() for c in problem.curves])[problem.curve]
    fastest = Clocks(
        deadline_s=fast_s,
        time_s=fast_times,
        makespan_s=fast_s,
        energy_j=energy_of(problem, fast_times, fast_s),
    )
    deadlines = [fast_s * (1 + x) for x in section.slowdowns_frac]
    if section.straggler_s is not None and section.straggler_s not in deadlines:
        deadlines = sorted([*deadlines, max(section.straggler_s, fast_s)])
    free = [o.unwrap() for o in frontier(problem, deadlines)]
    tied = [o.unwrap() for o in frontier(static_clocks(problem), deadlines)]
    points = tuple(
        _point(problem, ladder, a, b, fastest, strategy.pp) for a, b in zip(free, tied, strict=True)
    )
    return (
        TrainingClocks(
            device=cluster.device.name,
            num_stages=strategy.pp,
            num_microbatches=planned,
            devices_per_stage=devices,
            fastest_s=fast_s,
            fastest_energy_j=fastest.energy_j,
            blocked_w=problem.blocked_w,
            points=points,
            straggler_deadline_s=None
            if section.straggler_s is None
            else look_up(free, section.straggler_s).deadline_s,
        ),
        _notes(power, strategy, batches, planned),
    )


def _notes(power: DevicePower, strategy: Strategy, batches: int, planned: int) -> tuple[str, ...]:
    notes = [
        f"clock response assumed: {TRAINING_CLOCK.clock_share:g} of the time follows the clock",
        "static clocks save nothing at no slowdown where every stage is critical once; operations need hooks",
    ]
    if not power.measured:
        notes.append(f"draw of {power.device} was not measured: products draw as on the measured devices")
    if planned < batches:
        notes.append(f"clocks planned on {planned} of {batches} micro-batches; the steady state repeats")
    if strategy.vpp > 1:
        notes.append("interleaved chunks are planned as plain 1F1B stages")
    return tuple(notes)

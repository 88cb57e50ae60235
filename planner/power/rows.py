"""How many servers a row can hold: thresholds derived from its own spikes, then checked by simulation."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from costmodels.power.response import ClockResponse
from hardware.errors import InfeasibleError
from planner.simulate.rows import (
    ControlDelays,
    RowOutcome,
    RowPolicy,
    RowScenario,
    RowWorkload,
    ServerPower,
    simulate_rows,
)
from solvers.power_caps import brakes_per_year, threshold

__all__ = ["RowChoice", "RowSettings", "row_choices"]

Floats = npt.NDArray[np.float64]

_FILLING_S = 300.0
"""The first minutes, in which the empty row fills, are left out of every figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """Everything that a row is simulated with."""

    budget_w: float
    server: ServerPower
    workload: RowWorkload
    delays: ControlDelays
    prompt_clock: ClockResponse
    token_clock: ClockResponse
    low_clocks: tuple[float, float]
    """Clock of the low class at the first and second level, over its maximum."""
    high_clock: float
    """Clock of the high class at the last level."""
    seeds: tuple[int, ...]
    hours: float
    epsilon: float
    step_s: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowChoice:
    """One number of servers with the policy derived for it, and what all seeds did."""

    num_servers: int
    policy: RowPolicy
    spike_frac: float
    """Rise of power within the control delay that the thresholds allow for."""
    peak_frac: float
    uncontrolled_peak_frac: float
    num_brakes: int
    over_s: float
    brakes_per_year: float
    breach_probability: float
    """Share of the moments above the budget, at most: 3 over the moments seen where none was."""
    high_p50_frac: float
    low_p50_frac: float
    """Median latency of the class against the same row without control, minus 1; the mean over the seeds."""
    high_p99_frac: float
    low_p99_frac: float
    day: Floats
    """Power over budget of the first seed."""

    @property
    def safe(self) -> bool:
        """Whether no seed braked and the high class lost less than 1 % of its median latency."""
        return self.num_brakes == 0 and self.high_p50_frac < 0.01


def _run(settings: RowSettings, policies: dict[int, RowPolicy]) -> dict[int, list[RowOutcome]]:
    scenarios = [
        RowScenario(num_servers=n, budget_w=settings.budget_w, policy=p, seed=s)
        for n, p in policies.items()
        for s in settings.seeds
    ]
    busiest = 43_200.0 - settings.hours * 1800.0
    outcomes = simulate_rows(
        scenarios,
        server=settings.server,
        workload=settings.workload,
        delays=settings.delays,
        prompt_clock=settings.prompt_clock,
        token_clock=settings.token_clock,
        duration_s=settings.hours * 3600.0,
        start_s=busiest,
        step_s=settings.step_s,
    )
    each = len(settings.seeds)
    return {n: outcomes[i * each : (i + 1) * each] for i, n in enumerate(policies)}


def _traces(outcomes: list[RowOutcome]) -> Floats:
    filling = int(_FILLING_S / outcomes[0].step_s)
    return np.stack([o.power_frac[filling:] for o in outcomes], axis=1)


def _slower(outcomes: list[RowOutcome], free: list[RowOutcome], share: float) -> tuple[float, float]:
    """Return how much longer each class waits than without control; 0 for a class that is absent."""
    ratio = np.array([o.quantiles(share) for o in outcomes]) / np.array([o.quantiles(share) for o in free])
    high, low = np.where(np.isnan(ratio), 1.0, ratio).mean(axis=0) - 1.0
    return float(high), float(low)


def _choice(
    settings: RowSettings, policy: RowPolicy, spike: float, outcomes: list[RowOutcome], free: list[RowOutcome]
) -> RowChoice:
    power = _traces(outcomes)
    over = float((power > 1).mean())
    p50, p99 = _slower(outcomes, free, 0.5), _slower(outcomes, free, 0.99)
    return RowChoice(
        num_servers=outcomes[0].scenario.num_servers,
        policy=policy,
        spike_frac=spike,
        peak_frac=float(power.max()),
        uncontrolled_peak_frac=float(_traces(free).max()),
        num_brakes=sum(o.num_brakes for o in outcomes),
        over_s=sum(o.over_s for o in outcomes),
        brakes_per_year=brakes_per_year(power, settings.step_s),
        breach_probability=over if over else 3.0 / power.size,
        high_p50_frac=p50[0],
        low_p50_frac=p50[1],
        high_p99_frac=p99[0],
        low_p99_frac=p99[1],
        day=outcomes[0].power_frac,
    )


def row_choices(settings: RowSettings, counts: tuple[int, ...]) -> list[RowChoice]:
    """Return what each number of servers would do; counts for which no threshold is safe are left out.

    The low class's thresholds come from the spikes of the row without control, the high class's from the
    spikes that are left once the low class is under control, so that the high class is touched last.
    """
    delay = settings.delays.telemetry_s + settings.delays.out_of_band_s
    steps = int(np.ceil(delay / settings.step_s)) + 1
    free = _run(settings, dict.fromkeys(counts, RowPolicy()))
    low: dict[int, RowPolicy] = {}
    spikes: dict[int, float] = {}
    for n in counts:
        try:
            top, spikes[n] = threshold(_traces(free[n]), steps, epsilon=settings.epsilon)
        except InfeasibleError:
            continue
        low[n] = RowPolicy(
            thresholds=(round(top - 0.05, 3), top), low_clocks=settings.low_clocks, high_clocks=(1.0, 1.0)
        )
    if not low:
        return []
    policies = {}
    for n, outcomes in _run(settings, low).items():
        try:
            last, _ = threshold(_traces(outcomes), steps, epsilon=settings.epsilon)
        except InfeasibleError:
            last = low[n].thresholds[-1]
        policies[n] = replace(
            low[n],
            thresholds=(*low[n].thresholds, max(last, low[n].thresholds[-1])),
            low_clocks=(*settings.low_clocks, settings.low_clocks[-1]),
            high_clocks=(1.0, 1.0, settings.high_clock),
        )
    controlled = _run(settings, policies)
    return [_choice(settings, policies[n], spikes[n], controlled[n], free[n]) for n in policies]

"""The highest rate at which a fleet keeps its latency targets, and means over replications.

The bracket starts at an analytic bound that no schedule can pass, grows or shrinks until it holds the answer,
and is halved to a relative width. Every probe replays the same requests with time stretched, so the only
difference between two probes is the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hardware.errors import InputError
from planner.simulate.core import simulate_unless
from planner.simulate.fleet import Fleet
from planner.simulate.outcome import Measurement, latencies
from planner.simulate.rate_bound import can_keep_pace, rate_bound_per_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from costmodels.job import Slo
    from costmodels.traces import Trace
    from planner.simulate.core import GiveUp
    from planner.simulate.fleet import Pool
    from planner.simulate.requests import RequestTable

__all__ = [
    "EngineCount",
    "Estimate",
    "Goodput",
    "check_all",
    "fewest_engines",
    "find_goodput",
    "meets",
    "replicate",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """The answer of a search, with what it took."""

    rate_per_s: float
    """Highest rate that was seen to keep the targets; 0 if none did."""
    failed_per_s: float
    """Lowest rate that was seen to break them; infinite if the bound was reached."""
    num_probes: int
    attainment_frac: float
    """Share of requests within all targets at `rate_per_s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over replications with its two-sided 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float
    num_replications: int


def meets(
    fleet: Fleet, trace: Trace, slo: Slo, *, seed: int = 0, warm_up_frac: float = 0.1, joint: bool = False
) -> tuple[bool, float]:
    """Return whether the fleet keeps the targets, and the share of requests within all of them.

    The run ends early, with a share of 0, once more first tokens are late, or more requests slow, than the
    percentile allows.

    Parameters
    ----------
    warm_up_frac : of the trace's span; requests that arrive in it are simulated, not counted.
    joint : the share within *all* targets must reach the percentile, rather than each target at its own.
    """
    warm_s = float(trace.arrival_s[0]) + warm_up_frac * trace.span_s
    first = int(np.searchsorted(trace.arrival_s, warm_s))
    rule = _too_many_late(slo, first, len(trace))
    raw = simulate_unless(fleet, trace, rule, seed=seed, logged=slo.itl_s is not None)
    if raw is None:
        return False, 0.0
    seen = latencies(raw, Measurement(warm_up_s=warm_up_frac * trace.span_s))
    within = np.ones(len(seen.request), dtype=bool)
    kept = True
    for name, target_s in slo.targets.items():
        values = getattr(seen, name)
        within &= np.isnan(values) | (values <= target_s)
        known = seen.of(name)
        kept &= not len(known) or float(np.percentile(known, slo.percentile)) <= target_s
    share = float(within.mean()) if len(within) else 1.0
    return (share >= slo.percentile / 100.0 if joint else kept), share


def _too_many_late(slo: Slo, first: int, count: int) -> GiveUp:
    """Return the rule that ends a run: too many counted requests are known to be late or slow.

    Two more than the percentile allows are needed, since it is interpolated between requests.
    """
    allowed = (1.0 - slo.percentile / 100.0) * (count - first) + 2.0
    seen = {"started": first, "finished": first, "late": 0, "slow": 0}
    ttft_s, tpot_s = slo.ttft_s or math.inf, slo.tpot_s or math.inf

    def give_up(table: RequestTable, arrived: int, now_s: float) -> bool:
        at = seen["started"]
        while at < arrived and table.arrival_s[at] + ttft_s < now_s:
            seen["late"] += table.first_s[at] - table.arrival_s[at] > ttft_s
            at += 1
        seen["started"] = at
        at = seen["finished"]
        while at < arrived and table.finish_s[at] < math.inf:
            spent_s = table.finish_s[at] - table.first_s[at]
            seen["slow"] += spent_s > tpot_s * (table.output_tokens[at] - 1)
            at += 1
        seen["finished"] = at
        return max(seen["late"], seen["slow"]) > allowed

    return give_up


def check_all(
    jobs: Sequence[tuple[Fleet, Trace]], slo: Slo, *, seed: int = 0, num_jobs: int = -1
) -> list[tuple[bool, float]]:
    """Return `meets` of every fleet with its trace, side by side on all cores (or a joblib backend).

    A fleet that cannot keep pace by its analytic bound is not simulated.
    """
    from joblib import Parallel, delayed

    answers: list[tuple[bool, float]] = [(False, 0.0)] * len(jobs)
    open_jobs = [i for i, (fleet, trace) in enumerate(jobs) if can_keep_pace(fleet, trace, slo)]
    found = Parallel(n_jobs=num_jobs)(delayed(meets)(*jobs[i], slo, seed=seed) for i in open_jobs)
    for i, answer in zip(open_jobs, found, strict=True):
        answers[i] = answer
    return answers


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCount:
    """How many engines of one kind a trace needs."""

    count: int | None
    """The fewest of the counts asked about that keep the targets; None if none does."""
    num_pruned: int
    """Counts that the analytic bound ruled out."""
    num_simulated: int
    attainment_frac: float
    """Share of requests within all targets with that many."""


def fewest_engines(
    pool: Pool, counts: Sequence[int], trace: Trace, slo: Slo, *, seed: int = 0
) -> EngineCount:
    """Return the smallest of `counts` with which the pool alone keeps the targets on the trace.

    Counts are tried from the smallest that the analytic bound allows: a run that fails ends early, one that
    holds is a whole replay, so only one is made. More engines never do worse.
    """
    wanted = sorted(counts)
    fleets = [Fleet(pools=(replace(pool, count=count),)) for count in wanted]
    first = next((i for i, f in enumerate(fleets) if can_keep_pace(f, trace, slo)), len(fleets))
    for i in range(first, len(fleets)):
        kept, share = meets(fleets[i], trace, slo, seed=seed)
        if kept:
            return EngineCount(
                count=wanted[i], num_pruned=first, num_simulated=i - first + 1, attainment_frac=share
            )
    return EngineCount(count=None, num_pruned=first, num_simulated=len(fleets) - first, attainment_frac=0.0)


def find_goodput(
    fleet: Fleet,
    trace: Trace,
    slo: Slo,
    *,
    rel_width: float = 0.01,
    seed: int = 0,
    warm_up_frac: float = 0.1,
    joint: bool = False,
    bound_per_s: float | None = None,
) -> Goodput:
    """Return the highest rate at which the fleet serves the trace's requests within the targets.

    Parameters
    ----------
    rel_width : relative width of the bracket at which the search ends.
    joint : count a rate as kept when the share of requests within *all* targets reaches the percentile,
        rather than each target at its own.
    bound_per_s : a known upper bound; the analytic one if None.
    """

    def kept(rate: float) -> tuple[bool, float]:
        return meets(fleet, trace.scaled(rate), slo, seed=seed, warm_up_frac=warm_up_frac, joint=joint)

    bound = bound_per_s if bound_per_s is not None else rate_bound_per_s(fleet, trace, slo)
    high, low, low_share = bound, 0.0, 0.0
    failed = math.inf
    probes = 0
    rate = 0.5 * bound
    # Widen downwards until some rate is kept, then close in.
    while probes < 60:
        good, share = kept(rate)
        probes += 1
        if good:
            low, low_share = rate, share
        else:
            failed = high = rate
        if low == 0.0 and rate < 1e-3 * bound:
            break
        if low > 0.0 and high - low <= rel_width * high:
            break
        rate = 0.5 * rate if low == 0.0 else 0.5 * (low + high)
    return Goodput(rate_per_s=low, failed_per_s=failed, num_probes=probes, attainment_frac=low_share)


def replicate(
    run: Callable[[int], dict[str, float]], *, seeds: Sequence[int], num_jobs: int | None = -1
) -> dict[str, Estimate]:
    """Return mean and interval of each figure that `run(seed)` gives, over the seeds, side by side.

    Runs on all cores, or on whatever joblib backend is active (Dask, Ray); `num_jobs` None leaves that to it.

    Raises
    ------
    InputError
        with fewer than two seeds, since one run has no spread.
    """
    from joblib import Parallel, delayed
    from scipy.stats import t as student

    if len(seeds) < 2:
        message = "an interval needs at least two replications"
        raise InputError(message)
    runs = Parallel(n_jobs=num_jobs)(delayed(run)(seed) for seed in seeds)
    estimates = {}
    for name in runs[0]:
        values = np.array([r[name] for r in runs])
        half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
        mean = float(values.mean())
        estimates[name] = Estimate(mean=mean, low=mean - half, high=mean + half, num_replications=len(values))
    return estimates

"""The highest rate at which a fleet keeps its latency targets, and means over replications.

The bracket starts at an analytic bound that no schedule can pass, grows or shrinks until it holds the answer,
and is halved to a relative width. Every probe replays the same requests with time stretched, so the only
difference between two probes is the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hardware.errors import InputError
from planner.simulate.core import simulate_unless
from planner.simulate.outcome import Measurement, latencies
from planner.simulate.settings import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from costmodels.job import Slo
    from costmodels.traces import Trace
    from planner.simulate.core import GiveUp
    from planner.simulate.fleet import EngineSpec, Fleet
    from planner.simulate.requests import RequestTable

__all__ = ["Estimate", "Goodput", "check_all", "find_goodput", "meets", "rate_bound_per_s", "replicate"]


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


def rate_bound_per_s(fleet: Fleet, trace: Trace, slo: Slo | None = None) -> float:
    """Return a rate of requests that the fleet cannot pass, from iteration times alone.

    Prompts: each engine's fastest time per prompt token over the trace's mean prompt. Decodes: the tokens per
    second of the best batch that fits the cache, each sequence with at least its prompt cached; with a target
    for the time per token, of the batches that keep it.
    """
    mean_prompt = float(trace.prompt_tokens.mean())
    steps = np.maximum(trace.output_tokens - 1, 0)
    # Of the sequences in a batch at any time, long outputs are there for longer.
    batch_prompt = float((trace.prompt_tokens * steps).sum() / max(steps.sum(), 1)) or 1.0
    tpot_s = slo.tpot_s if slo is not None and slo.tpot_s is not None else math.inf
    rates = {Role.PREFILL: 0.0, Role.DECODE: 0.0, Role.BOTH: 0.0}
    for pool in fleet.pools:
        spec = pool.engine
        engines = pool.num_engines * spec.num_ranks * spec.num_lanes
        prefill_s = 0.0 if spec.role is Role.DECODE else spec.timer.prompt_bound_s(mean_prompt)
        decode_s = 0.0
        if spec.role is not Role.PREFILL:
            decode_s = float(steps.mean()) * _token_bound_s(spec, batch_prompt, tpot_s)
        # Both phases may share an iteration, so only the longer of the two is certain.
        rates[spec.role] += engines / max(prefill_s, decode_s, 1e-12)
    return rates[Role.BOTH] + min(rates[Role.PREFILL], rates[Role.DECODE])


def _token_bound_s(spec: EngineSpec, mean_prompt: float, tpot_s: float) -> float:
    """Return the least time per token of any decode batch; infinite where none keeps the target."""
    settings = spec.settings
    largest = max(
        1, min(settings.max_seqs // spec.num_lanes, int(spec.kv_tokens / spec.num_lanes / mean_prompt))
    )
    step_tokens = settings.speculation.tokens_per_step if settings.speculation else 1.0
    sizes = sorted({1, largest, *(int(largest * i / 16) for i in range(1, 16))} - {0})
    best_s = math.inf
    for size in sizes:
        time_s = spec.timer.decode_s(size, size * mean_prompt)
        if time_s / step_tokens <= tpot_s:
            best_s = min(best_s, time_s / size / step_tokens)
    return best_s


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
    raw = simulate_unless(fleet, trace, _too_many_late(slo, first, len(trace)), seed=seed)
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

    A fleet whose analytic bound lies below the trace's rate is not simulated.
    """
    from joblib import Parallel, delayed

    answers: list[tuple[bool, float]] = [(False, 0.0)] * len(jobs)
    open_jobs = [
        i for i, (fleet, trace) in enumerate(jobs) if rate_bound_per_s(fleet, trace) >= trace.rate_per_s
    ]
    found = Parallel(n_jobs=num_jobs)(delayed(meets)(*jobs[i], slo, seed=seed) for i in open_jobs)
    for i, answer in zip(open_jobs, found, strict=True):
        answers[i] = answer
    return answers


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
    run: Callable[[int], dict[str, float]], *, seeds: Sequence[int], num_jobs: int = -1
) -> dict[str, Estimate]:
    """Return mean and interval of each figure that `run(seed)` gives, over the seeds, side by side.

    Runs on all cores, or on whatever joblib backend is active (Dask, Ray).

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

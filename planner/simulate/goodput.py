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
from planner.simulate.core import simulate
from planner.simulate.outcome import Measurement, latencies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from costmodels.job import Slo
    from costmodels.traces import Trace
    from planner.simulate.fleet import Fleet

__all__ = ["Estimate", "Goodput", "find_goodput", "meets", "rate_bound_per_s", "replicate"]


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


def rate_bound_per_s(fleet: Fleet, trace: Trace) -> float:
    """Return a rate of requests that the fleet cannot pass, from iteration times alone.

    Prompts: each engine's fastest time per prompt token over the trace's mean prompt. Decodes: the tokens per
    second of the largest batch that fits the cache at the mean context, each token's cached context read.
    """
    mean_prompt, mean_output = float(trace.prompt_tokens.mean()), float(trace.output_tokens.mean())
    busy_s = {"prefill": 0.0, "decode": 0.0}
    rates = {"prefill": 0.0, "decode": 0.0, "both": 0.0}
    for pool in fleet.pools:
        spec = pool.engine
        engines = pool.num_engines * spec.num_ranks * spec.num_lanes
        settings = spec.settings
        context = mean_prompt + mean_output / 2.0
        batch = max(1, min(settings.max_seqs, int(spec.kv_tokens / max(context, 1.0))))
        step_tokens = settings.speculation.tokens_per_step if settings.speculation else 1.0
        decode_s = min(
            spec.timer.decode_s(size, size * mean_prompt) / size for size in {1, max(batch // 2, 1), batch}
        )
        busy_s["decode"] = max(mean_output - 1.0, 0.0) * decode_s / step_tokens
        busy_s["prefill"] = spec.timer.prompt_bound_s(mean_prompt)
        if spec.role.value == "both":
            # Both phases may share an iteration, so only the longer of the two is certain.
            rates["both"] += engines / max(*busy_s.values(), 1e-12)
        else:
            rates[spec.role.value] += engines / max(busy_s[spec.role.value], 1e-12)
    split = min(rates["prefill"], rates["decode"])
    return rates["both"] + split


def meets(
    fleet: Fleet, trace: Trace, slo: Slo, *, seed: int = 0, warm_up_frac: float = 0.1
) -> tuple[bool, float]:
    """Return whether the fleet keeps every target at its percentile, and the share of requests within all."""
    rule = Measurement(warm_up_s=warm_up_frac * trace.span_s)
    seen = latencies(simulate(fleet, trace, seed=seed), rule)
    within = np.ones(len(seen.request), dtype=bool)
    kept = True
    for name, target_s in slo.targets.items():
        values = getattr(seen, name)
        met = np.isnan(values) | (values <= target_s)
        within &= met
        kept &= (
            float(np.percentile(seen.of(name), slo.percentile)) <= target_s if len(seen.of(name)) else True
        )
    return kept, float(within.mean())


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
        each, share = meets(fleet, trace.scaled(rate), slo, seed=seed, warm_up_frac=warm_up_frac)
        return (share >= slo.percentile / 100.0 if joint else each), share

    bound = bound_per_s if bound_per_s is not None else rate_bound_per_s(fleet, trace)
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

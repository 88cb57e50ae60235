"""Traces made from a model of the traffic: arrival processes, lengths drawn from others, sessions.

Every part draws from its own stream of one seed, so two traces of one seed differ only in what their models
differ in (common random numbers): a higher rate is the same requests, closer together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from costmodels.traces import Trace
from hardware.errors import InputError

if TYPE_CHECKING:
    from costmodels.job import Traffic

__all__ = ["BurstModel", "fit_bursts", "gamma_gaps", "make_trace", "sessions_trace", "weibull_gaps"]

Floats = npt.NDArray[np.float64]

_GAPS, _SIZES, _STATES, _SESSIONS = range(4)


def gamma_gaps(num_requests: int, *, cv: float, seed: int) -> Floats:
    """Return times between arrivals with mean one and the given coefficient of variation.

    A Gamma distribution of shape 1/cv^2: `cv` 1 is a Poisson process, 0 a steady one, above 1 bursty.
    """
    rng = np.random.default_rng((seed, _GAPS))
    if cv == 0.0:
        return np.ones(num_requests)
    shape = 1.0 / cv**2
    return rng.gamma(shape, 1.0 / shape, size=num_requests)


def weibull_gaps(num_requests: int, *, cv: float, seed: int) -> Floats:
    """Return times between arrivals with mean one and the given coefficient of variation, above 0.

    A Weibull distribution of shape k, with cv^2 = G(1 + 2/k) / G(1 + 1/k)^2 - 1, G the Gamma function. With
    the same variation as Gamma gaps, fewer requests come at one instant: counts per second of the Azure code
    trace (cv 13.2) vary 13 times as much as Poisson's, with Weibull gaps 13 times, with Gamma gaps 68 times.
    """
    low, high = 0.05, 1e3
    for _ in range(60):
        shape = math.sqrt(low * high)
        spread = math.exp(math.lgamma(1.0 + 2.0 / shape) - 2.0 * math.lgamma(1.0 + 1.0 / shape)) - 1.0
        low, high = (shape, high) if spread > cv**2 else (low, shape)
    rng = np.random.default_rng((seed, _GAPS))
    return rng.weibull(shape, size=num_requests) / math.gamma(1.0 + 1.0 / shape)


_LAWS = {"gamma": gamma_gaps, "weibull": weibull_gaps}


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstModel:
    """Requests come at a rate that changes every `interval_s`, one of a few levels, with memory.

    A Markov-modulated Poisson process: in a level, arrivals are Poisson; after each interval the level is
    drawn from the row of `transition` of the current one.
    """

    interval_s: float
    rates_per_s: tuple[float, ...]
    transition: tuple[tuple[float, ...], ...]

    def gaps(self, num_requests: int, *, seed: int) -> Floats:
        """Return times between arrivals at the fitted rates."""
        rng = np.random.default_rng((seed, _GAPS))
        states = np.random.default_rng((seed, _STATES))
        # Unit-rate arrivals, stretched by the rate of the moment (time rescaling).
        work = np.cumsum(rng.exponential(size=num_requests))
        level, edges_s, done = 0, [0.0], [0.0]
        cumulative = np.cumsum(self.transition, axis=1)
        while done[-1] < work[-1]:
            edges_s.append(edges_s[-1] + self.interval_s)
            done.append(done[-1] + self.interval_s * self.rates_per_s[level])
            level = min(int(np.searchsorted(cumulative[level], states.random())), len(self.rates_per_s) - 1)
        arrival_s = np.interp(work, done, edges_s)
        return np.diff(arrival_s, prepend=0.0)


def fit_bursts(trace: Trace, *, interval_s: float = 10.0, num_levels: int = 4) -> BurstModel:
    """Return the burst model of a trace: levels are means of equal shares of its intervals, by count.

    Raises
    ------
    InputError
        if the trace spans fewer than ten intervals.
    """
    start_s = trace.arrival_s[0]
    num_bins = int(trace.span_s / interval_s)
    if num_bins < 10:
        message = (
            f"{trace.source}: {trace.span_s:g} s is too short to fit bursts over {interval_s:g} s intervals"
        )
        raise InputError(message)
    counts, _ = np.histogram(trace.arrival_s, bins=num_bins, range=(start_s, start_s + num_bins * interval_s))
    order = np.argsort(counts, kind="stable")
    level = np.empty(num_bins, dtype=np.int64)
    level[order] = np.arange(num_bins) * num_levels // num_bins
    rates = [float(counts[level == k].mean()) / interval_s for k in range(num_levels)]
    moves = np.full((num_levels, num_levels), 1e-3)
    np.add.at(moves, (level[:-1], level[1:]), 1.0)
    moves /= moves.sum(axis=1, keepdims=True)
    return BurstModel(
        interval_s=interval_s,
        rates_per_s=tuple(rates),
        transition=tuple(tuple(row) for row in moves.tolist()),
    )


def make_trace(
    traffic: Traffic,
    *,
    num_requests: int,
    seed: int,
    bursts: BurstModel | None = None,
    law: str | None = None,
) -> Trace:
    """Return `num_requests` requests with the traffic's rate, arrival variation and sizes.

    Parameters
    ----------
    law : gamma or weibull, of the times between arrivals; by default weibull where they vary more than
        Poisson's, else gamma.
    """
    cv = traffic.arrival_cv
    chosen = _LAWS[law or ("weibull" if cv > 1.0 else "gamma")]
    gaps = (
        bursts.gaps(num_requests, seed=seed) if bursts is not None else chosen(num_requests, cv=cv, seed=seed)
    )
    arrival_s = np.cumsum(gaps)
    arrival_s = (arrival_s - arrival_s[0]) * (
        (num_requests - 1) / traffic.rate_per_s / (arrival_s[-1] - arrival_s[0])
    )
    rng = np.random.default_rng((seed, _SIZES))
    sizes = rng.choice(len(traffic.share_frac), size=num_requests, p=np.array(traffic.share_frac))
    prompt = np.array(traffic.prompt_tokens)[sizes]
    return Trace(
        arrival_s=arrival_s,
        prompt_tokens=prompt,
        output_tokens=np.array(traffic.output_tokens)[sizes],
        prefix_tokens=(prompt * traffic.prefix_hit_frac).astype(np.int64)
        if traffic.prefix_hit_frac
        else None,
        source="made",
    )


def sessions_trace(
    traffic: Traffic, *, num_sessions: int, mean_turns: float, think_s: float, seed: int
) -> Trace:
    """Return conversations: each turn's prompt is all before it plus a new message of the traffic's sizes.

    Sessions start as a Poisson process at the traffic's rate over the mean number of turns; turns are
    geometric; a turn starts `think_s` on average (exponential) after the one before it *started*, since the
    time to answer is not known here.
    """
    rng = np.random.default_rng((seed, _SESSIONS))
    starts = np.cumsum(rng.exponential(mean_turns / traffic.rate_per_s, size=num_sessions))
    turns = rng.geometric(1.0 / mean_turns, size=num_sessions)
    rows = []
    for session, (start_s, count) in enumerate(zip(starts.tolist(), turns.tolist(), strict=True)):
        sizes = rng.choice(len(traffic.share_frac), size=count, p=np.array(traffic.share_frac))
        at_s, context = start_s, 0
        for size in sizes.tolist():
            prompt, output = context + traffic.prompt_tokens[size], traffic.output_tokens[size]
            rows.append((at_s, prompt, output, session))
            context = prompt + output
            at_s += float(rng.exponential(think_s))
    rows.sort()
    table = np.array(rows)
    return Trace(
        arrival_s=table[:, 0] - table[0, 0],
        prompt_tokens=table[:, 1].astype(np.int64),
        output_tokens=table[:, 2].astype(np.int64),
        session=table[:, 3].astype(np.int64),
        source="sessions",
    )

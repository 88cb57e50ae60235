r"""A rate of requests that no schedule on a fleet can pass, from iteration times alone.

An iteration holds :math:`p` prompt tokens and :math:`B` decoding sequences and takes :math:`t(p, B)`. A
request brings on average :math:`P` prompt tokens that are not cached and :math:`O` decode steps, so the time
that an engine spends per request is at least

.. math::

    \min_{n \ge 0} \sum_i t_i n_i \quad\text{s.t.}\quad \sum_i p_i n_i \ge P, \quad
    \sum_i B_i n_i \ge O, \quad \sum_i B_i (t_i - \tau) n_i \le 0

over kinds of iterations :math:`i`, the last row for a target :math:`\tau` of the time per step. By duality
every :math:`w \in [0, 1]` and :math:`\gamma \ge 0` bounds its reciprocal by

.. math::

    \max_i \frac{w \, p_i / P + (1 - w) \, B_i / O}{t_i + \gamma B_i (t_i - \tau)},

and the least over a grid of both is what is returned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from planner.simulate.requests import chains
from planner.simulate.settings import Batching, Role
from planner.simulate.timing import Load, StepTimer

if TYPE_CHECKING:
    from costmodels.job import Slo
    from costmodels.traces import Trace
    from planner.simulate.fleet import EngineSpec, Fleet

__all__ = ["can_keep_pace", "rate_bound_per_s"]

Floats = npt.NDArray[np.float64]

_WEIGHTS = np.linspace(0.0, 1.0, 65)
_GAMMAS = np.concatenate(([0.0], np.geomspace(1e-2, 30.0, 25)))
"""Of the target's row, over the largest batch."""
_LARGEST_PROMPTS = 65536
_TILE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What a request brings on average."""

    prompt_tokens: float
    pairs_per_token: float
    steps: float
    """Decode steps of the requests that must keep the target for the time per token."""
    context: float
    """Cached tokens of a decoding sequence, mean over decode steps."""
    cached_prompt: float
    """Of them, the prompt: what a sequence holds at the least."""


def rate_bound_per_s(fleet: Fleet, trace: Trace, slo: Slo | None = None) -> float:
    """Return a rate of requests that the fleet cannot pass in the long run, whatever is batched with what.

    With a target for the time per token, the requests that may miss it are taken to be those with the longest
    answers, and not to decode at all.
    """
    rates = {Role.PREFILL: 0.0, Role.DECODE: 0.0, Role.BOTH: 0.0}
    works: dict[bool, _Work] = {}
    tpot_s = slo.tpot_s if slo is not None and slo.tpot_s is not None else math.inf
    missed_frac = 1.0 - slo.percentile / 100.0 if slo is not None and math.isfinite(tpot_s) else 0.0
    for pool in fleet.pools:
        spec = pool.engine
        caching = spec.settings.prefix_caching
        if caching not in works:
            works[caching] = _work(trace, caching=caching, missed_frac=missed_frac)
        engines = pool.num_engines * spec.num_ranks * spec.num_lanes
        rates[spec.role] += engines * _engine_rate_per_s(spec, works[caching], tpot_s)
    return rates[Role.BOTH] + min(rates[Role.PREFILL], rates[Role.DECODE])


def can_keep_pace(fleet: Fleet, trace: Trace, slo: Slo) -> bool:
    """Return whether the fleet could at best finish in time what must be finished before the last arrival.

    Of a short trace much may still be under way when the last request arrives; only requests whose targets
    end before that are counted. Without a target from arrival on, nothing is known.
    """
    steps = np.maximum(trace.output_tokens - 1, 0)
    if slo.e2e_s is not None:
        allowed_s = np.full(len(trace), slo.e2e_s)
    elif slo.ttft_s is not None and (slo.tpot_s is not None or not steps.any()):
        allowed_s = slo.ttft_s + steps * (slo.tpot_s or 0.0)
    else:
        return True
    due = np.flatnonzero(trace.arrival_s + allowed_s <= trace.arrival_s[-1])
    must = len(due) - (1.0 - slo.percentile / 100.0) * len(trace)
    if must <= 1.0:
        return True
    return must <= rate_bound_per_s(fleet, trace.take(due), slo) * trace.span_s


def _work(trace: Trace, *, caching: bool, missed_frac: float) -> _Work:
    prompt = trace.prompt_tokens.astype(float)
    shared = np.array(chains(trace)[1], dtype=float)
    if not caching and trace.prefix_tokens is None:
        shared = np.zeros(len(trace))
    new = np.maximum(prompt - shared, 1.0)
    steps = np.maximum(trace.output_tokens - 1.0, 0.0)
    if missed_frac > 0.0:
        longest = np.argsort(-steps, kind="stable")[: math.ceil(missed_frac * len(steps))]
        steps[longest] = 0.0
    total = max(float(steps.sum()), 1e-9)
    return _Work(
        prompt_tokens=float(new.mean()),
        pairs_per_token=float((new * (shared + 0.5 * (new + 1.0))).sum() / new.sum()),
        steps=float(steps.mean()),
        context=float((steps * (prompt + 0.5 * steps)).sum()) / total or 1.0,
        cached_prompt=float((steps * prompt).sum()) / total or 1.0,
    )


def _engine_rate_per_s(spec: EngineSpec, work: _Work, tpot_s: float) -> float:
    """Return the requests per second that one lane of one rank cannot pass."""
    settings = spec.settings
    step_tokens = settings.speculation.tokens_per_step if settings.speculation else 1.0
    prompts, batches, times = _iterations(spec, work)
    need_prompt = 0.0 if spec.role is Role.DECODE else work.prompt_tokens
    need_steps = 0.0 if spec.role is Role.PREFILL else work.steps / step_tokens
    largest = max(float(batches.max()), 1.0)
    by_prompt = prompts / need_prompt if need_prompt > 0.0 else np.zeros(len(times))
    by_steps = batches / need_steps if need_steps > 0.0 else np.zeros(len(times))
    weights = _WEIGHTS
    if need_prompt == 0.0 or need_steps == 0.0:
        weights = np.array([0.0 if need_prompt == 0.0 else 1.0])
    done = weights[:, None] * by_prompt + (1.0 - weights[:, None]) * by_steps
    best = math.inf
    for gamma in _GAMMAS if math.isfinite(tpot_s) and need_steps > 0.0 else _GAMMAS[:1]:
        late = gamma / largest * batches * (times - tpot_s * step_tokens) if gamma else 0.0
        cost = times + late
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(done > 0.0, np.where(cost > 0.0, done / cost, np.inf), 0.0)
        best = min(best, float(ratio.max(axis=1).min()))
    return best


def _iterations(spec: EngineSpec, work: _Work) -> tuple[Floats, Floats, Floats]:
    """Return prompt tokens, sequences and seconds of the kinds of iterations that the engine may run."""
    settings, timer = spec.settings, spec.timer
    held = int(spec.kv_tokens / spec.num_lanes / work.cached_prompt)
    largest = max(1, min(settings.max_seqs // spec.num_lanes, held))
    sizes = sorted({0, 1, largest, *(int(largest * i / 16) for i in range(1, 16))})
    budget = min(settings.token_budget, _LARGEST_PROMPTS)
    tiles = range(_TILE, min(budget, 16 * _TILE) + 1, _TILE)
    chunks = sorted({0, 1, _TILE // 2, *tiles, *(budget * i // 8 for i in range(1, 9))})
    rows: list[tuple[float, float, float]] = []
    for size in sizes if spec.role is not Role.PREFILL else [0]:
        for chunk in chunks if spec.role is not Role.DECODE else [0]:
            tokens = chunk
            if settings.batching is Batching.CHUNKED:
                tokens = min(chunk, budget - size * settings.step_tokens)
            elif settings.batching is Batching.PREFILL_FIRST and chunk and size:
                continue
            if tokens < 0 or (tokens == 0 and size == 0):
                continue
            rows.append((tokens, size, _seconds(timer, tokens, size, work)))
    prompts, batches, times = np.array(rows).T
    return prompts, batches, times


def _seconds(timer: StepTimer, tokens: int, size: int, work: _Work) -> float:
    kv = size * work.context
    if tokens == 0:
        return float(timer.decode_s(size, kv))
    load = Load(
        prefill_tokens=tokens,
        prefill_pairs=tokens * work.pairs_per_token,
        num_seqs=size,
        kv_tokens=kv,
    )
    return float(timer.step_s(load))

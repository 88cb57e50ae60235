"""Replay a workload on a planned fleet: do the latency targets hold when requests really queue?"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from costmodels.graph import ModelGraph
from costmodels.serving.engine import EngineStack
from costmodels.serving.machine import device_machine
from costmodels.traces import Trace
from planner.serving.items import Item
from planner.serving.plan import SimulatedCheck
from planner.serving.replay_part import part_of_workload, replay_part
from planner.serving.request import ServeRequest
from planner.simulate.arrivals import make_trace
from planner.simulate.core import simulate
from planner.simulate.engine_spec import catalogue_engine, settings_of
from planner.simulate.fleet import EngineSpec, Fleet, Pool
from planner.simulate.outcome import Latencies, Measurement, latencies
from planner.simulate.settings import EngineSettings, Role, Speculation
from planner.simulate.settling import settling_s
from planner.simulate.slowed_timer import capped_engine
from planner.workload import Buckets, Workload
from solvers.gpu_mix import MixSolution

__all__ = ["SimulatedFleet", "simulated_check"]

Floats = npt.NDArray[np.float64]

_FEWEST_OF_TRACE = 4000
"""Requests of the busiest stretch of a trace; more where queues take longer to settle."""
_REPLICATIONS = 4
"""Made traces, each with its own seed."""
_CONFIDENCE = 0.95
_STUDENT = 2.353
"""One-sided 95 % quantile of Student's t with three degrees of freedom."""
_WARM_UP_FRAC = 0.1
_ROLES = {"both": Role.BOTH, "prefill": Role.PREFILL, "decode": Role.DECODE}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedFleet:
    """What the instances of a plan are made of."""

    request: ServeRequest
    model: ModelGraph
    engine: EngineStack
    items: tuple[Item, ...]
    buckets: Buckets
    engines: dict[int, EngineSpec] = field(default_factory=dict)
    """Made when first needed, by item: their iteration times are asked for again and again."""


def simulated_check(
    fleet: SimulatedFleet, solution: MixSolution, workload: Workload, *, first_seed: int = 0
) -> SimulatedCheck:
    """Return the latencies of replays of the trace, or of made traces of the same sizes and arrivals.

    A large fleet is replayed in part, under the same part of its load, for as long as queues take to settle.
    Made traces are several, and the targets hold if they do so with 95 % confidence over them; the first that
    breaks a target ends the check.
    """
    slo = fleet.request.slo
    wanted = slo.percentile / 100.0
    part = replay_part(
        solution.count,
        workload.traffic.rate_per_s,
        settling_s(slo, workload.traffic.mean_output_tokens),
        _carried_frac(fleet.buckets, solution),
    )
    built = _fleet(fleet, replace(solution, count=part.count))
    traces = _traces(fleet.request, part_of_workload(workload, part.load_frac), part.num_requests, first_seed)
    seen: list[Latencies] = []
    for seed, trace in enumerate(traces, start=first_seed):
        raw = simulate(built, trace, seed=seed)
        seen.append(latencies(raw, Measurement(warm_up_s=_WARM_UP_FRAC * trace.span_s)))
        if any(_kept_frac(seen[-1], name, target_s) < wanted for name, target_s in slo.targets.items()):
            break
    lowest, holds = 1.0, True
    for name, target_s in slo.targets.items():
        kept = np.array([_kept_frac(each, name, target_s) for each in seen])
        low = kept[0] if len(kept) == 1 else kept.mean() - _STUDENT * kept.std(ddof=1) / math.sqrt(len(kept))
        lowest = min(lowest, float(low))
        holds &= _percentile(seen, name, slo.percentile) <= target_s and (len(kept) == 1 or low >= wanted)
    within = [
        np.all([_kept(each, name, target_s) for name, target_s in slo.targets.items()], axis=0)
        for each in seen
    ]
    return SimulatedCheck(
        num_requests=sum(len(each.request) for each in seen),
        num_replications=len(seen),
        attainment_frac=float(np.concatenate(within).mean()),
        attainment_low_frac=max(lowest, 0.0),
        confidence_frac=_CONFIDENCE if len(seen) > 1 else None,
        ttft_s=_percentile(seen, "ttft_s", slo.percentile),
        tpot_s=_percentile(seen, "tpot_s", slo.percentile),
        holds=bool(holds),
    )


def _carried_frac(buckets: Buckets, solution: MixSolution) -> Floats:
    """Return the requests that pass through each item, of those of its phase. shape (items,)"""
    size_frac = buckets.rate_per_s / buckets.rate_per_s.sum()
    of_phases = solution.share.reshape(len(solution.count), -1, len(size_frac))
    carried: Floats = (of_phases @ size_frac).max(axis=1)
    return carried


def _kept(seen: Latencies, name: str, target_s: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    values = getattr(seen, name)
    kept: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.isnan(values) | (values <= target_s)
    return kept


def _kept_frac(seen: Latencies, name: str, target_s: float) -> float:
    return float(_kept(seen, name, target_s).mean())


def _percentile(seen: list[Latencies], name: str, percentile: float) -> float:
    """Return the percentile over all replays of the requests that have the latency; 0 without any."""
    values = np.concatenate([each.of(name) for each in seen])
    return float(np.percentile(values, percentile)) if len(values) else 0.0


def _traces(request: ServeRequest, workload: Workload, num_requests: int, first_seed: int) -> list[Trace]:
    hits = request.prefix_hit_frac
    if workload.trace is None:
        traffic = replace(workload.traffic, prefix_hit_frac=hits or workload.traffic.prefix_hit_frac)
        seeds = range(first_seed, first_seed + _REPLICATIONS)
        return [make_trace(traffic, num_requests=num_requests, seed=seed) for seed in seeds]
    trace = workload.trace
    if hits:
        trace = replace(trace, prefix_tokens=(trace.prompt_tokens * hits).astype(np.int64), tree=None)
    wanted = max(num_requests, _FEWEST_OF_TRACE)
    return [trace if len(trace) <= wanted else _busiest(trace, wanted)]


def _busiest(trace: Trace, num_requests: int) -> Trace:
    """Return the run of consecutive requests that arrives fastest: what the fleet must survive."""
    spans = trace.arrival_s[num_requests - 1 :] - trace.arrival_s[: len(trace) - num_requests + 1]
    first = int(np.argmin(spans))
    rows = np.arange(first, first + num_requests)
    chosen = trace.take(rows)
    return replace(chosen, arrival_s=chosen.arrival_s - chosen.arrival_s[0])


def _settings(fleet: SimulatedFleet, item: Item) -> EngineSettings:
    """Return the scheduling of an item's engine, drafts accepted as the request states."""
    settings = settings_of(item.config, fleet.engine)
    if not item.config.draft_tokens:
        return settings
    drafts = Speculation.keeping(item.config.draft_tokens, fleet.request.accepted_tokens)
    return replace(settings, speculation=drafts)


def _fleet(fleet: SimulatedFleet, solution: MixSolution) -> Fleet:
    """Return the pools of the planned counts, with the plan's split of request sizes."""
    used = [i for i in range(len(fleet.items)) if solution.count[i] > 0]
    pools = [
        Pool(name=fleet.items[i].name, engine=_engine(fleet, i), count=int(solution.count[i])) for i in used
    ]
    entry = [i for i in used if fleet.items[i].role != "decode"]
    if len(entry) < 2:
        return Fleet(pools=tuple(pools), router="prefix")
    buckets = fleet.buckets
    shares = []
    for b in range(len(buckets.names)):
        row = [float(solution.share[i, b]) if i in entry else 0.0 for i in used]
        limit = (_limit(buckets.prompt_up_to[b]), _limit(buckets.output_up_to[b]))
        shares.append((*limit, tuple(row)))
    return Fleet(pools=tuple(pools), router="size", shares=tuple(shares))


def _engine(fleet: SimulatedFleet, i: int) -> EngineSpec:
    """Return the engine of an item, the same object each time."""
    if i not in fleet.engines:
        item = fleet.items[i]
        engine = catalogue_engine(
            fleet.model,
            item.config,
            fleet.engine,
            device_machine(item.offer.device, item.offer.levels),
            settings=_settings(fleet, item),
            role=_ROLES[item.role],
            usd_per_hour=item.offer.usd_per_hour,
        )
        if item.cap is not None:
            cap = item.cap
            engine = capped_engine(
                engine, cap_w=cap.cap_w, prefill_frac=cap.prefill_frac, decode_frac=cap.decode_frac
            )
        fleet.engines[i] = engine
    return fleet.engines[i]


def _limit(value: float) -> int:
    return 1 << 40 if np.isinf(value) else int(value)

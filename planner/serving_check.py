"""Replay a workload on a planned fleet: do the latency targets hold when requests really queue?"""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.graph import ModelGraph
from costmodels.job import Slo
from costmodels.serving_engine import EngineStack
from costmodels.serving_machine import device_machine
from costmodels.traces import Trace
from planner.serving_items import Item
from planner.serving_types import SimulatedCheck
from planner.serving_workload import Buckets, Workload
from planner.simulate.arrivals import make_trace
from planner.simulate.core import simulate
from planner.simulate.engine_spec import catalogue_engine
from planner.simulate.fleet import Fleet, Pool
from planner.simulate.outcome import Measurement, latencies
from planner.simulate.settings import Role
from solvers.gpu_mix import MixSolution

__all__ = ["SimulatedFleet", "simulated_check"]

_MAX_REQUESTS = 4000
_WARM_UP_FRAC = 0.1
_ROLES = {"both": Role.BOTH, "prefill": Role.PREFILL, "decode": Role.DECODE}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedFleet:
    """What the instances of a plan are made of."""

    model: ModelGraph
    engine: EngineStack
    items: tuple[Item, ...]
    buckets: Buckets


def simulated_check(
    fleet: SimulatedFleet, solution: MixSolution, workload: Workload, slo: Slo
) -> SimulatedCheck:
    """Return the latencies of a replay of the trace, or of a made trace of the same sizes and arrivals."""
    trace = _trace(workload)
    raw = simulate(_fleet(fleet, solution), trace)
    seen = latencies(raw, Measurement(warm_up_s=_WARM_UP_FRAC * trace.span_s))
    within = np.ones(len(seen.request), dtype=bool)
    holds = True
    for name, target_s in slo.targets.items():
        values = getattr(seen, name)
        within &= np.isnan(values) | (values <= target_s)
        counted = seen.of(name)
        if len(counted) and float(np.percentile(counted, slo.percentile)) > target_s:
            holds = False
    return SimulatedCheck(
        num_requests=len(seen.request),
        attainment_frac=float(within.mean()),
        ttft_s=float(np.percentile(seen.of("ttft_s"), slo.percentile)),
        tpot_s=float(np.percentile(seen.of("tpot_s"), slo.percentile)) if len(seen.of("tpot_s")) else 0.0,
        holds=holds,
    )


def _trace(workload: Workload) -> Trace:
    if workload.trace is None:
        return make_trace(workload.traffic, num_requests=_MAX_REQUESTS, seed=0)
    trace = workload.trace
    return trace if len(trace) <= _MAX_REQUESTS else _busiest(trace, _MAX_REQUESTS)


def _busiest(trace: Trace, num_requests: int) -> Trace:
    """Return the run of consecutive requests that arrives fastest: what the fleet must survive."""
    spans = trace.arrival_s[num_requests - 1 :] - trace.arrival_s[: len(trace) - num_requests + 1]
    first = int(np.argmin(spans))
    rows = np.arange(first, first + num_requests)
    chosen = trace.take(rows)
    return replace(chosen, arrival_s=chosen.arrival_s - chosen.arrival_s[0])


def _fleet(fleet: SimulatedFleet, solution: MixSolution) -> Fleet:
    """Return the pools of the planned counts, with the plan's split of request sizes."""
    used = [i for i in range(len(fleet.items)) if solution.count[i] > 0]
    pools = []
    for i in used:
        item = fleet.items[i]
        machine = device_machine(item.offer.device, item.offer.levels)
        engine = catalogue_engine(
            fleet.model,
            item.config,
            fleet.engine,
            machine,
            role=_ROLES[item.role],
            usd_per_hour=item.offer.usd_per_hour,
        )
        pools.append(Pool(name=item.name, engine=engine, count=int(solution.count[i])))
    entry = [i for i in used if fleet.items[i].role != "decode"]
    if len(entry) < 2:
        return Fleet(pools=tuple(pools))
    buckets = fleet.buckets
    shares = []
    for b in range(len(buckets.names)):
        row = [float(solution.share[i, b]) if i in entry else 0.0 for i in used]
        limit = (_limit(buckets.prompt_up_to[b]), _limit(buckets.output_up_to[b]))
        shares.append((*limit, tuple(row)))
    return Fleet(pools=tuple(pools), router="size", shares=tuple(shares))


def _limit(value: float) -> int:
    return 1 << 40 if np.isinf(value) else int(value)

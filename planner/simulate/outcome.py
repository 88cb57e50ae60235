"""What a simulation shows: latencies, targets met and what binds, use of engines, cost and energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from planner.simulate.engine import LOG_FIELDS
from planner.simulate.settings import Role

if TYPE_CHECKING:
    from costmodels.job import Slo
    from planner.simulate.core import Raw

__all__ = ["Latencies", "Measurement", "latencies", "summary", "timeline"]

Floats = npt.NDArray[np.float64]

_PERCENTILES = (50, 90, 95, 99)
_COLUMN = {name: i for i, name in enumerate(LOG_FIELDS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Which requests count: those that arrive after the warm-up and before the drain."""

    warm_up_s: float = 0.0
    """From the first arrival on; simulated, not counted."""
    drain_s: float = 0.0
    """Before the last arrival; simulated, not counted, since the load falls behind them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Latencies:
    """Columns over the counted requests."""

    request: npt.NDArray[np.intp]
    ttft_s: Floats
    tpot_s: Floats
    """Mean time per output token after the first; NaN where there is only one."""
    itl_s: Floats
    """Longest gap between two tokens of the request; 0 where there is only one token, NaN without logs."""
    e2e_s: Floats

    def of(self, name: str) -> Floats:
        """Return one latency of those requests that have it."""
        values: Floats = getattr(self, name)
        return values[~np.isnan(values)]


def latencies(raw: Raw, measurement: Measurement | None = None) -> Latencies:
    """Return the latencies of the counted requests."""
    rule = measurement or Measurement()
    trace, table = raw.trace, raw.table
    arrival_s = trace.arrival_s
    counted = (arrival_s >= arrival_s[0] + rule.warm_up_s) & (arrival_s <= arrival_s[-1] - rule.drain_s)
    rows = np.flatnonzero(counted)
    admission = np.array([raw.fleet.pools[pool].engine.admission_s for pool in raw.pool_of])
    admission_s = admission[np.array(table.engine)]
    ttft_s = np.array(table.first_s) - arrival_s + admission_s
    e2e_s = np.array(table.finish_s) - arrival_s + admission_s
    later = trace.output_tokens - 1
    tpot_s = np.where(later > 0, (e2e_s - ttft_s) / np.maximum(later, 1), np.nan)
    return Latencies(
        request=rows,
        ttft_s=ttft_s[rows],
        tpot_s=tpot_s[rows],
        itl_s=_longest_gaps(raw)[rows] if raw.logged else np.full(len(rows), np.nan),
        e2e_s=e2e_s[rows],
    )


def summary(raw: Raw, slo: Slo | None = None, measurement: Measurement | None = None) -> dict[str, Any]:
    """Return the figures of a run by name, as they go into a file."""
    seen = latencies(raw, measurement)
    trace = raw.trace
    span_s = max(raw.end_s - float(trace.arrival_s[0]), 1e-9)
    prompt, output = int(trace.prompt_tokens.sum()), int(trace.output_tokens.sum())
    cost_usd = _cost_usd(raw)
    energy_j = _energy_j(raw)
    return {
        "num_requests": len(trace),
        "num_counted": len(seen.request),
        "span_s": span_s,
        "ttft_s": _spread(seen.of("ttft_s")),
        "tpot_s": _spread(seen.of("tpot_s")),
        "itl_s": _token_gaps(raw),
        "e2e_s": _spread(seen.of("e2e_s")),
        "slo": None if slo is None else _slo(seen, slo),
        "slo_attainment_frac": None if slo is None else _slo(seen, slo)["attainment_frac"],
        "requests_per_s": len(trace) / span_s,
        "throughput_tokens_per_s": (prompt + output) / span_s,
        "output_tokens_per_s": output / span_s,
        "cost_usd": cost_usd,
        "cost_usd_per_hour": cost_usd / span_s * 3600.0,
        "cost_usd_per_million_tokens": cost_usd / (prompt + output) * 1e6,
        "energy_j": energy_j,
        "watts": None if energy_j is None else energy_j / span_s,
        "num_preemptions": sum(raw.table.preemptions),
        "num_restarts": sum(raw.table.restarts),
        "prefix_hit_frac": sum(raw.table.hit_tokens) / prompt,
        "kv_transfers": {
            "count": raw.num_transfers,
            "mean_s": raw.transfer_s / raw.num_transfers if raw.num_transfers else 0.0,
        },
        "pools": _pools(raw),
    }


def timeline(raw: Raw, *, num_points: int = 200) -> dict[str, Any]:
    """Return what is running, waiting and cached over time, one mean per interval, for a picture."""
    edges = np.linspace(float(raw.trace.arrival_s[0]), max(raw.end_s, 1e-9), num_points + 1)
    pools = {}
    for index, pool in enumerate(raw.fleet.pools):
        series = {name: np.zeros(num_points) for name in ("running", "waiting", "used_blocks", "busy")}
        on = np.zeros(num_points)
        blocks = 1
        for number, engine in enumerate(raw.engines):
            if raw.pool_of[number] != index:
                continue
            on += sum(
                (_overlap(edges, start, end) for start, end in raw.paid_s[number]), np.zeros(num_points)
            )
            for rank, log in zip(engine.ranks, _logs(raw, number), strict=True):
                blocks = rank.pool.num_blocks
                start, end = log[:, _COLUMN["start_s"]], log[:, _COLUMN["end_s"]]
                series["running"] += _time_mean(edges, start, end, log[:, _COLUMN["num_seqs"]])
                series["waiting"] += _time_mean(edges, start, end, log[:, _COLUMN["waiting"]])
                series["used_blocks"] += _time_mean(edges, start, end, log[:, _COLUMN["used_blocks"]])
                series["busy"] += _time_mean(edges, start, end, np.ones(len(log))) / len(engine.ranks)
        ranks = np.maximum(on, 1e-9) * pool.engine.num_ranks
        pools[pool.name] = {
            "running": series["running"].tolist(),
            "waiting": series["waiting"].tolist(),
            "kv_frac": (series["used_blocks"] / (ranks * blocks)).tolist(),
            "busy_frac": (series["busy"] / np.maximum(on, 1e-9)).tolist(),
            "engines_on": (on / pool.engine.num_lanes).tolist(),
        }
    return {"at_s": ((edges[:-1] + edges[1:]) / 2).tolist(), "pools": pools}


def _spread(values: Floats) -> dict[str, float] | None:
    """Return mean, percentiles and maximum; None without values."""
    if not len(values):
        return None
    points = np.percentile(values, _PERCENTILES).tolist()
    named = {f"p{q}": value for q, value in zip(_PERCENTILES, points, strict=True)}
    return {"mean": float(values.mean()), **named, "max": float(values.max())}


def _slo(seen: Latencies, slo: Slo) -> dict[str, Any]:
    """Return the share of requests within all targets and within each, and the target that binds."""
    within = np.ones(len(seen.request), dtype=bool)
    by_target, at_percentile, use = {}, {}, {}
    for name, target_s in slo.targets.items():
        values: Floats = getattr(seen, name)
        met = np.isnan(values) | (values <= target_s)
        within &= met
        by_target[name] = float(met.mean()) if len(met) else 1.0
        known = seen.of(name)
        at_percentile[name] = float(np.percentile(known, slo.percentile)) if len(known) else 0.0
        use[name] = at_percentile[name] / target_s
    return {
        "targets": slo.targets,
        "percentile": slo.percentile,
        "attainment_frac": float(within.mean()) if len(within) else 1.0,
        "attainment_frac_by_target": by_target,
        "at_percentile": at_percentile,
        "met": all(ratio <= 1.0 for ratio in use.values()),
        "binding": max(use, key=lambda name: use[name]) if use else None,
    }


def _logs(raw: Raw, engine: int) -> list[Floats]:
    return [np.array(log, dtype=np.float64).reshape(-1, len(LOG_FIELDS)) for log in raw.engines[engine].logs]


def _token_gaps(raw: Raw) -> dict[str, float] | None:
    """Return the spread of the gaps between tokens, every gap counted once per sequence that saw it."""
    gaps, weights = [np.zeros(0)], [np.zeros(0)]
    for number in range(len(raw.engines)):
        for log in _logs(raw, number):
            rows = log[log[:, _COLUMN["ticks"]] > 0]
            ticks, seqs = rows[:, _COLUMN["ticks"]], rows[:, _COLUMN["num_seqs"]]
            mean_s = (rows[:, _COLUMN["end_s"]] - rows[:, _COLUMN["start_s"]]) / ticks
            gaps += [rows[:, _COLUMN["longest_gap_s"]], mean_s]
            weights += [seqs, seqs * (ticks - 1)]
    gap_s, weight = np.concatenate(gaps), np.concatenate(weights)
    total = weight.sum()
    if total == 0:
        return None
    order = np.argsort(gap_s)
    rank = np.cumsum(weight[order])
    at = {f"p{q}": float(gap_s[order][np.searchsorted(rank, q / 100 * total)]) for q in _PERCENTILES}
    return {
        "mean": float((gap_s * weight).sum() / total),
        **at,
        "max": float(gap_s[order][weight[order] > 0][-1]),
    }


def _longest_gaps(raw: Raw) -> Floats:
    """Return each request's longest gap: the longest iteration of the ticks in which it was decoding."""
    longest = np.array(raw.table.longest_gap_s)
    for number, engine in enumerate(raw.engines):
        for rank, log in zip(engine.ranks, _logs(raw, number), strict=True):
            stints = np.array(rank.batch.stints, dtype=np.int64).reshape(-1, 3)
            if not len(stints) or not len(log):
                continue
            last_tick = log[:, _COLUMN["last_tick"]]
            low = np.searchsorted(last_tick, stints[:, 1], side="right")
            high = np.searchsorted(last_tick, stints[:, 2], side="left")
            found = _range_max(log[:, _COLUMN["longest_gap_s"]], low, np.minimum(high, len(log) - 1))
            np.maximum.at(longest, stints[:, 0], found)
    return longest


def _range_max(values: Floats, low: npt.NDArray[np.intp], high: npt.NDArray[np.intp]) -> Floats:
    """Return the maximum of `values[low..high]`, ends included, from maxima over powers of two."""
    high = np.maximum(high, low)
    level = np.floor(np.log2(high - low + 1)).astype(np.int64)
    found = np.empty(len(low))
    maxima = values
    for k in range(int(level.max()) + 1):
        if k:
            half = 1 << (k - 1)
            maxima = np.maximum(maxima[:-half], maxima[half:])
        mine = level == k
        found[mine] = np.maximum(maxima[low[mine]], maxima[high[mine] - (1 << k) + 1])
    return found


def _cost_usd(raw: Raw) -> float:
    hours = [sum(end - start for start, end in spans) / 3600.0 for spans in raw.paid_s]
    specs = [raw.fleet.pools[pool].engine for pool in raw.pool_of]
    return sum(h * spec.usd_per_hour / spec.num_lanes for h, spec in zip(hours, specs, strict=True))


def _energy_j(raw: Raw) -> float | None:
    """Return the energy of all engines, busy with prompts, with decodes only, or idle; None if unknown."""
    total_j = 0.0
    for number, pool in enumerate(raw.pool_of):
        spec = raw.fleet.pools[pool].engine
        if spec.idle_w is None or spec.prefill_w is None or spec.decode_w is None:
            return None
        on_s = sum(end - start for start, end in raw.paid_s[number])
        logs = _logs(raw, number)
        for log in logs:
            busy_s = log[:, _COLUMN["end_s"]] - log[:, _COLUMN["start_s"]]
            prefill_s = float(busy_s[log[:, _COLUMN["prefill_tokens"]] > 0].sum())
            decode_s = float(busy_s.sum()) - prefill_s
            over_idle_j = (spec.prefill_w - spec.idle_w) * prefill_s + (
                spec.decode_w - spec.idle_w
            ) * decode_s
            total_j += over_idle_j / len(logs) / spec.num_lanes
        total_j += spec.idle_w * on_s / spec.num_lanes
    return total_j


def _pools(raw: Raw) -> list[dict[str, Any]]:
    """Return use, batch, cache and queue of each pool, means over the time its engines were on."""
    rows = []
    routed = np.bincount(np.maximum(raw.table.engine, 0), minlength=len(raw.engines))
    if any(p.engine.role is Role.PREFILL for p in raw.fleet.pools):
        sent = np.array(raw.table.prefill_engine)
        routed = routed + np.bincount(sent[sent >= 0], minlength=len(raw.engines))
    run_s = max(raw.end_s - raw.table.arrival_s[0], 1e-9)
    for index, pool in enumerate(raw.fleet.pools):
        mine = [i for i, p in enumerate(raw.pool_of) if p == index]
        on_s = sum(end - start for i in mine for start, end in raw.paid_s[i])
        totals = np.zeros(4)
        peak_kv, peak_waiting, blocks, ranks = 0.0, 0.0, 1, 1
        for i in mine:
            ranks = len(raw.engines[i].ranks)
            for rank, log in zip(raw.engines[i].ranks, _logs(raw, i), strict=True):
                blocks = rank.pool.num_blocks
                busy_s = log[:, _COLUMN["end_s"]] - log[:, _COLUMN["start_s"]]
                used, waiting = log[:, _COLUMN["used_blocks"]], log[:, _COLUMN["waiting"]]
                totals += [
                    busy_s.sum(),
                    busy_s @ log[:, _COLUMN["num_seqs"]],
                    busy_s @ used,
                    busy_s @ waiting,
                ]
                peak_kv = max(peak_kv, float(used.max(initial=0.0)) / rank.pool.num_blocks)
                peak_waiting = max(peak_waiting, float(waiting.max(initial=0.0)))
        span = max(on_s * ranks, 1e-9)
        rows.append(
            {
                "name": pool.name,
                "engines": len(mine) // pool.engine.num_lanes,
                "mean_engines_on": on_s / pool.engine.num_lanes / run_s,
                "requests": int(routed[mine].sum()),
                "busy_frac": float(totals[0] / span),
                "mean_batch": float(totals[1] / max(totals[0], 1e-9)),
                "mean_kv_frac": float(totals[2] / (span * blocks)),
                "peak_kv_frac": peak_kv,
                "mean_waiting": float(totals[3] / span),
                "peak_waiting": int(peak_waiting),
            }
        )
    return rows


def _overlap(edges: Floats, start: float, end: float) -> Floats:
    """Return the share of each interval that lies between `start` and `end`."""
    inside = np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0.0, None)
    share: Floats = inside / np.diff(edges)
    return share


def _time_mean(edges: Floats, start: Floats, end: Floats, value: Floats) -> Floats:
    """Return the mean over each interval of a value that holds from start to end of disjoint spans."""
    if not len(start):
        return np.zeros(len(edges) - 1)
    points = np.stack([start, end], axis=1).ravel()
    area = np.concatenate(
        ([0.0], np.cumsum(np.stack([value * (end - start), np.zeros(len(start))], 1).ravel()))
    )
    total = np.interp(edges, points, area[:-1])
    return np.diff(total) / np.diff(edges)

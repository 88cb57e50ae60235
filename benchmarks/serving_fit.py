"""Factors of kernel times per engine, fitted to measured closed loops: the arithmetic of the fit.

A measured TPOT or TTFT is a sum over parts of an iteration, each times ``exp`` of a sum of effects: of all
engines, of one engine, of a number format on one generation of devices, of both together. Effects are shrunk
to zero by a prior of known width. How often each part counts comes from the closed loop run with the factors
of the last round (its result is linear in them while the order of events stays), so a round is one robust
least-squares step and one run of all loops; three rounds converge.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from costmodels.graph import ModelGraph
from costmodels.serving.closed_loop import LoopResult, run_closed_loop
from costmodels.serving.config import ServingTable
from costmodels.serving.engine import EngineStack, KernelScales, expert_format, find_engine
from costmodels.serving.iteration import iteration_cost
from costmodels.serving.machine import system_device
from costmodels.serving.operators import IterationWork, ServingMachine
from costmodels.serving.predict import closed_loop
from costmodels.serving.runs import ServingRun

__all__ = ["PARTS", "Effects", "LoopPoint", "fit_effects", "fitted_engine", "point_weights"]

Floats = npt.NDArray[np.float64]

PARTS = ("gemm", "attention", "experts", "vector", "comm")
HOSTS = ("host_s", "host_per_seq_s")
_BASE_HOST = (1e-3, 1e-5)
_BASE_TTFT = (4.0, 0.03)
"""Steps and seconds from the loop's first token to the client's, before any data."""
_TPOT_ERROR, _TTFT_ERROR = 0.12, 0.2 / 0.7
_WIDTHS = {
    ("host", "all"): 0.1, ("host", "engine"): 0.1,
    ("decode", "all"): 0.05, ("decode", "engine"): 0.03, ("decode", "format"): 0.09, ("decode", "both"): 0.06,
    ("prefill", "all"): 0.09, ("prefill", "engine"): 0.05, ("prefill", "format"): 0.24,
    ("prefill", "both"): 0.15,
    ("ttft", "all"): 0.7, ("ttft", "engine"): 0.5, ("ttft", "campaign"): 0.7,
}  # fmt: skip
"""Standard deviation of an effect's logarithm before any data."""


class LoopPoint:
    """One configuration whose raw part times are computed once and scaled many times."""

    def __init__(self, run: ServingRun) -> None:
        ones = KernelScales(**dict.fromkeys(PARTS, 1.0))
        self.run = run
        self.engine = find_engine(run.engine)
        self._raw_engine = replace(
            self.engine, decode=ones, prefill=ones, expert_formats={}, host_s=0.0, host_per_seq_s=0.0,
        )  # fmt: skip
        self._calls: list[tuple[Floats, Floats, Floats]] = []
        self.groups = {
            "all": "all",
            "engine": run.engine,
            "format": expert_format(system_device(run.system), run.decode.experts),
        }
        self.groups["both"] = f"{run.engine},{self.groups['format']}"
        self.groups["campaign"] = f"{run.engine},{run.source},{self.groups['format'].rsplit(',', 1)[0]}"

    def loop(self, decode: Floats, prefill: Floats) -> LoopResult:
        """Return the loop's result under factors of decode parts (hosts last) and prefill parts."""
        calls = iter(range(len(self._calls) + 2))

        def seconds_of(
            model: ModelGraph,
            table: ServingTable,
            _: EngineStack,
            machine: ServingMachine,
            work: IterationWork,
        ) -> Floats:
            at = next(calls)
            if at == len(self._calls):
                cost = iteration_cost(model, table, self._raw_engine, machine, work)
                kernel = np.stack(
                    [
                        cost.gemm_s + cost.head_s, cost.prefill_attention_s + cost.decode_attention_s,
                        cost.experts_s, cost.vector_s, cost.comm_s,
                    ],
                    axis=1,
                )  # fmt: skip
                ones = np.ones(len(kernel))
                hosts = np.stack([_BASE_HOST[0] * ones, _BASE_HOST[1] * work.decode_seqs], axis=1)
                tokens = np.maximum(work.prefill_tokens + work.decode_seqs, 1.0)
                self._calls.append((kernel, hosts, work.prefill_tokens / tokens))
            kernel, hosts, prompt = self._calls[at]
            return np.asarray(
                (kernel * _between(decode, prefill, prompt)).sum(axis=1) + hosts @ decode[len(PARTS) :]
            )

        loop, times = closed_loop(self.run, self.engine, seconds_of)
        return run_closed_loop(loop, times)

    def raw(self, batch: float) -> tuple[Floats, Floats, Floats, Floats, float]:
        """Return kernel and host parts of a decode and of a mixed iteration at one batch, and its share."""
        kernel, hosts, prompt = self._calls[0]
        half = len(kernel) // 2
        position = np.interp(batch, hosts[:half, 1] / _BASE_HOST[1], np.arange(half))
        low = int(position)
        share, high = position - low, min(low + 1, half - 1)
        joined = np.column_stack([kernel, hosts, prompt])
        found = [part[low] * (1.0 - share) + part[high] * share for part in (joined[:half], joined[half:])]
        return found[0][:5], found[0][5:7], found[1][:5], found[1][5:7], float(found[1][7])


def _between(decode: Floats, prefill: Floats, prompt: Floats) -> Floats:
    """Return factors of kernel parts of iterations with shares `prompt` of prompt tokens."""
    share = np.asarray(prompt)[:, None]
    return np.asarray(decode[None, : len(PARTS)] ** (1.0 - share) * prefill[None, : len(PARTS)] ** share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """Fitted logarithms, by (kind, part, level, group)."""

    values: dict[tuple[str, int, str, str], float]

    def factor(self, kind: str, part: int, groups: dict[str, str]) -> float:
        """Return the product of the effects on one part that hold for the groups."""
        keys = ((kind, part, level, group) for level, group in groups.items())
        return float(np.exp(sum(self.values.get(key, 0.0) for key in keys)))

    def of(self, point: LoopPoint) -> tuple[Floats, Floats]:
        """Return factors of decode parts and hosts, and of prefill parts, of one point."""
        hosts = [self.factor("host", j, point.groups) for j in range(len(HOSTS))]
        decode = [self.factor("decode", j, point.groups) for j in range(len(PARTS))]
        prefill = [self.factor("prefill", j, point.groups) for j in range(len(PARTS))]
        return np.array(decode + hosts), np.array(prefill)


class _Linear:
    """TPOT and TTFT of all points as sums of scaled terms, around one run of all loops."""

    def __init__(self, points: Sequence[LoopPoint], effects: Effects) -> None:
        self.columns = _columns(points)
        index = {c: i for i, c in enumerate(self.columns)}
        terms = 2 * (len(PARTS) + len(HOSTS))
        self.design = np.zeros((len(points), terms, len(self.columns)))
        self.tail = np.zeros((len(points), 2, len(self.columns)))
        self.tpot = np.zeros((len(points), terms))
        self.ttft = np.zeros((len(points), terms))
        for u, point in enumerate(points):
            self._add(u, point, effects, index)

    def _add(
        self, u: int, point: LoopPoint, effects: Effects, index: dict[tuple[str, int, str, str], int]
    ) -> None:
        decode, prefill = effects.of(point)
        seen = point.loop(decode, prefill)
        kernel, hosts, mixed, mixed_hosts, share = point.raw(seen.mean_batch)
        plain = np.concatenate([kernel, hosts])
        added = np.concatenate([mixed, mixed_hosts])
        between = np.concatenate([_between(decode, prefill, np.array([share]))[0], decode[len(PARTS) :]])
        minus = 1.0 if point.engine.chunked else 0.0
        plain_s = float(plain @ decode)
        added_s = max(float(added @ between) - minus * plain_s, 1e-9)
        for target, total, prompt in (
            (self.tpot, seen.tpot_mean_s, seen.tpot_prompt_s),
            (self.ttft, seen.ttft_mean_s, seen.ttft_prompt_s),
        ):
            steps, chunks = (total - prompt) / plain_s, prompt / added_s
            target[u] = np.concatenate([(steps - minus * chunks) * plain, chunks * added])
        half = len(PARTS) + len(HOSTS)
        for level, group in point.groups.items():
            for j in range(len(PARTS)):
                if ("decode", j, level, group) in index:
                    at = index["decode", j, level, group]
                    self.design[u, j, at] = 1.0
                    self.design[u, half + j, at] = 1.0 - share
                if ("prefill", j, level, group) in index:
                    self.design[u, half + j, index["prefill", j, level, group]] = share
            for j in range(len(HOSTS)):
                if ("host", j, level, group) in index:
                    for row in (len(PARTS) + j, half + len(PARTS) + j):
                        self.design[u, row, index["host", j, level, group]] = 1.0
            for j in range(2):
                if ("ttft", j, level, group) in index:
                    self.tail[u, j, index["ttft", j, level, group]] = 1.0

    def values(self, x: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return TPOT, TTFT and their gradients at the effects `x`."""
        factor = np.exp(self.design @ x)
        tail = np.array(_BASE_TTFT) * np.exp(self.tail @ x)
        tpot = np.maximum((self.tpot * factor).sum(axis=1), 1e-6)
        loop = np.maximum((self.ttft * factor).sum(axis=1), 1e-6)
        ttft = loop + tail[:, 0] * tpot + tail[:, 1]
        d_tpot = np.einsum("ut,utn->un", self.tpot * factor, self.design)
        d_ttft = np.einsum("ut,utn->un", self.ttft * factor, self.design) + tail[:, :1] * d_tpot
        late = np.stack([tail[:, 0] * tpot, tail[:, 1]], axis=1)
        return tpot, ttft, d_tpot, d_ttft + np.einsum("ut,utn->un", late, self.tail)


def _columns(points: Sequence[LoopPoint]) -> list[tuple[str, int, str, str]]:
    """Return the effects that the points can tell apart; formats matter to routed experts only."""
    experts = PARTS.index("experts")
    found: dict[tuple[str, int, str, str], None] = {}
    for point in points:
        for kind, level in _WIDTHS:
            parts = {"host": range(len(HOSTS)), "ttft": range(2)}.get(kind, range(len(PARTS)))
            for j in parts:
                if level not in ("format", "both") or j == experts:
                    found[kind, j, level, point.groups[level]] = None
    return list(found)


def fit_effects(
    points: Sequence[LoopPoint],
    rows: Sequence[int],
    *,
    ttft_s: Floats,
    tpot_s: Floats,
    weight: Floats,
    linear: "_Linear | None" = None,
    rounds: int = 3,
) -> tuple[Effects, "_Linear"]:
    """Return the effects that bring the loops of `points` to what `rows` measured.

    Parameters
    ----------
    rows : index into `points` of every measurement.
    weight : of every measurement; many alike should not count as many.
    linear : a linearisation to keep, in place of rounds of loops (for held-out fits).
    """
    effects = Effects(values={})
    for _ in range(1 if linear else rounds):
        frame = linear or _Linear(points, effects)
        x = _solve(frame, np.asarray(rows), np.log(ttft_s), np.log(tpot_s), np.sqrt(weight))
        effects = Effects(values=dict(zip(frame.columns, x.tolist(), strict=True)))
    return effects, frame


def _solve(
    frame: "_Linear", rows: npt.NDArray[np.int64], ttft: Floats, tpot: Floats, weight: Floats
) -> Floats:
    """Return the robust (soft-L1), shrunk least-squares effects by Gauss-Newton steps."""
    width = np.array([_WIDTHS[kind, level] for kind, _, level, _ in frame.columns])
    x = np.zeros(len(frame.columns))
    for _ in range(12):
        p, t, d_p, d_t = frame.values(x)
        error = np.concatenate(
            [weight * (np.log(p)[rows] - tpot) / _TPOT_ERROR, weight * (np.log(t)[rows] - ttft) / _TTFT_ERROR]
        )
        slope = np.vstack(
            [
                (weight / _TPOT_ERROR)[:, None] * (d_p / p[:, None])[rows],
                (weight / _TTFT_ERROR)[:, None] * (d_t / t[:, None])[rows],
            ]
        )
        robust = 1.0 / np.sqrt(1.0 + error**2)
        normal = (slope * robust[:, None]).T @ slope + np.diag(1.0 / width**2)
        step = np.clip(np.linalg.solve(normal, -(slope.T @ (robust * error) + x / width**2)), -0.5, 0.5)
        x = x + step
        if np.abs(step).max() < 1e-3:
            break
    return x


def fitted_engine(effects: Effects, name: str, formats: Sequence[str]) -> EngineStack:
    """Return the engine with the factors of some effects; unseen formats keep the factor of all engines."""
    groups = {"all": "all", "engine": name}
    scales = {
        kind: KernelScales(**{part: effects.factor(kind, j, groups) for j, part in enumerate(PARTS)})
        for kind in ("decode", "prefill")
    }
    hosts = {host: _BASE_HOST[j] * effects.factor("host", j, groups) for j, host in enumerate(HOSTS)}
    at = PARTS.index("experts")
    by_format = {
        key: tuple(
            effects.factor(kind, at, {"format": key, "both": f"{name},{key}"})
            for kind in ("decode", "prefill")
        )
        for key in formats
    }
    return replace(find_engine(name), **scales, **hosts, expert_formats=by_format)


def point_weights(runs: Sequence[ServingRun]) -> Floats:
    """Return weights that let the rows of one configuration count less the more there are."""
    keys = [(r.model.name, r.system, r.engine, r.decode, r.prefill is not None, r.source) for r in runs]
    counts = Counter(keys)
    return np.array([1.0 / max(1.0, counts[k] / 8.0) ** 0.5 for k in keys])

"""Exhaustive search of a training space: memory first, then the fastest rows and the Pareto front."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from time import perf_counter

import numpy as np
import numpy.typing as npt

from costmodels.cost_table import CostTable
from costmodels.strategy import ConfigTable, Recompute, Strategy
from planner.training.space import TrainingSpace
from solvers.pareto import pareto_front

__all__ = ["Fit", "Found", "Nearest", "Tally", "batches", "feasible", "join", "search_space"]

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Evaluate = Callable[[ConfigTable], CostTable]

_BATCH_ROWS = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The strategy that comes nearest to fitting."""

    strategy: Strategy
    fits_probability: float
    peak_memory_bytes: float
    capacity_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search found; both tables are fastest first and hold only what fits."""

    best: ConfigTable
    front: ConfigTable
    nearest: Nearest | None
    num_configs: int
    num_feasible: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Peak memory of every row of a table, and how likely it fits."""

    peak_bytes: Floats
    fits_probability: Floats
    capacity_bytes: float


Memory = Callable[[ConfigTable], Fit]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was counted on the way."""

    num_configs: int = 0
    num_feasible: int = 0
    nearest: Nearest | None = None


@dataclass(slots=True, kw_only=True)
class _Pool:
    """The best rows so far."""

    top: int
    configs: ConfigTable | None = None
    step_s: Floats = field(default_factory=lambda: np.array([]))
    peak_bytes: Floats = field(default_factory=lambda: np.array([]))

    def add(self, configs: ConfigTable, step_s: Floats, peak_bytes: Floats) -> None:
        """Take in new rows, keep those that are among the best or on the front."""
        rows = _keepers(step_s, peak_bytes, self.top)
        pieces = ([self.configs] if self.configs is not None else []) + [configs.take(rows)]
        merged = join(pieces)
        times = np.concatenate([self.step_s, step_s[rows]])
        peaks = np.concatenate([self.peak_bytes, peak_bytes[rows]])
        kept = _keepers(times, peaks, self.top)
        kept = kept[np.lexsort((kept, peaks[kept], times[kept]))]
        self.configs, self.step_s, self.peak_bytes = merged.take(kept), times[kept], peaks[kept]


def join(tables: list[ConfigTable]) -> ConfigTable:
    """Return all rows of `tables`, in order."""
    names = [f.name for f in fields(ConfigTable)]
    return ConfigTable(**{name: np.concatenate([getattr(t, name) for t in tables]) for name in names})


def _fastest(step_s: Floats, peak_bytes: Floats, top: int) -> Index:
    rows = np.arange(len(step_s))
    if len(rows) > top:
        rows = np.flatnonzero(step_s <= np.partition(step_s, top - 1)[top - 1])
    order: Index = rows[np.lexsort((rows, peak_bytes[rows], step_s[rows]))][:top]
    return order


def _keepers(step_s: Floats, peak_bytes: Floats, top: int) -> Index:
    return np.union1d(_fastest(step_s, peak_bytes, top), pareto_front(step_s, peak_bytes))


def _with_recompute(configs: ConfigTable, layers: npt.NDArray[np.int64]) -> ConfigTable:
    full = np.full(len(configs), int(Recompute.FULL))
    return replace(configs, recompute=full, recompute_layers=layers)


def _fewest_layers(
    configs: ConfigTable, num_layers: int, memory: Memory, least: float
) -> tuple[ConfigTable, int]:
    """Return the rows with the fewest recomputed layers that fit, and how many rows were costed.

    Recomputing one layer more never needs more memory and never takes less time, so bisection on the number
    of layers finds, for every row, the fastest number exactly. Rows that fit only with all of their layers
    recomputed (or not at all) are left out: the search holds them already.
    """
    limit = -(-num_layers // configs.pp) - 1
    configs, limit = configs.take(limit > 0), limit[limit > 0]
    if not len(configs):
        return configs, 0
    costed = len(configs)
    can = memory(_with_recompute(configs, limit)).fits_probability >= least
    configs, high = configs.take(can), limit[can]
    low = np.zeros(len(configs), dtype=np.int64)
    while (open_rows := high - low > 1).any():
        middle = np.where(open_rows, (low + high) // 2, high)
        fits = memory(_with_recompute(configs, middle)).fits_probability >= least
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
        costed += int(np.count_nonzero(open_rows))
    return _with_recompute(configs, high), costed


def _nearer(nearest: Nearest | None, configs: ConfigTable, fit: Fit) -> Nearest:
    row = int(np.lexsort((fit.peak_bytes, -fit.fits_probability))[0])
    found = Nearest(
        strategy=configs.strategy(row),
        fits_probability=float(fit.fits_probability[row]),
        peak_memory_bytes=float(fit.peak_bytes[row]),
        capacity_bytes=fit.capacity_bytes,
    )
    if nearest is None:
        return found
    return min(nearest, found, key=lambda n: (-n.fits_probability, n.peak_memory_bytes))


def feasible(space: TrainingSpace, memory: Memory, least: float, tally: Tally) -> Iterator[ConfigTable]:
    """Yield the strategies that fit, the fewest recomputed layers included; memory is all that is costed."""
    free = not {"recompute", "recompute_layers"} & set(space.allow)
    for configs in space.chunks():
        fit = memory(configs)
        fits = fit.fits_probability >= least
        tally.num_configs += len(configs)
        if fits.any():
            tally.num_feasible += int(np.count_nonzero(fits))
            yield configs.take(fits)
        elif not tally.num_feasible:
            tally.nearest = _nearer(tally.nearest, configs, fit)
        if free:
            kept_whole = configs.take(~fits & (configs.recompute == Recompute.NONE))
            partial, costed = _fewest_layers(kept_whole, space.limits.num_layers, memory, least)
            tally.num_configs += costed
            tally.num_feasible += len(partial)
            if len(partial):
                yield partial


def batches(tables: Iterator[ConfigTable]) -> Iterator[ConfigTable]:
    """Yield the same rows in fewer, larger tables: costs are computed once per distinct shape of a table."""
    waiting: list[ConfigTable] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= _BATCH_ROWS:
            yield join(waiting)
            waiting = []
    if waiting:
        yield join(waiting)


def search_space(
    space: TrainingSpace,
    *,
    memory: Memory,
    evaluate: Evaluate,
    top: int,
    min_probability: float,
    score: Callable[[CostTable], Floats] | None = None,
) -> Found:
    """Return the `top` fastest strategies that fit and the front of time against memory.

    Memory comes first: the peak of every strategy of the space is predicted, those below `min_probability` of
    fitting are dropped, and only the rest is timed. Where a strategy misses memory without recomputation, the
    fewest layers to recompute are found as well.
    """
    start = perf_counter()
    pool, tally = _Pool(top=top), Tally()
    for configs in batches(feasible(space, memory, min_probability, tally)):
        costs = evaluate(configs)
        pool.add(configs, costs.step_s if score is None else score(costs), costs.peak_memory_bytes)
    found = pool.configs if pool.configs is not None else ConfigTable.from_strategies([])
    return Found(
        best=found.take(_fastest(pool.step_s, pool.peak_bytes, top)),
        front=found.take(pareto_front(pool.step_s, pool.peak_bytes)),
        nearest=None if len(found) else tally.nearest,
        num_configs=tally.num_configs,
        num_feasible=tally.num_feasible,
        wall_s=perf_counter() - start,
    )

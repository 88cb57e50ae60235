"""Exhaustive search of a training space: memory first, then the fastest rows and the Pareto front."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from time import perf_counter

import numpy as np
import numpy.typing as npt

from costmodels.cost_table import CostTable
from costmodels.strategy import ConfigTable, Recompute, Strategy
from planner.space import TrainingSpace
from solvers.pareto import pareto_front

__all__ = ["Found", "Nearest", "join", "search_space"]

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Evaluate = Callable[[ConfigTable], CostTable]


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


@dataclass(slots=True, kw_only=True)
class _Pool:
    """The best rows so far."""

    top: int
    configs: ConfigTable | None = None
    step_s: Floats = field(default_factory=lambda: np.array([]))
    peak_bytes: Floats = field(default_factory=lambda: np.array([]))

    @property
    def threshold_s(self) -> float:
        """A row slower than this cannot be among the best."""
        return float(self.step_s[self.top - 1]) if len(self.step_s) >= self.top else np.inf

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
    configs: ConfigTable, num_layers: int, evaluate: Evaluate, min_probability: float
) -> tuple[ConfigTable, int]:
    """Return the rows with the fewest recomputed layers that fit, and how many rows were costed.

    Recomputing one layer more never needs more memory and never takes less time, so bisection on the number
    of layers finds, for every row, the fastest number exactly. Rows that fit only with all of their layers
    recomputed (or not at all) are left out: the search holds them already.
    """
    per_rank = -(-num_layers // configs.pp)
    configs = configs.take(per_rank > 1)
    low, high = np.zeros(len(configs), dtype=np.int64), -(-num_layers // configs.pp)
    limit = high.copy()
    costed = 0
    while len(configs) and (high - low > 1).any():
        middle = np.maximum((low + high) // 2, 1)
        fits = evaluate(_with_recompute(configs, middle)).fits_probability >= min_probability
        low, high = np.where(fits, low, middle), np.where(fits, np.minimum(high, middle), high)
        costed += len(configs)
    return _with_recompute(configs, high).take(high < limit), costed


def _nearer(nearest: Nearest | None, configs: ConfigTable, costs: CostTable) -> Nearest:
    rows = np.lexsort((costs.peak_memory_bytes, -costs.fits_probability))
    row = int(rows[0])
    found = Nearest(
        strategy=configs.strategy(row),
        fits_probability=float(costs.fits_probability[row]),
        peak_memory_bytes=float(costs.peak_memory_bytes[row]),
        capacity_bytes=costs.device_memory_bytes,
    )
    if nearest is None:
        return found
    return min(nearest, found, key=lambda n: (-n.fits_probability, n.peak_memory_bytes))


def search_space(space: TrainingSpace, evaluate: Evaluate, *, top: int, min_probability: float) -> Found:
    """Return the `top` fastest strategies that fit and the front of time against memory.

    Every strategy of the space is costed; those below `min_probability` of fitting are dropped before times
    are compared. Where a strategy misses memory without recomputation, the fewest layers to recompute are
    found as well, unless even without recomputation it would be slower than the best so far.
    """
    start = perf_counter()
    pool = _Pool(top=top)
    nearest: Nearest | None = None
    num_configs = num_feasible = 0
    for configs in space.chunks():
        costs = evaluate(configs)
        fits = costs.fits_probability >= min_probability
        num_configs += len(configs)
        num_feasible += int(np.count_nonzero(fits))
        if fits.any():
            kept = costs.take(fits)
            pool.add(configs.take(fits), kept.step_s, kept.peak_memory_bytes)
        elif pool.configs is None:
            nearest = _nearer(nearest, configs, costs)
        if "recompute" in space.allow or "recompute_layers" in space.allow:
            continue
        close = ~fits & (configs.recompute == Recompute.NONE) & (costs.step_s < pool.threshold_s)
        partial, costed = _fewest_layers(
            configs.take(close), space.limits.num_layers, evaluate, min_probability
        )
        num_configs += costed
        if len(partial):
            kept = evaluate(partial)
            num_feasible += len(partial)
            pool.add(partial, kept.step_s, kept.peak_memory_bytes)
    empty = ConfigTable.from_strategies([])
    found = pool.configs or empty
    return Found(
        best=found.take(_fastest(pool.step_s, pool.peak_bytes, top)) if len(found) else empty,
        front=found.take(pareto_front(pool.step_s, pool.peak_bytes)) if len(found) else empty,
        nearest=nearest if not len(found) else None,
        num_configs=num_configs,
        num_feasible=num_feasible,
        wall_s=perf_counter() - start,
    )

r"""How many instances of which kind serve a load at the least cost.

Items are kinds of instances (a device type with an engine configuration, for one model); buckets are
request sizes. One instance of item :math:`i` that serves only bucket :math:`b` sustains :math:`T_{ib}`
requests per second within the latency targets, so a request rate :math:`r_b` sent there needs
:math:`a_{ib} = r_b / T_{ib}` instances. With the number of instances :math:`y_i` and the share
:math:`z_{ib}` of bucket b sent to item i:

.. math::

    \min \sum_i c_i y_i \quad\text{s.t.}\quad \sum_i z_{ib} = 1 \;\forall b, \qquad
    \sum_b a_{ib} z_{ib} + s_i u_i \le y_i - m_i \;\forall i, \qquad
    \sum_i w_{ki} y_i \le W_k \;\forall k

:math:`y_i` are whole, the shares continuous: cutting a bucket costs nothing at the router, and identical
slices of it never become separate unknowns (T. Griggs et al., Mélange, arXiv 2404.14527, cuts buckets
into slices and makes one binary of each). :math:`s_i` spare instances are kept where item i is used
(:math:`u_i` is one then); :math:`m_i \ge y_i / Z`, whole, are the instances in the fullest of Z zones, of
which one may be lost (zero with one zone). Limits k are stock, quotas, budget or power.
"""

import time
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from hardware.errors import InfeasibleError
from solvers.milp import Program, solve_program
from solvers.outcome import Outcome, Status

__all__ = [
    "Limit",
    "MixProblem",
    "MixSolution",
    "best_single",
    "check_mix",
    "mix_program",
    "require_servers",
    "solve_mix",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LOAD_TOLERANCE = 1e-6
_MERGE_DIGITS = 12
_NEAR_FRAC = 0.1
_MANY_SHARES = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limit:
    """``sum_i per_instance[i] * y_i <= total``."""

    name: str
    per_instance: Floats
    """What one instance of each item takes: devices, watts, dollars. shape (items,)"""
    total: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixProblem:
    """Items, buckets and limits as arrays."""

    item_names: tuple[str, ...]
    bucket_names: tuple[str, ...]
    usd_per_hour: Floats
    """Of one instance. shape (items,)"""
    load: Floats
    """Instances of item i that all of bucket b needs; infinity: cannot serve. shape (items, buckets)"""
    min_count: Ints | None = None
    max_count: Ints | None = None
    spare: Ints | None = None
    """Instances that may fail while the rest still carries the load, for items that are used."""
    num_zones: int = 1
    """Zones over which each item's instances are spread evenly; with more than one, any may be lost."""
    limits: tuple[Limit, ...] = ()
    weight: Floats | None = None
    """What is made least, of one instance; None is dollars. shape (items,)"""
    num_slices: int | None = None
    """Cut every bucket into so many equal slices that stay whole (one item each); None splits freely."""

    def __post_init__(self) -> None:
        shape = (len(self.item_names), len(self.bucket_names))
        if self.load.shape != shape or self.usd_per_hour.shape != shape[:1]:
            message = f"load must have shape {shape} and usd_per_hour {shape[:1]}"
            raise ValueError(message)
        if np.isnan(self.load).any() or (self.load < 0).any() or (self.usd_per_hour <= 0).any():
            message = "load must not be negative, usd_per_hour must be positive"
            raise ValueError(message)
        if self.weight is not None and (self.weight.shape != shape[:1] or not (self.weight > 0).all()):
            message = f"weight must have shape {shape[:1]} and be positive"
            raise ValueError(message)

    @property
    def price(self) -> Floats:
        """What is made least, of one instance. shape (items,)"""
        return self.usd_per_hour if self.weight is None else self.weight


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixSolution:
    """Counts and the router's shares."""

    count: Ints
    """shape (items,)"""
    share: Floats
    """Of each bucket, where it goes. shape (items, buckets)"""
    usd_per_hour: float
    best_single_usd_per_hour: float
    """Of the cheapest item that carries all buckets alone; infinity where none can."""
    away: Ints | None = None
    """Instances among the count that may be interrupted and not yet replaced. shape (items,)"""
    bought: Ints | None = None
    """Where there are offers, instances by offer. shape (offers, items)"""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where unknowns stand in the program."""

    items: Ints
    buckets: Ints
    used: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def solve_mix(
    problem: MixProblem, *, solver: str = "highs", time_limit_s: float | None = 60.0, rel_gap: float = 1e-6
) -> Outcome[MixSolution]:
    """Return the cheapest counts with a router split, re-checked against the problem itself.

    Parameters
    ----------
    time_limit_s : stop then with the best mix so far; None is no limit. [s]
    rel_gap : accept a mix this close to the bound.

    Raises
    ------
    InfeasibleError
        if a bucket cannot be served by any item; names it.
    """
    started = time.monotonic()
    require_servers(problem)
    whole = problem.num_slices is not None
    merged, groups = (problem, np.arange(len(problem.bucket_names))) if whole else _merge_buckets(problem)
    program, layout = mix_program(merged)
    known = None if whole else _known_cost(merged, solver, time_limit_s, rel_gap)
    outcome = solve_program(
        program,
        solver=solver,
        time_limit_s=time_limit_s,
        rel_gap=rel_gap,
        sub_mips=known is None,
        known_objective=known,
    )
    wall_s = time.monotonic() - started
    if outcome.solution is None:
        return Outcome(status=outcome.status, bound=outcome.bound, wall_s=wall_s, conflict=outcome.conflict)
    num_items = len(problem.item_names)
    count = np.round(outcome.solution[:num_items]).astype(np.int64)
    share = np.zeros(merged.load.shape)
    shares = outcome.solution[num_items : num_items + len(layout.items)] / (problem.num_slices or 1)
    share[layout.items, layout.buckets] = np.clip(shares, 0.0, 1.0)
    share = share / share.sum(axis=0, keepdims=True)
    solution = MixSolution(
        count=count,
        share=share[:, groups],
        usd_per_hour=float(problem.usd_per_hour @ count),
        best_single_usd_per_hour=best_single(problem),
    )
    problems = check_mix(problem, solution)
    if problems:
        return Outcome(status=Status.NO_ANSWER, bound=outcome.bound, wall_s=wall_s, conflict=tuple(problems))
    objective = float(problem.price @ count)
    bound = None if outcome.bound is None else min(outcome.bound, objective)
    return Outcome(
        status=outcome.status,
        solution=solution,
        objective=objective,
        bound=bound,
        wall_s=time.monotonic() - started,
    )


def _known_cost(problem: MixProblem, solver: str, time_limit_s: float | None, rel_gap: float) -> float | None:
    """Return the cost of a good mix in which buckets go to nearly their cheapest items; None for small ones.

    Such a mix is found at once, and whatever is dearer need not be looked at in the whole problem.
    """
    each = problem.load * problem.price[:, None]
    near = each <= (1.0 + _NEAR_FRAC) * each.min(axis=0)
    if np.isfinite(each).sum() < _MANY_SHARES or near.sum() > np.isfinite(each).sum() / 2:
        return None
    program, _ = mix_program(replace(problem, load=np.where(near, problem.load, np.inf)))
    limit = None if time_limit_s is None else time_limit_s / 4.0
    return solve_program(
        program, solver=solver, time_limit_s=limit, rel_gap=rel_gap, explain=False, sub_mips=False
    ).objective


def check_mix(problem: MixProblem, solution: MixSolution) -> list[str]:
    """Return every condition of the problem that the solution breaks, in words; empty when all hold."""
    total = solution.share.sum(axis=0)
    problems = [
        f"bucket {problem.bucket_names[b]} is served to {total[b]:.6f}"
        for b in np.flatnonzero(np.abs(total - 1.0) > 1e-6)
    ]
    load = np.where(solution.share > 0, problem.load, 0.0)
    need = (load * solution.share).sum(axis=1)
    if problem.spare is not None:
        need = need + np.where(need > _LOAD_TOLERANCE, problem.spare, 0)
    left = solution.count - (-(-solution.count // problem.num_zones) if problem.num_zones > 1 else 0)
    left = left if solution.away is None else left - solution.away
    problems += [
        f"{problem.item_names[i]}: {need[i]:.6f} needed, {left[i]} of {solution.count[i]} planned are left"
        for i in np.flatnonzero(need > left * (1.0 + _LOAD_TOLERANCE) + _LOAD_TOLERANCE)
    ]
    low, high = _bounds(problem)
    problems += [
        f"{problem.item_names[i]}: {solution.count[i]} outside {low[i]:g} to {high[i]:g}"
        for i in np.flatnonzero((solution.count < low) | (solution.count > high))
    ]
    for limit in problem.limits:
        taken = float(limit.per_instance @ solution.count)
        if taken > limit.total + abs(limit.total) * _LOAD_TOLERANCE + 1e-9:
            problems.append(f"{limit.name}: {taken:g} of {limit.total:g}")
    return problems


def require_servers(problem: MixProblem) -> None:
    """Refuse a problem with a bucket that no item serves.

    Raises
    ------
    InfeasibleError
        naming the buckets.
    """
    lost = np.flatnonzero(~np.isfinite(problem.load).any(axis=0))
    if len(lost):
        names = [problem.bucket_names[b] for b in lost]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        message = f"no kind of instance serves bucket {shown} within the latency targets"
        raise InfeasibleError(message, names)


def _bounds(problem: MixProblem) -> tuple[Floats, Floats]:
    num_items = len(problem.item_names)
    low = np.zeros(num_items) if problem.min_count is None else problem.min_count.astype(float)
    high = np.full(num_items, np.inf) if problem.max_count is None else problem.max_count.astype(float)
    return low, high


def _merge_buckets(problem: MixProblem) -> tuple[MixProblem, Ints]:
    """Return the problem with proportional buckets joined, and which joint bucket each belongs to.

    Buckets whose loads are the same up to a factor are served alike by some optimal split.
    """
    finite = np.where(np.isfinite(problem.load), problem.load, -1.0)
    scale = finite.max(axis=0)
    relative = np.round(np.where(finite < 0, -1.0, finite / np.where(scale > 0, scale, 1.0)), _MERGE_DIGITS)
    _, first, groups = np.unique(relative.T, axis=0, return_index=True, return_inverse=True)
    groups = groups.reshape(-1)
    if len(first) == len(problem.bucket_names):
        return problem, np.arange(len(first))
    joint = np.stack([problem.load[:, groups == g].sum(axis=1) for g in range(len(first))], axis=1)
    merged = MixProblem(
        item_names=problem.item_names,
        bucket_names=tuple(problem.bucket_names[i] for i in first),
        usd_per_hour=problem.usd_per_hour,
        load=joint,
        min_count=problem.min_count,
        max_count=problem.max_count,
        spare=problem.spare,
        num_zones=problem.num_zones,
        limits=problem.limits,
        weight=problem.weight,
    )
    return merged, groups


def mix_program(problem: MixProblem) -> tuple[Program, _Layout]:
    """Return the mixed-integer program: counts first, then shares, then uses."""
    num_items, num_buckets = problem.load.shape
    items, buckets = np.nonzero(np.isfinite(problem.load))
    spare = np.zeros(num_items) if problem.spare is None else problem.spare.astype(float)
    used = np.flatnonzero(spare > 0)
    zoned = np.arange(num_items) if problem.num_zones > 1 else np.zeros(0, dtype=np.int64)
    pieces = float(problem.num_slices or 1)
    load = problem.load[items, buckets] / pieces
    num_shares = len(items)
    low, high = _bounds(problem)
    share_columns = num_items + np.arange(num_shares)
    use_columns = num_items + num_shares + np.arange(len(used))
    all_load = np.where(np.isfinite(problem.load), problem.load, 0.0).sum(axis=1)
    ceiling = np.minimum(high, np.ceil(2.0 * (all_load + spare)) + 2.0 + low)
    zone_columns = num_items + num_shares + len(used) + np.arange(len(zoned))
    zone_rows = num_buckets + num_items + len(used) + np.arange(len(zoned))
    limit_rows = num_buckets + num_items + len(used) + len(zoned) + np.arange(len(problem.limits))
    entries = [
        (buckets, share_columns, np.ones(num_shares)),
        (num_buckets + items, share_columns, load),
        (num_buckets + np.arange(num_items), np.arange(num_items), -np.ones(num_items)),
        (num_buckets + used, use_columns, spare[used]),
        (num_buckets + num_items + np.arange(len(used)), used, np.ones(len(used))),
        (num_buckets + num_items + np.arange(len(used)), use_columns, -ceiling[used]),
        (num_buckets + zoned, zone_columns, np.ones(len(zoned))),
        (zone_rows, zoned, np.ones(len(zoned))),
        (zone_rows, zone_columns, np.full(len(zoned), -float(problem.num_zones))),
    ]
    entries += _limit_entries(problem, limit_rows)
    rows, columns, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    order = np.lexsort((columns, rows))
    totals = np.array([limit.total for limit in problem.limits])
    num_more = len(used) + len(zoned)
    program = Program(
        column_names=_column_names(problem, items, buckets, used, zoned),
        cost=np.concatenate([problem.price, np.zeros(num_shares + num_more)]),
        lower=np.concatenate([low, np.zeros(num_shares + num_more)]),
        upper=np.concatenate([high, np.full(num_shares, pieces), np.ones(len(used)), high[zoned]]),
        integer=np.concatenate(
            [np.ones(num_items), np.full(num_shares, problem.num_slices is not None), np.ones(num_more)]
        ).astype(bool),
        row_names=(
            *(f"serve {n}" for n in problem.bucket_names),
            *(f"capacity {n}" for n in problem.item_names),
            *(f"use {problem.item_names[i]}" for i in used),
            *(f"zones {problem.item_names[i]}" for i in zoned),
            *(f"limit {limit.name}" for limit in problem.limits),
        ),
        row_lower=np.concatenate(
            [np.ones(num_buckets), np.full(num_items + num_more + len(totals), -np.inf)]
        ),
        row_upper=np.concatenate([np.full(num_buckets, pieces), np.zeros(num_items + num_more), totals]),
        entry_rows=rows[order],
        entry_columns=columns[order],
        entry_values=values[order],
    )
    return program, _Layout(items=items, buckets=buckets, used=used)


def _limit_entries(problem: MixProblem, limit_rows: Ints) -> list[tuple[Ints, Ints, Floats]]:
    entries = []
    for row, limit in zip(limit_rows.tolist(), problem.limits, strict=True):
        taking = np.flatnonzero(limit.per_instance)
        entries.append((np.full(len(taking), row), taking, limit.per_instance[taking]))
    return entries


def _column_names(
    problem: MixProblem, items: Ints, buckets: Ints, used: Ints, zoned: Ints
) -> tuple[str, ...]:
    return (
        *(f"count {n}" for n in problem.item_names),
        *(
            f"share {problem.bucket_names[b]} on {problem.item_names[i]}"
            for i, b in zip(items, buckets, strict=True)
        ),
        *(f"used {problem.item_names[i]}" for i in used),
        *(f"fullest zone of {problem.item_names[i]}" for i in zoned),
    )


def best_single(problem: MixProblem, buckets: slice = slice(None)) -> float:
    """Return the cost of the cheapest item that carries all (given) buckets alone, spares included.

    Limits are left aside; infinite where no item can.
    """
    need = problem.load[:, buckets].sum(axis=1)
    alone = np.where(np.isfinite(need), np.ceil(need - _LOAD_TOLERANCE), np.inf)
    if problem.spare is not None:
        alone = alone + problem.spare
    if problem.num_zones > 1:
        alone = alone + np.ceil(alone / (problem.num_zones - 1))
    best: float = np.min(alone * problem.usd_per_hour)
    return best

"""The most load that instances within limits carry: all buckets by one factor, then the fewest dollars."""

import time
from dataclasses import replace

import numpy as np

from solvers.gpu_mix import MixProblem, MixSolution, mix_program, require_servers, solve_mix
from solvers.milp import Program, solve_program
from solvers.outcome import Outcome, Status

__all__ = ["RATE_SLACK", "most_instances", "rate_program", "solve_most_load"]

RATE_SLACK = 1e-6
"""Relative: the dollars of the best load are sought at a load this much smaller."""


def solve_most_load(
    problem: MixProblem, *, solver: str = "highs", time_limit_s: float | None = 60.0
) -> tuple[Outcome[MixSolution], float]:
    """Return the cheapest mix that carries the largest multiple of the load, and that multiple.

    Objective and bound of the outcome are multiples of the load; no mix carries more than the bound.

    Raises
    ------
    InfeasibleError
        if a bucket cannot be served by any item; names it.
    ValueError
        if an item's count has no limit, so that any load could be carried.
    """
    started = time.monotonic()
    require_servers(problem)
    most = most_instances(problem)
    if not np.isfinite(most).all():
        names = [n for n, m in zip(problem.item_names, most, strict=True) if np.isinf(m)]
        message = f"the count of {names[0]} has no limit, so any load could be carried"
        raise ValueError(message)
    bounded = replace(problem, max_count=np.floor(most + 1e-9).astype(np.int64))
    outcome = solve_program(rate_program(bounded), solver=solver, time_limit_s=time_limit_s, rel_gap=1e-6)
    if outcome.solution is None or outcome.objective is None:
        return Outcome(status=outcome.status, wall_s=outcome.wall_s, conflict=outcome.conflict), 0.0
    rate = -outcome.objective * (1.0 - RATE_SLACK)
    if rate <= 0.0:
        conflict = tuple(limit.name for limit in problem.limits)
        return Outcome(status=Status.INFEASIBLE, wall_s=outcome.wall_s, conflict=conflict), 0.0
    cheapest = solve_mix(
        replace(problem, load=problem.load * rate, weight=None), solver=solver, time_limit_s=time_limit_s
    )
    bound = None if outcome.bound is None else max(-outcome.bound, rate)
    return (
        Outcome(
            status=outcome.status if cheapest.solution is not None else cheapest.status,
            solution=cheapest.solution,
            objective=rate,
            bound=bound,
            wall_s=time.monotonic() - started,
            conflict=cheapest.conflict,
        ),
        rate,
    )


def most_instances(problem: MixProblem) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the most instances of each item that counts and limits allow by themselves."""
    num_items = len(problem.item_names)
    most = np.full(num_items, np.inf) if problem.max_count is None else problem.max_count.astype(float)
    for limit in problem.limits:
        if (limit.per_instance >= 0).all() and limit.total >= 0.0:
            with np.errstate(divide="ignore", invalid="ignore"):
                alone = np.where(limit.per_instance > 0, limit.total / limit.per_instance, np.inf)
            most = np.minimum(most, alone)
    return most


def rate_program(problem: MixProblem) -> Program:
    """Return the mix program with the common factor of all buckets as one more column, made largest."""
    base, _ = mix_program(problem)
    num_buckets = len(problem.bucket_names)
    rate_column = len(base.column_names)
    num_items = len(problem.item_names)
    rows = np.concatenate([base.entry_rows, np.arange(num_buckets)])
    columns = np.concatenate([base.entry_columns, np.full(num_buckets, rate_column)])
    values = np.concatenate([base.entry_values, -np.ones(num_buckets)])
    order = np.lexsort((columns, rows))
    shares = np.array([name.startswith("share ") for name in base.column_names])
    lower, upper = base.row_lower.copy(), base.row_upper.copy()
    lower[:num_buckets] = upper[:num_buckets] = 0.0
    # Uses switch on up to the item's own limit, whatever the load grows to.
    use = [i for i, name in enumerate(base.column_names) if name.startswith("used ")]
    for column in use:
        entry = np.flatnonzero((columns == column) & (values < 0.0))
        item = problem.item_names.index(base.column_names[column].removeprefix("used "))
        assert problem.max_count is not None
        values[entry] = -max(float(problem.max_count[item]), 1.0)
    assert num_items <= rate_column
    return replace(
        base,
        column_names=(*base.column_names, "rate"),
        cost=np.concatenate([np.zeros(rate_column), [-1.0]]),
        lower=np.concatenate([base.lower, [0.0]]),
        upper=np.concatenate([np.where(shares, np.inf, base.upper), [np.inf]]),
        integer=np.concatenate([base.integer, [False]]),
        row_lower=lower,
        row_upper=upper,
        entry_rows=rows[order],
        entry_columns=columns[order],
        entry_values=values[order],
    )

"""Ranks to devices: exact where small, annealed local search where large, a lower bound for both.

The mathematics is in `solvers.placement_problem`; `solvers.placement_links` makes the scenarios of uncertain
links and decides whether a gain is worth leaving the default order.
"""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solvers.outcome import Outcome, Status
from solvers.placement_bound import lower_bound_s
from solvers.placement_exact import brute_force, held_karp
from solvers.placement_problem import PlacementProblem, Term
from solvers.placement_search import Progress, local_search

__all__ = ["PlacementSolution", "solve_placement"]

Ints = npt.NDArray[np.int64]

_PROVEN = 1e-9
"""An answer this close to its bound is optimal. Relative."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacementSolution:
    """Where every unit sits."""

    site_of: Ints
    """shape (units,)"""
    method: str
    """"brute force", "dynamic programming" or "local search"."""
    num_moves: int = 0


def solve_placement(
    problem: PlacementProblem,
    *,
    starts: list[Ints] | None = None,
    num_moves: int = 200_000,
    time_limit_s: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome[PlacementSolution]:
    """Return the best assignment found and a bound that none is below.

    Parameters
    ----------
    starts : assignments to begin with beside the default order; the answer is never worse than any of them.
    num_moves : budget of the local search; the same budget and seed give the same answer on every machine.
    time_limit_s : stop then, whatever the budget. [s]
    """
    started = time.monotonic()
    default = _default_order(problem)
    if default is None:
        return Outcome(status=Status.INFEASIBLE, conflict=("sites of every class",))
    for method, solver in (("brute force", brute_force), ("dynamic programming", held_karp)):
        exact = solver(problem)
        if exact is not None:
            cost_s = float(problem.cost_s(exact[None])[0])
            return Outcome(
                status=Status.OPTIMAL,
                solution=PlacementSolution(site_of=exact, method=method),
                objective=cost_s,
                bound=cost_s,
                wall_s=time.monotonic() - started,
            )
    bound = lower_bound_s(problem)
    begin = [default, *(starts or []), *_greedy_starts(problem)]
    left_s = None if time_limit_s is None else max(0.0, time_limit_s - (time.monotonic() - started))
    found = local_search(
        problem, begin, num_moves=num_moves, seed=seed, time_limit_s=left_s, progress=progress
    )
    cost_s = float(problem.cost_s(found.assignment[None])[0])
    return Outcome(
        status=Status.OPTIMAL if cost_s <= bound * (1 + _PROVEN) else Status.FEASIBLE,
        solution=PlacementSolution(
            site_of=found.assignment, method="local search", num_moves=found.num_moves
        ),
        objective=cost_s,
        bound=min(bound, cost_s),
        wall_s=time.monotonic() - started,
    )


def _default_order(problem: PlacementProblem) -> Ints | None:
    """Return unit i on site i or, with classes, on the next free site of its class; None if there is none."""
    if problem.unit_class is None or problem.site_class is None:
        return np.arange(problem.num_units)
    free = {int(c): np.flatnonzero(problem.site_class == c).tolist() for c in np.unique(problem.site_class)}
    sites = []
    for value in problem.unit_class.tolist():
        if not free.get(value):
            return None
        sites.append(free[value].pop(0))
    return np.array(sites, dtype=np.int64)


def _greedy_starts(problem: PlacementProblem) -> list[Ints]:
    """Return one assignment per term that lays its units, in its own order, along a chain of near sites."""
    if problem.unit_class is not None:
        return []
    mean = problem.seconds_per_byte.mean(axis=0)
    mutual = mean + mean.T
    np.fill_diagonal(mutual, np.inf)
    site = int(np.argmin(np.sort(mutual, axis=1)[:, : max(1, problem.num_sites // 8)].sum(axis=1)))
    chain = [site]
    free = np.ones(problem.num_sites, dtype=bool)
    free[site] = False
    for _ in range(problem.num_sites - 1):
        site = int(np.argmin(np.where(free, mutual[site], np.inf)))
        chain.append(site)
        free[site] = False
    starts = []
    for term in problem.terms:
        if len(term.head):
            site_of = np.empty(problem.num_units, dtype=np.int64)
            site_of[_named_order(term, problem.num_units)] = chain[: problem.num_units]
            starts.append(site_of)
    return starts


def _named_order(term: Term, num_units: int) -> Ints:
    """Return all units, those of the term first and in the order in which its groups name them."""
    named = np.stack([term.head, term.tail], axis=1).reshape(-1)
    _, position = np.unique(named, return_index=True)
    front = named[np.sort(position)]
    return np.concatenate([front, np.setdiff1d(np.arange(num_units), front)]).astype(np.int64)

"""What would have to be granted for an infeasible fleet: the least that each limit must allow."""

import math
from collections.abc import Sequence
from dataclasses import replace

from hardware.errors import InfeasibleError
from planner.serving.mix import Demand, Fleet, Form, fleet_of, mix_problem
from planner.serving.offers import DeviceOffer
from planner.serving.purchase import budget_wanted
from planner.serving.request import ServeRequest
from solvers.gpu_mix import Limit, MixProblem, solve_mix

__all__ = ["least_limits"]

_TIE_FRAC = 1e-6
"""Weight of dollars beside what is made least, so that no instance is free."""


def least_limits(
    request: ServeRequest,
    demands: tuple[Demand, ...],
    forms: Sequence[tuple[Form, ...]],
    offers: tuple[DeviceOffer, ...],
) -> tuple[str, ...]:
    """Return, for every limit in the way, the least with which the workload is served.

    Within the other limits where that is possible, else without them. Headroom for queueing is not in it, so
    a simulated plan may need somewhat more.

    Parameters
    ----------
    demands : searched as if devices of every kind could be had without end: larger instances may do better.
    offers : the devices as they can be had.
    """
    problems = []
    budgets = []
    for chosen in forms:
        try:
            fleet = _as_offered(fleet_of(demands, chosen), offers)
            problems.append(
                mix_problem(request, fleet, tuple((0.0,) * len(slot.roles) for slot in fleet.slots))
            )
        except InfeasibleError:
            continue
        budgets.append(budget_wanted(request, fleet, problems[-1]))
    wanting = _wanting(problems, alone=True) or _wanting(problems, alone=False)
    given, needed = request.budget_usd_per_hour, min((b for b in budgets if b is not None), default=None)
    if given is None or needed is None or needed <= given:
        return wanting
    return (*wanting, f"budget_usd_per_hour: {given:g} given, {needed:.4g} would do")


def _as_offered(fleet: Fleet, offers: tuple[DeviceOffer, ...]) -> Fleet:
    by_name = {offer.device.name: offer for offer in offers}
    return replace(
        fleet, items=tuple(replace(item, offer=by_name[item.offer.device.name]) for item in fleet.items)
    )


def _wanting(problems: Sequence[MixProblem], *, alone: bool) -> tuple[str, ...]:
    """Return the limits that grant too little, in words.

    Parameters
    ----------
    alone : whether the other limits hold; without them otherwise.
    """
    least: dict[str, tuple[float, float]] = {}
    for problem in problems:
        for limit in problem.limits:
            others = tuple(other for other in problem.limits if other is not limit) if alone else ()
            needed = None if limit.total < 0 else _least(replace(problem, limits=others), limit)
            if needed is not None and needed < least.get(limit.name, (math.inf, 0.0))[0]:
                least[limit.name] = needed, limit.total
    condition = "" if alone else " without the other limits"
    return tuple(
        f"{name}: {total:g} given, {needed:.4g} would do{condition}"
        for name, (needed, total) in least.items()
        if needed > total
    )


def _least(problem: MixProblem, limit: Limit) -> float | None:
    """Return the least of one limit's quantity that serves the problem; None where nothing does."""
    dollars = problem.usd_per_hour / problem.usd_per_hour.max()
    weight = limit.per_instance + _TIE_FRAC * limit.per_instance.max() * dollars
    try:
        found = solve_mix(replace(problem, weight=weight), time_limit_s=5.0).solution
    except InfeasibleError:
        return None
    return None if found is None else float(limit.per_instance @ found.count)

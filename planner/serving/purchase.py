"""From the offers of devices to the program that buys a fleet on them, hour by hour of the day."""

from dataclasses import dataclass, replace

import numpy as np

from hardware.errors import InfeasibleError
from hardware.price_file import PriceOffer
from planner.serving.mix import Fleet
from planner.serving.offers import DeviceOffer
from planner.serving.request import ServeRequest
from solvers.gpu_mix import MixProblem, MixSolution, check_mix, solve_mix
from solvers.gpu_mix_rate import solve_most_load
from solvers.gpu_offer_problem import LoadLevel, MixOffer, OfferProblem, OfferSolution, check_offers
from solvers.gpu_offers import solve_most_load_on_offers, solve_offers
from solvers.outcome import Outcome

__all__ = ["SolvedMix", "bought_offers", "budget_wanted", "offer_problem", "solve_fleet"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SolvedMix:
    """The best mix of a fleet, at the peak and at the other hours, and what is bought for it."""

    outcome: Outcome[MixSolution]
    """At the peak; objective and bound are those of the whole day."""
    scale: float
    """Served rate over the asked one; other than 1 only with the objective throughput."""
    purchase: OfferSolution | None = None
    offered: OfferProblem | None = None

    @property
    def solution(self) -> MixSolution:
        """The mix at the peak."""
        return self.outcome.unwrap()

    @property
    def usd_per_hour(self) -> float:
        """Mean over the day."""
        return self.solution.usd_per_hour if self.purchase is None else self.purchase.usd_per_hour

    @property
    def levels(self) -> tuple[tuple[LoadLevel, MixSolution], ...]:
        """Share of the peak and mix of every level, the peak first."""
        if self.purchase is None or self.offered is None:
            return ((LoadLevel(rate_frac=1.0, time_frac=1.0), self.solution),)
        return tuple(zip(self.offered.levels, self.purchase.levels, strict=True))

    def broken(self, problem: MixProblem) -> list[str]:
        """Return every condition of the problem (at the asked rate) that the answer breaks, in words."""
        if self.purchase is None or self.offered is None:
            return check_mix(replace(problem, load=problem.load * self.scale), self.solution)
        return check_offers(self.offered, self.purchase)


def bought_offers(fleet: Fleet) -> tuple[PriceOffer, ...]:
    """Return all offers of the devices of a fleet; none where every device has one price all day."""
    return tuple(purchase for offer in _devices(fleet) for purchase in offer.purchases)


def _devices(fleet: Fleet) -> tuple[DeviceOffer, ...]:
    return fleet.slots[0].demand.offers


def offer_problem(request: ServeRequest, fleet: Fleet, problem: MixProblem) -> OfferProblem | None:
    """Return the program of a fleet's purchases; None where every device has one price all day."""
    offers = bought_offers(fleet)
    if not offers:
        return None
    hours = sorted(request.load_levels, key=lambda level: -level.rate_frac)
    levels = tuple(LoadLevel(rate_frac=h.rate_frac, time_frac=h.time_frac) for h in hours)
    return OfferProblem(
        mix=problem,
        offers=tuple(_mix_offer(offer, fleet) for offer in offers),
        levels=levels or (LoadLevel(rate_frac=1.0, time_frac=1.0),),
        max_interruptible_frac=request.max_spot_frac,
        beyond_frac=1.0 - request.percentile / 100.0,
        budget_usd_per_hour=request.budget_usd_per_hour,
    )


def _mix_offer(offer: PriceOffer, fleet: Fleet) -> MixOffer:
    units = [item.config.num_devices if item.offer.device.name == offer.device else 0 for item in fleet.items]
    return MixOffer(
        name=offer.name,
        usd_per_hour=offer.usd_per_hour,
        units=np.array(units, dtype=float),
        min_total=float(offer.min_devices),
        max_total=np.inf if offer.max_devices is None else float(offer.max_devices),
        committed=offer.kind == "reserved",
        interruptible=offer.kind == "spot",
        away_frac=offer.away_frac,
    )


def solve_fleet(request: ServeRequest, fleet: Fleet, problem: MixProblem) -> SolvedMix:
    """Return the best mix for the request's objective.

    Raises
    ------
    InfeasibleError, SolverError
        if there is none; names the limits in conflict.
    """
    offered = offer_problem(request, fleet, problem)
    if offered is None:
        if request.objective == "throughput":
            outcome, scale = solve_most_load(problem)
            return SolvedMix(outcome=outcome, scale=scale)
        return SolvedMix(outcome=solve_mix(problem), scale=1.0)
    scale = 1.0
    if request.objective == "throughput":
        found, scale = solve_most_load_on_offers(offered)
    else:
        found = solve_offers(offered)
    purchase = found.unwrap()
    return SolvedMix(
        outcome=Outcome(
            status=found.status,
            solution=purchase.levels[0],
            objective=found.objective,
            bound=found.bound,
            wall_s=found.wall_s,
        ),
        scale=scale,
        purchase=purchase,
        offered=replace(offered, mix=replace(problem, load=problem.load * scale)),
    )


def budget_wanted(request: ServeRequest, fleet: Fleet, problem: MixProblem) -> float | None:
    """Return the least budget with which the offers serve the load; None where none does."""
    offered = offer_problem(request, fleet, problem)
    if offered is None or request.budget_usd_per_hour is None:
        return None
    try:
        found = solve_offers(replace(offered, budget_usd_per_hour=None), time_limit_s=5.0).solution
    except InfeasibleError:
        return None
    return None if found is None else found.usd_per_hour

"""What a solved fleet buys, as entries and notes of its plan."""

import numpy as np

from planner.serving.day import HOURS_PER_DAY
from planner.serving.mix import Fleet, Slot
from planner.serving.plan import MixEntry, PlanLevel, Purchase, Route, ServingPlan, SimulatedCheck
from planner.serving.purchase import SolvedMix, bought_offers
from planner.serving.request import ServeRequest
from solvers.gpu_mix import MixSolution

__all__ = [
    "bought_by_offer",
    "instance_usd_per_hour",
    "levels_of",
    "purchase_notes",
    "purchases_of",
    "used_usd_per_hour",
]


def purchases_of(fleet: Fleet, mix: SolvedMix) -> tuple[Purchase, ...]:
    """Return what is bought on every offer in use; empty where every device has one price all day."""
    if mix.purchase is None or mix.offered is None:
        return ()
    pairs = zip(bought_offers(fleet), mix.offered.offers, mix.purchase.total.tolist(), strict=True)
    found = []
    for number, (offer, sold, total) in enumerate(pairs):
        if not total:
            continue
        used = [_units(mix, solution.bought, number) for _, solution in mix.levels]
        paid = [total if sold.committed else units for units in used]
        mean = sum(level.time_frac * p for (level, _), p in zip(mix.levels, paid, strict=True))
        found.append(
            Purchase(
                offer=offer.name,
                device=offer.device,
                kind=offer.kind,
                num_devices=round(total),
                usd_per_hour=offer.usd_per_hour,
                mean_usd_per_hour=mean * offer.usd_per_hour,
                provider=offer.provider,
                region=offer.region,
                commitment_months=offer.commitment_months,
                upfront_usd=offer.upfront_frac * offer.term_usd * total,
                committed_usd=offer.term_usd * total,
                away_frac=offer.away_frac,
            )
        )
    return tuple(found)


def levels_of(
    fleet: Fleet,
    mix: SolvedMix,
    entries: tuple[tuple[MixEntry, ...], ...],
    routing: tuple[tuple[Route, ...], ...],
    checks: tuple[tuple[SimulatedCheck | None, ...], ...],
) -> tuple[PlanLevel, ...]:
    """Return the fleet at every level of the day; empty where every device has one price all day."""
    if mix.offered is None:
        return ()
    offers = bought_offers(fleet)
    return tuple(
        PlanLevel(
            rate_frac=level.rate_frac,
            hours_per_day=level.time_frac * HOURS_PER_DAY,
            mix=instances,
            routing=routes,
            offers={
                offer.name: round(units)
                for number, offer in enumerate(offers)
                if (units := _units(mix, solution.bought, number))
            },
            usd_per_hour=solution.usd_per_hour,
            num_away=0 if solution.away is None else int(solution.away.sum()),
            simulated=tuple(check for check in seen if check is not None),
        )
        for (level, solution), instances, routes, seen in zip(
            mix.levels, entries, routing, checks, strict=True
        )
    )


def _units(mix: SolvedMix, bought: np.ndarray | None, number: int) -> float:
    """Return the devices that are used on one offer at one level."""
    assert bought is not None
    assert mix.offered is not None
    return float(mix.offered.offers[number].units @ bought[number])


def bought_by_offer(mix: SolvedMix, solution: MixSolution, item: int) -> dict[str, int]:
    """Return how many instances of one kind are bought on each offer; empty where there is one price."""
    if solution.bought is None or mix.offered is None:
        return {}
    pairs = zip(mix.offered.offers, solution.bought[:, item].tolist(), strict=True)
    return {offer.name: count for offer, count in pairs if count}


def instance_usd_per_hour(fleet: Fleet, mix: SolvedMix, solution: MixSolution, item: int) -> float:
    """Return the price of one instance at a level, mean over the offers on which its kind is bought."""
    if solution.bought is None or mix.offered is None:
        return fleet.items[item].usd_per_hour
    price = np.array([offer.usd_per_hour for offer in mix.offered.offers])
    bought = solution.bought[:, item]
    return float(price @ bought) * fleet.items[item].config.num_devices / float(bought.sum())


def used_usd_per_hour(fleet: Fleet, mix: SolvedMix, slot: Slot) -> float:
    """Return what the instances of one model cost while they run, mean over the day."""
    mine = range(slot.items.start, slot.items.stop)
    if mix.offered is None:
        return float(sum(fleet.items[i].usd_per_hour * mix.solution.count[i] for i in mine))
    price = np.array([offer.usd_per_hour for offer in mix.offered.offers])
    each = np.array([fleet.items[i].config.num_devices for i in mine], dtype=float)
    return float(
        sum(
            level.time_frac * (price @ solution.bought[:, slot.items] @ each)
            for level, solution in mix.levels
            if solution.bought is not None
        )
    )


def purchase_notes(request: ServeRequest, plan: ServingPlan) -> tuple[str, ...]:
    """Return what a plan's purchases assume, in words."""
    notes = []
    for bought in plan.purchases:
        if bought.kind == "reserved":
            notes.append(
                f"{bought.offer}: {bought.num_devices} devices are committed for "
                f"{bought.commitment_months} months, {bought.committed_usd:,.0f} USD in all, used or not, "
                f"{bought.upfront_usd:,.0f} USD of it in advance"
            )
        elif bought.kind == "spot":
            notes.append(
                f"{bought.offer}: an instance is taken to be away {100 * bought.away_frac:.2g} % of the "
                "time, independently of others; what is away at once for more than "
                f"{100 - request.percentile:g} % of the time carries no load"
            )
    if any(bought.kind == "spot" for bought in plan.purchases):
        notes.append(
            f"spot: at most {100 * request.max_spot_frac:g} % of the instances of each kind (max_spot_frac)"
        )
    if len(plan.levels) > 1:
        notes.append(
            "on-demand and spot devices are paid for the hours in which they are used, reserved ones always"
        )
    return tuple(notes)

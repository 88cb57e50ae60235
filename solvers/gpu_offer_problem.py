"""What is bought for a mix: offers, levels of load, and the check of a solution against them."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from solvers.gpu_mix import MixProblem, MixSolution, check_mix

__all__ = [
    "LoadLevel",
    "MixOffer",
    "OfferProblem",
    "OfferSolution",
    "away_at_once",
    "away_in",
    "away_steps",
    "check_offers",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_STEPS = 64
"""Interruptions at once that are counted out; more instances of a kind than that covers are not bought."""
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixOffer:
    """One way to buy instances."""

    name: str
    usd_per_hour: float
    """Of one unit."""
    units: Floats
    """What one instance of each item takes; 0 where the offer does not sell it. shape (items,)"""
    min_total: float = 0.0
    max_total: float = np.inf
    committed: bool = False
    """Paid at all times, used or not."""
    interruptible: bool = False
    away_frac: float = 0.0
    """Share of time that an instance is interrupted and not yet replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLevel:
    """Hours of equal load."""

    rate_frac: float
    """Of the load of the problem."""
    time_frac: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OfferProblem:
    """A mix whose instances are bought on offers; its own prices are not used, its limits hold at all levels.

    With `mix.weight`, that is made least in place of dollars.
    """

    mix: MixProblem
    offers: tuple[MixOffer, ...]
    levels: tuple[LoadLevel, ...] = (LoadLevel(rate_frac=1.0, time_frac=1.0),)
    max_interruptible_frac: float = 1.0
    """Of the instances of one item."""
    beyond_frac: float = 0.01
    """Share of time in which more interruptible instances may be away than are counted out."""
    budget_usd_per_hour: float | None = None

    def __post_init__(self) -> None:
        if not self.offers or not self.levels:
            message = "at least one offer and one level are needed"
            raise ValueError(message)
        if not all(o.usd_per_hour > 0 and o.min_total <= o.max_total for o in self.offers):
            message = "offers need a positive price and a minimum within their stock"
            raise ValueError(message)
        if not np.isclose(sum(level.time_frac for level in self.levels), 1.0):
            message = "the time of all levels together must be 1"
            raise ValueError(message)

    def at(self, level: LoadLevel) -> MixProblem:
        """Return the mix problem of one level."""
        return replace(self.mix, load=self.mix.load * level.rate_frac)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OfferSolution:
    """The mix of every level and what is bought for it."""

    levels: tuple[MixSolution, ...]
    """Each with what it costs per hour, committed units included."""
    total: Floats
    """Units of each offer that are paid: the committed ones, or those used at the busiest. shape (offers,)"""
    usd_per_hour: float
    """Mean over all levels."""


def away_at_once(num_instances: Ints, away_frac: float, beyond_frac: float) -> Ints:
    """Return how many of `num_instances` are away at once, exceeded for the share `beyond_frac` of time.

    Instances go and come independently of each other.

    Examples
    --------
    >>> away_at_once(np.array([0, 1, 10, 100]), 0.01, 0.01).tolist()
    [0, 0, 1, 4]
    """
    steps = away_steps(away_frac, beyond_frac, int(np.max(num_instances, initial=0)))
    found: Ints = np.searchsorted(steps, num_instances, side="right").astype(np.int64)
    return found


def away_steps(away_frac: float, beyond_frac: float, most: int) -> Ints:
    """Return the counts of instances, up to `most`, from which one more is away at once."""
    if away_frac <= 0.0:
        return np.zeros(0, dtype=np.int64)
    chance = np.zeros(MAX_STEPS + 2)  # of exactly so many away; the last is all above
    chance[0] = 1.0
    steps: list[int] = []
    for n in range(1, most + 1):
        above = chance[-1] + away_frac * chance[-2]
        chance[1:] = (1.0 - away_frac) * chance[1:] + away_frac * chance[:-1]
        chance[0] *= 1.0 - away_frac
        chance[-1] = above
        while len(steps) <= MAX_STEPS and chance[len(steps) + 1 :].sum() > beyond_frac:
            steps.append(n)
        if len(steps) > MAX_STEPS:
            break
    return np.array(steps, dtype=np.int64)


def check_offers(problem: OfferProblem, solution: OfferSolution) -> list[str]:
    """Return every condition that the solution breaks, in words; empty when all hold."""
    broken: list[str] = []
    used = np.zeros((len(problem.levels), len(problem.offers)))
    for number, (level, mix) in enumerate(zip(problem.levels, solution.levels, strict=True)):
        assert mix.bought is not None
        assert mix.away is not None
        at = f"at {level.rate_frac:g} of the load: "
        broken += [f"{at}{words}" for words in check_mix(problem.at(level), mix)]
        if (mix.bought.sum(axis=0) != mix.count).any():
            broken.append(f"{at}instances bought differ from those planned")
        spot = np.array([offer.interruptible for offer in problem.offers])
        over = mix.bought[spot].sum(axis=0) > problem.max_interruptible_frac * mix.count + _TOLERANCE
        broken += [
            f"{at}too much of {problem.mix.item_names[i]} is interruptible" for i in np.flatnonzero(over)
        ]
        if (mix.away < away_in(problem, mix.bought)).any():
            broken.append(f"{at}more instances may be away than are counted out")
        for o, offer in enumerate(problem.offers):
            used[number, o] = float(offer.units @ mix.bought[o])
            if (mix.bought[o][offer.units <= 0] > 0).any():
                broken.append(f"{at}offer {offer.name} does not sell what is bought")
            low = 0.0 if offer.committed else offer.min_total
            if not low - _TOLERANCE <= used[number, o] <= solution.total[o] + _TOLERANCE:
                broken.append(f"{at}offer {offer.name}: {used[number, o]:g} units are used")
    for offer, total in zip(problem.offers, solution.total.tolist(), strict=True):
        if not offer.min_total - _TOLERANCE <= total <= offer.max_total + _TOLERANCE:
            broken.append(f"offer {offer.name}: {total:g} outside {offer.min_total:g} to {offer.max_total:g}")
    budget = problem.budget_usd_per_hour
    if budget is not None and solution.usd_per_hour > budget * (1.0 + _TOLERANCE):
        broken.append(f"budget_usd_per_hour: {solution.usd_per_hour:g} of {budget:g}")
    return broken


def away_in(problem: OfferProblem, bought: Ints) -> Ints:
    """Return the instances of each item that are counted out. shape (items,)"""
    parts = [
        away_at_once(bought[o], offer.away_frac, problem.beyond_frac)
        for o, offer in enumerate(problem.offers)
        if offer.interruptible
    ]
    total: Ints = np.sum(parts, axis=0) if parts else np.zeros(bought.shape[1], dtype=np.int64)
    return total

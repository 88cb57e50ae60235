"""Which framework rank sits on which device: from the plan's coordinates to the order of a framework.

The plan says what every device is in each parallel group. A framework derives the same coordinates from rank
numbers in its own order, so its rank r must start on the device whose coordinates that order gives r.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from costmodels.strategy import Strategy
from hardware.errors import SpecError
from planner.plan import PlannedRank

__all__ = ["DEFAULT", "ORDERS", "Seat", "seats_in_order"]

DEFAULT = "tp-cp-ep-dp-pp"
"""Order of every framework that cannot be told another."""
ORDERS: dict[str, tuple[str, ...]] = {
    DEFAULT: ("tp", "cp", "dp", "pp"),
    "tp-cp-ep-pp-dp": ("tp", "cp", "pp", "dp"),
}
"""Orders of ranks that Megatron can be told, innermost first; ep is carved from dp and cp in both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One process: its rank in the framework and the device it runs on."""

    rank: int
    host: str
    device: int


def seats_in_order(
    ranks: Sequence[PlannedRank], strategy: Strategy, orders: Sequence[str]
) -> tuple[str, list[Seat]]:
    """Return the order that keeps the ranks of every host together (else the first) and its seats by rank.

    Raises
    ------
    SpecError
        if the plan's coordinates do not name every position exactly once.
    """
    candidates = [(order, _seats(ranks, strategy, ORDERS[order])) for order in orders]
    return next(((o, seats) for o, seats in candidates if _is_grouped(seats)), candidates[0])


def _is_grouped(seats: Sequence[Seat]) -> bool:
    runs = [host for host, _ in groupby(seats, key=lambda seat: seat.host)]
    return len(runs) == len(set(runs))


def _seats(ranks: Sequence[PlannedRank], strategy: Strategy, axes: Sequence[str]) -> list[Seat]:
    sizes = {"tp": strategy.tp, "cp": strategy.cp, "dp": strategy.dp, "pp": strategy.pp}
    seats = [
        Seat(rank=_number(entry.coordinates, axes, sizes), host=entry.host, device=entry.device)
        for entry in ranks
    ]
    seats.sort(key=lambda seat: seat.rank)
    if [seat.rank for seat in seats] != list(range(strategy.world)):
        problem = (
            f"placement.ranks: {len(ranks)} entries do not name every position of "
            f"tp {strategy.tp} x cp {strategy.cp} x dp {strategy.dp} x pp {strategy.pp} exactly once"
        )
        raise SpecError("plan", [problem])
    return seats


def _number(at: Mapping[str, int], axes: Sequence[str], sizes: Mapping[str, int]) -> int:
    rank, stride = 0, 1
    for axis in axes:
        rank += at.get(axis, 0) * stride
        stride *= sizes[axis]
    return rank

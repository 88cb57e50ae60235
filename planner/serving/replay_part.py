"""How much of a fleet and of its traffic is replayed.

A large fleet would need more requests to settle (`planner.simulate.settling`) than are worth replaying, so a
part of it is replayed under the same part of the load. A smaller fleet shares its queues among fewer
instances, and no kind of instance that carries much of the load is less loaded in it than in the whole, so
the part is never better off.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from planner.workload import Workload

__all__ = ["ReplayPart", "part_of_workload", "replay_part"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_FEWEST_REQUESTS = 2500
_MOST_REQUESTS = 8000
"""Of a replay of a fleet that can be replayed in part."""
_MOST_OF_ONE = 20_000
"""Of a replay of a fleet that cannot, or not without other proportions."""
_MUCH_FRAC = 0.1
"""Of the requests of its phase: a kind of instance that carries as much stays as loaded as it is planned."""
_ALIKE_FRAC = 0.9
"""Likeness of a part from which none with more requests is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPart:
    """What is replayed of a fleet and its traffic."""

    count: Ints
    """Instances of each item."""
    load_frac: float
    """Of the planned request rate."""
    num_requests: int


def replay_part(count: Ints, rate_per_s: float, settle_s: float, carried_frac: Floats) -> ReplayPart:
    """Return the part of a fleet whose replay lasts `settle_s` with a bounded number of requests.

    Whole numbers of instances cannot keep every fleet's proportions: the first part from what is needed down
    to half of it that is alike enough, else a larger one, else the one most alike.

    Parameters
    ----------
    count : instances of each item. shape (items,)
    rate_per_s : requests per second of the whole fleet.
    settle_s : time that the replay must last. [s]
    carried_frac : requests that pass through each item, of those of its phase. shape (items,)
    """
    total = rate_per_s * settle_s
    needed = total / _MOST_REQUESTS
    much = (count > 0) & (carried_frac >= _MUCH_FRAC)
    largest = int(count[much if much.any() else count > 0].min())
    if needed <= 1.0 or largest < 2:
        requests = min(math.ceil(total), _MOST_OF_ONE)
        return ReplayPart(count=count, load_frac=1.0, num_requests=max(requests, _FEWEST_REQUESTS))
    lowest = min(math.ceil(needed), largest)
    divisors = [*range(lowest, min(2 * lowest, largest) + 1)]
    divisors += range(lowest - 1, math.ceil(min(total / _MOST_OF_ONE, lowest)) - 1, -1)
    chosen, load_frac, alike_frac = count, 1.0, -1.0
    for divisor in divisors:
        part = _divided(count, divisor, much)
        if (frac := _likeness(count, much, *part)) > alike_frac:
            chosen, load_frac, alike_frac = *part, frac
        if alike_frac >= _ALIKE_FRAC:
            break
    requests = math.ceil(total * load_frac)
    return ReplayPart(
        count=chosen, load_frac=load_frac, num_requests=min(max(requests, _FEWEST_REQUESTS), _MOST_OF_ONE)
    )


def _divided(count: Ints, divisor: int, much: npt.NDArray[np.bool_]) -> tuple[Ints, float]:
    """Return the counts over `divisor`, one at least of each item in use, and the load they must bear."""
    fewer = np.where(count > 0, np.maximum(np.rint(count / divisor).astype(np.int64), 1), 0)
    used = much if much.any() else count > 0
    return fewer, min(float((fewer[used] / count[used]).max()), 1.0)


def _likeness(count: Ints, much: npt.NDArray[np.bool_], fewer: Ints, load_frac: float) -> float:
    """Return the least share of its planned instances per request that an item keeps; 1 is the same fleet."""
    used = much if much.any() else count > 0
    return float((fewer[used] / count[used]).min() / load_frac)


def part_of_workload(workload: Workload, load_frac: float) -> Workload:
    """Return a part of the requests: a lower rate, and of a trace every so many requests."""
    if load_frac == 1.0:
        return workload
    traffic = replace(workload.traffic, rate_per_s=workload.traffic.rate_per_s * load_frac)
    if workload.trace is None:
        return Workload(traffic=traffic)
    kept = np.unique((np.arange(int(len(workload.trace) * load_frac)) / load_frac).astype(np.intp))
    return Workload(traffic=traffic, trace=workload.trace.take(kept))

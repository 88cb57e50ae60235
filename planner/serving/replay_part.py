"""How much of a fleet and of its traffic is replayed.

A large fleet would need more requests to settle (`planner.simulate.settling`) than are worth replaying, so a
part of it is replayed under the same part of the load. A smaller fleet shares its queues among fewer
instances, so the part is never better off.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from planner.workload import Workload

__all__ = ["ReplayPart", "part_of_workload", "replay_part"]

Ints = npt.NDArray[np.int64]

_FEWEST_REQUESTS = 2500
_MOST_REQUESTS = 8000
"""Of a replay of a fleet that can be replayed in part."""
_MOST_OF_ONE = 20_000
"""Of a replay of a fleet that cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPart:
    """What is replayed of a fleet and its traffic."""

    count: Ints
    """Instances of each item."""
    load_frac: float
    """Of the planned request rate."""
    num_requests: int


def replay_part(count: Ints, rate_per_s: float, settle_s: float) -> ReplayPart:
    """Return the part of a fleet whose replay lasts `settle_s` with a bounded number of requests.

    Of the parts between what is needed and half of it, the one whose whole numbers of instances are closest
    to the fleet's proportions; the item which keeps most of its instances stays as loaded as it is planned.

    Parameters
    ----------
    count : instances of each item. shape (items,)
    rate_per_s : requests per second of the whole fleet.
    settle_s : time that the replay must last. [s]
    """
    needed = rate_per_s * settle_s / _MOST_REQUESTS
    largest = int(count.max())
    if needed <= 1.0 or largest < 2:
        requests = min(math.ceil(rate_per_s * settle_s), _MOST_OF_ONE)
        return ReplayPart(count=count, load_frac=1.0, num_requests=max(requests, _FEWEST_REQUESTS))
    lowest = min(math.ceil(needed), largest)
    parts = [_divided(count, d) for d in range(lowest, min(2 * lowest, largest) + 1)]
    chosen, load_frac = max(parts, key=lambda part: _likeness(count, *part))
    requests = math.ceil(rate_per_s * load_frac * settle_s)
    return ReplayPart(
        count=chosen, load_frac=load_frac, num_requests=min(max(requests, _FEWEST_REQUESTS), _MOST_OF_ONE)
    )


def _divided(count: Ints, divisor: int) -> tuple[Ints, float]:
    """Return the counts over `divisor`, one at least of each item in use, and the load they must bear."""
    fewer = np.where(count > 0, np.maximum(count // divisor, 1), 0)
    used = count > 0
    kept = fewer[used] / count[used]
    cut = kept[count[used] >= divisor]
    return fewer, float((cut if len(cut) else kept).max())


def _likeness(count: Ints, fewer: Ints, load_frac: float) -> float:
    """Return the least share of its planned instances per request that an item keeps; 1 is the same fleet."""
    used = count > 0
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

"""Repeat, watch the clock, keep the middle: one measured time from many runs of one call."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, isfinite, nan

import numpy as np

__all__ = ["BATCH_S", "Timing", "measure", "summarise"]

BATCH_S = 0.005
"""A repeat lasts at least this long: many calls if they are short."""
_REPEATS = 7
_MOST_CALLS = 2000
_MOST_S = 3.0
"""Repeats of one shape stop after about so long; what takes longer is repeated a few times only."""
_LEAST_REPEATS = 3
_FAR = 5.0
"""Repeats beyond this many robust standard deviations above the median were interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one call."""

    seconds: float
    best_s: float
    spread_frac: float
    num_repeats: int
    num_rejected: int


def summarise(seconds: list[float]) -> Timing:
    """Return median, shortest and spread of repeats, interrupted ones left out and counted.

    Examples
    --------
    >>> summarise([1.0, 1.0, 1.01, 0.99, 9.0]).num_rejected
    1
    """
    values = np.asarray(seconds, dtype=np.float64)
    if not np.isfinite(values).all():
        return Timing(seconds=nan, best_s=nan, spread_frac=nan, num_repeats=0, num_rejected=len(values))
    median = float(np.median(values))
    deviation = 1.4826 * float(np.median(np.abs(values - median)))
    kept = values[values <= median + _FAR * max(deviation, 0.01 * median)]
    low, high = np.quantile(kept, (0.1, 0.9))
    middle = float(np.median(kept))
    return Timing(
        seconds=middle,
        best_s=float(kept.min()),
        spread_frac=float(high - low) / middle if middle else 0.0,
        num_repeats=len(kept),
        num_rejected=len(values) - len(kept),
    )


def measure(
    call: Callable[[], object],
    timed: Callable[[Callable[[], object], int], float],
    *,
    agree: Callable[[int], int] = lambda count: count,
    barrier: Callable[[], None] = lambda: None,
    repeats: int = _REPEATS,
    batch_s: float = BATCH_S,
) -> Timing:
    """Return the time of `call`, which ran twice before it counts.

    Parameters
    ----------
    timed : returns the seconds that so many calls in a row take, by the device's own events where it has
        them.
    agree : makes all ranks run the same number of calls.
    barrier : brings all ranks to the same moment before each repeat.
    batch_s : a repeat lasts at least so long: as many calls as that takes, whose mean counts.
    """
    call()
    barrier()
    first = timed(call, 1)
    first = max(first, 1e-7) if isfinite(first) else batch_s
    calls = agree(min(max(ceil(batch_s / first), 1), _MOST_CALLS))
    affordable = max(int(_MOST_S / (first * calls)), _LEAST_REPEATS)
    found = []
    for _ in range(agree(min(repeats, affordable))):
        barrier()
        found.append(timed(call, calls) / calls)
    return summarise(found)

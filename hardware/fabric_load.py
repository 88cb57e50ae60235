"""How evenly flows fill the uplinks of a fabric: hashed, planned, or split.

Equal-cost routing by hash throws flows onto uplinks like balls into bins; traffic planning (C4, arXiv
2406.04594) deals them one by one; splitting the few that are left over (Ethereal, arXiv 2407.00550) makes the
load exact.
"""

from math import ceil, gcd

import numpy as np

__all__ = ["hashed_load", "num_subflows", "planned_load", "split_load"]


def planned_load(num_flows: int, num_uplinks: int) -> float:
    """Return flows on the fullest uplink when whole flows are dealt evenly: ceil(n / u)."""
    _check(num_flows, num_uplinks)
    return float(ceil(num_flows / num_uplinks))


def split_load(num_flows: int, num_uplinks: int) -> float:
    """Return flows per uplink when the remainder is split: n / u, as packet spraying would."""
    _check(num_flows, num_uplinks)
    return num_flows / num_uplinks


def num_subflows(num_flows: int, num_uplinks: int) -> int:
    """Return the flows that remain to be sent after minimal splitting.

    floor(n / u) u flows stay whole; each of the remaining r = n mod u becomes u / gcd(r, u) subflows.
    """
    _check(num_flows, num_uplinks)
    rest = num_flows % num_uplinks
    if rest == 0:
        return num_flows
    return num_flows - rest + rest * num_uplinks // gcd(rest, num_uplinks)


def hashed_load(num_flows: int, num_uplinks: int) -> float:
    """Return the expected flows on the fullest uplink when every flow picks one at random.

    E[max] = sum over k >= 1 of P(max >= k), and P(max < k) = n! / u^n [x^n] (sum_{j<k} x^j / j!)^u, computed
    exactly for up to a few hundred flows.
    """
    _check(num_flows, num_uplinks)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num_flows + 1)))])
    expected = 0.0
    for k in range(1, num_flows + 1):
        expected += 1.0 - _below(num_flows, num_uplinks, k, log_factorial)
    return expected


def _below(
    num_flows: int, num_uplinks: int, limit: int, log_factorial: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float:
    """Return the probability that no uplink gets `limit` flows or more, adding uplinks one at a time."""
    placed = np.zeros(num_flows + 1)
    placed[0] = 1.0
    for uplink in range(1, num_uplinks + 1):
        share = 1.0 / (num_uplinks - uplink + 1)
        following = np.zeros(num_flows + 1)
        for before in np.flatnonzero(placed):
            left = num_flows - int(before)
            counts = np.arange(0, min(limit - 1, left) + 1)
            if share == 1.0:
                counts = counts[counts == left]
                chance = np.ones(len(counts))
            else:
                log_chance = (
                    log_factorial[left]
                    - log_factorial[counts]
                    - log_factorial[left - counts]
                    + counts * np.log(share)
                    + (left - counts) * np.log1p(-share)
                )
                chance = np.exp(log_chance)
            np.add.at(following, int(before) + counts, placed[before] * chance)
        placed = following
    return float(placed[num_flows])


def _check(num_flows: int, num_uplinks: int) -> None:
    if num_flows < 0 or num_uplinks < 1:
        message = f"{num_flows} flows over {num_uplinks} uplinks"
        raise ValueError(message)

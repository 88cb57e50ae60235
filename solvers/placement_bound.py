"""What no placement can beat: a lower bound on each term, added up.

Whatever unit sits on a site, its edges leave and enter that site over *some* links, so

* a term of maxima is at least the smallest ceiling under which enough sites keep as many links in and out as
  its units need (sites are peeled off until all that remain do);
* a term of sums is at least the sum over sites of its cheapest links, each link shared by its two ends, and,
  where its edges form a forest as pipelines do, at least a cheapest forest of that many links. Prices on
  sites (Held and Karp, "The traveling-salesman problem and minimum spanning trees", Operations Research 18,
  1970) raise that forest until its sites have the degrees that a path has.

A maximum over groups is at least their mean. The mean over scenarios of the bounds bounds the mean cost.
"""

import numpy as np
import numpy.typing as npt

from solvers.placement_problem import PlacementProblem, Term

__all__ = ["lower_bound_s"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_PRICE_ROUNDS = 60
"""Subgradient steps of the priced forest."""
_PRICED_SITES = 400
"""Above this many sites the forest is not priced (each step costs a spanning tree)."""


def lower_bound_s(problem: PlacementProblem) -> float:
    """Return a value that the mean cost of no assignment is below."""
    return float(np.mean([_scenario_bound(problem, links) for links in problem.seconds_per_byte]))


def _scenario_bound(problem: PlacementProblem, links: Floats) -> float:
    total = 0.0
    for term in problem.terms:
        if not len(term.head):
            continue
        bound = _bottleneck_bound(term, links) if term.within == "max" else _sum_bound(term, links)
        if term.within == "max" and term.across == "sum":
            bound = max(bound, _cheapest_edges(term, links))
        total += term.weight * bound
    return total


def _cheapest_edges(term: Term, links: Floats) -> float:
    """Return a bound on a sum of maxima: every group pays at least its largest edge on the fastest link."""
    fastest = float(np.min(_without_own(links))) if len(links) > 1 else 0.0
    largest = np.maximum.reduceat(term.num_bytes, term.starts)
    return float(largest.sum()) * fastest if not np.any(term.head == term.tail) else 0.0


def _without_own(links: Floats) -> Floats:
    other = links.copy()
    np.fill_diagonal(other, np.inf)
    return other


def _bottleneck_bound(term: Term, links: Floats) -> float:
    """Return the least ceiling under which enough sites keep the links that every unit of the term needs."""
    num_bytes = float(term.num_bytes.min())
    edges = np.unique(np.stack([term.head, term.tail], axis=1), axis=0)
    if np.any(edges[:, 0] == edges[:, 1]):
        return 0.0
    units = np.unique(edges)
    out = np.bincount(edges[:, 0], minlength=units[-1] + 1)[units]
    into = np.bincount(edges[:, 1], minlength=units[-1] + 1)[units]
    other = _without_own(links)
    ceilings = np.unique(other[np.isfinite(other)])
    low, high = 0, len(ceilings) - 1
    while low < high:
        middle = (low + high) // 2
        if _remaining(other <= ceilings[middle], int(out.min()), int(into.min())) >= len(units):
            high = middle
        else:
            low = middle + 1
    return num_bytes * float(ceilings[low]) if len(ceilings) else 0.0


def _remaining(open_links: npt.NDArray[np.bool_], out: int, into: int) -> int:
    """Return how many sites are left once all with too few open links to the others left are peeled off."""
    alive = np.ones(len(open_links), dtype=bool)
    while True:
        sends = open_links[:, alive].sum(axis=1)
        receives = open_links[alive].sum(axis=0)
        keep = alive & (sends >= out) & (receives >= into)
        if keep.sum() == alive.sum():
            return int(alive.sum())
        alive = keep


def _sum_bound(term: Term, links: Floats) -> float:
    """Return a bound on the cost of sums, whichever way the groups are combined."""
    pairs, cost = _pair_costs(term, links)
    if pairs is None:
        return 0.0
    total = _degree_bound(pairs, cost)
    if _is_forest(pairs):
        total = max(total, _forest_bound(pairs, cost))
    return total / (term.num_groups if term.across == "max" else 1)


def _pair_costs(term: Term, links: Floats) -> tuple[Ints | None, Floats]:
    """Return the unordered pairs of units that talk, and a least cost of any such pair on two sites."""
    if np.any(term.head == term.tail):
        return None, links
    low, high = np.minimum(term.head, term.tail), np.maximum(term.head, term.tail)
    pairs, index = np.unique(np.stack([low, high], axis=1), axis=0, return_inverse=True)
    downward = term.head < term.tail
    down = np.bincount(index[downward], weights=term.num_bytes[downward], minlength=len(pairs))
    up = np.bincount(index[~downward], weights=term.num_bytes[~downward], minlength=len(pairs))
    least, most = np.minimum(down, up).min(), np.maximum(down, up).min()
    one_way = np.minimum(most * links + least * links.T, least * links + most * links.T)
    return pairs.astype(np.int64), _without_own(one_way)


def _degree_bound(pairs: Ints, cost: Floats) -> float:
    """Return half of what the sites pay for their cheapest links, with the units' degrees dealt at best."""
    degrees = np.sort(np.bincount(pairs.reshape(-1)))
    degrees = degrees[degrees > 0]
    cheapest = np.sort(
        np.partition(cost, min(int(degrees[-1]), len(cost) - 1), axis=1)[:, : int(degrees[-1])]
    )
    paid = np.zeros((len(cost), int(degrees[-1]) + 1))
    np.cumsum(cheapest, axis=1, out=paid[:, 1:])
    used = paid[:, degrees.min()]
    floor = float(np.sort(used)[: len(degrees)].sum())
    more = np.diff(paid[:, int(degrees.min()) :], axis=1)
    extra = int((degrees - degrees.min()).sum())
    floor += float(np.sort(more.reshape(-1))[:extra].sum()) if extra else 0.0
    return 0.5 * floor


def _is_forest(pairs: Ints) -> bool:
    parent = {int(u): int(u) for u in np.unique(pairs)}

    def root(unit: int) -> int:
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    for a, b in pairs.tolist():
        ra, rb = root(a), root(b)
        if ra == rb:
            return False
        parent[ra] = rb
    return True


def _forest_bound(pairs: Ints, cost: Floats) -> float:
    """Return the cheapest forest of as many links, raised by prices where the units form paths."""
    size = len(cost)
    num_links = len(pairs)
    best = _forest(cost, num_links)[0]
    degrees = np.bincount(pairs.reshape(-1))
    if degrees.max() > 2 or size > _PRICED_SITES or size < 3:
        return best
    price = np.zeros(size)
    step = 0.05 * best / max(num_links, 1)
    for _ in range(_PRICE_ROUNDS):
        value, degree = _forest(cost + price[:, None] + price[None, :], num_links)
        best = max(best, value - 2.0 * float(price.sum()))
        excess = degree - 2
        price = np.maximum(0.0, price + step * excess)
        step *= 0.95
    return best


def _forest(cost: Floats, num_links: int) -> tuple[float, Ints]:
    """Return the weight and degrees of the cheapest forest with that many links, a thinned spanning tree."""
    size = len(cost)
    near = cost[0].copy()
    origin = np.zeros(size, dtype=np.int64)
    outside = np.ones(size, dtype=bool)
    outside[0] = False
    links: list[tuple[float, int, int]] = []
    for _ in range(size - 1):
        site = int(np.argmin(np.where(outside, near, np.inf)))
        links.append((float(near[site]), site, int(origin[site])))
        outside[site] = False
        closer = outside & (cost[site] < near)
        near[closer] = cost[site][closer]
        origin[closer] = site
    links.sort()
    kept = links[:num_links]
    degree = np.bincount([e for link in kept for e in link[1:]], minlength=size)
    return float(sum(link[0] for link in kept)), degree.astype(np.int64)

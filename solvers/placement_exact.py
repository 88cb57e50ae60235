"""Exact placements of small problems: every permutation, or dynamic programming for one pipeline."""

from itertools import permutations
from math import perm

import numpy as np
import numpy.typing as npt

from solvers.placement_problem import PlacementProblem

__all__ = ["brute_force", "held_karp"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MAX_PERMUTED_SITES = 8
_MAX_LOOK_UPS = 100_000_000
"""Link values read at most when every permutation is costed."""
_MAX_PATH_SITES = 16


def brute_force(problem: PlacementProblem) -> Ints | None:
    """Return the best of all assignments, None if there are too many."""
    if problem.num_sites > _MAX_PERMUTED_SITES:
        return None
    edges = sum(len(term.head) for term in problem.terms) * len(problem.seconds_per_byte)
    if perm(problem.num_sites, problem.num_units) * edges > _MAX_LOOK_UPS:
        return None
    rows = np.array(list(permutations(range(problem.num_sites), problem.num_units)), dtype=np.int64)
    if problem.unit_class is not None and problem.site_class is not None:
        rows = rows[(problem.site_class[rows] == problem.unit_class).all(axis=1)]
    if not len(rows):
        return None
    best: Ints = rows[int(np.argmin(problem.cost_s(rows)))]
    return best


def held_karp(problem: PlacementProblem) -> Ints | None:
    """Return the exact assignment of one pipeline over all sites, None if the problem is anything else.

    Dynamic programming over (visited sites, last site): M. Held and R. Karp, "A dynamic programming approach
    to sequencing problems", SIAM J. 10, 1962. At most 16 sites.
    """
    hops = _path_costs(problem)
    if hops is None:
        return None
    size = problem.num_sites
    every = np.arange(1 << size)
    best = np.full((1 << size, size), np.inf)
    best[1 << np.arange(size), np.arange(size)] = 0.0
    origin = np.zeros((1 << size, size), dtype=np.int8)
    counts = np.bitwise_count(every.astype(np.uint32))
    for length in range(2, size + 1):
        sets = every[counts == length]
        for last in range(size):
            inside = sets[(sets >> last) & 1 == 1]
            reach = best[inside ^ (1 << last)] + hops[length - 2][:, last]
            origin[inside, last] = np.argmin(reach, axis=1)
            best[inside, last] = np.min(reach, axis=1)
    visited, last = (1 << size) - 1, int(np.argmin(best[-1]))
    path = [last]
    while len(path) < size:
        before = int(origin[visited, last])
        visited ^= 1 << last
        last = before
        path.append(last)
    return np.array(path[::-1], dtype=np.int64)


def _path_costs(problem: PlacementProblem) -> list[Floats] | None:
    """Return the cost from site to site of every hop along the units in order, None if it is no such path."""
    size = problem.num_sites
    terms = [term for term in problem.terms if len(term.head)]
    if problem.num_units != size or not 2 <= size <= _MAX_PATH_SITES or problem.unit_class is not None:
        return None
    if any(t.within != "sum" or t.num_groups != 1 or np.any(np.abs(t.head - t.tail) != 1) for t in terms):
        return None
    mean = problem.seconds_per_byte.mean(axis=0)
    hops = [np.zeros((size, size)) for _ in range(size - 1)]
    for term in terms:
        for head, tail, num_bytes in zip(
            term.head.tolist(), term.tail.tolist(), term.num_bytes.tolist(), strict=True
        ):
            way = mean if head < tail else mean.T
            hops[min(head, tail)] += term.weight * num_bytes * way
    return hops

"""Local search over assignments: swaps with incremental costs, segments turned and moved, annealed, seeded.

Every step draws a batch of moves, costs all of them at once and takes the best by the annealing rule. A swap
touches only the groups that its two units belong to; a term's maximum over the other groups comes from a
sorted list of its costs. Half of the swaps move a unit of the group that decides a term. Segment moves are
drawn along the units' order in some term's groups, where neighbours talk to each other. The budget is a
number of moves, so an answer does not depend on the machine's speed; a time limit is a safety net.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solvers.placement_problem import PlacementProblem, Term

__all__ = ["SearchResult", "local_search"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Progress = Callable[[int, int, float], None]

_SMOOTHING = 0.02
"""Weight of the mean over a term's groups beside their maximum, so that a flat maximum still has a slope."""
_START_HEAT = 0.1
_END_HEAT = 2e-4
"""Temperatures as fractions of the cost."""
_EDGES_PER_BATCH = 60_000
"""Link look-ups of one batch of moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The best assignment met, and how much was tried."""

    assignment: Ints
    num_moves: int
    ended_by_time: bool


@dataclass(frozen=True, slots=True)
class _TermIndex:
    """Edges of a term by group and groups by unit, padded to equal widths."""

    term: Term
    head: Ints
    tail: Ints
    num_bytes: Floats
    groups_of: Ints
    """Groups that a site's unit belongs to, -1 where there are fewer. shape (sites, width)"""


def local_search(
    problem: PlacementProblem,
    starts: list[Ints],
    *,
    num_moves: int,
    seed: int,
    time_limit_s: float | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Return the best assignment found from the given starts; never worse than the best of them.

    Parameters
    ----------
    num_moves : moves to cost in all.
    progress : called now and then with moves done, moves in all, and the best cost so far [s].
    """
    rng = np.random.default_rng(seed)
    started = time.monotonic()
    padded = [_padded(problem, start) for start in starts]
    costs = problem.cost_s(np.array(starts))
    current = padded[int(np.argmin(costs))].copy()
    search = _Search(problem, current, rng)
    best, best_cost = current.copy(), float(costs.min())
    done, spoken = 0, started
    while done < num_moves:
        heat = _START_HEAT * (_END_HEAT / _START_HEAT) ** (done / num_moves)
        done += search.step(heat)
        if search.cost_s < best_cost:
            best, best_cost = search.site_of.copy(), search.cost_s
        elif search.cost_s > best_cost * (1 + 20 * heat):
            search.restart(best)
        now = time.monotonic()
        if progress is not None and now - spoken > 0.5:
            progress(done, num_moves, best_cost)
            spoken = now
        if time_limit_s is not None and now - started > time_limit_s:
            break
    return SearchResult(
        assignment=best[: problem.num_units].copy(), num_moves=done, ended_by_time=done < num_moves
    )


def _padded(problem: PlacementProblem, assignment: Ints) -> Ints:
    """Return the assignment with idle units on the sites left over, so that every move is a permutation."""
    idle = np.setdiff1d(np.arange(problem.num_sites), assignment)
    return np.concatenate([assignment, idle]).astype(np.int64)


class _Search:
    """The state of one search: the current permutation and the cost of every group."""

    def __init__(self, problem: PlacementProblem, site_of: Ints, rng: np.random.Generator) -> None:
        self.problem = problem
        self.rng = rng
        terms = [term for term in problem.terms if len(term.head)]
        self.index = [_term_index(term, problem.num_sites) for term in terms]
        self.orders = [_order(term, problem.num_sites) for term in terms] or [np.arange(problem.num_sites)]
        look_ups = sum(2 * i.groups_of.shape[1] * i.head.shape[1] for i in self.index) or 1
        fits = _EDGES_PER_BATCH // (look_ups * len(problem.seconds_per_byte))
        self.batch = int(np.clip(min(fits, problem.num_sites // 2), 4, 256))
        edges = sum(len(term.head) for term in terms) or 1
        fits = _EDGES_PER_BATCH // (edges * len(problem.seconds_per_byte))
        self.turns = int(np.clip(min(fits, problem.num_sites // 2), 4, 64))
        self.classes = _classes(problem)
        self.restart(site_of)

    def restart(self, site_of: Ints) -> None:
        """Go on from another assignment."""
        self.site_of = site_of.copy()
        units = self.site_of[None, : self.problem.num_units]
        self.groups = [self.problem.group_cost_s(i.term, units)[:, 0] for i in self.index]
        self.value = self._value(self.groups)
        self.cost_s = float(self.problem.cost_s(units)[0])

    def step(self, heat: float) -> int:
        """Try one batch of moves, perhaps take the best; return how many were tried."""
        if self.rng.random() < 0.5:
            return self._step_swaps(heat)
        return self._step_segments(heat)

    def _accept(self, value: float, heat: float) -> bool:
        rise = value - self.value
        return rise < 0 or bool(self.rng.random() < np.exp(-rise / (heat * max(self.value, 1e-300))))

    def _step_swaps(self, heat: float) -> int:
        first, second = self._draw_swaps()
        values, changes = self._swap_values(first, second)
        pick = int(np.argmin(values))
        if self._accept(float(values[pick]), heat):
            a, b = first[pick], second[pick]
            self.site_of[a], self.site_of[b] = self.site_of[b], self.site_of[a]
            for groups, (touched, costs) in zip(self.groups, changes, strict=True):
                valid = touched[pick] >= 0
                groups[:, touched[pick][valid]] = costs[:, pick][:, valid]
            self._recount()
        return len(first)

    def _step_segments(self, heat: float) -> int:
        candidates = np.array([self._turned() for _ in range(self.turns)])
        if self.classes is not None:
            unit_class, site_class = self.classes
            candidates = candidates[(site_class[candidates] == unit_class).all(axis=1)]
            if not len(candidates):
                return self.turns
        units = candidates[:, : self.problem.num_units]
        groups = [self.problem.group_cost_s(i.term, units) for i in self.index]
        values = np.array([self._value([g[:, row] for g in groups]) for row in range(len(units))])
        pick = int(np.argmin(values))
        if self._accept(float(values[pick]), heat):
            self.site_of = candidates[pick].copy()
            self.groups = [g[:, pick].copy() for g in groups]
            self._recount()
        return len(candidates)

    def _recount(self) -> None:
        self.value = self._value(self.groups)
        self.cost_s = float(
            sum(_across(i.term, g).mean() for i, g in zip(self.index, self.groups, strict=True))
        )

    def _value(self, groups: list[Floats]) -> float:
        """Return the searched value: the cost, and a little of the mean of what only a maximum counts."""
        total = 0.0
        for index, costs in zip(self.index, groups, strict=True):
            total += float(_across(index.term, costs).mean())
            if index.term.across == "max":
                total += _SMOOTHING * index.term.weight * float(costs.mean())
        return total

    def _draw_swaps(self) -> tuple[Ints, Ints]:
        """Return pairs of units to swap, half of them with a unit of a deciding group."""
        size = self.problem.num_sites
        first = self.rng.integers(size, size=self.batch)
        second = self.rng.integers(size - 1, size=self.batch)
        for index, costs in zip(self.index, self.groups, strict=True):
            worst = int(np.argmax(costs.mean(axis=0)))
            members = np.unique(np.concatenate([index.head[worst], index.tail[worst]]))
            share = self.batch // (2 * len(self.index))
            spots = self.rng.integers(self.batch, size=share)
            first[spots] = members[self.rng.integers(len(members), size=share)]
        second = second + (second >= first)
        if self.classes is not None:
            unit_class, _ = self.classes
            same = unit_class[first] == unit_class[second]
            if not same.any():
                return first[:1], first[:1]
            first, second = first[same], second[same]
        return first, second

    def _swap_values(self, first: Ints, second: Ints) -> tuple[Floats, list[tuple[Ints, Floats]]]:
        """Return the value after each swap, and per term the groups it touches with their new costs."""
        total = np.zeros(len(first))
        changes: list[tuple[Ints, Floats]] = []
        for index, costs in zip(self.index, self.groups, strict=True):
            touched = np.hstack([index.groups_of[first], index.groups_of[second]])
            touched = _without_repeats(touched)
            new = self._new_costs(index, touched, first, second)
            total += _swapped_value(index.term, costs, touched, new)
            changes.append((touched, new))
        return total, changes

    def _new_costs(self, index: _TermIndex, touched: Ints, first: Ints, second: Ints) -> Floats:
        """Return the cost of the touched groups once the two units changed places. shape (K, B, touched)"""
        group = np.maximum(touched, 0)
        ends = []
        for units in (index.head[group], index.tail[group]):
            a, b = first[:, None, None], second[:, None, None]
            moved = np.where(units == a, b, np.where(units == b, a, units))
            ends.append(self.site_of[moved])
        links = self.problem.seconds_per_byte
        flat = links.reshape(len(links), -1)
        edges = flat[:, ends[0] * self.problem.num_sites + ends[1]] * index.num_bytes[group]
        costs: Floats = edges.max(axis=-1) if index.term.within == "max" else edges.sum(axis=-1)
        return costs

    def _turned(self) -> Ints:
        """Return the assignment with one segment of some order turned, moved, or moved and turned."""
        order = self.orders[int(self.rng.integers(len(self.orders)))]
        row = self.site_of[order]
        low, high = np.sort(self.rng.choice(len(row) + 1, size=2, replace=False))
        kind = int(self.rng.integers(3))
        segment = row[low:high]
        if kind == 0:
            row[low:high] = segment[::-1].copy()
        else:
            rest = np.concatenate([row[:low], row[high:]])
            at = int(self.rng.integers(len(rest) + 1))
            row = np.concatenate([rest[:at], segment[::-1] if kind == 1 else segment, rest[at:]])
        moved = self.site_of.copy()
        moved[order] = row
        return moved


def _classes(problem: PlacementProblem) -> tuple[Ints, Ints] | None:
    """Return the class of every padded unit and of every site; idle units take what is left over."""
    if problem.unit_class is None or problem.site_class is None:
        return None
    left = np.sort(problem.site_class).tolist()
    for value in problem.unit_class.tolist():
        left.remove(value)
    return np.concatenate([problem.unit_class, np.array(left, dtype=np.int64)]), problem.site_class


def _across(term: Term, costs: Floats) -> Floats:
    """Return the weighted term per scenario from its group costs. shape (K,)"""
    reduced: Floats = term.weight * (costs.max(axis=-1) if term.across == "max" else costs.sum(axis=-1))
    return reduced


def _swapped_value(term: Term, costs: Floats, touched: Ints, new: Floats) -> Floats:
    """Return what a term adds to the searched value after each swap. shape (B,)"""
    valid = touched >= 0
    group = np.maximum(touched, 0)
    change = np.where(valid, new - costs[:, group], 0.0).sum(axis=-1)
    sums = costs.sum(axis=-1)[:, None] + change
    if term.across == "sum":
        summed: Floats = term.weight * sums.mean(axis=0)
        return summed
    largest = np.where(valid, new, -np.inf).max(axis=-1)
    width = min(touched.shape[1] + 1, costs.shape[1])
    top = np.argsort(-costs, axis=1)[:, :width]
    ranked = np.take_along_axis(costs, top, axis=1)
    hit = (top[:, None, :, None] == np.where(valid, touched, -1)[None, :, None, :]).any(axis=-1)
    rest = np.where(hit, -np.inf, ranked[:, None, :]).max(axis=-1)
    value = np.maximum(largest, rest) + _SMOOTHING * sums / costs.shape[1]
    result: Floats = term.weight * value.mean(axis=0)
    return result


def _without_repeats(groups: Ints) -> Ints:
    """Return every row with repeated entries set to -1."""
    ordered = np.sort(groups, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    return ordered


def _term_index(term: Term, num_sites: int) -> _TermIndex:
    counts = np.bincount(term.group)
    width = int(counts.max())
    column = np.arange(len(term.group)) - term.starts[term.group]
    head = np.repeat(term.head[term.starts][:, None], width, axis=1)
    tail = np.repeat(term.tail[term.starts][:, None], width, axis=1)
    num_bytes = np.zeros((term.num_groups, width))
    head[term.group, column], tail[term.group, column] = term.head, term.tail
    num_bytes[term.group, column] = term.num_bytes
    pairs = np.unique(
        np.stack([np.concatenate([term.head, term.tail]), np.concatenate([term.group, term.group])], axis=1),
        axis=0,
    )
    per_unit = np.bincount(pairs[:, 0], minlength=num_sites)
    groups_of = np.full((num_sites, max(int(per_unit.max()), 1)), -1, dtype=np.int64)
    begin = np.cumsum(per_unit) - per_unit
    groups_of[pairs[:, 0], np.arange(len(pairs)) - begin[pairs[:, 0]]] = pairs[:, 1]
    return _TermIndex(term, head, tail, num_bytes, groups_of)


def _order(term: Term, num_sites: int) -> Ints:
    """Return all units, those of the term first and in the order in which its groups name them."""
    named = np.stack([term.head, term.tail], axis=1).reshape(-1)
    _, position = np.unique(named, return_index=True)
    front = named[np.sort(position)]
    return np.concatenate([front, np.setdiff1d(np.arange(num_sites), front)]).astype(np.int64)

"""Layers to pipeline stages: the exact best contiguous split over stages that may all differ.

Stage i takes the layers from cut i up to cut i+1. With layer times that depend on the stage (its device, its
tensor degree), a fixed part per stage (embedding, head), a cost per cut (the activations that cross it) and a
memory limit per stage, minimise

    (m - 1) * max_i t_i + sum_i t_i + sum of cuts,        m micro-batches,

the flush of a one-forward-one-backward pipeline. With `cuts_in_stage` a cut also occupies the stage that
sends, so it counts in t_i and hence in the maximum.

For a fixed ceiling on max t_i the least sum is a shortest path over (stage, layers placed). The ceiling takes
values of contiguous sums only; the least sum falls as the ceiling rises, so an interval of ceilings whose
lowest ceiling and lowest sum together are no better than the best split so far holds nothing: halving the
interval until that is so proves the optimum with a few shortest paths.
"""

import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from solvers.outcome import Outcome, Status

__all__ = ["StageSplitProblem", "StageSplitSolution", "solve_stage_split"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ROUNDING = 1e-12
"""Relative slack when comparing sums with a ceiling made of the same sums."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageSplitProblem:
    """Times and bytes of every layer on every stage. S stages, L layers."""

    layer_s: Floats
    """Time of one micro-batch through a layer, forward and backward. shape (S, L)"""
    num_micro_batches: int
    base_s: Floats | None = None
    """Time that a stage spends besides its layers, such as embedding and head. shape (S,)"""
    cut_s: Floats | None = None
    """Time to send what crosses the cut behind stage i when k layers lie before it. shape (S - 1, L + 1)"""
    cuts_in_stage: bool = False
    """Whether sending occupies the stage, or happens beside its compute."""
    layer_bytes: Floats | None = None
    """Peak memory that a layer adds on a stage (states, activations in flight). shape (S, L)"""
    base_bytes: Floats | None = None
    """shape (S,)"""
    limit_bytes: Floats | None = None
    """shape (S,)"""
    min_layers: int = 1
    """Fewest layers of any stage."""

    def __post_init__(self) -> None:
        num_stages, num_layers = self.layer_s.shape
        wanted = {
            "base_s": (num_stages,),
            "cut_s": (num_stages - 1, num_layers + 1),
            "layer_bytes": (num_stages, num_layers),
            "base_bytes": (num_stages,),
            "limit_bytes": (num_stages,),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                message = f"{name} has shape {value.shape}, {shape} is needed"
                raise ValueError(message)
        if self.num_micro_batches < 1 or self.min_layers < 0:
            message = "num_micro_batches must be at least 1 and min_layers not negative"
            raise ValueError(message)
        if (self.layer_bytes is None) != (self.limit_bytes is None):
            message = "layer_bytes and limit_bytes belong together"
            raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSplitSolution:
    """Where to cut, and what each stage then takes."""

    cuts: tuple[int, ...]
    """Layers placed before stage i; begins with 0 and ends with the number of layers."""
    stage_s: tuple[float, ...]
    """Times of the stages, with their cut where it occupies them. [s]"""
    cut_s: tuple[float, ...]
    stage_bytes: tuple[float, ...]

    @property
    def num_layers(self) -> tuple[int, ...]:
        """Layers of each stage."""
        return tuple(b - a for a, b in pairwise(self.cuts))


def solve_stage_split(problem: StageSplitProblem) -> Outcome[StageSplitSolution]:
    """Return a proven optimal split, or INFEASIBLE with the stages whose limits exclude every split."""
    started = time.monotonic()
    times = _stage_times(problem)
    cuts = _separate_cuts(problem)
    lowest = _least_ceiling(times)
    if not np.isfinite(lowest):
        return Outcome(
            status=Status.INFEASIBLE, conflict=_conflict(problem), wall_s=time.monotonic() - started
        )
    candidates = np.unique(times[np.isfinite(times)])
    candidates = candidates[candidates >= lowest * (1 - _ROUNDING)]
    objective, path = _search(problem.num_micro_batches - 1, times, cuts, candidates)
    return Outcome(
        status=Status.OPTIMAL,
        solution=_decode(problem, times, path),
        objective=objective,
        bound=objective,
        wall_s=time.monotonic() - started,
    )


def _stage_times(problem: StageSplitProblem) -> Floats:
    """Return the time of stage i with layers a to b, infinite if not allowed. shape (S, L+1, L+1)"""
    num_stages, num_layers = problem.layer_s.shape
    prefix = np.zeros((num_stages, num_layers + 1))
    np.cumsum(problem.layer_s, axis=1, out=prefix[:, 1:])
    times = prefix[:, None, :] - prefix[:, :, None]
    if problem.base_s is not None:
        times = times + problem.base_s[:, None, None]
    if problem.cut_s is not None and problem.cuts_in_stage:
        times[:-1] += problem.cut_s[:, None, :]
    count = np.arange(num_layers + 1)
    allowed = (count[None, :] - count[:, None] >= problem.min_layers)[None]
    if problem.limit_bytes is not None:
        allowed = allowed & (_stage_bytes(problem) <= problem.limit_bytes[:, None, None])
    result: Floats = np.where(allowed, times, np.inf)
    return result


def _stage_bytes(problem: StageSplitProblem) -> Floats:
    """Return peak memory of stage i with layers a to b. shape (S, L+1, L+1)"""
    assert problem.layer_bytes is not None
    num_stages, num_layers = problem.layer_bytes.shape
    prefix = np.zeros((num_stages, num_layers + 1))
    np.cumsum(problem.layer_bytes, axis=1, out=prefix[:, 1:])
    total: Floats = prefix[:, None, :] - prefix[:, :, None]
    return total if problem.base_bytes is None else total + problem.base_bytes[:, None, None]


def _separate_cuts(problem: StageSplitProblem) -> Floats:
    """Return what a cut adds to the sum beside the stage times. shape (S, L+1)"""
    num_stages, num_layers = problem.layer_s.shape
    cuts = np.zeros((num_stages, num_layers + 1))
    if problem.cut_s is not None and not problem.cuts_in_stage:
        cuts[:-1] = problem.cut_s
    return cuts


def _least_ceiling(times: Floats) -> float:
    """Return the smallest possible largest stage time; infinite if no split is allowed."""
    best = np.full(times.shape[1], np.inf)
    best[0] = -np.inf
    for stage in times:
        best = np.min(np.maximum(best[:, None], stage), axis=0)
    return float(best[-1])


def _least_sum(times: Floats, cuts: Floats, ceiling: float) -> tuple[float, tuple[int, ...]]:
    """Return the least sum of stages and cuts with every stage within the ceiling, and its cuts."""
    num_stages, size, _ = times.shape
    best = np.full(size, np.inf)
    best[0] = 0.0
    origin = np.zeros((num_stages, size), dtype=np.int64)
    limit = ceiling * (1 + _ROUNDING)
    for i, stage in enumerate(times):
        total = best[:, None] + np.where(stage <= limit, stage, np.inf)
        origin[i] = np.argmin(total, axis=0)
        best = total[origin[i], np.arange(size)] + cuts[i]
    path = [size - 1]
    for i in range(num_stages - 1, -1, -1):
        path.append(int(origin[i, path[-1]]))
    return float(best[-1]), tuple(reversed(path))


def _search(weight: int, times: Floats, cuts: Floats, candidates: Floats) -> tuple[float, tuple[int, ...]]:
    """Return the least weight * max + sum over all ceilings, and its cuts."""
    sums: dict[int, float] = {}
    best: float = np.inf
    best_path: tuple[int, ...] = ()

    def visit(index: int) -> None:
        nonlocal best, best_path
        total, path = _least_sum(times, cuts, float(candidates[index]))
        sums[index] = total
        largest = max(float(times[i, a, b]) for i, (a, b) in enumerate(pairwise(path)))
        if weight * largest + total < best:
            best, best_path = weight * largest + total, path

    last = len(candidates) - 1
    visit(0)
    if last > 0:
        visit(last)
    pending = [(0, last)]
    while pending:
        low, high = pending.pop()
        if high - low < 2 or weight * float(candidates[low + 1]) + sums[high] >= best:
            continue
        if sums[low] <= sums[high]:
            continue  # a higher ceiling gains nothing between the two
        middle = (low + high) // 2
        visit(middle)
        pending += [(middle, high), (low, middle)]
    return best, best_path


def _decode(problem: StageSplitProblem, times: Floats, path: tuple[int, ...]) -> StageSplitSolution:
    pairs = list(pairwise(path))
    used = None if problem.layer_bytes is None else _stage_bytes(problem)
    crossing = problem.cut_s
    return StageSplitSolution(
        cuts=path,
        stage_s=tuple(float(times[i, a, b]) for i, (a, b) in enumerate(pairs)),
        cut_s=tuple(
            0.0 if crossing is None else float(crossing[i, b]) for i, (_, b) in enumerate(pairs[:-1])
        ),
        stage_bytes=tuple(0.0 if used is None else float(used[i, a, b]) for i, (a, b) in enumerate(pairs)),
    )


def _conflict(problem: StageSplitProblem) -> tuple[str, ...]:
    """Return the named limits that exclude every split: those that suffice alone, else all of them."""
    num_stages, num_layers = problem.layer_s.shape
    if num_stages * problem.min_layers > num_layers:
        return (f"{num_stages} stages of at least {problem.min_layers} of {num_layers} layers",)
    names = [f"memory of stage {i}" for i in range(num_stages)]
    if problem.limit_bytes is None:
        return ()
    used = _stage_bytes(problem)
    count = np.arange(num_layers + 1)
    enough = count[None, :] - count[:, None] >= problem.min_layers
    alone = []
    for i in range(num_stages):
        limit = problem.limit_bytes.copy()
        limit[i] = np.inf
        allowed = enough[None] & (used <= limit[:, None, None])
        if np.isfinite(_least_ceiling(np.where(allowed, 1.0, np.inf))):
            alone.append(names[i])
    return tuple(alone or names)

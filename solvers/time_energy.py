r"""Clocks along a pipeline: the least energy of a DAG of operations for every deadline, as a linear program.

Operation i takes a time t_i between its fastest and its slowest clock and then costs the energy e_i(t_i), the
lower convex hull of its measured points. With start times s_i:

.. math:: \min \sum_i e_i(t_i) \quad s_j \ge s_i + t_i \; (i \to j), \quad s_i + t_i \le T \le deadline

Each hull is written as its fastest point plus one bounded column per segment; slopes rise, so the columns
fill in order by themselves. Only the bound of T changes from one deadline to the next, and the dual simplex
goes on from the last basis: this is what makes a frontier cheap. Energy here is *above* the draw of a blocked
device, because devices draw that for the whole time whatever is decided (Perseus, SOSP 2024).

Operations may share one time (`group`): a static plan gives all micro-batches of a stage the same clocks.
A budget row keeps the mean power of some operations under a limit: energy <= limit x T.

A time between two clocks can be had by switching inside the operation; `round_clocks` takes the faster of the
two instead, so that the deadline still holds, and says what that costs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hardware.errors import InputError
from solvers.outcome import Outcome, Status
from solvers.time_energy_graph import check_graph, makespan_s

__all__ = [
    "Budget",
    "ClockCurve",
    "Clocks",
    "TimeEnergyProblem",
    "capped_curve",
    "fastest_s",
    "frontier",
    "look_up",
    "round_clocks",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SLACK = 1e-9
"""Relative slack of a deadline, for the rounding of sums."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClockCurve:
    """What one kind of operation takes and costs at each clock."""

    time_s: Floats
    energy_j: Floats
    """Above the draw of a blocked device."""

    def __post_init__(self) -> None:
        good = len(self.time_s) == len(self.energy_j) > 0
        if not good or not (np.isfinite(self.time_s).all() and np.isfinite(self.energy_j).all()):
            message = "a clock curve needs as many finite times as energies, at least one"
            raise InputError(message)
        if (self.time_s <= 0).any():
            message = f"a clock curve holds the time {self.time_s.min():g} s; times are positive"
            raise InputError(message)

    def hull(self) -> tuple[Floats, Floats]:
        """Return times and energies of the lower convex hull, from the fastest to the cheapest point."""
        kept: list[tuple[float, float]] = []
        for t, e in sorted(zip(self.time_s.tolist(), self.energy_j.tolist(), strict=True)):
            if kept and e >= kept[-1][1]:
                continue
            while len(kept) > 1 and _rises(kept[-2], kept[-1], (t, e)):
                kept.pop()
            kept.append((t, e))
        points = np.array(kept)
        return points[:, 0], points[:, 1]


def _rises(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    left = (middle[1] - first[1]) * (last[0] - first[0])
    return left >= (last[1] - first[1]) * (middle[0] - first[0])


def capped_curve(curve: ClockCurve, cap_w: float, blocked_w: float) -> ClockCurve:
    """Return the points of a curve whose draw stays under a cap.

    Raises
    ------
    InputError
        if no point does; names the least draw.
    """
    draw_w = curve.energy_j / curve.time_s + blocked_w
    kept = draw_w <= cap_w * (1 + _SLACK)
    if not kept.any():
        message = f"a cap of {cap_w:g} W is below the least draw of an operation, {draw_w.min():.1f} W"
        raise InputError(message)
    return ClockCurve(time_s=curve.time_s[kept], energy_j=curve.energy_j[kept])


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit on the mean power of some operations and the devices that run them."""

    name: str
    operations: tuple[int, ...]
    limit_w: float
    blocked_w: float
    """What its devices draw together while blocked."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimeEnergyProblem:
    """Operations, what comes before what, and the curve of each."""

    before: Ints
    after: Ints
    """Edge i: operation `before[i]` ends before `after[i]` starts."""
    curve: Ints
    """Index into `curves`, one per operation."""
    curves: tuple[ClockCurve, ...]
    blocked_w: float
    """What all devices draw together while blocked."""
    group: Ints | None = None
    """Operations of one group take one time; None decides every operation alone."""
    budgets: tuple[Budget, ...] = ()

    def __post_init__(self) -> None:
        check_graph(self.before, self.after, len(self.curve))
        if self.group is not None:
            pairs = np.unique(np.stack([self.group, self.curve]), axis=1)
            if len(np.unique(self.group)) != pairs.shape[1]:
                message = "operations of one group must share one curve"
                raise InputError(message)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clocks:
    """One point of the frontier."""

    deadline_s: float
    time_s: Floats
    """Planned time of every operation."""
    makespan_s: float
    energy_j: float
    """Of all devices until the deadline, blocked ones included."""


def fastest_s(problem: TimeEnergyProblem) -> float:
    """Return the shortest makespan: every operation at its fastest clock."""
    fast = np.array([c.time_s.min() for c in problem.curves])
    return makespan_s(problem.before, problem.after, fast[problem.curve])


def energy_of(problem: TimeEnergyProblem, time_s: Floats, deadline_s: float) -> float:
    """Return the energy of planned times on the hulls, blocked devices included. [J]"""
    total = problem.blocked_w * deadline_s
    for i, curve in enumerate(problem.curves):
        total += float(np.interp(time_s[problem.curve == i], *curve.hull()).sum())
    return total


def frontier(
    problem: TimeEnergyProblem, deadlines_s: Sequence[float], *, time_limit_s: float = 60.0
) -> tuple[Outcome[Clocks], ...]:
    """Return the plan of least energy for every deadline, in the order asked.

    An infinite deadline asks for the plan of least energy of all, in which the devices are free as soon as
    the last operation ends. Every answer is checked against the graph itself, not against the solver.
    """
    answers: dict[int, Outcome[Clocks]] = {}
    program = _Program(problem, time_limit_s)
    fastest = fastest_s(problem)
    for i in np.argsort(deadlines_s)[::-1].tolist():
        deadline = float(deadlines_s[i])
        if deadline < fastest * (1 - _SLACK):
            answers[i] = Outcome(status=Status.INFEASIBLE, conflict=("deadline",))
        else:
            answers[i] = program.solve(max(deadline, fastest))
    return tuple(answers[i] for i in range(len(deadlines_s)))


def look_up(points: Sequence[Clocks], straggler_s: float) -> Clocks:
    """Return the plan for a step that ends with the slowest other pipeline: the latest deadline it allows.

    Raises
    ------
    InputError
        if the straggler is faster than every point; the fastest plan's deadline is named.
    """
    ordered = sorted(points, key=lambda p: p.deadline_s)
    if not ordered or straggler_s < ordered[0].deadline_s * (1 - _SLACK):
        least = f"{ordered[0].deadline_s:g} s" if ordered else "none"
        message = f"no plan ends within {straggler_s:g} s; the earliest deadline of the table is {least}"
        raise InputError(message)
    return [p for p in ordered if p.deadline_s <= straggler_s * (1 + _SLACK)][-1]


def round_clocks(problem: TimeEnergyProblem, clocks: Clocks) -> tuple[Ints, Clocks]:
    """Return for every operation the point of its curve to run at, and what that plan takes and costs.

    The slowest point that is no slower than planned, so no operation ends later; points off the hull are left
    out.
    """
    point = np.zeros(len(problem.curve), dtype=np.int64)
    time_s, energy_j = np.zeros(len(problem.curve)), np.zeros(len(problem.curve))
    for i, curve in enumerate(problem.curves):
        rows = np.flatnonzero(problem.curve == i)
        hull_s, hull_j = curve.hull()
        chosen = np.searchsorted(hull_s, clocks.time_s[rows] * (1 + 1e-7), side="right") - 1
        chosen = np.maximum(chosen, 0)
        time_s[rows], energy_j[rows] = hull_s[chosen], hull_j[chosen]
        place = np.array([int(np.flatnonzero((curve.time_s == t) & (curve.energy_j == e))[0])
                          for t, e in zip(hull_s, hull_j, strict=True)])  # fmt: skip
        point[rows] = place[chosen]
    end_s = makespan_s(problem.before, problem.after, time_s)
    energy = float(energy_j.sum()) + problem.blocked_w * clocks.deadline_s
    return point, Clocks(deadline_s=clocks.deadline_s, time_s=time_s, makespan_s=end_s, energy_j=energy)


class _Program:
    """The linear program in the solver's memory; its only mutable part is the deadline."""

    def __init__(self, problem: TimeEnergyProblem, time_limit_s: float) -> None:
        import highspy

        self.problem = problem
        num = len(problem.curve)
        names, self.member = np.unique(
            problem.group if problem.group is not None else np.arange(num), return_inverse=True
        )
        self.num_ops, self.num_groups = num, len(names)
        _, first = np.unique(self.member, return_index=True)
        self.hulls = [problem.curves[c].hull() for c in problem.curve[first]]
        self.size = np.bincount(self.member, minlength=self.num_groups)
        self.segments = np.array([len(h[0]) - 1 for h in self.hulls])
        self.offset = num + self.num_groups + np.concatenate([[0], np.cumsum(self.segments)]).astype(int)
        self.end = int(self.offset[-1])
        solver_class: Any = highspy.Highs
        self.highs: Any = solver_class()
        for option, value in (("output_flag", False), ("threads", 1), ("time_limit", time_limit_s)):
            self.highs.setOptionValue(option, value)
        self.highs.setOptionValue("primal_feasibility_tolerance", 1e-9)
        self.highs.passModel(self._model(highspy))

    def _columns(self) -> tuple[Floats, Floats, Floats]:
        """Return cost, lower and upper bound: starts, group times, segments, end."""
        cost, lower = np.zeros(self.end + 1), np.zeros(self.end + 1)
        upper = np.full(self.end + 1, np.inf)
        for g, (hull_s, hull_j) in enumerate(self.hulls):
            lower[self.num_ops + g], upper[self.num_ops + g] = hull_s[0], hull_s[-1]
            part = slice(self.offset[g], self.offset[g + 1])
            upper[part] = np.diff(hull_s)
            cost[part] = np.diff(hull_j) / np.diff(hull_s) * self.size[g]
        return cost, lower, upper

    def _rows(self, cost: Floats) -> tuple[list[tuple[Ints, Floats]], Floats, Floats]:
        """Return entries and bounds of every row: hulls, edges, ends, budgets."""
        rows: list[tuple[Ints, Floats]] = []
        low: list[float] = []
        high: list[float] = []
        for g, (hull_s, _) in enumerate(self.hulls):
            part = np.arange(self.offset[g], self.offset[g + 1])
            rows.append((np.r_[self.num_ops + g, part], np.r_[1.0, np.full(len(part), -1.0)]))
            low.append(hull_s[0])
            high.append(hull_s[0])
        ends = np.setdiff1d(np.arange(self.num_ops), self.problem.before)
        edges = [
            (i, j) for i, j in zip(self.problem.before.tolist(), self.problem.after.tolist(), strict=True)
        ]
        edges += [(i, self.end) for i in ends.tolist()]
        for i, j in edges:
            rows.append((np.array([j, i, self.num_ops + self.member[i]]), np.array([1.0, -1.0, -1.0])))
            low.append(0.0)
            high.append(np.inf)
        for budget in self.problem.budgets:
            index, value, fixed_j = self._budget(budget, cost)
            rows.append((np.r_[index, self.end], np.r_[value, budget.blocked_w - budget.limit_w]))
            low.append(-np.inf)
            high.append(-fixed_j)
        return rows, np.array(low), np.array(high)

    def _budget(self, budget: Budget, cost: Floats) -> tuple[Ints, Floats, float]:
        """Return segments, slopes and the energy at the fastest clocks of a budget's operations."""
        count = np.bincount(self.member[list(budget.operations)], minlength=self.num_groups)
        groups = np.flatnonzero(count)
        index = np.concatenate([np.arange(self.offset[g], self.offset[g + 1]) for g in groups])
        share = np.repeat(count[groups] / self.size[groups], self.segments[groups])
        fixed = sum(float(self.hulls[g][1][0]) * int(count[g]) for g in groups)
        return index.astype(np.int64), cost[index] * share, fixed

    def _model(self, highspy: Any) -> Any:
        cost, lower, upper = self._columns()
        rows, low, high = self._rows(cost)
        sizes = [len(r[0]) for r in rows]
        row = np.repeat(np.arange(len(rows)), sizes)
        column, value = np.concatenate([r[0] for r in rows]), np.concatenate([r[1] for r in rows])
        order = np.argsort(column, kind="stable")
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = self.end + 1, len(rows)
        model.col_cost_, model.col_lower_, model.col_upper_ = cost, lower, upper
        model.row_lower_, model.row_upper_ = low, high
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        starts = np.concatenate([[0], np.cumsum(np.bincount(column, minlength=self.end + 1))])
        model.a_matrix_.start_ = starts.astype(np.int32)
        model.a_matrix_.index_ = row[order].astype(np.int32)
        model.a_matrix_.value_ = value[order]
        return model

    def solve(self, deadline_s: float) -> Outcome[Clocks]:
        """Return the best plan that ends by the deadline, from the basis of the last one."""
        started = time.monotonic()
        free = not np.isfinite(deadline_s)
        self.highs.changeColBounds(self.end, 0.0, np.inf if free else deadline_s)
        self.highs.changeColCost(self.end, self.problem.blocked_w if free else 0.0)
        self.highs.run()
        status = str(self.highs.getModelStatus()).rsplit(".", 1)[-1]
        if status == "kInfeasible":
            names = tuple(f"budget {b.name}" for b in self.problem.budgets)
            return Outcome(
                status=Status.INFEASIBLE, conflict=("deadline", *names), wall_s=time.monotonic() - started
            )
        if status != "kOptimal":
            return Outcome(status=Status.NO_ANSWER, wall_s=time.monotonic() - started)
        values = np.array(self.highs.getSolution().col_value)
        clocks = self._checked(values, deadline_s)
        if clocks is None:
            return Outcome(status=Status.NO_ANSWER, wall_s=time.monotonic() - started)
        return Outcome(
            status=Status.OPTIMAL,
            solution=clocks,
            objective=clocks.energy_j,
            bound=clocks.energy_j,
            wall_s=time.monotonic() - started,
        )

    def _checked(self, values: Floats, deadline_s: float) -> Clocks | None:
        """Return the plan with makespan and energy computed afresh; None where the deadline is missed."""
        planned = values[self.num_ops : self.num_ops + self.num_groups]
        planned = np.clip(planned, [h[0][0] for h in self.hulls], [h[0][-1] for h in self.hulls])
        time_s = planned[self.member]
        end_s = makespan_s(self.problem.before, self.problem.after, time_s)
        until = end_s if not np.isfinite(deadline_s) else deadline_s
        if end_s > until * (1 + 1e-7):
            return None
        energy = energy_of(self.problem, time_s, until)
        return Clocks(deadline_s=until, time_s=time_s, makespan_s=end_s, energy_j=energy)

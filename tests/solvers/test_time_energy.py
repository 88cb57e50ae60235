from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.errors import InputError
from solvers.outcome import Status
from solvers.time_energy import (
    Budget,
    ClockCurve,
    TimeEnergyProblem,
    capped_curve,
    fastest_s,
    frontier,
    look_up,
    round_clocks,
)
from solvers.time_energy_graph import makespan_s


def _curve(*points: tuple[float, float]) -> ClockCurve:
    return ClockCurve(time_s=np.array([p[0] for p in points]), energy_j=np.array([p[1] for p in points]))


def _problem(edges, curve, curves, **other):
    pairs = np.array(edges, dtype=np.int64).reshape(-1, 2)
    return TimeEnergyProblem(
        before=pairs[:, 0],
        after=pairs[:, 1],
        curve=np.array(curve),
        curves=tuple(curves),
        **({"blocked_w": 0.0} | other),
    )


def test_the_branch_off_the_critical_path_slows_down_for_free():
    fork = _problem([(0, 1), (0, 2)], [0, 0, 1], [_curve((1, 10), (2, 4)), _curve((2, 20), (3, 12))])
    assert fastest_s(fork) == 3.0
    plan = frontier(fork, [3.0])[0].unwrap()
    assert plan.time_s.tolist() == [1.0, 2.0, 2.0]
    assert plan.energy_j == pytest.approx(10 + 4 + 20)


def test_the_cheapest_second_is_spent_first():
    chain = _problem([(0, 1)], [0, 1], [_curve((1, 10), (2, 4)), _curve((2, 20), (3, 12))])
    points = [o.unwrap() for o in frontier(chain, [3.0, 3.5, 4.0, 5.0])]
    assert [p.energy_j for p in points] == pytest.approx([30, 26, 22, 16])


def test_points_above_the_hull_are_never_used():
    bent = _curve((1, 10), (1.5, 9.9), (2, 4), (3, 5))
    assert bent.hull()[0].tolist() == [1.0, 2.0]


def _random_problem(seed: int, **other):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(2, 5))
    edges = [(i, j) for i in range(num) for j in range(i + 1, num) if rng.random() < 0.6]
    curves = []
    for _ in range(num):
        times = np.sort(rng.uniform(1, 3, 3))
        curves.append(_curve(*zip(times, np.sort(rng.uniform(1, 9, 3))[::-1], strict=True)))
    return _problem(edges, list(range(num)), curves, **other), rng


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_never_above_the_best_choice_of_single_points_and_never_late(seed):
    problem, rng = _random_problem(seed, blocked_w=0.5)
    deadline = fastest_s(problem) * float(rng.uniform(1, 1.6))
    plan = frontier(problem, [deadline])[0].unwrap()
    best = np.inf
    for choice in product(*(range(3) for _ in problem.curves)):
        times = np.array([c.time_s[k] for c, k in zip(problem.curves, choice, strict=True)])
        if makespan_s(problem.before, problem.after, times) <= deadline:
            best = min(best, sum(c.energy_j[k] for c, k in zip(problem.curves, choice, strict=True)))
    point, rounded = round_clocks(problem, plan)
    assert plan.makespan_s <= deadline * (1 + 1e-9)
    assert plan.energy_j <= best + 0.5 * deadline + 1e-6
    assert rounded.makespan_s <= deadline * (1 + 1e-6)
    assert rounded.energy_j >= plan.energy_j - 1e-6
    assert all(problem.curves[i].time_s[k] == rounded.time_s[i] for i, k in enumerate(point))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_agrees_with_another_formulation_solved_by_scipy(seed):
    from scipy.optimize import linprog

    problem, rng = _random_problem(seed)
    deadline = fastest_s(problem) * float(rng.uniform(1, 1.5))
    num = len(problem.curve)
    hulls = [c.hull() for c in problem.curves]
    size = [len(h[0]) for h in hulls]
    first = num + np.concatenate([[0], np.cumsum(size)])
    cost = np.concatenate([np.zeros(num), *[h[1] for h in hulls]])
    rows, sides = [], []

    def late(i, column):
        row = np.zeros(len(cost))
        row[i] = 1
        row[first[i] : first[i + 1]] = hulls[i][0]
        if column is not None:
            row[column] -= 1
        return row

    for i, j in zip(problem.before, problem.after, strict=True):
        rows.append(late(i, j))
        sides.append(0.0)
    for i in range(num):
        rows.append(late(i, None))
        sides.append(deadline)
    equal = np.zeros((num, len(cost)))
    for i in range(num):
        equal[i, first[i] : first[i + 1]] = 1
    other = linprog(cost, A_ub=np.array(rows), b_ub=sides, A_eq=equal, b_eq=np.ones(num))
    assert frontier(problem, [deadline])[0].unwrap().energy_j == pytest.approx(other.fun, rel=1e-6)


def test_more_time_never_costs_more_above_the_blocked_draw():
    problem, _ = _random_problem(7)
    fast = fastest_s(problem)
    energies = [o.unwrap().energy_j for o in frontier(problem, [fast * x for x in (1, 1.1, 1.3, 2)])]
    assert energies == sorted(energies, reverse=True)


def test_a_group_takes_one_time_and_is_never_cheaper_than_free_clocks():
    curve = _curve((1, 10), (2, 4))
    free = _problem([(0, 1)], [0, 0], [curve])
    tied = _problem([(0, 1)], [0, 0], [curve], group=np.array([0, 0]))
    a, b = (frontier(p, [3.0])[0].unwrap() for p in (free, tied))
    assert b.time_s.tolist() == [1.5, 1.5]
    assert b.energy_j >= a.energy_j - 1e-9


def test_an_endless_deadline_ends_where_waiting_costs_more_than_speed():
    one = _problem([], [0], [_curve((1, 10), (2, 4), (3, 3))], blocked_w=2.0)
    plan = frontier(one, [np.inf])[0].unwrap()
    assert plan.deadline_s == pytest.approx(2.0)
    assert plan.energy_j == pytest.approx(4 + 2 * 2)


def test_a_budget_slows_its_operations_down():
    curve = _curve((1, 10), (2, 4))
    budget = Budget(name="rack 0", operations=(0,), limit_w=4.0, blocked_w=1.0)
    plan = frontier(_problem([], [0], [curve], blocked_w=1.0, budgets=(budget,)), [2.0])[0].unwrap()
    assert 4 / 2 + 1.0 <= 4.0
    assert plan.time_s[0] == pytest.approx(2.0)


def test_an_impossible_budget_and_an_early_deadline_are_infeasible_and_named():
    curve = _curve((1, 10), (2, 4))
    budget = Budget(name="rack 0", operations=(0,), limit_w=2.0, blocked_w=1.0)
    tight = frontier(_problem([], [0], [curve], blocked_w=1.0, budgets=(budget,)), [1.5])[0]
    assert tight.status is Status.INFEASIBLE
    assert tight.conflict == ("deadline", "budget rack 0")
    early = frontier(_problem([], [0], [curve]), [0.5])[0]
    assert early.conflict == ("deadline",)


def test_a_straggler_finds_the_latest_plan_it_allows():
    points = [o.unwrap() for o in frontier(_problem([], [0], [_curve((1, 10), (2, 4))]), [1.0, 1.5, 2.0])]
    assert look_up(points, 1.7).deadline_s == 1.5
    assert look_up(points, 9.0).deadline_s == 2.0
    with pytest.raises(InputError, match="earliest deadline"):
        look_up(points, 0.9)


def test_a_cap_keeps_only_clocks_that_draw_less():
    curve = _curve((1, 300), (2, 200))
    assert capped_curve(curve, 200.0, 70.0).time_s.tolist() == [2.0]
    with pytest.raises(InputError, match=r"least draw of an operation, 170"):
        capped_curve(curve, 100.0, 70.0)


@pytest.mark.parametrize(
    ("edges", "match"), [([(0, 1), (1, 0)], "circle"), ([(0, 5)], "operation 5"), ([(-1, 0)], "from 0")]
)
def test_a_broken_graph_is_refused(edges, match):
    with pytest.raises(InputError, match=match):
        _problem(edges, [0, 0], [_curve((1, 1))])

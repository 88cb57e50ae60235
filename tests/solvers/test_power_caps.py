from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.errors import InfeasibleError, InputError
from solvers.outcome import Status
from solvers.power_caps import (
    CapProblem,
    brakes_per_year,
    breach_probability,
    choose_caps,
    max_rise,
    servers_without_breach,
    threshold,
)


def test_the_rise_looks_ahead_only_and_never_falls_below_zero():
    trace = np.array([[0.2], [0.5], [0.4], [0.1], [0.1]])
    assert max_rise(trace, 2).ravel() == pytest.approx([0.3, 0.0, 0.0])


def test_the_threshold_leaves_room_for_the_spike():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 1.0, 20_000)
    trace = np.repeat(base, 3)[:, None]
    trace[1::3, 0] = np.minimum(base + 0.05, 1.03)
    top, spike = threshold(trace, 1)
    assert top + spike <= 1.0
    assert threshold(trace, 1, epsilon=0.5)[0] >= top


def test_a_row_that_always_jumps_over_its_budget_has_no_threshold():
    trace = np.tile([[0.2], [1.2]], (500, 1))
    with pytest.raises(InfeasibleError, match="no threshold is early enough"):
        threshold(trace, 2)


def test_gaps_and_short_traces_are_refused():
    with pytest.raises(InputError, match="gaps: 1"):
        threshold(np.array([[0.1], [np.nan], [0.2]]), 1)
    with pytest.raises(InputError, match="too short"):
        threshold(np.full((5, 1), 0.5), 5)


def test_correlated_servers_get_no_credit():
    args = {"mean_w": 100.0, "deviation_w": 20.0, "budget_w": 1200.0}
    loose = breach_probability(10, correlation=0.0, **args)
    tied = breach_probability(10, correlation=1.0, **args)
    assert loose == pytest.approx(0.000783, rel=0.01)  # 1 - Phi(200 / (20 sqrt 10))
    assert tied == pytest.approx(0.158655, rel=1e-4)  # 1 - Phi(1)
    most = servers_without_breach(correlation=0.0, probability=1e-3, **args)
    assert breach_probability(most, correlation=0.0, **args) <= 1e-3
    assert breach_probability(most + 1, correlation=0.0, **args) > 1e-3


def test_hotter_rows_brake_more_often():
    rng = np.random.default_rng(1)
    calm = rng.normal(0.7, 0.05, (43_200, 1))
    assert brakes_per_year(calm, 2.0) < brakes_per_year(calm + 0.1, 2.0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_caps_are_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    draw = tuple(np.sort(rng.uniform(100, 700, 3))[::-1] for _ in range(3))
    loss = tuple(np.sort(rng.uniform(0, 1, 3)) for _ in range(3))
    count = rng.integers(1, 5, 3)
    budget = float(rng.uniform(200, 700) * count.sum())
    answer = choose_caps(
        CapProblem(names=("a", "b", "c"), count=count, draw_w=draw, loss=loss, budget_w=budget)
    )
    best = np.inf
    for choice in product(range(3), repeat=3):
        if sum(n * d[j] for n, d, j in zip(count, draw, choice, strict=True)) <= budget:
            best = min(best, sum(n * v[j] for n, v, j in zip(count, loss, choice, strict=True)))
    if np.isinf(best):
        assert answer.status is Status.INFEASIBLE
        assert "power budget" in answer.conflict
    else:
        assert answer.objective == pytest.approx(best, abs=1e-6)

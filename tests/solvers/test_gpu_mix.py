"""The GPU mix against hand-worked answers and brute force."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.errors import InfeasibleError
from solvers.gpu_mix import Limit, MixProblem, check_mix, solve_mix
from solvers.outcome import Status


def problem(load, cost, **more):
    load = np.asarray(load, dtype=float)
    return MixProblem(
        item_names=tuple(f"i{k}" for k in range(load.shape[0])),
        bucket_names=tuple(f"b{k}" for k in range(load.shape[1])),
        usd_per_hour=np.asarray(cost, dtype=float),
        load=load,
        **more,
    )


def carries(counts, load):
    """Return whether counts of two items carry the load: one item takes buckets by ratio, greedily."""
    order = np.argsort(load[0] / load[1])
    room, rest = counts[0], 0.0
    for b in order:
        part = min(1.0, room / load[0, b]) if load[0, b] > 0 else 1.0
        room -= part * load[0, b]
        rest += (1.0 - part) * load[1, b]
    return rest <= counts[1] + 1e-9


def test_published_example_of_melange():
    tputs = np.array([[[2, 1], [5, 2]], [[20, 20], [40, 20]]], dtype=float).reshape(2, 4)
    rate = np.array([0.2, 0.1, 0.5, 0.2]) * 30.0
    mix = solve_mix(problem(rate / tputs, [1.01, 3.67], num_slices=1)).unwrap()
    assert mix.count.tolist() == [3, 1]
    assert mix.usd_per_hour == pytest.approx(6.70)
    assert solve_mix(problem(rate / tputs, [1.01, 3.67])).objective == pytest.approx(4.68)


@settings(max_examples=30, deadline=None)
@given(
    load=st.lists(st.tuples(st.floats(0.05, 2.0), st.floats(0.05, 2.0)), min_size=1, max_size=4),
    cost=st.tuples(st.floats(0.5, 4.0), st.floats(0.5, 4.0)),
)
def test_equals_brute_force_for_two_items(load, cost):
    table = np.array(load).T
    outcome = solve_mix(problem(table, cost))
    top = int(np.ceil(table.sum(axis=1).max())) + 1
    best = min(
        counts[0] * cost[0] + counts[1] * cost[1]
        for counts in product(range(top + 1), repeat=2)
        if carries(counts, table)
    )
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective == pytest.approx(best, rel=1e-5)
    assert check_mix(problem(table, cost), outcome.unwrap()) == []


def test_spare_headroom_and_limits_cost_instances():
    load = [[1.5, 0.4]]
    assert solve_mix(problem(load, [2.0])).unwrap().count.tolist() == [2]
    assert solve_mix(problem(load, [2.0], spare=np.array([1]))).unwrap().count.tolist() == [3]
    assert solve_mix(problem(load, [2.0], num_zones=3)).unwrap().count.tolist() == [3]
    assert solve_mix(problem(load, [2.0], min_count=np.array([4]))).unwrap().count.tolist() == [4]
    stock = Limit(name="stock", per_instance=np.array([8.0]), total=10.0)
    outcome = solve_mix(problem(load, [2.0], limits=(stock,)))
    assert outcome.status is Status.INFEASIBLE
    assert any("stock" in row for row in outcome.conflict)


def test_stock_of_the_cheap_type_moves_the_rest_to_the_dear_one():
    mix = solve_mix(problem([[2.0], [1.4]], [1.0, 5.0], max_count=np.array([1, 9]))).unwrap()
    assert mix.count.tolist() == [1, 1]
    assert mix.share[:, 0].sum() == pytest.approx(1.0)


def test_proportional_buckets_are_joined_without_changing_the_answer():
    load = np.array([[0.3, 0.6, 0.2], [0.1, 0.2, 0.5]])
    split = np.concatenate([load / 2, load / 2], axis=1)
    assert solve_mix(problem(load, [1.0, 2.0])).objective == solve_mix(problem(split, [1.0, 2.0])).objective


def test_bucket_that_nothing_serves_is_named():
    with pytest.raises(InfeasibleError, match="b1"):
        solve_mix(problem([[1.0, np.inf], [1.0, np.inf]], [1.0, 1.0]))


def test_zero_price_is_refused():
    with pytest.raises(ValueError, match="positive"):
        problem([[1.0]], [0.0])


def test_tiny_coefficients_keep_the_optimum():
    load = np.array([[3e-7, 5e-4, 2e-7], [4e-7, 2e-4, 1e-7]])
    assert solve_mix(problem(load, [6.5, 20.5])).unwrap().count.tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(4))
def test_known_cost_of_a_nearby_mix_keeps_the_optimum(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    cost = rng.uniform(0.3, 8.0, 6)
    load = rng.lognormal(0.0, 0.7, (6, 200)) * rng.lognormal(-2.0, 1.0, 200) / cost[:, None]
    limits = () if seed % 2 else (Limit(name="stock", per_instance=np.eye(6)[0], total=2.0),)
    quick = solve_mix(problem(load, cost, limits=limits))
    monkeypatch.setattr("solvers.gpu_mix._MANY_SHARES", 10**9)
    plain = solve_mix(problem(load, cost, limits=limits))
    assert quick.status is plain.status is Status.OPTIMAL
    assert quick.objective == pytest.approx(plain.objective, rel=2e-6)
    assert quick.bound == pytest.approx(plain.bound, rel=2e-6)

"""The most load within limits, against brute force; zones and spares exactly."""

from itertools import product

import numpy as np
import pytest

from hardware.errors import InfeasibleError
from solvers.gpu_mix import Limit, MixProblem, check_mix, solve_mix
from solvers.gpu_mix_rate import solve_most_load
from solvers.outcome import Status


def problem(load, cost, budget=None, **more):
    load, cost = np.asarray(load, dtype=float), np.asarray(cost, dtype=float)
    limits = () if budget is None else (Limit(name="budget", per_instance=cost, total=budget),)
    return MixProblem(
        item_names=tuple(f"i{k}" for k in range(load.shape[0])),
        bucket_names=tuple(f"b{k}" for k in range(load.shape[1])),
        usd_per_hour=cost,
        load=load,
        limits=limits,
        **more,
    )


def most(counts, load):
    """Return the largest multiple of the load of two items, by bisection over a greedy split."""
    order = np.argsort(load[0] / load[1])

    def carries(rate):
        room, rest = float(counts[0]), 0.0
        for b in order:
            part = min(1.0, room / (load[0, b] * rate))
            room -= part * load[0, b] * rate
            rest += (1.0 - part) * load[1, b] * rate
        return rest <= counts[1]

    low, high = 0.0, 1e3
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if carries(middle) else (low, middle)
    return low


@pytest.mark.parametrize("seed", range(5))
def test_most_load_within_a_budget_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    load, cost, budget = rng.uniform(0.1, 2.0, (2, 3)), rng.uniform(0.5, 3.0, 2), 12.0
    outcome, rate = solve_most_load(problem(load, cost, budget))
    pairs = product(range(30), repeat=2)
    best = max(most(c, load) for c in pairs if np.dot(c, cost) <= budget)
    assert rate == pytest.approx(best, rel=1e-5)
    assert outcome.status is Status.OPTIMAL
    assert outcome.bound >= rate
    assert check_mix(problem(load * rate, cost, budget), outcome.unwrap()) == []


def test_of_equal_loads_the_cheaper_fleet_is_taken():
    twins = problem([[1.0], [1.0]], [3.0, 2.0], max_count=np.array([2, 2]))
    stock = Limit(name="stock", per_instance=np.array([1.0, 1.0]), total=2.0)
    outcome, rate = solve_most_load(
        MixProblem(
            item_names=twins.item_names,
            bucket_names=twins.bucket_names,
            usd_per_hour=twins.usd_per_hour,
            load=twins.load,
            limits=(stock,),
        )
    )
    assert rate == pytest.approx(2.0, rel=1e-5)
    assert outcome.unwrap().count.tolist() == [0, 2]


def test_no_limit_nothing_to_buy_and_no_server_are_told_apart():
    with pytest.raises(ValueError, match="no limit"):
        solve_most_load(problem([[1.0]], [1.0]))
    outcome, rate = solve_most_load(problem([[1.0]], [5.0], budget=1.0))
    assert (outcome.status, rate) == (Status.INFEASIBLE, 0.0)
    with pytest.raises(InfeasibleError, match="b0"):
        solve_most_load(problem([[np.inf]], [5.0], budget=10.0))


def test_spares_hold_at_the_rate_that_is_found():
    outcome, rate = solve_most_load(problem([[0.25]], [1.0], budget=5.0, spare=np.array([2])))
    assert rate == pytest.approx(12.0, rel=1e-5)
    assert outcome.unwrap().count.tolist() == [5]


@pytest.mark.parametrize(("need", "zones"), [(0.3, 2), (1.0, 2), (1.2, 3), (4.1, 3), (7.0, 4)])
def test_any_zone_may_be_lost(need, zones):
    found = solve_mix(problem([[need]], [1.0], num_zones=zones)).unwrap()
    count = int(found.count[0])
    fewest = next(n for n in range(1, 99) if n - -(-n // zones) >= need)
    assert count == fewest
    assert found.best_single_usd_per_hour == fewest


def test_the_weight_is_made_least_and_dollars_are_told():
    table = [[1.0], [1.0]]
    found = solve_mix(problem(table, [1.0, 5.0], weight=np.array([9.0, 2.0])))
    assert found.unwrap().count.tolist() == [0, 1]
    assert (found.objective, found.unwrap().usd_per_hour) == (2.0, 5.0)

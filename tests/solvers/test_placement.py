from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.outcome import Status
from solvers.placement import solve_placement
from solvers.placement_bound import lower_bound_s
from solvers.placement_exact import brute_force, held_karp
from solvers.placement_problem import PlacementProblem, Term, all_to_all_term, chain_term, ring_term
from solvers.placement_search import _Search, local_search


def random_links(size, seed, scenarios=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(1.0, 3.0, (scenarios, size, size))


def grid_problem(stages, replicas, seed, scenarios=1, spare=0):
    """Build `stages` x `replicas` units with gradient rings of every stage, hops both ways, an exchange."""
    units = np.arange(stages * replicas).reshape(stages, replicas)
    terms = (
        ring_term("gradients", units, 3.0),
        chain_term("hops", units.T, 2.0, 1.0),
        all_to_all_term("experts", units, 0.25, weight=2.0),
    )
    links = random_links(units.size + spare, seed, scenarios)
    return PlacementProblem(num_units=units.size, seconds_per_byte=links, terms=terms)


def cost_by_hand(problem, site_of):
    """Return the cost from the definition, edge by edge."""
    total = []
    for links in problem.seconds_per_byte:
        cost = 0.0
        for term in problem.terms:
            groups = {}
            for u, v, g, b in zip(term.head, term.tail, term.group, term.num_bytes, strict=True):
                groups.setdefault(int(g), []).append(b * links[site_of[u], site_of[v]])
            within = max if term.within == "max" else sum
            across = max if term.across == "max" else sum
            cost += term.weight * (across(within(edges) for edges in groups.values()) if groups else 0.0)
        total.append(cost)
    return np.mean(total)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(0, 10**6))
def test_cost_and_brute_force_follow_the_definition(stages, replicas, scenarios, spare, seed):
    problem = grid_problem(stages, replicas, seed, scenarios, spare if stages * replicas < 6 else 0)
    if problem.num_sites > 7:
        return
    rows = list(permutations(range(problem.num_sites), problem.num_units))
    sample = rows[:: max(1, len(rows) // 40)]
    expected = [cost_by_hand(problem, row) for row in sample]
    assert problem.cost_s(np.array(sample)) == pytest.approx(expected)
    best = brute_force(problem)
    cost = float(problem.cost_s(best[None])[0])
    assert cost <= min(expected) + 1e-9
    assert lower_bound_s(problem) <= cost + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(0, 10**6))
def test_other_names_of_the_devices_change_nothing(stages, replicas, scenarios, seed):
    """Sites numbered differently: the same assignment costs the same, and so do the optimum and its bound."""
    problem = grid_problem(stages, replicas, seed, scenarios)
    new_name = np.random.default_rng(seed).permutation(problem.num_sites)
    links = np.empty_like(problem.seconds_per_byte)
    links[:, new_name[:, None], new_name] = problem.seconds_per_byte
    renamed = replace(problem, seconds_per_byte=links)
    sites = np.random.default_rng(seed + 1).permutation(problem.num_sites)[None]
    assert renamed.cost_s(new_name[sites]) == pytest.approx(problem.cost_s(sites))
    best, renamed_best = brute_force(problem), brute_force(renamed)
    assert renamed.cost_s(renamed_best[None]) == pytest.approx(problem.cost_s(best[None]))
    assert lower_bound_s(renamed) == pytest.approx(lower_bound_s(problem))


def test_rings_of_two_and_asymmetric_links():
    """Two units on two of three sites: the ring waits for its slower direction."""
    links = np.array([[[0.0, 1.0, 5.0], [2.0, 0.0, 3.0], [5.0, 3.5, 0.0]]])
    problem = PlacementProblem(
        num_units=2, seconds_per_byte=links, terms=(ring_term("ring", np.array([[0, 1]]), 1.0),)
    )
    outcome = solve_placement(problem)
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective == pytest.approx(2.0)
    assert set(outcome.unwrap().site_of.tolist()) == {0, 1}


@pytest.mark.parametrize("seed", range(4))
def test_one_pipeline_is_solved_exactly_by_dynamic_programming(seed):
    problem = PlacementProblem(
        num_units=7,
        seconds_per_byte=random_links(7, seed),
        terms=(chain_term("hops", np.arange(7)[None], 2.0, 1.0),),
    )
    exact, brute = held_karp(problem), brute_force(problem)
    assert problem.cost_s(exact[None]) == pytest.approx(problem.cost_s(brute[None]))


@pytest.mark.parametrize("seed", range(3))
def test_search_comes_near_the_optimum_of_small_problems_and_the_bound_holds(seed):
    problem = grid_problem(2, 4, seed)
    best = float(problem.cost_s(brute_force(problem)[None])[0])
    found = local_search(problem, [np.arange(8)], num_moves=3_000, seed=0)
    assert best * 0.999999 <= float(problem.cost_s(found.assignment[None])[0]) <= best * 1.03
    assert lower_bound_s(problem) <= best


def test_incremental_swap_costs_equal_full_costs():
    problem = grid_problem(3, 4, 5, scenarios=3, spare=2)
    search = _Search(problem, np.random.default_rng(1).permutation(14), np.random.default_rng(0))
    first, second = np.array([0, 3, 7, 11, 12, 5]), np.array([1, 12, 4, 13, 13, 2])
    values, _ = search._swap_values(first, second)
    for a, b, value in zip(first, second, values, strict=True):
        swapped = search.site_of.copy()
        swapped[[a, b]] = swapped[[b, a]]
        groups = [problem.group_cost_s(i.term, swapped[None, :12])[:, 0] for i in search.index]
        assert search._value(groups) == pytest.approx(value)


def test_search_is_never_worse_than_its_start_and_repeats_itself():
    problem = grid_problem(4, 6, 3)
    start = np.arange(24)
    answers = [solve_placement(problem, num_moves=2_000, seed=4) for _ in range(2)]
    assert answers[0].objective <= float(problem.cost_s(start[None])[0])
    assert answers[0].bound <= answers[0].objective
    assert np.array_equal(answers[0].unwrap().site_of, answers[1].unwrap().site_of)
    assert len(set(answers[0].unwrap().site_of.tolist())) == 24


def test_renaming_the_sites_changes_no_exact_cost():
    problem = grid_problem(2, 3, 9)
    order = np.array([3, 1, 5, 0, 4, 2])
    renamed = replace(problem, seconds_per_byte=problem.seconds_per_byte[:, order][:, :, order])
    assert solve_placement(renamed).objective == pytest.approx(solve_placement(problem).objective)


def test_a_faster_link_never_costs_more():
    problem = grid_problem(2, 3, 9)
    faster = problem.seconds_per_byte.copy()
    faster[0, 1, 4] *= 0.5
    better = replace(problem, seconds_per_byte=faster)
    assert solve_placement(better).objective <= solve_placement(problem).objective + 1e-12


def test_classes_keep_units_on_their_sites():
    base = grid_problem(2, 6, 2)
    classes = np.array([0, 1] * 6)
    problem = replace(base, unit_class=np.repeat([0, 1], 6), site_class=classes)
    site_of = solve_placement(problem, num_moves=1_000).unwrap().site_of
    assert np.array_equal(classes[site_of], problem.unit_class)
    starved = replace(base, unit_class=np.zeros(12, dtype=np.int64), site_class=classes)
    assert solve_placement(starved).status is Status.INFEASIBLE


def test_bad_problems_are_refused():
    with pytest.raises(ValueError, match="5 units do not fit on 4 sites"):
        PlacementProblem(num_units=5, seconds_per_byte=random_links(4, 0), terms=())
    with pytest.raises(ValueError, match="finite"):
        PlacementProblem(num_units=2, seconds_per_byte=np.full((1, 2, 2), np.inf), terms=())
    one = np.array([0])
    with pytest.raises(ValueError, match="sorted"):
        Term(
            name="t",
            head=one,
            tail=one,
            group=np.array([1]),
            num_bytes=np.ones(1),
            within="max",
            across="max",
        )

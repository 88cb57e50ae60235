"""Placement of layers over unlike machines: exact flow by hand, brute force on small instances."""

from itertools import product

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.outcome import Status
from solvers.serving_placement import LayerFlowProblem, layer_flow, solve_layer_flow


def problem(speeds, num_layers=4, link=1e4, most=3):
    """Return machines whose speed falls with the layers they hold."""
    n = len(speeds)
    return LayerFlowProblem(
        num_layers=num_layers,
        tokens_per_s=tuple(np.array([0.0, *(s / k for k in range(1, most + 1))]) for s in speeds),
        link_tokens_per_s=np.full((n, n), float(link)),
        entry_tokens_per_s=np.full(n, 1e6),
        exit_tokens_per_s=np.full(n, 1e6),
    )


def slow_flow(p, start, held):
    graph = nx.DiGraph()
    graph.add_nodes_from(["in", "out"])
    for i, (s, k) in enumerate(zip(start, held, strict=True)):
        graph.add_edge(("a", i), ("b", i), capacity=float(p.tokens_per_s[i][k]))
        if s == 0:
            graph.add_edge("in", ("a", i), capacity=1e6)
        if s + k == p.num_layers:
            graph.add_edge(("b", i), "out", capacity=1e6)
        for j, (t, m) in enumerate(zip(start, held, strict=True)):
            if i != j and t <= s + k < t + m:
                graph.add_edge(("b", i), ("a", j), capacity=float(p.link_tokens_per_s[i, j]))
    return nx.maximum_flow_value(graph, "in", "out")


def test_a_chain_passes_what_its_slowest_machine_does():
    p = problem([10.0, 30.0], num_layers=4)
    assert layer_flow(p, np.array([0, 1]), np.array([1, 3])).tokens_per_s == pytest.approx(10.0)
    narrow = problem([10.0, 30.0], num_layers=4, link=2.5)
    assert layer_flow(narrow, np.array([0, 1]), np.array([1, 3])).tokens_per_s == pytest.approx(2.5)


def test_a_machine_may_begin_before_the_layer_that_it_is_handed():
    p = problem([10.0, 10.0], num_layers=3)
    assert layer_flow(p, np.array([0, 1]), np.array([2, 2])).tokens_per_s == pytest.approx(5.0)


@settings(max_examples=4, deadline=None)
@given(speeds=st.lists(st.integers(5, 40), min_size=3, max_size=3))
def test_equals_brute_force_on_three_machines(speeds):
    p = problem([float(s) for s in speeds], num_layers=4, most=2)
    choices = [(s, k) for k in (1, 2) for s in range(5 - k)]
    best = max(
        slow_flow(p, [c[0] for c in each], [c[1] for c in each]) for each in product(choices, repeat=3)
    )
    found = solve_layer_flow(p, max_evaluations=1200)
    assert found.status is Status.FEASIBLE
    assert found.objective == pytest.approx(best, rel=1e-3)
    solution = found.unwrap()
    again = slow_flow(p, solution.start_layer.tolist(), solution.num_layers.tolist())
    assert again == pytest.approx(solution.tokens_per_s, rel=1e-3)
    assert found.bound >= found.objective


def test_regions_behind_narrow_links_are_crossed_by_several_pairs():
    n = 8
    link = np.full((n, n), 1e4)
    link[:4, 4:] = link[4:, :4] = 3.0
    base = problem([20.0] * n, num_layers=6, most=2)
    p = LayerFlowProblem(
        num_layers=6,
        tokens_per_s=base.tokens_per_s,
        link_tokens_per_s=link,
        entry_tokens_per_s=base.entry_tokens_per_s,
        exit_tokens_per_s=base.exit_tokens_per_s,
    )
    assert solve_layer_flow(p, max_evaluations=2000).objective >= 12.0


def test_too_few_machines_are_infeasible_and_bad_placements_named():
    assert solve_layer_flow(problem([1.0], num_layers=9)).status is Status.INFEASIBLE
    with pytest.raises(ValueError, match="machine 1"):
        layer_flow(problem([1.0, 1.0]), np.array([0, 3]), np.array([1, 3]))


def test_same_seed_same_answer():
    p = problem([10.0, 20.0, 15.0, 30.0], num_layers=6)
    first, second = (solve_layer_flow(p, max_evaluations=800, seed=3).unwrap() for _ in range(2))
    assert first.start_layer.tolist() == second.start_layer.tolist()

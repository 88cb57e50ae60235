import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.errors import InputError, UnknownNameError
from solvers.milp import ProgramBuilder, lp_text, solve_program
from solvers.milp_program import scale_program
from solvers.outcome import Status


def knapsack(values, weights, capacity):
    """Build max value under one capacity, as a minimisation."""
    builder = ProgramBuilder()
    columns = [builder.column(f"take {i}", cost=-v, upper=1.0, integer=True) for i, v in enumerate(values)]
    builder.row("capacity", dict(zip(columns, weights, strict=True)), upper=capacity)
    return builder.build()


def test_solves_a_small_linear_program():
    """min x + 2y with x + y >= 3 and x <= 2 is 4 at (2, 1)."""
    builder = ProgramBuilder()
    x = builder.column("x", cost=1.0, upper=2.0)
    y = builder.column("y", cost=2.0)
    builder.row("demand", {x: 1.0, y: 1.0}, lower=3.0)
    outcome = solve_program(builder.build())
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective == pytest.approx(4.0)
    assert outcome.bound == pytest.approx(4.0)
    assert outcome.unwrap() == pytest.approx([2.0, 1.0])


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=7).flatmap(
        lambda v: st.tuples(st.just(v), st.lists(st.integers(1, 20), min_size=len(v), max_size=len(v)))
    ),
    st.integers(1, 60),
    st.sampled_from([1e-7, 1.0, 1e9]),
)
def test_knapsacks_agree_with_brute_force_at_any_scale(items, capacity, scale):
    """Scaling the cost down to 1e-7 changes nothing."""
    values, weights = items
    outcome = solve_program(knapsack([v * scale for v in values], weights, capacity), rel_gap=1e-9)
    best = max(
        sum(v for v, t in zip(values, take, strict=True) if t)
        for take in itertools.product((0, 1), repeat=len(values))
        if sum(w for w, t in zip(weights, take, strict=True) if t) <= capacity
    )
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective == pytest.approx(-best * scale)
    assert np.array_equal(outcome.unwrap(), np.round(outcome.unwrap()))
    assert outcome.bound <= outcome.objective


def test_tiny_coefficients_keep_their_rows():
    """Rows of size 1e-7 vanish inside an absolute tolerance unless they are scaled."""
    builder = ProgramBuilder()
    x = builder.column("x", cost=3e-7, integer=True)
    y = builder.column("y", cost=1e-7, integer=True)
    builder.row("work", {x: 3e-7, y: 1e-7}, lower=7.5e-7)
    builder.row("few", {y: 1e-7}, upper=2e-7)
    outcome = solve_program(builder.build(), rel_gap=1e-9)
    assert outcome.unwrap() == pytest.approx([2.0, 2.0])


def test_infeasible_linear_program_names_its_rows():
    builder = ProgramBuilder()
    x = builder.column("x")
    builder.row("low", {x: 1.0}, lower=2.0)
    builder.row("idle", {x: 1.0}, lower=0.5)
    builder.row("high", {x: 1.0}, upper=1.0)
    outcome = solve_program(builder.build())
    assert outcome.status is Status.INFEASIBLE
    assert set(outcome.conflict) == {"low", "high"}
    assert outcome.solution is None


def test_infeasible_only_through_integrality_names_its_rows():
    """x + y = 1 and x = y has the half-half solution only, which no IIS of the relaxation explains."""
    builder = ProgramBuilder()
    x = builder.column("x", upper=1.0, integer=True)
    y = builder.column("y", upper=1.0, integer=True)
    z = builder.column("z", upper=1.0, integer=True)
    builder.row("one of two", {x: 1.0, y: 1.0}, lower=1.0, upper=1.0)
    builder.row("equal", {x: 1.0, y: -1.0}, lower=0.0, upper=0.0)
    builder.row("free", {z: 1.0}, lower=0.0, upper=1.0)
    outcome = solve_program(builder.build())
    assert outcome.status is Status.INFEASIBLE
    assert set(outcome.conflict) == {"one of two", "equal"}


def test_bounds_without_an_integer_inside_are_named():
    builder = ProgramBuilder()
    builder.column("x", lower=0.2, upper=0.8, integer=True)
    outcome = solve_program(builder.build())
    assert outcome.status is Status.INFEASIBLE
    assert outcome.conflict == ("bounds of x",)


def test_unbounded_is_told_from_infeasible():
    builder = ProgramBuilder()
    x = builder.column("x", cost=-1.0)
    builder.row("floor", {x: 1.0}, lower=0.0)
    assert solve_program(builder.build()).status is Status.UNBOUNDED


def test_no_time_gives_no_made_up_answer():
    rng = np.random.default_rng(0)
    builder = ProgramBuilder()
    columns = [
        builder.column(f"x{i}", cost=float(c), integer=True, upper=5) for i, c in enumerate(rng.random(60))
    ]
    for r in range(40):
        terms = {c: float(v) for c, v in zip(columns, rng.random(60), strict=True)}
        builder.row(f"r{r}", terms, lower=float(60 * rng.random()))
    outcome = solve_program(builder.build(), time_limit_s=1e-6, rel_gap=0.0)
    assert outcome.status is not Status.OPTIMAL
    assert (outcome.solution is None) == (outcome.status is not Status.FEASIBLE)


def test_scaling_keeps_the_program():
    builder = ProgramBuilder()
    x = builder.column("x", cost=1e-7, upper=4.0)
    y = builder.column("y", cost=5.0, integer=True)
    builder.row("r", {x: 1e6, y: 3e-4}, lower=1.0, upper=9.0)
    program = builder.build()
    scaled, columns, cost = scale_program(program)
    values = np.array([0.5, 2.0])
    assert scaled.cost @ (values / columns) / cost == pytest.approx(program.cost @ values)
    ratio = scaled.activity(values / columns)[0] / program.activity(values)[0]
    assert ratio == pytest.approx(scaled.row_lower / program.row_lower)
    assert columns[1] == 1.0


def test_other_solvers_by_name():
    program = knapsack([3.0, 4.0], [1.0, 2.0], 2.0)
    with pytest.raises(UnknownNameError, match="no solver is called 'higs'"):
        solve_program(program, solver="higs")
    with pytest.raises(InputError, match="not installed"):
        solve_program(program, solver="choco_cmd")


def test_lp_text_names_every_row_and_column():
    program = knapsack([3.0, 4.0], [1.0, 2.0], 2.0)
    assert lp_text(program) == (
        "Minimize\n cost: -3 take_0 -4 take_1\nSubject To\n capacity: +1 take_0 +2 take_1 <= 2\n"
        "Bounds\n 0 <= take_0 <= 1\n 0 <= take_1 <= 1\nGeneral\n take_0\n take_1\nEnd\n"
    )


@pytest.mark.parametrize(("lower", "upper"), [(2.0, 1.0), (float("nan"), 1.0)])
def test_builder_rejects_bounds_out_of_order(lower, upper):
    with pytest.raises(ValueError, match="column x"):
        ProgramBuilder().column("x", lower=lower, upper=upper)


def test_builder_rejects_a_repeated_name():
    builder = ProgramBuilder()
    builder.column("x")
    builder.column("x")
    with pytest.raises(ValueError, match="column names must differ"):
        builder.build()


@pytest.mark.parametrize("known", [-9.0, -5.0])
def test_known_objective_right_or_wrong_leaves_the_optimum(known):
    program = knapsack([5.0, 4.0, 3.0], [2.0, 3.0, 1.0], 5.0)
    assert solve_program(program, known_objective=known, sub_mips=False).objective == pytest.approx(-9.0)
    assert solve_program(program, known_objective=-50.0).objective == pytest.approx(-9.0)

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.outcome import Status
from solvers.stage_split import StageSplitProblem, solve_stage_split


def brute_force(problem):
    """Return the least objective over every contiguous split, None if none is allowed."""
    num_stages, num_layers = problem.layer_s.shape
    best = None
    for inner in itertools.combinations_with_replacement(range(num_layers + 1), num_stages - 1):
        cuts = (0, *inner, num_layers)
        times, crossing = [], 0.0
        for i, (a, b) in enumerate(itertools.pairwise(cuts)):
            used = problem.layer_bytes[i, a:b].sum() + problem.base_bytes[i]
            if b - a < problem.min_layers or used > problem.limit_bytes[i]:
                break
            cut = problem.cut_s[i, b] if i < num_stages - 1 else 0.0
            times.append(problem.layer_s[i, a:b].sum() + problem.base_s[i] + cut * problem.cuts_in_stage)
            crossing += cut * (not problem.cuts_in_stage)
        else:
            value = (problem.num_micro_batches - 1) * max(times) + sum(times) + crossing
            best = value if best is None else min(best, value)
    return best


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 4),
    st.integers(1, 7),
    st.integers(1, 9),
    st.integers(0, 1),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_split_agrees_with_brute_force(num_stages, num_layers, num_micro_batches, min_layers, in_stage, seed):
    rng = np.random.default_rng(seed)
    problem = StageSplitProblem(
        layer_s=rng.integers(1, 9, (num_stages, num_layers)).astype(float),
        base_s=rng.integers(0, 4, num_stages).astype(float),
        cut_s=rng.integers(0, 5, (num_stages - 1, num_layers + 1)).astype(float),
        cuts_in_stage=in_stage,
        layer_bytes=rng.integers(1, 5, (num_stages, num_layers)).astype(float),
        base_bytes=rng.integers(0, 3, num_stages).astype(float),
        limit_bytes=rng.integers(3, 20, num_stages).astype(float),
        num_micro_batches=num_micro_batches,
        min_layers=min_layers,
    )
    outcome = solve_stage_split(problem)
    expected = brute_force(problem)
    if expected is None:
        assert outcome.status is Status.INFEASIBLE
        assert outcome.solution is None
        return
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective == pytest.approx(expected)
    found = outcome.unwrap()
    assert sum(found.num_layers) == num_layers
    assert min(found.num_layers) >= min_layers
    assert all(b <= lim for b, lim in zip(found.stage_bytes, problem.limit_bytes, strict=True))


def test_speed_ratio_decides_the_layers():
    """A stage 16/14 as fast takes 16 of 30 equal layers."""
    speed = np.array([16.0, 14.0])
    outcome = solve_stage_split(
        StageSplitProblem(layer_s=np.ones(30)[None] / speed[:, None], num_micro_batches=32)
    )
    assert outcome.unwrap().num_layers == (16, 14)


def test_the_head_takes_layers_from_the_last_stage():
    problem = StageSplitProblem(
        layer_s=np.ones((4, 14)), base_s=np.array([0.0, 0.0, 0.0, 2.0]), num_micro_batches=64
    )
    assert solve_stage_split(problem).unwrap().num_layers == (4, 4, 4, 2)


def test_infeasible_names_the_stage_that_is_too_small():
    problem = StageSplitProblem(
        layer_s=np.ones((2, 4)),
        layer_bytes=np.ones((2, 4)),
        limit_bytes=np.array([3.0, 0.5]),
        num_micro_batches=2,
    )
    outcome = solve_stage_split(problem)
    assert outcome.status is Status.INFEASIBLE
    assert outcome.conflict == ("memory of stage 1",)


def test_more_stages_than_layers_is_infeasible():
    outcome = solve_stage_split(StageSplitProblem(layer_s=np.ones((3, 2)), num_micro_batches=1))
    assert outcome.conflict == ("3 stages of at least 1 of 2 layers",)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="cut_s has shape"):
        StageSplitProblem(layer_s=np.ones((2, 4)), cut_s=np.ones((2, 4)), num_micro_batches=1)

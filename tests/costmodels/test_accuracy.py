import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.accuracy import errors, feasibility, rank_correlation


def test_errors_by_hand() -> None:
    """Two groups: the first ranks right, the second picks a run 50 % slower than the best."""
    measured = np.array([1.0, 2.0, 2.0, 3.0])
    predicted = np.array([1.1, 2.0, 3.0, 2.7])
    e = errors(predicted, measured, predicted * 0.8, predicted * 1.2, ["a", "a", "b", "b"])
    assert e.mape_frac == pytest.approx((0.1 + 0.0 + 0.5 + 0.1) / 4)
    assert e.median_ape_frac == pytest.approx(0.1)
    assert e.regret_mean_frac == pytest.approx((0.0 + 0.5) / 2)
    assert e.regret_max_frac == pytest.approx(0.5)
    assert e.random_regret_frac == pytest.approx((0.5 + 0.25) / 2)
    assert e.top1_frac == 0.5
    assert (e.spearman, e.kendall) == (0.0, 0.0)
    assert e.interval_coverage_frac == pytest.approx(0.75)
    assert e.num_groups == 2


def test_nothing_gives_null_not_a_number() -> None:
    empty = np.zeros(0)
    data = errors(empty, empty, empty, empty, []).to_json()
    assert data["num_rows"] == 0
    assert data["mape_frac"] is None


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=12, unique=True))
def test_rank_correlation_is_one_for_any_monotone_map(values: list[int]) -> None:
    x = np.array(values, dtype=np.float64)
    rho, tau = rank_correlation(x, 3 * x + 1)
    assert rho == pytest.approx(1.0)
    assert tau == pytest.approx(1.0)
    rho, tau = rank_correlation(x, -x)
    assert rho == pytest.approx(-1.0)
    assert tau == pytest.approx(-1.0)


def test_ties_share_their_regret() -> None:
    """A model that predicts the same for all is no better than choosing at random."""
    measured = np.array([1.0, 2.0, 3.0])
    same = np.ones(3)
    e = errors(same, measured, same, same, ["g"] * 3)
    assert e.regret_mean_frac == pytest.approx(e.random_regret_frac)
    assert math.isnan(e.spearman)


def test_feasibility_by_hand() -> None:
    oom = np.array([True, True, False, False, False])
    fits = np.array([False, True, True, False, True])
    predicted = np.array([1.0, 1.0, 2.0, 3.0, 5.0])
    measured = np.array([np.nan, np.nan, 2.0, 3.0, 4.0])
    f = feasibility(oom, fits, predicted, measured, ["t", "t", "t", "u", "u"])
    assert f.recall_frac == 0.5
    assert f.precision_frac == 0.5
    assert f.num_tasks == 2
    assert f.num_oom_picks == 1
    assert f.regret_mean_frac == pytest.approx(4.0 / 3.0 - 1.0)

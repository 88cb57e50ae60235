import json

import numpy as np
import pytest

from costmodels.power.kernels import SOURCES, matmul_power
from costmodels.power.trees import FreeTrees, fit_free_trees
from hardware.errors import OutOfDomainError


def test_trees_predict_as_the_library_that_fitted_them_and_survive_json():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = x[:, 0] * 2 + (x[:, 1] > 0)
    trees = fit_free_trees(
        x, y, num_trees=40, num_leaves=9, learning_rate=0.2, min_rows_per_leaf=5, features_frac=1.0
    )
    assert np.abs(trees.predict(x) - y).mean() < 0.15
    again = FreeTrees.from_json(json.loads(json.dumps(trees.to_json())))
    assert again.predict(x) == pytest.approx(trees.predict(x), abs=2e-2)
    assert again.predict(x[:1])[0] == pytest.approx(again.predict(x)[0])


def test_trees_for_the_relative_error_answer_what_errs_least_and_not_the_mean():
    """Of six readings of 100 and four of 50, 50 errs 0.3 in the mean, 100 errs 0.4 and 76 errs 0.35.

    A corner that is rounded below 0.05 moves the least error to 52.8.
    """
    watts = np.tile([100.0] * 6 + [50.0] * 4, 40)
    x = np.arange(len(watts), dtype=float)[:, None] // 40
    size = {"num_trees": 100, "num_leaves": 3, "learning_rate": 0.2, "min_rows_per_leaf": 80}
    settings = size | {"features_frac": 1.0}
    relative = fit_free_trees(x, np.log(watts), smoothing=0.05, **settings)
    squared = fit_free_trees(x, np.log(watts), **settings)
    assert np.exp(relative.predict(x)) == pytest.approx(np.full(len(x), 52.8), rel=0.02)
    assert np.exp(squared.predict(x)) == pytest.approx(np.full(len(x), 100 * 0.5**0.4), rel=0.02)


@pytest.mark.parametrize("device", sorted(SOURCES))
def test_large_products_draw_twice_what_launch_bound_ones_do_and_never_more_than_rated(device):
    power = matmul_power(device)
    assert power is not None
    watts = power.draw_w(
        np.array([8192.0, 4.0]), np.array([8192.0, 256.0]), np.array([8192.0, 256.0]), "bf16"
    )
    assert watts[0] > 2 * watts[1] >= 2 * power.least_w
    assert watts[1] < 0.5 * power.machine.rated_w
    assert watts.max() <= power.machine.rated_w


def test_a_format_that_the_source_did_not_measure_is_refused_by_name():
    power = matmul_power("h200")
    assert power is not None
    with pytest.raises(OutOfDomainError, match="measured no nvfp4 products; it has bf16, fp8-block"):
        power.draw_w(*(np.array([64.0]) for _ in range(3)), "nvfp4")


def test_a_device_that_no_source_measured_has_none():
    assert matmul_power("h100") is None

import json

import numpy as np
import pytest

from costmodels.power.session import SessionDrift, fit_session, others_drift
from costmodels.power.shape_draw import DrawSettings, ShapeDraw, Shapes, fit_shape_draw


def _readings(num_rows=40):
    rng = np.random.default_rng(0)
    m, n = (np.repeat(2.0 ** rng.integers(4, 9, num_rows), 6) for _ in range(2))
    k = np.tile(2.0 ** np.arange(5, 11), num_rows)
    group = np.zeros(len(m), dtype=np.int64)
    _, first = np.unique(np.stack([m, n, k]), axis=1, return_index=True)
    return group[first], m[first], n[first], k[first]


def test_a_lone_reading_says_nothing_of_itself_and_its_neighbours_say_the_run():
    group = np.zeros(3, dtype=np.int64)
    m, n, k = np.full(3, 8.0), np.array([64.0, 64.0, 128.0]), np.array([32.0, 64.0, 32.0])
    residual = np.array([-0.8, -0.8, 0.5])
    drift = others_drift(group, m, n, k, residual)
    near = np.exp(-1 / 1.5)
    assert drift[:2, 0] == pytest.approx(-0.8 * near / (near + 0.3))
    assert drift[2].tolist() == [0.0, 0.0]


def test_the_table_answers_at_measured_rows_and_columns_only_and_survives_json():
    group, m, n, k = _readings()
    table = fit_session(group, m, n, k, np.full(len(m), 0.4))
    again = SessionDrift.from_json(json.loads(json.dumps(table.to_json())))
    there = again.features(group, m, n, k)
    assert (there[:, 0] > 0.25).all()
    assert there[:, 0].max() <= 0.4
    assert again.features(group, m + 1, n, k).max() == 0.0
    assert again.features(group, m, n + 3, k).max() == 0.0


def test_runs_read_low_are_learned_from_their_neighbours():
    group, m, n, k = _readings()
    low = ((np.log2(m) + np.log2(n)) % 2 == 0) * -1.0
    features = np.log(np.stack([m, n, k], axis=1))
    shapes = Shapes(features=features, m=m, n=n, k=k, group=group)
    settings = DrawSettings(num_trees=5, num_leaves=3, learning_rate=0.3, min_rows_per_leaf=5, drifts=True)
    plain = DrawSettings(num_trees=5, num_leaves=3, learning_rate=0.3, min_rows_per_leaf=5)
    target = 0.1 * np.log(k) + low
    fits = [fit_shape_draw(shapes, target, ("bf16",), s) for s in (settings, plain)]
    again = ShapeDraw.from_json(json.loads(json.dumps(fits[0].to_json())))
    errors = [np.abs(f.log_share(shapes) - target).mean() for f in (again, fits[1])]
    assert errors[0] < 0.5 * errors[1]

import numpy as np
import pytest

from solvers.placement_links import believe_links, draw_links, solve_robust_placement
from solvers.placement_problem import PlacementProblem, chain_term


def pipeline(size):
    return PlacementProblem(
        num_units=size,
        seconds_per_byte=np.ones((1, size, size)),
        terms=(chain_term("hops", np.arange(size)[None], 1.0, 1.0),),
    )


def test_equal_snapshots_are_believed_as_they_are():
    rng = np.random.default_rng(0)
    links = rng.uniform(1.0, 2.0, (6, 6))
    belief = believe_links(np.stack([links, links]))
    assert belief.lasting_weight == 1.0
    assert np.exp(belief.log_seconds_per_byte) == pytest.approx(1 / links)
    assert belief.spread == pytest.approx(0.0)


def test_pure_noise_is_drawn_to_the_mean():
    """Two snapshots without anything in common leave next to nothing to place by."""
    rng = np.random.default_rng(1)
    belief = believe_links(np.exp(0.1 * rng.standard_normal((2, 30, 30))))
    assert belief.lasting_weight < 0.1


def test_more_snapshots_are_believed_more():
    rng = np.random.default_rng(2)
    lasting = 0.05 * rng.standard_normal((20, 20))
    snapshots = np.exp(lasting + 0.05 * rng.standard_normal((8, 20, 20)))
    few, many = believe_links(snapshots[:2]), believe_links(snapshots)
    assert few.lasting_weight < many.lasting_weight
    assert few.lasting_weight == pytest.approx(2 / 3, abs=0.1)


def test_classes_have_their_own_mean():
    links = np.where(np.add.outer(np.arange(4) // 2, -(np.arange(4) // 2)) == 0, 200.0, 10.0)
    belief = believe_links(links[None], link_class=(links > 100).astype(np.int64))
    off = ~np.eye(4, dtype=bool)
    assert np.exp(belief.log_seconds_per_byte)[off] == pytest.approx(1 / links[off])


def test_scenarios_spread_as_believed():
    belief = believe_links(
        np.exp(0.2 * np.random.default_rng(3).standard_normal((1, 5, 5))), assumed_spread=0.05
    )
    logs = np.log(draw_links(belief, 4_000, np.random.default_rng(0)))
    off = ~np.eye(5, dtype=bool)
    assert logs.std(axis=0)[off] == pytest.approx(belief.spread[off], rel=0.1)


def test_noise_alone_keeps_the_default_order():
    rng = np.random.default_rng(4)
    belief = believe_links(np.exp(0.02 * rng.standard_normal((1, 8, 8))))
    placed = solve_robust_placement(pipeline(8), belief, np.arange(8), num_scenarios=20)
    assert placed.is_default
    assert placed.site_of.tolist() == list(range(8))
    assert placed.gain_low_frac <= 0.0 <= placed.gain_high_frac


def test_a_clear_gain_is_taken_and_holds_on_another_day():
    """Hosts alternate between two leaves; the default order crosses them at every hop."""
    rng = np.random.default_rng(5)
    leaf = np.arange(8) % 2
    lasting = np.where(leaf[:, None] == leaf, 20.0, 10.0)
    days = lasting * np.exp(0.03 * rng.standard_normal((2, 8, 8)))
    placed = solve_robust_placement(pipeline(8), believe_links(days[:1]), np.arange(8), num_scenarios=20)
    assert not placed.is_default
    assert placed.gain_low_frac > 0.2
    hops = [
        1 / days[1, a, b] + 1 / days[1, b, a]
        for a, b in zip(placed.site_of, placed.site_of[1:], strict=False)
    ]
    default = [1 / days[1, i, i + 1] + 1 / days[1, i + 1, i] for i in range(7)]
    true_gain = 1 - sum(hops) / sum(default)
    assert true_gain == pytest.approx(placed.gain_frac, abs=0.05)

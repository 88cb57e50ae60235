"""Tilings of a host against all permutations, and Frontier's own."""

from itertools import permutations
from math import factorial

import numpy as np
import pytest

from hardware.catalog import find_cluster, find_node
from planner.training.device_order import follow_links, link_rates
from planner.training.ranks import default_placement
from solvers.tiling import best_tiling, partitions


def test_all_partitions_once() -> None:
    for count, size in ((4, 2), (6, 3), (8, 4)):
        found = list(partitions(count, size))
        groups = count // size
        assert (
            len(found)
            == len(set(found))
            == factorial(count) // (factorial(size) ** groups * factorial(groups))
        )
    with pytest.raises(ValueError, match="do not fall"):
        list(partitions(5, 2))


@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_all_permutations(seed: int) -> None:
    rates = np.random.default_rng(seed).integers(0, 5, (6, 6)).astype(float)
    rates = rates + rates.T
    best = best_tiling(rates, 2)
    assert best is not None

    def score(groups: tuple[tuple[int, ...], ...]) -> tuple[float, float]:
        inside = [float(rates[np.ix_(g, g)].sum()) for g in groups]
        return min(inside), sum(inside)

    every = (tuple(tuple(p[i : i + 2]) for i in range(0, 6, 2)) for p in permutations(range(6)))
    assert score(best) == max(map(score, every))


def test_frontier_tilings_hold_ten_links() -> None:
    """{0123}{4567} and {0167}{2345} have ten links of 50 GB/s inside each group; the first is the default."""
    rates = link_rates(find_node("frontier").topology)
    tiling = best_tiling(rates, 4)
    assert tiling == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert [rates[np.ix_(g, g)].sum() / 2 for g in tiling] == [500e9, 500e9]
    other = ((0, 1, 6, 7), (2, 3, 4, 5))
    assert [rates[np.ix_(g, g)].sum() / 2 for g in other] == [500e9, 500e9]
    assert best_tiling(rates, 2) == ((0, 1), (2, 3), (4, 5), (6, 7))


def test_ranks_move_to_linked_devices(tmp_path) -> None:
    """Devices 0 and 2, 1 and 3 are linked: tensor groups of two take those pairs."""
    from costmodels.strategy import Strategy

    path = tmp_path / "crossed.yaml"
    path.write_text(
        "name: crossed\n"
        "groups: [{node: box, count: 2}]\n"
        "nodes:\n"
        "  box:\n"
        "    device: mi300x\n"
        "    parts:\n"
        "      - {id: gpu, count: 4, kind: accelerator}\n"
        "      - {id: nic, kind: nic, technology: roce, bytes_per_s: 50 GB/s}\n"
        "      - {id: cpu, kind: cpu}\n"
        "    links:\n"
        "      - {each: [gpu0, gpu2], technology: xgmi, bytes_per_s: 64 GB/s, latency_s: 1 us}\n"
        "      - {each: [gpu1, gpu3], technology: xgmi, bytes_per_s: 64 GB/s, latency_s: 1 us}\n"
        "      - {each: ['gpu*', cpu], technology: pcie5, bytes_per_s: 32 GB/s, latency_s: 1 us}\n"
        "      - {each: [cpu, nic], technology: pcie5, bytes_per_s: 50 GB/s, latency_s: 1 us}\n"
        "    fabrics:\n"
        "      - {name: net, kind: clos, technology: roce, latency_s: 5 us}\n"
    )
    cluster = find_cluster(path)
    strategy = Strategy(tp=2, dp=4)
    placed, notes = follow_links(default_placement(strategy, cluster), strategy, cluster)
    assert [rank.device for rank in placed.ranks] == [0, 2, 1, 3] * 2
    assert "{0 2} {1 3}" in notes[0]
    whole = Strategy(tp=1, dp=8)
    assert follow_links(default_placement(whole, cluster), whole, cluster)[1] == ()

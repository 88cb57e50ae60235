import numpy as np
import pytest

from hardware.catalog import find_cluster, find_node, node_names
from hardware.matrices import node_matrices, pair_matrices

GB = 1e9


@pytest.mark.parametrize("name", [name for name in node_names() if find_node(name).num_devices <= 16])
def test_one_path_is_never_wider_than_all_paths(name: str) -> None:
    matrices = node_matrices(find_node(name).topology)
    off = ~np.eye(len(matrices.devices), dtype=bool)
    assert (matrices.widest_bytes_per_s[off] <= matrices.max_flow_bytes_per_s[off] * (1 + 1e-9)).all()
    assert (matrices.max_flow_bytes_per_s == matrices.max_flow_bytes_per_s.T).all()
    assert (matrices.hops[off] >= 1).all()
    assert (np.diag(matrices.latency_s) == 0).all()


def test_frontier_pairs() -> None:
    matrices = node_matrices(find_node("frontier").topology)
    widest = matrices.widest_bytes_per_s / GB
    assert (widest[0, 1], widest[0, 6], widest[2, 4], widest[0, 5], widest[1, 3]) == (200, 100, 100, 50, 50)
    assert matrices.hops.max() == 2


def test_pools_that_no_path_avoids_are_named() -> None:
    matrices = node_matrices(find_node("aws-g6e").topology)
    assert matrices.pool[0][1] is None
    assert matrices.pool[0][2] == "socket0"
    assert matrices.pool[5][7] == "socket1"


def test_pairs_of_a_mixed_cluster_use_the_best_common_fabric() -> None:
    pairs = pair_matrices(find_cluster("holmes-hybrid"))
    rate = pairs.bytes_per_s / GB
    assert (rate[0, 7], rate[0, 8], rate[16, 24], rate[0, 16]) == (300, 12.5, 6.25, 0.390625)
    assert np.isinf(np.diag(rate)).all()
    assert (rate == rate.T).all()
    assert pairs.node.tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8
    assert pairs.group.tolist() == [0] * 16 + [1] * 16


def test_pairs_of_a_dragonfly_know_near_from_far() -> None:
    pairs = pair_matrices(find_cluster("frontier", 256))
    assert pairs.bytes_per_s[0, 1] == 200 * GB
    assert pairs.bytes_per_s[0, 8] == pairs.bytes_per_s[0, 1023] == 12.5 * GB
    assert pairs.bytes_per_s[0, 1024] == pytest.approx(7.125 * GB)
    assert pairs.latency_s[0, 1024] > pairs.latency_s[0, 8] > pairs.latency_s[0, 1]

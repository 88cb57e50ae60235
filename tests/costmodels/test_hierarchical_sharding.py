from itertools import product

import numpy as np
import pytest

from costmodels.fabric_load import hashed_load, num_subflows, planned_load, split_load
from costmodels.hierarchical_sharding import (
    ShardRates,
    ShardScheme,
    shard_comm_s,
    shard_memory_bytes,
    shard_rates,
)
from costmodels.local_updates import local_update_cost
from hardware.catalog import find_cluster
from hardware.errors import OutOfDomainError

RATES = ShardRates(
    package_devices=2,
    node_devices=8,
    num_devices=384,
    package_bytes_per_s=200e9,
    node_bytes_per_s=100e9,
    rail_bytes_per_s=12.5e9,
    ring_bytes_per_s=25e9,
)


def test_times_by_hand():
    psi = 20e9
    assert shard_comm_s(ShardScheme.ZERO3, psi, RATES) == pytest.approx(120e9 * 383 / 384 / 25e9)
    expected = 20e9 / 200e9 + 0.5 * 20e9 * 7 / 8 / 100e9
    expected += 2 * 0.5 * 2.5e9 * 47 / 48 / 12.5e9 + 10e9 / 12.5e9 / 4
    assert shard_comm_s(ShardScheme.THREE_LEVEL, psi, RATES) == pytest.approx(expected)


def test_memory_of_three_levels():
    """20B on 384 dies: 20 + 5 + 0.6 GB, which fits 64 GB."""
    assert shard_memory_bytes(ShardScheme.THREE_LEVEL, 20e9, RATES) == pytest.approx(25.625e9)
    assert shard_memory_bytes(ShardScheme.ZERO3, 20e9, RATES) == pytest.approx(16 * 20e9 / 384)


def test_frontier_orders_the_schemes():
    rates = shard_rates(find_cluster("frontier", 48))
    assert (rates.package_devices, rates.node_devices, rates.num_devices) == (2, 8, 384)
    times = [shard_comm_s(scheme, 20e9, rates) for scheme in ShardScheme]
    assert times == sorted(times, reverse=True)


def test_nodes_without_packages_are_refused():
    with pytest.raises(OutOfDomainError, match="packages inside nodes"):
        shard_rates(find_cluster("dgx-a100", 4))


def test_local_updates_hide_what_a_round_covers():
    assert local_update_cost((1.0,), 12.0, local_steps=48, overlapped=True).step_s == 1.0
    partly = local_update_cost((1.0,), 12.0, local_steps=6, overlapped=True)
    assert partly.step_s == pytest.approx(2.0)
    assert partly.staleness_steps == 12
    assert local_update_cost((1.0, 2.0), 12.0, local_steps=6, overlapped=False).step_s == pytest.approx(4.0)
    with pytest.raises(ValueError, match="local_steps at least 1"):
        local_update_cost((1.0,), 1.0, local_steps=0, overlapped=True)


@pytest.mark.parametrize(("flows", "uplinks"), [(1, 1), (3, 2), (4, 3), (5, 2)])
def test_hashed_load_is_the_mean_over_all_choices(flows, uplinks):
    fullest = [np.bincount(choice).max() for choice in product(range(uplinks), repeat=flows)]
    assert hashed_load(flows, uplinks) == pytest.approx(np.mean(fullest))


def test_splitting_reaches_the_exact_share():
    """Six flows over four uplinks: four stay whole, two become two halves each."""
    assert num_subflows(6, 4) == 8
    assert split_load(6, 4) == 1.5 < planned_load(6, 4) < hashed_load(6, 4)
    assert num_subflows(8, 4) == 8
    with pytest.raises(ValueError, match="0 uplinks"):
        split_load(4, 0)

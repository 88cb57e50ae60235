from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from costmodels.training.local_updates import local_update_cost
from hardware.catalog import find_cluster
from hardware.fabric import Fabric, FabricKind, Routing
from hardware.fabric_load import hashed_load, num_subflows, planned_load, split_load


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


def test_routing_lowers_what_crosses_leaves():
    fabric = Fabric(
        name="net", kind=FabricKind.CLOS, technology="roce", latency_s=5e-6, leaf_nodes=4, uplinks=16,
        flows_per_node=8, oversubscription=2.0,
    )  # fmt: skip
    shares = {
        routing: replace(fabric, routing=routing).even_frac
        for routing in (Routing.ECMP, Routing.PLANNED, Routing.SPLIT)
    }
    assert fabric.even_frac == shares[Routing.SPLIT] == shares[Routing.PLANNED] == 1.0
    assert shares[Routing.ECMP] == pytest.approx(2.0 / hashed_load(32, 16))
    uneven = replace(fabric, uplinks=12, routing=Routing.PLANNED)
    assert uneven.even_frac == pytest.approx(32 / 12 / 3)
    with pytest.raises(ValueError, match="routing needs uplinks"):
        replace(fabric, uplinks=None, routing=Routing.ECMP)


def test_levels_of_a_routed_cluster():
    cluster = find_cluster(Path(__file__).resolve().parents[2] / "examples" / "clusters" / "clos-ecmp.yaml")
    near, far = cluster.levels[-2:]
    assert near.size == 32
    assert far.bytes_per_s == pytest.approx(near.bytes_per_s / 2 * 2 / hashed_load(32, 16))

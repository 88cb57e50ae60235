"""Borders of shards are searched on Frontier, and every nested choice is among what is tried."""

from itertools import product

import pytest

from hardware.catalog import find_cluster
from hardware.errors import OutOfDomainError
from planner.emit.training_launch import _refuse_islands
from planner.request import TrainRequest
from planner.training.flow import plan_training
from planner.training.sharding_plan import _borders, best_level_plans

REQUEST = TrainRequest(
    model="llama-2-13b",
    cluster="frontier",
    nodes=48,
    seq_len=2048,
    global_batch=384,
    stack="deepspeed-zero3-2021",
    quantized_sharding=True,
    allow={"pp": (1,), "tp": (1,), "zero": (3,)},
)


def test_package_node_and_world_levels_are_found() -> None:
    """With DeepSpeed's software the published division wins: package, node, world."""
    file = plan_training(REQUEST)
    best = file.plans[0]
    assert best.sharding is not None
    found = best.sharding
    assert (found.weight_ranks, found.gradient_ranks, found.optimizer_ranks) == (2, 8, 384)
    assert all(check.holds for check in best.certificate)
    names = {check.name for check in best.certificate}
    assert {"cost-independent-of-enumeration-order", "monotone-in-bandwidth"} <= names
    steps = [plan.predicted.step_s for plan in file.plans]
    assert steps == sorted(steps)
    with pytest.raises(OutOfDomainError, match="sharded over 2, 8 and 384 replicas"):
        _refuse_islands(best)


def test_every_nested_choice_is_tried() -> None:
    cluster = find_cluster("frontier", 4)
    found = {
        (b.weight_ranks, b.backward_ranks, b.gradient_ranks, b.optimizer_ranks)
        for b in _borders(cluster, 1, 32, quantized=False)
    }
    wanted = {
        (w, b, g, o)
        for w, b, g, o in product((2, 8, 32), repeat=4)
        if b <= w <= o and g <= o and len({w, b, g, o}) > 1
    }
    assert found == wanted


def test_other_requests_are_left_alone() -> None:
    from dataclasses import replace

    from planner.request import resolve

    for changes in ({"allow": {"zero": (1,)}}, {"allow": {"pp": (4,)}}, {"cluster": "dgx-a100", "nodes": 4}):
        request = replace(REQUEST, **changes)
        job, cluster = resolve(request)
        assert best_level_plans(request, job, cluster) == ([], 0)

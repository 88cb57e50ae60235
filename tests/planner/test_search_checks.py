"""Certificates hold on unlike clusters, and a cost that breaks them is named."""

import pytest

from hardware.catalog import find_cluster
from planner.request import TrainRequest
from planner.training.flow import plan_training
from planner.training.plan_checks import bandwidth_check, order_check
from planner.training.search_checks import halved_networks


@pytest.mark.parametrize(
    ("cluster", "nodes"), [("dgx-a100", 4), ("frontier", 4), ("dgx-h100", 1), ("cloudmatrix384", None)]
)
def test_the_best_plan_states_order_and_bandwidth(cluster: str, nodes: int | None) -> None:
    request = TrainRequest(
        model="gpt3-1.3b", cluster=cluster, nodes=nodes, seq_len=2048, global_batch=768, top=2
    )
    for plan in plan_training(request).plans:
        checks = {check.name: check for check in plan.certificate}
        assert checks["cost-independent-of-enumeration-order"].holds
        assert checks["monotone-in-bandwidth"].holds


@pytest.mark.parametrize("attained", [{}, {"infiniband": 197.0, "roce": 160.0}])
def test_pipelines_over_groups_state_order_and_bandwidth(attained: dict[str, float]) -> None:
    request = TrainRequest(
        model="gpt3-1.3b",
        cluster="holmes-hybrid",
        seq_len=2048,
        global_batch=256,
        attained=attained,
    )
    mixed = [plan for plan in plan_training(request).plans if plan.stages]
    assert mixed
    for plan in mixed:
        checks = {check.name: check for check in plan.certificate}
        assert checks["cost-independent-of-enumeration-order"].holds
        assert checks["monotone-in-bandwidth"].holds


def test_a_broken_order_or_bandwidth_is_named() -> None:
    assert not order_check(1e-3, "2 groups").holds
    assert "2 groups" in order_check(1e-3, "2 groups").detail
    assert not bandwidth_check(0.9).holds
    assert bandwidth_check(1.0).holds


def test_half_the_network_is_half_the_outer_level() -> None:
    cluster = find_cluster("dgx-a100", 4)
    whole, half = cluster.levels, halved_networks(cluster).levels
    assert half[-1].bytes_per_s == pytest.approx(whole[-1].bytes_per_s / 2)
    assert half[0].bytes_per_s == whole[0].bytes_per_s

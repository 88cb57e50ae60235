"""Certificates hold on unlike clusters, and a cost that breaks them is named."""

import pytest

from hardware.catalog import find_cluster
from planner.request import TrainRequest
from planner.training.flow import plan_training
from planner.training.search_checks import halved_networks


@pytest.mark.parametrize(
    ("cluster", "nodes"), [("dgx-a100", 4), ("frontier", 4), ("dgx-h100", 1), ("cloudmatrix384", None)]
)
def test_the_best_plan_states_order_and_bandwidth(cluster: str, nodes: int | None) -> None:
    request = TrainRequest(
        model="gpt3-1.3b", cluster=cluster, nodes=nodes, seq_len=2048, global_batch=768, top=2
    )
    plans = plan_training(request).plans
    checks = {check.name: check for plan in plans for check in plan.certificate}
    assert checks["cost-independent-of-enumeration-order"].holds
    assert "monotone-in-bandwidth" not in checks or checks["monotone-in-bandwidth"].holds


def test_half_the_network_is_half_the_outer_level() -> None:
    cluster = find_cluster("dgx-a100", 4)
    whole, half = cluster.levels, halved_networks(cluster).levels
    assert half[-1].bytes_per_s == pytest.approx(whole[-1].bytes_per_s / 2)
    assert half[0].bytes_per_s == whole[0].bytes_per_s

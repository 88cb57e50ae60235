"""What is checked of the costs behind a search: row order changes nothing, less bandwidth is not faster."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hardware.cluster import Cluster
from hardware.fabric import Fabric
from planner.plan import Check
from planner.training.plan_checks import bandwidth_check, order_check

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

__all__ = ["halved_networks", "search_checks"]

StepsOf = Callable[[Cluster, Index], Floats]
"""Step times of the rows with these indices on a cluster. [s]"""


def search_checks(num_rows: int, cluster: Cluster, steps_s: StepsOf) -> tuple[Check, ...]:
    """Return the checks of the rows that a search returned, costed again in another order and on less."""
    rows = np.arange(num_rows)
    steps = steps_s(cluster, rows)
    again = steps_s(cluster, rows[::-1])[::-1]
    checks = [order_check(float(np.max(np.abs(again / steps - 1.0))), f"{num_rows} rows")]
    if cluster.fabrics:
        slower = steps_s(halved_networks(cluster), rows)
        checks.append(bandwidth_check(float(np.min(slower / steps))))
    return tuple(checks)


def halved_networks(cluster: Cluster) -> Cluster:
    """Return the cluster with every network between nodes at half its rate."""
    return replace(cluster, fabrics=tuple(_halved(fabric, cluster) for fabric in cluster.fabrics))


def _halved(fabric: Fabric, cluster: Cluster) -> Fabric:
    if fabric.link_bytes_per_s is not None:
        return replace(fabric, link_bytes_per_s=fabric.link_bytes_per_s / 2)
    attached = [group.node for group in cluster.groups if fabric.name in group.fabrics]
    if fabric.node_bytes_per_s is None and not attached:
        return fabric
    rated = fabric.node_bytes_per_s or min(node.nic_bytes_per_s(fabric.technology) for node in attached)
    return replace(fabric, node_bytes_per_s=rated / 2)

"""What is checked of the costs behind a search: row order changes nothing, less bandwidth is not faster."""

from dataclasses import replace

import numpy as np

from costmodels.job import TrainingJob
from costmodels.strategy import ConfigTable
from costmodels.training.evaluate import evaluate
from hardware.cluster import Cluster
from hardware.fabric import Fabric
from planner.plan import Check

__all__ = ["halved_networks", "search_checks"]

_ROUNDING_FRAC = 1e-9


def search_checks(configs: ConfigTable, job: TrainingJob, cluster: Cluster) -> tuple[Check, ...]:
    """Return the checks of the rows that a search returned, costed again without learned corrections."""
    steps = evaluate(job, cluster, configs, corrected=False).step_s
    backwards = np.arange(len(configs))[::-1]
    again = evaluate(job, cluster, configs.take(backwards), corrected=False).step_s[::-1]
    moved = float(np.max(np.abs(again / steps - 1.0)))
    checks = [
        Check(
            name="cost-independent-of-enumeration-order",
            holds=moved <= _ROUNDING_FRAC,
            detail=f"{len(configs)} rows in both orders differ by at most {moved:.1g}",
        )
    ]
    if cluster.fabrics:
        slower = evaluate(job, halved_networks(cluster), configs, corrected=False).step_s
        least = float(np.min(slower / steps))
        checks.append(
            Check(
                name="monotone-in-bandwidth",
                holds=least >= 1.0 - _ROUNDING_FRAC,
                detail=f"at half the network's rate steps take {least:.3f} times as long or longer",
            )
        )
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

"""Ranks of a training plan: which device each runs on and what it is in every parallel group."""

import numpy as np

from costmodels.strategy import Strategy
from hardware.cluster import Cluster
from planner.plan import Placement, PlannedRank

__all__ = ["default_placement", "host_names", "rank_coordinates"]


def host_names(cluster: Cluster) -> list[tuple[str, int]]:
    """Return (host, index of the device inside it) of every device, in the cluster's order.

    A host is one operating system; a node (a rack of trays, say) may hold several.
    """
    places = []
    for index, group in enumerate(cluster.groups):
        label = group.node.name if cluster.is_homogeneous else f"{group.name or index}-{group.node.name}"
        size = group.node.devices_per_host or group.node.num_devices
        for node in range(group.count):
            hosts = range(-(-group.node.num_devices // size))
            names = [f"{label}-{node * len(hosts) + host}" for host in hosts]
            places += [(names[i // size], i % size) for i in range(group.node.num_devices)]
    return places


def rank_coordinates(strategy: Strategy) -> list[dict[str, int]]:
    """Return every rank's position in each parallel group.

    The order is Megatron's default, innermost first: tp, cp, dp, pp (`tp-cp-ep-dp-pp`). Experts are spread
    over the same ranks of a stage as etp, ep, then their replicas.
    """
    rank = np.arange(strategy.world)
    sizes = (("tp", strategy.tp), ("cp", strategy.cp), ("dp", strategy.dp), ("pp", strategy.pp))
    columns = {}
    stride = 1
    for name, size in sizes:
        columns[name] = rank // stride % size
        stride *= size
    if strategy.ep > 1 or strategy.etp not in (1, strategy.tp):
        columns["etp"] = rank % strategy.etp
        columns["ep"] = rank // strategy.etp % strategy.ep
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def default_placement(strategy: Strategy, cluster: Cluster) -> Placement:
    """Return the placement that a launcher makes on its own: ranks in order over the devices in order."""
    places = host_names(cluster)
    coordinates = rank_coordinates(strategy)
    ranks = (
        PlannedRank(rank=rank, host=host, device=device, coordinates=at)
        for rank, ((host, device), at) in enumerate(zip(places, coordinates, strict=True))
    )
    return Placement(ranks=tuple(ranks))

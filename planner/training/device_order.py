"""Which device of a host a rank takes, so that tensor groups lie on the links that join them."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from costmodels.strategy import Strategy
from hardware.cluster import Cluster
from hardware.topology import Topology
from planner.plan import Placement
from solvers.tiling import best_tiling

__all__ = ["follow_links", "link_rates"]

Floats = npt.NDArray[np.float64]


def link_rates(topology: Topology) -> Floats:
    """Return the rate of direct links between devices, host links left out. shape (devices, devices) [B/s]"""
    index = {device: i for i, device in enumerate(topology.devices)}
    rates = np.zeros((len(index), len(index)))
    for link in topology.links:
        if link.a in index and link.b in index and not link.is_host:
            i, j = index[link.a], index[link.b]
            rates[i, j] += link.total_bytes_per_s
            rates[j, i] += link.total_bytes_per_s
    return rates


def follow_links(
    placement: Placement, strategy: Strategy, cluster: Cluster
) -> tuple[Placement, tuple[str, ...]]:
    """Return the placement with the devices of each host ordered by links, and a sentence where it matters.

    Only hosts whose devices are linked unevenly and hold several whole tensor groups have a choice.
    """
    node = cluster.groups[0].node
    size = node.num_devices
    if not cluster.is_homogeneous or node.num_hosts > 1 or strategy.tp == 1 or size % strategy.tp:
        return placement, ()
    rates = link_rates(node.topology)
    if strategy.tp == size or len(np.unique(rates[~np.eye(size, dtype=bool)])) < 2:
        return placement, ()
    tiling = best_tiling(rates, strategy.tp)
    if tiling is None:
        return placement, ()
    order = [device for group in tiling for device in group]
    inside = min(float(rates[np.ix_(group, group)].sum()) / 2 for group in tiling)
    shown = " ".join("{" + " ".join(map(str, group)) + "}" for group in tiling)
    note = (
        f"tensor groups of {strategy.tp} follow the links of a host: {shown}, {inside / 1e9:.0f} GB/s inside"
    )
    ranks = tuple(replace(rank, device=order[rank.device]) for rank in placement.ranks)
    return replace(placement, ranks=ranks), (note,)

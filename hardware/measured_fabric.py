"""Fabrics as fast as the links between their hosts were measured to be.

mpiGraph drives one port of every host at a time, so a host sends as many times the measured rate as it has
ports, and never more than its data sheet says. Collectives run in rings of hosts, and a ring is as fast as
its slowest link: a fabric is rated by the slowest link that the rings in the hosts' own order take over it,
those of each group and the one of all hosts.
"""

from dataclasses import replace
from itertools import accumulate

from hardware.cluster import Cluster
from hardware.fabric import Fabric, FabricKind
from hardware.measured_links import MeasuredLinks

__all__ = ["with_measured_fabrics"]


def with_measured_fabrics(cluster: Cluster) -> Cluster:
    """Return the cluster with the rates of its fabrics lowered to what its measured links attain.

    A cluster without measured links, and a fabric that none of those rings takes, stay as they are.
    """
    links = cluster.measured_links
    if links is None:
        return cluster
    slowest = _slowest_links(cluster, links)
    fabrics = tuple(_as_measured(cluster, fabric, slowest.get(fabric.name)) for fabric in cluster.fabrics)
    return replace(cluster, fabrics=fabrics)


def _slowest_links(cluster: Cluster, links: MeasuredLinks) -> dict[str, float]:
    """Return the slowest link of the rings over each fabric, mean over the snapshots. [B/s]"""
    sizes = [group.count * group.node.num_hosts for group in cluster.groups]
    starts = list(accumulate(sizes, initial=0))
    group_of = [index for index, size in enumerate(sizes) for _ in range(size)]
    rings = [range(starts[index], starts[index + 1]) for index in range(len(sizes))]
    found: dict[str, float] = {}
    for ring in (*rings, range(starts[-1])):
        for here, there in zip(ring, [*ring[1:], ring[0]], strict=True):
            if here == there:
                continue
            name = cluster.fabric_between(group_of[here], group_of[there]).name
            rate = float(links.mean_bytes_per_s[here, there])
            found[name] = min(rate, found.get(name, rate))
    return found


def _as_measured(cluster: Cluster, fabric: Fabric, link_bytes_per_s: float | None) -> Fabric:
    if link_bytes_per_s is None or fabric.kind is FabricKind.TORUS:
        return fabric
    rates = [
        (min(link_bytes_per_s * group.node.num_ports(fabric.technology) * group.node.num_hosts, rated), rated)
        for index, group in enumerate(cluster.groups)
        if fabric.name in group.fabrics
        for rated in [cluster.node_bytes_per_s(index, fabric.name)]
    ]
    attained, rated = min(rates)
    return replace(fabric, node_bytes_per_s=attained, attained_frac=attained / rated)

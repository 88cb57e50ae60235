"""Arrays by pairs of devices: hops, latency, widest path and maximum flow in a node; rates in a cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from hardware.cluster import Cluster
from hardware.flows import capacity_graph, latencies_s, max_flow_bytes_per_s, widest_bytes_per_s
from hardware.topology import Link, Topology

__all__ = ["NodeMatrices", "PairMatrices", "node_matrices", "pair_matrices"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NodeMatrices:
    """Arrays of shape (devices, devices) in rank order; the diagonal holds 0 hops and infinite bandwidth."""

    devices: tuple[str, ...]
    hops: Ints
    """Links on the path of least latency."""
    latency_s: Floats
    widest_bytes_per_s: Floats
    """Narrowest link of the widest single path: what a plain copy gets."""
    max_flow_bytes_per_s: Floats
    """All paths together: an upper bound for a copy that uses them all."""
    pool: tuple[tuple[str | None, ...], ...]
    """Pool that every path between the two must share, if any."""


@cache
def node_matrices(topology: Topology) -> NodeMatrices:
    """Return the matrices of one node."""
    devices = topology.devices
    graph = capacity_graph(topology)
    reached = [latencies_s(topology, device) for device in devices]
    widest = [widest_bytes_per_s(graph, device) for device in devices]
    return NodeMatrices(
        devices=devices,
        hops=np.array([[path[b][1] for b in devices] for path in reached], dtype=np.int64),
        latency_s=np.array([[path[b][0] for b in devices] for path in reached]),
        widest_bytes_per_s=np.array([[width[b] for b in devices] for width in widest]),
        max_flow_bytes_per_s=_symmetric(devices, lambda a, b: max_flow_bytes_per_s(graph, [a], [b])),
        pool=tuple(tuple(_pool_between(topology, a, b) for b in devices) for a in devices),
    )


def _symmetric(devices: tuple[str, ...], value: Callable[[str, str], float]) -> Floats:
    matrix = np.full((len(devices), len(devices)), np.inf)
    for i, a in enumerate(devices):
        for j, b in enumerate(devices[:i]):
            matrix[i, j] = matrix[j, i] = value(a, b)
    return matrix


def _pool_between(topology: Topology, a: str, b: str) -> str | None:
    for pool in topology.pools if a != b else ():

        def outside(link: Link, name: str = pool.name) -> bool:
            return link.pool != name

        if b not in widest_bytes_per_s(capacity_graph(topology, outside), a):
            return pool.name
    return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairMatrices:
    """What each pair of devices of a cluster gets, in rank order, shape (devices, devices)."""

    bytes_per_s: Floats
    """In a node the widest path; between nodes a device's share when all devices send."""
    latency_s: Floats
    node: Ints
    """Node index of every device, shape (devices,)."""
    group: Ints
    """Group index of every device, shape (devices,)."""


def pair_matrices(cluster: Cluster) -> PairMatrices:
    """Return the pair matrices of a cluster; the diagonal has infinite bandwidth and no latency.

    Ranks run through the groups in order, node by node. Two devices of different groups use the best fabric
    that both groups have; of one group, the levels of that group.
    """
    sizes = [group.node.num_devices for group in cluster.groups for _ in range(group.count)]
    node = np.repeat(np.arange(len(sizes)), sizes)
    group = np.repeat(np.arange(len(cluster.groups)), [group.num_devices for group in cluster.groups])
    bytes_per_s, latency_s = _between_groups(cluster, group)
    start = 0
    for index, entry in enumerate(cluster.groups):
        block = slice(start, start + entry.num_devices)
        bytes_per_s[block, block], latency_s[block, block] = _inside_group(cluster.group_cluster(index))
        start += entry.num_devices
    return PairMatrices(bytes_per_s=bytes_per_s, latency_s=latency_s, node=node, group=group)


def _between_groups(cluster: Cluster, group: Ints) -> tuple[Floats, Floats]:
    count = len(cluster.groups)
    rate, delay = np.full((count, count), np.inf), np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            if i != j:
                fabric = cluster.fabric_between(i, j)
                rate[i, j] = cluster.bytes_per_s_between(i, j)
                delay[i, j] = max(fabric.latency_s, fabric.far_latency_s or 0.0)
    index = np.ix_(group, group)
    return rate[index], delay[index]


def _inside_group(cluster: Cluster) -> tuple[Floats, Floats]:
    """Return bandwidth and latency in one group: from the outermost level inwards, then the node's graph."""
    rank = np.arange(cluster.num_devices)
    rate, delay = np.full((len(rank), len(rank)), np.inf), np.zeros((len(rank), len(rank)))
    for level in reversed(cluster.levels):
        block = rank // level.size
        together = block[:, None] == block[None, :]
        rate[together] = level.bytes_per_s if level.pair_bytes_per_s is None else level.pair_bytes_per_s
        delay[together] = level.latency_s
    node = cluster.groups[0].node
    if node.rated_levels is None and node.num_devices > 1:
        inside = node_matrices(node.topology)
        size = node.num_devices
        for start in range(0, len(rank), size):
            block_slice = slice(start, start + size)
            rate[block_slice, block_slice] = inside.widest_bytes_per_s
            delay[block_slice, block_slice] = inside.latency_s
    np.fill_diagonal(rate, np.inf)
    np.fill_diagonal(delay, 0.0)
    return rate, delay

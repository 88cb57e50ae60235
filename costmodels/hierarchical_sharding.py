r"""Sharding at three levels: weights inside a package, gradients inside a node, optimizer over the world.

With psi parameters, a package of P devices, a node of G and a world of N, one step of three-level sharding
moves, per device and with q_w and q_g bytes per quantised weight and gradient,

* weights, forward and backward: 2 (P - 1) / P psi q_w between the dies of a package;
* gradients: (G - 1) / G psi q_g inside the node, then 2 (M - 1) / M psi / G q_g over the M = N / G nodes;
* after the step, weights from all shards: psi / P q_w per package, over the network.

ZeRO-3 moves 3 (N - 1) / N 2 psi in collectives over all devices; ZeRO++ quantises the forward gather (qwZ),
keeps a second copy of the weights in the node for the backward gather (hpZ) and reduces gradients in two
quantised exchanges (qgZ). A collective over all devices of many nodes runs as one flat ring, which leaves a
node through one port; collectives between peers of the same place in every node use all ports.

References: S. Rajbhandari et al., arXiv 1910.02054 (ZeRO); G. Wang et al., arXiv 2306.10209 (ZeRO++);
arXiv 2501.04266 (three levels on Frontier; formulas derived here).
"""

from dataclasses import dataclass
from enum import StrEnum

from hardware.cluster import Cluster
from hardware.errors import OutOfDomainError

__all__ = ["ShardRates", "ShardScheme", "shard_comm_s", "shard_memory_bytes", "shard_rates"]

_BF16_BYTES = 2.0
_INT8_BYTES = 1.0
_INT4_BYTES = 0.5
_STATE_BYTES = 12.0
"""fp32 master weight and two Adam moments."""


class ShardScheme(StrEnum):
    """Where weights, gradients and optimizer state are divided."""

    ZERO3 = "zero-3"
    """All over the world."""
    ZEROPP = "zero++"
    """Over the world, with quantised traffic and a second copy of the weights in every node."""
    THREE_LEVEL = "three-level"
    """Weights in the package, gradients in the node, optimizer over the world."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRates:
    """Sizes and rates of the levels, one way."""

    package_devices: int
    node_devices: int
    num_devices: int
    package_bytes_per_s: float
    """One device to its package."""
    node_bytes_per_s: float
    """One device to its node, when all send."""
    rail_bytes_per_s: float
    """One device to its peer in another node, when all send."""
    ring_bytes_per_s: float
    """One flat ring over all devices where it leaves a node: one port."""


def shard_rates(cluster: Cluster) -> ShardRates:
    """Return the levels of a homogeneous cluster whose nodes hold packages.

    Raises
    ------
    OutOfDomainError
        if a package has one device, or the cluster has one node.
    """
    levels = cluster.levels
    node_devices = cluster.devices_per_node
    inner = [level for level in levels if level.size < node_devices]
    outer = [level for level in levels if level.size > node_devices]
    node = next((level for level in levels if level.size == node_devices), None)
    if not inner or not outer or node is None:
        message = f"{cluster.name}: three levels need packages inside nodes and more than one node"
        raise OutOfDomainError(message)
    ports = [nic.bytes_per_s for nic in cluster.groups[0].node.topology.nics if nic.bytes_per_s]
    rail = outer[0].bytes_per_s
    return ShardRates(
        package_devices=inner[0].size,
        node_devices=node_devices,
        num_devices=cluster.num_devices,
        package_bytes_per_s=inner[0].bytes_per_s,
        node_bytes_per_s=node.bytes_per_s,
        rail_bytes_per_s=rail,
        ring_bytes_per_s=max(ports, default=rail),
    )


def shard_comm_s(scheme: ShardScheme, num_params: float, rates: ShardRates) -> float:
    """Return the communication time of one step with one micro-batch, nothing hidden. [s]"""
    psi, world, node = num_params, rates.num_devices, rates.node_devices
    nodes = world // node
    everywhere = (world - 1) / world / rates.ring_bytes_per_s
    inside = (node - 1) / node / rates.node_bytes_per_s
    if scheme is ShardScheme.ZERO3:
        return 3.0 * _BF16_BYTES * psi * everywhere
    if scheme is ShardScheme.ZEROPP:
        gather = _INT8_BYTES * psi * everywhere + _BF16_BYTES * psi * inside
        across = _INT4_BYTES * psi / node * (nodes - 1) / nodes / rates.rail_bytes_per_s
        return gather + _INT4_BYTES * psi * inside + across
    package = rates.package_devices
    weights = 2.0 * _INT8_BYTES * psi * (package - 1) / package / rates.package_bytes_per_s
    reduced = _INT4_BYTES * psi * inside
    across = 2.0 * _INT4_BYTES * psi / node * (nodes - 1) / nodes / rates.rail_bytes_per_s
    refreshed = _INT8_BYTES * psi / package / rates.rail_bytes_per_s / (node / package)
    return weights + reduced + across + refreshed


def shard_memory_bytes(scheme: ShardScheme, num_params: float, rates: ShardRates) -> float:
    """Return weights, gradients and optimizer state of one device. [B]"""
    psi, world = num_params, rates.num_devices
    if scheme is ShardScheme.THREE_LEVEL:
        return (
            _BF16_BYTES * psi / rates.package_devices
            + _BF16_BYTES * psi / rates.node_devices
            + _STATE_BYTES * psi / world
        )
    second = _BF16_BYTES * psi / rates.node_devices if scheme is ShardScheme.ZEROPP else 0.0
    return (2.0 * _BF16_BYTES + _STATE_BYTES) * psi / world + second

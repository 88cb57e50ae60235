"""Plain clusters of two levels, made from numbers instead of a catalogue."""

from hardware.cluster import Cluster, NodeGroup
from hardware.device import Device
from hardware.fabric import Fabric, FabricKind
from hardware.levels import Level, LinkKind
from hardware.node import NodeTemplate
from hardware.topology import Link, Part, PartKind, Topology

__all__ = ["homogeneous_cluster"]


def homogeneous_cluster(
    *,
    device: Device,
    num_nodes: int,
    devices_per_node: int,
    intra_bytes_per_s: float,
    inter_bytes_per_s: float,
    intra_kind: LinkKind = LinkKind.SWITCH,
    intra_technology: str = "",
    inter_technology: str = "",
    intra_latency_s: float = 1e-6,
    inter_latency_s: float = 5e-6,
    in_network_reduce: bool = False,
    name: str = "",
) -> Cluster:
    """Return a plain two-level cluster made from numbers.

    Parameters
    ----------
    intra_bytes_per_s : what one device sends to its node when all send, one way. [B/s]
    inter_bytes_per_s : what one device sends to other nodes when all send, one way. [B/s]
    intra_latency_s, inter_latency_s : assumed 1 us inside a node and 5 us between nodes. [s]
    in_network_reduce : whether the node's switch adds (NVLS).
    """
    label = name or f"{device.name}-{num_nodes}x{devices_per_node}"
    level = Level(
        name="node",
        size=devices_per_node,
        bytes_per_s=intra_bytes_per_s,
        latency_s=intra_latency_s,
        kind=intra_kind,
        technology=intra_technology,
        in_network_reduce=in_network_reduce,
        pair_bytes_per_s=intra_bytes_per_s / max(devices_per_node - 1, 1)
        if intra_kind is LinkKind.MESH
        else None,
    )
    node = _plain_node(f"{label}-node", device, level)
    fabric = Fabric(
        name="network",
        kind=FabricKind.CLOS,
        technology=inter_technology,
        latency_s=inter_latency_s,
        node_bytes_per_s=inter_bytes_per_s * devices_per_node,
    )
    return Cluster(
        name=label, groups=(NodeGroup(node=node, count=num_nodes, fabrics=("network",)),), fabrics=(fabric,)
    )


def _plain_node(name: str, device: Device, level: Level) -> NodeTemplate:
    """Return a node of `level.size` devices on one switch, whose level is given as numbers."""
    parts = [Part(id=f"gpu{i}", kind=PartKind.ACCELERATOR, device=device.name) for i in range(level.size)]
    links = tuple(
        Link(
            a=part.id,
            b="switch",
            technology=level.technology,
            bytes_per_s=level.bytes_per_s,
            latency_s=level.latency_s / 2,
        )
        for part in parts
    )
    return NodeTemplate(
        name=name,
        device=device,
        topology=Topology(parts=(*parts, Part(id="switch", kind=PartKind.SWITCH)), links=links),
        rated_levels=(level,) if level.size > 1 else (),
    )

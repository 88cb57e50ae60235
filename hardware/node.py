"""Node templates: one kind of node, its graph, and the fabrics that usually join such nodes."""

from dataclasses import dataclass, replace
from functools import cached_property

from hardware.device import Device
from hardware.errors import OutOfDomainError
from hardware.fabric import Fabric
from hardware.flows import capacity_graph, max_flow_bytes_per_s
from hardware.levels import Level, node_levels
from hardware.topology import Topology

__all__ = ["NodeTemplate"]


@dataclass(frozen=True, kw_only=True)
class NodeTemplate:
    """One kind of node: its parts and links, and the fabrics that it usually attaches to."""

    name: str
    device: Device
    topology: Topology
    fabrics: tuple[Fabric, ...] = ()
    """What joins the nodes where a cluster file says nothing else."""
    devices_per_host: int | None = None
    """Devices under one operating system, where a node holds several hosts (a rack of trays)."""
    aliases: tuple[str, ...] = ()
    default_num_nodes: int = 1
    """Size of the cluster that the template's name alone means."""
    rated_levels: tuple[Level, ...] | None = None
    """Levels given as numbers instead of derived from the graph."""

    def __hash__(self) -> int:
        return hash((self.name, self.topology))

    @property
    def num_devices(self) -> int:
        """Devices in one node."""
        return len(self.topology.devices)

    @property
    def num_hosts(self) -> int:
        """Operating systems in one node."""
        return -(-self.num_devices // (self.devices_per_host or self.num_devices))

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Levels inside the node, inner to outer; empty if it has one device."""
        if self.rated_levels is not None:
            return self.rated_levels
        return node_levels(self.topology) if self.num_devices > 1 else ()

    def nic_bytes_per_s(self, technology: str) -> float:
        """Return what the node's NICs of `technology` can send together, one way; 0 without such a NIC.

        The way from the devices to the NICs counts: a flow through PCIe and sibling dies to the ports.
        """
        nics = [nic for nic in self.topology.nics if nic.technology == technology and nic.bytes_per_s]
        graph = capacity_graph(self.topology)
        graph["network"] = {}
        for nic in nics:
            graph[nic.id]["network"] = nic.bytes_per_s or 0.0
        return max_flow_bytes_per_s(graph, self.topology.devices, ["network"])

    def num_ports(self, technology: str) -> int:
        """Return the NICs of `technology` on one host; one where the template names none."""
        nics = [nic for nic in self.topology.nics if nic.technology == technology]
        return max(1, len(nics) // self.num_hosts)

    def first_devices(self, count: int) -> "NodeTemplate":
        """Return the node with only its first `count` devices in use, for example 64 of a rack's 72."""
        if not 1 <= count <= self.num_devices:
            message = f"node {self.name} has {self.num_devices} devices, {count} cannot be used"
            raise OutOfDomainError(message)
        if count == self.num_devices:
            return self
        topology = self.topology.restricted(self.topology.devices[:count])
        return replace(
            self,
            name=f"{self.name}-first-{count}",
            topology=topology,
            aliases=(),
            rated_levels=self._rated(count),
        )

    def _rated(self, count: int) -> tuple[Level, ...] | None:
        """Return the levels given as numbers, cut to `count` devices."""
        if self.rated_levels is None:
            return None
        inner = tuple(level for level in self.rated_levels if level.size < count and count % level.size == 0)
        outer = next((level for level in self.rated_levels if level.size >= count), None)
        return inner if outer is None or count == 1 else (*inner, replace(outer, size=count))

"""Clusters: groups of identical nodes, and the fabrics that join them.

A homogeneous cluster is one node template and a count. A mixed one has several groups, each attached to
some of the fabrics; devices of two groups talk over the best fabric that both have.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd

from hardware.device import Device
from hardware.errors import OutOfDomainError
from hardware.fabric import Fabric, FabricKind, fabric_levels, largest_divisor
from hardware.levels import Level, LinkKind
from hardware.measured_links import MeasuredLinks
from hardware.node import NodeTemplate

__all__ = ["Cluster", "NodeGroup", "NodeTemplate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """`count` nodes of one template, attached to the fabrics named."""

    node: NodeTemplate
    count: int
    fabrics: tuple[str, ...] = ()
    name: str = ""

    @property
    def num_devices(self) -> int:
        """Devices in the group."""
        return self.count * self.node.num_devices


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Groups of nodes and the fabrics between them; checked when made.

    Raises
    ------
    ValueError
        naming every unknown fabric, empty group, missing NIC and pair of groups without a common fabric.
    """

    name: str
    groups: tuple[NodeGroup, ...]
    fabrics: tuple[Fabric, ...] = ()
    measured_links: MeasuredLinks | None = field(default=None, compare=False, repr=False)
    """Measured rates between the hosts, in the order of the nodes."""
    _fabric_by_name: dict[str, Fabric] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._fabric_by_name.update({fabric.name: fabric for fabric in self.fabrics})
        problems = _cluster_problems(self)
        if problems:
            raise ValueError("\n".join(problems))

    def __hash__(self) -> int:
        return hash(
            (self.name, tuple((group.node.name, group.count, group.fabrics) for group in self.groups))
        )

    @property
    def num_devices(self) -> int:
        """Devices in all groups."""
        return sum(group.num_devices for group in self.groups)

    @property
    def num_nodes(self) -> int:
        """Nodes in all groups."""
        return sum(group.count for group in self.groups)

    @property
    def is_homogeneous(self) -> bool:
        """Whether one group is the whole cluster."""
        return len(self.groups) == 1

    @property
    def devices_per_node(self) -> int:
        """Devices in every node.

        Raises
        ------
        OutOfDomainError
            if the nodes differ in size.
        """
        sizes = {group.node.num_devices for group in self.groups}
        if len(sizes) > 1:
            message = f"cluster {self.name} mixes nodes of {' and '.join(map(str, sorted(sizes)))} devices"
            raise OutOfDomainError(message)
        return sizes.pop()

    @property
    def device(self) -> Device:
        """The one type of device.

        Raises
        ------
        OutOfDomainError
            if the cluster mixes types.
        """
        names = {group.node.device.name for group in self.groups}
        if len(names) > 1:
            message = f"cluster {self.name} mixes {', '.join(sorted(names))}; take one group at a time"
            raise OutOfDomainError(message)
        return self.groups[0].node.device

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Nested levels, inner to outer; the last covers all devices.

        For a mixed cluster they are conservative: blocks that fit every group, the slowest group's
        bandwidth, and between groups the slowest of the best common fabrics.
        """
        if self.is_homogeneous:
            return _group_levels(self, 0)
        return _mixed_levels(self)

    def with_nodes(self, num_nodes: int) -> "Cluster":
        """Return the homogeneous cluster with `num_nodes` nodes instead.

        Raises
        ------
        OutOfDomainError
            if the cluster has several groups, its fabrics cannot join so many, or fewer hosts were measured.
        """
        if not self.is_homogeneous:
            message = (
                f"cluster {self.name} has {len(self.groups)} groups; say in its file how many nodes each has"
            )
            raise OutOfDomainError(message)
        if num_nodes < 1:
            message = f"a cluster needs at least one node, not {num_nodes}"
            raise OutOfDomainError(message)
        if num_nodes == self.groups[0].count:
            return self
        try:
            group = replace(self.groups[0], count=num_nodes)
            return replace(self, groups=(group,), measured_links=self._first_links(num_nodes))
        except ValueError as error:
            raise OutOfDomainError(str(error)) from None

    def with_devices_per_node(self, count: int) -> "Cluster":
        """Return the homogeneous cluster with only the first `count` devices of every node in use.

        Raises
        ------
        OutOfDomainError
            if the cluster has several groups, a node has fewer, or links of the other hosts were measured.
        """
        if not self.is_homogeneous:
            message = f"cluster {self.name} has {len(self.groups)} groups; set devices_per_node in its file"
            raise OutOfDomainError(message)
        group = replace(self.groups[0], node=self.groups[0].node.first_devices(count))
        try:
            return replace(self, groups=(group,))
        except ValueError as error:
            raise OutOfDomainError(str(error)) from None

    def _first_links(self, num_nodes: int) -> MeasuredLinks | None:
        """Return the measured links of the first nodes; None for one host, which has no link."""
        links, num_hosts = self.measured_links, num_nodes * self.groups[0].node.num_hosts
        if links is not None and num_hosts > links.num_hosts:
            measured = f"the links of {links.num_hosts} hosts were measured"
            message = f"cluster {self.name}: {measured}, {num_nodes} nodes have {num_hosts}"
            raise OutOfDomainError(message)
        return None if links is None or num_hosts < 2 else links.first(num_hosts)

    def group_cluster(self, index: int) -> "Cluster":
        """Return group `index` alone, as a homogeneous cluster."""
        group = self.groups[index]
        fabrics = tuple(self.fabric(name) for name in group.fabrics)
        return Cluster(name=f"{self.name}:{group.name or index}", groups=(group,), fabrics=fabrics)

    def fabric(self, name: str) -> Fabric:
        """Return the fabric called `name`."""
        return self._fabric_by_name[name]

    def node_bytes_per_s(self, group_index: int, fabric_name: str) -> float:
        """Return what one node of the group sends into that fabric, one way."""
        node, fabric = self.groups[group_index].node, self.fabric(fabric_name)
        return _node_bytes_per_s(node, fabric)

    def fabric_between(self, group_i: int, group_j: int) -> Fabric:
        """Return the fastest fabric that both groups attach to; of one group, its own fastest."""
        common = [name for name in self.groups[group_i].fabrics if name in self.groups[group_j].fabrics]
        return self.fabric(max(common, key=lambda name: self._between(group_i, group_j, name)))

    def bytes_per_s_between(self, group_i: int, group_j: int) -> float:
        """Return what one device of the slower group sends to the other group when all send, one way."""
        return self._between(group_i, group_j, self.fabric_between(group_i, group_j).name)

    def _between(self, group_i: int, group_j: int, fabric_name: str) -> float:
        fabric = self.fabric(fabric_name)
        if fabric.kind is FabricKind.TORUS:
            return 2 * len(fabric.dims) * (fabric.link_bytes_per_s or 0.0)
        far_frac = fabric.taper * fabric.even_frac / fabric.oversubscription
        return far_frac * min(
            _node_bytes_per_s(self.groups[i].node, fabric) / self.groups[i].node.num_devices
            for i in (group_i, group_j)
        )


def _node_bytes_per_s(node: NodeTemplate, fabric: Fabric) -> float:
    return (
        node.nic_bytes_per_s(fabric.technology)
        if fabric.node_bytes_per_s is None
        else fabric.node_bytes_per_s
    )


def _cluster_problems(cluster: Cluster) -> list[str]:
    names = [fabric.name for fabric in cluster.fabrics]
    problems = [
        f"fabric {name!r} is given twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if not cluster.groups:
        problems.append("a cluster needs at least one group")
    links = cluster.measured_links
    if links is not None and links.num_hosts != sum(
        group.count * group.node.num_hosts for group in cluster.groups
    ):
        problems.append(
            f"measured_links names {links.num_hosts} hosts, the groups have another number of nodes"
        )
    for index, group in enumerate(cluster.groups):
        problems += _group_problems(group, f"group {group.name or index}", cluster)
    if problems:
        return problems
    for i, first in enumerate(cluster.groups):
        for j, second in enumerate(cluster.groups[:i]):
            if not set(first.fabrics) & set(second.fabrics):
                problems.append(
                    f"disconnected: groups {second.name or j} and {first.name or i} share no fabric"
                )
    return problems


def _group_problems(group: NodeGroup, where: str, cluster: Cluster) -> list[str]:
    known = cluster._fabric_by_name
    unknown = [name for name in group.fabrics if name not in known]
    if unknown:
        names = ", ".join(map(repr, unknown))
        return [f"{where}: no fabric is called {names}; known: {', '.join(known) or 'none'}"]
    if group.count < 1:
        return [f"{where}: count must be at least 1, not {group.count}"]
    if cluster.num_nodes == 1:
        return []
    fabrics = [known[name] for name in group.fabrics]
    if not fabrics:
        return [f"{where}: {group.count} nodes of {group.node.name} need a fabric to join them"]
    dead = [
        f"{where}: fabric {fabric.name} gives no node_bytes_per_s, and node {group.node.name} has no NIC of "
        f"technology {fabric.technology!r} with bytes_per_s and a way to its devices"
        for fabric in fabrics
        if fabric.kind is not FabricKind.TORUS and _node_bytes_per_s(group.node, fabric) <= 0
    ]
    reach = max(fabric.reach(group.node.num_devices) for fabric in fabrics)
    if group.count > reach:
        dead.append(f"{where}: {group.count} nodes are more than the {reach:.0f} that its fabrics join")
    return dead


def _group_levels(cluster: Cluster, index: int) -> tuple[Level, ...]:
    """Return the levels of one group: inside the node, then its fabrics from the fastest to the slowest."""
    group = cluster.groups[index]
    node = group.node
    levels = list(node.levels)
    rated = sorted(
        (cluster.fabric(name) for name in group.fabrics),
        key=lambda fabric: -cluster._between(index, index, fabric.name),
    )
    joined = 1
    for fabric in rated:
        reach = largest_divisor(group.count, fabric.reach(node.num_devices))
        if reach <= joined or reach % joined:
            continue
        if fabric.kind is FabricKind.TORUS:
            levels.clear()
        levels += fabric_levels(
            fabric,
            inside_nodes=joined,
            num_nodes=reach,
            devices_per_node=node.num_devices,
            node_bytes_per_s=0.0 if fabric.kind is FabricKind.TORUS else _node_bytes_per_s(node, fabric),
        )
        joined = reach
    return tuple(levels) or (_alone(node.device),)


def _alone(device: Device) -> Level:
    """Return the level of a cluster that is one device: it only ever copies inside its own memory."""
    return Level(
        name="device",
        size=1,
        bytes_per_s=device.memory_bytes_per_s,
        latency_s=0.0,
        kind=LinkKind.SWITCH,
        technology="memory",
    )


def _mixed_levels(cluster: Cluster) -> tuple[Level, ...]:
    per_group = [_group_levels(cluster, index) for index in range(len(cluster.groups))]
    node_sizes = [group.node.num_devices for group in cluster.groups]
    common_node, common_group = gcd(*node_sizes), gcd(*(group.num_devices for group in cluster.groups))
    sizes = {size for size in (level.size for level in per_group[0]) if size < common_node}
    sizes = {size for size in sizes if all(size in {level.size for level in levels} for levels in per_group)}
    sizes |= {size for size in (common_node, common_group) if size > 1}
    levels = []
    for size in sorted(sizes):
        slowest = min((_covering(levels, size) for levels in per_group), key=lambda level: level.bytes_per_s)
        latency_s = max(_covering(levels, size).latency_s for levels in per_group)
        levels.append(replace(slowest, size=size, latency_s=latency_s, name=f"block-{size}"))
    levels.append(_world_level(cluster))
    return tuple(levels)


def _covering(levels: Sequence[Level], size: int) -> Level:
    """Return the smallest level that holds a block of `size`."""
    return next((level for level in levels if level.size >= size), levels[-1])


def _world_level(cluster: Cluster) -> Level:
    pairs = [(i, j) for i in range(len(cluster.groups)) for j in range(i)]
    i, j = min(pairs, key=lambda pair: cluster.bytes_per_s_between(*pair))
    fabric = cluster.fabric_between(i, j)
    return Level(
        name="world",
        size=cluster.num_devices,
        bytes_per_s=cluster.bytes_per_s_between(i, j),
        latency_s=max(fabric.latency_s, fabric.far_latency_s or 0.0),
        kind=LinkKind.WAN if fabric.kind is FabricKind.WAN else LinkKind.FABRIC,
        technology=fabric.technology,
        attained_frac=fabric.attained_frac,
    )

"""The YAML format of a cluster, for the catalogue and for users.

::

    name: two-halls
    groups:
      - {node: dgx-a100, count: 4, fabrics: [ib, ethernet]}      # a catalogue name, or one of `nodes:` below
      - {node: dgx-a100, count: 4, fabrics: [roce, ethernet]}
    fabrics:                                                     # see hardware.fabric.Fabric
      - {name: ib, kind: rail, technology: ib, node_bytes_per_s: 100 GB/s, latency_s: 5 us}
      - {name: roce, kind: rail, technology: roce, node_bytes_per_s: 50 GB/s, latency_s: 8 us}
      - {name: ethernet, kind: clos, technology: ethernet, node_bytes_per_s: 3.125 GB/s, latency_s: 40 us}
    devices: {my-gpu: {vendor: acme, memory_bytes: 48 GB, ...}}   # optional, see hardware.device.Device
    nodes: {my-node: {device: my-gpu, parts: [...], links: [...]}} # optional, see hardware.node_file

`measured_links` holds measured rates between hosts, see hardware.measured_links; fabrics are no faster than
those rates, see hardware.measured_fabric.
A group without `fabrics` uses all fabrics of the file, or its node's usual ones if the file has none.
`devices_per_node` uses only the first devices of each node (64 of a rack's 72).
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from hardware.cluster import Cluster, NodeGroup, NodeTemplate
from hardware.device import Source
from hardware.errors import OutOfDomainError, SpecError
from hardware.fabric import Fabric
from hardware.measured_fabric import with_measured_fabrics
from hardware.measured_links import MeasuredLinksEntry, read_links

__all__ = ["ClusterFile", "GroupEntry", "build_cluster"]

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEntry:
    """One line of `groups`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    node: str
    count: Count
    fabrics: tuple[str, ...] | None = None
    name: str = ""
    devices_per_node: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """A cluster as its file gives it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    groups: Annotated[tuple[GroupEntry, ...], Field(min_length=1)]
    fabrics: tuple[Fabric, ...] = ()
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured_links: MeasuredLinksEntry | None = None
    aliases: tuple[str, ...] = ()
    overrides: bool = False
    sources: dict[str, Source] = field(default_factory=dict)
    schema_version: Literal[1] = 1


def build_cluster(spec: ClusterFile, nodes: dict[str, NodeTemplate], where: str) -> Cluster:
    """Return the cluster of `spec`, whose node names are all in `nodes`.

    Raises
    ------
    SpecError
        naming every unknown fabric, missing NIC, and pair of groups that nothing joins.
    """
    usual = {fabric.name: fabric for group in spec.groups for fabric in nodes[group.node].fabrics}
    fabrics = spec.fabrics or tuple(usual.values())
    groups = []
    problems = []
    for index, entry in enumerate(spec.groups):
        node = nodes[entry.node]
        own = tuple(fabric.name for fabric in spec.fabrics or node.fabrics)
        try:
            used = node if entry.devices_per_node is None else node.first_devices(entry.devices_per_node)
        except OutOfDomainError as error:
            problems.append(f"groups.{index}.devices_per_node: {error}")
            continue
        names = own if entry.fabrics is None else entry.fabrics
        groups.append(NodeGroup(node=used, count=entry.count, fabrics=names, name=entry.name))
    if problems:
        raise SpecError(where, problems)
    try:
        links = None if spec.measured_links is None else read_links(spec.measured_links, where)
        cluster = Cluster(name=spec.name, groups=tuple(groups), fabrics=fabrics, measured_links=links)
        return with_measured_fabrics(cluster)
    except ValueError as error:
        raise SpecError(where, str(error).split("\n")) from None

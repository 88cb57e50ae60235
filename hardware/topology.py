"""Parts of a machine and the links between them, as one typed multigraph.

Parts are accelerators (or dies: the devices that ranks run on), packages, CPUs, NICs, switches and PCIe
switches; a link joins two parts. Bandwidth is per link and one way. What several links share is a `Pool`
(a host's staging memory, a NIC of two dies); independent parallel fabrics are planes; `rail` is the index
by which NICs of different nodes meet on one switch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["HOST_TECHNOLOGIES", "Duplex", "Link", "Part", "PartKind", "Pool", "Topology"]

HOST_TECHNOLOGIES = frozenset({"pcie3", "pcie4", "pcie5", "pcie6", "upi", "cpu-link", "nvlink-c2c", "dram"})
"""Links through the host. Collective libraries use them only where no scale-up link leads on."""


class PartKind(StrEnum):
    """What a part is."""

    ACCELERATOR = "accelerator"
    DIE = "die"
    """A device that shares its package with others (a GCD of an MI250X, a die of a 910C)."""
    PACKAGE = "package"
    CPU = "cpu"
    NIC = "nic"
    SWITCH = "switch"
    MEMORY = "memory"


class Duplex(StrEnum):
    """Whether both directions of a link have its full rate."""

    FULL = "full"
    HALF = "half"
    """Both directions share the rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a machine."""

    id: str
    kind: PartKind
    device: str | None = None
    """Device name, for accelerators and dies."""
    package: str | None = None
    """Id of the package part that this die sits in."""
    host: str | None = None
    """Id of the host (operating system) that owns the part, where a node holds several."""
    technology: str | None = None
    """Network technology of a NIC: ib, roce, efa, slingshot, ethernet."""
    bytes_per_s: float | None = None
    """Port rate of a NIC towards its network, one way."""
    rail: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A capacity that several links share."""

    name: str
    bytes_per_s: float
    """All traffic over the member links together, both directions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """`count` equal links between two parts."""

    a: str
    b: str
    technology: str
    bytes_per_s: float
    """One link, one way."""
    latency_s: float
    count: int = 1
    duplex: Duplex = Duplex.FULL
    pool: str | None = None
    plane: int | None = None
    in_network_reduce: bool = False
    """The switch at one end adds what passes through it (NVLS, SHARP)."""

    @property
    def total_bytes_per_s(self) -> float:
        """All `count` links together, one way."""
        return self.count * self.bytes_per_s

    @property
    def is_host(self) -> bool:
        """Whether the link runs through the host rather than the scale-up fabric."""
        return self.technology in HOST_TECHNOLOGIES


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A multigraph of parts and links; checked when it is made.

    Raises
    ------
    ValueError
        naming every repeated part, link to a missing part, unknown pool, and device out of reach.
    """

    parts: tuple[Part, ...]
    links: tuple[Link, ...]
    pools: tuple[Pool, ...] = ()

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ValueError("\n".join(problems))

    def __hash__(self) -> int:
        return hash((len(self.parts), len(self.links), self.devices))

    @cached_property
    def by_id(self) -> Mapping[str, Part]:
        """Parts by their ids."""
        return {part.id: part for part in self.parts}

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """Ids of the accelerators and dies, in the order of the file; the order ranks take."""
        return tuple(part.id for part in self.parts if _is_device(part))

    @cached_property
    def nics(self) -> tuple[Part, ...]:
        """The NICs, in the order of the file."""
        return tuple(part for part in self.parts if part.kind is PartKind.NIC)

    @cached_property
    def graph(self) -> "nx.MultiGraph[str]":
        """The networkx view: nodes carry the part, edges the link."""
        import networkx as nx

        graph: nx.MultiGraph[str] = nx.MultiGraph()
        for part in self.parts:
            graph.add_node(part.id, part=part, kind=part.kind.value)
        for link in self.links:
            graph.add_edge(link.a, link.b, link=link, capacity=link.total_bytes_per_s, latency=link.latency_s)
        return graph

    def restricted(self, device_ids: Sequence[str]) -> "Topology":
        """Return the topology with only these devices; all other parts stay."""
        kept = set(device_ids)
        parts = tuple(part for part in self.parts if part.id in kept or not _is_device(part))
        left = {part.id for part in parts}
        links = tuple(link for link in self.links if link.a in left and link.b in left)
        return Topology(parts=parts, links=links, pools=self.pools)


def _is_device(part: Part) -> bool:
    return part.kind in (PartKind.ACCELERATOR, PartKind.DIE)


def _problems(topology: Topology) -> list[str]:
    ids = [part.id for part in topology.parts]
    known = set(ids)
    pools = {pool.name for pool in topology.pools}
    problems = [f"part {name!r} is given twice" for name in sorted({i for i in ids if ids.count(i) > 1})]
    for link in topology.links:
        pair = f"link {link.a} - {link.b}"
        problems += [f"{pair}: no part is called {end!r}" for end in (link.a, link.b) if end not in known]
        if link.a == link.b:
            problems.append(f"{pair}: joins a part with itself")
        if link.pool is not None and link.pool not in pools:
            problems.append(f"{pair}: no pool is called {link.pool!r}")
    packages = {part.id for part in topology.parts if part.kind is PartKind.PACKAGE}
    problems += [
        f"part {part.id}: no package is called {part.package!r}"
        for part in topology.parts
        if part.package is not None and part.package not in packages
    ]
    if not any(_is_device(part) for part in topology.parts):
        problems.append("no part is an accelerator or a die")
    return problems or _unreachable(topology)


def _unreachable(topology: Topology) -> list[str]:
    """Return a problem for every device that no path joins to the first one."""
    neighbours: dict[str, list[str]] = {part.id: [] for part in topology.parts}
    for link in topology.links:
        neighbours[link.a].append(link.b)
        neighbours[link.b].append(link.a)
    devices = [part.id for part in topology.parts if _is_device(part)]
    seen = {devices[0]}
    frontier = [devices[0]]
    while frontier:
        for neighbour in neighbours[frontier.pop()]:
            if neighbour not in seen:
                seen.add(neighbour)
                frontier.append(neighbour)
    lost = [device for device in devices if device not in seen]
    return [f"disconnected: no path from {devices[0]} to {', '.join(lost)}"] if lost else []

"""The YAML format of a node template, and from it the node's graph.

::

    name: my-box                      # also the file's name
    device: l40s                      # what `kind: accelerator` parts are
    parts:
      - {id: gpu, count: 8, kind: accelerator}          # gpu0 .. gpu7
      - {id: cpu, count: 2, kind: cpu}
      - {id: nic, kind: nic, technology: ethernet, bytes_per_s: 12.5 GB/s}
    pools:
      - {name: staging, bytes_per_s: 20 GB/s}           # shared by every link that names it
    links:                                              # per link and one way
      - {spread: ["gpu*", "cpu*"], technology: pcie4, bytes_per_s: 32 GB/s, latency_s: 0.5 us, pool: staging}
      - {pairs: [[cpu0, cpu1]], technology: upi, bytes_per_s: 20 GB/s, latency_s: 0.5 us}
      - {each: [cpu0, nic], technology: pcie4, bytes_per_s: 32 GB/s, latency_s: 0.5 us}
    fabrics:                                            # what usually joins such nodes; see hardware.fabric
      - {name: lan, kind: clos, technology: ethernet, latency_s: 30 us}
    sources:                                            # for every number; * covers several
      "*": {kind: assumed, ref: "my own box", date: "2026-11", confidence: derived}

`each` joins every part of the first pattern to every part of the second; `spread` deals the first evenly over
the second, neighbours together; `mesh` joins every pair of one pattern; `pairs` names the ends, and as a
third item how many links. Patterns are shell patterns on part ids (``gpu[0-3]``).
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from hardware.device import Device, Source
from hardware.errors import SpecError
from hardware.fabric import Fabric
from hardware.node import NodeTemplate
from hardware.topology import Duplex, Link, Part, PartKind, Pool, Topology
from hardware.units import BytesPerSecond, Seconds

__all__ = ["NodeFile", "build_node"]

Count = Annotated[int, Field(ge=1)]

_PLAUSIBLE_BYTES_PER_S = (1e7, 2e12)
"""From an 80 Mb/s radio to beyond the fastest scale-up link of 2026, one link and one way."""

_RATED_LINKS = frozenset(
    {"nvlink2", "nvlink3", "nvlink4", "nvlink5", "xgmi", "infinity-fabric", "hccs", "ub", "ici"}
)
"""Technologies that a device's `scale_up_bytes_per_s` counts."""
PatternPair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartEntry:
    """One line of `parts`: a part, or `count` equal ones numbered from 0."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: str
    kind: PartKind
    count: Count | None = None
    package: str | None = None
    """Id of the package part; with `per_package` the id that is numbered."""
    per_package: Count | None = None
    technology: str | None = None
    bytes_per_s: BytesPerSecond | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEntry:
    """One line of `pools`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    bytes_per_s: BytesPerSecond


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEntry:
    """One line of `links`: equal links between the parts that exactly one of four patterns names."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    technology: str
    bytes_per_s: BytesPerSecond
    latency_s: Seconds
    each: PatternPair | None = None
    spread: PatternPair | None = None
    mesh: str | None = None
    pairs: tuple[PatternPair | tuple[str, str, Count], ...] = ()
    count: Count = 1
    duplex: Duplex = Duplex.FULL
    pool: str | None = None
    plane: int | None = None
    in_network_reduce: bool = False

    def __post_init__(self) -> None:
        if sum(bool(way) for way in (self.each, self.spread, self.mesh, self.pairs)) != 1:
            message = "a link entry needs exactly one of each, spread, mesh and pairs"
            raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFile:
    """A node template as its file gives it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    device: str
    parts: tuple[PartEntry, ...]
    links: tuple[LinkEntry, ...] = ()
    pools: tuple[PoolEntry, ...] = ()
    fabrics: tuple[Fabric, ...] = ()
    devices_per_host: Count | None = None
    default_num_nodes: Count = 1
    aliases: tuple[str, ...] = ()
    overrides: bool = False
    """Whether the file may replace a built-in of the same name."""
    sources: dict[str, Source] = field(default_factory=dict)


def build_node(spec: NodeFile, device: Device, where: str, *, prefix: str = "") -> NodeTemplate:
    """Return the template that `spec` describes.

    Raises
    ------
    SpecError
        naming every pattern without a part, link to a missing part and device out of reach.
    """
    dot = f"{prefix}." if prefix else ""
    problems: list[str] = []
    parts = _parts(spec, device)
    ids = [part.id for part in parts]
    links: list[Link] = []
    for index, entry in enumerate(spec.links):
        ends, missing = _ends(entry, ids)
        problems += [
            f"{dot}links.{index}: {pattern!r} matches no part (parts: {_short(ids)})" for pattern in missing
        ]
        links += [_link(entry, a, b, count) for a, b, count in ends]
    topology = None
    try:
        if not problems:
            pools = tuple(Pool(name=pool.name, bytes_per_s=pool.bytes_per_s) for pool in spec.pools)
            topology = Topology(parts=tuple(parts), links=tuple(links), pools=pools)
    except ValueError as error:
        place = f"{prefix}: " if prefix else ""
        problems += [f"{place}{problem}" for problem in str(error).split("\n")]
    if topology is None:
        raise SpecError(where, problems)
    _warn_of_units(topology, device, where)
    return NodeTemplate(
        name=spec.name,
        device=device,
        topology=topology,
        fabrics=spec.fabrics,
        devices_per_host=spec.devices_per_host,
        aliases=spec.aliases,
        default_num_nodes=spec.default_num_nodes,
    )


def _warn_of_units(topology: Topology, device: Device, where: str) -> None:
    """Warn of rates that look like bits for bytes or both directions for one."""
    for link in topology.links:
        if not _PLAUSIBLE_BYTES_PER_S[0] <= link.bytes_per_s <= _PLAUSIBLE_BYTES_PER_S[1]:
            message = (
                f"{where}: link {link.a} - {link.b}: {link.bytes_per_s:g} B/s; are these bytes, and one way?"
            )
            warnings.warn(message, stacklevel=2)
    rated = device.scale_up_bytes_per_s
    for name in topology.devices if rated is not None else ():
        own = [
            link for link in topology.links if name in (link.a, link.b) and link.technology in _RATED_LINKS
        ]
        total = sum(link.total_bytes_per_s for link in own)
        if rated is not None and total > 1.2 * rated:
            message = (
                f"{where}: links of {name} add up to {total:g} B/s, {device.name} is rated {rated:g} one way"
            )
            warnings.warn(message, stacklevel=2)
            break


def _parts(spec: NodeFile, device: Device) -> list[Part]:
    parts = []
    for entry in spec.parts:
        is_device = entry.kind in (PartKind.ACCELERATOR, PartKind.DIE)
        for index in range(entry.count or 1):
            package = entry.package
            if package is not None and entry.per_package is not None:
                package = f"{package}{index // entry.per_package}"
            host = index // spec.devices_per_host if is_device and spec.devices_per_host else None
            parts.append(
                Part(
                    id=entry.id if entry.count is None else f"{entry.id}{index}",
                    kind=entry.kind,
                    device=device.name if is_device else None,
                    package=package,
                    host=None if host is None else f"host{host}",
                    technology=entry.technology,
                    bytes_per_s=entry.bytes_per_s,
                    rail=index if entry.kind is PartKind.NIC else None,
                )
            )
    return parts


def _link(entry: LinkEntry, a: str, b: str, count: int) -> Link:
    return Link(
        a=a,
        b=b,
        count=count,
        technology=entry.technology,
        bytes_per_s=entry.bytes_per_s,
        latency_s=entry.latency_s,
        duplex=entry.duplex,
        pool=entry.pool,
        plane=entry.plane,
        in_network_reduce=entry.in_network_reduce,
    )


def _ends(entry: LinkEntry, ids: Sequence[str]) -> tuple[list[tuple[str, str, int]], list[str]]:
    """Return the pairs that an entry joins, with their counts, and the patterns that match nothing."""
    patterns = [*(entry.each or ()), *(entry.spread or ()), *([entry.mesh] if entry.mesh else [])]
    patterns += [end for pair in entry.pairs for end in pair[:2]]
    missing = list(dict.fromkeys(pattern for pattern in patterns if not _match(pattern, ids)))
    if missing:
        return [], missing
    found: Iterable[tuple[Any, ...]]
    if entry.each:
        found = [(a, b) for a in _match(entry.each[0], ids) for b in _match(entry.each[1], ids)]
    elif entry.spread:
        first, second = _match(entry.spread[0], ids), _match(entry.spread[1], ids)
        found = [(a, second[i * len(second) // len(first)]) for i, a in enumerate(first)]
    elif entry.mesh:
        found = combinations(_match(entry.mesh, ids), 2)
    else:
        found = entry.pairs
    return [(pair[0], pair[1], entry.count * (pair[2] if len(pair) > 2 else 1)) for pair in found], []


def _match(pattern: str, ids: Sequence[str]) -> list[str]:
    return [name for name in ids if fnmatchcase(name, pattern)]


def _short(ids: Sequence[str]) -> str:
    return ", ".join(ids) if len(ids) <= 12 else f"{', '.join(ids[:10])} ... {ids[-1]}"
